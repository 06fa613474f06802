//! The policy language of IPE (Integrity Policy Enforcement), as the kernel reads it.
//!
//! ```text
//! policy_name=node policy_version=1.0.0        first line that is not empty: exactly these two
//! DEFAULT action=ALLOW                         global default
//! DEFAULT op=EXECUTE action=DENY               default of one operation
//! op=EXECUTE dmverity_signature=TRUE action=ALLOW
//! # a comment, up to the end of the line
//! ```
//!
//! A rule is one line: `op=`, then properties that must all hold, then `action=`. The first rule
//! of the operation that matches decides, else the operation's default, else the global one.
//!
//! [`Policy::parse`] accepts and refuses what `ipe_parse_policy` does (see `parse.rs`), and
//! [`Policy::evaluate`] answers what `ipe_evaluate_event` does, so that one text means the same to
//! the kernel and to the gate. The one difference, on the strict side: a header or rule that is
//! not UTF-8 is refused here.
//!
//! The kernel takes a policy as PKCS#7 of at most [`MAX_SIGNED_LEN`] bytes: about 570 root-hash
//! rules. Long lists therefore belong into signatures (`dmverity_signature=TRUE`), not rules.
//!
//! Source: Linux `security/ipe/policy_parser.c`, `policy.h`, `digest.c`, `eval.c`, `lib/parser.c`;
//! Documentation/admin-guide/LSM/ipe.rst.

mod evaluate;
mod parse;
mod pins;
mod print;

pub use evaluate::{Decider, Decision, DmVerity, FsVerity, Properties, Signature};
pub use parse::{ParseError, ParseErrorKind};
pub use pins::{Pins, PinsError};

/// The longest DER of a signed policy that the kernel accepts, in bytes (65,536 is EMSGSIZE).
///
/// Measured on Linux 6.12 and 7.3; the kernel's BER decoder counts lengths in 16 bits.
pub const MAX_SIGNED_LEN: usize = 65_535;

/// A policy that the kernel would accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `policy_name=`: the directory's name in securityfs, and what an update must repeat.
    pub name: Name,
    /// `policy_version=`: an update must be higher, an activation not lower.
    pub version: Version,
    /// `DEFAULT action=…`.
    pub global_default: Option<Action>,
    /// `DEFAULT op=… action=…`.
    pub defaults: std::collections::BTreeMap<Operation, Action>,
    /// The rules of all operations, in the order of the text.
    pub rules: Vec<Rule>,
}

/// `op=… [property=value]… action=…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What is being done with the file.
    pub operation: Operation,
    /// All of these must hold; none means the rule always matches.
    pub properties: Vec<Property>,
    /// What happens then.
    pub action: Action,
}

/// What a policy answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `ALLOW`
    Allow,
    /// `DENY`
    Deny,
}

/// What the kernel asks about, in the order of `enum ipe_op_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// `EXECUTE`: exec, executable mmap and mprotect.
    Execute,
    /// `FIRMWARE`
    Firmware,
    /// `KMODULE`
    KernelModule,
    /// `KEXEC_IMAGE`
    KexecImage,
    /// `KEXEC_INITRAMFS`
    KexecInitramfs,
    /// `POLICY`
    Policy,
    /// `X509_CERT`
    X509Cert,
}

impl Operation {
    /// Every operation the kernel knows.
    pub const ALL: [Self; 7] = [
        Self::Execute,
        Self::Firmware,
        Self::KernelModule,
        Self::KexecImage,
        Self::KexecInitramfs,
        Self::Policy,
        Self::X509Cert,
    ];
}

/// One `property=value` of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Property {
    /// `boot_verified=TRUE|FALSE`: the file is (not) of the initramfs.
    BootVerified(Truth),
    /// `dmverity_roothash=ALG:HEX`: the block device's verity root hash.
    DmVerityRootHash(Digest),
    /// `dmverity_signature=TRUE|FALSE`: the kernel (did not) check a signature of the root hash.
    DmVeritySignature(Truth),
    /// `fsverity_digest=ALG:HEX`: the file's fs-verity digest.
    FsVerityDigest(Digest),
    /// `fsverity_signature=TRUE|FALSE`: the kernel (did not) check the file's built-in signature.
    FsVeritySignature(Truth),
}

/// `TRUE` or `FALSE` of a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    /// `TRUE`
    True,
    /// `FALSE`
    False,
}

/// `policy_name`: not empty, without white space, `#` or NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// Takes a name if the kernel's tokenizer would hand it out whole.
    pub fn parse(name: &str) -> Option<Self> {
        let whole = !name.is_empty() && !name.contains([' ', '\t', '\n', '\r', '#', '\0']);
        whole.then(|| Self(name.to_owned()))
    }

    /// The name as it stands in the policy.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `policy_version=MAJOR.MINOR.REV`, compared in that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u16,
    /// Second number.
    pub minor: u16,
    /// Third number.
    pub revision: u16,
}

/// `ALG:HEX` of a root hash or file digest, compared by name and bytes.
///
/// The kernel compares the algorithm with the crypto API's name (`sha256`) by `strcmp`, and does
/// not ask whether the length fits it: `ipe_digest_eval` in `security/ipe/digest.c`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    algorithm: String,
    bytes: Vec<u8>,
}

impl Digest {
    /// A SHA-256 digest.
    pub fn sha256(bytes: [u8; 32]) -> Self {
        Self { algorithm: "sha256".to_owned(), bytes: bytes.to_vec() }
    }

    /// The crypto API's name of the algorithm.
    pub fn algorithm(&self) -> &str {
        &self.algorithm
    }

    /// The digest itself.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
