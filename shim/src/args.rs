//! The shim's command line, in the dialect of Go's flag package, which is what containerd speaks.

use std::path::PathBuf;

/// What the program is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Action {
    /// No action named: be the daemon.
    #[default]
    Serve,
    Start,
    Delete,
    Info,
    Version,
}

/// A parsed command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) action: Action,
    pub(crate) debug: bool,
    pub(crate) namespace: String,
    pub(crate) id: String,
    /// containerd's gRPC socket.
    pub(crate) address: String,
    /// Only for `delete`, whose working directory is the bundle's too.
    pub(crate) bundle: Option<PathBuf>,
    /// Only for the daemon, from `start`.
    pub(crate) socket: PathBuf,
}

impl Args {
    /// Parses everything after the program's name.
    ///
    /// # Errors
    /// An unknown flag or action, a flag without its value, a namespace or id that is missing or unfit for a path.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> anyhow::Result<Self> {
        let mut args = Self::default();
        let mut rest = arguments.into_iter();
        while let Some(argument) = rest.next() {
            let Some(flag) = argument.strip_prefix('-') else {
                args.action = match argument.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    other => anyhow::bail!("unknown action {other:?}"),
                };
                break;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, mut value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "debug" => args.debug = value.is_none_or(|value| value == "true"),
                "v" | "version" => args.action = Action::Version,
                "info" => args.action = Action::Info,
                _ => {
                    let value = value.take().or_else(|| rest.next());
                    let value = value.ok_or_else(|| anyhow::anyhow!("flag -{name}: no value"))?;
                    args.set(name, value)?;
                }
            }
        }
        if !matches!(args.action, Action::Info | Action::Version) {
            path_component("namespace", &args.namespace)?;
            path_component("id", &args.id)?;
        }
        Ok(args)
    }

    fn set(&mut self, name: &str, value: String) -> anyhow::Result<()> {
        match name {
            "namespace" => self.namespace = value,
            "id" => self.id = value,
            "address" => self.address = value,
            "bundle" => {
                self.bundle = Some(value.into()).filter(|path: &PathBuf| path.is_absolute())
            }
            "socket" => self.socket = value.into(),
            // events go by ttrpc, and there is nothing to debug by a second socket
            "publish-binary" | "debug-socket" => {}
            other => anyhow::bail!("unknown flag -{other}"),
        }
        Ok(())
    }
}

/// Namespace and id become parts of paths.
fn path_component(what: &str, text: &str) -> anyhow::Result<()> {
    let fit = !matches!(text, "" | "." | "..") && !text.contains(['/', '\0']);
    anyhow::ensure!(fit, "{what} {text:?}: not a name");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> anyhow::Result<Args> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerds_command_lines() {
        let args = parse(
            "-namespace k8s.io -address /run/c.sock -publish-binary /bin/containerd -id a1 -debug start",
        )
        .unwrap();
        assert_eq!(args.action, Action::Start);
        assert_eq!((args.namespace.as_str(), args.id.as_str(), args.debug), ("k8s.io", "a1", true));
        let args = parse("-namespace=n --id=a1 -bundle /b delete").unwrap();
        assert_eq!((args.action, args.bundle), (Action::Delete, Some("/b".into())));
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        let args = parse("-namespace n -id a -address /x -socket /s").unwrap();
        assert_eq!((args.action, args.socket), (Action::Serve, "/s".into()));
    }

    #[test]
    fn bad_command_lines() {
        for line in [
            "start",
            "-id a start",
            "-namespace n -id ../x start",
            "-namespace n -id",
            "-x 1",
            "stop",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
