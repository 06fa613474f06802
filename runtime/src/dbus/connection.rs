//! A connection to a bus, or to one peer: who we are, then calls and their answers.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Error;
use super::message::{FIXED_BYTES, Kind, Message, rest};
use super::value::Value;

pub(crate) use super::message::Method;

/// How long an answer may take; as runc waits for systemd.
const PATIENCE: Duration = Duration::from_secs(30);
/// Signals kept while an answer is waited for; older ones go first.
const SIGNALS: usize = 256;

/// An open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    serial: u32,
    signals: VecDeque<Message>,
}

/// The body of an answer, as far as it is strings and numbers.
#[derive(Debug)]
pub(crate) struct Answer(Message);

impl Answer {
    /// The first value, if it is a string or an object path, also inside a variant.
    pub(crate) fn text(&self) -> Result<String, Error> {
        let mut reader = self.0.reader();
        let signature = match self.0.signature.as_str() {
            "v" => reader.signature()?,
            other => other.to_owned(),
        };
        match signature.as_bytes().first() {
            Some(b's' | b'o') => reader.text(),
            _ => Err(Error::malformed(format!("an answer of type {signature:?}"), "text")),
        }
    }
}

impl Connection {
    /// Connects to the socket at `path`, as the user we are: the kernel tells the other side, we claim nothing.
    ///
    /// # Errors
    /// [`Error::Socket`] if nobody listens; [`Error::Malformed`] if we are not wanted.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let socket = |call| move |source| Error::Socket { call, source };
        let stream = UnixStream::connect(path).map_err(socket("connect"))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(socket("set a timeout"))?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(socket("set a timeout"))?;
        let mut connection = Self { stream, serial: 0, signals: VecDeque::new() };
        connection.send(b"\0AUTH EXTERNAL\r\n")?;
        let expected = "OK";
        match connection.line()?.as_str() {
            line if line.starts_with("DATA") => connection.send(b"DATA\r\n")?,
            other => return Err(Error::malformed(format!("{other:?}"), "DATA")),
        }
        match connection.line()?.as_str() {
            line if line.starts_with("OK") => connection.send(b"BEGIN\r\n")?,
            other => return Err(Error::malformed(format!("{other:?}"), expected)),
        }
        Ok(connection)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream.write_all(bytes).map_err(|source| Error::Socket { call: "write", source })
    }

    /// A line of the handshake, without its end. Read byte by byte: what follows it belongs to messages.
    fn line(&mut self) -> Result<String, Error> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() > 1024 {
                return Err(Error::malformed("a line of 1024 bytes", "a shorter one"));
            }
            let mut byte = [0];
            self.read(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line[..line.len() - 2]).into_owned())
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.stream.read_exact(bytes).map_err(|source| Error::Socket { call: "read", source })
    }

    fn receive(&mut self) -> Result<Message, Error> {
        let mut fixed = [0; FIXED_BYTES];
        self.read(&mut fixed)?;
        let mut after = vec![0; rest(&fixed)?];
        self.read(&mut after)?;
        Message::parse(&fixed, &after)
    }

    /// Calls `method` and waits for its answer.
    ///
    /// # Errors
    /// [`Error::Refused`] with the other side's error, or what the socket says.
    pub(crate) fn call(&mut self, method: Method, arguments: &[Value]) -> Result<Answer, Error> {
        self.serial = self.serial.wrapping_add(1).max(1);
        let bytes = method.call(self.serial, arguments)?;
        self.send(&bytes)?;
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            let message = self.receive()?;
            match message.kind {
                Kind::Return if message.answers == self.serial => return Ok(Answer(message)),
                Kind::Error if message.answers == self.serial => {
                    let text = message.reader().text().unwrap_or_default();
                    return Err(Error::Refused { name: message.error, text });
                }
                Kind::Signal => {
                    if self.signals.len() == SIGNALS {
                        self.signals.pop_front();
                    }
                    self.signals.push_back(message);
                }
                _ => {}
            }
        }
        Err(Error::malformed(format!("no answer to {}", method.member), "one within 30 seconds"))
    }

    /// Waits for the signal `JobRemoved` of systemd's manager about `job`, and returns the job's result.
    ///
    /// # Errors
    /// If none comes within 30 seconds.
    pub(crate) fn job_result(&mut self, job: &str) -> Result<String, Error> {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            let message = match self.signals.pop_front() {
                Some(message) => message,
                None => self.receive()?,
            };
            if message.kind != Kind::Signal || message.member != "JobRemoved" {
                continue;
            }
            // id, job, unit, result
            let mut body = message.reader();
            body.uint32()?;
            let of = body.text()?;
            body.text()?;
            if of == job {
                return body.text();
            }
        }
        Err(Error::malformed(format!("no end of {job}"), "one within 30 seconds"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    const HELLO: Method = Method {
        destination: "org.freedesktop.DBus",
        path: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
        member: "Hello",
    };

    /// Plays the other side: the handshake, then `messages` as they are.
    fn peer(messages: Vec<u8>) -> (tempfile::TempDir, std::thread::JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("bus")).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut expect = |text: &[u8], answer: &[u8]| {
                let mut found = vec![0; text.len()];
                stream.read_exact(&mut found).unwrap();
                assert_eq!(found, text);
                stream.write_all(answer).unwrap();
            };
            expect(b"\0AUTH EXTERNAL\r\n", b"DATA\r\n");
            expect(b"DATA\r\n", b"OK 0123\r\n");
            expect(b"BEGIN\r\n", &messages);
            // until the caller has read everything
            drop(stream.read_to_end(&mut Vec::new()));
        });
        (dir, thread)
    }

    fn message(kind: u8, fields: Vec<(u8, Value)>, body: &[Value]) -> Vec<u8> {
        let mut bytes = Vec::new();
        body.iter().for_each(|value| value.write(&mut bytes).unwrap());
        let mut fields: Vec<Value> = fields
            .into_iter()
            .map(|(code, value)| {
                Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(value))])
            })
            .collect();
        let signature = Value::Signature(body.iter().map(Value::signature).collect());
        fields.push(Value::Struct(vec![Value::Byte(8), Value::Variant(Box::new(signature))]));
        let mut out = vec![b'l', kind, 0, 1];
        out.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
        out.extend(9_u32.to_le_bytes());
        Value::Array("(yv)".to_owned(), fields).write(&mut out).unwrap();
        super::super::value::pad(&mut out, 8);
        out.extend(bytes);
        out
    }

    fn job_removed(job: &str, result: &str) -> Vec<u8> {
        let path = Value::ObjectPath(job.to_owned());
        let body = [Value::Uint32(1), path, Value::text("a.scope"), Value::text(result)];
        message(4, vec![(3, Value::text("JobRemoved"))], &body)
    }

    #[test]
    fn an_answer_is_found_among_signals_and_the_signals_are_kept() {
        let mut messages = job_removed("/job/1", "done");
        messages.extend(message(2, vec![(5, Value::Uint32(77))], &[Value::text("not ours")]));
        messages.extend(message(2, vec![(5, Value::Uint32(1))], &[Value::text("yes")]));
        messages.extend(job_removed("/job/2", "failed"));
        let (dir, thread) = peer(messages);
        let mut connection = Connection::open(&dir.path().join("bus")).unwrap();
        assert_eq!(connection.call(HELLO, &[]).unwrap().text().unwrap(), "yes");
        assert_eq!(connection.job_result("/job/2").unwrap(), "failed");
        drop(connection);
        thread.join().unwrap();
    }

    #[test]
    fn an_error_is_known_by_its_name() {
        let name = Value::text("org.freedesktop.systemd1.NoSuchUnit");
        let fields = vec![(4, name), (5, Value::Uint32(1))];
        let (dir, thread) = peer(message(3, fields, &[Value::text("Unit a.scope not loaded.")]));
        let mut connection = Connection::open(&dir.path().join("bus")).unwrap();
        let error = connection.call(HELLO, &[]).unwrap_err();
        assert!(error.is("org.freedesktop.systemd1.NoSuchUnit"), "{error}");
        assert!(error.to_string().ends_with("Unit a.scope not loaded."));
        drop(connection);
        thread.join().unwrap();
    }

    #[test]
    fn a_peer_that_goes_away_is_an_error() {
        let (dir, thread) = peer(b"l\x02\0\x01\xff\0\0\0".to_vec());
        let mut connection = Connection::open(&dir.path().join("bus")).unwrap();
        connection.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(matches!(connection.call(HELLO, &[]), Err(Error::Socket { .. })));
        drop(connection);
        thread.join().unwrap();
        assert!(matches!(Connection::open(Path::new("/no/bus")), Err(Error::Socket { .. })));
    }
}
