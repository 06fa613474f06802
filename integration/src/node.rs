//! A node: a containerd of its own with our snapshotter and shim, at the default places.
//!
//! The sandbox (or the guest) makes those places private, so the shipped containerd snippet and
//! every default of ours are used unchanged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::files;
use crate::images::cri::PAUSE;
use crate::kit::Kit;
use crate::registry;
use crate::run::{Run, tail, within};
use crate::sandbox::Daemon;
use crate::table::Site;

/// Which snapshotter and runtime the node's clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Stack {
    /// Ours.
    Hallmark,
    /// containerd's overlayfs and runc: what the fixture itself is proved with.
    Stock,
}

impl Stack {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hallmark => "hallmark",
            Self::Stock => "stock",
        }
    }

    pub(crate) fn snapshotter(self) -> &'static str {
        match self {
            Self::Hallmark => "hallmark",
            Self::Stock => "overlayfs",
        }
    }
}

/// How a daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By SIGTERM.
    Asked,
    /// As by a crash.
    Killed,
}

/// A running node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) kit: Kit,
    site: Site,
    stack: Stack,
    logs: PathBuf,
    // containerd goes first: it talks to the snapshotter until the end
    containerd: Option<Daemon>,
    snapshotter: Option<Daemon>,
}

impl Node {
    /// Starts the daemons and waits until they answer.
    pub(crate) fn start(kit: &Kit, site: Site, stack: Stack, logs: &Path) -> Result<Self> {
        fs::create_dir_all(logs)?;
        files::write(Path::new("/etc/containerd/config.toml"), containerd_config(kit, stack))?;
        files::write(Path::new("/etc/cni/net.d/10-test.conflist"), NETWORK)?;
        files::write(Path::new("/etc/crictl.yaml"), CRICTL)?;
        files::write(Path::new("/etc/containerd/certs.d/_default/hosts.toml"), hosts())?;
        for dir in ["/opt/cni", "/var/lib/cni"] {
            fs::create_dir_all(dir)?;
        }
        let mut node = Self {
            kit: kit.clone(),
            site,
            stack,
            logs: logs.to_owned(),
            containerd: None,
            snapshotter: None,
        };
        if stack == Stack::Hallmark {
            node.start_snapshotter()?;
        }
        node.start_containerd()?;
        Ok(node)
    }

    fn start_containerd(&mut self) -> Result<()> {
        let mut command = Command::new(self.kit.bin("containerd"));
        command.env("PATH", self.kit.path());
        self.containerd = Some(Daemon::start(command, &self.logs.join("containerd.log"))?);
        let started = Instant::now();
        while !within(5, self.kit.bin("ctr")).arg("version").ran()?.status.success() {
            self.expect_alive(started)?;
        }
        Ok(())
    }

    /// Starts our snapshotter and waits for its socket to answer.
    pub(crate) fn start_snapshotter(&mut self) -> Result<()> {
        let mut command = Command::new(self.kit.bin("hallmark-snapshotter"));
        command.env("PATH", self.kit.path());
        self.snapshotter = Some(Daemon::start(command, &self.logs.join("snapshotter.log"))?);
        let started = Instant::now();
        let socket = Path::new("/run/hallmark/hallmark.sock");
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            self.expect_alive(started)?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn expect_alive(&mut self, started: Instant) -> Result<()> {
        for daemon in [&mut self.containerd, &mut self.snapshotter].into_iter().flatten() {
            let ended = daemon.ended()?;
            if ended.is_some() || started.elapsed() > Duration::from_secs(60) {
                let text = files::text(&daemon.log)?;
                let what = ended.map_or("not ready".to_owned(), |status| status.to_string());
                bail!("{}: {what}\n{}", daemon.log.display(), tail(&text, 30));
            }
        }
        Ok(())
    }

    /// The snapshotter as by `kill -9`.
    pub(crate) fn kill_snapshotter(&mut self) -> Result<()> {
        self.snapshotter.take().context("no snapshotter runs")?.kill()
    }

    /// containerd ended and started anew over the same state.
    pub(crate) fn restart_containerd(&mut self, how: End) -> Result<()> {
        let mut daemon = self.containerd.take().context("no containerd runs")?;
        match how {
            End::Asked => daemon.stop()?,
            End::Killed => daemon.kill()?,
        }
        self.start_containerd()
    }

    /// containerd and the snapshotter, asked to end; errors are told, not dropped.
    pub(crate) fn stop(mut self) -> Result<()> {
        for daemon in [self.containerd.take(), self.snapshotter.take()].into_iter().flatten() {
            let mut daemon = daemon;
            daemon.stop()?;
        }
        Ok(())
    }

    /// The processes that do the work of containerd's clients.
    pub(crate) fn pids(&self) -> Result<Vec<u32>> {
        let containerd = self.containerd.as_ref().context("no containerd runs")?;
        Ok(vec![containerd.pid(), self.snapshotter_pid()?])
    }

    pub(crate) fn snapshotter_pid(&self) -> Result<u32> {
        Ok(self.snapshotter.as_ref().context("no snapshotter runs")?.pid())
    }

    /// nerdctl with this node's snapshotter.
    pub(crate) fn nerdctl(&self, arguments: &[&str]) -> Command {
        let mut command = within(180, self.kit.bin("nerdctl"));
        command
            .env("PATH", self.kit.path())
            .args(["--cgroup-manager", "cgroupfs", "--cni-netconfpath", "/etc/cni/net.d"])
            .arg(format!("--cni-path={}", self.kit.cni().display()))
            .args(["--snapshotter", self.snapshotter_name()])
            .args(arguments);
        command
    }

    /// `nerdctl run` with this node's runtime; no network unless asked for.
    pub(crate) fn run(&self, arguments: &[&str]) -> Command {
        let mut all = vec!["run", "--runtime", self.runtime_name()];
        if !arguments.contains(&"--net") {
            all.extend(["--net", "none"]);
        }
        all.extend(arguments);
        self.nerdctl(&all)
    }

    /// ctr with this node's snapshotter where the subcommand takes one.
    pub(crate) fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = within(180, self.kit.bin("ctr"));
        command.env("PATH", self.kit.path()).args(arguments);
        command
    }

