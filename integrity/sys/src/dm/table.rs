//! Table and status lines of device-mapper, as text: parsed strictly, and written.
//!
//! A verity table line, `<start> <sectors> verity` left out, is
//! `version data_dev hash_dev data_block_size hash_block_size data_blocks hash_start algorithm root_hash salt [n option…]`;
//! sizes in bytes, counts and positions in blocks of the device named before, salt `-` when empty.
//!
//! Source: kernel `drivers/md/dm-verity-target.c` (`verity_status`, `verity_ctr`),
//! Documentation/admin-guide/device-mapper/verity.rst.

use crate::{Error, Result};

/// One target of a device's active table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// First sector of the device that this target serves, in units of 512 bytes.
    pub start_sector: u64,
    /// Length in sectors of 512 bytes.
    pub sectors: u64,
    /// Target type: `verity`, `linear`, …
    pub kind: String,
    /// Parameters (table) or state (status), as the kernel printed them.
    pub text: String,
}

impl Target {
    /// The target's parameters, when it is a verity target.
    ///
    /// # Errors
    /// `Malformed`: another type, or a line this function does not understand to the last word.
    pub fn verity(&self) -> Result<VerityTarget> {
        if self.kind != "verity" {
            return Err(Error::malformed(
                "device-mapper table",
                format!("the target is {:?}, not \"verity\"", self.kind),
            ));
        }
        VerityTarget::parse(&self.text)
    }

    /// The state of a verity target, from the answer of [`status_of`](super::status_of).
    ///
    /// # Errors
    /// `Malformed`: another type, or a state that is neither `V` nor `C`.
    pub fn verity_status(&self) -> Result<VerityStatus> {
        if self.kind != "verity" {
            return Err(Error::malformed(
                "device-mapper status",
                format!("the target is {:?}, not \"verity\"", self.kind),
            ));
        }
        VerityStatus::parse(&self.text)
    }
}

/// What a verity target has seen since it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerityStatus {
    /// `V`: every block read so far was as the root hash says.
    Verified,
    /// `C`: a block read since was not.
    Corrupted,
}

impl VerityStatus {
    /// Parses a status line by its first word: newer kernels add words (`V -`, `C -`).
    ///
    /// # Errors
    /// `Malformed`: the first word is neither `V` nor `C`.
    pub fn parse(text: &str) -> Result<Self> {
        match text.split_ascii_whitespace().next() {
            Some("V") => Ok(Self::Verified),
            Some("C") => Ok(Self::Corrupted),
            _ => Err(Error::malformed("verity status", format!("{text:?} is neither V nor C"))),
        }
    }
}

/// The parameters of one verity target, as the kernel states them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerityTarget {
    /// On-disk format: 1 is the only one `veritysetup` makes today.
    pub version: u32,
    /// The device of the data, as printed: `MAJOR:MINOR`.
    pub data_dev: String,
    /// The device of the hash tree, as printed: `MAJOR:MINOR`.
    pub hash_dev: String,
    /// Bytes.
    pub data_block_size: u32,
    /// Bytes.
    pub hash_block_size: u32,
    /// Blocks of `data_block_size` that the tree covers.
    pub data_blocks: u64,
    /// Where the tree begins, in blocks of `hash_block_size`; behind the superblock if there is one.
    pub hash_start: u64,
    /// The kernel's name of the hash: `sha256`, …
    pub algorithm: String,
    /// The root hash, from hex of either case.
    pub root_hash: Vec<u8>,
    /// The salt; empty for `-`.
    pub salt: Vec<u8>,
    /// The optional words in order, values included, except the two of the signature.
    pub options: Vec<String>,
    /// Whether the table names a key that holds a signature of the root hash.
    pub signed: bool,
}

/// The word before the name of the key that holds the root hash's signature.
pub(super) const SIGNATURE_OPTION: &str = "root_hash_sig_key_desc";

impl VerityTarget {
    /// Parses the parameters of a table line.
    ///
    /// # Errors
    /// `Malformed`: words missing, left over, or not of their type.
    pub fn parse(text: &str) -> Result<Self> {
        let mut words = Words { text, rest: text.split(' ') };
        let mut target = Self {
            version: words.number("version")?,
            data_dev: words.device("data device")?,
            hash_dev: words.device("hash device")?,
            data_block_size: words.number("data block size")?,
            hash_block_size: words.number("hash block size")?,
            data_blocks: words.number("number of data blocks")?,
            hash_start: words.number("hash start block")?,
            algorithm: words.word("algorithm")?.to_owned(),
            root_hash: words.hex("root hash")?,
            salt: words.salt()?,
            options: Vec::new(),
            signed: false,
        };
        words.options(&mut target)?;
        Ok(target)
    }
}

/// The words of a line, one blank between two.
struct Words<'a> {
    text: &'a str,
    rest: std::str::Split<'a, char>,
}

impl<'a> Words<'a> {
    fn malformed(&self, why: String) -> Error {
        Error::malformed(format!("verity table {:?}", self.text), why)
    }

    fn word(&mut self, name: &str) -> Result<&'a str> {
        match self.rest.next() {
            Some(word) if !word.is_empty() => Ok(word),
            _ => Err(self.malformed(format!("{name} is missing"))),
        }
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Result<T> {
        let word = self.word(name)?;
        // `FromStr` of the integers takes a sign; the kernel prints none.
        match word.parse() {
            Ok(number) if word.bytes().all(|byte| byte.is_ascii_digit()) => Ok(number),
            _ => Err(self.malformed(format!("{name} is {word:?}, not a number in range"))),
        }
    }

