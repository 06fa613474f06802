//! Container IDs.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// A container's name: one path component of letters, digits, `_`, `+`, `-` and `.`, and neither `.` nor `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerId(String);

impl ContainerId {
    /// Takes what a caller typed.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] with runc's words.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "container id cannot be empty"));
        }
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
        // a directory of this name is made; 255 bytes is what every file system takes
        if !text.chars().all(good) || matches!(text, "." | "..") || text.len() > 255 {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("invalid container ID format: {text:?}"),
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_path_component_of_plain_characters() {
        for good in ["a", "a.b_c+d-e", "0", "..."] {
            assert_eq!(ContainerId::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "../x", "a b", "a\n", "é", &"x".repeat(256)] {
            assert!(ContainerId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
