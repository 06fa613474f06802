//! Device nodes: the ones every container has and the ones it asks for.

use std::path::Path;

use oci_spec::runtime as oci;
use rustix::fs::FileType;

use super::clean;
use crate::error::{Error, Result};

/// A node to be made beneath the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    /// Absolute, cleaned.
    pub(crate) path: String,
    pub(crate) node: DeviceNode,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What kind of node it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceNode {
    pub(crate) kind: FileType,
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// Nodes of every container (runtime-spec `config-linux.md`, Default Devices; console and ptmx are made elsewhere).
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The default nodes, but for those that the configuration describes itself, then the configuration's.
pub(super) fn parse_all(devices: &[oci::LinuxDevice]) -> Result<Vec<Device>> {
    let asked: Vec<Device> = devices.iter().map(parse).collect::<Result<_>>()?;
    let mut all: Vec<Device> = DEFAULT
        .iter()
        .filter(|(path, ..)| asked.iter().all(|device| device.path != *path))
        .map(|(path, major, minor)| Device {
            path: (*path).to_owned(),
            node: DeviceNode { kind: FileType::CharacterDevice, major: *major, minor: *minor },
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect();
    all.extend(asked);
    // made by its own step, as a link into devpts
    all.retain(|device| device.path != "/dev/ptmx");
    Ok(all)
}

fn parse(device: &oci::LinuxDevice) -> Result<Device> {
    let path = text(device.path())?;
    let what = format!("linux.devices {path}");
    let kind = match device.typ() {
        oci::LinuxDeviceType::B => FileType::BlockDevice,
        oci::LinuxDeviceType::C | oci::LinuxDeviceType::U => FileType::CharacterDevice,
        oci::LinuxDeviceType::P => FileType::Fifo,
        oci::LinuxDeviceType::A => {
            return Err(Error::spec(format!("{what}: invalid device type: a")));
        }
    };
    let number = |number: i64, name: &str| match kind {
        FileType::Fifo => Ok(0),
        _ => u32::try_from(number)
            .map_err(|error| Error::spec(format!("{what}: {name} {number}: {error}"))),
    };
    Ok(Device {
        node: DeviceNode {
            kind,
            major: number(device.major(), "major")?,
            minor: number(device.minor(), "minor")?,
        },
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
        path: clean(&path),
    })
}

fn text(path: &Path) -> Result<String> {
    path.to_str().filter(|path| path.starts_with('/')).map(str::to_owned).ok_or_else(|| {
        Error::spec(format!("linux.devices {}: path is not absolute", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use crate::spec::tests::minimal;

    #[test]
    fn defaults_give_way_to_the_configuration() {
        let plan = minimal(|c| {
            c["linux"]["devices"] = serde_json::json!([
                {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
                {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
                {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
            ]);
        })
        .unwrap();
        let null: Vec<_> = plan.devices.iter().filter(|d| d.path == "/dev/null").collect();
        assert_eq!((null.len(), null[0].mode), (1, 0o600));
        assert_eq!(plan.devices.len(), 7);
    }

    #[test]
    fn a_relative_path_or_a_negative_number_is_refused() {
        for bad in [
            serde_json::json!({"path": "dev/x", "type": "c", "major": 1, "minor": 3}),
            serde_json::json!({"path": "/dev/x", "type": "b", "major": -1, "minor": 3}),
            serde_json::json!({"path": "/dev/x", "type": "a"}),
        ] {
            minimal(|c| c["linux"]["devices"] = serde_json::json!([bad])).unwrap_err();
        }
    }
}
