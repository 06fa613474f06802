//! The shim itself: serves the task API on the socket it was started with, until containerd shuts it down.

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::r#async::Server;
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use log::LevelFilter;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Args;
use crate::container::Shared;
use crate::events::Events;
use crate::reaper::Reaper;
use crate::task::Service;
use crate::{logger, runtime};

/// How long the end waits for containerd to take the last events. containerd waits three seconds for an answer.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// Serves until the end. The working directory is the first container's bundle.
///
/// # Errors
/// Descriptor 0 is no listening socket, or one of the kernel's services is missing.
pub(crate) fn serve(args: &Args) -> anyhow::Result<()> {
    let level = if args.debug { LevelFilter::Debug } else { LevelFilter::Info };
    logger::start(Path::new("log"), &args.id, level).context("log")?;
    let outcome = run(args);
    if let Err(error) = &outcome {
        // standard error leads nowhere
        log::error!("{error:#}");
    }
    outcome
}

fn run(args: &Args) -> anyhow::Result<()> {
    let listener = take_listener()?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("subreaper")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve_on(args, listener))
}

/// Descriptor 0, with `/dev/null` in its place for the children.
fn take_listener() -> anyhow::Result<UnixListener> {
    let stdin = std::io::stdin();
    anyhow::ensure!(!stdin.is_terminal(), "standard input is not the shim's socket");
    let listener = UnixListener::from(stdin.as_fd().try_clone_to_owned()?);
    listener.local_addr().context("standard input is not the shim's socket")?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(listener)
}

async fn serve_on(args: &Args, listener: UnixListener) -> anyhow::Result<()> {
    let identity = identity(&args.socket);
    let ttrpc_address = std::env::var("TTRPC_ADDRESS").context("TTRPC_ADDRESS")?;
    let reaper = Reaper::default();
    tokio::spawn(reaper.clone().run(signal(SignalKind::child())?));
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let shared = Arc::new(Shared {
        namespace: args.namespace.clone(),
        reaper,
        events: Events::start(&args.namespace, ttrpc_address),
        runtime: runtime::locate()?,
        socket: args.socket.clone(),
    });
    let service = Service::new(shared.clone());
    let mut server = Server::new()
        .add_listener(Listener::try_from(listener)?)
        .register_service(create_task(Arc::new(service.clone())));
    server.start().await?;
    tokio::select! {
        () = service.ended() => {}
        _ = terminated.recv() => log::warn!("ended by SIGTERM"),
        _ = interrupted.recv() => log::warn!("ended by SIGINT"),
    }
    shared.events.flush(LAST_EVENTS).await;
    // The answer to Shutdown is on its way through the server's tasks; each of them runs once a round. containerd takes a
    // closed connection for an answer too.
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
    remove_socket(&args.socket, identity);
    exit_now()
}

/// containerd's Delete waits for the connection to close: no time to take the runtime apart.
#[expect(clippy::exit, reason = "see above; there is nothing left to drop")]
fn exit_now() -> ! {
    std::process::exit(0)
}

fn identity(socket: &Path) -> Option<(u64, u64)> {
    socket.symlink_metadata().ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Removes the socket, unless a later shim has taken its name.
fn remove_socket(socket: &Path, own: Option<(u64, u64)>) {
    if own.is_some()
        && identity(socket) == own
        && let Err(error) = std::fs::remove_file(socket)
    {
        log::warn!("remove {}: {error}", socket.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_socket_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let first = UnixListener::bind(&socket).unwrap();
        let own = identity(&socket);
        std::fs::rename(&socket, directory.path().join("old")).unwrap();
        let second = UnixListener::bind(&socket).unwrap();
        remove_socket(&socket, own);
        assert!(identity(&socket).is_some());
        remove_socket(&socket, identity(&socket));
        assert!(identity(&socket).is_none());
        drop((first, second));
    }
}
