//! A message: its header, in front of the values of its body.
//!
//! | offset | bytes | field |
//! |---:|---:|---|
//! | 0 | 1 | `l`: little endian |
//! | 1 | 1 | kind: 1 call, 2 return, 3 error, 4 signal |
//! | 2 | 1 | flags |
//! | 3 | 1 | version: 1 |
//! | 4 | 4 | length of the body in bytes |
//! | 8 | 4 | serial number of the sender |
//! | 12 | 4 + n | array of fields (code, variant), then padding to a multiple of 8 |
//!
//! Source: D-Bus specification, section Message Format.

use super::Error;
use super::value::{Reader, Value, pad};

/// The part of the header that says how long the message is.
pub(super) const FIXED_BYTES: usize = 16;
/// Most bytes of a message that is read or written; a bus takes 128 MiB.
const MAX_BYTES: usize = 1 << 20;

const CALL: u8 = 1;
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// Where a call goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Method {
    pub(crate) destination: &'static str,
    pub(crate) path: &'static str,
    pub(crate) interface: &'static str,
    pub(crate) member: &'static str,
}

impl Method {
    /// The call's bytes.
    pub(super) fn call(self, serial: u32, arguments: &[Value]) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        arguments.iter().try_for_each(|argument| argument.write(&mut body))?;
        let field =
            |code, value| Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(value))]);
        let mut fields = vec![
            field(PATH, Value::ObjectPath(self.path.to_owned())),
            field(INTERFACE, Value::text(self.interface)),
            field(MEMBER, Value::text(self.member)),
            field(DESTINATION, Value::text(self.destination)),
        ];
        if !arguments.is_empty() {
            let signature = arguments.iter().map(Value::signature).collect();
            fields.push(field(SIGNATURE, Value::Signature(signature)));
        }
        let mut out = vec![b'l', CALL, 0, 1];
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        out.extend(length.to_le_bytes());
        out.extend(serial.to_le_bytes());
        Value::Array("(yv)".to_owned(), fields).write(&mut out)?;
        pad(&mut out, 8);
        out.extend(body);
        if out.len() > MAX_BYTES { Err(Error::TooLong(out.len())) } else { Ok(out) }
    }
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Call,
    Return,
    Error,
    Signal,
}

/// A message that came in.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    /// Of an error: its name.
    pub(super) error: String,
    /// Of a signal: its name.
    pub(super) member: String,
    /// Of a return or error: the serial number of the call.
    pub(super) answers: u32,
    pub(super) signature: String,
    pub(super) body: Vec<u8>,
}

/// How many bytes follow the first [`FIXED_BYTES`].
pub(super) fn rest(fixed: &[u8; FIXED_BYTES]) -> Result<usize, Error> {
    if fixed[0] != b'l' || fixed[3] != 1 {
        return Err(Error::malformed(
            format!("byte order {:?}, version {}", char::from(fixed[0]), fixed[3]),
            "little endian, version 1",
        ));
    }
    let mut reader = Reader::new(&fixed[4..]);
    let body = usize::try_from(reader.uint32()?).unwrap_or(usize::MAX);
    reader.uint32()?;
    let fields = usize::try_from(reader.uint32()?).unwrap_or(usize::MAX);
    let fields = fields.checked_next_multiple_of(8).unwrap_or(usize::MAX);
    match fields.saturating_add(body) {
        bytes if bytes > MAX_BYTES => Err(Error::TooLong(bytes)),
        bytes => Ok(bytes),
    }
}

impl Message {
    /// Parses a whole message: `fixed`, and the rest of it.
    pub(super) fn parse(fixed: &[u8; FIXED_BYTES], rest: &[u8]) -> Result<Self, Error> {
        let kind = match fixed[1] {
            1 => Kind::Call,
            2 => Kind::Return,
            3 => Kind::Error,
            4 => Kind::Signal,
            other => return Err(Error::malformed(format!("a message of kind {other}"), "1 to 4")),
        };
        let fields = usize::try_from(Reader::new(&fixed[12..]).uint32()?).unwrap_or(usize::MAX);
        let cut = || Error::malformed("a message cut short", "a whole one");
        let body =
            fields.checked_next_multiple_of(8).and_then(|at| rest.get(at..)).ok_or_else(cut)?;
        let mut message = Self {
            kind,
            error: String::new(),
            member: String::new(),
            answers: 0,
            signature: String::new(),
            body: body.to_vec(),
        };
        let mut reader = Reader::new(rest.get(..fields).ok_or_else(cut)?);
        while !reader.is_at_end() {
            reader.align(8);
            let code = reader.byte()?;
            match (code, reader.signature()?.as_str()) {
                (ERROR_NAME, "s") => message.error = reader.text()?,
                (MEMBER, "s") => message.member = reader.text()?,
                (REPLY_SERIAL, "u") => message.answers = reader.uint32()?,
                (SIGNATURE, "g") => message.signature = reader.signature()?,
                (_, "s" | "o") => drop(reader.text()?),
                (_, "u") => drop(reader.uint32()?),
                (_, other) => {
                    return Err(Error::malformed(
                        format!("field {code} of type {other}"),
                        "s, o, g or u",
                    ));
                }
            }
        }
        Ok(message)
    }

    /// Reads the strings and numbers of the body, as far as they are such.
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader::new(&self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: Method = Method { destination: "a.b", path: "/", interface: "a.b", member: "Ping" };

    fn split(bytes: &[u8]) -> ([u8; FIXED_BYTES], &[u8]) {
        (bytes[..FIXED_BYTES].try_into().unwrap(), &bytes[FIXED_BYTES..])
    }

    #[test]
    fn a_call_is_read_as_it_was_written() {
        let bytes = PING.call(7, &[Value::text("x"), Value::Uint32(5)]).unwrap();
        let (fixed, after) = split(&bytes);
        assert_eq!(rest(&fixed).unwrap(), after.len());
        let message = Message::parse(&fixed, after).unwrap();
        assert_eq!((message.kind, message.member.as_str()), (Kind::Call, "Ping"));
        assert_eq!(message.signature, "su");
        let mut body = message.reader();
        assert_eq!((body.text().unwrap().as_str(), body.uint32().unwrap()), ("x", 5));
    }

    #[test]
    fn noise_is_refused_without_a_panic() {
        let bytes = PING.call(7, &[Value::text("x")]).unwrap();
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut noise = bytes.clone();
                noise[at] = value;
                let (fixed, after) = split(&noise);
                let longer = rest(&fixed).is_ok_and(|bytes| bytes > after.len());
                assert!(!longer || at < FIXED_BYTES);
                drop(Message::parse(&fixed, after));
            }
            if at > FIXED_BYTES {
                drop(Message::parse(&split(&bytes).0, &bytes[FIXED_BYTES..at]));
            }
        }
    }

    #[test]
    fn a_message_of_a_gigabyte_is_not_waited_for() {
        let fixed = *b"l\x02\0\x01\0\0\0\x40\0\0\0\0\0\0\0\0";
        assert!(matches!(rest(&fixed), Err(Error::TooLong(_))));
        assert!(rest(b"B\x02\0\x01\0\0\0\0\0\0\0\0\0\0\0\0").is_err());
    }
}
