//! What a node trusts: keys, policies and configurations, made with the kit and put into
//! `/etc/hallmark` when a node starts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{is_there, sha256};
use crate::files;
use crate::kit::Kit;
use crate::signing::Key;
use crate::table::Site;

/// How a node is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    /// Refuses.
    Enforce,
    /// Lets pass, and writes down what would have been refused.
    Audit,
    /// Enforces, with a policy that does not deny execution by default.
    OpenPolicy,
}

impl Setting {
    const ALL: [Self; 3] = [Self::Enforce, Self::Audit, Self::OpenPolicy];

    fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
            Self::OpenPolicy => "open",
        }
    }

    fn mode(self) -> &'static str {
        match self {
            Self::Enforce | Self::OpenPolicy => "enforce",
            Self::Audit => "audit",
        }
    }
}

impl Site {
    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Guest => "guest",
        }
    }

    /// The least of evidence and of exec control that its nodes ask for. In the guest the policy
    /// asks for a layer signature besides.
    fn strength(self) -> (&'static str, &'static str) {
        match self {
            Self::Host => ("rehashed", "launch-only"),
            Self::Guest => ("dm-verity", "ipe"),
        }
    }
}

/// Writes keys, configurations and signed policies for both sites into the kit.
///
/// `runs_at` is where the kit will be on each site, since the configuration names nerdctl, which
/// is an OCI hook of every container that nerdctl makes.
pub(crate) fn make(kit: &Kit, key: &Key, runs_at: &dyn Fn(Site) -> PathBuf) -> Result<()> {
    fs::copy(&key.certificate, kit.trust("keys.pem"))?;
    let keys = sha256(fs::read(kit.trust("keys.pem"))?);
    for site in [Site::Host, Site::Guest] {
        for setting in Setting::ALL {
            let name = format!("{}-{}", site.name(), setting.name());
            let config = config(site, setting, &runs_at(site).join("bin/nerdctl"));
            let text = policy(setting, &sha256(&config), &keys);
            fs::write(kit.trust(&format!("{name}.toml")), config)?;
            fs::write(kit.trust(&format!("{name}.policy")), text)?;
            let signed = kit.trust(&format!("{name}.p7b"));
            key.sign_policy(&kit.trust(&format!("{name}.policy")), &signed)?;
        }
    }
    Ok(())
}

fn config(site: Site, setting: Setting, hook: &Path) -> String {
    let (evidence, exec_control) = site.strength();
    format!(
        "[gate]\nmode = \"{}\"\nminimum_evidence = \"{evidence}\"\n\
         exec_control = \"{exec_control}\"\n\
         [[gate.hooks]]\npath = \"{hook}\"\nargs = [\"**\", \"internal\", \"oci-hook\", \"*\"]\n\
         env = [\"PATH\", \"HOME\"]\n",
        setting.mode(),
        hook = hook.display()
    )
}

fn policy(setting: Setting, config: &str, keys: &str) -> String {
    let default = if setting == Setting::OpenPolicy { "ALLOW" } else { "DENY" };
    let mut text = format!(
        "policy_name=hallmark_{} policy_version=0.0.1\n\
         # hallmark-config sha256:{config}\n# hallmark-keys sha256:{keys}\n\
         DEFAULT action=ALLOW\nDEFAULT op=EXECUTE action={default}\n",
        setting.name()
    );
    for operation in ["KMODULE", "KEXEC_IMAGE", "KEXEC_INITRAMFS", "POLICY", "X509_CERT"] {
        text.push_str(&format!("DEFAULT op={operation} action=DENY\n"));
    }
    text.push_str("op=EXECUTE dmverity_signature=TRUE action=ALLOW\n");
    text
}

/// Puts the configuration in place; in the guest also activates the policy that pins it.
pub(crate) fn install(kit: &Kit, site: Site, setting: Setting) -> Result<()> {
    let name = format!("{}-{}", site.name(), setting.name());
    let etc = Path::new("/etc/hallmark");
    fs::create_dir_all(etc)?;
    for (from, to) in [
        ("keys.pem".to_owned(), "keys.pem"),
        (format!("{name}.toml"), "config.toml"),
        (format!("{name}.p7b"), "policy.p7b"),
    ] {
        fs::copy(kit.trust(&from), etc.join(to)).with_context(|| format!("install {from}"))?;
        files::set_mode(&etc.join(to), 0o644)?;
    }
    match site {
        Site::Host => Ok(()),
        Site::Guest => activate(kit, &name, setting),
    }
}

/// Puts claims where nodes keep them, if there are any.
pub(crate) fn install_claims(from: &Path) -> Result<()> {
    let to = Path::new("/var/lib/hallmark/claims");
    if !is_there(from) {
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

fn activate(kit: &Kit, file: &str, setting: Setting) -> Result<()> {
    let ipe = Path::new("/sys/kernel/security/ipe");
    let loaded = ipe.join("policies").join(format!("hallmark_{}", setting.name()));
    if !is_there(&loaded) {
        let signed = fs::read(kit.trust(&format!("{file}.p7b")))?;
        write_once(&ipe.join("new_policy"), &signed)?;
    }
    write_once(&loaded.join("active"), b"1")?;
    write_once(&ipe.join("enforce"), b"1")
}

/// One write(2): the kernel takes a policy whole.
fn write_once(file: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let mut open = fs::OpenOptions::new()
        .write(true)
        .open(file)
        .with_context(|| format!("open {}", file.display()))?;
    let written = open.write(bytes).with_context(|| format!("write {}", file.display()))?;
    anyhow::ensure!(written == bytes.len(), "{}: took {written} bytes", file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_open_policy_lets_everything_run() {
        let text = |setting| policy(setting, "c", "k");
        assert!(text(Setting::Enforce).contains("DEFAULT op=EXECUTE action=DENY\n"));
        assert!(text(Setting::OpenPolicy).contains("DEFAULT op=EXECUTE action=ALLOW\n"));
        assert!(!text(Setting::Enforce).contains("boot_verified"));
    }
}
