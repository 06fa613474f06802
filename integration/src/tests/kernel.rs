//! What the kernel holds: dm-verity for every block, IPE for every program. The guest has both.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::attacks::{refused, stored_byte, twin};
use crate::files;
use crate::images::attacks::PROBER;
use crate::images::{ONE, PYTHON, TWO};
use crate::node::Node;
use crate::run::Run;
use crate::table::{Bench, Need, Test};
use crate::trust::Setting;

const BOTH: &[Need] = &[Need::DeviceMapper, Need::Ipe];

pub(super) const TESTS: &[Test] = &[
    Test { name: "kernel: layers are dm-verity, signature checked", needs: BOTH, run: devices },
    Test { name: "kernel: a program written into a container", needs: BOTH, run: written },
    Test { name: "kernel: a program of the image copied up", needs: BOTH, run: copied_up },
    Test { name: "kernel: code that no file holds", needs: BOTH, run: foreign_code },
    Test { name: "kernel: every way past the signed files", needs: BOTH, run: probed },
    Test { name: "kernel: a changed block under a running container", needs: BOTH, run: changed },
    Test { name: "gate: a policy that does not deny by default", needs: BOTH, run: open_policy },
    Test { name: "gate: IPE switched to permissive", needs: BOTH, run: permissive },
    Test { name: "gate: a configuration that the policy does not pin", needs: BOTH, run: unpinned },
    Test { name: "gate: a certificate added to the keys", needs: BOTH, run: added_key },
    Test { name: "privileged: IPE cannot be switched off", needs: BOTH, run: privileged_ipe },
    Test { name: "privileged: device-mapper cannot be reached", needs: BOTH, run: privileged_dm },
    Test { name: "privileged: among the host's processes", needs: BOTH, run: privileged_host },
    Test { name: "bind: a program of a verified volume runs", needs: BOTH, run: bound_program },
];

/// A sealed image, and a container of it that goes on running.
fn running(bench: &mut Bench) -> Result<&mut Node> {
    let archive = bench.sealed(ONE);
    let node = bench.node()?;
    node.load(&archive)?;
    node.run(&["-d", "--name", "prey", ONE, "sleep", "600"]).good()?;
    Ok(node)
}

fn exec(node: &Node, script: &str) -> Command {
    node.nerdctl(&["exec", "prey", "sh", "-c", script])
}

/// The newest audit record that names a path.
pub(crate) fn denial(path: &str) -> Result<String> {
    let dmesg = Command::new("dmesg").good()?;
    let record = dmesg
        .lines()
        .rev()
        .filter(|line| line.contains("ipe_op=EXECUTE") && line.contains("action=DENY"))
        .find(|line| line.contains(&format!("path=\"{path}\"")))
        .with_context(|| format!("no audit record denies {path}"))?;
    Ok(record.split_once("audit: ").map_or(record, |(_, rest)| rest).to_owned())
}

/// Each device of a layer, as `dmsetup` shows it.
fn layers_shown(what: &str) -> Result<Vec<String>> {
    let shown = Command::new("dmsetup").args([what, "--target", "verity"]).good()?;
    Ok(shown.lines().filter(|line| line.starts_with("hallmark-")).map(str::to_owned).collect())
}

fn devices(bench: &mut Bench) -> Result<()> {
    running(bench)?;
    let (tables, states) = (layers_shown("table")?, layers_shown("status")?);
    ensure!(tables.len() == 3, "3 layers, and {} devices: {tables:?}", tables.len());
    for table in &tables {
        ensure!(table.contains("root_hash_sig_key_desc"), "no signature: {table}");
    }
    for state in &states {
        ensure!(state.ends_with(" V") || state.contains(" V "), "status: {state}");
    }
    let verdict = crate::demo::verdict()?;
    let expected = "permitted: evidence dm-verity+signature, exec control ipe";
    ensure!(verdict == expected, "found {verdict:?}, expected {expected:?}");
    Ok(())
}

