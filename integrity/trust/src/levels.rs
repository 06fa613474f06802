//! The two axes: how well a layer is evidenced, and who controls execution on the node.
//!
//! They are never mixed up: evidence says what a layer *is* when it is launched, exec control says
//! whether the kernel will refuse what comes later. Each is ordered, weakest first.

use std::fmt::{Display, Formatter, Result};

use serde::{Deserialize, Serialize};

/// How well a layer is evidenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strength {
    /// The image was hashed by us when the container started; later changes by root are not seen.
    Rehashed,
    /// The kernel checks every page of every file against its fs-verity digest.
    FsVerity,
    /// The kernel checks every block against the root hash.
    DmVerity,
    /// The kernel also checked a signature of the root hash.
    #[serde(rename = "dm-verity+signature")]
    DmVeritySigned,
}

impl Strength {
    /// The name used in configuration, messages and state files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rehashed => "rehashed",
            Self::FsVerity => "fs-verity",
            Self::DmVerity => "dm-verity",
            Self::DmVeritySigned => "dm-verity+signature",
        }
    }
}

/// Who controls execution on the node once a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExecControl {
    /// Nobody: the gate guards the launch only.
    LaunchOnly,
    /// IPE enforces a policy that denies EXECUTE by default.
    Ipe,
}

impl ExecControl {
    /// The name used in configuration, messages and state files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LaunchOnly => "launch-only",
            Self::Ipe => "ipe",
        }
    }
}

/// What happens to a launch that would be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Enforcement {
    /// It is refused.
    Enforce,
    /// It is logged and goes on.
    Audit,
}

impl Enforcement {
    /// The name used in configuration, messages and state files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
        }
    }
}

impl Display for Strength {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(self.as_str())
    }
}

impl Display for ExecControl {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(self.as_str())
    }
}

impl Display for Enforcement {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordered_weakest_first_and_printed_as_configured() {
        let strengths =
            [Strength::Rehashed, Strength::FsVerity, Strength::DmVerity, Strength::DmVeritySigned];
        assert!(strengths.is_sorted());
        for strength in strengths {
            let json = serde_json::to_string(&strength).unwrap();
            assert_eq!(json, format!("\"{strength}\""));
        }
        assert!(ExecControl::LaunchOnly < ExecControl::Ipe);
        for control in [ExecControl::LaunchOnly, ExecControl::Ipe] {
            assert_eq!(serde_json::to_string(&control).unwrap(), format!("\"{control}\""));
        }
        for mode in [Enforcement::Enforce, Enforcement::Audit] {
            assert_eq!(serde_json::to_string(&mode).unwrap(), format!("\"{mode}\""));
        }
    }
}
