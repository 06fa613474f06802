//! Everything that a run starts lives in namespaces and cgroups of its own, and dies with them.
//!
//! ```text
//! supervise          this program as the person started it: waits, and sweeps whatever happens
//!  └ enter           joins a cgroup of its own in each hierarchy, then becomes unshare(1)
//!     └ unshare      new mount, pid, net, ipc and cgroup namespaces
//!        └ init      pid 1: private /etc, /run, /var; adopts and reaps orphans
//!           └ work   the demonstration or the tests
//! ```
//! The end of `init` ends every process, and with the last process every mount goes. What no
//! namespace owns (loop and device-mapper devices, cgroups, files) is removed by `supervise`.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::process::{Pid, Signal, WaitOptions};

use crate::cache::{Cache, is_there, remove_tree, source_root};
use crate::cgroups;
use crate::devices;
use crate::run::Run;

/// Runs this program again with `arguments` inside a sandbox, and leaves nothing of it.
pub(crate) fn supervise(cache: &Cache, arguments: &[&str]) -> Result<ExitCode> {
    // whoever started this may be killed without it: then it cleans up as well
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    let runs = cache.root().join("run");
    fs::create_dir_all(&runs)?;
    sweep_abandoned(&runs)?;
    let dir = own_directory(cache);
    fs::create_dir_all(&dir)?;
    let stopped = stop_signal()?;
    let result = wait_for(start(&dir, arguments)?, &stopped);
    let swept = sweep(&dir, &group_of(&std::process::id().to_string()));
    let code = result?;
    swept?;
    Ok(code)
}

/// Where this process may put what its run needs; removed with the run.
pub(crate) fn own_directory(cache: &Cache) -> PathBuf {
    cache.root().join("run").join(std::process::id().to_string())
}

fn start(dir: &Path, arguments: &[&str]) -> Result<std::process::Child> {
    let program = std::env::current_exe()?;
    Command::new(program)
        .arg("enter")
        .arg(dir)
        .args(arguments)
        .process_group(0)
        .spawn()
        .context("start the sandbox")
}

/// Waits for the child, or kills it when told to stop.
fn wait_for(mut child: std::process::Child, stopped: &AtomicBool) -> Result<ExitCode> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(match status.code() {
                Some(0) => ExitCode::SUCCESS,
                Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
                None => ExitCode::FAILURE,
            });
        }
        if stopped.load(Ordering::Relaxed) {
            crate::say("interrupted: cleaning up");
            child.kill()?;
            child.wait()?;
            return Ok(ExitCode::from(130));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn stop_signal() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in
        [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
    {
        signal_hook::flag::register(signal, Arc::clone(&flag)).context("catch signals")?;
    }
    Ok(flag)
}

fn group_of(name: &str) -> String {
    format!("hallmark-{name}")
}

/// Removes what a run left that no namespace took along.
fn sweep(dir: &Path, group: &str) -> Result<()> {
    cgroups::kill_and_remove(group)?;
    devices::release_below(dir)?;
    remove_tree(dir)
}

/// Sweeps after runs whose supervisor was killed.
fn sweep_abandoned(runs: &Path) -> Result<()> {
    for entry in fs::read_dir(runs)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !is_there(&Path::new("/proc").join(&name)) {
            sweep(&entry.path(), &group_of(&name))?;
        }
    }
    Ok(())
}

