//! Values in D-Bus' wire form, little endian.
//!
//! | type | signature | aligned to | bytes |
//! |---|---|---|---|
//! | byte | `y` | 1 | 1 |
//! | boolean, int32, uint32 | `b`, `i`, `u` | 4 | 4 |
//! | int16, uint16 | `n`, `q` | 2 | 2 |
//! | int64, uint64, double | `x`, `t`, `d` | 8 | 8 |
//! | string, object path | `s`, `o` | 4 | length, text, NUL |
//! | signature | `g` | 1 | length (a byte), text, NUL |
//! | variant | `v` | 1 | signature, value |
//! | array | `a…` | 4 | length in bytes without the padding behind it, padding to the element, elements |
//! | struct | `(…)` | 8 | fields |
//!
//! Source: D-Bus specification, section Marshaling.

use super::Error;

/// A value of one of the types above; dictionaries and descriptors are not needed here.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Byte(u8),
    Bool(bool),
    Int16(i16),
    Uint16(u16),
    Int32(i32),
    Uint32(u32),
    Int64(i64),
    Uint64(u64),
    Double(f64),
    Text(String),
    ObjectPath(String),
    Signature(String),
    Variant(Box<Self>),
    /// The elements' signature, needed where there are none.
    Array(String, Vec<Self>),
    Struct(Vec<Self>),
}

impl Value {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// An array of bytes.
    pub(crate) fn bytes(bytes: &[u8]) -> Self {
        Self::Array("y".to_owned(), bytes.iter().copied().map(Self::Byte).collect())
    }

    /// What systemd calls a property: a name, and a value of any type.
    pub(crate) fn property(name: &str, value: Self) -> Self {
        Self::Struct(vec![Self::text(name), Self::Variant(Box::new(value))])
    }

    /// The type, as D-Bus writes it.
    pub(crate) fn signature(&self) -> String {
        match self {
            Self::Byte(_) => "y".to_owned(),
            Self::Bool(_) => "b".to_owned(),
            Self::Int16(_) => "n".to_owned(),
            Self::Uint16(_) => "q".to_owned(),
            Self::Int32(_) => "i".to_owned(),
            Self::Uint32(_) => "u".to_owned(),
            Self::Int64(_) => "x".to_owned(),
            Self::Uint64(_) => "t".to_owned(),
            Self::Double(_) => "d".to_owned(),
            Self::Text(_) => "s".to_owned(),
            Self::ObjectPath(_) => "o".to_owned(),
            Self::Signature(_) => "g".to_owned(),
            Self::Variant(_) => "v".to_owned(),
            Self::Array(element, _) => format!("a{element}"),
            Self::Struct(fields) => {
                let fields: String = fields.iter().map(Self::signature).collect();
                format!("({fields})")
            }
        }
    }

    /// Appends the wire form; `out` began at a multiple of 8.
    ///
    /// # Errors
    /// [`Error::TooLong`] for a length that its field cannot hold.
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        pad(out, alignment(&self.signature()));
        match self {
            Self::Byte(value) => out.push(*value),
            Self::Bool(value) => out.extend(u32::from(*value).to_le_bytes()),
            Self::Int16(value) => out.extend(value.to_le_bytes()),
            Self::Uint16(value) => out.extend(value.to_le_bytes()),
            Self::Int32(value) => out.extend(value.to_le_bytes()),
            Self::Uint32(value) => out.extend(value.to_le_bytes()),
            Self::Int64(value) => out.extend(value.to_le_bytes()),
            Self::Uint64(value) => out.extend(value.to_le_bytes()),
            Self::Double(value) => out.extend(value.to_le_bytes()),
            Self::Text(text) | Self::ObjectPath(text) => {
                out.extend(length(text.len())?.to_le_bytes());
                out.extend(text.as_bytes());
                out.push(0);
            }
            Self::Signature(text) => write_signature(text, out)?,
            Self::Variant(value) => {
                write_signature(&value.signature(), out)?;
                value.write(out)?;
            }
            Self::Array(element, values) => write_array(element, values, out)?,
            Self::Struct(fields) => fields.iter().try_for_each(|field| field.write(out))?,
        }
        Ok(())
    }
}

