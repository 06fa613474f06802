//! Signatures that the kernel checks, made with openssl as its documentation says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{Cache, sha256};
use crate::run::Run;

const REQUEST: &str = "[req]\nprompt=no\ndistinguished_name=dn\nx509_extensions=ext\n\
    [dn]\nCN=hallmark throw-away test key\n\
    [ext]\nbasicConstraints=critical,CA:FALSE\nkeyUsage=digitalSignature\n\
    subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n";

/// A private key and its certificate, both PEM.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) private: PathBuf,
    pub(crate) certificate: PathBuf,
    id: String,
}

impl Key {
    /// The one whose certificate the guest's firmware holds; made once, on this machine only.
    pub(crate) fn of_the_guest(cache: &Cache) -> Result<Self> {
        let dir = cache.once("guest-key", |dir| Self::make(dir).map(|_| ()))?;
        Self::at(&dir)
    }

    /// Makes `<dir>/{key,cert}.pem`.
    pub(crate) fn make(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let request = dir.join("request.cnf");
        fs::write(&request, REQUEST)?;
        Command::new("openssl")
            .args(["req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256"])
            .args(["-days", "3650", "-config"])
            .arg(&request)
            .arg("-keyout")
            .arg(dir.join("key.pem"))
            .arg("-out")
            .arg(dir.join("cert.pem"))
            .good()?;
        Self::at(dir)
    }

    fn at(dir: &Path) -> Result<Self> {
        let certificate = dir.join("cert.pem");
        let id = sha256(fs::read(&certificate).context("read the certificate")?);
        Ok(Self { private: dir.join("key.pem"), certificate, id })
    }

    /// What tells this key from another.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn certificate_der(&self) -> Result<Vec<u8>> {
        let output = Command::new("openssl")
            .args(["x509", "-outform", "DER", "-in"])
            .arg(&self.certificate)
            .output()?;
        anyhow::ensure!(output.status.success(), "openssl x509: {}", output.status);
        Ok(output.stdout)
    }

    /// PKCS#7 beside the content: what dm-verity takes over the hex root hash.
    pub(crate) fn sign_detached(&self, content: &Path, signature: &Path) -> Result<()> {
        self.sign(&[], content, signature)
    }

    /// PKCS#7 around the content: what IPE takes as a policy.
    pub(crate) fn sign_policy(&self, content: &Path, signature: &Path) -> Result<()> {
        self.sign(&["-nodetach"], content, signature)
    }

    fn sign(&self, how: &[&str], content: &Path, signature: &Path) -> Result<()> {
        Command::new("openssl")
            .args(["smime", "-sign", "-nocerts", "-noattr", "-binary", "-outform", "DER"])
            .args(how)
            .arg("-inkey")
            .arg(&self.private)
            .arg("-signer")
            .arg(&self.certificate)
            .arg("-in")
            .arg(content)
            .arg("-out")
            .arg(signature)
            .good()?;
        Ok(())
    }
}
