//! `hallmark keygen`: a key and a certificate to sign images with.
//!
//! For tests and first steps; a production key lives in an HSM or a KMS and is certified by the CA of the place.
//! Existing files are never replaced, and what was written is removed again when a later file cannot be.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::certificate::{Algorithm, Key, Request, Role};
use crate::error::{Error, Result};

/// Make a key and a certificate to sign with.
///
/// Writes key.pem and cert.pem: a certificate that signs itself, fit for UEFI's db and the kernel's keyrings. With
/// --ca a new CA signs it, and ca.pem and ca-key.pem are written as well.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// directory for the files; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// common name of the signer
    #[arg(long, value_name = "NAME", default_value = "hallmark signer")]
    cn: String,
    /// kind of key
    #[arg(long, value_enum, default_value = "rsa2048")]
    algorithm: Algorithm,
    /// days the certificates are valid
    #[arg(long, default_value_t = 1095, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// make a CA too and let it sign
    #[arg(long)]
    ca: bool,
}

/// Runs the command; the names of the files go to `out`.
pub(crate) fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<()> {
    let directory = &arguments.out;
    let key = Key::generate(arguments.algorithm)?;
    let ca = arguments.ca.then(|| Key::generate(arguments.algorithm)).transpose()?;
    let ca_name: String = format!("{} CA", arguments.cn).chars().take(64).collect();
    let request = |common_name, role, key, issuer| Request {
        common_name,
        role,
        days: arguments.days,
        key,
        issuer,
    };
    let issuer = ca.as_ref().map(|ca| (ca, ca_name.as_str()));
    let certificate = request(&arguments.cn, Role::Signer, &key, issuer).certificate()?;
    let mut files = vec![
        ("key.pem", 0o600, pem("PRIVATE KEY", key.pkcs8())),
        ("cert.pem", 0o644, pem("CERTIFICATE", &certificate)),
    ];
    if let Some(ca) = &ca {
        let certificate = request(&ca_name, Role::Authority, ca, None).certificate()?;
        files.push(("ca-key.pem", 0o600, pem("PRIVATE KEY", ca.pkcs8())));
        files.push(("ca.pem", 0o644, pem("CERTIFICATE", &certificate)));
    }
    fs::create_dir_all(directory).map_err(Error::file("make", directory))?;
    let mut written = Written(Vec::new());
    for (name, mode, text) in &files {
        let path = directory.join(name);
        write_new(&path, *mode, text, &mut written)?;
    }
    for path in std::mem::take(&mut written.0) {
        writeln!(out, "{}", path.display()).map_err(Error::Output)?;
    }
    Ok(())
}

/// Files that are removed again unless every one could be written.
struct Written(Vec<PathBuf>);

impl Drop for Written {
    fn drop(&mut self) {
        for path in &self.0 {
            // the error that led here is the one to report
            drop(fs::remove_file(path));
        }
    }
}

fn write_new(path: &Path, mode: u32, text: &str, written: &mut Written) -> Result<()> {
    let options = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = options.map_err(Error::file("make a new file", path))?;
    written.0.push(path.to_owned());
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(Error::file("write", path))
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for (index, character) in body.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}
