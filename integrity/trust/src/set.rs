//! The trust set: keys, revocations and the IPE policy, all of which must agree to a launch.
//!
//! Where the kernel has an active IPE policy, that one counts, as read from securityfs; elsewhere a
//! policy file signed by one of the node's keys, in the same language. Under
//! `exec_control = "ipe"` the active policy must pin the node's configuration, keys and revocation
//! list by digest: plain files that root may change would otherwise undo what the kernel keeps.
//! What a policy does pin must be so whatever the configuration says, because the configuration is
//! one of the pinned files: a changed one must not say that pins do not matter.

use hallmark_seal::{Keyring, Revocations, Timestamp, open_policy};
use sha2::{Digest as _, Sha256};

use crate::config::{LoadedConfig, NodeConfig, TrustConfig};
use crate::exec_control::{self, Kernel};
use crate::ipe::{ParseError, Pins, Policy};
use crate::levels::ExecControl;
use crate::policy_versions::{self, VersionError};
use crate::strict_file::{self, Readers, StrictFileError};

/// The longest file of certificates or revocations that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// Whom and what the node trusts at this moment.
#[derive(Debug)]
pub struct TrustSet {
    pub(crate) keyring: Keyring,
    pub(crate) revocations: Revocations,
    pub(crate) policy: Option<TrustedPolicy>,
    pub(crate) exec_control: ExecControl,
    pub(crate) weakness: Option<String>,
    pub(crate) unpinned: Vec<Unpinned>,
}

/// The node's certificates and revocations alone: enough to tell which claims may ever count, not to launch.
#[derive(Debug)]
pub struct Keys {
    /// The node's certificates.
    pub keyring: Keyring,
    /// What no longer counts.
    pub revocations: Revocations,
    keys_sha256: [u8; 32],
    revocations_sha256: Option<[u8; 32]>,
}

impl Keys {
    /// Reads both files.
    ///
    /// # Errors
    /// A file that is missing, not root's alone or malformed.
    pub fn load(trust: &TrustConfig) -> Result<Self, TrustError> {
        let of = |path: &std::path::Path| {
            let file = path.display().to_string();
            move |source| TrustError::Seal { file, source }
        };
        let keys = strict_file::read(&trust.keys, LIMIT, Readers::Any)?;
        let keyring = Keyring::from_pem(&keys).map_err(of(&trust.keys))?;
        let list = trust.revocations().map(|path| strict_file::read(path, LIMIT, Readers::Any));
        let list = list.transpose()?;
        let revocations = match &list {
            Some(bytes) => Revocations::parse(bytes).map_err(of(&trust.revocations))?,
            None => Revocations::default(),
        };
        let keys_sha256 = Sha256::digest(&keys).into();
        let revocations_sha256 = list.as_deref().map(|bytes| Sha256::digest(bytes).into());
        Ok(Self { keyring, revocations, keys_sha256, revocations_sha256 })
    }
}

/// A policy and who vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedPolicy {
    /// What it says.
    pub policy: Policy,
    /// Where it comes from.
    pub source: PolicySource,
}

/// Who vouches for a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicySource {
    /// The kernel: it is the active one.
    Kernel,
    /// A key of the node: it is a signed file.
    SignedFile,
}

/// A trust file that the active policy does not pin as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpinned {
    /// The pin's name: `config`, `keys` or `revocations`.
    pub file: &'static str,
    /// The SHA-256 of the file, or that there is none.
    pub found: String,
    /// The SHA-256 that the policy pins, or that a pin is missing.
    pub expected: String,
    /// Whether the policy pins the file at all; if so it binds whatever the configuration says.
    pub pinned: bool,
}

/// Why there is no trust set.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file is not one that only root can have written, or could not be read.
    #[error("trust set")]
    File(#[from] StrictFileError),
    /// The kernel has IPE, or may have, and what it enforces cannot be read.
    #[error("trust set: the kernel's own policy is in doubt: {0}")]
    Doubt(String),
    /// Keys, revocations or the policy's signature do not count.
    #[error("trust set: {file}")]
    Seal {
        /// The file.
        file: String,
        /// Why.
        source: hallmark_seal::Error,
    },
    /// The signed policy is none that the kernel would take.
    #[error("trust set: {file}")]
    Policy {
        /// The file.
        file: String,
        /// Why.
        source: ParseError,
    },
    /// The signed policy is older than one that was here, or nobody can tell.
    #[error("trust set: {file}")]
    Version {
        /// The policy file.
        file: String,
        /// Why.
        source: VersionError,
    },
}

