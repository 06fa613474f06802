//! The node's configuration, `/etc/hallmark/config.toml`.
//!
//! One strict TOML file with the sections `[gate]`, `[trust]` and `[snapshotter]`; every key is
//! optional and has the default of `DESIGN.md`, an unknown key is an error, a missing file means
//! every default. Nothing else configures a node: no environment variable, no option of
//! containerd's.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ipe::Pins;
use crate::levels::{Enforcement, ExecControl, Strength};
use crate::strict_file::{self, Readers, StrictFileError};

/// Where the configuration is on every node.
pub const PATH: &str = "/etc/hallmark/config.toml";

/// The longest configuration that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// A node's configuration, with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// `[gate]`: what a launch needs.
    pub gate: GateConfig,
    /// `[trust]`: whom the node trusts.
    pub trust: TrustConfig,
    /// `[snapshotter]`: where layers are kept.
    pub snapshotter: SnapshotterConfig,
    /// `[registry]`: claims in registries.
    pub registry: RegistryConfig,
}

/// `[gate]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateConfig {
    /// Whether a launch that fails is refused or only logged.
    pub mode: Enforcement,
    /// The least evidence every layer needs.
    pub minimum_evidence: Strength,
    /// The least exec control the node needs.
    pub exec_control: ExecControl,
    /// The claims directory.
    pub claims: PathBuf,
    /// JSON lines: what audit mode let pass.
    pub audit_log: PathBuf,
    /// OCI hooks that root allows under enforce.
    pub hooks: Vec<HookRule>,
}

/// A hook that root allows: which program, with which arguments, in which environment.
///
/// Whoever writes a container's specification chooses all three; a permitted program with other arguments, a
/// `LD_PRELOAD` or a `PATH` of theirs is another program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookRule {
    /// Absolute.
    pub path: PathBuf,
    /// All arguments, the program's own name first: `*` is any one, `**` any number of them.
    pub args: Vec<String>,
    /// Its whole environment: `NAME=value` as written here, `NAME` as the specification has it, if it has it.
    #[serde(default)]
    pub env: Vec<String>,
}

impl HookRule {
    /// Whether it is about this program with these arguments.
    pub fn allows(&self, path: &Path, args: &[String]) -> bool {
        self.path == path && matches(&self.args, args)
    }

    /// What it gets of the variables that the specification gives it.
    pub fn environment(&self, asked: &[String]) -> Vec<String> {
        let name = |variable: &str| variable.split('=').next().map(str::to_owned);
        let one = |entry: &String| {
            if entry.contains('=') {
                return Some(entry.clone());
            }
            // the last of several counts
            asked.iter().rev().find(|variable| name(variable).as_ref() == Some(entry)).cloned()
        };
        self.env.iter().filter_map(one).collect()
    }
}

fn matches(patterns: &[String], args: &[String]) -> bool {
    match (patterns.split_first(), args.split_first()) {
        (None, None) => true,
        (Some((pattern, rest)), _) if pattern == "**" => {
            (0..=args.len()).any(|skipped| matches(rest, args.get(skipped..).unwrap_or_default()))
        }
        (Some((pattern, rest)), Some((arg, others))) => {
            (pattern == "*" || pattern == arg) && matches(rest, others)
        }
        _ => false,
    }
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            mode: Enforcement::Enforce,
            minimum_evidence: Strength::DmVerity,
            exec_control: ExecControl::Ipe,
            claims: "/var/lib/hallmark/claims".into(),
            audit_log: "/var/log/hallmark/audit.log".into(),
            hooks: Vec::new(),
        }
    }
}

/// `[trust]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustConfig {
    /// X.509 certificates in PEM, CA and leaf.
    pub keys: PathBuf,
    /// The revocation file, empty for none.
    pub revocations: PathBuf,
    /// The signed IPE policy, read only where the kernel has no active one.
    pub policy: PathBuf,
}

impl Default for TrustConfig {
    fn default() -> Self {
        Self {
            keys: "/etc/hallmark/keys.pem".into(),
            revocations: PathBuf::new(),
            policy: "/etc/hallmark/policy.p7b".into(),
        }
    }
}

impl TrustConfig {
    /// The revocation file, if one is configured.
    pub fn revocations(&self) -> Option<&Path> {
        given(&self.revocations)
    }
}

/// `[snapshotter]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotterConfig {
    /// Layer images, writable layers and the database.
    pub root: PathBuf,
    /// Mount points and activation records; goes with a reboot.
    pub state: PathBuf,
    /// The gRPC socket.
    pub socket: PathBuf,
    /// containerd's socket.
    pub containerd: PathBuf,
    /// Whether the kernel is given a layer's signature.
    pub layer_signature: LayerSignature,
    /// Address and port that metrics are served on; empty: none.
    pub metrics: String,
    /// How log lines look.
    pub log: LogFormat,
}

impl Default for SnapshotterConfig {
    fn default() -> Self {
        Self {
            root: "/var/lib/hallmark".into(),
            state: "/run/hallmark".into(),
            socket: "/run/hallmark/hallmark.sock".into(),
            containerd: "/run/containerd/containerd.sock".into(),
            layer_signature: LayerSignature::WhenPresent,
            metrics: String::new(),
            log: LogFormat::Text,
        }
    }
}

