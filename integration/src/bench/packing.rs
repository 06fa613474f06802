//! Packing: a layer from containerd's content store to a snapshot, by each snapshotter of one containerd.
//!
//! The state of all of them is on a memory file system, so that a shared disk has no part in it, except in the rows that
//! say "synced to disk".

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Lab;
use super::compare::{Cost, Side, around, in_turn, kib, timed};
use super::material::{GZIP, MANY, ZSTD, bare, manifest};
use super::report::Row;
use crate::images::{NGINX, ONE, file_name};
use crate::kit::Kit;
use crate::node::Node;
use crate::run::{Run, within};
use crate::sandbox::mount;

pub(super) const SUBJECTS: &[(&str, super::Measure)] = &[
    ("packing: stages", stages),
    ("packing: 1 GB gzip layer", |lab| whole(lab, GZIP, "gzip", Where::Memory)),
    ("packing: 1 GB zstd layer", |lab| whole(lab, ZSTD, "zstd", Where::Memory)),
    ("packing: 1 GB gzip layer, synced to disk", |lab| whole(lab, GZIP, "gzip", Where::Disk)),
    ("packing: ten layers", ten_layers),
    ("packing: 100 000 entries", many_entries),
    ("packing: second start", second_start),
];

const BLOBS: &str = "/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256";
const EROFS: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.erofs/snapshots";
const OVERLAYFS: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
const LAYERS: &str = "/var/lib/hallmark/layers";

/// How long containerd may take to collect what was removed.
const COLLECTION: Duration = Duration::from_secs(60);

/// Where daemons keep their state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Memory,
    Disk,
}

/// Lets containerd's own erofs differ have what is its own, behind ours and before the walking one.
pub(super) fn offer_erofs(kit: &Kit, material: &Path) -> Result<()> {
    let shipped = kit.config("containerd.toml");
    let text = fs::read_to_string(&shipped)?;
    let ours = "default = [\"hallmark-diff\", \"walking\"]";
    ensure!(text.contains(ours), "{}: has no {ours}", shipped.display());
    // a hard link to the source tree: another file takes its place
    fs::remove_file(&shipped)?;
    let all = "default = [\"hallmark-diff\", \"erofs\", \"walking\"]";
    fs::write(&shipped, text.replace(ours, all))?;
    fs::copy(material.join("peers/bin/mkfs.erofs"), kit.bin("mkfs.erofs"))?;
    Ok(())
}

/// Puts new memory file systems below the daemons' state, once for each node.
fn place(lab: &Lab, place: Where) -> Result<()> {
    ensure!(lab.node.is_none(), "a node runs already");
    if place == Where::Memory {
        for daemon in ["containerd", "hallmark"] {
            mount(&["-t", "tmpfs", "-o", "mode=0700", "bench", &format!("/var/lib/{daemon}")])?;
        }
    }
    Ok(())
}

/// A node with an image's blobs in its content store, none of them unpacked; and the digest of the manifest.
fn fetched(lab: &mut Lab, archive: &Path, image: &str) -> Result<String> {
    let node = lab.node()?;
    node.ctr(&["images", "import", "--no-unpack"]).arg(archive).good()?;
    manifest(&mut node.ctr(&[]), image)
}

/// Unpacks with one snapshotter.
fn unpack(node: &Node, snapshotter: &str, manifest: &str) -> Result<Cost> {
    let mut ctr = within(600, node.kit.bin("ctr"));
    ctr.args(["snapshots", "--snapshotter", snapshotter, "unpack", manifest]);
    around(&node.pids()?, || timed(&mut ctr))
}

/// Removes all snapshots of a snapshotter, the topmost first, waits until nothing of them is left, and says how long the
/// caller waited.
fn discard(node: &Node, snapshotter: &str) -> Result<Cost> {
    let base = ["snapshots", "--snapshotter", snapshotter];
    let mut spent = Cost::default();
    loop {
        let listed = node.ctr(&[&base[..], &["list"]].concat()).good()?;
        let rows: Vec<Vec<&str>> =
            listed.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        let is_parent =
            |key: &str| rows.iter().any(|row| row.get(1) == Some(&key) && row.len() > 2);
        let Some(top) = rows.iter().find_map(|row| row.first().filter(|key| !is_parent(key)))
        else {
            collected(snapshotter)?;
            return Ok(spent);
        };
        spent = spent + timed(&mut node.ctr(&[&base[..], &["remove", top]].concat()))?;
    }
}

