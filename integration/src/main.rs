//! Proves Hallmark on real kernels with the real containerd and nerdctl.
//!
//! One program that builds what the proof needs, starts private nodes here and in a guest, and runs
//! one table of tests in both.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports to people")]

mod bats;
mod bench;
mod cache;
mod cgroups;
mod components;
mod crash;
mod critest;
mod debian;
mod demo;
mod devices;
mod everything;
mod files;
mod guest;
mod images;
mod kit;
mod leaks;
mod node;
mod reboot;
mod registry;
mod run;
mod sandbox;
mod seals;
mod signing;
mod soak;
mod table;
mod tests;
mod trust;
mod uses;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use cache::Cache;
use clap::{Parser, Subcommand};
use components::Components;
use guest::boot::{Guest, Init};
use guest::parts::Parts;
use images::Images;
use kit::Kit;
use node::Stack;
use table::{Bench, Site};

#[derive(Debug, Parser)]
#[command(name = "integration", about = "Builds, demonstrates and tests Hallmark")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install packages and build containerd, nerdctl, CNI plugins and runc
    Components,
    /// Build the test images
    Images,
    /// Show the main job as scenes: on this machine, then in the guest
    Demo,
    /// (inside) the scenes of both sites
    #[command(hide = true)]
    Both { kit: PathBuf },
    /// (inside) the scenes of one site
    #[command(hide = true)]
    Scenes { site: Site, kit: PathBuf },
    /// Every test: the workspace's own, the table on this machine, the table in the guest
    Test,
    /// Run the table of tests on this machine only
    Host {
        /// Only tests whose names contain this, or one of A|B|C
        #[arg(default_value = "")]
        filter: String,
        /// Which snapshotter and runtime; "stock" proves the fixtures themselves
        #[arg(long, value_enum, default_value = "hallmark")]
        stack: Stack,
    },
    /// Boot the guest and run the table of tests there
    Guest {
        /// Only tests whose names contain this, or one of A|B|C
        #[arg(default_value = "")]
        filter: String,
        /// Which snapshotter and runtime; "stock" proves the fixtures themselves
        #[arg(long, value_enum, default_value = "hallmark")]
        stack: Stack,
    },
    /// Measure ours beside the programs that do the same work today, in turn, as ratios
    Bench {
        /// Only subjects whose names contain this, or one of A|B|C
        #[arg(default_value = "")]
        filter: String,
        /// Runs of each side
        #[arg(long, default_value = "5")]
        rounds: usize,
    },
    /// (inside) the table of measurements
    #[command(hide = true)]
    Measure { kit: PathBuf, material: PathBuf, filter: String, rounds: usize },
    /// (inside) one decompression, one stage of packing
    #[command(hide = true)]
    Inflate { blob: PathBuf, compression: String },
    #[command(hide = true)]
    Stage { name: String, tar: PathBuf },
    /// The CRI's own suite, critest, spec by spec beside what runc scores
    Critest {
        /// Only specs that match this regular expression
        #[arg(default_value = "")]
        focus: String,
        /// Where
        #[arg(long, value_enum, default_value = "host")]
        site: Site,
        /// Which snapshotter and runtime; "stock" proves the harness itself
        #[arg(long, value_enum, default_value = "hallmark")]
        stack: Stack,
    },
    /// (inside) critest on one site
    #[command(hide = true)]
    Suite {
        site: Site,
        stack: Stack,
        kit: PathBuf,
        #[arg(default_value = "")]
        focus: String,
    },
    /// Everyday uses of nerdctl, with our stack and with containerd's own: the same, or explained
    Nerdctl {
        /// Only uses whose names contain this, or one of A|B|C
        #[arg(default_value = "")]
        filter: String,
        /// "stock" runs only containerd's own, which proves the uses themselves
        #[arg(long, value_enum, default_value = "hallmark")]
        stack: Stack,
    },
    /// Many containers by several workers, while daemons are restarted and killed
    Soak {
        /// How many containers
        #[arg(long, default_value_t = 2000)]
        count: usize,
        /// What decides the moments; from the clock if none is given
        #[arg(long)]
        seed: Option<u64>,
    },
    /// The soak without the reboot
    SoakHere { count: usize, seed: u64 },
    /// The guest goes down under its containers and comes up again
    Reboot,
    /// (inside) both boots
    #[command(hide = true)]
    Rebooted { kit: PathBuf },
    /// (inside) one of them
    #[command(hide = true)]
    AroundReboot { part: Around, kit: PathBuf },
    /// (inside) the soak
    #[command(hide = true)]
    Soaked { kit: PathBuf, count: usize, seed: u64 },
    /// The snapshotter killed at system call boundaries here, and power cuts in the guest
    Crash {
        /// Kills
        #[arg(default_value_t = 1000)]
        kills: u32,
        /// File calls that fail
        #[arg(default_value_t = 300)]
        failures: u32,
        /// Moments with some of the writes, for each moment with all
        #[arg(default_value_t = 3)]
        shuffles: u32,
    },
    /// (inside) the power cuts alone: host, to boot the guest for them; guest, in it
    #[command(hide = true)]
    Cuts { site: Site, shuffles: String },
    /// Start a node and run a shell script on it
    Node {
        script: String,
        /// Where
        #[arg(long, value_enum, default_value = "host")]
        site: Site,
        /// Which snapshotter and runtime
        #[arg(long, value_enum, default_value = "hallmark")]
        stack: Stack,
    },
    /// (inside) a script on a node
    #[command(hide = true)]
    Script { site: Site, stack: Stack, kit: PathBuf, script: String },
    /// (inside) everyday uses of nerdctl
    #[command(hide = true)]
    Uses {
        site: Site,
        stack: Stack,
        kit: PathBuf,
        #[arg(default_value = "")]
        filter: String,
    },
    /// A part of runc's own suite in the guest, on runc and on ours
    Bats {
        /// Only files whose names contain this
        #[arg(default_value = "")]
        filter: String,
        /// Only with this first process
        #[arg(long)]
        init: Option<Init>,
    },
    /// (inside) the boots for it
    #[command(hide = true)]
    Boots { kit: PathBuf, init: String, filter: String },
    /// (inside) that part of the suite
    #[command(hide = true)]
    Runc {
        init: Init,
        kit: PathBuf,
        #[arg(default_value = "")]
        filter: String,
    },
    /// (inside) first process of the guest, or what it starts
    #[command(hide = true)]
    GuestInit {
        #[arg(long, default_value = "own")]
        init: Init,
    },
    /// (inside) one boot of the guest
    #[command(hide = true)]
    Boot { kit: PathBuf, arguments: Vec<String> },
    /// (inside) join the cgroups of a run
    #[command(hide = true)]
    Enter { dir: PathBuf, arguments: Vec<String> },
    /// (inside) first process of a run
    #[command(hide = true)]
    Init { dir: PathBuf, arguments: Vec<String> },
    /// (inside) the table of tests
    #[command(hide = true)]
    Table {
        site: Site,
        stack: Stack,
        kit: PathBuf,
        #[arg(default_value = "")]
        filter: String,
    },
}

