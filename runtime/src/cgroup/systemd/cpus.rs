//! Lists of processors and memory nodes as systemd has them: a bit each.

use crate::cgroup::Error;
use crate::dbus::Value;

/// No machine has more; a list may name any number of 32 bits.
const MOST: u32 = 1 << 16;

/// The property `name` with the list `set`, if systemd knows it (since 244).
///
/// # Errors
/// [`Error::Value`] for a list that is none.
pub(super) fn property(known: u32, name: &str, set: &str) -> Result<Option<Value>, Error> {
    let file = if name == "AllowedCPUs" { "cpuset.cpus" } else { "cpuset.mems" };
    let bits = bits(set).ok_or_else(|| {
        Error::Value(format!("unified resource {file:?}={set:?} conversion error"))
    })?;
    Ok((known >= 244).then(|| Value::property(name, Value::bytes(&bits))))
}

/// `1,3-5` as bits, the first processor in the lowest bit of the first byte. `None` for a list that is none, or empty.
fn bits(text: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for range in text.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        for number in first..=last {
            let at = usize::try_from(number / 8).ok()?;
            if bits.len() <= at {
                bits.resize(at + 1, 0);
            }
            bits[at] |= 1 << (number % 8);
        }
    }
    (!bits.is_empty()).then_some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases of opencontainers/cgroups `systemd/cpuset_test.go`.
    #[test]
    fn a_list_is_a_bit_each() {
        for (text, expected) in [
            ("0", Some(&[1][..])),
            ("1", Some(&[2])),
            ("0-1", Some(&[3])),
            ("0,1", Some(&[3])),
            (",0,1,", Some(&[3])),
            ("0-3", Some(&[0x0f])),
            ("0-10", Some(&[0xff, 0x07])),
            ("0-1,8", Some(&[3, 1])),
            ("2-3 , 5", Some(&[0b10_1100])),
            ("", None),
            (",,", None),
            ("-", None),
            ("x", None),
            ("3-1", None),
            ("0-4294967295", None),
        ] {
            assert_eq!(bits(text).as_deref(), expected, "{text}");
        }
    }
}
