//! Our certificate in the firmware's `db`, written straight into OVMF's variable store.
//!
//! | part | bytes | is |
//! |---|---:|---|
//! | firmware volume header | its `HeaderLength` | `_FVH` at 40, the length at 48 |
//! | variable store header | 28 | GUID, size, format, state |
//! | variable | 60 + name + data, padded to 4 | `0x55aa`, state `0x3f`, attributes, time, sizes, vendor |
//!
//! Secure Boot stays off (no PK): a certificate in `db` is enough for the kernel's `.platform`
//! keyring. Source: edk2 `MdeModulePkg/Include/Guid/VariableFormat.h`, UEFI 2.10 section 32.4.1.

use anyhow::{Context, Result, ensure};

const DB_VENDOR: [u8; 16] = guid(0xd719_b2cb, 0x3d3a, 0x4596, 0xa3bc_dad0_0e67_656f);
const CERT_X509: [u8; 16] = guid(0xa5c0_59a1, 0x94e4, 0x4aa7, 0x87b5_ab15_5c2b_f072);
const OWNER: [u8; 16] = guid(0x6861_6c6c, 0x6d61, 0x726b, 0x8000_0000_0000_0001);
const AUTHENTICATED: [u8; 16] = guid(0xaaf3_2c78, 0x947b, 0x439a, 0xa180_2e14_4ec3_7792);
/// Non-volatile, boot service and runtime access, time-based authenticated write.
const ATTRIBUTES: u32 = 0x27;

const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

/// The variable store `template` with `certificate` (DER) as the only entry of `db`.
pub(crate) fn with_certificate(template: &[u8], certificate: &[u8]) -> Result<Vec<u8>> {
    ensure!(template.get(40..44) == Some(b"_FVH"), "not a firmware volume");
    let header = template.get(48..50).context("firmware volume cut short")?;
    let store = usize::from(u16::from_le_bytes([header[0], header[1]]));
    ensure!(
        template.get(store..store + 16) == Some(AUTHENTICATED.as_slice()),
        "no authenticated variable store behind the firmware volume's header"
    );
    let at = (store + 28).next_multiple_of(4);
    let variable = variable(certificate)?;
    let mut image = template.to_vec();
    let room = image.get_mut(at..at + variable.len()).context("variable store too small")?;
    ensure!(room.iter().all(|byte| *byte == 0xff), "the variable store is not empty");
    room.copy_from_slice(&variable);
    Ok(image)
}

fn variable(certificate: &[u8]) -> Result<Vec<u8>> {
    let entry = u32::try_from(16 + certificate.len())?;
    let mut list = CERT_X509.to_vec();
    list.extend((28 + entry).to_le_bytes());
    list.extend(0_u32.to_le_bytes());
    list.extend(entry.to_le_bytes());
    list.extend(OWNER);
    list.extend(certificate);
    let name: Vec<u8> = "db\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut bytes = vec![0xaa, 0x55, 0x3f, 0];
    bytes.extend(ATTRIBUTES.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    // EFI_TIME: 2026-01-01 00:00:00
    bytes.extend(2026_u16.to_le_bytes());
    bytes.extend([1, 1]);
    bytes.extend([0; 12]);
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(u32::try_from(name.len())?.to_le_bytes());
    bytes.extend(u32::try_from(list.len())?.to_le_bytes());
    bytes.extend(DB_VENDOR);
    bytes.extend(name);
    bytes.extend(list);
    bytes.resize(bytes.len().next_multiple_of(4), 0xff);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Vec<u8> {
        let mut image = vec![0xff; 4096];
        image[40..44].copy_from_slice(b"_FVH");
        image[48..50].copy_from_slice(&72_u16.to_le_bytes());
        image[72..88].copy_from_slice(&AUTHENTICATED);
        image
    }

    #[test]
    fn the_variable_stands_behind_the_store_header() {
        let image = with_certificate(&template(), b"der").unwrap();
        assert_eq!(image[100..104], [0xaa, 0x55, 0x3f, 0]);
        assert_eq!(image[160..166], [b'd', 0, b'b', 0, 0, 0]);
        assert_eq!(&image[166 + 28 + 16..][..3], b"der");
        assert_eq!(image.len(), 4096);
    }

    #[test]
    fn a_used_or_foreign_store_is_refused() {
        let used = with_certificate(&template(), b"der").unwrap();
        assert!(with_certificate(&used, b"der").is_err());
        assert!(with_certificate(&[0; 4096], b"der").is_err());
    }
}