/// How the snapshotter's log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[registry]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Whether registries are asked for claims.
    pub claims: RegistryClaims,
    /// containerd's `certs.d`; empty: no mirrors, and the system's certificates.
    pub hosts: PathBuf,
    /// Docker's `config.json` with logins, root's alone; empty: none.
    pub credentials: PathBuf,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            claims: RegistryClaims::Fetch,
            hosts: "/etc/containerd/certs.d".into(),
            credentials: PathBuf::new(),
        }
    }
}

impl RegistryConfig {
    /// containerd's `certs.d`, if one is named.
    #[must_use]
    pub fn hosts(&self) -> Option<&Path> {
        given(&self.hosts)
    }

    /// The file of logins, if one is named.
    #[must_use]
    pub fn credentials(&self) -> Option<&Path> {
        given(&self.credentials)
    }
}

/// An empty path stands for none.
fn given(path: &Path) -> Option<&Path> {
    Some(path).filter(|path| !path.as_os_str().is_empty())
}

/// Whether registries are asked for claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegistryClaims {
    /// The registry that an image was pulled from is asked for its referrers.
    Fetch,
    /// No registry is ever asked.
    Ignore,
}

/// Whether the kernel is given the PKCS#7 of a layer when it is activated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerSignature {
    /// If a claim holds one.
    WhenPresent,
    /// Always; a layer without one is not activated.
    Required,
    /// Never.
    Never,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not one that only root can have written, or could not be read.
    #[error("node configuration")]
    File(#[from] StrictFileError),
    /// It is not UTF-8.
    #[error("{path}: not UTF-8", path = path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where it stops being UTF-8.
        source: std::str::Utf8Error,
    },
    /// Not TOML, an unknown key or a value out of range.
    #[error("node configuration: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A path that is not absolute.
    #[error("node configuration: {key} = \"{found}\", expected an absolute path", found = found.display())]
    NotAbsolute {
        /// The key, with its section.
        key: &'static str,
        /// The value.
        found: PathBuf,
    },
}

/// A configuration and the digest by which a policy pins it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedConfig {
    /// What it says.
    pub config: NodeConfig,
    /// SHA-256 of the file's bytes, `None` if there is no file.
    pub sha256: Option<[u8; 32]>,
}

impl LoadedConfig {
    /// Whether the active policy pins another configuration than this one.
    ///
    /// Then nothing in it counts, its `mode` least of all.
    pub fn contradicts(&self, pins: &Pins) -> bool {
        pins.config.is_some() && pins.config != self.sha256
    }
}

