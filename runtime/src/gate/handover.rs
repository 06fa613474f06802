//! The hand-over file: the rootfs mounts that containerd asked the shim for, untouched.
//!
//! `{"schemaVersion":1,"mounts":[{"type":"overlay","source":"overlay","options":["lowerdir=…"]}]}`, root's and
//! mode 0600. Only names are taken from it: of lowers, upper and work. What the overlay is mounted with is ours.
//!
//! Accepted are one `overlay`, or one `bind`: a read-only one is a view of a single layer, a writable one is an
//! active snapshot on an empty parent, which has no layer and so no evidence.

use std::path::{Path, PathBuf};

use hallmark_trust::strict_file::{self, Readers};
use serde::Deserialize;

use super::stack::Lower;
use crate::error::{Context, Error, Result};

/// Bytes of the largest file: 500 lowers have a tenth of it.
const LIMIT: u64 = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HandOver {
    schema_version: u32,
    mounts: Vec<Mount>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mount {
    #[serde(rename = "type")]
    kind: String,
    source: String,
    options: Vec<String>,
}

/// Names of the parts of a root file system. Names only: what they lead to is asked of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rootfs {
    /// Top first. Empty for an active snapshot on an empty parent.
    pub(crate) lowers: Vec<PathBuf>,
    /// Where writes go; without one the root file system is read-only.
    pub(crate) upper: Option<Upper>,
    /// The SELinux label that the caller wants on every file of the mount.
    pub(crate) context: Option<String>,
    /// Whether a crash may lose what was written.
    pub(crate) durability: Durability,
    /// Whether the caller wants it read-only although there is an upper.
    pub(crate) access: Access,
    /// The maps of a container with a user namespace of its own.
    pub(crate) id_maps: Option<IdMaps>,
}

/// `uidmap=` and `gidmap=`, as text for the files of the same name in procfs: `0 100000 65536`, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdMaps {
    pub(crate) uid: String,
    pub(crate) gid: String,
}

/// Where writes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Upper {
    /// An overlay's upper and work directory.
    Overlay {
        /// `upperdir=`
        upper: PathBuf,
        /// `workdir=`
        work: PathBuf,
    },
    /// The whole root file system, without any layer.
    Plain(PathBuf),
}

/// overlayfs's `volatile`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Durability {
    /// fsync reaches the disk.
    #[default]
    Durable,
    /// It does not.
    Volatile,
}

/// `ro` and `rw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Written to where there is an upper.
    #[default]
    ReadWrite,
    /// Never written to.
    ReadOnly,
}

impl Rootfs {
    /// The directory `path` itself, if an EROFS is mounted there: a layer that somebody activated and mounted.
    ///
    /// # Errors
    /// What the kernel says of the directory.
    pub(crate) fn of_volume(path: &Path) -> Result<Option<Self>> {
        // one that cannot be opened is the launch's own error, later
        let Ok(lower) = Lower::open(path) else { return Ok(None) };
        let volume =
            Self { lowers: vec![path.to_owned()], access: Access::ReadOnly, ..Self::default() };
        Ok(lower.is_erofs()?.then_some(volume))
    }
}

