//! `containerd-shim-hallmark-v1`: keeps containers alive between containerd's restarts.
//!
//! containerd starts this program three times for a container. `start` finds or starts the pod's daemon and returns at once.
//! The daemon (no action) serves the task API over ttrpc and runs `hallmark-runtime` for each verb. `delete` cleans up, always, and
//! does nothing when the daemon did already.
//!
//! It decides nothing about trust. It hands containerd's mounts to the runtime unread, and passes the gate's refusal on word for
//! word: a broken shim can deny service, not launch.
//!
//! Built on `containerd-shim-protos` and `ttrpc` rather than on `containerd-shim`, whose entry point owns the socket and leaves it
//! behind (a re-used container id then waits for more than a second), starts tokio in all three processes, and brings a
//! D-Bus stack for cgroups.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use containerd_shim_protos::protobuf::Message as _;

use crate::args::{Action, Args};
use crate::bootstrap::{Environment, Params};

mod args;
mod bootstrap;
mod bundle;
mod cgroup;
mod cleanup;
mod console;
mod container;
mod daemon;
mod error;
mod events;
mod info;
mod io;
mod launch;
mod logger;
mod logging;
mod oom;
mod options;
mod process;
mod reaper;
mod runtime;
mod stats;
mod sync;
mod task;
mod uri;

/// The most that is read of standard input, as in containerd's own shim.
const INPUT_LIMIT: u64 = 10 << 20;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows this to its client: one line, no backtrace
            writeln!(std::io::stderr(), "{error:#}").unwrap_or_default();
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default().to_string_lossy().into_owned();
    let text = |argument: OsString| {
        argument.into_string().map_err(|argument| anyhow!("argument {argument:?} is not UTF-8"))
    };
    let args = Args::parse(arguments.map(text).collect::<anyhow::Result<Vec<_>>>()?)?;
    match args.action {
        Action::Serve => daemon::serve(&args),
        Action::Start => {
            let environment = Environment {
                ttrpc_address: std::env::var("TTRPC_ADDRESS").unwrap_or_default(),
                grpc_address: std::env::var("GRPC_ADDRESS").unwrap_or_default(),
            };
            let params = Params::parse(&input()?, &args, environment)?;
            let socket = launch::launch(&args, &params)?;
            print(&bootstrap::reply(params.protocol, &socket)?)
        }
        Action::Delete => print(&cleanup::clean_up(&args)?.write_to_bytes()?),
        Action::Info => print(&info::describe(&program, &input()?)?.write_to_bytes()?),
        Action::Version => {
            let version = env!("CARGO_PKG_VERSION");
            print(format!("{program}:\n  Version:  {version}\n").as_bytes())
        }
    }
}

fn input() -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::stdin().take(INPUT_LIMIT).read_to_end(&mut bytes).context("read standard input")?;
    Ok(bytes)
}

fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut output = std::io::stdout();
    output.write_all(bytes).and_then(|()| output.flush()).context("write standard output")
}
