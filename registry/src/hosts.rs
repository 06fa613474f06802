//! Which servers stand for a registry: containerd's `hosts.toml`, in `<certs.d>/<host>/` or `<certs.d>/_default/`.
//!
//! ```toml
//! server = "https://registry.example"
//! [host."https://mirror.example"]        # asked in the order of the file, the server last
//!   capabilities = ["pull", "resolve"]
//!   ca = "/etc/ssl/mirror.pem"           # or a list
//!   client = [["/etc/ssl/us.pem", "/etc/ssl/us.key"]]
//!   skip_verify = false
//!   override_path = false                # true: the URL already ends in its API's path
//!   [host."https://mirror.example".header]
//!     x-team = "ours"
//! ```
//! Source: containerd `docs/hosts.md`, `core/remotes/docker/config/hosts.go`. Keys we have no use for are ignored, as
//! there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::error::{Error, ErrorKind, Result};

/// Servers asked for one registry.
const MAX_ENDPOINTS: usize = 8;

/// A server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `https://host[:port][/path]/v2`, without a slash at the end.
    pub(crate) base: String,
    /// `host[:port]`, by which a login is found.
    pub(crate) host: String,
    /// The registry that it mirrors.
    pub(crate) mirrors: Option<String>,
    pub(crate) ca: Vec<PathBuf>,
    /// Certificate and key; in one file when there is one path.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
    pub(crate) verify: Verify,
    pub(crate) headers: Vec<(String, String)>,
}

/// Whether a server's certificate is looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Verify {
    #[default]
    Yes,
    /// `skip_verify`: what comes from there is a claim all the same.
    No,
}

#[derive(Debug, Default, Deserialize)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, Spanned<Host>>,
    #[serde(flatten)]
    of_server: Host,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "two keys of containerd's file")]
struct Host {
    #[serde(default)]
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    ca: Option<OneOrMore>,
    #[serde(default)]
    client: Option<Clients>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMore>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Clients {
    One(String),
    Each(Vec<String>),
    Pairs(Vec<Vec<String>>),
}

/// The servers for the registry `host`, in the order in which they are asked; the last is the registry's own.
pub(crate) fn endpoints(host: &str, directory: Option<&Path>) -> Result<Vec<Endpoint>> {
    let inside = |char: char| char.is_ascii_alphanumeric() || ".-:[]".contains(char);
    if host.is_empty() || host.len() > 255 || host.starts_with('.') || !host.chars().all(inside) {
        return Err(Error::name(format!("registry {host:?}"), "a host, with a port if need be"));
    }
    let file = match directory {
        Some(directory) => find(directory, host)?,
        None => HostsFile::default(),
    };
    let mut hosts: Vec<(String, Spanned<Host>)> = file.host.into_iter().collect();
    hosts.sort_by_key(|(_, host)| host.span().start);
    let mut endpoints = Vec::new();
    for (url, mirror) in hosts {
        let mirror = mirror.into_inner();
        let pulls = |list: &Vec<String>| list.iter().any(|it| it == "pull" || it == "resolve");
        if mirror.capabilities.as_ref().is_none_or(pulls) {
            let mut endpoint = endpoint(&url, mirror)?;
            endpoint.mirrors = Some(host.to_owned());
            endpoints.push(endpoint);
        }
    }
    endpoints.truncate(MAX_ENDPOINTS - 1);
    let server = file.server.unwrap_or_else(|| default_server(host));
    endpoints.push(endpoint(&server, file.of_server)?);
    Ok(endpoints)
}

fn default_server(host: &str) -> String {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    match (host, name) {
        ("docker.io", _) => "https://registry-1.docker.io".to_owned(),
        (_, "localhost" | "127.0.0.1" | "[::1]") => format!("http://{host}"),
        _ => format!("https://{host}"),
    }
}

fn find(directory: &Path, host: &str) -> Result<HostsFile> {
    let escaped = host.rsplit_once(':').map(|(name, port)| format!("{name}_{port}_"));
    for name in [Some(host.to_owned()), escaped, Some("_default".to_owned())].into_iter().flatten()
    {
        let path = directory.join(name).join("hosts.toml");
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.map_err(|error| unusable(&path).because(error))?,
        };
        return toml::from_str(&text).map_err(|error| unusable(&path).because(error));
    }
    Ok(HostsFile::default())
}

