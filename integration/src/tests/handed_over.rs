//! Attacks on what the runtime is handed: the lowers by name, the root file system, the specification. Each begins and
//! ends with the untouched twin of the same bundle.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::attacks::refusal;
use super::bundle::Bundle;
use crate::files;
use crate::images::{ONE, TWO};
use crate::run::Run;
use crate::sandbox::{bind, mount};
use crate::table::{Bench, Need, Test};

const MAPPER: &[Need] = &[Need::DeviceMapper];
const BOTH: &[Need] = &[Need::DeviceMapper, Need::Ipe];

pub(super) const TESTS: &[Test] = &[
    Test { name: "attack: a root that the caller mounted", needs: &[], run: mounted_by_caller },
    Test { name: "attack: a part of a layer, and one covered", needs: &[], run: parts },
    Test { name: "attack: another layer behind a lower's name", needs: &[], run: renamed },
    Test { name: "attack: a volume that ignores corruption", needs: MAPPER, run: lenient },
    Test { name: "attack: a root without layers", needs: &[], run: no_layers },
    Test { name: "gate: a view of the stack is read-only", needs: &[], run: view },
    Test { name: "attack: the host's mounts", needs: &[], run: host_mounts },
    Test { name: "attack: a hook of somebody else's", needs: &[], run: hook },
    Test { name: "attack: a checkpoint that brings its code", needs: &[], run: restore },
    Test { name: "user namespace: programs run, copies do not", needs: BOTH, run: mapped },
    Test { name: "runtime: started from its volume, not a copy", needs: BOTH, run: own_program },
];

/// A bundle of `ONE` whose untouched self runs.
fn bundle<'a>(bench: &'a mut Bench, name: &'static str) -> Result<Bundle<'a>> {
    let archive = bench.sealed(ONE);
    let node = bench.node()?;
    node.load(&archive)?;
    let mut bundle = Bundle::new(node, &archive, name)?;
    bundle.set_args(&["/bin/hello"]);
    twin(&bundle)?;
    Ok(bundle)
}

fn twin(bundle: &Bundle<'_>) -> Result<()> {
    let said = bundle.run()?.good().context("the untouched bundle")?;
    ensure!(said == "hello from one", "the untouched bundle says {said:?}");
    Ok(())
}

/// The refusal of a bundle whose mount is another.
fn refused_with(bundle: &mut Bundle<'_>, mount: serde_json::Value) -> Result<String> {
    let good = std::mem::replace(&mut bundle.mount, mount);
    let reason = refusal(bundle.run()?);
    bundle.mount = good;
    reason
}

fn mounted_by_caller(bench: &mut Bench) -> Result<()> {
    let bundle = bundle(bench, "caller")?;
    let rootfs = bundle.dir().join("rootfs");
    let options = format!("lowerdir={}", bundle.option("lowerdir")?);
    mount(&["-t", "overlay", "overlay", "-o", &options, &rootfs.to_string_lossy()])?;
    let mut run = bundle.runtime(&["run", "--bundle"]);
    run.arg(bundle.dir()).arg("caller");
    let reason = refusal(run);
    Command::new("umount").arg(&rootfs).good()?;
    let reason = reason?;
    ensure!(reason.contains("mounted by the caller"), "{reason}");
    twin(&bundle)?;
    bundle.remove()
}

/// A directory of a layer that is bound elsewhere has the layer's device; so has one with something mounted beneath.
fn parts(bench: &mut Bench) -> Result<()> {
    let mut bundle = bundle(bench, "parts")?;
    let lowers = bundle.option("lowerdir")?;
    let (top, rest) = lowers.split_once(':').context("one lower")?;
    let part = Path::new("/run/hallmark/l/part");
    bind(&Path::new(top).join("bin"), part)?;
    let forged = bundle.with_option("lowerdir", &format!("{}:{rest}", part.display()))?;
    let reason = refused_with(&mut bundle, forged);
    Command::new("umount").arg(part).good()?;
    fs::remove_dir(part)?;
    let reason = reason?;
    ensure!(reason.contains("root"), "{reason}");
    let beneath = format!("{top}/bin");
    mount(&["-t", "tmpfs", "tmpfs", &beneath])?;
    let reason = refusal(bundle.run()?);
    Command::new("umount").arg(&beneath).good()?;
    let reason = reason?;
    ensure!(reason.contains("beneath") || reason.contains(&beneath), "{reason}");
    twin(&bundle)?;
    bundle.remove()
}

