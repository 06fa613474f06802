//! Claims in OCI registries: found as referrers of an image's manifest, and put there.
//!
//! | module | concern |
//! |---|---|
//! | `hosts` | which servers stand for a registry: containerd's `hosts.toml` |
//! | `keychain` | logins: Docker's `config.json` |
//! | `session` | requests to one server, with its answer to 401 |
//! | `claims` | referrers and the tag that stands for them: looked up, pushed |
//!
//! Everything that is read is bounded in count, bytes and time, and nothing that comes from here is trusted: what comes
//! out is a [`Claim`](hallmark_seal::Claim). Calls block; the client is `ureq`, which has no runtime of its own.
//!
//! Source: OCI distribution-spec 1.1 ("Listing Referrers", "Referrers Tag Schema", "Pushing Manifests with Subject");
//! containerd `docs/hosts.md`; distribution `docs/content/spec/auth/token.md`.

#![forbid(unsafe_code)]

mod claims;
mod error;
mod hosts;
mod keychain;
mod session;

pub use claims::Listed;
pub use error::{Error, ErrorKind, Result};
pub use keychain::Keychain;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use session::Session;

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For everything that is asked of one repository, however many requests that takes: a server that answers each
    /// of them slowly must not keep whoever asks for hours.
    pub patience: Duration,
    /// containerd's `certs.d`: one directory a registry, with a `hosts.toml`. `None`: the registry itself.
    pub hosts: Option<PathBuf>,
    /// Logins.
    pub keychain: Keychain,
}

/// A repository, on every server that stands for its registry.
#[derive(Debug)]
pub struct Repository {
    name: String,
    /// Mirrors first, the registry itself last.
    sessions: Vec<Session>,
}

impl Repository {
    /// The repository `name` (`library/alpine`) of the registry `host` (`docker.io`, `registry.example:5000`). Nothing
    /// is asked yet.
    ///
    /// # Errors
    /// `Name` for what is no name, `Settings` for a `hosts.toml` or certificate that cannot be used.
    pub fn open(host: &str, name: &str, settings: &Settings) -> Result<Self> {
        let segment = |segment: &str| {
            let inside = |char: char| char.is_ascii_alphanumeric() || "._-".contains(char);
            !segment.is_empty() && !segment.starts_with('.') && segment.chars().all(inside)
        };
        if name.len() > 255 || !name.split('/').all(segment) {
            return Err(Error::name(
                format!("repository {name:?}"),
                "path segments of [a-z0-9._-]",
            ));
        }
        let endpoints = hosts::endpoints(host, settings.hosts.as_deref())?;
        let deadline = Instant::now() + settings.patience;
        let sessions: Result<Vec<Session>> = endpoints
            .into_iter()
            .map(|endpoint| Session::new(endpoint, name, &settings.keychain, deadline))
            .collect();
        Ok(Self { name: name.to_owned(), sessions: sessions? })
    }
}
