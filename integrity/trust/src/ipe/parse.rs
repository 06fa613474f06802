//! Text to [`Policy`], refusing what the kernel refuses.
//!
//! Follows `ipe_parse_policy` in Linux `security/ipe/policy_parser.c`, including what its
//! documentation does not say:
//! - the text ends at its first NUL (`kmemdup_nul` and `strsep`);
//! - lines end at LF or CR, a comment starts at any `#`, white space at the line's end goes
//!   (the kernel's `isspace`: also VT, FF and 0xa0), tokens are split at space and tab only;
//! - the last token of a rule is its action, whatever stands before it;
//! - version numbers are `kstrtou16`: decimal, one leading `+` allowed, more than 65,535 is ERANGE;
//! - a digest is cut at its first `:`; an odd number of hex digits or another character is EINVAL,
//!   no digits at all are accepted (`ipe_digest_parse`);
//! - without a global default, every operation needs one of its own (`validate_policy`).

use std::collections::BTreeMap;

use super::{Action, Digest, Name, Operation, Policy, Property, Rule, Truth, Version};

/// Why the kernel would refuse a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy line {line}: {kind}")]
pub struct ParseError {
    line: usize,
    kind: ParseErrorKind,
}

impl ParseError {
    /// The line, counted from 1 (LF and CR both end one).
    pub fn line(&self) -> usize {
        self.line
    }

    /// What is wrong there.
    pub fn kind(&self) -> &ParseErrorKind {
        &self.kind
    }
}

/// What is wrong with a policy, with the kernel's error number in brackets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseErrorKind {
    /// The last token is not an action.
    #[error("\"{0}\" is no action: expected action=ALLOW or action=DENY at the end [EBADMSG]")]
    Action(String),
    /// A `DEFAULT` line with a property.
    #[error("a DEFAULT takes no property, found \"{0}\" [EBADMSG]")]
    DefaultProperty(String),
    /// The same default twice.
    #[error("this default was set before [EBADMSG]")]
    DefaultTwice,
    /// A digest that is not `ALG:HEX`.
    #[error("\"{0}\" is no digest: expected ALG:HEX with whole bytes [EBADMSG or EINVAL]")]
    Digest(String),
    /// The first line is not `policy_name=NAME policy_version=N.N.N`.
    #[error("\"{0}\" is no header: expected policy_name=NAME policy_version=N.N.N [EBADMSG]")]
    Header(String),
    /// Neither a default for this operation nor a global one.
    #[error("no DEFAULT for op={0} and no global DEFAULT [EBADMSG]")]
    NoDefault(Operation),
    /// No line at all.
    #[error("no header: the policy is empty [EBADMSG]")]
    NoHeader,
    /// Not UTF-8 outside a comment; the kernel would take it.
    #[error("not UTF-8 outside a comment")]
    NotUtf8,
    /// An operation the kernel does not know.
    #[error("\"{0}\" is no operation [EBADMSG]")]
    Operation(String),
    /// A property the kernel does not know.
    #[error("\"{0}\" is no property [EBADMSG]")]
    Property(String),
    /// A version that is not three numbers of 16 bits.
    #[error("version \"{0}\": expected three numbers from 0 to 65535 [EBADMSG, EINVAL or ERANGE]")]
    Version(String),
}

impl Policy {
    /// Reads a policy's plain text, the content of its PKCS#7.
    ///
    /// # Errors
    /// The first line that the kernel would refuse as well, and why.
    pub fn parse(text: &[u8]) -> Result<Self, ParseError> {
        let mut parser = Parser::default();
        let text = text.split(|&b| b == 0).next().unwrap_or_default();
        let mut last = 1;
        for (index, line) in text.split(|&b| b == b'\n' || b == b'\r').enumerate() {
            last = index.saturating_add(1);
            let line = significant(line);
            if !line.is_empty() {
                let parsed = std::str::from_utf8(line).map_or_else(
                    |_not_utf8| Err(ParseErrorKind::NotUtf8),
                    |line| parser.line(line),
                );
                parsed.map_err(|kind| ParseError { line: last, kind })?;
            }
        }
        parser.finish().map_err(|kind| ParseError { line: last, kind })
    }
}

