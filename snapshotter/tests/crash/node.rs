//! A directory with a real daemon on it, containerd's content store beside it, and what must be left at rest.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hallmark_verity::{DiffId, LayerDigest};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use crate::containerd;
use crate::proto::diff::ApplyRequest;
use crate::proto::diff::diff_client::DiffClient;
use crate::proto::snapshots::snapshots_client::SnapshotsClient;
use crate::proto::snapshots::{
    CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest,
};
use crate::proto::types::{Descriptor, Mount};

/// Layers of the image that is there all the time.
pub(crate) const CHAIN: usize = 3;
/// Bytes of a layer's larger file: too much for a look for claims, so that a blob that is read is one that is packed.
const LARGE: usize = 1_200_000;
/// How long a daemon may take to answer: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a client of containerd's does.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    snapshots: SnapshotsClient<Channel>,
    diff: DiffClient<Channel>,
}

/// An answer, or the refusal of it.
pub(crate) type Answer<T> = Result<T, Status>;

impl Client {
    fn new(socket: &Path) -> Self {
        let path = socket.to_owned();
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://hallmark").connect_with_connector_lazy(connect);
        Self { snapshots: SnapshotsClient::new(channel.clone()), diff: DiffClient::new(channel) }
    }

    pub(crate) async fn prepare(mut self, key: String, parent: String) -> Answer<Vec<Mount>> {
        let request = PrepareSnapshotRequest { key, parent, ..Default::default() };
        Ok(self.snapshots.prepare(request).await?.into_inner().mounts)
    }

    pub(crate) async fn mounts(mut self, key: String) -> Answer<Vec<Mount>> {
        let request = MountsRequest { key, ..Default::default() };
        Ok(self.snapshots.mounts(request).await?.into_inner().mounts)
    }

    pub(crate) async fn commit(mut self, key: String, name: String) -> Answer<()> {
        let request = CommitSnapshotRequest { key, name, ..Default::default() };
        self.snapshots.commit(request).await.map(drop)
    }

    pub(crate) async fn remove(mut self, key: String) -> Answer<()> {
        let request = RemoveSnapshotRequest { key, ..Default::default() };
        self.snapshots.remove(request).await.map(drop)
    }

    pub(crate) async fn stat(mut self, key: String) -> Answer<Info> {
        let request = StatSnapshotRequest { key, ..Default::default() };
        let answer = self.snapshots.stat(request).await?.into_inner();
        answer.info.ok_or_else(|| Status::internal("no info"))
    }

    pub(crate) async fn names(mut self) -> Answer<Vec<String>> {
        let mut stream = self.snapshots.list(ListSnapshotsRequest::default()).await?.into_inner();
        let mut names = Vec::new();
        while let Some(answer) = stream.message().await? {
            names.extend(answer.info.into_iter().map(|info| info.name));
        }
        Ok(names)
    }

    pub(crate) async fn apply(mut self, layer: Layer, mounts: Vec<Mount>) -> Answer<()> {
        let diff = Some(layer.descriptor());
        let mut request = Request::new(ApplyRequest { diff, mounts, ..Default::default() });
        request.metadata_mut().insert("containerd-namespace", "default".parse().unwrap());
        let applied = self.diff.apply(request).await?.into_inner().applied;
        assert_eq!(applied.unwrap().digest, layer.digest(), "a plain tar is its own diffID");
        Ok(())
    }
}

/// A layer of two files, as a plain tar.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) number: usize,
    tar: Vec<u8>,
}

impl Layer {
    pub(crate) fn new(number: usize) -> Self {
        let mut tar = Vec::new();
        let text = format!("layer {number}").into_bytes();
        for (name, bytes) in [("small", text), ("large", vec![7; LARGE])] {
            let mut header = [0_u8; 512];
            let mut put = |at: usize, text: &str| {
                header[at..at + text.len()].copy_from_slice(text.as_bytes());
            };
            put(0, &format!("{name}-{number}"));
            put(100, "0000644\0");
            put(108, "0000000\0");
            put(116, "0000000\0");
            put(124, &format!("{:011o}\0", bytes.len()));
            put(136, "00000000000\0");
            put(148, "        ");
            put(156, "0");
            put(257, "ustar\x0000");
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            tar.extend(header);
            tar.extend(&bytes);
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.extend([0; 1024]);
        Self { number, tar }
    }

    /// Of the blob, which is the tar.
    pub(crate) fn digest(&self) -> String {
        LayerDigest::of(&self.tar).to_string()
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
            digest: self.digest(),
            size: i64::try_from(self.tar.len()).unwrap(),
            annotations: HashMap::new(),
        }
    }