pub(crate) fn unusable(path: &Path) -> Error {
    Error::new(ErrorKind::Settings, path.display().to_string())
}

fn endpoint(url: &str, host: Host) -> Result<Endpoint> {
    let url = if url.contains("://") { url.to_owned() } else { default_server(url) };
    let wrong = || Error::name(format!("server {url:?}"), "http:// or https:// and a host");
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let rest = rest.ok_or_else(wrong)?.trim_end_matches('/');
    let name = rest.split('/').next().filter(|name| !name.is_empty()).ok_or_else(wrong)?;
    let mut base = url.trim_end_matches('/').to_owned();
    if !host.override_path && !base.ends_with("/v2") {
        base.push_str("/v2");
    }
    let headers = host.header.into_iter().flat_map(|(name, values)| {
        values.list().into_iter().map(move |value| (name.clone(), value))
    });
    Ok(Endpoint {
        host: name.to_owned(),
        mirrors: None,
        ca: host.ca.map(OneOrMore::list).unwrap_or_default().into_iter().map(Into::into).collect(),
        client: host.client.and_then(Clients::first),
        verify: if host.skip_verify { Verify::No } else { Verify::Yes },
        headers: headers.collect(),
        base,
    })
}

impl OneOrMore {
    fn list(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::More(more) => more,
        }
    }
}

impl Clients {
    fn first(self) -> Option<(PathBuf, PathBuf)> {
        let pair = match self {
            Self::One(one) => vec![one],
            Self::Each(each) => each.into_iter().take(1).collect(),
            Self::Pairs(pairs) => pairs.into_iter().next()?,
        };
        let certificate = pair.first()?.into();
        Some((certificate, pair.last()?.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(endpoints: &[Endpoint]) -> Vec<&str> {
        endpoints.iter().map(|endpoint| endpoint.base.as_str()).collect()
    }

    #[test]
    fn without_a_file_the_registry_itself_is_asked() {
        for (host, base) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("registry.example:5000", "https://registry.example:5000/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
        ] {
            assert_eq!(bases(&endpoints(host, None).unwrap()), [base]);
        }
        for host in ["", "a/b", "../x", "a b", "a@b"] {
            assert_eq!(endpoints(host, None).unwrap_err().kind(), ErrorKind::Name, "{host}");
        }
    }

    #[test]
    fn mirrors_come_in_the_files_order_and_the_server_last() {
        let directory = tempfile::tempdir().unwrap();
        let of_host = directory.path().join("registry.example_5000_");
        std::fs::create_dir(&of_host).unwrap();
        let text = "server = \"https://real.example\"\nca = \"/own.pem\"\n\
            [host.\"https://z.example\"]\ncapabilities = [\"pull\"]\nca = [\"/a.pem\", \"/b.pem\"]\n\
            client = [[\"/c.pem\", \"/c.key\"]]\nunknown = 1\n\
            [host.\"https://z.example\".header]\nx-a = \"1\"\n\
            [host.\"http://a.example/deep\"]\noverride_path = true\nskip_verify = true\n\
            [host.\"https://p.example\"]\ncapabilities = [\"push\"]\n";
        std::fs::write(of_host.join("hosts.toml"), text).unwrap();
        let found = endpoints("registry.example:5000", Some(directory.path())).unwrap();
        assert_eq!(
            bases(&found),
            ["https://z.example/v2", "http://a.example/deep", "https://real.example/v2"]
        );
        assert_eq!(found[0].ca, [PathBuf::from("/a.pem"), "/b.pem".into()]);
        assert_eq!(found[0].client, Some(("/c.pem".into(), "/c.key".into())));
        assert_eq!(found[0].headers, [("x-a".to_owned(), "1".to_owned())]);
        assert_eq!(found[0].mirrors.as_deref(), Some("registry.example:5000"));
        assert_eq!((found[1].verify, found[0].verify), (Verify::No, Verify::Yes));
        assert_eq!(found[2].ca, [PathBuf::from("/own.pem")]);
        assert_eq!(found[2].mirrors, None);
        std::fs::write(of_host.join("hosts.toml"), "server = 1").unwrap();
        let broken = endpoints("registry.example:5000", Some(directory.path())).unwrap_err();
        assert_eq!(broken.kind(), ErrorKind::Settings);
    }
}
