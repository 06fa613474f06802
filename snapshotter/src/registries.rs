//! Claims in registries: asked for when an image's manifest is first seen, and again when a launch lacks one.
//!
//! containerd pulls no referrers and keeps no login for us, so we ask the registry that containerd itself noted as the
//! source of the manifest (`containerd.io/distribution.source.<host>`), through the mirrors of its `hosts.toml`, with
//! logins of our own. One thread asks, in order; a registry that is slow or gone delays a Prepare by a few seconds at
//! most, and only that of an image that has no claim yet.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hallmark_registry::{Keychain, Repository, Settings};
use hallmark_seal::Claim;
use hallmark_trust::config::{RegistryClaims, RegistryConfig};
use hallmark_trust::strict_file::{self, Readers};
use hallmark_verity::{ImageDigest, LayerDigest};
use serde::Deserialize;

use crate::error::{Error, Result};

/// containerd's note of where a blob came from; its value lists repositories.
const SOURCE_LABEL: &str = "containerd.io/distribution.source.";
/// Media types of an image's manifest.
const MANIFESTS: [&str; 2] = hallmark_seal::SUBJECT_MEDIA_TYPES;
/// Repositories that one manifest is asked for.
const MAX_SOURCES: usize = 8;
/// Manifests remembered, and manifests waiting. When there are more, all are forgotten; a launch asks again.
const MAX_KNOWN: usize = 4096;
/// How long a registry's answer counts.
const ANSWER_COUNTS: Duration = Duration::from_secs(60);
/// Bytes of a file of logins.
const MAX_LOGINS: u64 = 1 << 20;

/// For all that is asked about one manifest.
const PATIENCE: Duration = Duration::from_secs(60);

/// A manifest in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    host: String,
    repository: String,
    manifest: ImageDigest,
    /// The image's topmost layer, by which a snapshot leads here.
    top: LayerDigest,
}

/// What is asked, was asked, and is to be asked.
#[derive(Debug)]
pub(crate) struct Registries {
    config: Mutex<RegistryConfig>,
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Source>,
    asking: Option<Source>,
    /// When it was last asked.
    known: HashMap<Source, Option<Instant>>,
}

impl Registries {
    /// Nothing is asked before [`next`](Self::next) is called.
    pub(crate) fn new(config: RegistryConfig) -> Self {
        Self { config: Mutex::new(config), state: Mutex::default(), bell: Condvar::new() }
    }

    /// Asks differently from now on.
    pub(crate) fn set_config(&self, config: RegistryConfig) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }

    fn config(&self) -> RegistryConfig {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // lists of what is to be done: whole at each step
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a small blob: if it is an image's manifest that came from a registry, that is asked.
    pub(crate) fn note(&self, digest: &str, bytes: &[u8], labels: &HashMap<String, String>) {
        if self.config().claims == RegistryClaims::Ignore {
            return;
        }
        let (Some(top), Ok(manifest)) = (top_of(bytes), digest.parse()) else { return };
        let mut state = self.state();
        for (host, repository) in sources(labels).take(MAX_SOURCES) {
            let (host, repository) = (host.to_owned(), repository.to_owned());
            let source = Source { host, repository, manifest, top };
            if state.known.len() >= MAX_KNOWN {
                state.known.clear();
                state.waiting.clear();
            }
            if !state.known.contains_key(&source) {
                state.known.insert(source.clone(), None);
                state.waiting.push_back(source);
                self.bell.notify_all();
            }
        }
    }

    /// Asks again, and before all others, for the images whose topmost layer `is_top`, and waits until that is
    /// answered, but not longer than `patience`.
    pub(crate) fn ask_again(&self, is_top: impl Fn(&LayerDigest) -> bool, patience: Duration) {
        let known: HashSet<LayerDigest> = self.state().known.keys().map(|it| it.top).collect();
        let tops: HashSet<LayerDigest> = known.into_iter().filter(is_top).collect();
        let ours = |source: &Source| tops.contains(&source.top);
        let mut state = self.state();
        let State { known, waiting, .. } = &mut *state;
        for (source, asked) in known.iter_mut().filter(|(source, _)| ours(source)) {
            if asked.is_some_and(|when| when.elapsed() > ANSWER_COUNTS) {
                *asked = None;
                waiting.push_back(source.clone());
            }
        }
        waiting.make_contiguous().sort_by_key(|source| !ours(source));
        self.bell.notify_all();
        let busy = |state: &mut State| state.waiting.iter().chain(&state.asking).any(ours);
        drop(self.bell.wait_timeout_while(state, patience, busy));
    }

    /// The next source to ask; waits for one.
    pub(crate) fn next(&self) -> Source {
        let empty = |state: &mut State| state.waiting.is_empty();
        loop {
            let state = self.bell.wait_while(self.state(), empty);
            let mut state = state.unwrap_or_else(PoisonError::into_inner);
            if let Some(source) = state.waiting.pop_front() {
                state.asking = Some(source.clone());
                return source;
            }
        }
    }

    /// Says that what [`next`](Self::next) returned was asked.
    pub(crate) fn answered(&self, source: &Source) {
        let mut state = self.state();
        state.asking = None;
        if let Some(asked) = state.known.get_mut(source) {
            *asked = Some(Instant::now());
        }
        self.bell.notify_all();
    }

    /// Asks a registry. Settings and logins are read each time: they may have been changed.
    pub(crate) fn claims(&self, source: &Source) -> Result<Vec<Claim>> {
        let config = self.config();
        let keychain = match config.credentials() {
            None => Keychain::default(),
            Some(path) => {
                let bytes = strict_file::read(path, MAX_LOGINS, Readers::OwnerOnly);
                Keychain::parse(&bytes.map_err(Error::Logins)?)?
            }
        };
        let settings =
            Settings { patience: PATIENCE, hosts: config.hosts().map(PathBuf::from), keychain };
        let repository = Repository::open(&source.host, &source.repository, &settings)?;
        Ok(repository.claims(&source.manifest)?)
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}@{}", self.host, self.repository, self.manifest)
    }
}