impl NodeConfig {
    /// Reads a configuration's text.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] and [`ConfigError::NotAbsolute`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        for (key, path) in config.paths() {
            if !path.is_absolute() {
                return Err(ConfigError::NotAbsolute { key, found: path.to_owned() });
            }
        }
        Ok(config)
    }

    /// Reads a configuration file; a file that is not there means every default.
    ///
    /// # Errors
    /// The file is not root's alone, or what [`parse`](Self::parse) refuses.
    pub fn load(path: &Path) -> Result<LoadedConfig, ConfigError> {
        let bytes = match strict_file::read(path, LIMIT, Readers::Any) {
            Err(StrictFileError::Missing { .. }) => {
                return Ok(LoadedConfig { config: Self::default(), sha256: None });
            }
            read => read?,
        };
        let text = std::str::from_utf8(&bytes)
            .map_err(|source| ConfigError::NotUtf8 { path: path.to_owned(), source })?;
        let sha256 = Some(Sha256::digest(&bytes).into());
        Ok(LoadedConfig { config: Self::parse(text)?, sha256 })
    }

    /// The configuration with every default, as TOML: what `--print-config` shows.
    ///
    /// # Errors
    /// A path that is not UTF-8, which no parsed configuration has.
    pub fn render(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    fn paths(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let Self { gate, trust, snapshotter, registry } = self;
        let single = [
            ("gate.claims", gate.claims.as_path()),
            ("gate.audit_log", &gate.audit_log),
            ("trust.keys", &trust.keys),
            ("trust.policy", &trust.policy),
            ("snapshotter.root", &snapshotter.root),
            ("snapshotter.state", &snapshotter.state),
            ("snapshotter.socket", &snapshotter.socket),
            ("snapshotter.containerd", &snapshotter.containerd),
        ];
        let hooks = gate.hooks.iter().map(|hook| ("gate.hooks", hook.path.as_path()));
        let revocations = trust.revocations().map(|path| ("trust.revocations", path));
        let asked = [
            ("registry.hosts", registry.hosts()),
            ("registry.credentials", registry.credentials()),
        ];
        let asked = asked.into_iter().filter_map(|(key, path)| Some((key, path?)));
        single.into_iter().chain(hooks).chain(revocations).chain(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The block of DESIGN.md, so that the two cannot drift apart.
    fn documented() -> String {
        let design = include_str!("../../../DESIGN.md");
        let start = design.find("[gate]\n").unwrap();
        let end = start + design[start..].find("```").unwrap();
        design[start..end].to_owned()
    }

    #[test]
    fn the_documented_file_is_every_default() {
        assert_eq!(NodeConfig::parse(&documented()).unwrap(), NodeConfig::default());
        assert_eq!(NodeConfig::parse("").unwrap(), NodeConfig::default());
    }

    #[test]
    fn what_is_rendered_parses_to_the_same() {
        let text = "[gate]\nmode = \"audit\"\nminimum_evidence = \"dm-verity+signature\"\n\
                    exec_control = \"launch-only\"\n\
                    hooks = [{path = \"/usr/bin/hook\", args = [\"hook\", \"**\"]}]\n\
                    [trust]\nrevocations = \"/etc/hallmark/revoked.toml\"\n\
                    [snapshotter]\nlayer_signature = \"required\"\n";
        let config = NodeConfig::parse(text).unwrap();
        assert_eq!(config.gate.mode, Enforcement::Audit);
        assert_eq!(config.gate.minimum_evidence, Strength::DmVeritySigned);
        assert_eq!(config.gate.exec_control, ExecControl::LaunchOnly);
        assert_eq!(config.snapshotter.layer_signature, LayerSignature::Required);
        assert_eq!(config.trust.revocations(), Some(Path::new("/etc/hallmark/revoked.toml")));
        for config in [config, NodeConfig::default()] {
            assert_eq!(NodeConfig::parse(&config.render().unwrap()).unwrap(), config);
        }
    }

    #[test]
    fn unknown_keys_and_values_are_refused() {
        for text in [
            "mode = \"audit\"",
            "[gate]\nmodus = \"audit\"",
            "[gate]\nmode = \"off\"",
            "[gate]\nminimum_evidence = \"none\"",
            "[gate]\nminimum_evidence = \"dm-verity-signed\"",
            "[gate]\nexec_control = \"selinux\"",
            "[gate]\nhooks = \"/x\"",
            "[gate]\nhooks = [\"/x\"]",
            "[gate]\nhooks = [{path = \"/x\"}]",
            "[runtime]\n",
            "[snapshotter]\nlayer_signature = true",
            "[gate",
        ] {
            assert!(matches!(NodeConfig::parse(text), Err(ConfigError::Syntax(_))), "{text}");
        }
        for (text, key) in [
            ("[gate]\nclaims = \"claims\"", "gate.claims"),
            ("[gate]\nhooks = [{path = \"hook\", args = []}]", "gate.hooks"),
            ("[trust]\nkeys = \"\"", "trust.keys"),
            ("[trust]\nrevocations = \"x\"", "trust.revocations"),
        ] {
            let error = NodeConfig::parse(text).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn a_hook_is_its_program_its_arguments_and_its_environment() {
        let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let rule = |args: &[&str]| HookRule {
            path: "/h".into(),
            args: text(args),
            env: text(&["PATH=/sbin", "HOME", "ABSENT"]),
        };
        for (pattern, args, expected) in [
            (&["h", "*", "c"][..], &["h", "b", "c"][..], true),
            (&["h", "*", "c"], &["h", "c"], false),
            (&["**", "run", "*"], &["h", "--a", "run", "x"], true),
            (&["**", "run", "*"], &["h", "run", "x", "y"], false),
            (&["**"], &[], true),
            (&[], &[], true),
            (&["h"], &["h", "more"], false),
            (&["h"], &["H"], false),
        ] {
            let found = rule(pattern).allows(Path::new("/h"), &text(args));
            assert_eq!(found, expected, "{pattern:?} {args:?}");
        }
        assert!(!rule(&["**"]).allows(Path::new("/other"), &[]));
        let asked = text(&["PATH=/evil", "LD_PRELOAD=/evil.so", "HOME=/a", "HOME=/b", "HOMER=c"]);
        assert_eq!(rule(&[]).environment(&asked), ["PATH=/sbin", "HOME=/b"]);
    }

    #[test]
    fn loading_wants_roots_file_and_takes_its_digest() {
        if !crate::testing::is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let none = NodeConfig::load(&path).unwrap();
        assert_eq!(none, LoadedConfig { config: NodeConfig::default(), sha256: None });
        std::fs::write(&path, "[gate]\nmode = \"audit\"\n").unwrap();
        let loaded = NodeConfig::load(&path).unwrap();
        assert_eq!(loaded.config.gate.mode, Enforcement::Audit);
        let digest: [u8; 32] = Sha256::digest("[gate]\nmode = \"audit\"\n").into();
        assert_eq!(loaded.sha256, Some(digest));
        let pins = |config| Pins { config, ..Pins::default() };
        for (loaded, pinned, contradicts) in [
            (&loaded, None, false),
            (&loaded, Some(digest), false),
            (&loaded, Some([0; 32]), true),
            (&none, None, false),
            (&none, Some(digest), true),
        ] {
            assert_eq!(loaded.contradicts(&pins(pinned)), contradicts);
        }
        std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
        assert!(matches!(NodeConfig::load(&path), Err(ConfigError::File(_))));
    }
}