/// Waits until containerd has collected what was removed: the next round has to do it all again.
fn collected(snapshotter: &str) -> Result<()> {
    let place = match snapshotter {
        "hallmark" => LAYERS,
        "erofs" => EROFS,
        _ => OVERLAYFS,
    };
    let began = Instant::now();
    while fs::read_dir(place)?.next().is_some() {
        ensure!(began.elapsed() < COLLECTION, "{place}: not empty a minute after the removal");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Every image that the erofs snapshotter has now gets its hash tree: what ours has made on the way.
fn format_trees(node: &Node) -> Result<Cost> {
    let mut spent = Cost::default();
    for entry in fs::read_dir(EROFS)? {
        let (layer, tree) = (entry?.path().join("layer.erofs"), Path::new("/tmp/layer.verity"));
        if fs::metadata(&layer).is_ok_and(|meta| meta.len() > 0) {
            let mut format = within(300, "veritysetup");
            format.arg("format").arg(&layer).arg(tree);
            spent = spent + around(&node.pids()?, || timed(&mut format))?;
            fs::remove_file(tree)?;
        }
    }
    ensure!(spent.wall > 0.0, "{EROFS}: no layer.erofs: its differ did not run");
    Ok(spent)
}

fn ours(node: &Node, manifest: &str) -> Result<Cost> {
    let cost = unpack(node, "hallmark", manifest)?;
    ensure!(fs::read_dir(LAYERS)?.next().is_some(), "{LAYERS}: nothing was packed");
    discard(node, "hallmark")?;
    Ok(cost)
}

fn erofs(node: &Node, manifest: &str) -> Result<Cost> {
    let cost = unpack(node, "erofs", manifest)? + format_trees(node)?;
    discard(node, "erofs")?;
    Ok(cost)
}

fn overlayfs(node: &Node, manifest: &str) -> Result<Cost> {
    let cost = unpack(node, "overlayfs", manifest)?;
    discard(node, "overlayfs")?;
    Ok(cost)
}

/// The file of an image's only layer in containerd's store.
fn blob() -> Result<PathBuf> {
    let mut largest = (0, PathBuf::new());
    for entry in fs::read_dir(BLOBS)? {
        let entry = entry?;
        largest = largest.max((entry.metadata()?.len(), entry.path()));
    }
    ensure!(largest.0 > 0, "{BLOBS}: empty");
    Ok(largest.1)
}

/// A layer of 1 GB: against the others, and against decompression alone.
fn whole(lab: &mut Lab, image: &str, compression: &str, state: Where) -> Result<Vec<Row>> {
    place(lab, state)?;
    let manifest = fetched(lab, &lab.material.join(file_name(image)), image)?;
    let (rounds, blob) = (lab.rounds, blob()?);
    let tool = if compression == "gzip" { "gzip" } else { "zstd" };
    let node: &Node = lab.node()?;
    let mut sides = [
        Side::new("hallmark", || ours(node, &manifest)),
        Side::new("erofs", || erofs(node, &manifest)),
        Side::new("overlayfs", || overlayfs(node, &manifest)),
        Side::new("our library", || timed(&mut bare(&blob, compression)?)),
        Side::new("tool", || timed(within(300, tool).arg("-dc").arg(&blob))),
    ];
    let series = in_turn(rounds, Duration::ZERO, &mut sides)?;
    let row = |what: &str, peer, goal| Row::times(what, &series, (0, peer), goal);
    let synced = state == Where::Disk;
    let bound = if compression == "gzip" { Some(1.3) } else { None };
    let bound = bound.filter(|_| !synced);
    Ok(vec![
        row("to containerd's erofs differ, then veritysetup format", 1, Some(0.6)),
        row("to containerd's overlayfs", 2, Some(0.5)),
        row("to our decompression alone, on one core", 3, bound),
        row(&format!("to {tool} -dc"), 4, bound),
    ])
}

fn ten_layers(lab: &mut Lab) -> Result<Vec<Row>> {
    place(lab, Where::Memory)?;
    let archive = lab.kit.images().archive(NGINX);
    let manifest = fetched(lab, &archive, NGINX)?;
    let rounds = lab.rounds;
    let node: &Node = lab.node()?;
    let mut sides = [
        Side::new("hallmark", || ours(node, &manifest)),
        Side::new("erofs", || erofs(node, &manifest)),
        Side::new("overlayfs", || overlayfs(node, &manifest)),
    ];
    let series = in_turn(rounds, Duration::ZERO, &mut sides)?;
    Ok(vec![
        Row::times(
            "to containerd's erofs differ, then veritysetup format",
            &series,
            (0, 1),
            Some(0.6),
        ),
        Row::times("to containerd's overlayfs", &series, (0, 2), Some(0.5)),
    ])
}

/// Each stage's library alone against the program that people use for it, on one core. Where ours is quicker, the stage
/// is limited by the machine and not by the choice of library.
fn stages(lab: &mut Lab) -> Result<Vec<Row>> {
    place(lab, Where::Memory)?;
    let mut rows = Vec::new();
    for (image, compression) in [(GZIP, "gzip"), (ZSTD, "zstd")] {
        fetched(lab, &lab.material.join(file_name(image)), image)?;
        let blob = blob_of(compression)?;
        let mut sides = [
            Side::new("library", || timed(&mut bare(&blob, compression)?)),
            Side::new("tool", || timed(within(300, compression).arg("-dc").arg(&blob))),
        ];
        let series = in_turn(lab.rounds, Duration::ZERO, &mut sides)?;
        rows.push(Row::times(
            format!("decompression: to {compression} -dc"),
            &series,
            (0, 1),
            None,
        ));
    }
    let blob = blob_of("zstd")?;
    let (tar, copy, tree) = ("/tmp/bench.tar", "/tmp/bench.copy", "/tmp/bench.verity");
    mount(&["-t", "tmpfs", "bench", "/tmp"])?;
    within(300, "zstd").args(["-dqf", "-o", tar]).arg(&blob).good()?;
    let stage = |name: &str| -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["stage", name, tar]);
        Ok(command)
    };
    let mut sides = [
        Side::new("digest", || timed(&mut stage("digest")?)),
        Side::new("openssl", || timed(within(300, "openssl").args(["dgst", "-sha256", tar]))),
        Side::new("tree", || timed(&mut stage("tree")?)),
        Side::new("veritysetup", || timed(within(300, "veritysetup").args(["format", tar, tree]))),
        Side::new("both", || timed(&mut stage("both")?)),
        Side::new("cp", || timed(within(300, "cp").args([tar, copy]))),
    ];
    let series = in_turn(lab.rounds, Duration::ZERO, &mut sides)?;
    rows.push(Row::times("SHA-256 of the tar: to openssl dgst", &series, (0, 1), None));
    rows.push(Row::times("hash tree: to veritysetup format", &series, (2, 3), None));
    rows.push(Row::times("digest and tree in one pass: to the tree alone", &series, (4, 2), None));
    rows.push(Row::times(
        "digest and tree in one pass: to cp, which bounds writing",
        &series,
        (4, 5),
        None,
    ));
    Ok(rows)
}

