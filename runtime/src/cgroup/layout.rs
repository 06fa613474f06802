//! Which cgroup hierarchies this machine has: v2 alone, or v1 with or without v2 beside it.
//!
//! cgroup2 at `/sys/fs/cgroup` decides for v2 (as in runc); otherwise every v1 hierarchy of `/proc/self/mountinfo`
//! counts, and a cgroup2 mount next to them (the hybrid layout) is joined too, for `cgroup.kill` and device programs.
//!
//! Source: proc(5) for mountinfo; cgroups(7).

use super::Error;
use super::dir::{Dir, Version};

/// Where systemd and every runtime expect cgroups.
const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// The hierarchies of this machine, roots open.
#[derive(Debug)]
pub(super) enum Layout {
    V1(Vec<Mounted>),
    V2(Dir),
}

/// One mounted hierarchy.
#[derive(Debug)]
pub(super) struct Mounted {
    /// v1 controllers, or `name=systemd`; empty for cgroup2 in the hybrid layout.
    pub(super) controllers: Vec<String>,
    pub(super) root: Dir,
}

impl Layout {
    /// Looks at this mount namespace.
    ///
    /// # Errors
    /// [`Error::NotMounted`] if it has no cgroup mount; what opening one answers.
    pub(super) fn read() -> Result<Self, Error> {
        if let Ok((root, Version::V2)) = Dir::mount(MOUNT_POINT) {
            return Ok(Self::V2(root));
        }
        let mountinfo =
            std::fs::read_to_string("/proc/self/mountinfo").map_err(|error| Error::Call {
                call: "read",
                path: "/proc/self/mountinfo".to_owned(),
                source: rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
            })?;
        let mut mounted = Vec::new();
        for mount in parse_mountinfo(&mountinfo) {
            let (root, version) = Dir::mount(&mount.point)?;
            // overmounted since: the name no longer leads to what the line says
            if (version == Version::V2) == mount.controllers.is_empty() {
                mounted.push(Mounted { controllers: mount.controllers, root });
            }
        }
        if mounted.iter().all(|mount| mount.controllers.is_empty()) {
            return Err(Error::NotMounted);
        }
        Ok(Self::V1(mounted))
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    controllers: Vec<String>,
    point: String,
}

/// The cgroup mounts of a mountinfo text, each hierarchy once: the one whose root is the hierarchy's, under
/// `/sys/fs/cgroup` if possible.
pub(super) fn parse_mountinfo(text: &str) -> Vec<Mount> {
    let mut found: Vec<(Mount, u8)> = Vec::new();
    for line in text.lines() {
        let Some((mount, rank)) = parse_line(line) else { continue };
        match found.iter_mut().find(|(other, _)| other.controllers == mount.controllers) {
            Some(better) if better.1 < rank => *better = (mount, rank),
            Some(_) => {}
            None => found.push((mount, rank)),
        }
    }
    found.into_iter().map(|(mount, _)| mount).collect()
}

/// `32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu`
fn parse_line(line: &str) -> Option<(Mount, u8)> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (left.next()?, unescape(left.next()?));
    let mut right = right.split(' ');
    let controllers = match right.next()? {
        "cgroup2" => Vec::new(),
        "cgroup" => {
            let list: Vec<String> =
                right.nth(1)?.split(',').filter(|o| is_controller(o)).map(str::to_owned).collect();
            if list.is_empty() {
                return None;
            }
            list
        }
        _ => return None,
    };
    let rank = u8::from(root == "/") * 2 + u8::from(point.starts_with("/sys/fs/cgroup/"));
    Some((Mount { controllers, point }, rank))
}

/// Named hierarchies other than systemd's belong to somebody else.
fn is_controller(option: &str) -> bool {
    matches!(
        option,
        "cpuset"
            | "cpu"
            | "cpuacct"
            | "blkio"
            | "memory"
            | "devices"
            | "freezer"
            | "net_cls"
            | "net_prio"
            | "perf_event"
            | "hugetlb"
            | "pids"
            | "rdma"
            | "misc"
            | "name=systemd"
    )
}

/// Undoes the kernel's `\040` for space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        rest = match code {
            Some(byte) if byte.is_ascii() => {
                out.push(char::from(byte));
                &after[3..]
            }
            _ => {
                out.push('\\');
                after
            }
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 1 0:23 / /proc rw - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 master:2 - cgroup cgroup rw,cpu,cpuacct
99 31 0:31 /docker/x /elsewhere rw - cgroup cgroup rw,memory
35 31 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:32 / /mnt/with\\040space rw - cgroup none rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:39 / /sys/fs/cgroup/elogind rw - cgroup cgroup rw,name=elogind
42 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn every_hierarchy_is_found_once() {
        let found = parse_mountinfo(HYBRID);
        let list: Vec<(String, &str)> =
            found.iter().map(|m| (m.controllers.join(","), m.point.as_str())).collect();
        let expected = [
            ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
            ("memory", "/sys/fs/cgroup/memory"),
            ("pids", "/mnt/with space"),
            ("name=systemd", "/sys/fs/cgroup/systemd"),
            ("", "/sys/fs/cgroup/unified"),
        ];
        assert_eq!(list, expected.map(|(c, p)| (c.to_owned(), p)));
    }

    #[test]
    fn broken_lines_are_passed_over() {
        for line in
            ["", "x", "1 2 3", "1 2 0:1 / /a rw - cgroup", "1 2 0:1 / - cgroup c rw,cpu", "1 - "]
        {
            assert_eq!(parse_mountinfo(line), [], "{line:?}");
        }
        assert_eq!(unescape("a\\134b\\xyz\\04"), "a\\b\\xyz\\04");
    }
}
