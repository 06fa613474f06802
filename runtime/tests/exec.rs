//! exec: one more program in a container.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bundle;

use bundle::{Bundle, skipped, text};
use serde_json::json;

fn started() -> Bundle {
    let bundle = Bundle::new(&["sleep", "100"]);
    let output = bundle.create();
    assert!(output.status.success(), "{}", text(&output));
    let output = bundle.runtime(&["start", "ID"]);
    assert!(output.status.success(), "{}", text(&output));
    bundle
}

fn said(bundle: &Bundle, words: &[&str]) -> String {
    let output = bundle.runtime(words);
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_program_joins_everything() {
    if skipped() {
        return;
    }
    let bundle = started();
    let script = "for n in /proc/1/ns/*; do [ $(readlink $n) = $(readlink /proc/self/ns/${n##*/}) ] || echo other ${n##*/}; done; \
        cat /proc/self/cgroup /proc/1/cgroup; tr '\\0' ' ' </proc/1/cmdline";
    let output = said(&bundle, &["exec", "ID", "sh", "-c", script]);
    assert!(!output.contains("other "), "another namespace: {output}");
    assert!(output.contains("sleep 100"), "{output}");
    let lines: Vec<&str> = output.lines().filter(|line| line.contains(":/")).collect();
    let half = lines.len() / 2;
    assert_eq!(lines[..half], lines[half..], "another cgroup");
}

#[test]
fn status_user_environment_and_directory() {
    if skipped() {
        return;
    }
    let bundle = started();
    let failed = bundle.runtime(&["exec", "ID", "sh", "-c", "exit 9"]);
    assert_eq!(failed.status.code(), Some(9), "{}", text(&failed));
    let words = [
        "exec",
        "--user",
        "5:6",
        "-g",
        "7",
        "--env",
        "A=b",
        "--cwd",
        "/etc",
        "ID",
        "sh",
        "-c",
        "id -u; id -G; echo $A; pwd",
    ];
    assert_eq!(said(&bundle, &words), "5\n6 7\nb\n/etc\n");
    let killed = bundle.runtime(&["exec", "ID", "sh", "-c", "kill -9 $$"]);
    assert_eq!(killed.status.code(), Some(137), "{}", text(&killed));
    let missing = bundle.runtime(&["exec", "ID", "nosuch"]);
    assert_eq!(missing.status.code(), Some(255));
    assert_eq!(
        bundle.last_error(),
        "exec failed: unable to start container process: exec: \"nosuch\": executable file not found in $PATH"
    );
    let name = bundle.runtime(&["exec", "--user", "root", "ID", "true"]);
    assert!(text(&name).contains("bad uid"), "{}", text(&name));
}

#[test]
fn an_added_capability_is_not_inheritable() {
    if skipped() {
        return;
    }
    let bundle = started();
    let output = said(
        &bundle,
        &["exec", "--cap", "CAP_SYS_CHROOT", "ID", "grep", "Cap", "/proc/self/status"],
    );
    let set = |name: &str| {
        let line = output.lines().find(|line| line.starts_with(name)).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    let chroot = 1 << 18;
    assert_eq!(set("CapInh"), 0);
    assert_eq!(set("CapAmb"), 0);
    assert_eq!((set("CapEff") & chroot, set("CapBnd") & chroot), (chroot, chroot));
}

#[test]
fn a_process_file_is_run_detached() {
    if skipped() {
        return;
    }
    let bundle = started();
    let process = json!({"user": {"uid": 0, "gid": 0}, "args": ["sleep", "50"], "cwd": "/",
        "env": ["PATH=/bin"], "noNewPrivileges": true});
    std::fs::write(bundle.path("process.json"), process.to_string()).unwrap();
    let (file, pid) = (bundle.path("process.json"), bundle.path("exec.pid"));
    let output = bundle.quiet(&[
        "exec",
        "--process",
        file.to_str().unwrap(),
        "--detach",
        "--pid-file",
        pid.to_str().unwrap(),
        "ID",
    ]);
    assert!(output.status.success(), "{}", text(&output));
    let pid = std::fs::read_to_string(pid).unwrap();
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(line, b"sleep\x0050\0");
    let pids: Vec<i64> = serde_json::from_str(&said(&bundle, &["ps", "-f", "json", "ID"])).unwrap();
    assert!(pids.contains(&pid.parse().unwrap()), "{pids:?}");
    // a process that ends leaves the others alone
    assert!(bundle.runtime(&["exec", "ID", "true"]).status.success());
    assert_eq!(bundle.status(), "running");
}

#[test]
fn nothing_of_ours_is_open_in_it() {
    if skipped() {
        return;
    }
    let bundle = started();
    let output =
        said(&bundle, &["exec", "ID", "sh", "-c", "ls /proc/self/fd | grep -v '^[0-3]$'; true"]);
    // 3 is ls' own
    assert_eq!(output, "");
    let cwd = bundle.runtime(&["exec", "--cwd", "/proc/self/fd/7", "ID", "pwd"]);
    assert_eq!(cwd.status.code(), Some(255), "{}", text(&cwd));
}

#[test]
fn a_stopped_container_takes_none() {
    if skipped() {
        return;
    }
    let bundle = started();
    assert!(bundle.runtime(&["kill", "ID", "KILL"]).status.success());
    bundle.until("stopped");
    let exec = bundle.runtime(&["exec", "ID", "true"]);
    assert_eq!(exec.status.code(), Some(255));
    assert_eq!(bundle.last_error(), "exec failed: cannot exec in a stopped container");
}

/// Who looks at each process that appears in its namespace, with the right to look at all of them (CVE-2016-9962).
#[test]
fn no_directory_of_the_host_is_seen_in_a_process_that_joins() {
    if skipped() {
        return;
    }
    let look = "while :; do for f in /proc/[0-9]*/fd/*; do \
        case $f in /proc/1/*) ;; *) [ -d $f ] && echo $f $(readlink $f) >>/found ;; esac; done; done";
    let mut bundle = Bundle::new(&["sh", "-c", look]);
    for set in ["bounding", "effective", "permitted"] {
        bundle.config["process"]["capabilities"][set] = json!(["CAP_SYS_PTRACE"]);
    }
    bundle.config["root"]["readonly"] = json!(false);
    let output = bundle.create();
    assert!(output.status.success(), "{}", text(&output));
    said(&bundle, &["start", "ID"]);
    for _ in 0..100 {
        said(&bundle, &["exec", "ID", "true"]);
    }
    let found = std::fs::read_to_string(bundle.path("rootfs/found")).unwrap_or_default();
    assert_eq!(found, "", "directories that a program of the container could open");
}
