//! Terminals: their other end over a socket, or relayed by `run`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod bundle;

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use bundle::{Bundle, skipped, text};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::json;

fn receive(stream: &UnixStream) -> OwnedFd {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [0; 64];
    rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut data)],
        &mut control,
        RecvFlags::empty(),
    )
    .unwrap();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            return descriptors.next().unwrap();
        }
    }
    panic!("no descriptor came");
}

fn with_terminal(script: &str) -> Bundle {
    let mut bundle = Bundle::new(&["sh", "-c", script]);
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({"height": 25, "width": 90});
    bundle.write();
    bundle
}

/// Everything until the last writer is gone, which shows as EIO.
fn read_all(master: OwnedFd) -> String {
    let mut file = std::fs::File::from(master);
    let mut bytes = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(length) = file.read(&mut buffer) {
        if length == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8_lossy(&bytes).replace("\r\n", "\n")
}

#[test]
fn the_other_end_is_sent_over_the_socket() {
    if skipped() {
        return;
    }
    let bundle = with_terminal(
        "stty size; readlink /proc/self/fd/1; echo hello >/dev/console; stat -c %t /dev/console; echo to tty >/dev/tty",
    );
    let path = bundle.path("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let output = bundle.create_with(&["--console-socket", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    let master = receive(&listener.accept().unwrap().0);
    assert!(bundle.runtime(&["start", "ID"]).status.success());
    assert_eq!(read_all(master), "25 90\n/dev/pts/0\nhello\n88\nto tty\n");
}

#[test]
fn exec_has_a_terminal_of_its_own() {
    if skipped() {
        return;
    }
    let bundle = Bundle::new(&["sleep", "100"]);
    bundle.start();
    let path = bundle.path("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let output = bundle.quiet(&[
        "exec",
        "--tty",
        "--detach",
        "--console-socket",
        path.to_str().unwrap(),
        "ID",
        "sh",
        "-c",
        "readlink /proc/self/fd/0; cat",
    ]);
    assert!(output.status.success(), "{}", text(&output));
    let master = receive(&listener.accept().unwrap().0);
    let mut typing = std::fs::File::from(master.try_clone().unwrap());
    // what is typed is echoed: not before the first line is there
    let mut first = [0; 12];
    typing.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"/dev/pts/0\r\n");
    typing.write_all(b"typed\n\x04").unwrap();
    assert_eq!(read_all(master), "typed\ntyped\n");
}

#[test]
fn run_relays_what_is_typed_and_written() {
    if skipped() {
        return;
    }
    let bundle = with_terminal("read line; echo got $line; exit 5");
    let dir = bundle.path("");
    let mut command = bundle.command(&["run", "--bundle", dir.to_str().unwrap(), bundle.id()]);
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"word\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("got word"), "{}", text(&output));
    bundle.assert_nothing_left();
}

/// Both buffers of the terminal are full by then: whoever relays must not wait for one before it empties the other.
#[test]
fn a_program_may_write_much_before_it_reads_much() {
    if skipped() {
        return;
    }
    let bundle = with_terminal(
        "stty raw -echo; echo ready; i=0; while [ $i -lt 4000 ]; do echo 0123456789012345678901234567890123456789; \
         i=$((i + 1)); done; head -c 100000 >/dev/null; echo took it",
    );
    let dir = bundle.path("");
    let mut command = bundle.command(&["run", "--bundle", dir.to_str().unwrap(), bundle.id()]);
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (mut typing, mut shown) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut first = [0; 5];
    shown.read_exact(&mut first).unwrap();
    std::thread::spawn(move || typing.write_all(&[b'x'; 100_000]));
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut all = String::new();
        drop(shown.read_to_string(&mut all));
        send.send(all)
    });
    let all = receive.recv_timeout(std::time::Duration::from_secs(60));
    if all.is_err() {
        drop(bundle.runtime(&["kill", "ID", "KILL"]));
    }
    child.wait().unwrap();
    let all = all.unwrap();
    assert!(
        all.ends_with("took it\n"),
        "{} bytes, at the end {:?}",
        all.len(),
        all.get(all.len().saturating_sub(20)..)
    );
}

#[test]
fn a_terminal_needs_somebody_at_its_other_end() {
    if skipped() {
        return;
    }
    let bundle = with_terminal("true");
    let created = bundle.create();
    assert_eq!(created.status.code(), Some(1));
    assert!(
        bundle.last_error().contains("without setting console socket"),
        "{}",
        bundle.last_error()
    );
    bundle.assert_nothing_left();
    let bundle = Bundle::new(&["true"]);
    let output = bundle.create_with(&["--console-socket", "/no/such"]);
    assert!(text(&output).contains("cannot use console socket"), "{}", text(&output));
}
