//! The shim as containerd meets it: started by `start`, spoken to by ttrpc, told off by `delete`, with the events it sends.
//!
//! `hallmark-runtime` is a shell script here that keeps runc's contract with the shim (arguments, pid file, log.json, exit
//! codes) and contains nothing, so that what is tested is the shim alone and needs no container, image or containerd.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

use std::future::Future;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::events::task as event;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, Events, TaskClient, create_events};
use containerd_shim_protos::ttrpc::r#async::{Server, TtrpcContext};
use containerd_shim_protos::ttrpc::context::{self, Context};
use containerd_shim_protos::ttrpc::{self, Code};

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-hallmark-v1");

/// `create` leaves a process that waits for `start` and then runs `init` of the bundle.
const RUNTIME: &str = r#"#!/bin/sh
while :; do case $1 in
  --root) shift 2;; --log) log=$2; shift 2;; --log-format) shift 2;; *) verb=$1; shift; break;;
esac; done
say() { echo "{\"level\":\"error\",\"msg\":\"$1\",\"time\":\"2026-11-24T00:00:00Z\"}" >>"$log"; exit 1; }
exec 3<&0
case $verb in
create)
  [ -e refuse ] && say "$(cat refuse)"
  [ -e slow ] && mkfifo blocked && read go <blocked
  while [ $# -gt 1 ]; do case $1 in --pid-file) pid=$2;; --rootfs-mounts) cp "$2" handed;; esac; shift; done
  mkfifo gate
  (read go <gate; exec sh ./init <&3) & echo $! >"$pid";;
start) echo go >gate;;
exec)
  while [ $# -gt 1 ]; do case $1 in --process) process=$2;; --pid-file) pid=$2;; esac; shift; done
  cp "$process" described
  # held until this shell is gone, which would collect a child that ends before it
  rm -f hold; mkfifo hold
  (read go <hold; exec sh ./added <&3) & echo $! >"$pid"
  exec 4>hold;;
kill) kill -"$2" "$(cat init.pid)" 2>/dev/null || say "container not running";;
delete) [ "$1" = --force ] && kill -9 "$(cat init.pid)" 2>/dev/null; rm -f gate; exit 0;;
features) echo '{"ociVersionMax":"1.3.0"}';;
*) say "unknown command $verb";;
esac
"#;

/// A directory with a shim, a runtime, a containerd that only listens to events, and bundles.
struct Site {
    directory: tempfile::TempDir,
    events: Arc<Heard>,
    _server: Server,
}

#[derive(Default)]
struct Heard(Mutex<Vec<Any>>);

#[async_trait::async_trait]
impl Events for Heard {
    async fn forward(
        &self,
        _context: &TtrpcContext,
        request: ForwardRequest,
    ) -> ttrpc::Result<api::Empty> {
        let envelope = request.envelope.into_option().unwrap_or_default();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(envelope.event.unwrap());
        Ok(api::Empty::default())
    }
}

impl Heard {
    /// Events so far, an exit with the id it is of.
    fn names(&self) -> Vec<String> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = |any: &Any| match any.type_url.as_str() {
            "containerd.events.TaskExit" => {
                let exit = event::TaskExit::parse_from_bytes(&any.value).unwrap();
                format!("exit {} {}", exit.id, exit.exit_status)
            }
            other => other.trim_start_matches("containerd.events.Task").to_owned(),
        };
        heard.iter().map(name).collect()
    }
}

impl Site {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::copy(SHIM, directory.path().join("containerd-shim-hallmark-v1")).unwrap();
        let site_runtime = directory.path().join("hallmark-runtime");
        std::fs::write(&site_runtime, RUNTIME).unwrap();
        std::fs::set_permissions(&site_runtime, std::fs::Permissions::from_mode(0o755)).unwrap();
        let events = Arc::new(Heard::default());
        let address = format!("unix://{}", directory.path().join("ttrpc").display());
        let server = Server::new().bind(&address).unwrap();
        let mut server = server.register_service(create_events(events.clone()));
        server.start().await.unwrap();
        Self { directory, events, _server: server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A bundle whose first process is the shell script `init`.
    fn bundle(&self, id: &str, init: &str, config: &str) -> PathBuf {
        let bundle = self.path(id);
        std::fs::create_dir(&bundle).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, bundle.join("log"), mode).unwrap();
        for (name, content) in [("config.json", config), ("init", init), ("added", "exit 5")] {
            std::fs::write(bundle.join(name), content).unwrap();
        }
        bundle
    }

