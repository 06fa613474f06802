//! Which devices a container may open or make: the spec's rules folded into one policy that both kernels can hold.
//!
//! A policy is a default and exceptions to it, as in the v1 devices controller. The fold keeps v1's meaning on v2 too,
//! and refuses what v1 would silently ignore: taking one device out of a wildcard that was allowed before.
//!
//! Source: kernel security/device_cgroup.c; opencontainers/cgroups `devices_emulator.go` for the order of writes.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Error;

/// One entry of `linux.resources.devices`, as written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceRule {
    /// Whether the rule grants or takes away.
    pub allow: bool,
    /// `a` (all: resets everything before it), `b` or `c`; absent is `a`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Absent or negative: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    /// Absent or negative: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    /// Letters of `rwm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
}

/// Whether an access is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    Deny,
}

impl Verdict {
    pub(super) const fn opposite(self) -> Self {
        match self {
            Self::Allow => Self::Deny,
            Self::Deny => Self::Allow,
        }
    }
}

/// Block or character, numbered as `BPF_DEVCG_DEV_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Block = 1,
    Char = 2,
}

/// A set of mknod, read and write, with the bits of `BPF_DEVCG_ACC_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access(u8);

impl Access {
    pub(super) const MKNOD: Self = Self(1);
    pub(super) const READ: Self = Self(2);
    pub(super) const WRITE: Self = Self(4);
    pub(super) const ALL: Self = Self(7);
    const NONE: Self = Self(0);

    /// As runc, other letters say nothing; a word of none but such is refused.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let set = text.chars().fold(Self::NONE, |set, letter| match letter {
            'r' => set.union(Self::READ),
            'w' => set.union(Self::WRITE),
            'm' => set.union(Self::MKNOD),
            _ => set,
        });
        (set != Self::NONE).then_some(set)
    }

    pub(super) const fn bits(self) -> u8 {
        self.0
    }

    pub(super) const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(super) const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (one, letter) in [(Self::READ, "r"), (Self::WRITE, "w"), (Self::MKNOD, "m")] {
            if self.contains(one) {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// A device, or with `None` every one of a kind or major number. Ordered as the rules are written: wildcards first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Device {
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    pub(super) kind: Kind,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let kind = match self.kind {
            Kind::Block => 'b',
            Kind::Char => 'c',
        };
        write!(f, "{kind} {}:{}", number(self.major), number(self.minor))
    }
}

/// A default, and the devices for which the opposite holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) default: Verdict,
    pub(super) exceptions: BTreeMap<Device, Access>,
}

impl Policy {
    /// Folds `rules`, then what every container may use whatever its rules say (runc's list: mknod of anything, null,
    /// zero, full, random, urandom, tty, ptmx, pts, tun).
    ///
    /// # Errors
    /// [`Error::Value`] for a rule that is no rule, or that takes a device out of an allowed wildcard.
    pub(super) fn new(rules: &[DeviceRule]) -> Result<Self, Error> {
        let mut policy = Self { default: Verdict::Deny, exceptions: BTreeMap::new() };
        for (at, rule) in rules.iter().enumerate() {
            policy.fold(at, rule)?;
        }
        for (device, access) in every_container() {
            policy.change(Verdict::Allow, device, access)?;
        }
        Ok(policy)
    }

    fn fold(&mut self, at: usize, rule: &DeviceRule) -> Result<(), Error> {
        let verdict = if rule.allow { Verdict::Allow } else { Verdict::Deny };
        let access = match rule.access.as_deref() {
            None | Some("") => {
                return Err(Error::Value(format!("device access at {at} field cannot be empty")));
            }
            Some(text) => Access::parse(text)
                .ok_or_else(|| Error::Value(format!("invalid device access {text:?} at {at}")))?,
        };
        let kind = match rule.kind.as_deref() {
            None | Some("" | "a") => {
                self.default = verdict;
                self.exceptions.clear();
                return Ok(());
            }
            Some("b") => Kind::Block,
            Some("c") => Kind::Char,
            Some(other) => {
                return Err(Error::Value(format!("invalid cgroup device type {other:?}")));
            }
        };
        let device = Device { major: number(rule.major)?, minor: number(rule.minor)?, kind };
        self.change(verdict, device, access)
    }