    fn image(&self) -> String {
        format!("{}.erofs", DiffId::of(&self.tar).to_hex())
    }

    /// The key that it is unpacked under.
    pub(crate) fn key(&self) -> String {
        format!("default/2/extract-1-x sha256:{}", self.number)
    }

    /// What its snapshot is called.
    pub(crate) fn name(&self) -> String {
        format!("default/3/sha256:{}", self.number)
    }
}

/// A daemon's directory, and the daemon.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) directory: PathBuf,
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) content: containerd::Store,
    daemon: Option<Child>,
}

impl Node {
    /// A node in `directory`, not started.
    pub(crate) fn new(directory: &Path) -> Self {
        let directory = directory.to_owned();
        let config = format!(
            "[gate]\nclaims = \"{0}/root/claims\"\n[trust]\nkeys = \"{0}/keys.pem\"\n\
             [snapshotter]\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
             socket = \"{0}/sock\"\ncontainerd = \"{0}/containerd.sock\"\n",
            directory.display()
        );
        std::fs::write(directory.join("config.toml"), config).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let content = containerd::Store::default();
        let socket = directory.join("containerd.sock");
        runtime.block_on(async { containerd::serve(&socket, content.clone()) });
        for number in 0..=CHAIN {
            let layer = Layer::new(number);
            content.put(&layer.digest(), &layer.tar);
        }
        Self { directory, runtime, content, daemon: None }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("sh");
        // stopped before its first own system call: whoever follows it misses none
        command.args(["-c", "[ -z \"$WAIT\" ] || kill -STOP $$; exec \"$@\"", "sh"]);
        command.arg(daemon());
        command.arg("--config").arg(self.directory.join("config.toml"));
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("log"))
            .unwrap();
        command.env("RUST_LOG", "warn").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command
    }

    /// Starts a daemon that has stopped itself.
    pub(crate) fn start_stopped(&mut self) -> Pid {
        let child = self.command().env("WAIT", "1").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        self.daemon = Some(child);
        let stat = format!("/proc/{pid}/stat");
        while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
            std::thread::sleep(Duration::from_millis(1));
        }
        pid
    }

    /// Starts a daemon and waits for it to answer; how long it took.
    pub(crate) fn start(&mut self) -> Duration {
        let started = Instant::now();
        self.daemon = Some(self.command().spawn().unwrap());
        loop {
            match self.run(self.client().names()) {
                Ok(_) => return started.elapsed(),
                Err(status) => {
                    let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
                    assert!(ended.is_none(), "the daemon ended: {}", self.last_words());
                    assert!(started.elapsed() < PATIENCE, "{status}");
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Starts a daemon that must refuse to serve; what it said.
    pub(crate) fn start_refused(&mut self) -> String {
        std::fs::write(self.directory.join("log"), "").unwrap();
        let mut child = self.command().spawn().unwrap();
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if started.elapsed() > PATIENCE {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!child.wait().unwrap().success(), "it served");
        self.last_words()
    }

    pub(crate) fn last_words(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.daemon.as_ref().unwrap().id()).unwrap())
    }

    /// Ends the daemon as systemd does.
    pub(crate) fn stop(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        kill(Pid::from_raw(i32::try_from(daemon.id()).unwrap()), Signal::SIGTERM).unwrap();
        assert!(daemon.wait().unwrap().success(), "{}", self.last_words());
    }

    /// Kills the daemon, if it is not dead yet.
    pub(crate) fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            kill(Pid::from_raw(i32::try_from(daemon.id()).unwrap()), Signal::SIGKILL).ok();
            // whoever followed it has waited for it already
            drop(daemon.wait());
        }
    }

    pub(crate) fn client(&self) -> Client {
        let _inside = self.runtime.enter();
        Client::new(&self.directory.join("sock"))
    }

    pub(crate) fn run<T>(&self, call: impl Future<Output = Answer<T>>) -> Answer<T> {
        self.runtime.block_on(async {
            let slow = |_| Status::deadline_exceeded("no answer");
            tokio::time::timeout(PATIENCE, call).await.map_err(slow)?
        })
    }

    /// Prepares and applies a layer on the one below it. The mounts that were replied.
    pub(crate) fn apply(&self, layer: &Layer) {
        let mounts = self.run(self.client().prepare(layer.key(), below(layer))).unwrap();
        self.run(self.client().apply(layer.clone(), mounts)).unwrap();
    }

    /// The image that is there all the time.
    pub(crate) fn unpack_chain(&self) {
        for layer in (0..CHAIN).map(Layer::new) {
            self.apply(&layer);
            self.run(self.client().commit(layer.key(), layer.name())).unwrap();
        }
    }

    pub(crate) fn remove_chain(&self) {
        for layer in (0..CHAIN).rev().map(Layer::new) {
            self.run(self.client().remove(layer.name())).unwrap();
        }
    }

    /// What must be left when nothing but the image's first `layers` layers is there.
    pub(crate) fn expect_rest(&self, layers: usize) {
        let mut found = self.run(self.client().names()).unwrap();
        found.sort();
        let layers: Vec<Layer> = (0..layers).map(Layer::new).collect();
        assert_eq!(found, layers.iter().map(Layer::name).collect::<Vec<_>>(), "snapshots");
        let mut images: Vec<String> = layers.iter().map(Layer::image).collect();
        images.sort();
        assert_eq!(names(&self.root().join("layers")), images, "layer images");
        for empty in ["root/snapshots", "root/claims", "state/l", "state/devices"] {
            assert_eq!(names(&self.directory.join(empty)), Vec::<String>::new(), "{empty}");
        }
        // a loop device goes when the last descriptor of it does, which is not at once
        let started = Instant::now();
        while self.loops() > 0 {
            assert!(started.elapsed() < PATIENCE, "{} loop devices are left", self.loops());
            std::thread::sleep(Duration::from_millis(2));
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let state = self.directory.join("state").display().to_string();
        assert!(!mounts.contains(&state), "mounts are left:\n{mounts}");
    }

    /// How many loop devices read files of ours; a device-mapper device that is left keeps its loop device.
    fn loops(&self) -> usize {
        let ours = |entry: std::fs::DirEntry| {
            let text = std::fs::read_to_string(entry.path().join("loop/backing_file"));
            text.is_ok_and(|text| Path::new(text.trim_end()).starts_with(&self.directory))
        };
        std::fs::read_dir("/sys/block").unwrap().flatten().map(ours).filter(|ours| *ours).count()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        let lowers = self.directory.join("state/l");
        for entry in std::fs::read_dir(lowers).into_iter().flatten().flatten() {
            let flags = rustix::mount::UnmountFlags::DETACH;
            rustix::mount::unmount(entry.path(), flags).ok();
        }
    }
}