/// Reads the hand-over file.
///
/// # Errors
/// A file that is not root's alone, of another schema, or with mounts of another form.
pub(crate) fn read(path: &Path) -> Result<Rootfs> {
    let bytes = strict_file::read(path, LIMIT, Readers::OwnerOnly)
        .map_err(|error| Error::system(super::chain(&error)))?;
    parse(&bytes).context(|| path.display().to_string())
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Rootfs> {
    let file: HandOver = serde_json::from_slice(bytes)?;
    if file.schema_version != 1 {
        let found = file.schema_version;
        return Err(Error::spec(format!("schemaVersion is {found}, expected 1")));
    }
    match file.mounts.as_slice() {
        [mount] if mount.kind == "overlay" => overlay(mount),
        [mount] if mount.kind == "bind" => bind(mount),
        mounts => {
            let kinds: Vec<&str> = mounts.iter().map(|mount| mount.kind.as_str()).collect();
            Err(Error::spec(format!("mounts are {kinds:?}, expected one overlay or one bind")))
        }
    }
}

fn overlay(mount: &Mount) -> Result<Rootfs> {
    let mut rootfs = Rootfs::default();
    let (mut upper, mut work) = (None, None);
    let (mut uid, mut gid) = (None, None);
    for option in &mount.options {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match (key, value) {
            ("lowerdir", value) if rootfs.lowers.is_empty() => rootfs.lowers = lowers(value)?,
            ("upperdir", value) if upper.is_none() => upper = Some(absolute(value)?),
            ("workdir", value) if work.is_none() => work = Some(absolute(value)?),
            ("context", value) if rootfs.context.is_none() => {
                rootfs.context = Some(value.trim_matches('"').to_owned());
            }
            ("volatile", "") => rootfs.durability = Durability::Volatile,
            ("ro", "") => rootfs.access = Access::ReadOnly,
            ("rw", "") | ("index", "off") => {}
            ("uidmap", value) if uid.is_none() => uid = Some(id_map(value)?),
            ("gidmap", value) if gid.is_none() => gid = Some(id_map(value)?),
            _ => {
                return Err(Error::spec(format!("overlay option {option:?} is not accepted here")));
            }
        }
    }
    if rootfs.lowers.is_empty() {
        return Err(Error::spec("the overlay has no lowerdir"));
    }
    rootfs.id_maps = match (uid, gid) {
        (Some(uid), Some(gid)) => Some(IdMaps { uid, gid }),
        (None, None) => None,
        _ => {
            return Err(Error::spec(
                "the overlay has one of uidmap and gidmap, expected both or none",
            ));
        }
    };
    rootfs.upper = match (upper, work) {
        (Some(upper), Some(work)) => Some(Upper::Overlay { upper, work }),
        (None, None) => None,
        _ => {
            return Err(Error::spec(
                "the overlay has one of upperdir and workdir, expected both or none",
            ));
        }
    };
    Ok(rootfs)
}

/// `container:host:length`, several with commas between.
fn id_map(value: &str) -> Result<String> {
    let wrong = || Error::spec(format!("id map {value:?}, expected container:host:length"));
    let line = |map: &str| {
        let numbers: Vec<u32> =
            map.split(':').map(|number| number.parse().ok()).collect::<Option<_>>()?;
        let [container, host, length] = numbers.as_slice() else { return None };
        Some(format!("{container} {host} {length}\n"))
    };
    value.split(',').map(line).collect::<Option<String>>().ok_or_else(wrong)
}

/// A backslash escapes, an empty name between two colons begins data-only lowers: neither is a name of ours.
fn lowers(value: &str) -> Result<Vec<PathBuf>> {
    if value.contains('\\') {
        return Err(Error::spec(format!("lowerdir {value:?} has a backslash")));
    }
    value.split(':').map(absolute).collect()
}

fn bind(mount: &Mount) -> Result<Rootfs> {
    let source = absolute(&mount.source)?;
    let mut access = Access::ReadWrite;
    let mut context = None;
    for option in &mount.options {
        match option.split_once('=').unwrap_or((option, "")) {
            ("ro", "") => access = Access::ReadOnly,
            ("rw" | "bind" | "rbind", "") => {}
            // a bind shows the labels of its file system; the caller's label is compared and no more
            ("context", value) => context = Some(value.trim_matches('"').to_owned()),
            _ => return Err(Error::spec(format!("bind option {option:?} is not accepted here"))),
        }
    }
    let rootfs = Rootfs { context, access, ..Rootfs::default() };
    Ok(match access {
        Access::ReadOnly => Rootfs { lowers: vec![source], ..rootfs },
        Access::ReadWrite => Rootfs { upper: Some(Upper::Plain(source)), ..rootfs },
    })
}

fn absolute(path: &str) -> Result<PathBuf> {
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(path.into());
    }
    Err(Error::spec(format!("{path:?} is not an absolute path")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(text: &str) -> Result<Rootfs> {
        parse(format!("{{\"schemaVersion\":1,\"mounts\":{text}}}").as_bytes())
    }

    fn overlay_of(options: &str) -> Result<Rootfs> {
        mounts(&format!(
            "[{{\"type\":\"overlay\",\"source\":\"overlay\",\"options\":[{options}]}}]"
        ))
    }

    #[test]
    fn names_are_taken_top_first() {
        let rootfs = overlay_of(
            r#""index=off","workdir=/s/1/work","upperdir=/s/1/fs","lowerdir=/run/hallmark/l/b:/run/hallmark/l/a","volatile","context=\"a:b:c:s0:c1,c2\"""#,
        )
        .unwrap();
        let expected = Rootfs {
            lowers: vec!["/run/hallmark/l/b".into(), "/run/hallmark/l/a".into()],
            upper: Some(Upper::Overlay { upper: "/s/1/fs".into(), work: "/s/1/work".into() }),
            context: Some("a:b:c:s0:c1,c2".into()),
            durability: Durability::Volatile,
            access: Access::ReadWrite,
            id_maps: None,
        };
        assert_eq!(rootfs, expected);
        let mapped = overlay_of(
            r#""uidmap=0:100000:65536","gidmap=0:100000:10,10:5:1","upperdir=/u","workdir=/w","lowerdir=/a""#,
        );
        let maps = mapped.unwrap().id_maps.unwrap();
        assert_eq!(maps.uid, "0 100000 65536\n");
        assert_eq!(maps.gid, "0 100000 10\n10 5 1\n");
        let view = overlay_of(r#""ro","lowerdir=/b:/a""#).unwrap();
        assert_eq!((view.upper, view.access), (None, Access::ReadOnly));
    }

    #[test]
    fn a_bind_is_a_layer_or_no_layer_at_all() {
        let bind = |options: &str| {
            mounts(&format!("[{{\"type\":\"bind\",\"source\":\"/l/a\",\"options\":[{options}]}}]"))
        };
        assert_eq!(bind(r#""ro","rbind""#).unwrap().lowers, [PathBuf::from("/l/a")]);
        let active = bind(r#""rw","rbind""#).unwrap();
        assert!(active.lowers.is_empty());
        assert_eq!(active.upper, Some(Upper::Plain("/l/a".into())));
        assert!(bind(r#""ro","nosuid""#).is_err());
    }

    #[test]
    fn everything_else_is_refused() {
        let upper = r#""upperdir=/u","workdir=/w""#;
        for options in [
            String::new(),
            upper.to_owned(),
            format!(r#"{upper},"lowerdir=""#),
            format!(r#"{upper},"lowerdir=a""#),
            format!(r#"{upper},"lowerdir=/a::/b""#),
            format!(r#"{upper},"lowerdir=/a\\:b""#),
            format!(r#"{upper},"lowerdir=/a","lowerdir=/b""#),
            r#""upperdir=/u","lowerdir=/a""#.to_owned(),
            r#""upperdir=u","workdir=/w","lowerdir=/a""#.to_owned(),
            format!(r#"{upper},"lowerdir=/a","metacopy=on""#),
            format!(r#"{upper},"lowerdir=/a","redirect_dir=on""#),
            format!(r#"{upper},"lowerdir=/a","index=on""#),
            format!(r#"{upper},"lowerdir=/a","userxattr""#),
            format!(r#"{upper},"lowerdir=/a","datadir+=/d""#),
            format!(r#"{upper},"lowerdir=/a","uidmap=0:100000:65536""#),
            format!(r#"{upper},"lowerdir=/a","uidmap=0:100000:65536","gidmap=0:1""#),
            format!(r#"{upper},"lowerdir=/a","uidmap=0:100000:65536","gidmap=0:-1:65536""#),
        ] {
            assert!(overlay_of(&options).is_err(), "{options}");
        }
        for text in [
            "[]",
            r#"[{"type":"erofs","source":"/i","options":[]}]"#,
            r#"[{"type":"bind","source":"/i","options":[],"target":"x"}]"#,
            r#"[{"type":"bind","source":"/i","options":["ro"]},{"type":"bind","source":"/i","options":["ro"]}]"#,
        ] {
            assert!(mounts(text).is_err(), "{text}");
        }
        assert!(parse(b"{\"schemaVersion\":2,\"mounts\":[]}").is_err());
        assert!(parse(b"{\"schemaVersion\":1,\"mounts\":[],\"more\":1}").is_err());
        assert!(parse(b"").is_err());
    }

    #[test]
    fn only_roots_private_file_is_read() {
        use std::os::unix::fs::PermissionsExt;
        if !super::super::world::is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hallmark-rootfs.json");
        let text =
            r#"{"schemaVersion":1,"mounts":[{"type":"bind","source":"/l","options":["ro"]}]}"#;
        std::fs::write(&path, text).unwrap();
        let mode =
            |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o600);
        assert_eq!(read(&path).unwrap().lowers, [PathBuf::from("/l")]);
        mode(0o644);
        assert!(read(&path).unwrap_err().to_string().contains("mode 0644"));
        mode(0o600);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(read(&link).unwrap_err().to_string().contains("symbolic link"));
        assert!(read(&path).is_ok());
    }
}