    fn shim(&self, bundle: &Path, id: &str, action: &[&str]) -> Command {
        let mut command = Command::new(self.path("containerd-shim-hallmark-v1"));
        command.current_dir(bundle).args(["-namespace", "hallmark-test", "-id", id, "-address"]);
        command.arg(self.path("grpc")).args(action).stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    /// Runs the `start` action. Returns the socket.
    fn start(&self, bundle: &Path, id: &str) -> PathBuf {
        let mut child = self.shim(bundle, id, &["start"]).spawn().unwrap();
        let params = BootstrapParams {
            instance_id: id.to_owned(),
            namespace: "hallmark-test".to_owned(),
            containerd_ttrpc_address: self.path("ttrpc").display().to_string(),
            containerd_grpc_address: self.path("grpc").display().to_string(),
            socket_dir: Some(self.path("s").display().to_string()),
            ..BootstrapParams::default()
        };
        child.stdin.take().unwrap().write_all(&params.write_to_bytes().unwrap()).unwrap();
        // read to the end: the daemon must not keep the pipe
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let result = BootstrapResult::parse_from_bytes(&output.stdout).unwrap();
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        PathBuf::from(result.address.strip_prefix("unix://").unwrap())
    }

    /// Runs the `delete` action.
    fn delete(&self, bundle: &Path, id: &str) -> api::DeleteResponse {
        let output = self.shim(bundle, id, &["delete"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        api::DeleteResponse::parse_from_bytes(&output.stdout).unwrap()
    }
}

struct Task {
    client: TaskClient,
    id: String,
}

fn patience() -> Context {
    context::with_duration(Duration::from_secs(20))
}

impl Task {
    async fn connect(socket: &Path, id: &str) -> Self {
        let client = Client::connect(&format!("unix://{}", socket.display())).await.unwrap();
        Self { client: TaskClient::new(client), id: id.to_owned() }
    }

    async fn create(&self, bundle: &Path) -> ttrpc::Result<u32> {
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: bundle.display().to_string(),
            rootfs: vec![api::Mount {
                type_: "overlay".into(),
                source: "overlay".into(),
                options: vec!["lowerdir=/a:/b".into()],
                ..api::Mount::default()
            }],
            stdout: format!("file://{}", bundle.join("stdout").display()),
            ..api::CreateTaskRequest::default()
        };
        Ok(self.client.create(patience(), &request).await?.pid)
    }

    async fn start(&self, exec_id: &str) -> ttrpc::Result<u32> {
        let request = api::StartRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            ..api::StartRequest::default()
        };
        Ok(self.client.start(patience(), &request).await?.pid)
    }

    async fn exec(&self, exec_id: &str) -> ttrpc::Result<()> {
        let spec = Any { value: br#"{"args":["x"]}"#.into(), ..Any::default() };
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            spec: MessageField::some(spec),
            ..api::ExecProcessRequest::default()
        };
        self.client.exec(patience(), &request).await.map(drop)
    }

    async fn wait(&self, exec_id: &str) -> ttrpc::Result<u32> {
        let request = api::WaitRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            ..api::WaitRequest::default()
        };
        Ok(self.client.wait(patience(), &request).await?.exit_status)
    }

    async fn kill(&self, exec_id: &str, signal: u32) -> ttrpc::Result<()> {
        let request = api::KillRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            signal,
            ..api::KillRequest::default()
        };
        self.client.kill(patience(), &request).await.map(drop)
    }

    async fn delete(&self, exec_id: &str) -> ttrpc::Result<u32> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            ..api::DeleteRequest::default()
        };
        Ok(self.client.delete(patience(), &request).await?.exit_status)
    }

    async fn state(&self) -> ttrpc::Result<api::Status> {
        let request = api::StateRequest { id: self.id.clone(), ..api::StateRequest::default() };
        Ok(self.client.state(patience(), &request).await?.status.enum_value().unwrap())
    }

    async fn shim_pid(&self) -> u32 {
        let request = api::ConnectRequest::default();
        self.client.connect(patience(), &request).await.unwrap().shim_pid
    }

    async fn shut_down(self) {
        let request =
            api::ShutdownRequest { id: self.id.clone(), ..api::ShutdownRequest::default() };
        // a closed connection is an answer too
        drop(self.client.shutdown(patience(), &request).await);
    }
}