fn written(bench: &mut Bench) -> Result<()> {
    let node = running(bench)?;
    for (script, path) in [
        ("cp /bin/busybox /tmp/true; /tmp/true", "/tmp/true"),
        ("cp /bin/busybox /dev/shm/true; chmod +x /dev/shm/true; /dev/shm/true", "/true"),
        ("printf '#!/bin/sh\\n' > /tmp/run; chmod +x /tmp/run; /tmp/run", "/tmp/run"),
    ] {
        let said = exec(node, script).bad()?;
        ensure!(said.contains("Permission denied"), "{script}: {said}");
        if path != "/true" {
            denial(path)?;
        }
    }
    ensure!(exec(node, "/bin/busybox echo fine").good()? == "fine", "the image's own program");
    Ok(())
}

fn copied_up(bench: &mut Bench) -> Result<()> {
    let node = running(bench)?;
    let said = exec(node, "chmod 700 /bin/busybox; /bin/busybox true").bad()?;
    ensure!(said.contains("Permission denied"), "after copy-up: {said}");
    denial("/bin/busybox")?;
    twin(node)
}

fn foreign_code(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(PYTHON);
    let node = bench.node()?;
    node.load(&archive)?;
    let said = node.once(&[PYTHON, "python3", "-c", FOREIGN_CODE]).good()?;
    let expected = "anonymous: 13\nprivate: 13\nmem: 5";
    ensure!(said == expected, "found {said:?}, expected {expected:?}");
    Ok(())
}

/// Three ways to run code that no file holds; each prints the error number it met, or that it went.
const FOREIGN_CODE: &str = r"
import mmap, os, re
def attempt(name, act):
    try:
        act()
        print(name + ': done')
    except OSError as error:
        print(name + ':', error.errno)
everything = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
program = os.open('/proc/self/exe', os.O_RDONLY)
def write_text():
    line = next(l for l in open('/proc/self/maps') if ' r-xp ' in l and 'python' in l)
    memory = os.open('/proc/self/mem', os.O_RDWR)
    place = int(line.split('-')[0], 16)
    os.pwrite(memory, os.pread(memory, 1, place), place)
mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)
attempt('anonymous', lambda: mmap.mmap(-1, 4096, prot=everything))
attempt('private', lambda: mmap.mmap(program, 4096, flags=mmap.MAP_PRIVATE, prot=everything))
attempt('mem', write_text)
";

/// Mappings, descriptors and ptrace: nothing foreign runs, and the same program's own code does.
fn probed(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(PROBER);
    let node = bench.node()?;
    node.load(&archive)?;
    let ptrace = ["--rm", "--cap-add", "SYS_PTRACE", "--security-opt", "seccomp=unconfined"];
    let said = node.run(&[&ptrace[..], &[PROBER, "/bin/prober"]].concat()).good()?;
    let executed: Vec<&str> = said.lines().filter(|line| line.ends_with(": executed")).collect();
    ensure!(executed == ["nothing-foreign: executed"], "{said}");
    ensure!(said.lines().filter(|line| line.contains(": refused ")).count() == 12, "{said}");
    Ok(())
}

fn changed(bench: &mut Bench) -> Result<()> {
    let (one, two) = (bench.sealed(ONE), bench.sealed(TWO));
    let node = running(bench)?;
    node.load(&two)?;
    let read = "tail -n 1 /srv/data";
    ensure!(exec(node, read).good()? == "one data", "before the change");
    let (file, offset) = stored_byte(&one, &"one data\n".repeat(1000))?;
    files::flip_byte(&file, offset + 4096)?;
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let said = exec(node, "cat /srv/data > /dev/null").bad()?;
    ensure!(said.contains("nput/output error") || said.contains("Bus error"), "{said}");
    let broken = layers_shown("status")?;
    ensure!(broken.iter().any(|line| line.contains(" C")), "no device shows it: {broken:?}");
    // the device is shared for as long as a container is on it
    refused(node, ONE)?;
    node.nerdctl(&["rm", "-f", "prey"]).good()?;
    ensure!(node.once(&[TWO]).good()? == "hello from two", "another image");
    node.empty()?;
    node.load(&one)?;
    twin(node)
}

fn open_policy(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    bench.node()?.load(&archive)?;
    let node = bench.set(Setting::OpenPolicy)?;
    let reason = refused(node, ONE)?;
    ensure!(reason.contains("exec control"), "{reason}");
    twin(bench.set(Setting::Enforce)?)
}

