//! containerd's content store, read over its own socket, and large blobs from its directory where that is the usual one.
//!
//! Calls block: they are made on threads of the runtime's blocking pool, and only there.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status, Streaming};

use crate::error::{Error, Result};
use crate::proto::content::content_client::ContentClient;
use crate::proto::content::{
    Info, InfoRequest, ListContentRequest, ListContentResponse, ReadContentRequest,
    ReadContentResponse,
};

/// How long containerd may take for the first or next piece of a layer's blob.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to say where a blob is.
const INFO: Duration = Duration::from_secs(5);

/// Where a containerd with its usual root keeps the bytes of blobs, by the hex of their digests.
pub(crate) const BLOBS: &str = "/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256";

/// How long containerd may take.
#[derive(Debug, Clone, Copy)]
enum Patience {
    /// For each answer or piece of one.
    Each(Duration),
    /// For all of it.
    Until(Instant),
}

impl Patience {
    /// For what comes next.
    fn left(self) -> Duration {
        match self {
            Self::Each(patience) => patience,
            Self::Until(deadline) => deadline.saturating_duration_since(Instant::now()),
        }
    }
}

/// A client of containerd's content store. The connection is made when it is first needed, and again when it broke.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    client: ContentClient<Channel>,
    socket: PathBuf,
    /// The directory of blobs, if it is the one of the containerd behind the socket.
    blobs: PathBuf,
    runtime: Handle,
}

impl Content {
    /// Must be called on a thread of the runtime `runtime`.
    pub(crate) fn new(socket: &Path, blobs: &Path, runtime: Handle) -> Self {
        let path = socket.to_owned();
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // the address is never resolved: the connector above knows only one
        let channel =
            Endpoint::from_static("http://containerd").connect_with_connector_lazy(connect);
        Self {
            client: ContentClient::new(channel),
            socket: socket.to_owned(),
            blobs: blobs.to_owned(),
            runtime,
        }
    }

    /// Every blob of a namespace, if containerd can tell them until then.
    pub(crate) fn list(&self, namespace: &str, deadline: Instant) -> Result<Vec<Info>> {
        let request = self.request(namespace, ListContentRequest::default())?;
        let mut client = self.client.clone();
        self.wait("content list", Patience::Until(deadline), async move {
            let mut stream = client.list(request).await?.into_inner();
            let mut found = Vec::new();
            while let Some(ListContentResponse { info }) = stream.message().await? {
                found.extend(info);
            }
            Ok(found)
        })
    }

    /// A small blob, whole, if it is there until then. `limit` bytes are read at most.
    pub(crate) fn read_small(
        &self,
        namespace: &str,
        digest: &str,
        limit: u64,
        deadline: Instant,
    ) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut blob = self.stream(Patience::Until(deadline), namespace, digest)?.take(limit);
        blob.read_to_end(&mut bytes).map_err(Error::io(format!("read blob {digest}")))?;
        Ok(bytes)
    }

    /// A blob, as a stream.
    pub(crate) fn open(&self, namespace: &str, digest: &str) -> Result<Blob> {
        match self.file(namespace, digest) {
            Some(file) => Ok(Blob::File(file)),
            None => self
                .stream(Patience::Each(PATIENCE), namespace, digest)
                .map(|stream| Blob::Stream(Box::new(stream))),
        }
    }

    /// The file of a blob that a namespace has, as containerd says. Bytes cost both processes less so than by messages; what
    /// they are is found by their digest in both cases.
    fn file(&self, namespace: &str, digest: &str) -> Option<File> {
        let name = digest.strip_prefix("sha256:").filter(|hex| !hex.contains('/'))?;
        let request = self.request(namespace, InfoRequest { digest: digest.to_owned() }).ok()?;
        let mut client = self.client.clone();
        let call = async move { Ok(client.info(request).await?.into_inner()) };
        let size = self.wait("content info", Patience::Each(INFO), call).ok()?.info?.size;
        let mut options = File::options();
        let no_follow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let file = options.read(true).custom_flags(no_follow).open(self.blobs.join(name));
        let is_it = |file: &File| {
            file.metadata()
                .is_ok_and(|meta| meta.is_file() && i64::try_from(meta.len()) == Ok(size))
        };
        file.ok().filter(is_it)
    }

    fn stream(&self, patience: Patience, namespace: &str, digest: &str) -> Result<Stream> {
        let read = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let request = self.request(namespace, read)?;
        let mut client = self.client.clone();
        let call = async move { Ok(client.read(request).await?.into_inner()) };
        let stream = self.wait("content read", patience, call)?;
        Ok(Stream {
            stream,
            piece: ReadContentResponse::default(),
            used: 0,
            patience,
            runtime: self.runtime.clone(),
        })
    }

    fn request<T>(&self, namespace: &str, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        let value = MetadataValue::try_from(namespace).ok();
        let value = value.ok_or(Error::Proto("the namespace is not a header value"))?;
        request.metadata_mut().insert("containerd-namespace", value);
        Ok(request)
    }

    fn wait<T>(
        &self,
        call: &'static str,
        patience: Patience,
        answer: impl Future<Output = std::result::Result<T, Status>>,
    ) -> Result<T> {
        let socket = || self.socket.clone();
        let left = patience.left();
        match self.runtime.block_on(async { tokio::time::timeout(left, answer).await }) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(status)) => {
                Err(Error::Containerd { socket: socket(), call, status: Box::new(status) })
            }
            Err(_elapsed) => Err(Error::ContainerdSlow {
                socket: socket(),
                call,
                milliseconds: left.as_millis(),
            }),
        }
    }
}

/// A blob being read.
#[derive(Debug)]
pub(crate) enum Blob {
    File(File),
    Stream(Box<Stream>),
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Stream(stream) => stream.read(buffer),
        }
    }
}

/// A blob that containerd sends piece by piece.
#[derive(Debug)]
pub(crate) struct Stream {
    stream: Streaming<ReadContentResponse>,
    piece: ReadContentResponse,
    /// Bytes of `piece` that were read.
    used: usize,
    patience: Patience,
    runtime: Handle,
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.used == self.piece.data.len() {
            let next = self.stream.message();
            let next = self
                .runtime
                .block_on(async { tokio::time::timeout(self.patience.left(), next).await });
            match next
                .map_err(io::Error::other)?
                .map_err(|status| io::Error::other(status.message()))?
            {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
            self.used = 0;
        }
        let rest = self.piece.data.get(self.used..).unwrap_or_default();
        // a slice reads like a file: as much as fits
        let length = (&mut &*rest).read(buffer)?;
        self.used += length;
        Ok(length)
    }
}
