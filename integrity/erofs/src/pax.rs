//! PAX extended header records: `LENGTH KEY=VALUE\n`.
//!
//! | key | taken from `x` | from `g` |
//! |---|---|---|
//! | `path`, `linkpath`, `size` | yes | refused: readers disagree whether it counts |
//! | `uid`, `gid`, `mtime`, `SCHILY.xattr.*` | yes | yes, until an `x` says otherwise |
//! | `GNU.sparse.*` | yes (`sparse.rs`) | refused |
//! | other `GNU.*` | refused | refused |
//! | `SCHILY.realsize`, `SCHILY.filetype`, `RHT.*` and all others | ignored | ignored |
//!
//! A key twice in one header is refused, but for the regions of a sparse map. An empty value means that the key is absent, except for
//! an attribute, which may be empty.
//!
//! Source: POSIX.1-2017 pax, "pax Extended Header"; star(5) for `SCHILY.xattr`.

use crate::format::Timestamp;
use crate::sparse;
use crate::xattr::Xattrs;

/// The records that change an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Records {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) linkpath: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mtime: Option<Timestamp>,
    pub(crate) xattrs: Xattrs,
    pub(crate) sparse: Option<sparse::Keys>,
}

/// Which header the records come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// `x`: the next entry.
    Entry,
    /// `g`: every entry from here on.
    Global,
}

impl Records {
    /// Adds the records of a header.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn add(&mut self, mut bytes: &[u8], scope: Scope) -> Result<(), &'static str> {
        let mut seen = Vec::new();
        while !bytes.is_empty() {
            let (key, value, rest) = split_record(bytes).ok_or("extended header is malformed")?;
            if !matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
                if seen.contains(&key) {
                    return Err("extended header has a key twice");
                }
                seen.push(key);
            }
            self.set(key, value, scope)?;
            bytes = rest;
        }
        Ok(())
    }

    /// These records over older ones.
    pub(crate) fn or(self, older: &Self) -> Self {
        let mut xattrs = older.xattrs.clone();
        xattrs.extend(self.xattrs);
        Self {
            path: self.path.or_else(|| older.path.clone()),
            linkpath: self.linkpath.or_else(|| older.linkpath.clone()),
            size: self.size.or(older.size),
            uid: self.uid.or(older.uid),
            gid: self.gid.or(older.gid),
            mtime: self.mtime.or(older.mtime),
            xattrs,
            sparse: self.sparse,
        }
    }

    /// Bytes kept in memory.
    pub(crate) fn len(&self) -> usize {
        self.xattrs.iter().fold(0, |sum: usize, (name, value)| {
            sum.saturating_add(name.len()).saturating_add(value.len())
        })
    }

    fn set(&mut self, key: &[u8], value: &[u8], scope: Scope) -> Result<(), &'static str> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            if name.is_empty() || name.contains(&0) {
                return Err("extended attribute has no name, or a NUL in it");
            }
            self.xattrs.insert(name.to_vec(), value.to_vec());
            return Ok(());
        }
        if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            if scope == Scope::Global {
                return Err("global extended header has a sparse map");
            }
            return self.sparse.get_or_insert_default().set(key, value, decimal);
        }
        if key.starts_with(b"GNU.") {
            return Err("extended header has a GNU key that is not supported");
        }
        if scope == Scope::Global && matches!(key, b"path" | b"linkpath" | b"size") {
            return Err("global extended header has a path or a size");
        }
        let present = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = present.map(text).transpose()?,
            b"linkpath" => self.linkpath = present.map(text).transpose()?,
            b"size" => self.size = present.map(decimal).transpose()?,
            b"uid" => self.uid = present.map(id).transpose()?,
            b"gid" => self.gid = present.map(id).transpose()?,
            b"mtime" => self.mtime = present.map(timestamp).transpose()?,
            _ => {}
        }
        Ok(())
    }
}

/// Key, value and what follows the record.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let (digits, _) = bytes.split_at_checked(space)?;
    if digits.starts_with(b"0") {
        return None;
    }
    let len = usize::try_from(decimal(digits).ok()?).ok()?;
    let (record, rest) = bytes.split_at_checked(len)?;
    let record = record.get(space.checked_add(1)?..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = record.split_at_checked(equals)?;
    let value = value.get(1..)?;
    if key.is_empty() || key.contains(&0) {
        return None;
    }
    Some((key, value, rest))
}

fn text(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    if value.contains(&0) {
        return Err("extended header has a path with a NUL in it");
    }
    Ok(value.to_vec())
}

fn decimal(value: &[u8]) -> Result<u64, &'static str> {
    let bad = "extended header has a number that is malformed or too large";
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad);
    }
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(bad)
}

fn id(value: &[u8]) -> Result<u32, &'static str> {
    u32::try_from(decimal(value)?).ok().ok_or("extended header has an owner of more than 32 bits")
}