fn permissive(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    let node = bench.node()?;
    node.load(&archive)?;
    let switch = Path::new("/sys/kernel/security/ipe/enforce");
    fs::write(switch, "0")?;
    let reason = refused(node, ONE);
    fs::write(switch, "1")?;
    let reason = reason?;
    ensure!(reason.contains("exec control"), "{reason}");
    twin(node)
}

fn unpinned(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    bench.node()?.load(&archive)?;
    let config = Path::new("/etc/hallmark/config.toml");
    let text = files::text(config)?;
    fs::write(config, format!("{text}# one more line\n"))?;
    let reason = refused(bench.node()?, ONE)?;
    ensure!(reason.contains("config") && reason.contains("pin"), "{reason}");
    twin(bench.set(Setting::Enforce)?)
}

fn added_key(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    bench.node()?.load(&archive)?;
    let keys = Path::new("/etc/hallmark/keys.pem");
    let text = files::text(keys)?;
    // even one of our own twice is another file than the policy pins
    fs::write(keys, format!("{text}{text}"))?;
    let reason = refused(bench.node()?, ONE)?;
    ensure!(reason.contains("keys") && reason.contains("pin"), "{reason}");
    twin(bench.set(Setting::Enforce)?)
}

/// A tool of the node, from its signed volume, and a copy of it that nobody signed.
fn bound_program(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    let tool = bench.kit.bin("hallmark");
    let node = bench.node()?;
    node.load(&archive)?;
    let run = |source: &Path| {
        let bind = format!("{}:/usr/tool:ro", source.display());
        node.run(&["--rm", "-v", &bind, ONE, "/usr/tool", "--version"])
    };
    let said = run(&tool).good()?;
    ensure!(said.contains("hallmark"), "{said}");
    let copy = Path::new("/tmp/tool");
    fs::copy(&tool, copy)?;
    let said = run(copy).bad()?;
    ensure!(said.to_lowercase().contains("permission denied"), "{said}");
    fs::remove_file(copy)?;
    twin(node)
}

fn privileged_ipe(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    let node = bench.node()?;
    node.load(&archive)?;
    let script = "mkdir /tmp/s; mount -t securityfs s /tmp/s && echo 0 > /tmp/s/ipe/enforce";
    let said = node.run(&["--rm", "--privileged", ONE, "sh", "-c", script]).bad()?;
    ensure!(said.contains("not permitted") || said.contains("denied"), "{said}");
    let enforce = files::text(Path::new("/sys/kernel/security/ipe/enforce"))?;
    ensure!(enforce.trim() == "1", "enforce is {enforce}");
    Ok(())
}

fn privileged_dm(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    let node = bench.node()?;
    node.load(&archive)?;
    let script = "busybox mknod /tmp/control c 10 236; busybox mknod /tmp/null c 1 3; \
                  echo fine > /tmp/null || exit 9; exec 3<>/tmp/control";
    let ran = node.run(&["--rm", "--privileged", ONE, "sh", "-c", script]).ran()?;
    ensure!(ran.status.code() != Some(9), "no device works: {}", ran.all());
    ensure!(ran.all().contains("not permitted"), "it was opened: {}", ran.all());
    Ok(())
}

/// Neither into their memory nor into their root, whatever the caller asked for.
fn privileged_host(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    let node = bench.node()?;
    node.load(&archive)?;
    let host = |script: &str| {
        node.run(&["--rm", "--privileged", "--pid", "host", ONE, "sh", "-c", script])
    };
    let said = host("ls /proc/1/root/ || echo nothing").ran()?;
    ensure!(said.stdout.trim() == "nothing", "{}", said.all());
    let shown = host("grep CapBnd /proc/self/status").good()?;
    let bits = shown.split_whitespace().last().context("no CapBnd")?;
    let bounding = u64::from_str_radix(bits, 16)?;
    // CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_MAC_ADMIN of <linux/capability.h>
    ensure!(bounding & (1 << 19 | 1 << 21 | 1 << 33) == 0, "bounding set {bits}");
    ensure!(bounding & (1 << 12) != 0, "CAP_NET_ADMIN was taken too: {bits}");
    twin(node)
}