    pub(crate) fn snapshotter_name(&self) -> &'static str {
        self.stack.snapshotter()
    }

    pub(crate) fn runtime_name(&self) -> &'static str {
        match self.stack {
            Stack::Hallmark => "io.containerd.hallmark.v1",
            Stack::Stock => "io.containerd.runc.v2",
        }
    }

    /// The CRI's name of the runtime.
    pub(crate) fn handler(&self) -> &'static str {
        match self.stack {
            Stack::Hallmark => "hallmark",
            Stack::Stock => "runc",
        }
    }

    /// Whether processors are emulated, and programs start in seconds.
    pub(crate) fn is_slow(&self) -> bool {
        self.site == Site::Guest
    }

    /// crictl at this node's containerd.
    pub(crate) fn crictl(&self, arguments: &[&str]) -> Command {
        let mut command = within(120, self.kit.bin("crictl"));
        command.env("PATH", self.kit.path()).args(arguments);
        command
    }

    /// Loads an archive as a person does; where processors are emulated, with the quicker client.
    pub(crate) fn load(&self, archive: &Path) -> Result<()> {
        let mut load = match self.site {
            Site::Host => self.nerdctl(&["load", "--quiet", "--input"]),
            Site::Guest => {
                self.ctr(&["images", "import", "--snapshotter", self.snapshotter_name()])
            }
        };
        load.arg(archive).good()?;
        Ok(())
    }

    /// A container that says something and is removed, with the same choice of client.
    pub(crate) fn once(&self, arguments: &[&str]) -> Command {
        let Site::Guest = self.site else {
            return self.run(&[&["--rm"], arguments].concat());
        };
        let mut arguments = arguments.to_vec();
        arguments.insert(1, "once");
        let how = ["run", "--rm", "--snapshotter", self.snapshotter_name(), "--runtime"];
        self.ctr(&[&how[..], &[self.runtime_name()], &arguments].concat())
    }

    /// Removes every container and image, and waits for the collection of what they held.
    pub(crate) fn empty(&self) -> Result<()> {
        let containers = self.ctr(&["containers", "list", "--quiet"]).good()?;
        if !containers.is_empty() {
            let ids: Vec<&str> = containers.lines().collect();
            self.nerdctl(&[&["rm", "--force"], &ids[..]].concat()).good()?;
        }
        let images = self.ctr(&["images", "list", "--quiet"]).good()?;
        if !images.is_empty() {
            let names: Vec<&str> = images.lines().collect();
            self.ctr(&[&["images", "remove", "--sync"], &names[..]].concat()).good()?;
        }
        Ok(())
    }

    /// The end of each daemon's log, without what went well.
    pub(crate) fn last_words(&self) -> String {
        let mut text = String::new();
        for name in ["snapshotter.log", "containerd.log"] {
            let log = fs::read_to_string(self.logs.join(name)).unwrap_or_default();
            let ordinary =
                [" INFO ", "level=info", "level=debug", "level=warning", "inactive stream"];
            let worth: Vec<&str> = log
                .lines()
                .filter(|line| !ordinary.iter().any(|word| line.contains(word)))
                .collect();
            if !worth.is_empty() {
                text.push_str(&format!("--- {name}\n{}\n", tail(&worth.join("\n"), 6)));
            }
        }
        text
    }
}

fn containerd_config(kit: &Kit, stack: Stack) -> String {
    let imports = match stack {
        Stack::Hallmark => format!("imports = [\"{}\"]\n", kit.config("containerd.toml").display()),
        Stack::Stock => String::new(),
    };
    format!(
        "version = 3\n{imports}\
         [plugins.\"io.containerd.cri.v1.runtime\"]\n\
         restrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.cri.v1.images\".pinned_images]\n\
         sandbox = \"{PAUSE}\"\n\
         [plugins.\"io.containerd.cri.v1.images\".registry]\n\
         config_path = \"/etc/containerd/certs.d\"\n\
         [plugins.\"io.containerd.transfer.v1.local\"]\n\
         config_path = \"/etc/containerd/certs.d\"\n\
         [plugins.\"io.containerd.cri.v1.runtime\".cni]\n\
         bin_dirs = [\"{}\"]\n\
         [plugins.\"io.containerd.internal.v1.restart\"]\n\
         interval = \"1s\"\n",
        kit.cni().display()
    )
}

/// Whatever its name says, an image comes from the registry on this node, if one runs.
fn hosts() -> String {
    let here = format!("http://127.0.0.1:{}", registry::PORT);
    format!("server = \"{here}\"\n[host.\"{here}\"]\ncapabilities = [\"pull\", \"resolve\"]\n")
}

const CRICTL: &str = "runtime-endpoint: unix:///run/containerd/containerd.sock\n\
                      image-endpoint: unix:///run/containerd/containerd.sock\ntimeout: 60\n";

const NETWORK: &str = r#"{
  "cniVersion": "1.0.0", "name": "test", "nerdctlID": null,
  "plugins": [
    {"type": "bridge", "bridge": "hm0", "isGateway": true, "ipMasq": false,
     "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/24"}]],
              "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"#;