/// The blob that begins as this compression's does.
fn blob_of(compression: &str) -> Result<PathBuf> {
    let magic: &[u8] =
        if compression == "gzip" { &[0x1f, 0x8b] } else { &[0x28, 0xb5, 0x2f, 0xfd] };
    for entry in fs::read_dir(BLOBS)? {
        let path = entry?.path();
        let mut start = vec![0; magic.len()];
        let read = fs::File::open(&path)
            .and_then(|mut file| std::io::Read::read(&mut file, &mut start))?;
        if read == magic.len() && start == magic {
            return Ok(path);
        }
    }
    anyhow::bail!("{BLOBS}: no {compression}")
}

/// The most memory that the snapshotter ever had; removal of the image that it packed.
fn many_entries(lab: &mut Lab) -> Result<Vec<Row>> {
    place(lab, Where::Memory)?;
    let rounds = lab.rounds;
    let manifest = fetched(lab, &lab.material.join(file_name(MANY)), MANY)?;
    let node: &Node = lab.node()?;
    unpack(node, "hallmark", &manifest)?;
    let peak = kib(&format!("/proc/{}/status", node.snapshotter_pid()?), "VmHWM")?;
    discard(node, "hallmark")?;
    let mut sides = [
        Side::new("hallmark", || removal(node, "hallmark", &manifest)),
        Side::new("overlayfs", || removal(node, "overlayfs", &manifest)),
    ];
    let series = in_turn(rounds, Duration::ZERO, &mut sides)?;
    Ok(vec![
        Row::Count {
            what: "peak memory of the snapshotter".into(),
            found: format!("{} MiB", peak.div_ceil(1024)),
            goal: "at most 64 MiB".into(),
            met: peak <= 64 << 10,
        },
        // containerd answers first and collects later: neither side's own work is waited for
        Row::times("removal, to the caller: to containerd's overlayfs", &series, (0, 1), None),
    ])
}

