//! What a command can end with, and the exit code of each.
//!
//! | code | means |
//! |---:|---|
//! | 0 | done; for `verify`, `policy check` and `posture`: the answer is yes |
//! | 1 | refused: the answer is no, and why |
//! | 2 | the command line is wrong |
//! | 3 | could not be done: a file, an image or containerd is not as it must be |

use std::io;
use std::path::{Path, PathBuf};

/// Result of a command.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file or directory.
    #[error("{action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    /// Standard output.
    #[error("write the result")]
    Output(#[source] io::Error),
    /// A key, certificate, seal, claim or signed policy; the source says what was found and expected.
    #[error("{object}{}", hint(advice))]
    Signed { object: String, advice: &'static str, source: hallmark_seal::Error },
    /// An image that is not as images are.
    #[error("{object}: found {found}, expected {expected}{}", hint(advice))]
    Image { object: String, found: String, expected: String, advice: &'static str },
    /// JSON that does not parse.
    #[error("{object}: found text that is not what it should be, expected {expected}")]
    Json { object: String, expected: &'static str, source: serde_json::Error },
    /// A layer that cannot be packed.
    #[error("layer {index} ({digest})")]
    Layer { index: usize, digest: String, source: hallmark_erofs::Error },
    /// containerd.
    #[error("containerd: {call}{}", hint(advice))]
    Containerd {
        call: String,
        advice: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A registry; the message names the server and what it said.
    #[error("registry")]
    Registry(#[from] hallmark_registry::Error),
    /// Making a key or certificate.
    #[error("{object}: found {found}, expected {expected}")]
    Keygen { object: &'static str, found: String, expected: &'static str },
    /// A command line that parses and still makes no sense.
    #[error("{found}, expected {expected}")]
    Usage { found: String, expected: String },
    /// An answer, not a malfunction; the message is whole.
    #[error("refused: {0}")]
    Refused(String),
}

impl Error {
    /// The exit code of a command that ends with this.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) => 1,
            Self::Usage { .. } => 2,
            _ => 3,
        }
    }

    /// For `map_err` on a file operation.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// For `map_err` on something that was signed, or is to be.
    pub(crate) fn signed(
        object: impl Into<String>,
        advice: &'static str,
    ) -> impl FnOnce(hallmark_seal::Error) -> Self {
        let object = object.into();
        move |source| Self::Signed { object, advice, source }
    }

    /// An image that is not as it must be.
    pub(crate) fn image(
        object: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        advice: &'static str,
    ) -> Self {
        Self::Image {
            object: object.into(),
            found: found.into(),
            expected: expected.into(),
            advice,
        }
    }
}

fn hint(advice: &str) -> String {
    if advice.is_empty() { String::new() } else { format!(" ({advice})") }
}
