//! Debian packages: installed on this machine, or unpacked from a newer suite of the same mirror.
//!
//! No mirror is named here: the machine's own apt sources say where packages come from, and the
//! sources of another suite are those with another suite name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::Run;

/// The suite whose kernel, QEMU and EROFS tools are used, whatever the machine runs.
pub(crate) const SUITE: &str = "trixie";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What this machine needs from its own suite, for every step.
const HOST_PACKAGES: &[&str] = &[
    "attr",
    "busybox-static",
    "bzip2",
    "cpio",
    "cryptsetup-bin",
    "dmsetup",
    "e2fsprogs",
    "erofs-utils",
    "gcc",
    "iproute2",
    "iptables",
    "libc6-dev",
    "libseccomp-dev",
    "make",
    "mmdebstrap",
    "musl-tools",
    "openssl",
    "pkg-config",
    "podman",
    "strace",
    "tar",
    "tini",
    "util-linux",
    "xz-utils",
    "zstd",
];

/// Installs what is missing of the packages this machine needs.
pub(crate) fn install(log: &Path) -> Result<()> {
    let missing: Vec<&&str> = HOST_PACKAGES.iter().filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    crate::say(&format!("installing {} packages", missing.len()));
    apt().arg("update").logged(log)?;
    apt().args(["install", "--no-install-recommends"]).args(missing).logged(log)
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-y"]);
    command
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .ran()
        .is_ok_and(|ran| ran.stdout == "installed")
}

/// One-line sources of `suite` and its updates at the machine's own mirror.
pub(crate) fn sources(suite: &str) -> Result<String> {
    let mut texts = vec![(PathBuf::from("/etc/apt/sources.list"), "list".to_owned())];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        for entry in entries {
            let path = entry?.path();
            let kind = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_owned();
            texts.push((path, kind));
        }
    }
    for (path, kind) in texts {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let found = match kind.as_str() {
            "sources" => mirror_of_deb822(&text),
            "list" => mirror_of_lines(&text),
            _ => None,
        };
        if let Some(uri) = found {
            return Ok(format!(
                "deb [signed-by={KEYRING}] {uri} {suite} main\n\
                 deb [signed-by={KEYRING}] {uri} {suite}-updates main\n"
            ));
        }
    }
    bail!("/etc/apt: no source whose address ends in /debian")
}

fn mirror_of_deb822(text: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("URIs:"))
        .flat_map(str::split_whitespace)
        .find(|uri| is_mirror(uri))
        .map(str::to_owned)
}

fn mirror_of_lines(text: &str) -> Option<String> {
    text.lines()
        .filter(|line| line.trim_start().starts_with("deb "))
        .flat_map(str::split_whitespace)
        .find(|uri| is_mirror(uri))
        .map(str::to_owned)
}

fn is_mirror(uri: &str) -> bool {
    uri.contains("://") && uri.trim_end_matches('/').ends_with("/debian")
}

/// Downloads the source of a package of [`SUITE`] into `dir`, unpacking nothing.
pub(crate) fn download_source(package: &str, dir: &Path, log: &Path) -> Result<()> {
    let lists = dir.join("lists");
    fs::create_dir_all(lists.join("partial"))?;
    let file = dir.join("sources.list");
    fs::write(&file, sources(SUITE)?.replace("deb [", "deb-src ["))?;
    let private = [
        format!("Dir::Etc::sourcelist={}", file.display()),
        "Dir::Etc::sourceparts=-".to_owned(),
        format!("Dir::State::lists={}", lists.display()),
    ];
    for what in [&["update"][..], &["source", "--download-only", package]] {
        let mut apt = apt();
        apt.current_dir(dir);
        for option in &private {
            apt.args(["-o", option]);
        }
        apt.args(what).logged(log)?;
    }
    Ok(())
}

/// How much of the packages is done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Variant {
    /// Files unpacked, nothing configured: programs to run through their own loader.
    Extract,
    /// The essential packages and what is included, configured.
    Essential,
    /// The same with apt.
    Minimal,
}

/// One `mmdebstrap` run of [`SUITE`] into a directory or, by its suffix, a tar.
pub(crate) fn bootstrap(
    variant: Variant,
    packages: &[&str],
    target: &Path,
    log: &Path,
) -> Result<()> {
    let sources_file = target.with_extension("list");
    fs::write(&sources_file, sources(SUITE)?)?;
    let name = match variant {
        Variant::Extract => "extract",
        Variant::Essential => "essential",
        Variant::Minimal => "minbase",
    };
    let mut command = Command::new("mmdebstrap");
    command
        .env("SOURCE_DATE_EPOCH", "1764000000")
        .args(["--quiet", "--mode=root"])
        .arg(format!("--variant={name}"))
        .arg("--aptopt=Apt::Install-Recommends \"false\"");
    for area in ["man", "doc", "locale", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{area}/*"));
    }
    if !packages.is_empty() {
        command.arg(format!("--include={}", packages.join(",")));
    }
    command.arg(SUITE).arg(target).arg(&sources_file).logged(log)?;
    fs::remove_file(&sources_file).context("remove the sources")
}

/// Writes `<dir>/bin/<program>` scripts that start programs of `<dir>/root`, an extracted root,
/// through its own loader: its libraries are newer than the machine's.
pub(crate) fn wrap(dir: &Path, programs: &[(&str, &str)]) -> Result<()> {
    for (name, path) in programs {
        let script = dir.join("bin").join(name);
        crate::files::write(
            &script,
            format!(
                "#!/bin/sh\nroot=$(cd \"$(dirname \"$0\")/../root\" && pwd)\n\
                 exec \"$root/usr/lib64/ld-linux-x86-64.so.2\" \\\n\
                 --library-path \"$root/usr/lib/x86_64-linux-gnu\" \"$root/{path}\" {} \"$@\"\n",
                if path.contains("qemu") {
                    "-L \"$root/usr/share/qemu\" -L \"$root/usr/share/seabios\" -L \"$root/usr/lib/ipxe/qemu\""
                } else {
                    ""
                }
            ),
        )?;
        crate::files::set_mode(&script, 0o755)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_in_both_forms() {
        let deb822 = "Types: deb\nURIs: http://m.test/debian\nSuites: bookworm\n";
        assert_eq!(mirror_of_deb822(deb822).as_deref(), Some("http://m.test/debian"));
        let lines = "# deb http://no.test/debian x main\n\
                     deb http://s.test/debian-security x main\n\
                     deb [arch=amd64] http://m.test/debian/ x main\n";
        assert_eq!(mirror_of_lines(lines).as_deref(), Some("http://m.test/debian/"));
        assert_eq!(mirror_of_deb822("URIs: http://m.test/debian-security\n"), None);
    }
}
