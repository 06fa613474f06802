//! Logins, as Docker keeps them: `{"auths":{"<host>":{"auth":"<base64 of user:password>"}}}`.
//!
//! Programs that hold logins (`credHelpers`, `credsStore`) are not run: a daemon of root's starts nobody's program.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};

/// Logins by host.
#[derive(Clone, Default)]
pub struct Keychain(BTreeMap<String, Login>);

/// User and password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    user: String,
    password: String,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl fmt::Debug for Keychain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(…)")
    }
}

impl Keychain {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// `Settings` for what is none; the message never holds a login.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let wrong = |found: &str| Error::new(ErrorKind::Settings, format!("logins: {found}"));
        let file: File = serde_json::from_slice(bytes).map_err(|error| {
            wrong(&format!(
                "no JSON of Docker's form, line {} column {}",
                error.line(),
                error.column()
            ))
        })?;
        let mut logins = BTreeMap::new();
        for (host, entry) in file.auths {
            let login = match (entry.auth, entry.username, entry.password) {
                (_, Some(user), Some(password)) => Login { user, password },
                (Some(auth), ..) if !auth.is_empty() => Login::decode(&auth).ok_or_else(|| {
                    wrong(&format!("{host:?}: auth is no base64 of user:password"))
                })?,
                // a login that a helper holds
                _ => continue,
            };
            logins.insert(host_of(&host).to_owned(), login);
        }
        Ok(Self(logins))
    }

    pub(crate) fn login(&self, host: &str) -> Option<&Login> {
        let known = match host {
            "registry-1.docker.io" => "index.docker.io",
            other => other,
        };
        self.0.get(host).or_else(|| self.0.get(known)).or_else(|| match known {
            "index.docker.io" => self.0.get("docker.io"),
            _ => None,
        })
    }
}

impl Login {
    fn decode(auth: &str) -> Option<Self> {
        let text = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        Some(Self { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() })
    }

    /// The value of an `Authorization` header.
    pub(crate) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }
}

/// `https://index.docker.io/v1/` to `index.docker.io`.
fn host_of(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    key.split('/').next().unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_found_by_host_and_never_shown() {
        let text = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},
            "r.example:5000":{"username":"a","password":"secret"},"helped":{}},"credsStore":"x"}"#;
        let keychain = Keychain::parse(text.as_bytes()).unwrap();
        assert_eq!(keychain.login("registry-1.docker.io").unwrap().basic(), "Basic dTpw");
        assert_eq!(keychain.login("r.example:5000").unwrap().basic(), "Basic YTpzZWNyZXQ=");
        assert!(keychain.login("r.example").is_none() && keychain.login("helped").is_none());
        assert!(!format!("{keychain:?}").contains("secret"));
        let broken = Keychain::parse(br#"{"auths":{"h":{"auth":"c2VjcmV0"}}}"#).unwrap_err();
        assert!(!broken.to_string().contains("secret"), "{broken}");
        assert!(Keychain::parse(b"none").is_err());
    }
}