fn write_signature(text: &str, out: &mut Vec<u8>) -> Result<(), Error> {
    let length = u8::try_from(text.len());
    out.push(length.map_err(|_range: std::num::TryFromIntError| Error::TooLong(text.len()))?);
    out.extend(text.as_bytes());
    out.push(0);
    Ok(())
}

fn write_array(element: &str, values: &[Value], out: &mut Vec<u8>) -> Result<(), Error> {
    let at = out.len();
    out.extend([0; 4]);
    pad(out, alignment(element));
    let start = out.len();
    values.iter().try_for_each(|value| value.write(out))?;
    let bytes = length(out.len() - start)?.to_le_bytes();
    out[at..at + 4].copy_from_slice(&bytes);
    Ok(())
}

fn length(bytes: usize) -> Result<u32, Error> {
    u32::try_from(bytes).map_err(|_range: std::num::TryFromIntError| Error::TooLong(bytes))
}

/// To how many bytes a value of this signature is aligned.
fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'n' | b'q') => 2,
        Some(b'b' | b'i' | b'u' | b's' | b'o' | b'a') => 4,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 1,
    }
}

pub(super) fn pad(out: &mut Vec<u8>, alignment: usize) {
    out.resize(out.len().next_multiple_of(alignment), 0);
}

/// Reads the wire form of the few types that answers hold.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Over bytes that began at a multiple of 8 in their message.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub(super) fn align(&mut self, alignment: usize) {
        self.at = self.at.next_multiple_of(alignment);
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| {
            Error::malformed(format!("a message of {} bytes", self.bytes.len()), "a longer one")
        })?;
        self.at += count;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Error> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn uint32(&mut self) -> Result<u32, Error> {
        self.align(4);
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(bytes))
    }

    /// A string or an object path.
    pub(super) fn text(&mut self) -> Result<String, Error> {
        let length = self.uint32()?;
        self.ended(usize::try_from(length).unwrap_or(usize::MAX))
    }

    pub(super) fn signature(&mut self) -> Result<String, Error> {
        let length = self.byte()?;
        self.ended(usize::from(length))
    }

    fn ended(&mut self, length: usize) -> Result<String, Error> {
        let bytes = self.take(length)?;
        self.take(1)?;
        let text = std::str::from_utf8(bytes);
        Ok(text.map_err(|_cause| Error::malformed("a string", "UTF-8"))?.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        value.write(&mut out).unwrap();
        out
    }

    /// As `busctl --user emit … | busctl capture` of systemd 257 shows the same values.
    #[test]
    fn values_are_padded_to_their_alignment() {
        for (value, signature, bytes) in [
            (Value::Bool(true), "b", &b"\x01\0\0\0"[..]),
            (Value::Uint16(258), "q", b"\x02\x01"),
            (Value::text("ab"), "s", b"\x02\0\0\0ab\0"),
            (Value::Signature("as".to_owned()), "g", b"\x02as\0"),
            (Value::bytes(&[3, 0]), "ay", b"\x02\0\0\0\x03\0"),
            // the padding before the first element is not counted
            (Value::Array("t".to_owned(), vec![]), "at", b"\0\0\0\0\0\0\0\0"),
            (
                Value::Array("t".to_owned(), vec![Value::Uint64(1)]),
                "at",
                b"\x08\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0",
            ),
            (
                Value::property("N", Value::Uint32(7)),
                "(sv)",
                b"\x01\0\0\0N\0\x01u\0\0\0\0\x07\0\0\0",
            ),
        ] {
            assert_eq!(value.signature(), signature);
            assert_eq!(wire(&value), bytes, "{value:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_and_what_is_cut_is_refused() {
        let fields = vec![Value::Uint32(9), Value::text("é"), Value::Signature("a(sv)".to_owned())];
        let bytes = wire(&Value::Struct(fields));
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.uint32().unwrap(), 9);
        assert_eq!(reader.text().unwrap(), "é");
        assert_eq!(reader.signature().unwrap(), "a(sv)");
        assert!(reader.is_at_end());
        for end in 0..bytes.len() {
            let mut reader = Reader::new(&bytes[..end]);
            let read = reader.uint32().and_then(|_| reader.text()).and_then(|_| reader.signature());
            assert!(read.is_err(), "{end} bytes");
        }
        assert!(Reader::new(b"\xff\xff\xff\xffab").text().is_err());
    }
}
