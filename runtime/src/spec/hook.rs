//! The six lists of hooks.

use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime as oci;

use super::no_nul;
use crate::error::{Error, Result};

/// A program to run at one point of a container's life, with its state on standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hook {
    /// Absolute.
    pub(crate) path: PathBuf,
    /// With the program's own name first; empty: the path.
    pub(crate) args: Vec<String>,
    /// `None`: the runtime's own environment, as in runc.
    pub(crate) env: Option<Vec<String>>,
    /// How long it may take.
    pub(crate) timeout: Option<Duration>,
}

/// Hooks by the point at which they run, in the order of a container's life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hooks {
    pub(crate) prestart: Vec<Hook>,
    pub(crate) create_runtime: Vec<Hook>,
    pub(crate) create_container: Vec<Hook>,
    pub(crate) start_container: Vec<Hook>,
    pub(crate) poststart: Vec<Hook>,
    pub(crate) poststop: Vec<Hook>,
}

impl Hooks {
    pub(super) fn parse(hooks: Option<&oci::Hooks>) -> Result<Self> {
        let Some(hooks) = hooks else { return Ok(Self::default()) };
        let prestart = hooks.prestart();
        Ok(Self {
            prestart: list(prestart.as_deref(), "prestart")?,
            create_runtime: list(hooks.create_runtime().as_deref(), "createRuntime")?,
            create_container: list(hooks.create_container().as_deref(), "createContainer")?,
            start_container: list(hooks.start_container().as_deref(), "startContainer")?,
            poststart: list(hooks.poststart().as_deref(), "poststart")?,
            poststop: list(hooks.poststop().as_deref(), "poststop")?,
        })
    }

    /// The lists by their names in config.json.
    pub(crate) fn lists(&self) -> [(&'static str, &[Hook]); 6] {
        [
            ("prestart", &self.prestart),
            ("createRuntime", &self.create_runtime),
            ("createContainer", &self.create_container),
            ("startContainer", &self.start_container),
            ("poststart", &self.poststart),
            ("poststop", &self.poststop),
        ]
    }

    /// Every hook, for the gate.
    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Hook> {
        [
            &mut self.prestart,
            &mut self.create_runtime,
            &mut self.create_container,
            &mut self.start_container,
            &mut self.poststart,
            &mut self.poststop,
        ]
        .into_iter()
        .flatten()
    }
}

fn list(hooks: Option<&[oci::Hook]>, name: &str) -> Result<Vec<Hook>> {
    let mut list = Vec::new();
    for hook in hooks.unwrap_or_default() {
        let what = format!("hooks.{name} {}", hook.path().display());
        if !hook.path().is_absolute() {
            return Err(Error::spec(format!("{what}: path is not absolute")));
        }
        let args = hook.args().clone().unwrap_or_default();
        let env = hook.env().clone();
        for text in args.iter().chain(env.iter().flatten()) {
            no_nul(text, &what)?;
        }
        let timeout = match hook.timeout() {
            None => None,
            Some(seconds) => match u64::try_from(seconds) {
                Ok(seconds) if seconds > 0 => Some(Duration::from_secs(seconds)),
                _ => {
                    return Err(Error::spec(format!(
                        "{what}: timeout is {seconds}, must be positive"
                    )));
                }
            },
        };
        list.push(Hook { path: hook.path().clone(), args, env, timeout });
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use crate::spec::tests::minimal;

    #[test]
    fn hooks_must_be_absolute_and_their_time_positive() {
        let mut plan = minimal(|c| {
            c["hooks"] = serde_json::json!({"poststop": [{"path": "/bin/true", "timeout": 3}]});
        })
        .unwrap();
        assert_eq!(plan.hooks.all_mut().count(), 1);
        assert_eq!(plan.hooks.poststop[0].timeout.unwrap().as_secs(), 3);
        for bad in [
            serde_json::json!({"path": "bin/true"}),
            serde_json::json!({"path": "/bin/true", "timeout": 0}),
            serde_json::json!({"path": "/bin/true", "args": ["a\u{0}b"]}),
        ] {
            let error =
                minimal(|c| c["hooks"] = serde_json::json!({"prestart": [bad]})).unwrap_err();
            assert!(error.to_string().contains("hooks.prestart"), "{error}");
        }
    }
}
