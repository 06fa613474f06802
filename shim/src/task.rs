//! The task service, version 3, as containerd calls it.
//!
//! Requests that change something run in a task of their own: when containerd goes away or loses patience, ttrpc drops
//! the request's future, and a container must not be left half made for it.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use tokio::sync::Notify;

use crate::bundle;
use crate::container::{Container, Shared};
use crate::error::{Error, Result};
use crate::events::{pack, timestamp};
use crate::process::{Phase, Process};
use crate::runtime::Scope;
use crate::stats;
use crate::sync::lock;

/// How long a shim without a container waits for one. containerd creates the first as soon as `start` has answered, and
/// asks for the end when the last one is deleted; one that was killed in between does neither.
const WITHOUT: Duration = Duration::from_secs(60);

/// The containers of one shim.
#[derive(Debug, Clone)]
pub(crate) struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    containers: Mutex<HashMap<String, Slot>>,
    /// How many were ever begun.
    begun: AtomicU64,
    shutdown: Notify,
    /// A container is gone.
    removed: Notify,
}

/// A container's id is taken from the moment its making begins.
#[derive(Debug)]
enum Slot {
    Creating(Arc<Making>),
    Ready(Arc<Container>),
}

/// A container that is being made, for `Delete` to end: a runtime that hangs would keep the id, and the shim, for ever.
#[derive(Debug, Default)]
struct Making {
    end: Notify,
    /// Locked until it is made or gone.
    going_on: tokio::sync::Mutex<()>,
}

/// Gives an id back unless a container was made of it, also when the making panics.
struct Taken<'a> {
    inner: &'a Inner,
    id: &'a str,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut containers = lock(&self.inner.containers);
        if matches!(containers.get(self.id), Some(Slot::Creating(_))) {
            containers.remove(self.id);
            self.inner.removed.notify_one();
        }
    }
}

impl Service {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let (containers, begun) = (Mutex::default(), AtomicU64::new(0));
        let (shutdown, removed) = (Notify::new(), Notify::new());
        Self(Arc::new(Inner { shared, containers, begun, shutdown, removed }))
    }

    /// Waits until containerd has asked for the end and no container is left, or has forgotten this shim.
    pub(crate) async fn ended(&self) {
        tokio::select! {
            () = self.0.shutdown.notified() => {}
            () = self.forgotten() => log::warn!("no container for {WITHOUT:?}, and no word of containerd"),
        }
    }

    async fn forgotten(&self) {
        loop {
            let begun = self.0.begun.load(Ordering::Relaxed);
            tokio::time::sleep(WITHOUT).await;
            let none_since = begun == self.0.begun.load(Ordering::Relaxed);
            if none_since && lock(&self.0.containers).is_empty() {
                return;
            }
            self.0.removed.notified().await;
        }
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        match lock(&self.0.containers).get(id) {
            Some(Slot::Ready(container)) => Ok(container.clone()),
            _ => Err(Error::NoContainer { container: id.to_owned() }),
        }
    }

    async fn make(&self, request: api::CreateTaskRequest) -> Result<api::CreateTaskResponse> {
        let making = Arc::new(Making::default());
        let _going_on = making.going_on.lock().await;
        {
            let mut containers = lock(&self.0.containers);
            if containers.contains_key(&request.id) {
                return Err(Error::Exists { what: "container", name: request.id });
            }
            containers.insert(request.id.clone(), Slot::Creating(making.clone()));
            self.0.begun.fetch_add(1, Ordering::Relaxed);
        }
        let _taken = Taken { inner: &self.0, id: &request.id };
        let made = tokio::select! {
            biased;
            made = Container::create(&self.0.shared, &request) => made,
            () = making.end.notified() => Err(Container::unmake(&self.0.shared, &request).await),
        };
        match made {
            Ok(container) => {
                let pid = container.init.pid();
                lock(&self.0.containers).insert(request.id.clone(), Slot::Ready(container));
                Ok(api::CreateTaskResponse { pid, ..api::CreateTaskResponse::default() })
            }
            Err(error) => {
                bundle::forget(Path::new(&request.bundle));
                Err(error)
            }
        }
    }

    /// Ends the making of a container, if it is being made, and waits for that end.
    async fn end_making(&self, id: &str) {
        let making = match lock(&self.0.containers).get(id) {
            Some(Slot::Creating(making)) => making.clone(),
            _ => return,
        };
        making.end.notify_one();
        drop(making.going_on.lock().await);
    }

    async fn remove(&self, request: api::DeleteRequest) -> Result<api::DeleteResponse> {
        if request.exec_id.is_empty() {
            self.end_making(&request.id).await;
        }
        let container = self.container(&request.id)?;
        let (process, exit) = match request.exec_id.as_str() {
            "" => {
                let exit = container.delete().await?;
                lock(&self.0.containers).remove(&request.id);
                self.0.removed.notify_one();
                (container.init.clone(), Some(exit))
            }
            exec_id => {
                let process = container.delete_exec(exec_id).await?;
                let exit = process.exit();
                (process, exit)
            }
        };
        Ok(api::DeleteResponse {
            pid: process.pid(),
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| timestamp(exit.at)).into(),
            ..api::DeleteResponse::default()
        })
    }
}