/// `remove_comment` and `remove_trailing_spaces`.
fn significant(line: &[u8]) -> &[u8] {
    let line = line.split(|&b| b == b'#').next().unwrap_or_default();
    let end = line.iter().rposition(|&b| !is_space(b)).map_or(0, |i| i.saturating_add(1));
    line.get(..end).unwrap_or_default()
}

/// The kernel's `isspace` (`lib/ctype.c`).
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0)
}

fn tokens(line: &str) -> impl Iterator<Item = &str> {
    line.split([' ', '\t']).filter(|token| !token.is_empty())
}

#[derive(Default)]
struct Parser {
    header: Option<(Name, Version)>,
    global_default: Option<Action>,
    defaults: BTreeMap<Operation, Action>,
    rules: Vec<Rule>,
}

impl Parser {
    fn line(&mut self, line: &str) -> Result<(), ParseErrorKind> {
        if self.header.is_none() {
            self.header = Some(header(line)?);
            return Ok(());
        }
        let mut tokens: Vec<&str> = tokens(line).collect();
        let last = tokens.pop().unwrap_or_default();
        let is_default = tokens.first() == Some(&"DEFAULT");
        let mut rest = tokens.iter().skip(usize::from(is_default));
        let operation = rest.next().map(|token| operation(token)).transpose()?;
        let properties = rest.map(|token| property(token)).collect::<Result<Vec<_>, _>>()?;
        let action = action(last)?;
        if !is_default {
            let operation = operation.ok_or_else(|| ParseErrorKind::Operation(last.to_owned()))?;
            self.rules.push(Rule { operation, properties, action });
            return Ok(());
        }
        if let Some(property) = properties.first() {
            return Err(ParseErrorKind::DefaultProperty(property.to_string()));
        }
        let before = match operation {
            Some(operation) => self.defaults.insert(operation, action),
            None => self.global_default.replace(action),
        };
        before.map_or(Ok(()), |_before| Err(ParseErrorKind::DefaultTwice))
    }

    fn finish(self) -> Result<Policy, ParseErrorKind> {
        let (name, version) = self.header.ok_or(ParseErrorKind::NoHeader)?;
        let missing = Operation::ALL.into_iter().find(|op| !self.defaults.contains_key(op));
        if let (None, Some(operation)) = (self.global_default, missing) {
            return Err(ParseErrorKind::NoDefault(operation));
        }
        let Self { global_default, defaults, rules, .. } = self;
        Ok(Policy { name, version, global_default, defaults, rules })
    }
}

fn header(line: &str) -> Result<(Name, Version), ParseErrorKind> {
    let bad = || ParseErrorKind::Header(line.to_owned());
    let mut tokens = tokens(line);
    let name = tokens.next().and_then(|token| token.strip_prefix("policy_name="));
    let name = name.and_then(Name::parse).ok_or_else(bad)?;
    let version = tokens.next().and_then(|token| token.strip_prefix("policy_version="));
    let version = version.filter(|version| !version.is_empty()).ok_or_else(bad)?;
    let version =
        parse_version(version).ok_or_else(|| ParseErrorKind::Version(version.to_owned()))?;
    tokens.next().map_or(Ok((name, version)), |_third| Err(bad()))
}

fn parse_version(text: &str) -> Option<Version> {
    let mut numbers = text.split('.').map(kstrtou16);
    let version =
        Version { major: numbers.next()??, minor: numbers.next()??, revision: numbers.next()?? };
    numbers.next().is_none().then_some(version)
}

impl std::str::FromStr for Version {
    type Err = ParseErrorKind;

    fn from_str(text: &str) -> Result<Self, ParseErrorKind> {
        parse_version(text).ok_or_else(|| ParseErrorKind::Version(text.to_owned()))
    }
}

/// `kstrtou16(text, 10, …)`: what `str::parse` takes as well, a leading `+` included.
fn kstrtou16(text: &str) -> Option<u16> {
    text.parse().ok()
}

fn operation(token: &str) -> Result<Operation, ParseErrorKind> {
    let name = token.strip_prefix("op=");
    name.and_then(|name| Operation::ALL.into_iter().find(|op| op.as_str() == name))
        .ok_or_else(|| ParseErrorKind::Operation(token.to_owned()))
}

fn action(token: &str) -> Result<Action, ParseErrorKind> {
    match token {
        "action=ALLOW" => Ok(Action::Allow),
        "action=DENY" => Ok(Action::Deny),
        _ => Err(ParseErrorKind::Action(token.to_owned())),
    }
}

