//! The `-info` action: what this shim and its runtime are and can do.

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::error::{Error, Result};
use crate::{options, runtime};

/// The name by which containerd's typeurl package knows the runtime-spec's features document.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Describes the shim that runs under `program`'s name; `input` is the options message containerd wrote, or nothing.
///
/// # Errors
/// Options this shim refuses, no runtime, or a runtime whose `features` is no JSON.
pub(crate) fn describe(program: &str, input: &[u8]) -> Result<RuntimeInfo> {
    use containerd_shim_protos::protobuf::Message as _;
    let options = match input {
        [] => None,
        input => Some(Any::parse_from_bytes(input).map_err(Error::decode("runtime options"))?),
    };
    let binary = runtime::locate()?;
    options::parse(options.as_ref(), &binary)?;
    let features = runtime::features(&binary)?;
    serde_json::from_slice::<serde_json::Value>(&features)
        .map_err(Error::decode("features of the runtime"))?;
    let version = RuntimeVersion {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..RuntimeVersion::default()
    };
    Ok(RuntimeInfo {
        name: runtime_type(program),
        version: MessageField::some(version),
        options: options.into(),
        features: MessageField::some(Any {
            type_url: FEATURES.to_owned(),
            value: features,
            ..Any::default()
        }),
        ..RuntimeInfo::default()
    })
}

/// `containerd-shim-NAME-VERSION` is how containerd spells `io.containerd.NAME.VERSION`.
fn runtime_type(program: &str) -> String {
    let name = program.rsplit('/').next().unwrap_or(program);
    let kind = name.strip_prefix("containerd-shim-").and_then(|rest| rest.rsplit_once('-'));
    match kind {
        Some((name, version)) => format!("io.containerd.{name}.{version}"),
        None => "io.containerd.hallmark.v1".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (program, expected) in [
            ("/usr/bin/containerd-shim-hallmark-v1", "io.containerd.hallmark.v1"),
            ("containerd-shim-runc-hallmark", "io.containerd.runc.hallmark"),
            ("shim", "io.containerd.hallmark.v1"),
        ] {
            assert_eq!(runtime_type(program), expected);
        }
    }
}
