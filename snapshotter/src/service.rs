//! The gRPC edge: requests become calls of [`Snapshotter`] on the blocking pool, errors become codes. Here and only
//! here.
//!
//! A call goes on when its client goes away: what was begun on the pool is finished.

use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status};

use crate::error::{Error, ErrorKind, chain};
use crate::proto::diff::diff_server::Diff;
use crate::proto::diff::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use crate::proto::snapshots::snapshots_server::Snapshots;
use crate::proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind as ProtoKind, ListSnapshotsRequest,
    ListSnapshotsResponse, MountsRequest, MountsResponse, PrepareSnapshotRequest,
    PrepareSnapshotResponse, RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse,
    UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest, UsageResponse,
    ViewSnapshotRequest, ViewSnapshotResponse,
};
use crate::snapshotter::Snapshotter;
use crate::store::{Kind, Snapshot};

/// Snapshots in one message of a List's answer.
const BATCH: usize = 100;

/// Both services, on one snapshotter.
#[derive(Debug, Clone)]
pub(crate) struct Service(pub(crate) Arc<Snapshotter>);

type Answer<T> = std::result::Result<Response<T>, Status>;

impl Service {
    async fn run<T: Send + 'static>(
        &self,
        name: &'static str,
        call: impl FnOnce(&Snapshotter) -> crate::error::Result<T> + Send + 'static,
    ) -> std::result::Result<T, Status> {
        let snapshotter = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || call(&snapshotter)).await;
        let answer = done.map_err(Error::from).and_then(|done| done);
        let code = answer.as_ref().err().map_or("ok", |error| error.kind().name());
        self.0.metrics.answered(name, code);
        Ok(answer?)
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            ErrorKind::AlreadyExists => Code::AlreadyExists,
            ErrorKind::FailedPrecondition => Code::FailedPrecondition,
            ErrorKind::Internal => Code::Internal,
            ErrorKind::InvalidArgument => Code::InvalidArgument,
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::Unavailable => Code::Unavailable,
            ErrorKind::Unimplemented => Code::Unimplemented,
        };
        Self::new(code, format!("hallmark: {}", chain(&error)))
    }
}

fn info(name: String, snapshot: Snapshot) -> Info {
    let kind = match snapshot.kind {
        Kind::View => ProtoKind::View,
        Kind::Active => ProtoKind::Active,
        Kind::Committed => ProtoKind::Committed,
    };
    let time = |time: SystemTime| Some(prost_types::Timestamp::from(time));
    Info {
        name,
        parent: snapshot.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: time(snapshot.created),
        updated_at: time(snapshot.updated),
        labels: snapshot.labels.into_iter().collect(),
    }
}

/// protobuf has no absent text.
fn given(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Answer<PrepareSnapshotResponse> {
        let PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let labels = labels.into_iter().collect();
        let call = move |it: &Snapshotter| it.create(&key, Kind::Active, given(&parent), labels);
        Ok(Response::new(PrepareSnapshotResponse { mounts: self.run("prepare", call).await? }))
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Answer<ViewSnapshotResponse> {
        let ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let labels = labels.into_iter().collect();
        let call = move |it: &Snapshotter| it.create(&key, Kind::View, given(&parent), labels);
        Ok(Response::new(ViewSnapshotResponse { mounts: self.run("view", call).await? }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Answer<MountsResponse> {
        let key = request.into_inner().key;
        let mounts = self.run("mounts", move |it| it.mounts(&key)).await?;
        Ok(Response::new(MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Answer<()> {
        let CommitSnapshotRequest { name, key, labels, parent, .. } = request.into_inner();
        let labels = labels.into_iter().collect();
        let call = move |it: &Snapshotter| it.commit(&key, &name, labels, given(&parent));
        Ok(Response::new(self.run("commit", call).await?))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        Ok(Response::new(self.run("remove", move |it| it.remove(&key)).await?))
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Answer<StatSnapshotResponse> {
        let key = request.into_inner().key;
        let found =
            self.run("stat", move |it| Ok(info(key.clone(), it.store.snapshot(&key)?))).await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(found) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Answer<UpdateSnapshotResponse> {
        let UpdateSnapshotRequest { info: new, update_mask, .. } = request.into_inner();
        let new = new.ok_or_else(|| Status::from(Error::Proto("an update without info")))?;
        let fields = update_mask.unwrap_or_default().paths;
        let labels = new.labels.into_iter().collect();
        let call = move |it: &Snapshotter| {
            it.update(&new.name, &labels, &fields).map(|snapshot| info(new.name, snapshot))
        };
        Ok(Response::new(UpdateSnapshotResponse { info: Some(self.run("update", call).await?) }))
    }

    type ListStream =
        Pin<Box<dyn Stream<Item = std::result::Result<ListSnapshotsResponse, Status>> + Send>>;

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = request.into_inner().filters;
        let found = self.run("list", move |it| it.list(&filters)).await?;
        let found: Vec<Info> =
            found.into_iter().map(|(name, snapshot)| info(name, snapshot)).collect();
        let batches: Vec<_> = found
            .chunks(BATCH)
            .map(|batch| Ok(ListSnapshotsResponse { info: batch.to_vec() }))
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(batches))))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Answer<UsageResponse> {
        let key = request.into_inner().key;
        let usage = self.run("usage", move |it| it.usage(&key)).await?;
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let (size, inodes) = (number(usage.size), number(usage.inodes));
        Ok(Response::new(UsageResponse { size, inodes }))
    }

    async fn cleanup(&self, _request: Request<CleanupRequest>) -> Answer<()> {
        Ok(Response::new(self.run("cleanup", Snapshotter::cleanup).await?))
    }
}

#[tonic::async_trait]
impl Diff for Service {
    async fn apply(&self, request: Request<ApplyRequest>) -> Answer<ApplyResponse> {
        let namespace = request.metadata().get("containerd-namespace");
        let namespace = namespace.and_then(|value| value.to_str().ok()).map(str::to_owned);
        // sync_fs is not looked at: a layer is always synced before it is recorded, or a power cut could lose it
        let ApplyRequest { diff, mounts, .. } = request.into_inner();
        let call = move |it: &Snapshotter| {
            let namespace = namespace.ok_or(Error::Proto("an apply without a namespace"))?;
            let descriptor = diff.ok_or(Error::Proto("an apply without a descriptor"))?;
            it.apply(&namespace, &descriptor, &mounts)
        };
        Ok(Response::new(ApplyResponse { applied: Some(self.run("apply", call).await?) }))
    }

    async fn diff(&self, _request: Request<DiffRequest>) -> Answer<DiffResponse> {
        // containerd's own differ makes layers of our mounts as of any other's
        Err(Status::unimplemented("hallmark: diff is left to the next differ"))
    }
}
