//! A bundle made from the machine's static busybox, and the real binary run on it as root.
//!
//! The node's configuration is one of the test's own (audit): each call runs in a mount namespace in which /etc is
//! overlaid, so that the machine's /etc/hallmark is neither read nor made.
#![allow(dead_code, reason = "each test file uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const APPLETS: [&str; 29] = [
    "awk", "cat", "chmod", "cut", "date", "echo", "env", "false", "find", "grep", "head",
    "hostname", "id", "kill", "ls", "mkdir", "mount", "ps", "pwd", "readlink", "sh", "sleep",
    "stat", "stty", "sysctl", "touch", "tr", "true", "umount",
];

/// A bundle, a state root, and the names of everything a test may leave behind.
pub(crate) struct Bundle {
    dir: tempfile::TempDir,
    id: String,
    /// The node's `mode`.
    pub(crate) mode: &'static str,
    pub(crate) config: Value,
}

/// Says so and returns true where the test cannot run.
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
pub(crate) fn skipped() -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return true;
    }
    if fs::metadata("/bin/busybox").is_err() {
        println!("skipped: needs a static /bin/busybox");
        return true;
    }
    false
}

impl Bundle {
    /// A container that runs `args` and nothing else special.
    pub(crate) fn new(args: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("rt-{}-{number}", std::process::id());
        let bin = dir.path().join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        fs::create_dir(dir.path().join("rootfs/etc")).unwrap();
        fs::write(dir.path().join("rootfs/etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        let mut bundle = Self { dir, id, mode: "audit", config: Value::Null };
        let made = bundle.raw(&["spec", "--bundle", bundle.path("").to_str().unwrap()]);
        assert!(made.status.success(), "{made:?}");
        let text = fs::read_to_string(bundle.path("config.json")).unwrap();
        bundle.config = serde_json::from_str(&text).unwrap();
        bundle.config["process"]["terminal"] = json!(false);
        bundle.config["process"]["args"] = json!(args);
        bundle.config["linux"]["cgroupsPath"] = json!(format!("/{}", bundle.id));
        bundle
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub(crate) fn write(&self) {
        fs::write(self.path("config.json"), self.config.to_string()).unwrap();
    }

    /// The binary with these words after the global options, its input closed.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let script = "mount -t tmpfs tmpfs \"$1\" && mkdir \"$1/up\" \"$1/work\" \"$1/up/hallmark\" && \
            printf '%s\\n' '[gate]' \"mode = '$3'\" 'exec_control = \"launch-only\"' \"audit_log = '$2'\" \
            >\"$1/up/hallmark/config.toml\" && \
            mount -t overlay overlay -o \"lowerdir=/etc,upperdir=$1/up,workdir=$1/work\" /etc && \
            shift 3 && exec \"$@\"";
        fs::create_dir_all(self.path("etc")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
        command.args([self.path("etc"), self.path("audit.log")]).arg(self.mode);
        command.arg(env!("CARGO_BIN_EXE_hallmark-runtime"));
        command.arg("--root").arg(self.path("state"));
        command.arg("--log").arg(self.path("log.json")).args(["--log-format", "json"]);
        command.args(words).stdin(Stdio::null());
        command
    }

    fn raw(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs a command of the runtime on this container; `ID` stands for its id.
    pub(crate) fn runtime(&self, words: &[&str]) -> Output {
        let words: Vec<&str> =
            words.iter().map(|word| if *word == "ID" { self.id() } else { word }).collect();
        self.raw(&words)
    }

    /// `run`, with the configuration as it is now.
    pub(crate) fn run(&self) -> Output {
        self.write();
        let bundle = self.path("");
        self.runtime(&["run", "--bundle", bundle.to_str().unwrap(), "ID"])
    }

    /// What a successful `run` wrote.
    pub(crate) fn output(&self) -> String {
        let output = self.run();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a failed `run` said; nothing may be left behind.
    pub(crate) fn refusal(&self) -> String {
        let output = self.run();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        self.assert_nothing_left();
        let error = self.last_error();
        assert!(String::from_utf8_lossy(&output.stderr).contains(&error), "{}", text(&output));
        error
    }

    /// `create`, with the configuration as it is now, standard streams to nowhere.
    pub(crate) fn create(&self) -> Output {
        self.create_with(&[])
    }

    /// As [`create`](Self::create), with these options.
    pub(crate) fn create_with(&self, options: &[&str]) -> Output {
        self.write();
        let bundle = self.path("");
        let words = [&["create", "--bundle", bundle.to_str().unwrap()], options, &["ID"]].concat();
        self.quiet(&words)
    }

    /// Creates and starts it; neither may fail.
    pub(crate) fn start(&self) {
        let created = self.create();
        assert!(created.status.success(), "{}", text(&created));
        let started = self.runtime(&["start", "ID"]);
        assert!(started.status.success(), "{}", text(&started));
    }

    /// A command whose container must not hold our pipes open.
    pub(crate) fn quiet(&self, words: &[&str]) -> Output {
        let words: Vec<&str> =
            words.iter().map(|word| if *word == "ID" { self.id() } else { word }).collect();
        let (out, err) = (
            fs::File::create(self.path("out")).unwrap(),
            fs::File::create(self.path("err")).unwrap(),
        );
        let status = self.command(&words).stdout(out).stderr(err).status().unwrap();
        let read = |name: &str| fs::read(self.path(name)).unwrap();
        Output { status, stdout: read("out"), stderr: read("err") }
    }

    /// `state`, as JSON.
    pub(crate) fn state(&self) -> Value {
        let output = self.runtime(&["state", "ID"]);
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// Waits until the state is `expected`.
    pub(crate) fn until(&self, expected: &str) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.status() != expected {
            assert!(Instant::now() < end, "still {}, expected {expected}", self.status());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `msg` of the last line of log.json whose level is `error`, as containerd reads it.
    pub(crate) fn last_error(&self) -> String {
        let log = fs::read_to_string(self.path("log.json")).unwrap_or_default();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let last = lines.rev().find(|line| line["level"] == "error");
        last.map(|line| line["msg"].as_str().unwrap().to_owned()).unwrap_or_default()
    }

    /// No state, no cgroup, no process of this container.
    pub(crate) fn assert_nothing_left(&self) {
        assert!(
            fs::metadata(self.path("state").join(&self.id)).is_err(),
            "the state directory is there"
        );
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new(), "cgroups are there");
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            // the copy of the runtime that was to become the container has the same command line
            let ours = line.contains("hallmark-runtime") && line.contains(&format!("{} ", self.id));
            assert!(!ours, "a process is there: {line}");
        }
    }

    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
            let root = line.split(' ').nth(4).unwrap();
            let path = Path::new(root).join(&self.id);
            if fs::metadata(&path).is_ok() {
                found.push(path);
            }
        }
        found
    }

    /// Path of a file in the root.
    pub(crate) fn in_root(&self, below: &str) -> PathBuf {
        self.path("rootfs").join(below)
    }

    pub(crate) fn hook(&self, name: &str, script: &str) -> Value {
        json!({"path": "/bin/sh", "args": ["sh", "-c", script, name], "env": ["PATH=/usr/bin:/bin"]})
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.quiet(&["delete", "--force", "ID"]);
    }
}

/// Everything a command said.
pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
