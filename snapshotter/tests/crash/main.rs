//! `make crash`: the real daemon, struck at every system call boundary of the calls that change something.
//!
//! A point is: the daemon at rest, a call prepared and made, SIGKILL at one boundary, another daemon started. Then
//! nothing that was answered is lost, nothing is half there, the same request succeeds, and with what it made removed
//! no file, mount or loop device is left. Points are spread evenly over all boundaries of all calls; with more points
//! than boundaries each is struck several times (threads interleave differently).
//!
//! The same is done with a file call that fails instead of a kill, and the request made again of the same daemon.
//!
//! Usage: `crash [POINTS] [FAILURES]`, 1000 and 300 by default, or `crash power [SHUFFLES]`, 3 by default, see
//! `power.rs`. Root, and no mounts of others: `unshare --mount`.

#![expect(clippy::print_stdout, reason = "a program that reports to people")]
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test: what does not hold has failed")]

mod blocks;
#[path = "../../src/tests/containerd.rs"]
#[allow(dead_code, reason = "the unit tests ask more of it")]
mod containerd;
mod disk;
mod node;
mod operation;
mod power;
#[path = "../../src/proto.rs"]
mod proto;
mod trace;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use tonic::Status;

use crate::node::{Answer, CHAIN, Layer, Node};
use crate::operation::Operation;
use crate::trace::{Blow, Seen, Watch};

/// For an answer of a daemon that is dead to arrive.
const GRACE: Duration = Duration::from_millis(500);
/// How many failures are shown in full.
const SHOWN: u32 = 5;
/// Snapshots that a start is measured with.
const SNAPSHOTS: usize = 1000;

/// What a disk answers that failed, is full, or was made read-only.
const ANSWERS: [(i32, &str); 3] =
    [(libc::EIO, "I/O error"), (libc::ENOSPC, "No space left"), (libc::EROFS, "Read-only")];

/// Three numbers that add up.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    passed: u32,
    failed: u32,
}

impl Counts {
    /// Runs one test; whether it passed.
    pub(crate) fn add(&mut self, name: &str, test: impl FnOnce()) -> bool {
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
            println!("FAIL  {name}");
        }
        passed
    }
}