fn removal(node: &Node, snapshotter: &str, manifest: &str) -> Result<Cost> {
    unpack(node, snapshotter, manifest)?;
    discard(node, snapshotter)
}

/// What a container costs the snapshotter when another of the same image runs already: no new device, no new mount.
fn second_start(lab: &mut Lab) -> Result<Vec<Row>> {
    let what = "verity, loop and mount calls of a second start".to_owned();
    if !Command::new("strace").arg("--version").ran().is_ok_and(|ran| ran.status.success()) {
        return Ok(vec![Row::Skipped { what, needs: "strace" }]);
    }
    let archive = lab.kit.sealed(ONE);
    let node = lab.node()?;
    node.load(&archive)?;
    let start = |id: &str| {
        let how =
            ["run", "--detach", "--snapshotter", "hallmark", "--runtime", node.runtime_name()];
        node.ctr(&[&how[..], &[ONE, id, "sleep", "600"]].concat()).good()
    };
    let first = traced(node, || start("first"))?;
    let second = traced(node, || start("second"))?;
    for id in ["first", "second"] {
        node.ctr(&["tasks", "delete", "--force", id]).good()?;
    }
    node.empty()?;
    ensure!(first > 0, "the first start made no such call: the trace sees nothing");
    Ok(vec![Row::Count {
        what,
        found: format!("{second} (the first start: {first})"),
        goal: "0".into(),
        met: second == 0,
    }])
}

/// Counts the snapshotter's calls that make devices or mounts while something goes on.
fn traced(node: &Node, work: impl FnOnce() -> Result<String>) -> Result<usize> {
    let log = Path::new("/tmp/bench.strace");
    let calls = "trace=mount,move_mount,fsopen,fsmount,open_tree,mount_setattr,umount2,ioctl";
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-e", calls, "-o"])
        .arg(log)
        .args(["-p", &node.snapshotter_pid()?.to_string()])
        .spawn()?;
    // it is attached when the kernel names a tracer
    let status = format!("/proc/{}/status", node.snapshotter_pid()?);
    let began = Instant::now();
    while fs::read_to_string(&status)?.contains("TracerPid:\t0\n") {
        ensure!(began.elapsed() < Duration::from_secs(10), "strace does not attach");
        std::thread::sleep(Duration::from_millis(10));
    }
    work()?;
    let pid = rustix::process::Pid::from_child(&strace);
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    strace.wait()?;
    let text = fs::read_to_string(log).context("what strace wrote")?;
    fs::remove_file(log)?;
    // sockets and terminals are asked by ioctl too
    let counts =
        |line: &&str| !line.contains("ioctl(") || line.contains("LOOP_") || line.contains("DM_");
    Ok(text.lines().filter(counts).count())
}
