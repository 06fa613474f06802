//! `hallmark policy`: sign an IPE policy, look at what it says, check who signed it.
//!
//! Nothing is added to a policy: what is signed is the file's bytes, the form is the one securityfs takes.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Subcommand};
use hallmark_seal::{Keyring, Revocations, SigningKey, Timestamp, open_policy};
use hallmark_trust::ipe::{Operation, Pins, Policy};

use crate::error::{Error, Result};
use crate::replace::replace;

/// Sign, check and show IPE policies.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Sign a policy: write the PKCS#7 that the kernel loads.
    Sign(Sign),
    /// Check that a policy parses as the kernel parses it, and what it lets unverified code do.
    Check(Check),
    /// Check a signed policy under certificates, and print its text.
    Show(Show),
}

/// Arguments of `policy sign`.
#[derive(Debug, Args)]
pub(crate) struct Sign {
    /// the policy's text
    policy: PathBuf,
    /// PKCS#8 private key, PEM
    #[arg(long)]
    key: PathBuf,
    /// its certificate, PEM
    #[arg(long)]
    cert: PathBuf,
    /// where to write the signed policy [default: the policy's name with .p7b]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Arguments of `policy check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// the policy's text
    policy: PathBuf,
}

/// Arguments of `policy show`.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// the signed policy
    policy: PathBuf,
    /// certificates to trust, PEM; the signer's own must be among them
    #[arg(long, value_name = "PEM")]
    keys: PathBuf,
    /// revocation list, TOML
    #[arg(long, value_name = "FILE")]
    revocations: Option<PathBuf>,
}

/// Runs the command; results go to `out`.
pub(crate) fn run(command: &Command, out: &mut dyn Write) -> Result<()> {
    match command {
        Command::Sign(arguments) => sign(arguments, out),
        Command::Check(arguments) => check(arguments, out),
        Command::Show(arguments) => show(arguments, out),
    }
}

fn sign(arguments: &Sign, out: &mut dyn Write) -> Result<()> {
    let text = read(&arguments.policy)?;
    parsed(&text, &arguments.policy)?;
    let object = format!("{} with {}", arguments.key.display(), arguments.cert.display());
    let key = SigningKey::from_pem(&read(&arguments.key)?, &read(&arguments.cert)?)
        .map_err(Error::signed(object, "`hallmark keygen` makes a pair that fits"))?;
    let advice = "sign layers instead of listing root hashes: dmverity_signature=TRUE";
    let der = key
        .sign_policy(&text)
        .map_err(Error::signed(arguments.policy.display().to_string(), advice))?;
    let path = arguments.out.clone().unwrap_or_else(|| arguments.policy.with_extension("p7b"));
    replace(&path, 0o644, &der)?;
    writeln!(out, "{}", path.display()).map_err(Error::Output)
}

fn check(arguments: &Check, out: &mut dyn Write) -> Result<()> {
    let (policy, pins) = parsed(&read(&arguments.policy)?, &arguments.policy)?;
    describe(&policy, &pins, out)?;
    match policy.unverified_execute() {
        None => Ok(()),
        Some(decision) => Err(Error::Refused(format!(
            "policy {}: lets unverified code run: found \"{decision}\", expected \"DEFAULT op=EXECUTE action=DENY\" and \
             only rules that ask for a property; a node with exec_control = \"ipe\" launches nothing under it",
            policy.name.as_str()
        ))),
    }
}

fn show(arguments: &Show, out: &mut dyn Write) -> Result<()> {
    let object = arguments.keys.display().to_string();
    let keyring = Keyring::from_pem(&read(&arguments.keys)?).map_err(Error::signed(object, ""))?;
    let revocations = match &arguments.revocations {
        Some(path) => Revocations::parse(&read(path)?)
            .map_err(Error::signed(path.display().to_string(), ""))?,
        None => Revocations::default(),
    };
    let now = Timestamp::from(SystemTime::now());
    let text = open_policy(&read(&arguments.policy)?, &keyring, &revocations, now)
        .map_err(|error| Error::Refused(format!("{}: {error}", arguments.policy.display())))?;
    parsed(&text, &arguments.policy)?;
    out.write_all(&text).map_err(Error::Output)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::file("read", path))
}

fn parsed(text: &[u8], path: &Path) -> Result<(Policy, Pins)> {
    let refused =
        |error: &dyn std::fmt::Display| Error::Refused(format!("{}: {error}", path.display()));
    let policy = Policy::parse(text).map_err(|error| refused(&error))?;
    let pins = Pins::parse(text).map_err(|error| refused(&error))?;
    Ok((policy, pins))
}

fn describe(policy: &Policy, pins: &Pins, out: &mut dyn Write) -> Result<()> {
    let default = policy.default_of(Operation::Execute);
    let mut lines = format!(
        "policy {} version {}\nrules {}\nunmatched EXECUTE {}\n",
        policy.name.as_str(),
        policy.version,
        policy.rules.len(),
        default.action
    );
    let named = [("config", pins.config), ("keys", pins.keys), ("revocations", pins.revocations)];
    for (name, pin) in named {
        let pin = pin
            .map_or_else(|| "not pinned".to_owned(), |pin| format!("sha256:{}", hex::encode(pin)));
        lines.push_str(&format!("{name} {pin}\n"));
    }
    out.write_all(lines.as_bytes()).map_err(Error::Output)
}
