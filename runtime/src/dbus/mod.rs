//! A D-Bus client as small as one caller of systemd needs: blocking, one thread, one call at a time.
//!
//! [`value`] is the wire form, [`text`] the form that people write values in, [`message`] the header, [`connection`]
//! the socket. No descriptors are passed, and nothing is offered to others.
//!
//! Source: the D-Bus specification, version 0.43.

mod connection;
mod message;
mod text;
mod value;

pub(crate) use connection::{Connection, Method};
pub(crate) use text::parse as parse_text;
pub(crate) use value::Value;

/// What a bus, or the way to it, answers.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are what the message above them prints")]
pub enum Error {
    /// The socket.
    #[error("D-Bus: {call}")]
    Socket { call: &'static str, source: std::io::Error },
    /// Bytes that are no message of this protocol.
    #[error("D-Bus: {found}, expected {expected}")]
    Malformed { found: String, expected: &'static str },
    /// An answer of the other side, by its name.
    #[error("{name}: {text}")]
    Refused { name: String, text: String },
    /// More bytes than a call of ours may have.
    #[error("D-Bus: a message of {0} bytes is too long")]
    TooLong(usize),
}

impl Error {
    /// Whether the other side refused with the error of this name, such as `org.freedesktop.systemd1.NoSuchUnit`.
    pub(crate) fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name == wanted)
    }

    pub(crate) fn malformed(found: impl Into<String>, expected: &'static str) -> Self {
        Self::Malformed { found: found.into(), expected }
    }
}
