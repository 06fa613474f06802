//! SELinux labels on a kernel that enforces them: Debian's `container_t`, unchanged.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::bundle::Bundle;
use crate::files;
use crate::images::{ONE, PYTHON};
use crate::leaks::Picture;
use crate::run::Run;
use crate::table::{Bench, Need, Test};

const SELINUX: &[Need] = &[Need::Selinux];

pub(super) const TESTS: &[Test] = &[
    Test { name: "selinux: a process and its execs are labelled", needs: SELINUX, run: processes },
    Test { name: "selinux: root, tmpfs and mqueue are labelled", needs: SELINUX, run: mounts },
    Test { name: "selinux: the session keyring is labelled", needs: SELINUX, run: keyring },
    Test { name: "selinux: containers cannot read each other", needs: SELINUX, run: apart },
    Test { name: "selinux: real programs run confined", needs: SELINUX, run: python },
    Test { name: "selinux: a label that nobody knows is refused", needs: SELINUX, run: unknown },
    Test { name: "nerdctl: --selinux-enabled confines", needs: SELINUX, run: nerdctl },
];

const PROCESS: &str = "system_u:system_r:container_t:s0:c1,c2";
const FILES: &str = "system_u:object_r:container_file_t:s0:c1,c2";

/// A bundle whose labels are those of a container of its own.
fn labelled<'a>(bench: &'a mut Bench, image: &str, name: &'static str) -> Result<Bundle<'a>> {
    let archive = bench.sealed(image);
    let node = bench.node()?;
    node.load(&archive)?;
    let mut bundle = Bundle::new(node, &archive, name)?;
    bundle.spec["process"]["selinuxLabel"] = json!(PROCESS);
    bundle.spec["linux"]["mountLabel"] = json!(FILES);
    Ok(bundle)
}

/// The kernel ends a label with a zero byte.
fn text(label: &str) -> &str {
    label.trim_end_matches(['\0', '\n'])
}

fn expect(found: &str, expected: &str) -> Result<()> {
    ensure!(text(found) == expected, "found {found:?}, expected {expected:?}");
    Ok(())
}

fn processes(bench: &mut Bench) -> Result<()> {
    let mut bundle = labelled(bench, ONE, "labelled-processes")?;
    bundle.set_args(&["cat", "/proc/self/attr/current"]);
    expect(&bundle.run()?.good()?, PROCESS)?;
    bundle.set_args(&["sleep", "600"]);
    let pid = bundle.start()?;
    expect(&files::text(Path::new(&format!("/proc/{pid}/attr/current")))?, PROCESS)?;
    let own = ["cat", "/proc/self/attr/current"];
    expect(&bundle.exec(&[], &own).good()?, PROCESS)?;
    let other = "system_u:system_r:container_t:s0:c1,c2,c7";
    expect(&bundle.exec(&["--process-label", other], &own).good()?, other)?;
    bundle.remove()
}

fn mounts(bench: &mut Bench) -> Result<()> {
    let mut bundle = labelled(bench, ONE, "labelled-mounts")?;
    let tmpfs = json!({"destination": "/srv", "type": "tmpfs", "source": "tmpfs"});
    bundle.spec["mounts"].as_array_mut().context("no mounts")?.push(tmpfs);
    let script = "echo own > /etc/own && echo own > /srv/own && exec sleep 600";
    bundle.set_args(&["sh", "-c", script]);
    let pid = bundle.start()?;
    let root = format!("/proc/{pid}/root");
    super::clients::wait_for(|| Ok(crate::cache::is_there(Path::new(&format!("{root}/srv/own")))))?;
    for file in ["/etc/top", "/etc/own", "/srv", "/srv/own", "/dev", "/dev/null", "/dev/mqueue"] {
        let path = format!("{root}{file}");
        let mut label = [0; 256];
        let length = rustix::fs::getxattr(&path, "security.selinux", &mut label[..])
            .with_context(|| format!("label of {path}"))?;
        let label = String::from_utf8_lossy(&label[..length]).into_owned();
        ensure!(text(&label) == FILES, "{file}: found {label:?}, expected {FILES:?}");
    }
    bundle.remove()
}

