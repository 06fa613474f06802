//! Requests to one server: TLS as its `hosts.toml` says, and its answer to 401.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use ureq::config::Config;
use ureq::http::{HeaderMap, Request, Response, StatusCode, Uri};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig};
use ureq::{Agent, AsSendBody, Body};

use crate::error::{Error, ErrorKind, Result};
use crate::hosts::{Endpoint, Verify, unusable};
use crate::keychain::{Keychain, Login};

/// For one request, its redirects and its body.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a token server's answer.
const MAX_TOKEN: u64 = 64 << 10;
/// Where systems keep the certificates of public authorities.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A server, and how it knows us.
#[derive(Debug)]
pub(crate) struct Session {
    agent: Agent,
    endpoint: Endpoint,
    repository: String,
    login: Option<Login>,
    /// No request goes on after it.
    deadline: Instant,
    /// What the last 401 led to.
    authorization: Mutex<Option<String>>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) method: &'static str,
    pub(crate) url: &'a str,
    /// `Accept` of what is read, `Content-Type` of what is sent.
    pub(crate) media_type: &'a str,
    pub(crate) body: Option<&'a [u8]>,
    /// Bytes of the answer that are read at most; more is an error.
    pub(crate) limit: u64,
}

impl Session {
    pub(crate) fn new(
        endpoint: Endpoint,
        repository: &str,
        keychain: &Keychain,
        deadline: Instant,
    ) -> Result<Self> {
        let config = Config::builder()
            .http_status_as_error(false)
            .max_redirects(3)
            .user_agent("hallmark")
            .tls_config(tls(&endpoint)?)
            .build();
        let login = keychain.login(&endpoint.host).cloned();
        let repository = repository.to_owned();
        let authorization = Mutex::default();
        Ok(Self { agent: config.into(), endpoint, repository, login, deadline, authorization })
    }

    /// The URL of something in the repository, `manifests/<reference>` for one.
    pub(crate) fn url(&self, inside: &str) -> String {
        let url = format!("{}/{}/{inside}", self.endpoint.base, self.repository);
        match &self.endpoint.mirrors {
            Some(registry) if inside.contains('?') => format!("{url}&ns={registry}"),
            Some(registry) => format!("{url}?ns={registry}"),
            None => url,
        }
    }

    /// A location that the server named, perhaps without a host.
    pub(crate) fn location(&self, headers: &HeaderMap, name: &str) -> Option<String> {
        let location = headers.get(name)?.to_str().ok()?;
        let uri: Uri = self.endpoint.base.parse().ok()?;
        if location.starts_with('/') {
            return Some(format!("{}://{}{location}", uri.scheme_str()?, uri.authority()?));
        }
        // an upload that goes elsewhere would take our login along
        let there: Uri = location.parse().ok()?;
        (there.authority() == uri.authority()).then(|| location.to_owned())
    }

    /// Asks, logs in if that is answered by 401, and asks again.
    pub(crate) fn ask(&self, ask: Ask<'_>) -> Result<Answer> {
        let known = || self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        let authorization = known().clone();
        let answer = self.send(ask, authorization.as_deref())?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let challenges = answer.headers.get_all("www-authenticate").iter();
        let challenges: Vec<&str> = challenges.filter_map(|value| value.to_str().ok()).collect();
        let Some(authorization) = self.answer_challenge(&challenges)? else { return Ok(answer) };
        *known() = Some(authorization.clone());
        self.send(ask, Some(&authorization))
    }