fn property(token: &str) -> Result<Property, ParseErrorKind> {
    let unknown = || ParseErrorKind::Property(token.to_owned());
    let (key, value) = token.split_once('=').ok_or_else(unknown)?;
    if value.is_empty() {
        return Err(unknown());
    }
    let truth = || match value {
        "TRUE" => Ok(Truth::True),
        "FALSE" => Ok(Truth::False),
        _ => Err(unknown()),
    };
    let digest =
        || Digest::parse_ipe(value).ok_or_else(|| ParseErrorKind::Digest(value.to_owned()));
    match key {
        "boot_verified" => truth().map(Property::BootVerified),
        "dmverity_roothash" => digest().map(Property::DmVerityRootHash),
        "dmverity_signature" => truth().map(Property::DmVeritySignature),
        "fsverity_digest" => digest().map(Property::FsVerityDigest),
        "fsverity_signature" => truth().map(Property::FsVeritySignature),
        _ => Err(unknown()),
    }
}

impl Digest {
    /// `ipe_digest_parse`.
    fn parse_ipe(value: &str) -> Option<Self> {
        let (algorithm, digits) = value.split_once(':')?;
        let bytes = hex::decode(digits).ok()?;
        Some(Self { algorithm: algorithm.to_owned(), bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "policy_name=p policy_version=0.0.0\n";

    fn parse(text: &str) -> Result<Policy, ParseError> {
        Policy::parse(text.as_bytes())
    }

    /// Examples of Documentation/admin-guide/LSM/ipe.rst and of policies run in the guest.
    #[test]
    fn the_kernels_own_examples_parse() {
        let good = [
            "policy_name=Allow_All policy_version=0.0.0\nDEFAULT action=ALLOW\n",
            "policy_name=Allow_Initramfs policy_version=0.0.0\nDEFAULT action=DENY\n\n\
             op=EXECUTE boot_verified=TRUE action=ALLOW\n",
            "policy_name=Allow_Signed_DMV_And_Initramfs policy_version=0.0.0\nDEFAULT action=DENY\n\
             \nop=EXECUTE boot_verified=TRUE action=ALLOW\n\
             op=EXECUTE dmverity_signature=TRUE action=ALLOW\n",
            "policy_name=Deny_DMV_By_Roothash policy_version=0.0.0\nDEFAULT action=DENY\n\
             op=EXECUTE dmverity_roothash=sha256:cd2c5bae7c6c579edaae4353049d58eb5f2e8be0244bf05345bc8e5ed257baff action=DENY\n\
             op=EXECUTE boot_verified=TRUE action=ALLOW\n\
             op=EXECUTE dmverity_signature=TRUE action=ALLOW\n",
            "policy_name=Allow_Signed_And_Validated_FSVerity policy_version=0.0.0\n\
             DEFAULT action=DENY\n\nop=EXECUTE boot_verified=TRUE action=ALLOW\n\
             op=EXECUTE fsverity_signature=TRUE action=ALLOW\n",
            "policy_name=Allow_FSV_By_Digest policy_version=0.0.0\nDEFAULT action=DENY\n\
             op=EXECUTE fsverity_digest=sha256:fd88f2b8824e197f850bf4c5109bea5cf0ee38104f710843bb72da796ba5af9e action=ALLOW\n",
            "# hallmark-keys sha256:00\npolicy_name=pol1 policy_version=0.0.1\nDEFAULT action=ALLOW\n\
             DEFAULT op=EXECUTE action=DENY\nop=EXECUTE dmverity_signature=TRUE action=ALLOW # end\n\n",
            // all operations by name instead of a global default
            "policy_name=x policy_version=1.2.3\nDEFAULT op=EXECUTE action=DENY\n\
             DEFAULT op=FIRMWARE action=DENY\nDEFAULT op=KMODULE action=DENY\n\
             DEFAULT op=KEXEC_IMAGE action=DENY\nDEFAULT op=KEXEC_INITRAMFS action=DENY\n\
             DEFAULT op=POLICY action=DENY\nDEFAULT op=X509_CERT action=DENY\n",
        ];
        for text in good {
            let policy = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(parse(&policy.to_string()).unwrap(), policy, "{text}");
        }
    }

    #[test]
    fn odd_but_accepted() {
        let same = parse("policy_name=p policy_version=0.0.0\nDEFAULT action=DENY").unwrap();
        for text in [
            "policy_name=p \t policy_version=+0.00000.0\rDEFAULT\taction=DENY \u{b}\u{c}",
            "\n \r\n#c\n  policy_name=p policy_version=0.0.0#c\nDEFAULT  action=DENY#",
            "policy_name=p policy_version=0.0.0\nDEFAULT action=DENY\0garbage after NUL",
        ] {
            assert_eq!(parse(text).as_ref(), Ok(&same), "{text:?}");
        }
        let mut latin1 = HEAD.as_bytes().to_vec();
        latin1.extend_from_slice(b"# caf\xe9\nDEFAULT action=DENY\xa0\n");
        assert_eq!(Policy::parse(&latin1).as_ref(), Ok(&same));
        let empty_digest = format!(
            "{HEAD}DEFAULT action=DENY\nop=EXECUTE dmverity_roothash=: dmverity_roothash=a:FF action=ALLOW"
        );
        let policy = parse(&empty_digest).unwrap();
        assert_eq!(policy.rules[0].properties.len(), 2);
    }

    #[test]
    fn headers_refused_as_the_kernel_refuses() {
        use ParseErrorKind as K;
        let s = str::to_owned;
        let whole: [(&str, ParseErrorKind); 12] = [
            ("", K::NoHeader),
            ("# only a comment\n", K::NoHeader),
            ("DEFAULT action=ALLOW\n", K::Header(s("DEFAULT action=ALLOW"))),
            ("policy_name=p\n", K::Header(s("policy_name=p"))),
            (
                "policy_name= policy_version=0.0.0",
                K::Header(s("policy_name= policy_version=0.0.0")),
            ),
            (
                "policy_version=0.0.0 policy_name=p\n",
                K::Header(s("policy_version=0.0.0 policy_name=p")),
            ),
            (
                "policy_name=p policy_version=0.0.0 x\n",
                K::Header(s("policy_name=p policy_version=0.0.0 x")),
            ),
            ("policy_name=p policy_version=1.2\n", K::Version(s("1.2"))),
            ("policy_name=p policy_version=1.2.3.4\n", K::Version(s("1.2.3.4"))),
            ("policy_name=p policy_version=1.65536.3\n", K::Version(s("1.65536.3"))),
            ("policy_name=p policy_version=1.-2.3\n", K::Version(s("1.-2.3"))),
            ("policy_name=p policy_version=1..3\n", K::Version(s("1..3"))),
        ];
        for (text, kind) in whole {
            assert_eq!(parse(text).unwrap_err().kind(), &kind, "{text}");
        }
        let missing = format!("{HEAD}DEFAULT op=EXECUTE action=DENY\n");
        assert_eq!(parse(&missing).unwrap_err().kind(), &K::NoDefault(Operation::Firmware));
        assert_eq!(
            Policy::parse(b"policy_name=\xff policy_version=0.0.0").unwrap_err().kind(),
            &K::NotUtf8
        );
    }

    #[test]
    fn rules_refused_as_the_kernel_refuses() {
        use ParseErrorKind as K;
        let s = str::to_owned;
        let hex64 = "a".repeat(64);
        let rules: Vec<(String, ParseErrorKind)> = vec![
            (s("DEFAULT action=DENY"), K::DefaultTwice),
            (s("DEFAULT op=EXECUTE action=DENY\nDEFAULT op=EXECUTE action=DENY"), K::DefaultTwice),
            (
                s("DEFAULT op=EXECUTE boot_verified=TRUE action=DENY"),
                K::DefaultProperty(s("boot_verified=TRUE")),
            ),
            (s("DEFAULT DEFAULT action=DENY"), K::Operation(s("DEFAULT"))),
            (s("DEFAULT boot_verified=TRUE action=DENY"), K::Operation(s("boot_verified=TRUE"))),
            (s("DEFAULT"), K::Action(s("DEFAULT"))),
            (s("op=EXECUTE"), K::Action(s("op=EXECUTE"))),
            (s("action=ALLOW"), K::Operation(s("action=ALLOW"))),
            (s("op=EXECUTE action=allow"), K::Action(s("action=allow"))),
            (s("op=execute action=ALLOW"), K::Operation(s("op=execute"))),
            (s("op=BPF_PROG_LOAD action=ALLOW"), K::Operation(s("op=BPF_PROG_LOAD"))),
            (s("action=ALLOW op=EXECUTE"), K::Operation(s("action=ALLOW"))),
            (s("op=EXECUTE op=POLICY action=ALLOW"), K::Property(s("op=POLICY"))),
            (s("op=EXECUTE dmverity_signature action=ALLOW"), K::Property(s("dmverity_signature"))),
            (
                s("op=EXECUTE dmverity_signature=true action=ALLOW"),
                K::Property(s("dmverity_signature=true")),
            ),
            (s("op=EXECUTE dmverity_roothash= action=ALLOW"), K::Property(s("dmverity_roothash="))),
            (
                format!("op=EXECUTE dmverity_roothash={hex64} action=ALLOW"),
                K::Digest(hex64.clone()),
            ),
            (s("op=EXECUTE fsverity_digest=sha256:abc action=ALLOW"), K::Digest(s("sha256:abc"))),
            (s("op=EXECUTE fsverity_digest=sha256:zz action=ALLOW"), K::Digest(s("sha256:zz"))),
            (s("\u{b}op=EXECUTE action=ALLOW"), K::Operation(s("\u{b}op=EXECUTE"))),
            (s("op=EXECUTE \"x\" action=ALLOW"), K::Property(s("\"x\""))),
        ];
        for (rule, kind) in rules {
            let text = format!("{HEAD}DEFAULT action=ALLOW\n{rule}\n");
            let error = parse(&text).unwrap_err();
            assert_eq!(error.kind(), &kind, "{rule}");
            assert!(error.line() >= 3, "{rule}");
        }
    }

    fn digests() -> impl Strategy<Value = Digest> {
        ("[a-z0-9-]{0,8}", proptest::collection::vec(any::<u8>(), 0..64))
            .prop_map(|(algorithm, bytes)| Digest { algorithm, bytes })
    }

    fn truths() -> impl Strategy<Value = Truth> {
        prop_oneof![Just(Truth::True), Just(Truth::False)]
    }

    fn actions() -> impl Strategy<Value = Action> {
        prop_oneof![Just(Action::Allow), Just(Action::Deny)]
    }

    fn operations() -> impl Strategy<Value = Operation> {
        proptest::sample::select(Operation::ALL.to_vec())
    }

    fn properties() -> impl Strategy<Value = Property> {
        prop_oneof![
            truths().prop_map(Property::BootVerified),
            digests().prop_map(Property::DmVerityRootHash),
            truths().prop_map(Property::DmVeritySignature),
            digests().prop_map(Property::FsVerityDigest),
            truths().prop_map(Property::FsVeritySignature),
        ]
    }

    fn policies() -> impl Strategy<Value = Policy> {
        let rule = (operations(), proptest::collection::vec(properties(), 0..4), actions())
            .prop_map(|(operation, properties, action)| Rule { operation, properties, action });
        (
            "[^ \t\r\n#\0]{1,20}",
            any::<[u16; 3]>(),
            actions(),
            proptest::collection::btree_map(operations(), actions(), 0..7),
            proptest::collection::vec(rule, 0..12),
        )
            .prop_map(|(name, [major, minor, revision], default, defaults, rules)| {
                Policy {
                    name: Name::parse(&name).unwrap(),
                    version: Version { major, minor, revision },
                    global_default: Some(default),
                    defaults,
                    rules,
                }
            })
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(policy in policies()) {
            prop_assert_eq!(Policy::parse(policy.to_string().as_bytes()), Ok(policy));
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(policy) = Policy::parse(&bytes) {
                prop_assert_eq!(Policy::parse(policy.to_string().as_bytes()), Ok(policy));
            }
        }

        #[test]
        fn near_policies_are_answered(
            tail in "(DEFAULT|op=EXECUTE|action=DENY|dmverity_roothash=a:0|[ \t\n#=:]){0,12}"
        ) {
            let text = format!("{HEAD}DEFAULT action=DENY\n{tail}");
            if let Ok(policy) = Policy::parse(text.as_bytes()) {
                prop_assert_eq!(Policy::parse(policy.to_string().as_bytes()), Ok(policy));
            }
        }
    }
}
