//! Files of the node that a policy pins by digest, in comment lines.
//!
//! The kernel returns a policy's text byte for byte, comments included, and its signature covers
//! them. So a comment can hold what the kernel does not know about:
//!
//! ```text
//! # hallmark-config sha256:<64 hex>
//! # hallmark-keys sha256:<64 hex>
//! # hallmark-revocations sha256:<64 hex>
//! ```
//!
//! A pin is a whole line and starts at its first column. Text after a NUL is no part of a policy,
//! for the kernel and here.

/// The digests that a policy pins, each the SHA-256 of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pins {
    /// Of the node configuration.
    pub config: Option<[u8; 32]>,
    /// Of the file of certificates.
    pub keys: Option<[u8; 32]>,
    /// Of the revocation file.
    pub revocations: Option<[u8; 32]>,
}

/// A pin line that says nothing certain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PinsError {
    /// Not of the form above.
    #[error("\"{0}\": expected \"# hallmark-config|keys|revocations sha256:<64 hex>\"")]
    Malformed(String),
    /// The same file pinned twice.
    #[error("\"{0}\": pinned twice")]
    Twice(String),
}

impl Pins {
    /// Collects the pins of a policy's text.
    ///
    /// # Errors
    /// A line that starts with `# hallmark-` and is no pin, or pins a file for the second time:
    /// a misspelt pin must not count as none.
    pub fn parse(text: &[u8]) -> Result<Self, PinsError> {
        let text = text.split(|&b| b == 0).next().unwrap_or_default();
        let mut pins = Self::default();
        for line in text.split(|&b| b == b'\n' || b == b'\r') {
            if let Some(pin) = line.strip_prefix(b"# hallmark-") {
                pins.add(&String::from_utf8_lossy(pin))?;
            }
        }
        Ok(pins)
    }

    fn add(&mut self, pin: &str) -> Result<(), PinsError> {
        let malformed = || PinsError::Malformed(format!("# hallmark-{pin}"));
        let (file, digest) = pin.trim_end().split_once(" sha256:").ok_or_else(malformed)?;
        let slot = match file {
            "config" => &mut self.config,
            "keys" => &mut self.keys,
            "revocations" => &mut self.revocations,
            _ => return Err(malformed()),
        };
        let mut bytes = [0; 32];
        hex::decode_to_slice(digest, &mut bytes).map_err(|_not_hex| malformed())?;
        match slot.replace(bytes) {
            None => Ok(()),
            Some(_before) => Err(PinsError::Twice(format!("# hallmark-{pin}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_whole_comment_lines() {
        let (a, b) = ("aa".repeat(32), "bb".repeat(32));
        let text = format!(
            "# hallmark-keys sha256:{a}\npolicy_name=p policy_version=0.0.0\r\n\
             # hallmark-config sha256:{b} \nDEFAULT action=DENY # hallmark-revocations sha256:{a}\n\
             #hallmark-revocations sha256:{a}\n\0# hallmark-revocations sha256:{a}\n"
        );
        let pins = Pins::parse(text.as_bytes()).unwrap();
        assert_eq!(pins.keys, Some([0xaa; 32]));
        assert_eq!(pins.config, Some([0xbb; 32]));
        assert_eq!(pins.revocations, None);
    }

    #[test]
    fn doubtful_pins_are_refused() {
        let a = "aa".repeat(32);
        let rows = [
            format!("# hallmark-key sha256:{a}"),
            format!("# hallmark-keys sha512:{a}"),
            format!("# hallmark-keys sha256:{a}00"),
            format!("# hallmark-keys  sha256:{a}"),
            "# hallmark-keys".to_owned(),
            "# hallmark-keys sha256:".to_owned(),
            format!("# hallmark-keys sha256:{}", "zz".repeat(32)),
        ];
        for row in rows {
            assert!(matches!(Pins::parse(row.as_bytes()), Err(PinsError::Malformed(_))), "{row}");
        }
        let twice = format!("# hallmark-keys sha256:{a}\n# hallmark-keys sha256:{a}\n");
        assert!(matches!(Pins::parse(twice.as_bytes()), Err(PinsError::Twice(_))));
    }
}