    fn device(&mut self, name: &str) -> Result<String> {
        let word = self.word(name)?;
        parse_device(word)
            .map(|_| word.to_owned())
            .ok_or_else(|| self.malformed(format!("{name} is {word:?}, not MAJOR:MINOR")))
    }

    fn hex(&mut self, name: &str) -> Result<Vec<u8>> {
        let word = self.word(name)?;
        decode_hex(word).ok_or_else(|| self.malformed(format!("{name} is {word:?}, not hex")))
    }

    fn salt(&mut self) -> Result<Vec<u8>> {
        match self.word("salt")? {
            "-" => Ok(Vec::new()),
            word => decode_hex(word)
                .ok_or_else(|| self.malformed(format!("salt is {word:?}, not hex or -"))),
        }
    }

    fn options(&mut self, target: &mut VerityTarget) -> Result<()> {
        let Some(count) = self.rest.next() else { return Ok(()) };
        let options: Vec<&str> = self.rest.by_ref().collect();
        if count.parse() != Ok(options.len()) || options.iter().any(|word| word.is_empty()) {
            return Err(
                self.malformed(format!("{count:?} options announced, {} there", options.len()))
            );
        }
        let mut options = options.into_iter();
        while let Some(option) = options.next() {
            if option != SIGNATURE_OPTION {
                target.options.push(option.to_owned());
                continue;
            }
            if target.signed || options.next().is_none() {
                return Err(self.malformed(format!("{SIGNATURE_OPTION} twice or without a key")));
            }
            target.signed = true;
        }
        Ok(())
    }
}

/// `MAJOR:MINOR` in decimal.
pub(crate) fn parse_device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(major) || !digits(minor) {
        return None;
    }
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

/// Lowercase hex: the case in which the kernel hands the root hash to the signature check.
pub(super) fn encode_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "5f7a1f2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8";

    fn line(options: &str) -> String {
        format!("1 7:2 7:3 4096 4096 1407 1 sha256 {ROOT} aabb{options}")
    }

    #[test]
    fn a_plain_line_is_read_to_its_last_word() {
        let target = VerityTarget::parse(&line("")).unwrap();
        assert_eq!((target.version, target.data_blocks, target.hash_start), (1, 1407, 1));
        assert_eq!((target.data_dev.as_str(), target.hash_dev.as_str()), ("7:2", "7:3"));
        assert_eq!((target.data_block_size, target.hash_block_size), (4096, 4096));
        assert_eq!(encode_hex(&target.root_hash), ROOT);
        assert_eq!(target.salt, [0xaa, 0xbb]);
        assert!(!target.signed && target.options.is_empty());
    }

    #[test]
    fn the_signature_is_told_from_other_options() {
        // the table endings seen in a guest: veritysetup's, and a forged one
        let signed =
            VerityTarget::parse(&line(" 2 root_hash_sig_key_desc cryptsetup:U-s")).unwrap();
        assert!(signed.signed && signed.options.is_empty());
        let forged =
            VerityTarget::parse(&line(" 3 ignore_corruption root_hash_sig_key_desc hm:s")).unwrap();
        assert!(forged.signed);
        assert_eq!(forged.options, ["ignore_corruption"]);
    }

    /// As Linux 6.12 printed it of a device that this crate had made with a signature.
    #[test]
    fn a_line_of_the_kernels_is_understood() {
        let target = VerityTarget::parse(
            "1 7:2 7:2 4096 4096 2 3 sha256 \
             03865b5a3dbddf0b78e8db74a12ad479ff66f21ab2408dc2037b6edf5fb59610 \
             5f788159610d33007b120afc73f39a46687c8f9d04a661c58e92c4335d49ea8c \
             2 root_hash_sig_key_desc hallmark:hallmark-03865b5a3dbddf0b-s-672584e3",
        )
        .unwrap();
        assert!(target.signed && target.options.is_empty());
        assert_eq!((target.data_blocks, target.hash_start, target.salt.len()), (2, 3, 32));
    }

    #[test]
    fn a_dash_is_an_empty_salt() {
        let text = line("").replace("aabb", "-");
        assert!(VerityTarget::parse(&text).unwrap().salt.is_empty());
    }

    #[test]
    fn lines_that_are_not_understood_are_refused() {
        let cases = [
            String::new(),
            "7:2 0".to_owned(),
            line("").replace("1407", "+1407"),
            line("").replace("1407", "99999999999999999999"),
            line("").replace("7:2", "/dev/loop2"),
            line("").replace(ROOT, "5f7"),
            line("").replace("aabb", "aabbz0"),
            line(" "),
            line(" 2 root_hash_sig_key_desc"),
            line(" 1 root_hash_sig_key_desc"),
            line(" 1 a b"),
            line(" 4 root_hash_sig_key_desc a root_hash_sig_key_desc b"),
        ];
        for case in cases {
            assert!(VerityTarget::parse(&case).is_err(), "{case:?} was accepted");
        }
    }

    #[test]
    fn a_target_of_another_type_is_not_verity() {
        let target = Target {
            start_sector: 0,
            sectors: 11256,
            kind: "linear".to_owned(),
            text: "7:2 0".to_owned(),
        };
        assert!(target.verity().unwrap_err().to_string().contains("\"linear\""));
        assert!(target.verity_status().is_err());
    }

    #[test]
    fn the_status_is_the_first_word() {
        for (text, status) in [
            ("V", VerityStatus::Verified),
            ("V -", VerityStatus::Verified),
            ("C", VerityStatus::Corrupted),
            ("C -", VerityStatus::Corrupted),
        ] {
            assert_eq!(VerityStatus::parse(text).unwrap(), status);
        }
        assert!(VerityStatus::parse("").is_err());
        assert!(VerityStatus::parse("Vx").is_err());
    }
}