/// The daemon's program: the one beside this, or else the one that was built with it.
fn daemon() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let beside = this.with_file_name("hallmark-snapshotter");
    if beside.is_file() { beside } else { env!("CARGO_BIN_EXE_hallmark-snapshotter").into() }
}

/// The name of the snapshot that a layer lies on; empty for the first.
pub(crate) fn below(layer: &Layer) -> String {
    layer.number.checked_sub(1).map(|number| Layer::new(number).name()).unwrap_or_default()
}

/// The names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Whether the file of each of the image's first `layers` layers is in one of a reply's lowers, and says what it must.
pub(crate) fn expect_content(mounts: &[Mount], layers: usize) {
    let [mount] = mounts else { panic!("{mounts:?}") };
    let lowers = match mount.r#type.as_str() {
        "bind" => vec![mount.source.as_str()],
        _ => {
            let option = |option: &'_ String| option.starts_with("lowerdir=");
            let lowers = mount.options.iter().find(|it| option(it)).unwrap();
            lowers["lowerdir=".len()..].split(':').collect()
        }
    };
    assert_eq!(lowers.len(), layers, "{mounts:?}");
    for (lower, number) in lowers.iter().rev().zip(0..layers) {
        let text = std::fs::read_to_string(Path::new(lower).join(format!("small-{number}")));
        assert_eq!(text.unwrap(), format!("layer {number}"));
    }
}

/// `Ok` for success and for the refusal that says it was done before.
pub(crate) fn done_or(answer: Answer<()>, before: Code) {
    match answer {
        Ok(()) => {}
        Err(status) => assert_eq!(status.code(), before, "{status}"),
    }
}
