//! The runtimes as programs: the same bundle, the same control groups, a static program that ends at once.
//!
//! In the pure v1 view, where the machine is hybrid: crun refuses that. Ours runs in audit mode ("gate off": it judges nothing
//! of a bundle that has no rootfs mounts) and under enforce, from sealed layers that the gate hashes at each launch.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Lab;
use super::compare::{Side, in_turn, timed};
use super::report::Row;
use crate::images::ONE;
use crate::run::Run;
use crate::table::Site;
use crate::trust::{self, Setting};

pub(super) const SUBJECTS: &[(&str, super::Measure)] = &[
    ("runtime: run", run),
    ("runtime: run, gate on", run_judged),
    ("runtime: exec", exec),
    ("runtime: peak memory", memory),
];

/// Between runs: the kernel's grace periods cost an idle machine what a busy one hides.
const PAUSE: Duration = Duration::from_millis(100);

/// A run is milliseconds: more of them than of the long subjects.
const TIMES: usize = 5;

const WORK: &str = "/tmp/bench-runtime";

/// One OCI runtime.
#[derive(Clone, Debug)]
struct Runtime {
    name: &'static str,
    program: PathBuf,
}

impl Runtime {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(Path::new(WORK).join(self.name));
        command
    }

    /// The container that stays; each runtime's has control groups of its own name.
    fn long(&self) -> String {
        format!("bench-{}", self.name)
    }
}

/// Ours first.
fn runtimes(lab: &Lab) -> [Runtime; 3] {
    [
        Runtime { name: "hallmark", program: lab.kit.bin("hallmark-runtime") },
        Runtime { name: "runc", program: lab.kit.bin("runc") },
        Runtime { name: "crun", program: lab.peer("crun") },
    ]
}

/// A bundle of a static busybox, with runc's own example of a configuration.
fn bundle(lab: &Lab, name: &str, arguments: &[&str]) -> Result<PathBuf> {
    let dir = Path::new(WORK).join(name);
    let root = dir.join("rootfs");
    for place in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(place))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for applet in ["true", "sleep"] {
        let link = root.join("bin").join(applet);
        if !crate::cache::is_there(&link) {
            std::os::unix::fs::symlink("busybox", link)?;
        }
    }
    let file = dir.join("config.json");
    if !crate::cache::is_there(&file) {
        Command::new(lab.kit.bin("runc")).arg("spec").current_dir(&dir).good()?;
    }
    let mut spec: Value = serde_json::from_slice(&fs::read(&file)?)?;
    // the newest that every one of them knows
    spec["ociVersion"] = json!("1.0.2");
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(arguments);
    spec["process"]["noNewPrivileges"] = json!(true);
    fs::write(&file, spec.to_string())?;
    Ok(dir)
}

fn run(lab: &mut Lab) -> Result<Vec<Row>> {
    lab.set(Setting::Audit)?;
    let dir = bundle(lab, "true", &["/bin/true"])?;
    let runtimes = runtimes(lab);
    let mut sides: Vec<Side<'_>> = Vec::new();
    for runtime in &runtimes {
        let dir = &dir;
        let mut number = 0;
        sides.push(Side::new(runtime.name, move || {
            number += 1;
            timed(runtime.command().args(["run", "--bundle"]).arg(dir).arg(format!("b{number}")))
        }));
    }
    let series = in_turn(lab.rounds * TIMES, PAUSE, &mut sides)?;
    Ok(vec![
        Row::times("run of a static true, gate off: to runc 1.5.2", &series, (0, 1), Some(0.15)),
        Row::times("run of a static true, gate off: to crun", &series, (0, 2), Some(0.5)),
        Row::times("for comparison, crun to runc", &series, (2, 1), None),
    ])
}