/// Registries and repositories of a blob, as containerd noted them.
fn sources(labels: &HashMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    labels
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix(SOURCE_LABEL)?, value.as_str())))
        .flat_map(|(host, list)| list.split(',').map(move |repository| (host, repository)))
}

/// The topmost layer of an image's manifest; `None` for what is none.
fn top_of(bytes: &[u8]) -> Option<LayerDigest> {
    #[derive(Deserialize)]
    struct Descriptor {
        digest: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Manifest {
        media_type: Option<String>,
        artifact_type: Option<String>,
        #[serde(rename = "config")]
        _config: serde::de::IgnoredAny,
        layers: Vec<Descriptor>,
    }
    let Manifest { media_type, artifact_type, _config, layers } =
        serde_json::from_slice(bytes).ok()?;
    let of_image = media_type.is_none_or(|it| MANIFESTS.contains(&it.as_str()));
    let top = layers.last().filter(|_| of_image && artifact_type.is_none())?;
    top.digest.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> String {
        let top = LayerDigest::of(b"top");
        format!(r#"{{"schemaVersion":2,"config":{{}},"layers":[{{"digest":"{top}"}}]}}"#)
    }

    fn note(registries: &Registries, bytes: &str, labels: &[(&str, &str)]) {
        let labels: HashMap<String, String> =
            labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let digest = ImageDigest::of(bytes.as_bytes()).to_string();
        registries.note(&digest, bytes.as_bytes(), &labels);
    }

    #[test]
    fn only_an_images_manifest_with_a_source_is_asked_for_and_once() {
        let registries = Registries::new(RegistryConfig::default());
        let source = ("containerd.io/distribution.source.r.example", "a/b,c");
        note(&registries, &manifest(), &[]);
        note(&registries, "{}", &[source]);
        note(&registries, "no JSON", &[source]);
        note(
            &registries,
            &manifest().replace("\"config\"", "\"artifactType\":\"x\",\"config\""),
            &[source],
        );
        assert!(registries.state().waiting.is_empty());
        note(&registries, &manifest(), &[source, ("other", "x")]);
        note(&registries, &manifest(), &[source]);
        let asked = [registries.next(), registries.next()];
        assert_eq!(asked.map(|source| source.repository), ["a/b", "c"]);
        assert!(registries.state().waiting.is_empty());
        let off = RegistryConfig { claims: RegistryClaims::Ignore, ..RegistryConfig::default() };
        let off = Registries::new(off);
        note(&off, &manifest(), &[source]);
        assert!(off.state().waiting.is_empty());
    }

    #[test]
    fn waiting_ends_with_the_answer_or_with_patience() {
        let registries = Registries::new(RegistryConfig::default());
        note(&registries, &manifest(), &[("containerd.io/distribution.source.r.example", "a")]);
        let started = Instant::now();
        let is_top = |top: &LayerDigest| *top == LayerDigest::of(b"top");
        registries.ask_again(is_top, Duration::from_millis(50));
        assert!(started.elapsed() >= Duration::from_millis(50));
        registries.ask_again(|_| false, Duration::from_secs(60));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let source = registries.next();
                std::thread::sleep(Duration::from_millis(50));
                registries.answered(&source);
            });
            registries.ask_again(is_top, Duration::from_secs(60));
        });
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}