/// Seconds with an optional fraction, of which nine digits count; negative before 1970.
fn timestamp(value: &[u8]) -> Result<Timestamp, &'static str> {
    let bad = "extended header has a time that is malformed or too far away";
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(value) => (true, value),
        None => (false, value),
    };
    let dot = value.iter().position(|byte| *byte == b'.').unwrap_or(value.len());
    let (whole, fraction) = value.split_at_checked(dot).unwrap_or_default();
    let fraction = fraction.get(1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad);
    }
    let whole = decimal(whole).ok().and_then(|whole| i64::try_from(whole).ok()).ok_or(bad)?;
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0u32, |sum, digit| {
        sum.wrapping_mul(10).wrapping_add(u32::from(digit.wrapping_sub(b'0')))
    });
    Ok(match (negative, nanoseconds) {
        (false, _) => Timestamp { seconds: whole, nanoseconds },
        (true, 0) => Timestamp { seconds: whole.saturating_neg(), nanoseconds },
        (true, _) => Timestamp {
            seconds: whole.saturating_neg().saturating_sub(1),
            nanoseconds: 1_000_000_000u32.saturating_sub(nanoseconds),
        },
    })
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]
mod tests {
    use super::*;

    /// A record with its length in front.
    fn record(key: &str, value: &str) -> Vec<u8> {
        let rest = format!(" {key}={value}\n");
        let mut len = rest.len() + 1;
        while len.to_string().len() + rest.len() != len {
            len += 1;
        }
        format!("{len}{rest}").into_bytes()
    }

    fn entry(records: &[(&str, &str)]) -> Result<Records, &'static str> {
        let bytes: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        let mut records = Records::default();
        records.add(&bytes, Scope::Entry)?;
        Ok(records)
    }

    #[test]
    fn keys_that_count() {
        let records = entry(&[
            ("path", "a/é\n=b"),
            ("linkpath", "l"),
            ("size", "68719476736"),
            ("uid", "4294967295"),
            ("gid", "0"),
            ("mtime", "1.5"),
            ("atime", "nonsense"),
            ("comment", ""),
            ("SCHILY.xattr.user.a=", ""),
            ("SCHILY.xattr.user.b", "\0=\n"),
        ])
        .unwrap();
        assert_eq!(records.path.as_deref(), Some("a/é\n=b".as_bytes()));
        assert_eq!(records.size, Some(1 << 36));
        assert_eq!((records.uid, records.gid), (Some(u32::MAX), Some(0)));
        // the key ends at the first "=", so the "=" belongs to the value
        assert_eq!(records.xattrs[&b"user.a"[..]], b"=");
        assert_eq!(records.xattrs[&b"user.b"[..]], b"\0=\n");
    }

    #[test]
    fn empty_values_are_absent() {
        let records = entry(&[("path", ""), ("size", ""), ("mtime", "")]).unwrap();
        assert_eq!(records, Records::default());
    }

    #[test]
    fn times() {
        for (text, seconds, nanoseconds) in [
            ("0", 0, 0),
            ("1350244992.023960108", 1_350_244_992, 23_960_108),
            ("1.5", 1, 500_000_000),
            ("1.", 1, 0),
            ("1.0000000009", 1, 0),
            ("-1", -1, 0),
            ("-1.5", -2, 500_000_000),
            ("-0.000000001", -1, 999_999_999),
            ("9223372036854775807", i64::MAX, 0),
        ] {
            let expected = Timestamp { seconds, nanoseconds };
            assert_eq!(timestamp(text.as_bytes()), Ok(expected), "{text}");
        }
        for text in ["", "-", ".5", "+1", "1e3", " 1", "1.x", "--1", "9223372036854775808"] {
            assert!(timestamp(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn malformed_records() {
        let good = record("path", "abc");
        for bytes in [
            &good[..good.len() - 1],
            b"12 path=abc\nx",
            b"11 path=abc\n",
            b"012 path=abc\n",
            b"+12 path=abc\n",
            b" path=abc\n",
            b"12path=abcd\n",
            b"6 pat\n",
            b"5 =a\n",
            b"7 a\0=b\n",
            b"99999999999999999999999 path=abc\n",
            b"18446744073709551615 path=abc\n",
            b"\0",
        ] {
            let mut records = Records::default();
            assert!(records.add(bytes, Scope::Entry).is_err(), "{}", bytes.escape_ascii());
        }
        for records in [
            &[("path", "a\0b")][..],
            &[("size", "-1")],
            &[("size", "0x10")],
            &[("size", "18446744073709551616")],
            &[("uid", "4294967296")],
            &[("uid", "-1")],
            &[("path", "a"), ("path", "a")],
            &[("GNU.sparse.major", "x")],
            &[("GNU.sparse.unknown", "1")],
            &[("GNU.sparse.numbytes", "1")],
            &[("GNU.sparse.map", "1,2,3")],
            &[("GNU.sparse.size", "1"), ("GNU.sparse.realsize", "1")],
            &[("GNU.dumpdir", "x")],
            &[("SCHILY.xattr.", "x")],
        ] {
            assert!(entry(records).is_err(), "{records:?}");
        }
    }

    #[test]
    fn global_records_give_no_path_or_size() {
        for key in ["path", "linkpath", "size", "GNU.sparse.size"] {
            assert!(Records::default().add(&record(key, "1"), Scope::Global).is_err(), "{key}");
        }
        let mut global = Records::default();
        global.add(&record("uid", "5"), Scope::Global).unwrap();
        global.add(&record("mtime", "7"), Scope::Global).unwrap();
        let merged = entry(&[("uid", "6"), ("path", "p")]).unwrap().or(&global);
        assert_eq!((merged.uid, merged.mtime.unwrap().seconds), (Some(6), 7));
    }
}