/// Joins the cgroups of the run and goes on as `unshare`. Returns only on error.
pub(crate) fn enter(dir: &Path, arguments: &[String]) -> Result<ExitCode> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let name = dir.file_name().context("the run's directory has no name")?.to_string_lossy();
    cgroups::join(&group_of(&name))?;
    let program = std::env::current_exe()?;
    let error = Command::new("unshare")
        .args(["--mount", "--pid", "--net", "--ipc", "--cgroup"])
        .args(["--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
        .arg(program)
        .arg("init")
        .arg(dir)
        .args(arguments)
        .exec();
    Err(error).context("unshare")
}

/// The first process of the sandbox on this machine: private directories, then the work.
pub(crate) fn init(dir: &Path, arguments: &[String]) -> Result<ExitCode> {
    private_directories(dir)?;
    cgroups::mount_own()?;
    Command::new("ip").args(["link", "set", "lo", "up"]).good()?;
    let mut work = Command::new(std::env::current_exe()?);
    work.args(arguments);
    Ok(ExitCode::from(adopt(&mut work)?))
}

/// Starts the work, reaps every orphan until it ends, and answers with its exit code.
pub(crate) fn adopt(work: &mut Command) -> Result<u8> {
    let work = Pid::from_child(&work.spawn()?);
    loop {
        let Some((pid, status)) = rustix::process::wait(WaitOptions::empty())? else { continue };
        if pid == work {
            let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
            return Ok(code.unwrap_or(1));
        }
    }
}

/// A directory that the private ones would hide, held open to be shown again at its place.
struct Kept {
    path: PathBuf,
    tree: OwnedFd,
}

/// What the run needs of a checkout, a cache or a target directory below /tmp or /run.
fn kept(dir: &Path) -> Result<Vec<Kept>> {
    let program = std::env::current_exe()?;
    let cache = dir.ancestors().nth(2).context("a run directory has no cache")?;
    let mut kept: Vec<Kept> = Vec::new();
    for path in [&source_root(), cache, program.parent().context("no directory")?] {
        let hidden = path.starts_with("/tmp") || path.starts_with("/run");
        if !hidden || kept.iter().any(|other| path.starts_with(&other.path)) {
            continue;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, path, flags)
            .with_context(|| format!("open_tree({})", path.display()))?;
        kept.push(Kept { path: path.to_owned(), tree });
    }
    Ok(kept)
}

fn show_again(kept: &Kept) -> Result<()> {
    fs::create_dir_all(&kept.path)?;
    move_mount(kept.tree.as_fd(), "", CWD, &kept.path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("move_mount({})", kept.path.display()))
}

/// The machine's own directories stay as they are: the run sees overlays and empty ones.
fn private_directories(dir: &Path) -> Result<()> {
    mount(&["--make-rshared", "/"])?;
    let kept = kept(dir)?;
    for place in ["/etc", "/var/lib", "/var/log", "/opt"] {
        let name = place.trim_start_matches('/').replace('/', "-");
        let (upper, work) = (dir.join(&name), dir.join(format!("{name}.work")));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let options =
            format!("lowerdir={place},upperdir={},workdir={}", upper.display(), work.display());
        mount(&["-t", "overlay", "overlay", "-o", &options, place])?;
    }
    // what a snapshotter keeps must not lie on an overlay
    for name in ["containerd", "hallmark", "nerdctl"] {
        let (source, target) = (dir.join(format!("var-lib-{name}")), format!("/var/lib/{name}"));
        fs::create_dir_all(&source)?;
        bind(&source, Path::new(&target))?;
        clear_copy(Path::new(&target))?;
    }
    for (name, target) in [("tmp", "/tmp"), ("run", "/run")] {
        let source = dir.join(format!("private-{name}"));
        fs::create_dir_all(&source)?;
        crate::files::set_mode(&source, if name == "tmp" { 0o1777 } else { 0o755 })?;
        bind(&source, Path::new(target))?;
    }
    kept.iter().try_for_each(show_again)?;
    for place in [
        "/etc/hallmark",
        "/etc/containerd",
        "/etc/cni",
        "/etc/nerdctl",
        "/var/lib/cni",
        "/var/log/hallmark",
    ] {
        remove_tree(Path::new(place))?;
    }
    Ok(())
}

fn clear_copy(dir: &Path) -> Result<()> {
    match fs::read_dir(dir)?.next() {
        None => Ok(()),
        Some(_) => bail!("{}: not empty, though just made", dir.display()),
    }
}

/// Binds `source` over `target`, which is made if needed.
pub(crate) fn bind(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
    Command::new("mount").arg("--bind").arg(source).arg(target).good()?;
    Ok(())
}

/// mount(8).
pub(crate) fn mount(arguments: &[&str]) -> Result<()> {
    Command::new("mount").args(arguments).good()?;
    Ok(())
}

/// A process whose output is in a file; it is ended when this value goes.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: std::process::Child,
    pub(crate) log: PathBuf,
}

impl Daemon {
    /// Starts a program with its output in `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Result<Self> {
        let file = fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        let child = command
            .stdin(std::process::Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended, and how.
    pub(crate) fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Asks it to end and waits; kills it after ten seconds.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        rustix::process::kill_process(pid, Signal::TERM)?;
        let (sender, receiver) = mpsc::channel::<()>();
        let kill = std::thread::spawn(move || {
            if receiver.recv_timeout(Duration::from_secs(10)).is_err() {
                rustix::process::kill_process(pid, Signal::KILL).is_ok()
            } else {
                false
            }
        });
        self.child.wait()?;
        let told = sender.send(()).is_ok();
        let killed = kill.join().unwrap_or(false);
        if killed || !told {
            bail!("{}: did not end when asked", self.log.display());
        }
        Ok(())
    }

    /// Kills it at once, as a crash would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            crate::say(&format!("{error:#}"));
        }
    }
}