fn renamed(bench: &mut Bench) -> Result<()> {
    let (one, two) = (bench.sealed(ONE), bench.sealed(TWO));
    let node = bench.node()?;
    node.load(&one)?;
    node.load(&two)?;
    // its layers stay activated for as long as it is there
    let other = Bundle::new(node, &two, "other")?;
    let lowers = other.option("lowerdir")?;
    let foreign = lowers.split(':').next().unwrap_or_default();
    let mut bundle = Bundle::new(node, &one, "renamed")?;
    bundle.set_args(&["/bin/hello"]);
    twin(&bundle)?;
    let lowers = bundle.option("lowerdir")?;
    let top = lowers.split(':').next().unwrap_or_default();
    bind(Path::new(foreign), Path::new(top))?;
    let reason = refusal(bundle.run()?);
    Command::new("umount").arg(top).good()?;
    let reason = reason?;
    ensure!(reason.contains("seal") || reason.contains("record"), "{reason}");
    twin(&bundle)?;
    other.remove()?;
    bundle.remove()
}

/// The genuine root hash, and a table that lets changed blocks pass: once as it is, once with a record that says that
/// our own daemon made it.
fn lenient(bench: &mut Bench) -> Result<()> {
    let mut bundle = bundle(bench, "lenient")?;
    let lowers = bundle.option("lowerdir")?;
    let (top, rest) = lowers.split_once(':').context("one lower")?;
    let device = Command::new("findmnt").args(["-no", "SOURCE", top]).good()?;
    let block = device.trim_start_matches("/dev/");
    let genuine = files::text(Path::new(&format!("/sys/block/{block}/dm/name")))?;
    let table = Command::new("dmsetup").args(["table", genuine.trim()]).good()?;
    let words: Vec<&str> = table.split_whitespace().take(13).collect();
    let table = format!("{} 1 ignore_corruption", words.join(" "));
    let name = "hallmark-lenient";
    Command::new("dmsetup").args(["create", "--readonly", "--table", &table, name]).good()?;
    Command::new("dmsetup").args(["mknodes"]).good()?;
    let place = "/run/hallmark/l/evil";
    fs::create_dir(place)?;
    mount(&["-t", "erofs", "-o", "ro", &format!("/dev/mapper/{name}"), place])?;
    let forged = bundle.with_option("lowerdir", &format!("{place}:{rest}"))?;
    let reason = refused_with(&mut bundle, forged);
    Command::new("umount").arg(place).good()?;
    fs::remove_dir(place)?;
    Command::new("dmsetup").args(["remove", name]).good()?;
    let reason = reason?;
    ensure!(reason.contains("record") || reason.contains("ignore_corruption"), "{reason}");
    twin(&bundle)?;
    bundle.remove()
}

fn no_layers(bench: &mut Bench) -> Result<()> {
    let mut bundle = bundle(bench, "plain")?;
    let directory = bundle.dir().join("plain");
    fs::create_dir_all(directory.join("bin"))?;
    fs::copy("/bin/busybox", directory.join("bin/hello"))?;
    let plain = json!({"type": "bind", "source": directory, "options": ["rbind", "rw"]});
    let reason = refused_with(&mut bundle, plain)?;
    ensure!(reason.contains("expected layers"), "{reason}");
    let lowers = bundle.option("lowerdir")?;
    let top = lowers.split(':').next().unwrap_or_default();
    let one = json!({"type": "bind", "source": top, "options": ["rbind", "ro"]});
    let reason = refused_with(&mut bundle, one)?;
    ensure!(reason.contains("no seal for this stack of 1 layers"), "{reason}");
    twin(&bundle)?;
    bundle.remove()
}

fn view(bench: &mut Bench) -> Result<()> {
    let mut bundle = bundle(bench, "view")?;
    let lowers = format!("lowerdir={}", bundle.option("lowerdir")?);
    bundle.mount = json!({"type": "overlay", "source": "overlay", "options": ["ro", lowers]});
    bundle.spec["root"]["readonly"] = json!(true);
    // mount points that the image lacks cannot be made in it
    let mounts = bundle.spec["mounts"].as_array_mut().context("no mounts")?;
    mounts.retain(|mount| mount["destination"] == "/proc" || mount["destination"] == "/dev");
    bundle.set_args(&["sh", "-c", "/bin/hello; echo x > /etc/top"]);
    let ran = bundle.run()?.ran()?;
    ensure!(ran.stdout.trim() == "hello from one", "{}", ran.all());
    ensure!(ran.all().contains("Read-only file system"), "{}", ran.all());
    bundle.remove()
}