    fn change(&mut self, verdict: Verdict, device: Device, access: Access) -> Result<(), Error> {
        if verdict == self.default {
            self.refuse_hole(device, access)?;
            let left = self.exceptions.get(&device).map(|had| had.without(access));
            match left {
                Some(Access::NONE) => drop(self.exceptions.remove(&device)),
                Some(left) => drop(self.exceptions.insert(device, left)),
                None => {}
            }
        } else {
            let had = self.exceptions.get(&device).copied().unwrap_or(Access::NONE);
            self.exceptions.insert(device, had.union(access));
        }
        Ok(())
    }

    /// v1 ignores the removal of a part of a wildcard exception: whoever asked would believe in a rule that is not
    /// there.
    fn refuse_hole(&self, device: Device, access: Access) -> Result<(), Error> {
        let any = |major, minor| Device { major, minor, kind: device.kind };
        for wildcard in [any(None, device.minor), any(device.major, None), any(None, None)] {
            let had = self.exceptions.get(&wildcard).copied().unwrap_or(Access::NONE);
            if wildcard != device && had.intersects(access) {
                return Err(Error::Value(format!(
                    "requested rule [{device} {access}] not supported by devices cgroupv1 (cannot punch hole in \
                     existing wildcard rule [{wildcard} {had}])"
                )));
            }
        }
        Ok(())
    }

    /// The same policy as a default of "allow", if it allows every character device by one wildcard, and of block
    /// devices none but by one: what v1 takes below a group that denies a single device, where it refuses wildcards
    /// (`verify_new_ex` of security/device_cgroup.c) and lets a group that allows inherit the denial.
    pub(super) fn as_allowing(&self) -> Option<Self> {
        let any = |kind| Device { major: None, minor: None, kind };
        let granted = |kind| self.exceptions.get(&any(kind)).copied().unwrap_or(Access::NONE);
        let covered = |(device, access): (&Device, &Access)| granted(device.kind).contains(*access);
        let open = Access::READ.union(Access::WRITE);
        if self.default == Verdict::Allow
            || !granted(Kind::Char).intersects(open)
            || !self.exceptions.iter().all(covered)
        {
            return None;
        }
        let denied = [Kind::Block, Kind::Char]
            .map(|kind| (any(kind), Access::ALL.without(granted(kind))))
            .into_iter()
            .filter(|(_, access)| *access != Access::NONE);
        Some(Self { default: Verdict::Allow, exceptions: denied.collect() })
    }

    /// Whether an access would pass; the definition that the eBPF program is tested against.
    ///
    /// Under "deny", one exception must cover the whole access; under "allow", one exception that touches it is enough
    /// to refuse it. Source: `match_exception` and `match_exception_partial` of security/device_cgroup.c.
    #[cfg(test)]
    pub(super) fn judge(&self, kind: Kind, (major, minor): (u32, u32), access: Access) -> Verdict {
        let hit = self.exceptions.iter().any(|(device, set)| {
            device.kind == kind
                && device.major.is_none_or(|number| number == major)
                && device.minor.is_none_or(|number| number == minor)
                && match self.default {
                    Verdict::Deny => set.contains(access),
                    Verdict::Allow => set.intersects(access),
                }
        });
        if hit { self.default.opposite() } else { self.default }
    }

    /// Reads back `devices.list` of v1. It lists what is allowed; under "allow" the kernel does not say what it denies.
    pub(super) fn parse_list(text: &str) -> Result<Self, Error> {
        let mut policy = Self { default: Verdict::Deny, exceptions: BTreeMap::new() };
        for line in text.lines() {
            let malformed = || Error::Value(format!("malformed devices.list rule {line}"));
            let fields: Vec<&str> = line.split([' ', ':']).collect();
            let [kind, major, minor, access] = fields[..] else { return Err(malformed()) };
            let kind = match kind {
                "a" => {
                    return Ok(Self { default: Verdict::Allow, exceptions: BTreeMap::new() });
                }
                "b" => Kind::Block,
                "c" => Kind::Char,
                _ => return Err(malformed()),
            };
            let number = |text: &str| match text {
                "*" => Some(None),
                text => text.parse().ok().map(Some),
            };
            let (Some(major), Some(minor), Some(access)) =
                (number(major), number(minor), Access::parse(access))
            else {
                return Err(malformed());
            };
            policy.change(Verdict::Allow, Device { major, minor, kind }, access)?;
        }
        Ok(policy)
    }

