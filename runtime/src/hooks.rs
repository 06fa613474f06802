//! Running hook programs: the container's state on standard input, a time limit, and no patience with failure.

use std::io::{Read, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::spec::Hook;

/// Most bytes of a hook's output that an error repeats.
const MAX_OUTPUT: u64 = 4096;

/// Runs `hooks` one after the other; the first failure ends it.
///
/// # Errors
/// A hook that cannot be started, fails, or takes longer than it may.
pub(crate) fn run(hooks: &[Hook], name: &str, state: &Value) -> Result<()> {
    for (index, hook) in hooks.iter().enumerate() {
        one(hook, state)
            .context(|| format!("error running {name} hook #{index}: {}", hook.path.display()))?;
    }
    Ok(())
}

fn one(hook: &Hook, state: &Value) -> Result<()> {
    let output = unnamed_file()?;
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    if let Some(env) = &hook.env {
        command.env_clear();
        // an entry without "=" names no variable
        command.envs(env.iter().filter_map(|entry| entry.split_once('=')));
    }
    command.stdin(Stdio::from(input(state)?));
    command.stdout(duplicate(&output)?);
    command.stderr(duplicate(&output)?);
    let mut child = command.spawn().context(|| "spawn")?;
    if let Some(limit) = hook.timeout {
        within(limit, &mut child)?;
    }
    let status = child.wait().context(|| "wait")?;
    if status.success() {
        return Ok(());
    }
    Err(Error::system(format!("{}, output: {}", end(status), text(output)?)))
}

/// How a hook ended, in Go's words.
fn end(status: std::process::ExitStatus) -> String {
    let word = match status.signal() {
        None => return format!("exit status {}", status.code().unwrap_or_default()),
        Some(libc::SIGABRT) => "aborted",
        Some(libc::SIGHUP) => "hangup",
        Some(libc::SIGINT) => "interrupt",
        Some(libc::SIGKILL) => "killed",
        Some(libc::SIGPIPE) => "broken pipe",
        Some(libc::SIGSEGV) => "segmentation fault",
        Some(libc::SIGSYS) => "bad system call",
        Some(libc::SIGTERM) => "terminated",
        Some(other) => return format!("signal: {other}"),
    };
    format!("signal: {word}")
}

/// A file, not a pipe: a hook that never reads its input must not block us.
fn input(state: &Value) -> Result<std::fs::File> {
    let mut file = unnamed_file()?;
    file.write_all(state.to_string().as_bytes()).context(|| "state for a hook")?;
    file.rewind().context(|| "state for a hook")?;
    Ok(file)
}

fn unnamed_file() -> Result<std::fs::File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::NOEXEC_SEAL;
    let fd = rustix::fs::memfd_create("hook", flags)
        .or_else(|_old_kernel| rustix::fs::memfd_create("hook", rustix::fs::MemfdFlags::CLOEXEC));
    Ok(std::fs::File::from(fd.context(|| "memfd_create")?))
}

fn duplicate(file: &std::fs::File) -> Result<Stdio> {
    Ok(Stdio::from(file.try_clone().context(|| "dup")?))
}

fn text(mut output: std::fs::File) -> Result<String> {
    output.rewind().context(|| "output of a hook")?;
    let mut bytes = Vec::new();
    output.take(MAX_OUTPUT).read_to_end(&mut bytes).context(|| "output of a hook")?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// Waits at most `limit` for `child` to end; kills it then.
fn within(limit: Duration, child: &mut std::process::Child) -> Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Error::system(format!("pid {}", child.id())))?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).context(|| "pidfd_open")?;
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec::try_from(left).ok();
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).context(|| "poll"),
            Ok(0) => break,
            Ok(_) => return Ok(()),
        }
    }
    rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).context(|| "kill")?;
    child.wait().context(|| "wait")?;
    Err(Error::system(format!("hook ran past specified timeout of {:.1}s", limit.as_secs_f64())))
}

/// `hooks` with `env` where they bring none of their own, as runc gives startContainer hooks.
pub(crate) fn with_default_env(hooks: &[Hook], env: &[String]) -> Vec<Hook> {
    hooks
        .iter()
        .map(|hook| Hook {
            env: Some(hook.env.clone().unwrap_or_else(|| env.to_vec())),
            ..hook.clone()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<u64>) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: ["sh", "-c", script].map(String::from).to_vec(),
            env: Some(vec!["PATH=/bin:/usr/bin".into(), "A=b".into()]),
            timeout: timeout.map(Duration::from_secs),
        }
    }

    #[test]
    fn a_hook_gets_the_state_and_its_own_environment() {
        let state = serde_json::json!({"id": "c1"});
        let script = "test \"$(cat)\" = '{\"id\":\"c1\"}' && test \"$A\" = b && test -z \"$HOME\"";
        run(&[hook(script, Some(60)), hook(script, None)], "prestart", &state).unwrap();
    }

    #[test]
    fn a_failing_hook_ends_the_list_and_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let list = [
            hook("echo out; echo err >&2; exit 3", None),
            hook(&format!("touch {}", mark.display()), None),
        ];
        let error = run(&list, "poststop", &Value::Null).unwrap_err().to_string();
        assert!(
            error.starts_with("error running poststop hook #0: /bin/sh: exit status 3"),
            "{error}"
        );
        assert!(error.contains("out") && error.contains("err"), "{error}");
        assert!(std::fs::metadata(mark).is_err(), "the second hook ran");
    }

    #[test]
    fn a_slow_hook_is_killed() {
        let error = run(&[hook("exec sleep 60", Some(1))], "prestart", &Value::Null).unwrap_err();
        assert!(error.to_string().contains("hook ran past specified timeout of 1.0s"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let mut hook = hook("", None);
        hook.path = "/no/such".into();
        let error = run(&[hook], "prestart", &Value::Null).unwrap_err().to_string();
        assert!(error.contains("/no/such") && error.contains("no such file"), "{error}");
    }
}
