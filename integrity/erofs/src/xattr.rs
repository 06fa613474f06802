//! Extended attributes: which of a tar's are kept, and their bytes behind an inode.

use std::collections::BTreeMap;

use crate::error::{Cause, Error};
use crate::format::{FileType, NAME_MAX, Take};

/// Attributes by full name.
pub(crate) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

const HEADER: usize = 12;
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// Prefix indexes of EROFS, and the prefixes.
const PREFIXES: [(u8, &[u8]); 5] =
    [(1, b"user."), (2, ACL_ACCESS), (3, ACL_DEFAULT), (4, b"trusted."), (6, b"security.")];

/// What becomes of an attribute that a tar gives to a file of this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Kept,
    /// Linux has no such attribute on such a file; containerd leaves it out as well.
    Unknown,
    /// overlayfs would take it for its own: it could hide or graft files of other layers.
    Overlay,
}

/// Decides by the full name.
pub(crate) fn fate(name: &[u8], kind: FileType) -> Fate {
    let (file, directory) = (kind == FileType::Regular, kind == FileType::Directory);
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return Fate::Overlay;
    }
    let known = match name {
        ACL_ACCESS => kind != FileType::Symlink,
        ACL_DEFAULT => directory,
        _ => match prefix(name) {
            Some((1, _)) => file || directory,
            Some((4 | 6, _)) => true,
            _ => false,
        },
    };
    if known { Fate::Kept } else { Fate::Unknown }
}

/// Prefix index and the rest of the name, which is empty exactly for the two ACLs.
fn prefix(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        let whole = matches!(index, 2 | 3);
        (rest.is_empty() == whole).then_some((*index, rest))
    })
}

/// The attributes as they follow an inode; nothing if there are none.
pub(crate) fn encode(xattrs: &Xattrs, entry: &[u8], limit: usize) -> Result<Vec<u8>, Error> {
    // 65535 is the largest count of an inode, 12 + 4 × 65534 the bytes that it can state.
    let limit = limit.min(4 * 65534);
    if xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; HEADER];
    for (name, value) in xattrs {
        let Some((index, rest)) = prefix(name) else {
            return Err(Cause::unsupported(entry, "extended attribute of an unknown kind"));
        };
        let too_long =
            || Cause::entry_limit(entry, "bytes of an extended attribute's name", NAME_MAX);
        let name_len = u8::try_from(rest.len()).ok().filter(|_| name.len() <= NAME_MAX);
        let value_len = u16::try_from(value.len()).ok();
        let value_max = usize::from(u16::MAX);
        let value_len = value_len.ok_or_else(|| {
            Cause::entry_limit(entry, "bytes of an extended attribute's value", value_max)
        })?;
        bytes.extend([name_len.ok_or_else(too_long)?, index]);
        bytes.extend(value_len.to_le_bytes());
        bytes.extend(rest);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        if bytes.len() > limit {
            return Err(Cause::entry_limit(entry, "bytes of extended attributes", limit));
        }
    }
    Ok(bytes)
}

/// Reads what [`encode`] wrote, and nothing else.
pub(crate) fn parse(bytes: &[u8]) -> Result<Xattrs, &'static str> {
    let mut xattrs = Xattrs::new();
    if bytes.is_empty() {
        return Ok(xattrs);
    }
    let (header, mut rest) = bytes.split_at_checked(HEADER).ok_or("attributes are cut short")?;
    if header.iter().any(|byte| *byte != 0) {
        return Err("attributes have a header that this format has not");
    }
    while !rest.is_empty() {
        let mut head = Take(rest);
        let [name_len, index] = head.take();
        let value_len = usize::from(u16::from_le_bytes(head.take()));
        let (name, after) =
            head.0.split_at_checked(name_len.into()).ok_or("attribute is cut short")?;
        let (value, after) = after.split_at_checked(value_len).ok_or("attribute is cut short")?;
        let used = rest.len().saturating_sub(after.len());
        let padding = used.next_multiple_of(4).saturating_sub(used);
        let (padding, after) = after.split_at_checked(padding).ok_or("attribute is cut short")?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err("attribute has padding that is not zero");
        }
        let (_, prefix) = PREFIXES
            .iter()
            .find(|(known, _)| *known == index)
            .ok_or("attribute has an unknown prefix")?;
        let name = [prefix, name].concat();
        if xattrs.last_key_value().is_some_and(|(last, _)| *last >= name) {
            return Err("attributes are not sorted");
        }
        xattrs.insert(name, value.to_vec());
        rest = after;
    }
    Ok(xattrs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn fates() {
        use Fate::{Kept, Overlay, Unknown};
        use FileType::{CharDevice, Directory, Regular, Symlink};
        for (name, kind, expected) in [
            (&b"user.a"[..], Regular, Kept),
            (b"user.a", Symlink, Unknown),
            (b"user.a", CharDevice, Unknown),
            (b"user.", Regular, Unknown),
            (b"security.capability", Regular, Kept),
            (b"security.selinux", Symlink, Kept),
            (b"trusted.x", Symlink, Kept),
            (b"trusted.overlay.opaque", Directory, Overlay),
            (b"trusted.overlay.overlay.opaque", Directory, Overlay),
            (b"trusted.overlay.redirect", Regular, Overlay),
            (b"user.overlay.metacopy", Regular, Overlay),
            (b"trusted.overlayx", Regular, Kept),
            (b"system.posix_acl_access", Regular, Kept),
            (b"system.posix_acl_access", Symlink, Unknown),
            (b"system.posix_acl_access2", Regular, Unknown),
            (b"system.posix_acl_default", Directory, Kept),
            (b"system.posix_acl_default", Regular, Unknown),
            (b"com.apple.quarantine", Regular, Unknown),
            (b"", Regular, Unknown),
        ] {
            assert_eq!(fate(name, kind), expected, "{} {kind:?}", name.escape_ascii());
        }
    }

    #[test]
    fn parses_what_it_encodes() {
        let mut xattrs = Xattrs::new();
        for (name, value) in [
            ("user.b", "2"),
            ("user.a", ""),
            ("trusted.t", "four"),
            ("security.capability", "12345"),
            ("system.posix_acl_access", "acl"),
            ("system.posix_acl_default", "acl"),
        ] {
            xattrs.insert(name.into(), value.into());
        }
        let bytes = encode(&xattrs, b"f", 1 << 20).unwrap();
        assert_eq!(parse(&bytes).unwrap(), xattrs);
        for len in 1..bytes.len() {
            assert!(parse(&bytes[..len]).map_or(true, |some| some.len() < xattrs.len()));
        }
        assert!(encode(&Xattrs::new(), b"f", 0).unwrap().is_empty());
    }

    #[test]
    fn limits() {
        let one = |name: String, len| Xattrs::from([(name.into_bytes(), vec![1; len])]);
        for (xattrs, limit) in [
            (one("user.a".into(), 65536), 1 << 20),
            (one(format!("user.{}", "n".repeat(251)), 1), 1 << 20),
            (one("user.a".into(), 5000), 4096),
        ] {
            assert_eq!(encode(&xattrs, b"f", limit).unwrap_err().kind(), ErrorKind::Limit);
        }
        assert!(encode(&one("user.a".into(), 65535), b"f", 1 << 20).is_ok());
        assert!(encode(&one(format!("user.{}", "n".repeat(250)), 1), b"f", 1 << 20).is_ok());
    }
}