fn status(error: ttrpc::Error) -> (Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("{other:?}"),
    }
}

/// Waits until `done`, at most ten seconds.
async fn until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(10), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

fn gone(path: &Path) -> bool {
    path.symlink_metadata().is_err()
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

const PLAIN: &str = r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#;

#[test]
fn a_life_from_create_to_delete() {
    run(async {
        let site = Site::new().await;
        let bundle =
            site.bundle("c1", "echo said; trap 'exit 3' TERM; while :; do sleep 0.05; done", PLAIN);
        let socket = site.start(&bundle, "c1");
        let task = Task::connect(&socket, "c1").await;
        let pid = task.create(&bundle).await.unwrap();
        assert_eq!(status(task.create(&bundle).await.unwrap_err()).0, Code::ALREADY_EXISTS);
        assert_eq!(task.state().await.unwrap(), api::Status::CREATED);
        assert_eq!(task.start("").await.unwrap(), pid);
        assert_eq!(task.state().await.unwrap(), api::Status::RUNNING);
        assert_eq!(
            status(task.delete("").await.unwrap_err()),
            (Code::FAILED_PRECONDITION, "container c1: cannot delete while running".to_owned())
        );

        task.exec("e1").await.unwrap();
        assert_eq!(status(task.exec("e1").await.unwrap_err()).0, Code::ALREADY_EXISTS);
        task.start("e1").await.unwrap();
        assert_eq!(task.wait("e1").await.unwrap(), 5);
        assert_eq!(task.delete("e1").await.unwrap(), 5);
        assert_eq!(status(task.wait("e1").await.unwrap_err()).0, Code::NOT_FOUND);
        let described = std::fs::read_to_string(bundle.join("described")).unwrap();
        assert_eq!(described, r#"{"args":["x"],"terminal":false}"#);

        until("first output", || {
            std::fs::read(bundle.join("stdout")).is_ok_and(|text| text == b"said\n")
        })
        .await;
        task.kill("", 15).await.unwrap();
        assert_eq!(task.wait("").await.unwrap(), 3);
        assert_eq!(task.state().await.unwrap(), api::Status::STOPPED);
        assert_eq!(
            status(task.kill("", 9).await.unwrap_err()),
            (Code::NOT_FOUND, "process already finished".to_owned())
        );
        assert_eq!(task.delete("").await.unwrap(), 3);
        assert_eq!(status(task.state().await.unwrap_err()).0, Code::NOT_FOUND);

        let shim = task.shim_pid().await;
        task.shut_down().await;
        until("the shim's end", || !is_alive(shim)).await;
        assert!(gone(&socket));
        let expected =
            ["Create", "Start", "ExecAdded", "ExecStarted", "exit e1 5", "exit c1 3", "Delete"];
        assert_eq!(site.events.names(), expected);
        let handed = std::fs::read_to_string(bundle.join("handed")).unwrap();
        let mounts = r#"[{"type":"overlay","source":"overlay","options":["lowerdir=/a:/b"]}]"#;
        assert_eq!(handed, format!(r#"{{"schemaVersion":1,"mounts":{mounts}}}"#));
        // containerd asks again, always
        let answer = site.delete(&bundle, "c1");
        assert_eq!((answer.pid, answer.exit_status), (pid, 3));
    });
}

#[test]
fn a_refusal_arrives_word_for_word_and_leaves_nothing() {
    run(async {
        let site = Site::new().await;
        let bundle = site.bundle("c1", "exit 0", PLAIN);
        let refusal =
            "hallmark: refused: container c1: layer 2 (sha256:aa): root hash is A, the seal says B";
        std::fs::write(bundle.join("refuse"), refusal).unwrap();
        std::fs::write(bundle.join("log.json"), "{\"level\":\"error\",\"msg\":\"of yesterday\"}\n")
            .unwrap();
        let socket = site.start(&bundle, "c1");
        let task = Task::connect(&socket, "c1").await;
        let refused = status(task.create(&bundle).await.unwrap_err());
        assert_eq!(refused, (Code::FAILED_PRECONDITION, refusal.to_owned()));
        assert!(gone(&bundle.join("hallmark-shim.json")));
        // the next good request works
        std::fs::remove_file(bundle.join("refuse")).unwrap();
        task.create(&bundle).await.unwrap();
        task.start("").await.unwrap();
        assert_eq!(task.wait("").await.unwrap(), 0);
        task.delete("").await.unwrap();
        let shim = task.shim_pid().await;
        task.shut_down().await;
        until("the shim's end", || !is_alive(shim)).await;
        assert_eq!(site.events.names(), ["Create", "Start", "exit c1 0", "Delete"]);
    });
}

#[test]
fn exits_come_after_starts_and_the_first_process_last() {
    run(async {
        let site = Site::new().await;
        // gone before `start` returns; and in a shared pid namespace an added process outlives the first
        let bundle = site.bundle("c1", "sleep 0.3; exit 1", "{}");
        std::fs::write(bundle.join("added"), "sleep 0.8; exit 6").unwrap();
        let socket = site.start(&bundle, "c1");
        let task = Task::connect(&socket, "c1").await;
        task.create(&bundle).await.unwrap();
        task.start("").await.unwrap();
        task.exec("e1").await.unwrap();
        task.start("e1").await.unwrap();
        assert_eq!(task.wait("").await.unwrap(), 1);
        task.exec("e2").await.unwrap_err();
        task.delete("e1").await.unwrap();
        task.delete("").await.unwrap();

        let quick = site.bundle("c2", "exit 0", PLAIN);
        let second = Task { client: task.client.clone(), id: "c2".to_owned() };
        for _ in 0..10 {
            second.create(&quick).await.unwrap();
            second.start("").await.unwrap();
            second.wait("").await.unwrap();
            second.delete("").await.unwrap();
        }
        let shim = task.shim_pid().await;
        task.shut_down().await;
        until("the shim's end", || !is_alive(shim)).await;
        let heard = site.events.names();
        let first =
            ["Create", "Start", "ExecAdded", "ExecStarted", "exit e1 6", "exit c1 1", "Delete"];
        assert_eq!(heard[..7], first);
        for life in heard[7..].chunks(4) {
            assert_eq!(life, ["Create", "Start", "exit c2 0", "Delete"]);
        }
    });
}

#[test]
fn a_pod_has_one_shim() {
    run(async {
        let site = Site::new().await;
        let config = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"p1"}}"#;
        let (one, two) =
            (site.bundle("p1", "sleep 60", config), site.bundle("p2", "sleep 60", config));
        let socket = site.start(&one, "p1");
        assert_eq!(site.start(&two, "p2"), socket);
        let first = Task::connect(&socket, "p1").await;
        let second = Task::connect(&socket, "p2").await;
        first.create(&one).await.unwrap();
        second.create(&two).await.unwrap();
        // never started, killed by delete
        assert_eq!(second.delete("").await.unwrap(), 137);
        second.shut_down().await;
        assert_eq!(first.state().await.unwrap(), api::Status::CREATED);
        assert_eq!(site.delete(&two, "p2").exit_status, 137);
        assert!(!gone(&socket), "delete of one container took the pod's socket");
        first.delete("").await.unwrap();
        let shim = first.shim_pid().await;
        first.shut_down().await;
        until("the shim's end", || !is_alive(shim)).await;
        let heard = site.events.names();
        assert_eq!(heard, ["Create", "Create", "exit p2 137", "Delete", "exit p1 137", "Delete"]);
    });
}

#[test]
fn a_crash_in_the_middle_of_create_is_cleaned_up() {
    run(async {
        let site = Site::new().await;
        let bundle = site.bundle("c1", "exit 0", PLAIN);
        std::fs::write(bundle.join("slow"), "").unwrap();
        let socket = site.start(&bundle, "c1");
        let task = Task::connect(&socket, "c1").await;
        let shim = task.shim_pid().await;
        let creation = task.create(&bundle);
        let crash = async {
            until("create's beginning", || !gone(&bundle.join("hallmark-rootfs.json"))).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            let pid = rustix::process::Pid::from_raw(i32::try_from(shim).unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        };
        assert!(tokio::join!(creation, crash).0.is_err());
        assert!(!gone(&socket));
        assert!(is_making(&bundle));
        assert_eq!(site.delete(&bundle, "c1").exit_status, 137);
        // a child that the runtime had just forked looks like the runtime, and goes with it
        until("the runtime's end", || !is_making(&bundle)).await;
        assert!(gone(&socket));
    });
}

#[test]
fn a_create_that_hangs_is_ended_by_delete() {
    run(async {
        let site = Site::new().await;
        let config = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"p1"}}"#;
        let (pod, hangs) = (site.bundle("p1", "sleep 60", config), site.bundle("c1", "", config));
        std::fs::write(hangs.join("slow"), "").unwrap();
        let socket = site.start(&pod, "p1");
        let (first, task) =
            (Task::connect(&socket, "p1").await, Task::connect(&socket, "c1").await);
        first.create(&pod).await.unwrap();
        let creation = task.create(&hangs);
        let end = async {
            until("create's beginning", || is_making(&hangs)).await;
            let (code, message) = status(task.delete("").await.unwrap_err());
            assert_eq!((code, message.contains("no such container")), (Code::NOT_FOUND, true));
        };
        let (made, ()) = tokio::join!(creation, end);
        let (code, message) = status(made.unwrap_err());
        assert_eq!(code, Code::CANCELLED);
        assert_eq!(message, "container c1: deleted while it was being made");
        until("the runtime's end", || !is_making(&hangs)).await;
        // the id is free again, and the neighbour never noticed
        std::fs::remove_file(hangs.join("slow")).unwrap();
        task.create(&hangs).await.unwrap();
        task.delete("").await.unwrap();
        assert_eq!(first.state().await.unwrap(), api::Status::CREATED);
        first.delete("").await.unwrap();
        let shim = first.shim_pid().await;
        first.shut_down().await;
        until("the shim's end", || !is_alive(shim)).await;
    });
}

/// Whether a runtime, or a child that it has just forked, is making the container of `bundle`.
fn is_making(bundle: &Path) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let words = format!("--bundle\0{}", bundle.display());
    let mut commands = processes.filter_map(|each| std::fs::read(each.path().join("cmdline")).ok());
    commands.any(|command| String::from_utf8_lossy(&command).contains(&words))
}

