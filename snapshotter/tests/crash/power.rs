//! `crash power [SHUFFLES]`: the power goes, on a real file system over a disk that logs its writes.
//!
//! Each call is made once on ext4 over dm-log-writes. Then for every moment at which something became durable, and for
//! moments between with any of the writes that no flush has followed yet, whole or torn, the disk is made as it was
//! then, mounted, and a daemon started as after a boot. What must hold is what holds after a kill. That a loss would be
//! seen is shown by the disk from before the call, judged as one from after it.
//!
//! It needs device-mapper with log-writes, ext4, e2fsprogs and util-linux: the guest has them.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hallmark_sys::dm::{self, Removal};
use nix::sys::signal::{Signal, kill};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::blocks::{Chance, Cut, Log};
use crate::node::{CHAIN, Node, PATIENCE};
use crate::operation::{self, Operation};
use crate::{Counts, SHOWN};

/// Bytes of the disk: the image, a layer more and another on its way.
const DISK: u64 = 48 << 20;
/// Bytes that its log may have.
const LOG: u64 = 256 << 20;
/// The device that logs; not among those that a daemon takes for its own.
const LOGGED: &str = "crash-log-writes";
/// For what a call leaves to be done after its answer.
const SETTLING: Duration = Duration::from_millis(500);

const ARRANGED: &str = "arranged";
const ANSWERED: &str = "answered";
const SETTLED: &str = "settled";