/// Which side of a reboot.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Around {
    Before,
    After,
}

fn main() -> ExitCode {
    match perform(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("integration: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(command: Command) -> Result<ExitCode> {
    match command {
        Command::Components => {
            println!("{:#?}", Components::build(&prepared()?)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Images => {
            println!("{:#?}", Images::build(&prepared()?)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo => with_guest("both"),
        Command::Both { kit } => Ok(demo::both(&kit)?.into()),
        Command::Scenes { site, kit } => Ok(demo::scenes(site, Kit::at(&kit))?.into()),
        Command::Test => everything::run(&prepared()?),
        Command::Host { filter, stack } => on_host(stack, "table", &filter),
        Command::Guest { filter, stack } => in_guest(stack, "table", &filter),
        Command::Bench { filter, rounds } => measure(&filter, rounds),
        Command::Measure { kit, material, filter, rounds } => {
            counted(bench::run(Kit::at(&kit), &material, &filter, rounds)?)
        }
        Command::Inflate { blob, compression } => {
            bench::inflate(&blob, &compression).map(|()| ExitCode::SUCCESS)
        }
        Command::Stage { name, tar } => bench::stage(&name, &tar).map(|()| ExitCode::SUCCESS),
        Command::Nerdctl { filter, stack } => on_host(stack, "uses", &filter),
        Command::Uses { site, stack, kit, filter } => {
            let mut bench = test_bench(site, stack, &kit);
            counted(uses::run(&mut bench, stack, &filter)?)
        }
        Command::Soak { count, seed } => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
            let seed = seed.unwrap_or(now.as_secs()).to_string();
            everything::soak(&prepared()?, &count.to_string(), &seed)
        }
        Command::SoakHere { count, seed } => soak_here(count, seed),
        Command::Reboot => with_guest("rebooted"),
        Command::Rebooted { kit } => reboot_guest(&kit),
        Command::AroundReboot { part, kit } => around_reboot(part, &kit),
        Command::Soaked { kit, count, seed } => {
            let mut bench = test_bench(Site::Host, Stack::Hallmark, &kit);
            let counts = soak::run(&mut bench, count, seed)?;
            bench.stop()?;
            counted(counts)
        }
        Command::Crash { kills, failures, shuffles } => crash::run(kills, failures, shuffles),
        Command::Cuts { site, shuffles } => crash::cuts(site, &shuffles),
        Command::Node { script, site: Site::Host, stack } => on_host(stack, "script", &script),
        Command::Node { script, site: Site::Guest, stack } => in_guest(stack, "script", &script),
        Command::Critest { focus, site, stack } => conformance(site, stack, &focus),
        Command::Suite { site, stack, kit, focus } => suite(site, stack, &kit, &focus),
        Command::Script { site, stack, kit, script } => run_script(site, stack, &kit, &script),
        Command::Bats { init, filter } => runc_suite(init, &filter),
        Command::Boots { kit, init, filter } => boots(&kit, &init, &filter),
        Command::Runc { init, kit, filter } => counted(bats::run(init, &Kit::at(&kit), &filter)?),
        Command::GuestInit { init } => guest::init::run(init).map(|()| ExitCode::SUCCESS),
        Command::Boot { kit, arguments } => boot(&kit, &arguments),
        Command::Enter { dir, arguments } => sandbox::enter(&dir, &arguments),
        Command::Init { dir, arguments } => sandbox::init(&dir, &arguments),
        Command::Table { site, stack, kit, filter } => table(site, stack, &kit, &filter),
    }
}

/// The cache, on a machine that has every package.
fn prepared() -> Result<Cache> {
    let cache = Cache::open()?;
    debian::install(&cache.log("packages"))?;
    Ok(cache)
}

fn assemble(cache: &Cache, stack: Stack) -> Result<Kit> {
    Ok(match stack {
        Stack::Hallmark => {
            kit::build_programs()?;
            Kit::assemble(cache, &kit::PROGRAMS)?
        }
        // fixtures on containerd's own parts: a test that fails so is itself wrong
        Stack::Stock => Kit::assemble(cache, &[])?,
    })
}

fn on_host(stack: Stack, what: &str, argument: &str) -> Result<ExitCode> {
    let cache = prepared()?;
    let kit = assemble(&cache, stack)?;
    supervise(&cache, &kit, Site::Host, &[what, stack.name(), argument])
}

fn in_guest(stack: Stack, what: &str, argument: &str) -> Result<ExitCode> {
    let cache = prepared()?;
    Parts::build(&cache)?;
    let kit = assemble(&cache, stack)?;
    supervise(&cache, &kit, Site::Guest, &[what, stack.name(), argument])
}

fn conformance(site: Site, stack: Stack, focus: &str) -> Result<ExitCode> {
    let cache = prepared()?;
    if site == Site::Guest {
        Parts::build(&cache)?;
    }
    let kit = assemble(&cache, stack)?;
    kit.add_cri(&cache)?;
    supervise(&cache, &kit, site, &["suite", stack.name(), focus])
}

/// `what` in a sandbox that has what a guest needs.
fn with_guest(what: &str) -> Result<ExitCode> {
    let cache = prepared()?;
    Parts::build(&cache)?;
    let kit = assemble(&cache, Stack::Hallmark)?;
    sandbox::supervise(&cache, &[what, &kit.root().to_string_lossy()])
}

fn soak_here(count: usize, seed: u64) -> Result<ExitCode> {
    let cache = prepared()?;
    let kit = assemble(&cache, Stack::Hallmark)?;
    let kit = kit.root().to_string_lossy();
    sandbox::supervise(&cache, &["soaked", &kit, &count.to_string(), &seed.to_string()])
}

fn around_reboot(part: Around, kit: &std::path::Path) -> Result<ExitCode> {
    let mut bench = test_bench(Site::Guest, Stack::Hallmark, kit);
    match part {
        // whose node runs until the end
        Around::Before => reboot::before(&mut bench).map(|()| ExitCode::SUCCESS),
        Around::After => counted(table::run(&[reboot::AFTER], &mut bench, "")?),
    }
}

fn runc_suite(init: Option<Init>, filter: &str) -> Result<ExitCode> {
    let cache = prepared()?;
    Parts::build(&cache)?;
    let kit = assemble(&cache, Stack::Hallmark)?;
    bats::add_to(&kit, &cache)?;
    let (kit, init) = (kit.root().to_string_lossy(), init.map_or("both", Init::name));
    sandbox::supervise(&cache, &["boots", &kit, init, filter])
}

fn boots(kit: &std::path::Path, init: &str, filter: &str) -> Result<ExitCode> {
    let inits = [Init::Own, Init::Systemd];
    let wanted = inits.into_iter().filter(|i| init == "both" || init == i.name());
    let parts = Parts::build(&Cache::open()?)?;
    counted(bats::boot(&parts, &Kit::at(kit), &wanted.collect::<Vec<_>>(), filter)?)
}

/// `what` with its argument on a node of one site, in a sandbox.
fn supervise(cache: &Cache, kit: &Kit, site: Site, work: &[&str; 3]) -> Result<ExitCode> {
    let [what, stack, argument] = *work;
    let kit = kit.root().to_string_lossy();
    match site {
        Site::Host => sandbox::supervise(cache, &[what, "host", stack, &kit, argument]),
        Site::Guest => {
            let inside = guest::init::KIT;
            sandbox::supervise(cache, &["boot", &kit, what, "guest", stack, inside, argument])
        }
    }
}

fn test_bench(site: Site, stack: Stack, kit: &std::path::Path) -> Bench {
    Bench::new(site, Kit::at(kit), std::path::Path::new("/var/log/node"), stack)
}

fn run_script(site: Site, stack: Stack, kit: &std::path::Path, script: &str) -> Result<ExitCode> {
    let mut bench = test_bench(site, stack, kit);
    let node = bench.node()?;
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script]).env("PATH", node.kit.path()).env("KIT", node.kit.root());
    shell.env("CONTAINERD_SNAPSHOTTER", node.snapshotter_name());
    let status = shell.status()?;
    bench.stop()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Boots the guest, and once more over the same disk.
fn reboot_guest(kit: &std::path::Path) -> Result<ExitCode> {
    let parts = Parts::build(&Cache::open()?)?;
    let guest = Guest::new(&parts, &Kit::at(kit), std::path::Path::new("/tmp/guest"))?;
    let print = &mut |line: &str| println!("{line}");
    let first = guest.run(&["around-reboot", "before", guest::init::KIT], print)?;
    if first.code != 0 {
        anyhow::bail!("the guest before the reboot: exit code {}", first.code);
    }
    let second = guest.run_again(&["around-reboot", "after", guest::init::KIT], print)?;
    Ok(ExitCode::from(second.code))
}

fn boot(kit: &std::path::Path, arguments: &[String]) -> Result<ExitCode> {
    let parts = Parts::build(&Cache::open()?)?;
    let guest = Guest::new(&parts, &Kit::at(kit), std::path::Path::new("/tmp/guest"))?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = guest.run(&arguments, &mut |line| println!("{line}"))?;
    say(&format!("the guest ran for {} s", ended.seconds));
    Ok(ExitCode::from(ended.code))
}

fn table(site: Site, stack: Stack, kit: &std::path::Path, filter: &str) -> Result<ExitCode> {
    let mut bench = test_bench(site, stack, kit);
    counted(table::run(&tests::all(site), &mut bench, filter)?)
}

fn measure(filter: &str, rounds: usize) -> Result<ExitCode> {
    anyhow::ensure!(rounds > 0, "--rounds 0: nothing would be measured");
    let cache = prepared()?;
    let material = bench::prepare(&cache)?;
    let kit = assemble(&cache, Stack::Hallmark)?;
    let (kit, material) = (kit.root().to_string_lossy(), material.to_string_lossy());
    sandbox::supervise(&cache, &["measure", &kit, &material, filter, &rounds.to_string()])
}

/// The last line of what counts, and what it means.
fn counted(counts: table::Counts) -> Result<ExitCode> {
    println!("{counts}");
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn suite(site: Site, stack: Stack, kit: &std::path::Path, focus: &str) -> Result<ExitCode> {
    let mut bench = test_bench(site, stack, kit);
    let mut counts = critest::run(&mut bench, focus)?;
    println!("critest: {counts}");
    // other people's runtimes refuse nothing
    let filter = if stack == Stack::Stock { "runp" } else { "" };
    counts.add(table::run(&tests::with_crictl(), &mut bench, filter)?);
    counted(counts)
}

/// One line of progress, on standard error.
pub(crate) fn say(line: &str) {
    eprintln!("integration: {line}");
}