#[test]
fn a_logging_program_gets_the_output() {
    run(async {
        let site = Site::new().await;
        let bundle = site.bundle("c1", "echo out; echo err >&2", PLAIN);
        let logger = site.path("logger");
        let script = "#!/bin/sh\nexec 5>&-\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\" >$2.id\ncat <&3 >$2.out\ncat <&4 >$2.err\n";
        std::fs::write(&logger, script).unwrap();
        std::fs::set_permissions(&logger, std::fs::Permissions::from_mode(0o755)).unwrap();
        let socket = site.start(&bundle, "c1");
        let task = Task::connect(&socket, "c1").await;
        let target = bundle.join("logged").display().to_string();
        let uri = format!("binary://{}?to={target}", logger.display());
        let request = api::CreateTaskRequest {
            id: "c1".to_owned(),
            bundle: bundle.display().to_string(),
            stdout: uri.clone(),
            stderr: uri,
            ..api::CreateTaskRequest::default()
        };
        task.client.create(patience(), &request).await.unwrap();
        task.start("").await.unwrap();
        task.wait("").await.unwrap();
        // when delete has returned, the log is complete
        task.delete("").await.unwrap();
        let read = |end: &str| std::fs::read_to_string(format!("{target}.{end}")).unwrap();
        assert_eq!(read("id"), format!("c1 hallmark-test to {target}\n"));
        assert_eq!((read("out"), read("err")), ("out\n".to_owned(), "err\n".to_owned()));
        let shim = task.shim_pid().await;
        task.shut_down().await;
        until("the shim's end", || !is_alive(shim)).await;
    });
}
