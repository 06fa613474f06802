//! An image in containerd's content store, read over gRPC. The only module that links tokio.
//!
//! Each call blocks: one current-thread runtime, entered for the call and left again.

use std::io::{self, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use super::Store;
use super::oci::{CONTAINERD_NAME, Descriptor};
use super::proto::content::content_client::ContentClient;
use super::proto::content::{ListContentRequest, ReadContentRequest};
use super::proto::images::GetImageRequest;
use super::proto::images::images_client::ImagesClient;
use super::proto::namespaces::ListNamespacesRequest;
use super::proto::namespaces::namespaces_client::NamespacesClient;
use crate::error::{Error, Result};

const DEFAULT_NAMESPACE: &str = "default";
/// Bytes asked for at once.
const CHUNK: u64 = 4 << 20;
/// Bytes of what may be a referrer's manifest: some kilobytes, as an image's.
const MAX_CANDIDATE: i64 = 1 << 20;
const DOWN: &str = "is containerd running, and is --address its socket?";
const NAMES: &str = "`ctr -n NAMESPACE images ls` shows the names";

/// One image of containerd.
pub(crate) struct Containerd {
    runtime: Mutex<Runtime>,
    channel: Channel,
    namespace: String,
    target: Vec<Descriptor>,
}

impl Containerd {
    /// Connects, and finds `[NAMESPACE/]NAME`: what stands before the first slash is a namespace where containerd has
    /// one of that name, else the whole is a name in the namespace `default`.
    pub(crate) fn open(socket: &Path, image: &str) -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| failed("start the client", DOWN, source))?;
        let channel = runtime
            .block_on(connect(socket))
            .map_err(|source| failed(format!("connect to {}", socket.display()), DOWN, source))?;
        let (namespace, name) = runtime.block_on(split(channel.clone(), image))?;
        let mut images = ImagesClient::new(channel.clone());
        let request = in_namespace(GetImageRequest { name: name.clone() }, &namespace)?;
        let found = runtime.block_on(images.get(request)).map_err(|status| {
            failed(format!("image {name:?} in namespace {namespace:?}"), NAMES, status)
        })?;
        let target = found.into_inner().image.and_then(|image| image.target).ok_or_else(|| {
            Error::image(format!("image {name:?}"), "no target", "a descriptor", "pull it again")
        })?;
        let target = Descriptor {
            media_type: target.media_type,
            digest: target.digest,
            size: u64::try_from(target.size).unwrap_or_default(),
            platform: None,
            annotations: [(CONTAINERD_NAME.to_owned(), name)].into(),
            artifact_type: None,
        };
        Ok(Self { runtime: Mutex::new(runtime), channel, namespace, target: vec![target] })
    }

    fn read(&self, digest: &str, offset: u64, size: u64) -> Result<Vec<u8>, Status> {
        let request = ReadContentRequest {
            digest: digest.to_owned(),
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
            size: i64::try_from(size).unwrap_or(i64::MAX),
        };
        let mut request = Request::new(request);
        request.metadata_mut().insert("containerd-namespace", header(&self.namespace)?);
        let mut content = ContentClient::new(self.channel.clone());
        let chunk = async {
            let mut stream = content.read(request).await?.into_inner();
            let mut bytes = Vec::new();
            while let Some(part) = stream.message().await? {
                bytes.extend_from_slice(&part.data);
            }
            Ok(bytes)
        };
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner).block_on(chunk)
    }
}

impl Store for Containerd {
    fn entries(&self) -> &[Descriptor] {
        &self.target
    }

    /// Every small blob of the namespace: a referrer is known by its bytes only.
    fn candidates(&self) -> Result<Vec<Descriptor>> {
        let failed = |status| failed("list content", DOWN, status);
        let mut request = Request::new(ListContentRequest::default());
        let namespace = header(&self.namespace).map_err(failed)?;
        request.metadata_mut().insert("containerd-namespace", namespace);
        let mut content = ContentClient::new(self.channel.clone());
        let list = async {
            let mut stream = content.list(request).await?.into_inner();
            let mut found = Vec::new();
            while let Some(part) = stream.message().await? {
                found.extend(part.info);
            }
            Ok(found)
        };
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        let found = runtime.block_on(list).map_err(failed)?;
        let small = found.into_iter().filter(|info| info.size <= MAX_CANDIDATE);
        Ok(small
            .map(|info| Descriptor {
                media_type: String::new(),
                digest: info.digest,
                size: u64::try_from(info.size).unwrap_or_default(),
                platform: None,
                annotations: [].into(),
                artifact_type: None,
            })
            .collect())
    }

    fn open(&self, digest: &str, size: u64) -> Result<Box<dyn Read + Send + '_>> {
        let blob = Blob {
            store: self,
            digest: digest.to_owned(),
            at: 0,
            size,
            chunk: io::Cursor::default(),
        };
        Ok(Box::new(blob))
    }
}

/// A blob that is read chunk by chunk.
struct Blob<'a> {
    store: &'a Containerd,
    digest: String,
    at: u64,
    size: u64,
    chunk: io::Cursor<Vec<u8>>,
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.chunk.read(buffer)?;
        if read > 0 || buffer.is_empty() || self.at == self.size {
            return Ok(read);
        }
        let size = self.size.saturating_sub(self.at).min(CHUNK);
        let chunk = self.store.read(&self.digest, self.at, size).map_err(|status| {
            let missing = status.code() == Code::NotFound;
            let kind = if missing { io::ErrorKind::NotFound } else { io::ErrorKind::Other };
            io::Error::new(kind, status)
        })?;
        if chunk.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at = self.at.saturating_add(chunk.len() as u64);
        self.chunk = io::Cursor::new(chunk);
        self.chunk.read(buffer)
    }
}

async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = socket.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // the address is never resolved: the connector above knows only one
    Endpoint::from_static("http://containerd").connect_with_connector(connect).await
}

async fn split(channel: Channel, image: &str) -> Result<(String, String)> {
    let whole = || (DEFAULT_NAMESPACE.to_owned(), image.to_owned());
    let Some((first, rest)) = image.split_once('/') else { return Ok(whole()) };
    let request = ListNamespacesRequest { filter: String::new() };
    let namespaces = NamespacesClient::new(channel)
        .list(request)
        .await
        .map_err(|status| failed("list namespaces", DOWN, status))?;
    let known = namespaces.into_inner().namespaces.iter().any(|one| one.name == first);
    Ok(if known { (first.to_owned(), rest.to_owned()) } else { whole() })
}

fn in_namespace<T>(message: T, namespace: &str) -> Result<Request<T>> {
    let mut request = Request::new(message);
    let header = header(namespace).map_err(|status| failed("name the namespace", NAMES, status))?;
    request.metadata_mut().insert("containerd-namespace", header);
    Ok(request)
}

fn header(namespace: &str) -> Result<MetadataValue<tonic::metadata::Ascii>, Status> {
    namespace
        .parse()
        .map_err(|error| Status::invalid_argument(format!("namespace {namespace:?}: {error}")))
}

fn failed(
    call: impl Into<String>,
    advice: &'static str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::Containerd { call: call.into(), advice, source: Box::new(source) }
}