fn main() -> std::process::ExitCode {
    let number = |at: usize, default: u64| {
        std::env::args().nth(at).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let mut counts = Counts::default();
    if std::env::args().nth(1).as_deref() == Some("power") {
        power::all(usize::try_from(number(2, 3)).unwrap(), &mut counts);
    } else {
        kills(number(1, 1000), &mut counts);
        errors(number(2, 300), &mut counts);
        disk::all(&mut counts);
        counts.add("a start with a thousand snapshots", start_with_many);
    }
    println!("{} passed, {} failed, 0 skipped", counts.passed, counts.failed);
    if counts.failed == 0 { 0.into() } else { 1.into() }
}

/// A node with the image unpacked, at rest, and the directory that holds it.
fn at_rest() -> (tempfile::TempDir, Node) {
    let directory = tempfile::tempdir().unwrap();
    let mut node = Node::new(directory.path());
    node.start();
    node.unpack_chain();
    (directory, node)
}

/// What came of one call that was struck.
#[derive(Debug)]
struct Struck {
    seen: Seen,
    first: Answer<()>,
    /// The same request, of the same daemon if it lived.
    second: Answer<()>,
}

/// Makes the call with the blow. The daemon is dead afterwards: from the blow, or killed once it has answered.
fn strike(node: &mut Node, operation: Operation, blow: Blow, watch: Watch) -> Struck {
    operation.arrange(node);
    let pid = match operation {
        Operation::Start => node.start_stopped(),
        _ => node.pid(),
    };
    trace::attach(pid);
    if operation == Operation::Start {
        kill(pid, Signal::SIGCONT).unwrap();
    }
    let client = node.client();
    let made = node.runtime.spawn(async move {
        let first = operation.call(client.clone()).await;
        let second = match blow {
            Blow::Fail(..) => operation.call(client).await,
            _ => Err(Status::cancelled("not asked")),
        };
        kill(pid, Signal::SIGKILL).ok();
        (first, second)
    });
    let waiting = made.abort_handle();
    let seen = trace::follow(pid, blow, watch, &node.directory);
    // a call to a dead daemon ends; waiting for a start that will not come does not
    let ended = node.runtime.block_on(async { tokio::time::timeout(GRACE, made).await });
    let gone = || Err(Status::unavailable("the daemon is gone"));
    waiting.abort();
    let (first, second) = ended.map_or_else(|_| (gone(), gone()), |made| made.unwrap());
    node.kill();
    Struck { seen, first, second }
}

/// One point from rest to rest.
fn point(node: &mut Node, operation: Operation, blow: Blow, watch: Watch) -> Struck {
    let struck = strike(node, operation, blow, watch);
    node.start();
    operation.judge(node, struck.first.is_ok() || struck.second.is_ok());
    node.expect_rest(CHAIN);
    struck
}

/// Places that are spread evenly over what each operation has; with its number of places.
fn spread(totals: &[u64], wanted: u64) -> Vec<(usize, u64)> {
    let sum: u64 = totals.iter().sum();
    let at = |point: u64| {
        let place = if wanted <= sum { point * sum / wanted } else { point % sum };
        let mut rest = place;
        for (index, total) in totals.iter().enumerate() {
            if rest < *total {
                return (index, rest + 1);
            }
            rest -= total;
        }
        (0, 1)
    };
    (0..wanted).map(at).collect()
}

fn kills(points: u64, counts: &mut Counts) {
    let started = Instant::now();
    let (_directory, mut node) = at_rest();
    let totals = operation::ALL
        .map(|operation| point(&mut node, operation, Blow::None, Watch::Boundaries).seen);
    let totals = totals.map(|seen| seen.boundaries);
    for (operation, total) in operation::ALL.iter().zip(totals) {
        println!("      {operation:?}: {total} boundaries");
    }
    let (mut cut_off, failed) = (0, counts.failed);
    let mut place = (_directory, node);
    for (index, at) in spread(&totals, points) {
        let operation = operation::ALL[index];
        let name = format!("{operation:?} killed at boundary {at} of {}", totals[index]);
        let passed = counts.add(&name, || {
            let struck = point(&mut place.1, operation, Blow::Kill(at), Watch::Boundaries);
            cut_off += u32::from(struck.first.is_err());
        });
        if !passed {
            println!("{}", place.1.last_words());
            place = at_rest();
        }
        if counts.failed - failed == SHOWN {
            break;
        }
    }
    println!(
        "      {points} kills, {cut_off} of them before the answer, in {} s",
        started.elapsed().as_secs()
    );
    counts.add("the image goes as it came", || {
        place.1.remove_chain();
        place.1.expect_rest(0);
    });
}

fn errors(failures: u64, counts: &mut Counts) {
    let started = Instant::now();
    let mut place = at_rest();
    let operations: Vec<Operation> =
        operation::ALL.into_iter().filter(|operation| *operation != Operation::Start).collect();
    let totals: Vec<u64> = operations
        .iter()
        .map(|operation| point(&mut place.1, *operation, Blow::None, Watch::Files).seen.file_calls)
        .collect();
    let (mut refused, failed) = (0, counts.failed);
    for (number, (index, at)) in spread(&totals, failures).into_iter().enumerate() {
        let (errno, text) = ANSWERS[number % ANSWERS.len()];
        let operation = operations[index];
        let name = format!("{operation:?}: file call {at} of {} answers {text:?}", totals[index]);
        let passed = counts.add(&name, || {
            let blow = Blow::Fail(at, errno);
            let struck = point(&mut place.1, operation, blow, Watch::Files);
            refused += u32::from(struck.first.is_err());
            if let Err(status) = struck.first {
                assert!(status.message().contains(text), "no clear error: {status}");
                let done = [tonic::Code::AlreadyExists, tonic::Code::NotFound];
                let again = struck.second;
                let again =
                    again.or_else(|it| if done.contains(&it.code()) { Ok(()) } else { Err(it) });
                assert!(again.is_ok(), "the disk is well again: {again:?}; before: {status}");
            }
        });
        if !passed {
            println!("{}", place.1.last_words());
            place = at_rest();
        }
        if counts.failed - failed == SHOWN {
            break;
        }
    }
    let seconds = started.elapsed().as_secs();
    println!(
        "      {failures} file calls failed, {refused} were told to the client, in {seconds} s"
    );
}

/// How long a start takes with a thousand snapshots, beside one with none: told, not judged by this machine's clock.
fn start_with_many() {
    let directory = tempfile::tempdir().unwrap();
    let mut node = Node::new(directory.path());
    node.start();
    node.unpack_chain();
    node.kill();
    let few = median(&mut node);
    node.start();
    let top = Layer::new(CHAIN - 1).name();
    for number in CHAIN..SNAPSHOTS {
        let key = format!("default/{number}/box");
        node.run(node.client().prepare(key, top.clone())).unwrap();
    }
    node.kill();
    let many = median(&mut node);
    let (many, few) = (many.as_millis(), few.as_millis());
    println!(
        "      start-up to the first answer: {SNAPSHOTS} snapshots {many} ms, {CHAIN} {few} ms"
    );
    node.start();
    assert_eq!(node.run(node.client().names()).unwrap().len(), SNAPSHOTS);
}

fn median(node: &mut Node) -> Duration {
    let mut times: Vec<Duration> = (0..5)
        .map(|_| {
            let took = node.start();
            node.kill();
            took
        })
        .collect();
    times.sort();
    times[2]
}
