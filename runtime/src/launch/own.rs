//! What a container may change because it is its own: a namespace that is joined by a path may be the host's.

use crate::error::{Error, Result};
use crate::init::JoinedNamespace;
use crate::spec::{Kind, Plan};
use hallmark_sys::procfs::Procfs;

/// Refuses settings that would be the host's.
///
/// That `config.json` lists the namespace at all is known by now. runc looks at the network namespace only.
///
/// # Errors
/// [`ErrorKind::Spec`](crate::error::ErrorKind::Spec) for a sysctl of a namespace that the runtime is in itself, and
/// for a host or domain name other than the one that is there.
pub(super) fn require_own(plan: &Plan, joined: &[JoinedNamespace], procfs: &Procfs) -> Result<()> {
    for namespace in joined {
        let kind = namespace.kind();
        let sysctl = plan.sysctls.iter().find(|sysctl| sysctl.namespace == kind);
        let names = kind == Kind::Uts && changes_a_name(plan);
        if (sysctl.is_none() && !names) || !namespace.is_own(procfs)? {
            continue;
        }
        let what = sysctl.map_or_else(
            || "a host or domain name".to_owned(),
            |sysctl| format!("sysctl {:?}", sysctl.name),
        );
        return Err(Error::spec(format!("{what} not allowed in host {} namespace", kind.name())));
    }
    Ok(())
}

/// Whether a name is asked for that is not there: callers repeat the host's for containers that share it.
fn changes_a_name(plan: &Plan) -> bool {
    let there = rustix::system::uname();
    let differs = |wanted: Option<&String>, found: &std::ffi::CStr| {
        wanted.is_some_and(|wanted| wanted.as_bytes() != found.to_bytes())
    };
    differs(plan.hostname.as_ref(), there.nodename())
        || differs(plan.domainname.as_ref(), there.domainname())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::open_joined;
    use crate::spec::tests::minimal;
    use serde_json::json;

    /// What is said of settings in namespaces that are joined by `path`.
    fn said(path: &str, kind: &str, set: impl FnOnce(&mut serde_json::Value)) -> String {
        let plan = minimal(|config| {
            config["linux"]["namespaces"] =
                json!([{"type": "mount"}, {"type": kind, "path": path}]);
            set(config);
        })
        .unwrap();
        let joined = open_joined(&plan.namespaces.joined).unwrap();
        let answer = require_own(&plan, &joined, &Procfs::open().unwrap());
        answer.map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn the_hosts_namespaces_are_not_changed() {
        let forward = |config: &mut serde_json::Value| {
            config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        };
        assert_eq!(
            said("/proc/self/ns/net", "network", forward),
            "sysctl \"net.ipv4.ip_forward\" not allowed in host network namespace"
        );
        assert_eq!(said("/proc/self/ns/net", "network", |_| ()), "");
        let named =
            |name: String| move |config: &mut serde_json::Value| config["hostname"] = name.into();
        assert_eq!(
            said("/proc/self/ns/uts", "uts", named("not-this-host".to_owned())),
            "a host or domain name not allowed in host uts namespace"
        );
        let there = rustix::system::uname().nodename().to_str().unwrap().to_owned();
        assert_eq!(said("/proc/self/ns/uts", "uts", named(there)), "");
    }

    #[test]
    fn a_namespace_of_others_is_changed() {
        let mut other =
            std::process::Command::new("unshare").args(["--net", "sleep", "60"]).spawn().unwrap();
        let path = format!("/proc/{}/ns/net", other.id());
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        while std::fs::read_link(&path).unwrap() == own {
            std::thread::yield_now();
        }
        let answer = said(&path, "network", |config| {
            config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        });
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(answer, "");
    }
}