/// The table.
pub(crate) fn all(shuffles: usize, counts: &mut Counts) {
    let logs = || {
        let targets = run("dmsetup", &["targets"]);
        assert!(targets.contains("log-writes"), "device-mapper has no log-writes:\n{targets}");
    };
    if !counts.add("a kernel that can log writes", logs) {
        return;
    }
    let mut machine = Machine::new();
    let mut chance = Chance::new();
    for operation in operation::ALL {
        let failed = counts.failed;
        let mut log = None;
        let name = format!("{operation:?} on a disk that logs");
        counts.add(&name, || log = Some(machine.record(operation)));
        machine.down();
        if let Some(log) = log {
            machine.cuts(operation, &log, shuffles, &mut chance, counts);
        }
        if counts.failed - failed >= SHOWN {
            break;
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}: {said}", output.status);
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A node whose root is a disk.
struct Machine {
    node: Node,
    /// The mount point of the disk.
    root: PathBuf,
    /// Disks as files, where no daemon looks for its own.
    images: tempfile::TempDir,
    loops: Vec<String>,
    _directory: tempfile::TempDir,
}

impl Machine {
    /// With the image on its disk, at rest.
    fn new() -> Self {
        let (directory, images) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let node = Node::new(directory.path());
        let mut machine = Self { node, root, images, loops: Vec::new(), _directory: directory };
        let base = machine.file("base", DISK);
        // nothing that the file system would do later of itself
        let now = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        let journal = ["-J", "size=4", "-b", "4096", "-m", "0", "-E", now];
        run("mke2fs", &[&["-q", "-F", "-t", "ext4"], &journal[..], &[text(&base)]].concat());
        machine.up(&base);
        machine.node.unpack_chain();
        machine.down();
        machine
    }

    fn image(&self, name: &str) -> PathBuf {
        self.images.path().join(name)
    }

    fn file(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.image(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    fn attach(&mut self, image: &Path) -> String {
        let device = run("losetup", &["--find", "--show", text(image)]);
        self.loops.push(device.clone());
        device
    }

    /// As by a boot: the disk is mounted, nothing of the time before is left, and a daemon is started.
    fn up(&mut self, image: &Path) {
        let device = self.attach(image);
        self.boot(&device);
        self.node.start();
    }

    fn boot(&mut self, device: &str) {
        // no commit of its own by the clock: what is durable is so because the daemon asked
        run("mount", &["-t", "ext4", "-o", "commit=600", device, text(&self.root)]);
        let state = self.node.directory.join("state");
        assert!(std::fs::remove_dir_all(&state).is_ok() || !state.is_dir());
    }

    /// Ends the daemon and takes the disk away, with all that is on it.
    fn down(&mut self) {
        self.node.kill();
        let state = self.node.directory.join("state/l");
        for lower in std::fs::read_dir(state).into_iter().flatten().flatten() {
            unmount(lower.path(), UnmountFlags::NOFOLLOW).ok();
        }
        for device in dm::list().unwrap() {
            if device.name.starts_with("hallmark-") {
                dm::remove(&device.name, Removal::Deferred).unwrap();
            }
        }
        // a loop device of a layer goes with the last descriptor of it, which is not at once
        let started = Instant::now();
        loop {
            match unmount(&self.root, UnmountFlags::NOFOLLOW) {
                Ok(()) | Err(Errno::INVAL) => break,
                Err(errno) => assert!(started.elapsed() < PATIENCE, "unmount: {errno}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if dm::list().unwrap().iter().any(|device| device.name == LOGGED) {
            run("dmsetup", &["remove", "--noudevsync", LOGGED]);
        }
        for device in self.loops.drain(..) {
            run("losetup", &["--detach", &device]);
        }
    }

    /// Makes the call, and what was written since the disk was at rest.
    fn record(&mut self, operation: Operation) -> Log {
        let (disk, log) = (self.image("disk"), self.file("log", LOG));
        std::fs::copy(self.image("base"), &disk).unwrap();
        let (disk, logging) = (self.attach(&disk), self.attach(&log));
        let table = format!("0 {} log-writes {disk} {logging}", DISK / 512);
        run("dmsetup", &["create", "--noudevsync", LOGGED, "--table", &table]);
        // no udevd makes its node
        run("dmsetup", &["mknodes", LOGGED]);
        self.boot(&format!("/dev/mapper/{LOGGED}"));
        self.node.start();
        operation.arrange(&mut self.node);
        self.sync();
        mark(ARRANGED);
        match operation {
            Operation::Start => drop(self.node.start()),
            _ => self.node.run(operation.call(self.node.client())).unwrap(),
        }
        // nothing more is written before the mark
        kill(self.node.pid(), Signal::SIGSTOP).unwrap();
        mark(ANSWERED);
        kill(self.node.pid(), Signal::SIGCONT).unwrap();
        std::thread::sleep(SETTLING);
        self.sync();
        mark(SETTLED);
        self.down();
        Log::read(&log)
    }

    fn sync(&self) {
        rustix::fs::syncfs(File::open(&self.root).unwrap()).unwrap();
    }

    /// The power goes at every moment of a call.
    fn cuts(
        &mut self,
        operation: Operation,
        log: &Log,
        shuffles: usize,
        chance: &mut Chance,
        counts: &mut Counts,
    ) {
        let started = Instant::now();
        let cuts = log.cuts(ARRANGED..SETTLED, ANSWERED, shuffles, chance);
        let past = self.image("past");
        std::fs::copy(self.image("base"), &past).unwrap();
        let past = File::options().write(true).open(past).unwrap();
        let (mut replayed, failed) = (0, counts.failed);
        for (number, cut) in cuts.iter().enumerate() {
            log.replay(replayed..cut.whole, &past);
            replayed = cut.whole;
            let name = format!(
                "{operation:?}, power cut {number}: {} entries whole, {} in part, answered: {}",
                cut.whole,
                cut.parts(),
                cut.marked
            );
            if !counts.add(&name, || self.cut(operation, log, cut)) {
                println!("{}", self.node.last_words());
            }
            self.down();
            if counts.failed - failed == SHOWN {
                break;
            }
        }
        let name = format!("{operation:?}: a disk from before the call is not one from after it");
        if let Some(first) = cuts.first().filter(|_| operation.leaves_a_trace()) {
            std::fs::copy(self.image("base"), self.image("past")).unwrap();
            log.replay(0..first.whole, &past);
            counts.add(&name, || self.expect_failure(operation, log, &first.misjudged()));
            self.down();
        }
        println!(
            "      {operation:?}: {} writes, {} power cuts, {} of them after the answer, in {} s",
            log.writes(ARRANGED..SETTLED),
            cuts.len(),
            cuts.iter().filter(|cut| cut.marked).count(),
            started.elapsed().as_secs()
        );
    }

    /// What would not be noticed is not tested.
    fn expect_failure(&mut self, operation: Operation, log: &Log, cut: &Cut) {
        let said = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| ()));
        let judged = catch_unwind(AssertUnwindSafe(|| self.cut(operation, log, cut)));
        std::panic::set_hook(said);
        assert!(judged.is_err(), "nothing was missed");
    }

    fn cut(&mut self, operation: Operation, log: &Log, cut: &Cut) {
        let disk = self.image("disk");
        std::fs::copy(self.image("past"), &disk).unwrap();
        log.replay_parts(cut, &File::options().write(true).open(&disk).unwrap());
        std::fs::write(self.node.directory.join("log"), "").unwrap();
        self.up(&disk);
        operation.judge(&self.node, cut.marked);
        self.node.expect_rest(CHAIN);
        self.down();
        // the disk was one that can be: the file system itself has lost nothing
        run("e2fsck", &["-f", "-n", text(&disk)]);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.down();
    }
}

fn mark(name: &str) {
    run("dmsetup", &["message", LOGGED, "0", "mark", name]);
}