impl TrustSet {
    /// Reads everything the node's configuration names, and asks the kernel about IPE.
    ///
    /// # Errors
    /// A file that is missing, not root's alone or malformed; a policy file may be missing, which
    /// the gate then refuses.
    pub fn load(loaded: &LoadedConfig, now: Timestamp) -> Result<Self, TrustError> {
        Self::under(exec_control::read(), loaded, now)
    }

    /// The same under a kernel that was asked before.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn under(
        kernel: Kernel,
        loaded: &LoadedConfig,
        now: Timestamp,
    ) -> Result<Self, TrustError> {
        if let Some(doubt) = kernel.doubt() {
            return Err(TrustError::Doubt(crate::chain(doubt)));
        }
        let Keys { keyring, revocations, keys_sha256, revocations_sha256 } =
            Keys::load(&loaded.config.trust)?;
        let exec_control = kernel.exec_control();
        let weakness = kernel.weakness().map(|weakness| crate::chain(weakness));
        let files = [
            ("config", loaded.sha256),
            ("keys", Some(keys_sha256)),
            ("revocations", revocations_sha256),
        ];
        let pins = kernel.pins();
        let policy = match kernel.into_active() {
            Some(active) => {
                Some(TrustedPolicy { policy: active.policy, source: PolicySource::Kernel })
            }
            None => signed_file(&loaded.config, &keyring, &revocations, now)?,
        };
        let unpinned = unpinned(&files, &pins);
        Ok(Self { keyring, revocations, policy, exec_control, weakness, unpinned })
    }

    /// Remembers the version of a policy that is a signed file, so that no older one counts from now on.
    ///
    /// # Errors
    /// [`TrustError::Version`] if it cannot be written down.
    pub fn remember(&self, config: &NodeConfig) -> Result<(), TrustError> {
        match &self.policy {
            Some(TrustedPolicy { policy, source: PolicySource::SignedFile }) => {
                let file = config.trust.policy.display().to_string();
                policy_versions::remember(&policy_versions::path(config), policy)
                    .map_err(|source| TrustError::Version { file, source })
            }
            _ => Ok(()),
        }
    }

    /// The node's certificates.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// What no longer counts.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// The policy, if there is one.
    pub fn policy(&self) -> Option<&TrustedPolicy> {
        self.policy.as_ref()
    }

    /// Who controls execution on this node.
    pub fn exec_control(&self) -> ExecControl {
        self.exec_control
    }

    /// Why exec control is no better.
    pub fn weakness(&self) -> Option<&str> {
        self.weakness.as_deref()
    }

    /// The trust files that the active policy does not pin as they are.
    pub fn unpinned(&self) -> &[Unpinned] {
        &self.unpinned
    }
}

fn signed_file(
    config: &NodeConfig,
    keyring: &Keyring,
    revocations: &Revocations,
    now: Timestamp,
) -> Result<Option<TrustedPolicy>, TrustError> {
    let path = &config.trust.policy;
    let limit = crate::ipe::MAX_SIGNED_LEN as u64;
    let der = match strict_file::read(path, limit, Readers::Any) {
        Err(StrictFileError::Missing { .. }) => return Ok(None),
        read => read?,
    };
    let file = || path.display().to_string();
    let text = open_policy(&der, keyring, revocations, now)
        .map_err(|source| TrustError::Seal { file: file(), source })?;
    let policy =
        Policy::parse(&text).map_err(|source| TrustError::Policy { file: file(), source })?;
    policy_versions::admit(&policy_versions::path(config), &policy)
        .map_err(|source| TrustError::Version { file: file(), source })?;
    Ok(Some(TrustedPolicy { policy, source: PolicySource::SignedFile }))
}