/// Runs to its end whatever becomes of the request.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INTERNAL, error))),
    }
}

fn empty() -> api::Empty {
    api::Empty::default()
}

fn status(container: &Container, process: &Process) -> api::Status {
    match process.phase() {
        Phase::Created => api::Status::CREATED,
        Phase::Running if container.is_paused() => api::Status::PAUSED,
        Phase::Running => api::Status::RUNNING,
        Phase::Stopped | Phase::Deleted => api::Status::STOPPED,
    }
}

#[async_trait]
impl Task for Service {
    async fn create(
        &self,
        _context: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let service = self.clone();
        detached(async move { service.make(request).await }).await
    }

    async fn start(
        &self,
        _context: &TtrpcContext,
        request: api::StartRequest,
    ) -> ttrpc::Result<api::StartResponse> {
        let container = self.container(&request.id)?;
        let pid = detached(async move {
            match request.exec_id.as_str() {
                "" => container.start().await,
                exec_id => container.start_exec(exec_id).await,
            }
        });
        Ok(api::StartResponse { pid: pid.await?, ..api::StartResponse::default() })
    }

    async fn exec(
        &self,
        _context: &TtrpcContext,
        request: api::ExecProcessRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.container(&request.id)?.add(&request)?;
        Ok(empty())
    }

    async fn kill(
        &self,
        _context: &TtrpcContext,
        request: api::KillRequest,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.container(&request.id)?;
        detached(async move {
            match request.exec_id.as_str() {
                "" => {
                    let scope = if request.all { Scope::All } else { Scope::Init };
                    container.kill(request.signal, scope).await
                }
                exec_id => container.process(exec_id)?.signal(request.signal),
            }
        })
        .await?;
        Ok(empty())
    }

    async fn delete(
        &self,
        _context: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        let service = self.clone();
        detached(async move { service.remove(request).await }).await
    }

