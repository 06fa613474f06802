//! Words of a seccomp profile that are none, refused as runc does: passed over, they would let calls through.

use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSeccompOperator};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};

/// Looks at `linux.seccomp` of a configuration that oci-spec has not read yet.
///
/// # Errors
/// The first action, operator or architecture that is unknown, in runc's words.
pub(super) fn known(config: &Value) -> Result<()> {
    let Some(profile) = config.get("linux").and_then(|linux| linux.get("seccomp")) else {
        return Ok(());
    };
    word::<LinuxSeccompAction>(profile.get("defaultAction"), "action")?;
    for architecture in list(profile, "architectures") {
        word::<Arch>(Some(architecture), "arch")?;
    }
    for rule in list(profile, "syscalls") {
        word::<LinuxSeccompAction>(rule.get("action"), "action")?;
        for argument in list(rule, "args") {
            word::<LinuxSeccompOperator>(argument.get("op"), "operator")?;
        }
    }
    Ok(())
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// Whether a text is a word of `T`; what is no text is left to the parser.
fn word<T: DeserializeOwned>(value: Option<&Value>, kind: &str) -> Result<()> {
    let Some(text @ Value::String(word)) = value else { return Ok(()) };
    match serde_json::from_value::<T>(text.clone()) {
        Ok(_) => Ok(()),
        Err(_unknown) => {
            Err(Error::spec(format!("string {word} is not a valid {kind} for seccomp")))
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::spec::tests::minimal;
    use serde_json::json;

    #[test]
    fn unknown_words_are_named_as_runc_names_them() {
        for (profile, expected) in [
            (
                json!({"defaultAction": "SCMP_ACT_X"}),
                "string SCMP_ACT_X is not a valid action for seccomp",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X"]}),
                "string SCMP_ARCH_X is not a valid arch for seccomp",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "NO"}]}),
                "string NO is not a valid action for seccomp",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"],
                    "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1, "op": "XX"}]}]}),
                "string XX is not a valid operator for seccomp",
            ),
        ] {
            let error = minimal(|c| c["linux"]["seccomp"] = profile.clone()).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }
}
