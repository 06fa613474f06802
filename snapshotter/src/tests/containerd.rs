//! containerd's content store, as much of it as we ask: a map of blobs behind the real protocol.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};

use crate::proto::content::content_server::{Content, ContentServer};
use crate::proto::content::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest,
    ListContentResponse, ListStatusesRequest, ListStatusesResponse, ReadContentRequest,
    ReadContentResponse, StatusRequest, StatusResponse, UpdateRequest, UpdateResponse,
    WriteContentRequest, WriteContentResponse,
};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Blobs by digest.
#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    blobs: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    reads: Arc<Mutex<Vec<String>>>,
    slow: Arc<Mutex<Duration>>,
    /// Where every blob is said to come from: host and repository.
    source: Arc<Mutex<Option<(String, String)>>>,
}

impl Store {
    /// Puts a blob under the digest it is said to have.
    pub(super) fn put(&self, digest: &str, bytes: &[u8]) {
        self.blobs.lock().unwrap().insert(digest.to_owned(), bytes.to_vec());
    }

    /// The bytes of a blob.
    pub(super) fn get(&self, digest: &str) -> Vec<u8> {
        self.blobs.lock().unwrap()[digest].clone()
    }

    /// Says of every blob that it was pulled from there.
    pub(super) fn pulled_from(&self, host: &str, repository: &str) {
        *self.source.lock().unwrap() = Some((host.to_owned(), repository.to_owned()));
    }

    /// Takes this long for each read from now on.
    pub(super) fn slow_down(&self, each: Duration) {
        *self.slow.lock().unwrap() = each;
    }

    /// How many reads there were.
    pub(super) fn reads(&self) -> usize {
        self.reads.lock().unwrap().len()
    }

    /// How often a blob was read.
    pub(super) fn reads_of(&self, digest: &str) -> usize {
        self.reads.lock().unwrap().iter().filter(|read| *read == digest).count()
    }
}

/// Serves on a socket until the runtime ends. Must be called on the runtime.
pub(super) fn serve(socket: &Path, store: Store) {
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let server = tonic::transport::Server::builder().add_service(ContentServer::new(store));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
}

fn no<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("nobody asks this"))
}

#[tonic::async_trait]
impl Content for Store {
    type ListStream = Answers<ListContentResponse>;
    type ReadStream = Answers<ReadContentResponse>;
    type WriteStream = Answers<WriteContentResponse>;

    async fn list(
        &self,
        request: Request<ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        assert!(request.metadata().get("containerd-namespace").is_some());
        let source = self.source.lock().unwrap().clone().map(|(host, repository)| {
            (format!("containerd.io/distribution.source.{host}"), repository)
        });
        let info = |(digest, bytes): (&String, &Vec<u8>)| Info {
            digest: digest.clone(),
            size: i64::try_from(bytes.len()).unwrap(),
            labels: source.clone().into_iter().collect(),
            ..Info::default()
        };
        let info = self.blobs.lock().unwrap().iter().map(info).collect();
        let answer = Ok(ListContentResponse { info });
        Ok(Response::new(Box::pin(tokio_stream::iter([answer]))))
    }

    async fn read(
        &self,
        request: Request<ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let digest = request.into_inner().digest;
        let blob = self.blobs.lock().unwrap().get(&digest).cloned();
        let blob = blob.ok_or_else(|| Status::not_found(digest.clone()))?;
        self.reads.lock().unwrap().push(digest);
        // long enough for a second Apply to find the first at work
        let slow = *self.slow.lock().unwrap();
        tokio::time::sleep(slow.max(Duration::from_millis(50))).await;
        let pieces: Vec<_> = blob
            .chunks(1000)
            .map(|piece| Ok(ReadContentResponse { offset: 0, data: piece.to_vec() }))
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        assert!(request.metadata().get("containerd-namespace").is_some());
        let digest = request.into_inner().digest;
        let size = self.blobs.lock().unwrap().get(&digest).map(Vec::len);
        let size = size.ok_or_else(|| Status::not_found(digest.clone()))?;
        let size = i64::try_from(size).unwrap();
        Ok(Response::new(InfoResponse { info: Some(Info { digest, size, ..Info::default() }) }))
    }

    async fn update(&self, _: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        no()
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        no()
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        no()
    }

    async fn list_statuses(
        &self,
        _: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        no()
    }

    async fn write(
        &self,
        _: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        no()
    }

    async fn abort(&self, _: Request<AbortRequest>) -> Result<Response<()>, Status> {
        no()
    }
}
