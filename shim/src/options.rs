//! Runtime options: what whoever talks to containerd may ask of the shim.
//!
//! They come as `containerd.runc.v1.Options` (nerdctl and CRI, when the runtime's name begins with `io.containerd.runc.`) or
//! as `runtimeoptions.v1.Options`, which carries the TOML of containerd's configuration. Neither is trusted: nothing here
//! chooses what is judged or by whom. Another `BinaryName` than the runtime's own is refused; `Root` is not followed,
//! for the runtime's state has one place; an unknown key is an error.

use std::path::Path;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Message as _};
use containerd_shim_protos::shim::oci;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::runtime::{BINARY, SystemdCgroup};

/// The options this shim follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) systemd_cgroup: SystemdCgroup,
    /// Flags of `create`: `--no-pivot`, `--no-new-keyring`.
    pub(crate) create_flags: [Option<&'static str>; 2],
    /// Owner of the pipes that are the container's standard streams.
    pub(crate) io_uid: u32,
    pub(crate) io_gid: u32,
}

/// The keys of containerd's TOML table, runc's names. Those without use here are accepted, for existing configurations.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "the wire format has three")]
struct Table {
    binary_name: String,
    root: String,
    systemd_cgroup: bool,
    no_pivot_root: bool,
    no_new_keyring: bool,
    shim_cgroup: String,
    io_uid: u32,
    io_gid: u32,
    #[serde(rename = "CriuImagePath")]
    _criu_image_path: String,
    #[serde(rename = "CriuWorkPath")]
    _criu_work_path: String,
    #[serde(rename = "TaskApiAddress")]
    _task_api_address: String,
    #[serde(rename = "TaskApiVersion")]
    _task_api_version: u32,
}

/// Options, and the cgroup the shim itself is to be put into ("" = leave it).
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) options: Options,
    pub(crate) shim_cgroup: String,
}

/// Parses what containerd attached; nothing attached is every default.
///
/// # Errors
/// An unknown type, malformed bytes, an unknown key, or a `BinaryName` that is not `runtime`.
pub(crate) fn parse(any: Option<&Any>, runtime: &Path) -> Result<Parsed> {
    let table = match any.filter(|any| !any.type_url.is_empty()) {
        None => Table::default(),
        Some(any) => match any.type_url.rsplit('/').next().unwrap_or_default() {
            "containerd.runc.v1.Options" => from_runc(&any.value)?,
            "runtimeoptions.v1.Options" => from_toml(&any.value)?,
            other => {
                return Err(invalid("runtime options", other, "unknown type".to_owned()));
            }
        },
    };
    let name = Path::new(&table.binary_name);
    if !table.binary_name.is_empty() && name != Path::new(BINARY) && name != runtime {
        let reason = format!("this shim starts {} only", runtime.display());
        return Err(invalid("BinaryName", &table.binary_name, reason));
    }
    if !table.root.is_empty() {
        log::warn!("option Root = {:?} is not followed", table.root);
    }
    Ok(Parsed {
        options: Options {
            systemd_cgroup: if table.systemd_cgroup {
                SystemdCgroup::On
            } else {
                SystemdCgroup::Off
            },
            create_flags: [
                table.no_pivot_root.then_some("--no-pivot"),
                table.no_new_keyring.then_some("--no-new-keyring"),
            ],
            io_uid: table.io_uid,
            io_gid: table.io_gid,
        },
        shim_cgroup: table.shim_cgroup,
    })
}

/// Whether containerd's `start` extensions hold runtime options, and which they are.
pub(crate) fn find(extensions: &[Any]) -> Option<&Any> {
    extensions.iter().find(|any| any.type_url.ends_with("v1.Options"))
}

fn from_runc(bytes: &[u8]) -> Result<Table> {
    let options = oci::Options::parse_from_bytes(bytes)
        .map_err(Error::decode("containerd.runc.v1.Options"))?;
    Ok(Table {
        binary_name: options.binary_name,
        root: options.root,
        systemd_cgroup: options.systemd_cgroup,
        no_pivot_root: options.no_pivot_root,
        no_new_keyring: options.no_new_keyring,
        shim_cgroup: options.shim_cgroup,
        io_uid: options.io_uid,
        io_gid: options.io_gid,
        ..Table::default()
    })
}