    /// The writes that lead a v1 group from `self` to `target`, disturbing as little as possible: file name and value.
    pub(super) fn transition(&self, target: &Self) -> Vec<(&'static str, String)> {
        let mut writes = Vec::new();
        let mut write = |verdict, rule: String| {
            let file = match verdict {
                Verdict::Allow => "devices.allow",
                Verdict::Deny => "devices.deny",
            };
            writes.push((file, rule));
        };
        let nothing = BTreeMap::new();
        // exceptions of an allowing group cannot be read: start such a group anew
        let had = if self.default == Verdict::Allow || self.default != target.default {
            write(target.default, "a *:* rwm".to_owned());
            &nothing
        } else {
            &self.exceptions
        };
        let missing_in = |from: &BTreeMap<Device, Access>, device: &Device, access: Access| {
            let left = access.without(from.get(device).copied().unwrap_or(Access::NONE));
            (left != Access::NONE).then(|| format!("{device} {left}"))
        };
        for (device, access) in had {
            if let Some(rule) = missing_in(&target.exceptions, device, *access) {
                write(target.default, rule);
            }
        }
        for (device, access) in &target.exceptions {
            if let Some(rule) = missing_in(had, device, *access) {
                write(target.default.opposite(), rule);
            }
        }
        writes
    }
}

fn number(number: Option<i64>) -> Result<Option<u32>, Error> {
    match number {
        None | Some(i64::MIN..0) => Ok(None),
        Some(number) => {
            u32::try_from(number).map(Some).map_err(|_range: std::num::TryFromIntError| {
                Error::Value(format!("invalid device number {number}"))
            })
        }
    }
}

fn every_container() -> impl Iterator<Item = (Device, Access)> {
    let mknod = [Kind::Char, Kind::Block]
        .map(|kind| (Device { major: None, minor: None, kind }, Access::MKNOD));
    let named = [
        (1, Some(3)),    // null
        (1, Some(8)),    // random
        (1, Some(7)),    // full
        (5, Some(0)),    // tty
        (1, Some(5)),    // zero
        (1, Some(9)),    // urandom
        (136, None),     // pts
        (5, Some(2)),    // ptmx
        (10, Some(200)), // net/tun
    ]
    .map(|(major, minor)| (Device { major: Some(major), minor, kind: Kind::Char }, Access::ALL));
    mknod.into_iter().chain(named)
}

