//! What the kernel would answer.
//!
//! Source: `ipe_evaluate_event` and `evaluate_property` in Linux `security/ipe/eval.c`, of a kernel
//! built with every `CONFIG_IPE_PROP_*`. Without one of them the kernel answers "does not match"
//! to both TRUE and FALSE of that property; a policy that relies on `=FALSE` is more open here
//! than there, never the reverse for an allow-list that says `=TRUE`.

use super::{Action, Digest, Operation, Policy, Property, Rule, Truth};

/// Whether the kernel checked a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature {
    /// A signature was checked under one of the kernel's keys.
    Signed,
    /// None was given.
    Unsigned,
}

/// What IPE knows of the block device under a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DmVerity {
    /// The root hash of its verity table.
    pub root_hash: Digest,
    /// Whether the table came with a signature that the kernel checked.
    pub signature: Signature,
}

/// What IPE knows of a file with fs-verity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsVerity {
    /// The measured digest.
    pub digest: Digest,
    /// Whether it has a built-in signature that the kernel checked.
    pub signature: Signature,
}

/// What IPE knows of the file that is executed or read.
///
/// The default is a file of which it knows nothing: tmpfs, an ordinary disk, anonymous memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties {
    /// The file's mount is the initramfs.
    pub boot_verified: bool,
    /// The file's superblock is on dm-verity.
    pub dm_verity: Option<DmVerity>,
    /// The file has fs-verity.
    pub fs_verity: Option<FsVerity>,
}

/// The answer, and what gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Allowed or denied.
    pub action: Action,
    /// The rule or default that says so.
    pub decider: Decider<'a>,
}

/// What decided, as the `rule=` of an audit record names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decider<'a> {
    /// This rule, the first of its operation whose properties all hold.
    Rule(&'a Rule),
    /// No rule: the operation's default.
    OperationDefault(Operation),
    /// No rule and no default of the operation: the global default.
    GlobalDefault,
}

impl std::fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.decider {
            Decider::Rule(rule) => write!(f, "{rule}"),
            Decider::OperationDefault(operation) => {
                write!(f, "DEFAULT op={operation} action={}", self.action)
            }
            Decider::GlobalDefault => write!(f, "DEFAULT action={}", self.action),
        }
    }
}

impl Policy {
    /// What the kernel answers when a file with these properties is used for this operation.
    pub fn evaluate(&self, operation: Operation, properties: &Properties) -> Decision<'_> {
        let matching = self.rules.iter().find(|rule| {
            rule.operation == operation && rule.properties.iter().all(|p| holds(p, properties))
        });
        matching.map_or_else(
            || self.default_of(operation),
            |rule| Decision { action: rule.action, decider: Decider::Rule(rule) },
        )
    }

    /// What lets code run that nobody verified, if anything does.
    ///
    /// Asked of every file without a signature and of unknown content, whether or not it lies in
    /// the initramfs, on dm-verity or has fs-verity; anonymous memory is the one of which nothing
    /// is known. The initramfs counts as unverified: on Linux 6.12 its tmpfs stays writable to
    /// whoever holds CAP_SYS_ADMIN and CAP_SYS_CHROOT.
    pub fn unverified_execute(&self) -> Option<Decision<'_>> {
        // no policy can hold this algorithm: a comment starts at '#'
        let unknown = || Digest { algorithm: "#".to_owned(), bytes: Vec::new() };
        let signature = Signature::Unsigned;
        for case in 0_u8..8 {
            let is = |bit: u8| case & bit != 0;
            let file = Properties {
                boot_verified: is(1),
                dm_verity: is(2).then(|| DmVerity { root_hash: unknown(), signature }),
                fs_verity: is(4).then(|| FsVerity { digest: unknown(), signature }),
            };
            let decision = self.evaluate(Operation::Execute, &file);
            if decision.action == Action::Allow {
                return Some(decision);
            }
        }
        None
    }

    /// What is answered when no rule of the operation matches.
    pub fn default_of(&self, operation: Operation) -> Decision<'_> {
        match (self.defaults.get(&operation), self.global_default) {
            (Some(&action), _) => {
                Decision { action, decider: Decider::OperationDefault(operation) }
            }
            (None, Some(action)) => Decision { action, decider: Decider::GlobalDefault },
            // the kernel's parser and ours refuse such a policy; one put together by hand denies
            (None, None) => Decision { action: Action::Deny, decider: Decider::GlobalDefault },
        }
    }
}

