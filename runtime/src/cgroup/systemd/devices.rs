//! Device rules as properties: systemd applies them anew whenever it reloads, so it has to know them.
//!
//! systemd takes a list of what is allowed and nothing else: what it cannot hold, our own program or the v1 controller
//! does, which is set right after.
//!
//! Source: opencontainers/cgroups v0.1.0 `devices/systemd.go`.

use crate::cgroup::Error;
use crate::cgroup::devices::{Access, Device, DeviceRule, Kind, Policy, Verdict};
use crate::dbus::Value;

/// The properties for `rules`, folded as the kernel's are.
///
/// # Errors
/// [`Error::Value`] for a rule that is none.
pub(super) fn properties(rules: &[DeviceRule]) -> Result<Vec<Value>, Error> {
    let policy = Policy::new(rules)?;
    let strict = match policy.default {
        // without exceptions; with some, systemd is told to deny until ours are set
        Verdict::Allow => !policy.exceptions.is_empty(),
        Verdict::Deny => true,
    };
    // an empty list first: it takes away what was there
    let list = |entries| Value::property("DeviceAllow", Value::Array("(ss)".to_owned(), entries));
    let word = if strict { "strict" } else { "auto" };
    let mut properties = vec![list(Vec::new()), Value::property("DevicePolicy", Value::text(word))];
    if policy.default == Verdict::Deny {
        properties.push(list(policy.exceptions.iter().filter_map(entry).collect()));
    }
    Ok(properties)
}

/// `/dev/char/1:3`, `char-136`, `char-*`; nothing for one minor number of every major.
fn entry((device, access): (&Device, &Access)) -> Option<Value> {
    let kind = match device.kind {
        Kind::Block => "block",
        Kind::Char => "char",
    };
    let path = match (device.major, device.minor) {
        (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
        (Some(major), None) => format!("{kind}-{major}"),
        (None, None) => format!("{kind}-*"),
        (None, Some(_)) => return None,
    };
    Some(Value::Struct(vec![Value::Text(path), Value::Text(access.to_string())]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rules: &[&str]) -> Vec<String> {
        let rules: Vec<DeviceRule> = rules.iter().map(|rule| DeviceRule::parse(rule)).collect();
        properties(&rules).unwrap().iter().map(|property| format!("{property:?}")).collect()
    }

    #[test]
    fn what_is_allowed_is_a_list_of_paths_and_groups() {
        let found = of(&["deny a *:* rwm", "allow c 10:229 rw", "allow b *:* r", "allow c *:77 r"]);
        assert!(found[0].contains("DeviceAllow") && found[0].ends_with("\"(ss)\", []))])"));
        assert!(found[1].contains("\"strict\""));
        for (part, access) in [
            ("/dev/char/10:229", "rw"),
            ("/dev/char/1:3", "rwm"),
            ("char-136", "rwm"),
            ("char-*", "m"),
            ("block-*", "rm"),
        ] {
            let entry = format!("Struct([Text({part:?}), Text({access:?})])");
            assert!(found[2].contains(&entry), "{entry} in {}", found[2]);
        }
        assert!(!found[2].contains(":77"));
    }

    #[test]
    fn everything_is_a_policy_and_all_but_one_is_nothing() {
        let everything = of(&["allow a *:* rwm"]);
        assert_eq!(everything.len(), 2);
        assert!(everything[1].contains("\"auto\""));
        let all_but_one = of(&["allow a *:* rwm", "deny c 10:229 rw"]);
        assert_eq!(all_but_one.len(), 2);
        assert!(all_but_one[1].contains("\"strict\""));
    }
}
