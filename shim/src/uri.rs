//! Where a standard stream goes: a path or one of containerd's URIs.
//!
//! | form                       | meaning                                                        |
//! |----------------------------|----------------------------------------------------------------|
//! | `/path`, `fifo:///path`    | a FIFO made by the client (or, for a bare path, a regular file) |
//! | `file:///path`             | a file to append to, made if missing                           |
//! | `binary:///path?key=value` | a logging program; it is ready when it closes its third pipe   |
//! | `binary-v2:///path?…`      | the same, ready only when it has written a byte to that pipe   |
//!
//! Source: containerd `docs/runtime-v2.md` ("I/O"), `cmd/containerd-shim-runc-v2/process/io.go`.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// A parsed stream address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A FIFO or, if the path leads to one, a regular file.
    Path(PathBuf),
    /// A file to append to.
    File(PathBuf),
    Binary(Program),
}

/// A logging program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    /// Keys and values of the query, one after the other.
    pub(crate) arguments: Vec<String>,
    pub(crate) ready: Ready,
}

/// What tells that a logging program reads its pipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ready {
    /// The ready pipe was closed, with or without a byte.
    Closed,
    /// A byte came through the ready pipe.
    Byte,
}

/// Parses a stream address; an empty one is `None`.
///
/// # Errors
/// An unknown scheme, a host, a path that is not absolute, a broken percent escape.
pub(crate) fn parse(address: &str) -> Result<Option<Target>> {
    if address.is_empty() {
        return Ok(None);
    }
    let invalid = |reason: &str| Error::Invalid {
        what: "stream",
        value: address.to_owned(),
        reason: reason.to_owned(),
    };
    let Some((scheme, rest)) = address.split_once("://") else {
        return match address.starts_with('/') {
            true => Ok(Some(Target::Path(address.into()))),
            false => Err(invalid("neither an absolute path nor a URI")),
        };
    };
    if !rest.starts_with('/') {
        return Err(invalid("a host, or a path that is not absolute"));
    }
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path: PathBuf = decode(path, Plus::Itself).ok_or_else(|| invalid("bad escape"))?.into();
    let program = |ready| {
        let arguments = arguments(query).ok_or_else(|| invalid("bad escape"))?;
        Ok(Some(Target::Binary(Program { path: path.clone(), arguments, ready })))
    };
    match scheme {
        "fifo" => Ok(Some(Target::Path(path))),
        "file" => Ok(Some(Target::File(path))),
        "binary" => program(Ready::Closed),
        "binary-v2" => program(Ready::Byte),
        _ => Err(invalid("unknown scheme")),
    }
}

fn arguments(query: &str) -> Option<Vec<String>> {
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        arguments.push(decode(key, Plus::Space)?);
        arguments.push(decode(value, Plus::Space)?);
    }
    Some(arguments)
}

/// What `+` stands for: a space in a query, itself in a path.
#[derive(Clone, Copy, PartialEq)]
enum Plus {
    Space,
    Itself,
}

fn decode(text: &str, plus: Plus) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let high = char::from(rest.next()?).to_digit(16)?;
                let low = char::from(rest.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if plus == Plus::Space => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_containerd_knows() {
        let program = |path: &str, arguments: &[&str], ready| {
            let arguments = arguments.iter().map(|&text| text.to_owned()).collect();
            Some(Target::Binary(Program { path: path.into(), arguments, ready }))
        };
        for (address, expected) in [
            ("", None),
            ("/run/fifo/a-stdout", Some(Target::Path("/run/fifo/a-stdout".into()))),
            ("fifo:///a%20b", Some(Target::Path("/a b".into()))),
            ("file:///var/log/a+b.log", Some(Target::File("/var/log/a+b.log".into()))),
            ("binary:///bin/l", program("/bin/l", &[], Ready::Closed)),
            ("binary-v2:///bin/l?a=%2Fx&b", program("/bin/l", &["a", "/x", "b", ""], Ready::Byte)),
            (
                "binary:///usr/bin/nerdctl?_NERDCTL_INTERNAL_LOGGING=%2Fvar%2Flib+x",
                program(
                    "/usr/bin/nerdctl",
                    &["_NERDCTL_INTERNAL_LOGGING", "/var/lib x"],
                    Ready::Closed,
                ),
            ),
        ] {
            assert_eq!(parse(address).unwrap(), expected, "{address}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for address in [
            "relative",
            "http:///x",
            "file://host/x",
            "file:///%zz",
            "binary:///b?a=%f",
            "ttrpc+unix:///s",
        ] {
            assert!(parse(address).is_err(), "{address}");
        }
    }
}