fn holds(property: &Property, found: &Properties) -> bool {
    let dm = found.dm_verity.as_ref();
    let fs = found.fs_verity.as_ref();
    let (wanted, holds) = match property {
        Property::DmVerityRootHash(digest) => return dm.is_some_and(|dm| dm.root_hash == *digest),
        Property::FsVerityDigest(digest) => return fs.is_some_and(|fs| fs.digest == *digest),
        Property::BootVerified(truth) => (truth, found.boot_verified),
        Property::DmVeritySignature(truth) => {
            (truth, dm.is_some_and(|dm| dm.signature == Signature::Signed))
        }
        Property::FsVeritySignature(truth) => {
            (truth, fs.is_some_and(|fs| fs.signature == Signature::Signed))
        }
    };
    (*wanted == Truth::True) == holds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(byte: u8, signature: Signature) -> Properties {
        let dm_verity = Some(DmVerity { root_hash: Digest::sha256([byte; 32]), signature });
        Properties { dm_verity, ..Properties::default() }
    }

    fn policy(rules: &str) -> Policy {
        let text = format!("policy_name=p policy_version=0.0.0\n{rules}");
        Policy::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn first_match_wins_then_the_defaults() {
        let aa = "aa".repeat(32);
        let policy = policy(&format!(
            "DEFAULT action=ALLOW\nDEFAULT op=EXECUTE action=DENY\n\
             op=EXECUTE dmverity_roothash=sha256:{aa} action=DENY\n\
             op=KMODULE dmverity_signature=TRUE action=DENY\n\
             op=EXECUTE dmverity_signature=TRUE action=ALLOW\n\
             op=EXECUTE dmverity_roothash=sha256:{} dmverity_signature=FALSE action=ALLOW\n",
            "bb".repeat(32)
        ));
        let nothing = Properties::default();
        let boot = Properties { boot_verified: true, ..Properties::default() };
        let rows: [(Operation, Properties, Action, &str); 8] = [
            (Operation::Execute, volume(0xaa, Signature::Signed), Action::Deny, "revoked first"),
            (Operation::Execute, volume(0xcc, Signature::Signed), Action::Allow, "signed"),
            (Operation::Execute, volume(0xbb, Signature::Unsigned), Action::Allow, "by root hash"),
            (Operation::Execute, volume(0xcc, Signature::Unsigned), Action::Deny, "unknown"),
            (Operation::Execute, nothing.clone(), Action::Deny, "op default"),
            (Operation::Execute, boot, Action::Deny, "no boot_verified rule"),
            (Operation::KernelModule, volume(0xcc, Signature::Signed), Action::Deny, "other op"),
            (Operation::Firmware, nothing, Action::Allow, "global default"),
        ];
        for (operation, properties, action, why) in rows {
            assert_eq!(policy.evaluate(operation, &properties).action, action, "{why}");
        }
    }

    #[test]
    fn false_holds_where_nothing_is_known() {
        for property in ["dmverity_signature", "fsverity_signature", "boot_verified"] {
            let p =
                policy(&format!("DEFAULT action=DENY\nop=EXECUTE {property}=FALSE action=ALLOW"));
            let decision = p.evaluate(Operation::Execute, &Properties::default());
            assert_eq!(decision.action, Action::Allow, "{property}");
            let p =
                policy(&format!("DEFAULT action=ALLOW\nop=EXECUTE {property}=TRUE action=DENY"));
            let decision = p.evaluate(Operation::Execute, &Properties::default());
            assert_eq!(decision.action, Action::Allow, "{property}");
        }
    }

    #[test]
    fn digests_compare_algorithm_length_and_bytes() {
        let aa = "aa".repeat(32);
        for (rule, action) in [
            (format!("sha256:{aa}"), Action::Allow),
            (format!("sha256:{}", aa.to_uppercase()), Action::Allow),
            (format!("SHA256:{aa}"), Action::Deny),
            (format!("sha256-generic:{aa}"), Action::Deny),
            (format!("sha256:{}", "aa".repeat(31)), Action::Deny),
            (format!("sha256:{}ab", "aa".repeat(31)), Action::Deny),
        ] {
            let p = policy(&format!(
                "DEFAULT action=DENY\nop=EXECUTE dmverity_roothash={rule} action=ALLOW"
            ));
            let found = p.evaluate(Operation::Execute, &volume(0xaa, Signature::Unsigned));
            assert_eq!(found.action, action, "{rule}");
        }
    }

    #[test]
    fn a_rule_without_properties_always_matches() {
        let p = policy("DEFAULT action=DENY\nop=EXECUTE action=ALLOW\nop=EXECUTE action=DENY");
        let decision = p.evaluate(Operation::Execute, &Properties::default());
        assert_eq!(decision.action, Action::Allow);
        assert_eq!(decision.to_string(), "op=EXECUTE action=ALLOW");
        let default = p.evaluate(Operation::Policy, &Properties::default());
        assert_eq!(default.to_string(), "DEFAULT action=DENY");
    }

    #[test]
    fn fs_verity_digest_and_signature() {
        let fs_verity = FsVerity { digest: Digest::sha256([7; 32]), signature: Signature::Signed };
        let file = Properties { fs_verity: Some(fs_verity), ..Properties::default() };
        for rule in [
            "fsverity_signature=TRUE".to_owned(),
            format!("fsverity_digest=sha256:{}", "07".repeat(32)),
        ] {
            let p = policy(&format!("DEFAULT action=DENY\nop=EXECUTE {rule} action=ALLOW"));
            assert_eq!(p.evaluate(Operation::Execute, &file).action, Action::Allow, "{rule}");
        }
    }

    #[test]
    fn what_lets_unverified_code_run_is_found() {
        let closed = [
            "",
            "op=EXECUTE dmverity_signature=TRUE action=ALLOW",
            "op=EXECUTE fsverity_signature=TRUE action=ALLOW",
            "op=EXECUTE dmverity_signature=TRUE dmverity_signature=FALSE action=ALLOW",
            "op=EXECUTE boot_verified=TRUE dmverity_signature=TRUE action=ALLOW",
            "op=EXECUTE boot_verified=TRUE action=DENY\nop=EXECUTE boot_verified=TRUE action=ALLOW",
            "op=FIRMWARE action=ALLOW",
            "op=EXECUTE dmverity_roothash=sha256:00 action=ALLOW",
        ];
        let open = [
            "op=EXECUTE action=ALLOW",
            "op=EXECUTE dmverity_signature=FALSE action=ALLOW",
            "op=EXECUTE fsverity_signature=FALSE action=ALLOW",
            "op=EXECUTE boot_verified=FALSE action=ALLOW",
            "op=EXECUTE boot_verified=TRUE action=ALLOW",
            "op=EXECUTE boot_verified=TRUE dmverity_signature=FALSE action=ALLOW",
            "op=EXECUTE dmverity_signature=TRUE action=DENY\n\
             op=EXECUTE fsverity_signature=FALSE dmverity_signature=FALSE action=ALLOW",
        ];
        for rules in closed {
            let p =
                policy(&format!("DEFAULT action=ALLOW\nDEFAULT op=EXECUTE action=DENY\n{rules}"));
            assert_eq!(p.unverified_execute(), None, "{rules}");
        }
        for rules in open {
            let p = policy(&format!("DEFAULT action=DENY\n{rules}"));
            let found = p.unverified_execute().unwrap().to_string();
            assert_eq!(Some(found.as_str()), rules.lines().last(), "{rules}");
        }
        let default = policy("DEFAULT action=DENY\nDEFAULT op=EXECUTE action=ALLOW");
        let found = default.unverified_execute().unwrap().to_string();
        assert_eq!(found, "DEFAULT op=EXECUTE action=ALLOW");
    }
}