#[cfg(test)]
impl DeviceRule {
    /// `allow c 1:3 rwm`, for tests.
    pub(super) fn parse(text: &str) -> Self {
        let fields: Vec<&str> = text.split([' ', ':']).collect();
        Self {
            allow: fields[0] == "allow",
            kind: Some(fields[1].to_owned()),
            major: fields[2].parse().ok(),
            minor: fields[3].parse().ok(),
            access: Some(fields[4].to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn char_device(major: u32, minor: u32) -> Device {
        Device { major: Some(major), minor: Some(minor), kind: Kind::Char }
    }

    #[test]
    fn every_policy_ends_with_the_common_devices() {
        let policy = Policy::new(&[DeviceRule::parse("deny a *:* rwm")]).unwrap();
        assert_eq!(policy.default, Verdict::Deny);
        assert_eq!(policy.exceptions.len(), 11);
        for (at, expected) in [
            ((1, 3), Verdict::Allow),
            ((136, 77), Verdict::Allow),
            ((10, 236), Verdict::Deny),
            ((4, 64), Verdict::Deny),
        ] {
            assert_eq!(policy.judge(Kind::Char, at, Access::READ), expected, "{at:?}");
            assert_eq!(policy.judge(Kind::Char, at, Access::MKNOD), Verdict::Allow, "{at:?}");
        }
        assert_eq!(policy.judge(Kind::Block, (1, 3), Access::READ), Verdict::Deny);
    }

    #[test]
    fn a_wildcard_of_all_kinds_resets_what_came_before() {
        let rules = [
            DeviceRule::parse("allow c 4:64 rw"),
            DeviceRule::parse("allow a *:* rwm"),
            DeviceRule::parse("deny c 10:236 rwm"),
        ];
        let policy = Policy::new(&rules).unwrap();
        assert_eq!(policy.default, Verdict::Allow);
        assert_eq!(policy.exceptions, BTreeMap::from([(char_device(10, 236), Access::ALL)]));
        let rules = [DeviceRule::parse("allow a *:* rwm"), DeviceRule::parse("deny c 10:236 w")];
        let policy = Policy::new(&rules).unwrap();
        let read_write = Access::READ.union(Access::WRITE);
        assert_eq!(policy.judge(Kind::Char, (10, 236), Access::READ), Verdict::Allow);
        assert_eq!(policy.judge(Kind::Char, (10, 236), read_write), Verdict::Deny);
    }

    #[test]
    fn rules_that_are_none_are_refused_in_runcs_words() {
        for (bad, text) in [
            (DeviceRule::parse("allow c 1:1 "), "device access at 0 field cannot be empty"),
            (DeviceRule::parse("allow c 1:1 x"), "invalid device access \"x\" at 0"),
            (DeviceRule::parse("allow p 1:1 r"), "invalid cgroup device type \"p\""),
            (DeviceRule::parse("allow c 1099511627776:1 r"), "invalid device number 1099511627776"),
        ] {
            assert_eq!(Policy::new(&[bad]).unwrap_err().to_string(), text);
        }
        let hole = [DeviceRule::parse("allow c 4:* rwm"), DeviceRule::parse("deny c 4:64 rw")];
        let error = Policy::new(&hole).unwrap_err().to_string();
        assert!(
            error.contains("cannot punch hole in existing wildcard rule [c 4:* rwm]"),
            "{error}"
        );
    }

    #[test]
    fn a_policy_of_wildcards_is_the_same_turned_around() {
        let policy = |rules: &[&str]| {
            let rules: Vec<DeviceRule> = rules.iter().map(|rule| DeviceRule::parse(rule)).collect();
            Policy::new(&rules).unwrap()
        };
        for rules in [
            &["allow c *:* rwm"][..],
            &["allow c *:* rwm", "allow b *:* rwm"],
            &["allow c *:* rw", "allow b *:* r"],
            &["allow c *:* rw", "allow c 4:64 rwm"],
        ] {
            let straight = policy(rules);
            let turned = straight.as_allowing().unwrap();
            assert_eq!(turned.default, Verdict::Allow);
            let devices = [(1, 3), (10, 236), (8, 0)]
                .into_iter()
                .flat_map(|at| [(Kind::Char, at), (Kind::Block, at)])
                .flat_map(|(kind, at)| (1..=7).map(move |access| (kind, at, Access(access))));
            for (kind, at, access) in devices {
                let expected = straight.judge(kind, at, access);
                assert_eq!(turned.judge(kind, at, access), expected, "{rules:?} {access}");
            }
        }
        for rules in [
            &["deny a *:* rwm"][..],
            &["allow a *:* rwm"],
            &["allow c *:* r"],
            &["allow c *:* rwm", "allow b 8:0 r"],
        ] {
            assert_eq!(policy(rules).as_allowing(), None, "{rules:?}");
        }
    }

    #[test]
    fn devices_list_is_read_back() {
        let list = "c *:* m\nb 8:0 rw\nc 136:* rwm\n";
        let policy = Policy::parse_list(list).unwrap();
        assert_eq!(policy.default, Verdict::Deny);
        assert_eq!(policy.judge(Kind::Block, (8, 0), Access::WRITE), Verdict::Allow);
        assert_eq!(Policy::parse_list("a *:* rwm\n").unwrap().default, Verdict::Allow);
        for bad in ["c 1:3", "x 1:3 r", "c 1:b r", "c 1:3 q", "\n"] {
            assert!(Policy::parse_list(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_transition_writes_only_what_differs() {
        let fresh = Policy::parse_list("a *:* rwm\n").unwrap();
        let target = Policy {
            default: Verdict::Deny,
            exceptions: BTreeMap::from([(char_device(1, 3), Access::ALL)]),
        };
        assert_eq!(
            fresh.transition(&target),
            [("devices.deny", "a *:* rwm".to_owned()), ("devices.allow", "c 1:3 rwm".to_owned())]
        );
        let before = Policy::parse_list("c 1:3 rwm\nc 1:5 r\n").unwrap();
        assert_eq!(before.transition(&target), [("devices.deny", "c 1:5 r".to_owned())]);
        assert_eq!(target.transition(&target), []);
        let open = Policy {
            default: Verdict::Allow,
            exceptions: BTreeMap::from([(char_device(10, 236), Access::ALL)]),
        };
        assert_eq!(
            before.transition(&open),
            [
                ("devices.allow", "a *:* rwm".to_owned()),
                ("devices.deny", "c 10:236 rwm".to_owned())
            ]
        );
    }
}
