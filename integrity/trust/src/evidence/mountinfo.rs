//! The mount table, as far as evidence needs it and as the kernel writes it: names stay escaped.
//!
//! A line is `id parent maj:min root mountpoint options [tag…] - type source superoptions`, with
//! space, tab, newline and backslash of names written as `\ooo`.
//! Source: Linux Documentation/filesystems/proc.rst, 3.5; `fs/proc_namespace.c`, `show_mountinfo`.

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The mount's id, as `statx` gives it.
    pub id: u64,
    /// The id of the mount it is mounted on.
    pub parent: u64,
    /// Device of the superblock, (major, minor).
    pub device: (u32, u32),
    /// What of the file system the mount shows: `/` for all of it.
    pub root: String,
    /// Where it is.
    pub mount_point: String,
    /// File system type.
    pub kind: String,
    /// The superblock's options.
    pub super_options: Vec<String>,
}

/// Reads a whole table.
///
/// # Errors
/// The first line that is none: a table understood in part proves nothing.
pub fn parse(table: &[u8]) -> Result<Vec<Mount>, String> {
    let lines = table.split(|&b| b == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let line = String::from_utf8_lossy(line);
            mount(&line).ok_or_else(|| line.into_owned())
        })
        .collect()
}

fn mount(line: &str) -> Option<Mount> {
    let (mount, superblock) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let id = fields.next()?.parse().ok()?;
    let parent = fields.next()?.parse().ok()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let root = fields.next()?.to_owned();
    let mount_point = fields.next()?.to_owned();
    fields.next()?;
    let mut fields = superblock.split(' ');
    let kind = fields.next()?.to_owned();
    // an empty source is no word at all between two blanks, so the options are the last word
    let options = fields.next_back()?;
    Some(Mount {
        id,
        parent,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root,
        mount_point,
        kind,
        super_options: options.split(',').map(str::to_owned).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_lines() {
        let table = b"25 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/root rw,discard\n\
            99 25 7:3 / /run/hallmark/l/a1 ro,relatime - erofs /dev/loop3 ro,user_xattr,acl,cache_strategy=readaround\n\
            100 25 0:42 /sub\\040dir /mnt\\040x rw - tmpfs  rw,size=4k\n";
        let mounts = parse(table).unwrap();
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[1].id, 99);
        assert_eq!(mounts[1].parent, 25);
        assert_eq!(mounts[1].device, (7, 3));
        assert_eq!(mounts[1].root, "/");
        assert_eq!(mounts[1].mount_point, "/run/hallmark/l/a1");
        assert_eq!(mounts[1].kind, "erofs");
        assert_eq!(
            mounts[1].super_options,
            ["ro", "user_xattr", "acl", "cache_strategy=readaround"]
        );
        assert_eq!(mounts[2].root, "/sub\\040dir");
        assert_eq!(mounts[2].super_options, ["rw", "size=4k"]);
    }

    #[test]
    fn a_line_that_is_none_is_an_error() {
        for line in
            ["x", "1 2 7:3 / / rw", "a 2 7:3 / / rw - erofs s ro", "1 2 73 / / rw - erofs s ro"]
        {
            assert_eq!(parse(line.as_bytes()), Err(line.to_owned()));
        }
    }
}
