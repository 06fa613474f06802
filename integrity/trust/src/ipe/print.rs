//! [`Policy`] to the text the kernel reads.
//!
//! Defaults come first, digests in lower case; [`Policy::parse`] of the result is the same policy.

use std::fmt::{Display, Formatter, Result};

use super::{Action, Digest, Operation, Policy, Property, Rule, Truth, Version};

impl Operation {
    /// The operation's name in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Execute => "EXECUTE",
            Self::Firmware => "FIRMWARE",
            Self::KernelModule => "KMODULE",
            Self::KexecImage => "KEXEC_IMAGE",
            Self::KexecInitramfs => "KEXEC_INITRAMFS",
            Self::Policy => "POLICY",
            Self::X509Cert => "X509_CERT",
        }
    }
}

impl Display for Operation {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(self.as_str())
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
        })
    }
}

impl Display for Truth {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::True => "TRUE",
            Self::False => "FALSE",
        })
    }
}

impl Display for Digest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{}:{}", self.algorithm, hex::encode(&self.bytes))
    }
}

impl Display for Version {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.revision)
    }
}

impl Display for Property {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::BootVerified(truth) => write!(f, "boot_verified={truth}"),
            Self::DmVerityRootHash(digest) => write!(f, "dmverity_roothash={digest}"),
            Self::DmVeritySignature(truth) => write!(f, "dmverity_signature={truth}"),
            Self::FsVerityDigest(digest) => write!(f, "fsverity_digest={digest}"),
            Self::FsVeritySignature(truth) => write!(f, "fsverity_signature={truth}"),
        }
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "op={}", self.operation)?;
        for property in &self.properties {
            write!(f, " {property}")?;
        }
        write!(f, " action={}", self.action)
    }
}

impl Display for Policy {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "policy_name={} policy_version={}", self.name.as_str(), self.version)?;
        if let Some(action) = self.global_default {
            writeln!(f, "DEFAULT action={action}")?;
        }
        for (operation, action) in &self.defaults {
            writeln!(f, "DEFAULT op={operation} action={action}")?;
        }
        for rule in &self.rules {
            writeln!(f, "{rule}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_defaults_first_and_hex_in_lower_case() {
        let text = "policy_name=p policy_version=1.0.2\n\
                    op=EXECUTE dmverity_roothash=sha256:ABCD action=ALLOW\n\
                    DEFAULT op=EXECUTE action=DENY\nDEFAULT action=ALLOW\n";
        let printed = Policy::parse(text.as_bytes()).unwrap().to_string();
        assert_eq!(
            printed,
            "policy_name=p policy_version=1.0.2\nDEFAULT action=ALLOW\n\
             DEFAULT op=EXECUTE action=DENY\nop=EXECUTE dmverity_roothash=sha256:abcd action=ALLOW\n"
        );
    }
}