fn host_mounts(bench: &mut Bench) -> Result<()> {
    let mut bundle = bundle(bench, "mounts")?;
    let namespaces = bundle.spec["linux"]["namespaces"].clone();
    let all = namespaces.as_array().context("no namespaces")?;
    let without: Vec<_> = all.iter().filter(|one| one["type"] != "mount").cloned().collect();
    bundle.spec["linux"]["namespaces"] = json!(without);
    let said = bundle.run()?.bad()?;
    ensure!(said.contains("no mount namespace, expected a new one"), "{said}");
    let mut joined = without;
    joined.push(json!({"type": "mount", "path": "/proc/1/ns/mnt"}));
    bundle.spec["linux"]["namespaces"] = json!(joined);
    let said = bundle.run()?.bad()?;
    ensure!(said.contains("mount namespace"), "{said}");
    bundle.spec["linux"]["namespaces"] = namespaces;
    twin(&bundle)?;
    bundle.remove()
}

/// A program that root did not list, and one that is listed, with other arguments.
fn hook(bench: &mut Bench) -> Result<()> {
    let nerdctl = bench.kit.bin("nerdctl");
    let mut bundle = bundle(bench, "hook")?;
    let marker = bundle.dir().join("ran");
    let touch = json!({"path": "/usr/bin/touch", "args": ["touch", marker]});
    let run = json!({"path": nerdctl, "args": ["nerdctl", "version"]});
    for hook in [touch, run] {
        bundle.spec["hooks"] = json!({"createRuntime": [hook]});
        let reason = refusal(bundle.run()?)?;
        ensure!(reason.contains("expected one of gate.hooks"), "{reason}");
    }
    ensure!(!crate::cache::is_there(&marker), "the hook ran");
    bundle.spec.as_object_mut().context("no object")?.remove("hooks");
    twin(&bundle)?;
    bundle.remove()
}

fn restore(bench: &mut Bench) -> Result<()> {
    let bundle = bundle(bench, "restored")?;
    let mut restore = bundle.runtime(&["restore", "--image-path", "/tmp", "--bundle"]);
    let said = restore.arg(bundle.dir()).arg("restored").bad()?;
    ensure!(said.contains("checkpoint and restore are not supported"), "{said}");
    twin(&bundle)?;
    bundle.remove()
}

/// The image belongs to the container's root without a copy, which the kernel would not execute.
fn mapped(bench: &mut Bench) -> Result<()> {
    let mut bundle = bundle(bench, "mapped")?;
    let upper = bundle.option("upperdir")?;
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    bundle.spec["linux"]["uidMappings"] = map.clone();
    bundle.spec["linux"]["gidMappings"] = map;
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().context("no namespaces")?;
    namespaces.push(json!({"type": "user"}));
    let options = bundle.mount["options"].as_array_mut().context("no options")?;
    options.extend([json!("uidmap=0:100000:65536"), json!("gidmap=0:100000:65536")]);
    std::os::unix::fs::chown(&upper, Some(100_000), Some(100_000))?;
    files::set_mode(bundle.dir(), 0o755)?;
    let script = "stat -c %u /bin/busybox; cp /bin/busybox /tmp/copy; /tmp/copy true || echo no";
    bundle.set_args(&["sh", "-c", script]);
    let ran = bundle.run()?.ran()?;
    ensure!(ran.stdout == "0\nno\n", "{}", ran.all());
    ensure!(ran.all().contains("Permission denied"), "{}", ran.all());
    ensure!(!crate::cache::is_there(&Path::new(&upper).join("bin")), "something was copied up");
    bundle.remove()
}

/// The kernel would refuse a copy of it; it needs none, because nobody can write to the volume.
fn own_program(bench: &mut Bench) -> Result<()> {
    let program = bench.kit.bin("hallmark-runtime");
    let bundle = bundle(bench, "own")?;
    let pid = bundle.create()?;
    let exe = format!("/proc/{pid}/exe");
    let found = fs::read_link(&exe)?;
    ensure!(found == program, "{exe} is {}, expected {}", found.display(), program.display());
    let written = fs::OpenOptions::new().write(true).open(&exe);
    ensure!(written.is_err(), "the runtime's program was opened for writing");
    bundle.remove()
}