fn keyring(bench: &mut Bench) -> Result<()> {
    let mut bundle = labelled(bench, ONE, "labelled-keyring")?;
    bundle.set_args(&["sleep", "600"]);
    bundle.start()?;
    let keys = files::text(Path::new("/proc/keys"))?;
    let line = keys.lines().find(|line| line.contains("_ses.labelled-keyring"));
    let id = line.and_then(|line| line.split(' ').next()).context("no keyring of the container")?;
    let shown = Command::new("keyctl").args(["security", &format!("0x{id}")]).good()?;
    expect(&shown, PROCESS)?;
    bundle.remove()
}

/// The policy of the kernel does its work with what we set: another container's volume is closed.
fn apart(bench: &mut Bench) -> Result<()> {
    let mut bundle = labelled(bench, ONE, "labelled-apart")?;
    let volume = Path::new("/tmp/labelled-apart/volume");
    files::write(&volume.join("data"), "of the volume\n")?;
    let bind = json!({"destination": "/volume", "type": "bind", "source": volume,
        "options": ["rbind", "ro"]});
    bundle.spec["mounts"].as_array_mut().context("no mounts")?.push(bind);
    bundle.set_args(&["cat", "/volume/data"]);
    let relabel = |level: &str| {
        let label = format!("system_u:object_r:container_file_t:s0:{level}");
        Command::new("chcon").args(["-R", &label]).arg(volume).good()
    };
    relabel("c3,c4")?;
    let said = bundle.run()?.bad()?;
    ensure!(said.contains("Permission denied"), "another container's volume: {said}");
    relabel("c1,c2")?;
    expect(&bundle.run()?.good()?, "of the volume")?;
    bundle.set_args(&["sh", "-c", "echo own > /own && cat /own"]);
    expect(&bundle.run()?.good()?, "own")?;
    bundle.remove()
}

/// A dynamic program, whose libraries are mapped from the layers below the labelled overlay.
fn python(bench: &mut Bench) -> Result<()> {
    let mut bundle = labelled(bench, PYTHON, "labelled-python")?;
    let script = "print(open('/proc/self/attr/current').read().strip('\\0\\n'))";
    bundle.set_args(&["python3", "-c", script]);
    expect(&bundle.run()?.good()?, PROCESS)?;
    bundle.remove()
}

fn unknown(bench: &mut Bench) -> Result<()> {
    let mut bundle = labelled(bench, ONE, "labelled-unknown")?;
    bundle.set_args(&["sleep", "600"]);
    let strange = ["system_u:system_r:no_such_t:s0", "system_u:object_r:no_such_t:s0", "no label"];
    for (section, key) in [("process", "selinuxLabel"), ("linux", "mountLabel")] {
        let good = bundle.spec[section][key].clone();
        for label in strange {
            bundle.spec[section][key] = json!(label);
            let before = Picture::take()?.without_layers();
            let said = bundle.run()?.bad()?;
            let named = said.contains(label) && said.contains("selinux label");
            ensure!(named && said.contains("the policy of this kernel does not know it"), "{said}");
            before.expect_again_but_for(&|now| now.without_layers())?;
        }
        bundle.spec[section][key] = good;
    }
    bundle.start()?;
    let before = Picture::take()?.without_layers();
    let said = bundle.exec(&["--process-label", strange[0]], &["true"]).bad()?;
    ensure!(said.contains("does not know it"), "exec: {said}");
    before.expect_again_but_for(&|now| now.without_layers())?;
    bundle.exec(&[], &["true"]).good()?;
    bundle.remove()
}

/// The same through containerd: the client chooses the labels, shim and runtime apply them.
fn nerdctl(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    let node = bench.node()?;
    node.load(&archive)?;
    let mut run = node.nerdctl(&["--selinux-enabled", "run", "--rm", "--net", "none"]);
    run.args(["--runtime", node.runtime_name(), ONE, "cat", "/proc/self/attr/current"]);
    let said = run.good()?;
    ensure!(said.starts_with("system_u:system_r:container_t:s0:c"), "the label is {said:?}");
    Ok(())
}