/// `runtimeoptions.v1.Options` {1: type_url, 2: config_path, 3: config_body}, which the protos crate does not have.
fn from_toml(bytes: &[u8]) -> Result<Table> {
    let (mut path, mut body) = (String::new(), Vec::new());
    let mut read = || -> containerd_shim_protos::protobuf::Result<()> {
        let mut input = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match tag {
                0x12 => path = input.read_string()?,
                0x1a => body = input.read_bytes()?,
                0x0a => drop(input.read_string()?),
                other => return Err(unexpected(other)),
            }
        }
        Ok(())
    };
    read().map_err(Error::decode("runtimeoptions.v1.Options"))?;
    if body.is_empty() && !path.is_empty() {
        body = std::fs::read(&path).map_err(Error::io("read", &path))?;
    }
    let text = String::from_utf8(body).map_err(Error::decode("runtime options"))?;
    toml::from_str(&text).map_err(Error::decode("runtime options"))
}

fn unexpected(tag: u32) -> containerd_shim_protos::protobuf::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, format!("unknown field, tag {tag:#x}"))
        .into()
}

fn invalid(what: &'static str, value: &str, reason: String) -> Error {
    Error::Invalid { what, value: value.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::protobuf::CodedOutputStream;

    const RUNTIME: &str = "/usr/bin/hallmark-runtime";

    fn toml_options(body: &str) -> Any {
        let mut value = Vec::new();
        let mut output = CodedOutputStream::vec(&mut value);
        output.write_string(1, "x").unwrap();
        output.write_bytes(3, body.as_bytes()).unwrap();
        output.flush().unwrap();
        drop(output);
        Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Any::default() }
    }

    fn runc_options(options: oci::Options) -> Any {
        crate::events::pack("containerd.runc.v1", &options).unwrap()
    }

    #[test]
    fn both_forms_say_the_same() {
        let toml =
            "SystemdCgroup = true\nNoNewKeyring = true\nIoUid = 7\nIoGid = 8\nShimCgroup = '/s'";
        let runc = oci::Options {
            systemd_cgroup: true,
            no_new_keyring: true,
            io_uid: 7,
            io_gid: 8,
            shim_cgroup: "/s".into(),
            ..oci::Options::default()
        };
        let toml = parse(Some(&toml_options(toml)), Path::new(RUNTIME)).unwrap();
        let runc = parse(Some(&runc_options(runc)), Path::new(RUNTIME)).unwrap();
        assert_eq!(toml.options, runc.options);
        assert_eq!(toml.options.create_flags, [None, Some("--no-new-keyring")]);
        assert_eq!(
            (toml.options.systemd_cgroup, toml.shim_cgroup),
            (SystemdCgroup::On, runc.shim_cgroup)
        );
    }

    #[test]
    fn nothing_attached_is_every_default() {
        let options = parse(None, Path::new(RUNTIME)).unwrap().options;
        assert_eq!((options.systemd_cgroup, options.io_uid), (SystemdCgroup::Off, 0));
        assert!(parse(Some(&Any::default()), Path::new(RUNTIME)).is_ok());
    }

    #[test]
    fn another_runtime_is_refused() {
        for (name, accepted) in [
            ("hallmark-runtime", true),
            (RUNTIME, true),
            ("runc", false),
            ("/tmp/hallmark-runtime", false),
        ] {
            let options = oci::Options { binary_name: name.into(), ..oci::Options::default() };
            let runc = parse(Some(&runc_options(options)), Path::new(RUNTIME));
            assert_eq!(runc.is_ok(), accepted, "{name}");
            let toml = toml_options(&format!("BinaryName = {name:?}"));
            assert_eq!(parse(Some(&toml), Path::new(RUNTIME)).is_ok(), accepted, "{name}");
        }
    }

    #[test]
    fn bad_options_are_errors() {
        let garbage = |type_url: &str| Any {
            type_url: type_url.into(),
            value: vec![0xff, 0xff],
            ..Any::default()
        };
        for any in [
            garbage("containerd.runc.v1.Options"),
            garbage("runtimeoptions.v1.Options"),
            garbage("something.else"),
            toml_options("SkipGate = true"),
            toml_options("SystemdCgroup = 1"),
        ] {
            let error = parse(Some(&any), Path::new(RUNTIME)).unwrap_err();
            assert_eq!(
                error.code(),
                containerd_shim_protos::ttrpc::Code::INVALID_ARGUMENT,
                "{any:?}"
            );
        }
    }
}