fn unpinned(files: &[(&'static str, Option<[u8; 32]>); 3], pins: &Pins) -> Vec<Unpinned> {
    let shown = |digest: Option<[u8; 32]>, none: &str| {
        digest.map_or_else(|| none.to_owned(), |digest| format!("sha256:{}", hex::encode(digest)))
    };
    let files = files.iter().zip([pins.config, pins.keys, pins.revocations]);
    files
        .filter(|((_, found), pinned)| found != pinned)
        .map(|((file, found), pinned)| Unpinned {
            file,
            found: shown(*found, "missing"),
            expected: shown(pinned, "a pin"),
            pinned: pinned.is_some(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Signer, is_root};
    use std::fs;
    use std::os::fd::AsFd;
    use std::path::Path;

    const POLICY: &str = "policy_name=node policy_version=1.0.0\nDEFAULT action=ALLOW\n\
                          DEFAULT op=EXECUTE action=DENY\n";

    /// A node whose files are below `dir`; `pins` go into the active policy, if there is one.
    fn load(dir: &Path, pins: Option<&str>) -> Result<TrustSet, TrustError> {
        let ipe = dir.join("ipe");
        let kernel = match pins {
            Some(pins) => {
                fs::create_dir_all(ipe.join("policies/node")).unwrap();
                fs::write(ipe.join("enforce"), "1").unwrap();
                fs::write(ipe.join("policies/node/active"), "1").unwrap();
                fs::write(ipe.join("policies/node/policy"), format!("{pins}{POLICY}")).unwrap();
                exec_control::examine(fs::File::open(&ipe).unwrap().as_fd()).unwrap()
            }
            None => exec_control::read(),
        };
        let config = dir.join("config.toml");
        let loaded = NodeConfig::load(&config).unwrap();
        TrustSet::under(kernel, &loaded, Timestamp::from(std::time::SystemTime::now()))
    }

    fn node(dir: &Path) {
        let shown = dir.display();
        let config = format!(
            "[trust]\nkeys = \"{shown}/keys.pem\"\nrevocations = \"{shown}/revoked.toml\"\n\
             policy = \"{shown}/policy.p7b\"\n[snapshotter]\nroot = \"{shown}/lib\"\n"
        );
        fs::write(dir.join("config.toml"), config).unwrap();
        fs::write(dir.join("keys.pem"), &Signer::ours().certificate).unwrap();
        fs::write(dir.join("revoked.toml"), "version = 1\n").unwrap();
    }

    fn pin(dir: &Path, name: &str, file: &str) -> String {
        let digest = Sha256::digest(fs::read(dir.join(file)).unwrap());
        format!("# hallmark-{name} sha256:{}\n", hex::encode(digest))
    }

    #[test]
    fn the_active_policy_must_pin_every_trust_file() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        node(dir);
        let pins =
            [("config", "config.toml"), ("keys", "keys.pem"), ("revocations", "revoked.toml")];
        let pins = pins.map(|(name, file)| pin(dir, name, file)).concat();
        let trust = load(dir, Some(&pins)).unwrap();
        assert_eq!(trust.unpinned(), []);
        assert_eq!(trust.exec_control(), ExecControl::Ipe);
        assert_eq!(trust.policy().unwrap().source, PolicySource::Kernel);

        fs::write(dir.join("revoked.toml"), "version = 1\n\n").unwrap();
        let trust = load(dir, Some(&pins)).unwrap();
        assert_eq!(
            trust.unpinned().iter().map(|file| file.file).collect::<Vec<_>>(),
            ["revocations"]
        );
        let trust = load(dir, Some("")).unwrap();
        assert_eq!(trust.unpinned().len(), 3);
        assert!(trust.unpinned().iter().all(|file| !file.pinned));
        fs::write(dir.join("revoked.toml"), "version = 1\n").unwrap();
        assert_eq!(load(dir, Some(&pins)).unwrap().unpinned(), []);
    }

    #[test]
    fn elsewhere_a_signed_file_is_the_policy() {
        if !is_root() || exec_control::read().active().is_some() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        node(dir);
        assert!(load(dir, None).unwrap().policy().is_none());
        let sign = |signer: &Signer, text: &str| {
            let der = signer.key().sign_policy(text.as_bytes()).unwrap();
            fs::write(dir.join("policy.p7b"), der).unwrap();
        };
        sign(Signer::ours(), POLICY);
        let trust = load(dir, None).unwrap();
        assert_eq!(trust.policy().unwrap().source, PolicySource::SignedFile);
        assert_eq!(trust.exec_control(), ExecControl::LaunchOnly);
        sign(Signer::other(), POLICY);
        assert!(matches!(load(dir, None), Err(TrustError::Seal { .. })));
        sign(Signer::ours(), "op=EXECUTE");
        assert!(matches!(load(dir, None), Err(TrustError::Policy { .. })));
        let newer = POLICY.replace("1.0.0", "1.0.1");
        sign(Signer::ours(), &newer);
        let config = NodeConfig::load(&dir.join("config.toml")).unwrap().config;
        load(dir, None).unwrap().remember(&config).unwrap();
        sign(Signer::ours(), POLICY);
        let error = load(dir, None).unwrap_err();
        assert!(crate::chain(&error).contains("version 1.0.0, expected 1.0.1"), "{error}");
        sign(Signer::ours(), &newer);
        load(dir, None).unwrap();
        fs::remove_file(dir.join("keys.pem")).unwrap();
        assert!(matches!(load(dir, None), Err(TrustError::File(_))));
    }
}