    async fn wait(
        &self,
        _context: &TtrpcContext,
        request: api::WaitRequest,
    ) -> ttrpc::Result<api::WaitResponse> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        let exit = process.wait().await;
        Ok(api::WaitResponse {
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| timestamp(exit.at)).into(),
            ..api::WaitResponse::default()
        })
    }

    async fn state(
        &self,
        _context: &TtrpcContext,
        request: api::StateRequest,
    ) -> ttrpc::Result<api::StateResponse> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let exit = process.exit();
        let id = if request.exec_id.is_empty() { &request.id } else { &request.exec_id };
        Ok(api::StateResponse {
            id: id.clone(),
            bundle: container.bundle().display().to_string(),
            pid: process.pid(),
            status: EnumOrUnknown::new(status(&container, &process)),
            stdin: process.addresses.stdin.clone(),
            stdout: process.addresses.stdout.clone(),
            stderr: process.addresses.stderr.clone(),
            terminal: process.addresses.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| timestamp(exit.at)).into(),
            exec_id: request.exec_id,
            ..api::StateResponse::default()
        })
    }

    async fn pids(
        &self,
        _context: &TtrpcContext,
        request: api::PidsRequest,
    ) -> ttrpc::Result<api::PidsResponse> {
        let mut processes = Vec::new();
        for (pid, exec_id) in self.container(&request.id)?.pids()? {
            let details = |exec_id| ProcessDetails { exec_id, ..ProcessDetails::default() };
            let info =
                exec_id.map(|exec_id| pack("containerd.runc.v1", &details(exec_id))).transpose()?;
            let info = info.into();
            processes.push(api::ProcessInfo { pid, info, ..api::ProcessInfo::default() });
        }
        Ok(api::PidsResponse { processes, ..api::PidsResponse::default() })
    }

    async fn pause(
        &self,
        _context: &TtrpcContext,
        request: api::PauseRequest,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.container(&request.id)?;
        detached(async move { container.pause().await }).await?;
        Ok(empty())
    }

    async fn resume(
        &self,
        _context: &TtrpcContext,
        request: api::ResumeRequest,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.container(&request.id)?;
        detached(async move { container.resume().await }).await?;
        Ok(empty())
    }

    async fn resize_pty(
        &self,
        _context: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<api::Empty> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        process.resize(request.width, request.height)?;
        Ok(empty())
    }

    async fn close_io(
        &self,
        _context: &TtrpcContext,
        request: api::CloseIORequest,
    ) -> ttrpc::Result<api::Empty> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        process.close_stdin();
        Ok(empty())
    }

    async fn update(
        &self,
        _context: &TtrpcContext,
        request: api::UpdateTaskRequest,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.container(&request.id)?;
        let resources = request.resources.into_option().unwrap_or_default().value;
        detached(async move { container.update(resources).await }).await?;
        Ok(empty())
    }

    async fn stats(
        &self,
        _context: &TtrpcContext,
        request: api::StatsRequest,
    ) -> ttrpc::Result<api::StatsResponse> {
        let container = self.container(&request.id)?;
        let stats = MessageField::some(stats::collect(container.cgroup()?)?);
        Ok(api::StatsResponse { stats, ..api::StatsResponse::default() })
    }

    async fn checkpoint(
        &self,
        _context: &TtrpcContext,
        _request: api::CheckpointTaskRequest,
    ) -> ttrpc::Result<api::Empty> {
        Err(Error::Unsupported { what: "checkpoint" }.into())
    }

    async fn connect(
        &self,
        _context: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        let container = self.container(&request.id).ok();
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: container.map_or(0, |container| container.init.pid()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..api::ConnectResponse::default()
        })
    }

    async fn shutdown(
        &self,
        _context: &TtrpcContext,
        _request: api::ShutdownRequest,
    ) -> ttrpc::Result<api::Empty> {
        if lock(&self.0.containers).is_empty() {
            self.0.shutdown.notify_one();
        }
        Ok(empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Events;
    use crate::reaper::Reaper;

    #[tokio::test(start_paused = true)]
    async fn a_shim_that_containerd_forgot_ends_and_one_with_a_container_does_not() {
        let shared = Shared {
            namespace: "n".to_owned(),
            reaper: Reaper::default(),
            events: Events::start("n", String::new()),
            runtime: "hallmark-runtime".into(),
            socket: "s".into(),
        };
        let service = Service::new(Arc::new(shared));
        let taken = |id: &str| {
            let slot = Slot::Creating(Arc::default());
            lock(&service.0.containers).insert(id.to_owned(), slot);
            service.0.begun.fetch_add(1, Ordering::Relaxed);
        };
        let ends = |seconds| tokio::time::timeout(Duration::from_secs(seconds), service.ended());
        assert!(ends(59).await.is_err());
        assert!(ends(61).await.is_ok());
        taken("a");
        assert!(ends(3600).await.is_err());
        // one that comes and goes gives the shim another minute
        let changing = async {
            tokio::time::sleep(Duration::from_secs(50)).await;
            drop(Taken { inner: &service.0, id: "a" });
            taken("b");
            drop(Taken { inner: &service.0, id: "b" });
        };
        let ((), early) = tokio::join!(changing, ends(100));
        assert!(early.is_err());
        assert!(ends(61).await.is_ok());
    }
}
