//! PEM: text armour around DER, as RFC 7468 describes it and OpenSSL writes it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::{Error, ErrorKind, Result};

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

/// One block: its label, such as `CERTIFICATE`, and its bytes.
pub(crate) struct Block<'a> {
    pub(crate) label: &'a str,
    pub(crate) der: Vec<u8>,
}

/// Reads every block of a text. Text between blocks is explanation and skipped, as RFC 7468 §2 allows;
/// headers within a block (an encrypted key of the old form) are not base64 and refused.
///
/// # Errors
/// `Malformed` for text that is not UTF-8, a block without its end or with other characters in it.
pub(crate) fn blocks<'a>(bytes: &'a [u8], object: &str) -> Result<Vec<Block<'a>>> {
    let text = std::str::from_utf8(bytes)
        .map_err(|source| Error::malformed(object, "PEM text", source))?;
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim_end);
    while let Some(line) = lines.next() {
        let Some(label) = line.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(DASHES))
        else {
            // a certificate that is indented would go missing without a word
            if line.contains(BEGIN) {
                return Err(Error::new(
                    ErrorKind::Malformed,
                    object,
                    format_args!("a line {line:?}"),
                    format_args!("{BEGIN}LABEL{DASHES} and nothing else in that line"),
                ));
            }
            continue;
        };
        let mut body = String::new();
        let ended = loop {
            match lines.next() {
                Some(line) if line.starts_with(DASHES) => break line.strip_prefix(END),
                Some(line) => body.push_str(line),
                None => break None,
            }
        };
        if ended.and_then(|rest| rest.strip_suffix(DASHES)) != Some(label) {
            return Err(Error::new(
                ErrorKind::Malformed,
                object,
                format_args!("a block {label:?} without its end"),
                format_args!("a line {END}{label}{DASHES}"),
            ));
        }
        let der = STANDARD
            .decode(&body)
            .map_err(|source| Error::malformed(object, "base64 in each PEM block", source))?;
        blocks.push(Block { label, der });
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read_and_text_between_them_skipped() {
        let text = b"subject=x\n-----BEGIN A-----\nAQ\n==\n-----END A-----\r\nmore\n-----BEGIN B C-----\r\nAgM=\r\n-----END B C-----";
        let found = blocks(text, "file").unwrap();
        let found: Vec<_> = found.iter().map(|block| (block.label, block.der.as_slice())).collect();
        assert_eq!(found, [("A", &[1][..]), ("B C", &[2, 3][..])]);
        assert!(blocks(b"nothing here", "file").unwrap().is_empty());
    }

    #[test]
    fn broken_blocks_are_refused() {
        for text in [
            &b"-----BEGIN A-----\nAQ==\n"[..],
            b"-----BEGIN A-----\nAQ==\n-----END B-----\n",
            b"-----BEGIN A-----\nAQ==\n-----BEGIN A-----\nAQ==\n-----END A-----\n",
            b"-----BEGIN A-----\nProc-Type: 4,ENCRYPTED\n\nAQ==\n-----END A-----\n",
            b"-----BEGIN A-----\nAQ\n-----END A-----\n",
            b"  -----BEGIN A-----\nAQ==\n-----END A-----\n",
            b"x: -----BEGIN A-----\nAQ==\n-----END A-----\n",
            b"-----BEGIN A\nAQ==\n-----END A-----\n",
            b"\xff",
        ] {
            let error = blocks(text, "file").map(|blocks| blocks.len()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed, "{text:?}");
        }
    }
}