    fn send(&self, ask: Ask<'_>, authorization: Option<&str>) -> Result<Answer> {
        let mut request = Request::builder().method(ask.method).uri(ask.url);
        let what = if ask.body.is_some() { "content-type" } else { "accept" };
        request = request.header(what, ask.media_type);
        for (name, value) in &self.endpoint.headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let failed = |kind| {
            let shown = ask.url.split('?').next().unwrap_or_default();
            Error::new(kind, format!("{} {shown}", ask.method))
        };
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failed(ErrorKind::Unreachable).because("no time is left"));
        }
        let sent = match ask.body {
            Some(body) => self.run(request.body(body), left),
            None => self.run(request.body(()), left),
        };
        let mut response = sent.map_err(|error| failed(ErrorKind::Unreachable).because(error))?;
        let body = response.body_mut().with_config().limit(ask.limit).read_to_vec();
        let body = body.map_err(|error| failed(ErrorKind::Malformed).because(error))?;
        Ok(Answer { status: response.status(), headers: response.headers().clone(), body })
    }

    fn run(
        &self,
        request: ureq::http::Result<Request<impl AsSendBody>>,
        left: Duration,
    ) -> std::result::Result<Response<Body>, ureq::Error> {
        let request = self.agent.configure_request(request?);
        self.agent.run(request.timeout_global(Some(left.min(PATIENCE))).build())
    }

    /// The `Authorization` that a challenge asks for, if we can have it.
    fn answer_challenge(&self, challenges: &[&str]) -> Result<Option<String>> {
        for challenge in challenges {
            let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
            if scheme.eq_ignore_ascii_case("bearer") {
                return self.token(&Challenge::parse(rest)).map(Some);
            }
            if scheme.eq_ignore_ascii_case("basic") {
                return Ok(self.login.as_ref().map(Login::basic));
            }
        }
        Ok(None)
    }

    fn token(&self, challenge: &Challenge) -> Result<String> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let realm = &challenge.realm;
        let plain = self.endpoint.base.starts_with("http://");
        if !(realm.starts_with("https://") || plain && realm.starts_with("http://")) {
            let found = format!("token server {realm:?} of {}", self.endpoint.host);
            return Err(Error::name(found, "https://"));
        }
        let separator = if realm.contains('?') { '&' } else { '?' };
        let (service, scope) = (escape(&challenge.service), escape(&challenge.scope));
        let url = format!("{realm}{separator}service={service}&scope={scope}");
        let ask = Ask {
            method: "GET",
            url: &url,
            media_type: "application/json",
            body: None,
            limit: MAX_TOKEN,
        };
        let answer = self.send(ask, self.login.as_ref().map(Login::basic).as_deref())?;
        let refused = || {
            let message = format!("token server {realm}: status {}", answer.status.as_u16());
            Error::new(ErrorKind::Refused, message)
        };
        if !answer.status.is_success() {
            return Err(refused());
        }
        let token: Token = serde_json::from_slice(&answer.body)
            .map_err(|_found| Error::malformed(format!("token server {realm}: no token")))?;
        let token = token.token.or(token.access_token).filter(|token| !token.is_empty());
        token.map(|token| format!("Bearer {token}")).ok_or_else(refused)
    }
}

/// `realm="…",service="…",scope="…"`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: String,
    scope: String,
}

impl Challenge {
    fn parse(text: &str) -> Self {
        let mut challenge = Self::default();
        let mut rest = text;
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
                None => after.split_once(',').unwrap_or((after, "")),
            };
            match name.trim_matches([',', ' ']) {
                "realm" => value.clone_into(&mut challenge.realm),
                "service" => value.clone_into(&mut challenge.service),
                "scope" => value.clone_into(&mut challenge.scope),
                _ => {}
            }
            rest = after;
        }
        challenge
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b':' | b'/' | b',' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

fn tls(endpoint: &Endpoint) -> Result<TlsConfig> {
    let mut tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .disable_verification(endpoint.verify == Verify::No);
    if endpoint.base.starts_with("https://") {
        let mut roots = Vec::new();
        for path in &endpoint.ca {
            roots.extend(certificates(path)?);
        }
        let bundle = BUNDLES.iter().map(Path::new).find(|path| path.is_file());
        roots.extend(bundle.map(certificates).transpose()?.unwrap_or_default());
        tls = tls.root_certs(RootCerts::new_with_certs(&roots));
    }
    if let Some((certificate, key)) = &endpoint.client {
        let chain = certificates(certificate)?;
        let pem = std::fs::read(key).map_err(|error| unusable(key).because(error))?;
        let key = PrivateKey::from_pem(&pem).map_err(|error| unusable(key).because(error))?;
        tls = tls.client_cert(Some(ClientCert::new_with_certs(&chain, key)));
    }
    Ok(tls.build())
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let pem = std::fs::read(path).map_err(|error| unusable(path).because(error))?;
    let mut found = Vec::new();
    for item in ureq::tls::parse_pem(&pem) {
        if let PemItem::Certificate(certificate) =
            item.map_err(|error| unusable(path).because(error))?
        {
            found.push(certificate);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_taken_apart() {
        let text = "realm=\"https://auth.example/token\",service=\"r.example\",scope=\"repository:a/b:pull,push\"";
        let challenge = Challenge::parse(text);
        assert_eq!(challenge.realm, "https://auth.example/token");
        assert_eq!(
            (challenge.service.as_str(), challenge.scope.as_str()),
            ("r.example", "repository:a/b:pull,push")
        );
        assert_eq!(Challenge::parse("service=x, realm=y").service, "x");
        for odd in ["", "=", "realm=\"x", "realm", ",,=,"] {
            Challenge::parse(odd);
        }
        assert_eq!(escape("repository:a b:pull&x"), "repository:a%20b:pull%26x");
    }
}