/// Ours from an overlay of sealed layers against itself without, and against runc without.
fn run_judged(lab: &mut Lab) -> Result<Vec<Row>> {
    let dir = bundle(lab, "true", &["/bin/true"])?;
    let archive = lab.kit.sealed(ONE);
    let node = lab.node()?;
    node.load(&archive)?;
    // an active snapshot keeps the layers mounted; its upper is what the containers share
    node.ctr(&["containers", "create", "--snapshotter", "hallmark", ONE, "bench"]).good()?;
    let shown =
        node.ctr(&["snapshots", "--snapshotter", "hallmark", "mounts", "/x", "bench"]).good()?;
    let options = shown.split(" -o ").nth(1).context("no options in what ctr shows")?;
    let options: Vec<&str> = options.trim().split(',').collect();
    let mounts = json!({"schemaVersion": 1, "mounts": [
        {"type": "overlay", "source": "overlay", "options": options}]});
    let handed = dir.join("hallmark-rootfs.json");
    crate::files::write(&handed, mounts.to_string())?;
    crate::files::set_mode(&handed, 0o600)?;
    let [ours, runc, _] = runtimes(lab);
    let handed = handed.to_string_lossy().into_owned();
    let (rounds, kit, dir) = (lab.rounds * TIMES, lab.kit.clone(), &dir);
    let side = |name, runtime: &Runtime, setting, how: Vec<String>| {
        let (runtime, kit, mut number) = (runtime.clone(), kit.clone(), 0);
        Side::new(name, move || {
            number += 1;
            trust::install(&kit, Site::Host, setting)?;
            let mut run = runtime.command();
            run.arg("run").args(&how).arg("--bundle").arg(dir);
            timed(run.arg(format!("{}{number}", how.len())))
        })
    };
    let judged = vec!["--rootfs-mounts".to_owned(), handed];
    let mut sides = [
        side("judged", &ours, Setting::Enforce, judged),
        side("not judged", &ours, Setting::Audit, Vec::new()),
        side("runc", &runc, Setting::Audit, Vec::new()),
    ];
    let series = in_turn(rounds, PAUSE, &mut sides)?;
    drop(sides);
    lab.node()?.empty()?;
    Ok(vec![
        Row::times(
            "gate on, three layers hashed and an overlay made: to runc 1.5.2",
            &series,
            (0, 2),
            Some(0.15),
        ),
        Row::times("gate on to gate off", &series, (0, 1), None),
    ])
}

fn exec(lab: &mut Lab) -> Result<Vec<Row>> {
    lab.set(Setting::Audit)?;
    let dir = bundle(lab, "sleep", &["/bin/sleep", "3600"])?;
    let runtimes = runtimes(lab);
    for runtime in &runtimes {
        let mut start = runtime.command();
        start.args(["run", "--detach", "--bundle"]).arg(&dir).arg(runtime.long());
        start.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        ensure!(start.status()?.success(), "{}: run --detach failed", runtime.name);
    }
    let mut sides: Vec<Side<'_>> = Vec::new();
    for runtime in &runtimes {
        sides.push(Side::new(runtime.name, || {
            timed(runtime.command().args(["exec", &runtime.long(), "/bin/true"]))
        }));
    }
    let series = in_turn(lab.rounds * TIMES, PAUSE, &mut sides);
    drop(sides);
    for runtime in &runtimes {
        runtime.command().args(["delete", "--force", &runtime.long()]).good()?;
    }
    let series = series?;
    Ok(vec![
        Row::times("exec of a static true: to runc 1.5.2", &series, (0, 1), Some(0.15)),
        Row::times("exec of a static true: to crun", &series, (0, 2), Some(0.5)),
    ])
}

/// The most memory that any process of a `run` had resident, as busybox's time(1) says.
fn memory(lab: &mut Lab) -> Result<Vec<Row>> {
    lab.set(Setting::Audit)?;
    let dir = bundle(lab, "true", &["/bin/true"])?;
    let mut peaks = Vec::new();
    for runtime in &runtimes(lab) {
        let mut all = Vec::new();
        for number in 0..lab.rounds {
            let mut time = Command::new("busybox");
            time.args(["time", "-f", "peak=%M"]).arg(&runtime.program);
            time.arg("--root").arg(Path::new(WORK).join(runtime.name));
            time.args(["run", "--bundle"]).arg(&dir).arg(format!("m{number}"));
            let ran = time.ran()?;
            let words = ran.all();
            ran.good()?;
            let peak = words.lines().find_map(|line| line.strip_prefix("peak="));
            let peak: f64 = peak.with_context(|| format!("no peak in {words}"))?.trim().parse()?;
            // busybox takes the kernel's KiB for pages of 4 KiB
            all.push(peak / 4.0);
        }
        peaks.push(super::compare::median(all));
    }
    Ok(vec![
        Row::sizes("peak memory of a run: to runc 1.5.2", peaks[0], peaks[1], None),
        Row::sizes("peak memory of a run: to crun", peaks[0], peaks[2], Some(1.0)),
    ])
}
