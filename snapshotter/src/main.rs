//! `hallmark-snapshotter`: containerd's proxy plugins `hallmark` (snapshots) and `hallmark-diff` (Apply) on one socket.
//!
//! | module | concern |
//! |---|---|
//! | `service` | gRPC: requests, codes |
//! | `snapshotter` | what each call does |
//! | `store`, `layout` | the database; directories and files |
//! | `pack`, `directory` | layers: from a blob; from a written-to directory |
//! | `activate`, `reclaim` | loop, dm-verity, mount; what a former daemon left |
//! | `mounts`, `filter`, `usage`, `metrics` | replies |
//! | `claims`, `content`, `registries` | seals that came with images; containerd's content store; where it pulled from |
//!
//! Everything under `service` is synchronous. Mounts outlive the daemon: no container needs it to go on.

mod activate;
mod claims;
mod content;
mod directory;
mod error;
mod filter;
mod layout;
mod metrics;
mod mountinfo;
mod mounts;
mod pack;
mod proto;
mod reclaim;
mod registries;
mod removal;
mod service;
mod snapshotter;
mod store;
mod systemd;
#[cfg(test)]
mod tests;
mod usage;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Parser;
use hallmark_trust::config::{self, LogFormat, NodeConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing_subscriber::EnvFilter;

use crate::activate::Activations;
use crate::claims::Claims;
use crate::content::{BLOBS, Content};
use crate::layout::Layout;
use crate::proto::diff::diff_server::DiffServer;
use crate::proto::snapshots::snapshots_server::SnapshotsServer;
use crate::service::Service;
use crate::snapshotter::Snapshotter;
use crate::store::Store;

/// Snapshots and diff plugins for containerd: layers as dm-verity volumes.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The node's configuration; a file that is not there means every default.
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,
    /// Print the configuration with every default filled in, and exit.
    #[arg(long)]
    print_config: bool,
    /// Read the database in this directory, and exit: what each start does in a process of its own.
    #[arg(long, value_name = "DIRECTORY", hide = true)]
    check_database: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(root) = arguments.check_database {
        return Ok(Store::read_through(&root)?);
    }
    let config = NodeConfig::load(&arguments.config)?.config;
    if arguments.print_config {
        std::io::stdout().write_all(config.render()?.as_bytes())?;
        return Ok(());
    }
    log(config.snapshotter.log);
    // nothing of ours is for others to read; what is, is given its mode
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("tokio runtime")?
        .block_on(serve(&config, &arguments.config))
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}

async fn serve(config: &NodeConfig, path: &Path) -> Result<()> {
    let snapshotter = {
        let config = config.clone();
        let runtime = tokio::runtime::Handle::current();
        let content = Content::new(&config.snapshotter.containerd, Path::new(BLOBS), runtime);
        tokio::task::spawn_blocking(move || start(&config, content)).await??
    };
    let listener = match systemd::socket()? {
        Some(listener) => listener,
        None => listen(&config.snapshotter.socket)?,
    };
    tracing::info!("serving on {:?}", listener.local_addr().context("socket")?);
    listener.set_nonblocking(true).context("socket")?;
    let listener = tokio::net::UnixListener::from_std(listener).context("socket")?;
    let mut terminated = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("SIGINT")?;
    systemd::notify("READY=1")?;
    let snapshotter = Arc::new(snapshotter);
    beside(&snapshotter, config, path).await?;
    let service = Service(snapshotter);
    Server::builder()
        .add_service(SnapshotsServer::new(service.clone()))
        .add_service(DiffServer::new(service))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            tokio::select! { _ = terminated.recv() => {}, _ = interrupted.recv() => {} }
        })
        .await
        .context("gRPC server")?;
    tracing::info!("stopped; layers stay mounted");
    Ok(())
}

/// What goes on beside the calls: metrics, looks for claims, reloads.
async fn beside(snapshotter: &Arc<Snapshotter>, config: &NodeConfig, path: &Path) -> Result<()> {
    if !config.snapshotter.metrics.is_empty() {
        let listener = metrics::listen(&config.snapshotter.metrics).await?;
        let counted = Arc::clone(snapshotter);
        tokio::spawn(async move { metrics::serve(listener, &counted.metrics).await });
    }
    let asking = Arc::clone(snapshotter);
    std::thread::Builder::new()
        .name("registries".to_owned())
        .spawn(move || asking.claims.ask_registries())
        .context("thread")?;
    let claims = Arc::clone(snapshotter);
    tokio::task::spawn_blocking(move || {
        // containerd may well start after us, and asks for a snapshot before any launch: then we look again
        if let Err(error) = claims.look_for_all_claims() {
            tracing::info!("no claims at start: {}", error::chain(&error));
        }
    });
    let mut hung_up = signal(SignalKind::hangup()).context("SIGHUP")?;
    let (reloaded, path, before) = (Arc::clone(snapshotter), path.to_owned(), config.clone());
    tokio::spawn(async move {
        while hung_up.recv().await.is_some() {
            reload(&reloaded, &path, &before);
        }
    });
    Ok(())
}

/// A file that cannot be used changes nothing. Keys, revocations, mirrors and logins need no reload: their files are
/// read whenever they are needed.
fn reload(snapshotter: &Snapshotter, path: &Path, before: &NodeConfig) {
    let config = match NodeConfig::load(path) {
        Err(error) => {
            return tracing::error!("not reloaded: {}", error::chain(&error));
        }
        Ok(loaded) => loaded.config,
    };
    snapshotter.reload(&config);
    let mut reached = before.clone();
    reached.trust = config.trust.clone();
    reached.registry = config.registry.clone();
    reached.snapshotter.layer_signature = config.snapshotter.layer_signature;
    if (&reached.snapshotter, &reached.gate.claims) != (&config.snapshotter, &config.gate.claims) {
        tracing::warn!(
            "reloaded; of [snapshotter] and gate.claims some keys count from the next start on"
        );
    } else {
        tracing::info!("reloaded");
    }
}

/// Everything before the first call: directories, database, and what a former daemon left.
fn start(config: &NodeConfig, content: Content) -> Result<Snapshotter> {
    let layout = Layout {
        root: config.snapshotter.root.clone(),
        state: config.snapshotter.state.clone(),
        claims: config.gate.claims.clone(),
    };
    layout.prepare()?;
    Store::check(&layout.root, Path::new("/proc/self/exe"))?;
    let store = Store::open(&layout.root)?;
    let kind = reclaim::device_kind()?;
    let adopted = reclaim::reclaim(&layout, &store, kind)?;
    tracing::info!("layers are activated on {kind:?} devices; {} are active", adopted.len());
    let policy = config.snapshotter.layer_signature;
    let activations = Activations::adopt(layout.clone(), kind, policy, adopted)?;
    let claims = Claims::new(&layout.claims, config.trust.clone(), config.registry.clone());
    let snapshotter = Snapshotter::new(layout, store, content, activations, claims);
    snapshotter.settle()?;
    snapshotter.claims.adopt_dropped()?;
    Ok(snapshotter)
}

/// Binds the socket, mode 0600. A stale one is replaced: the database's lock says that no other daemon is alive.
fn listen(path: &Path) -> Result<UnixListener> {
    let shown = path.display();
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("mkdir {}", directory.display()))?;
    }
    layout::remove_file(path)?;
    let listener = UnixListener::bind(path).with_context(|| format!("bind {shown}"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("chmod {shown}"))?;
    Ok(listener)
}
