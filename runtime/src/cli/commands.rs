//! The commands: their options, how many words they take, and what they call.

use std::path::PathBuf;

use super::args::{Flag, Order, Parsed, Takes, usage};
use crate::cgroup::{Cpu, Memory, Pids, Resources};
use crate::error::Result;
use crate::init::Keyring;
use crate::operation::{self, Globals, Presence};
use crate::state::ContainerId;

/// One command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command {
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
    /// What follows the name in a usage line.
    words: &'static str,
    least: usize,
    most: usize,
    pub(super) flags: &'static [Flag],
    pub(super) order: Order,
    /// In front of every error of this command.
    pub(super) prefix: Prefix,
    pub(super) binary: Binary,
    /// What a failure exits with.
    pub(super) failure_status: u8,
    pub(super) run: fn(&Globals, &Parsed) -> Result<Done>,
}

/// Whether the runtime's own binary is protected first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    AsItIs,
    Protected,
}

/// What precedes an error, as with runc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    None,
    /// The program's name, and words.
    Program(&'static str),
    Words(&'static str),
}

/// What a command leaves.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// For stdout.
    pub(super) output: String,
    pub(super) status: u8,
}

impl Command {
    const fn new(
        (name, summary): (&'static str, &'static str),
        (words, least, most): (&'static str, usize, usize),
        flags: &'static [Flag],
        run: fn(&Globals, &Parsed) -> Result<Done>,
    ) -> Self {
        let (order, prefix, failure_status, binary) =
            (Order::Free, Prefix::None, 1, Binary::AsItIs);
        Self {
            name,
            summary,
            words,
            least,
            most,
            flags,
            order,
            prefix,
            binary,
            failure_status,
            run,
        }
    }

    /// For the commands that make a process of the container.
    const fn launching(self, prefix: Prefix, failure_status: u8) -> Self {
        Self { prefix, failure_status, binary: Binary::Protected, ..self }
    }

    const fn strict(self) -> Self {
        Self { order: Order::Strict, ..self }
    }

    /// For a command that is refused whatever it is given.
    const fn unparsed(self) -> Self {
        Self { order: Order::Unparsed, ..self }
    }

    pub(super) fn help(&self, program: &str) -> String {
        format!(
            "NAME:\n   {program} {} - {}\n\nUSAGE:\n   {program} {} [command options] {}\n\nOPTIONS:\n{}",
            self.name,
            self.summary,
            self.name,
            self.words,
            super::options(self.flags)
        )
    }

    pub(super) fn require_words(&self, count: usize) -> Result<()> {
        let (name, least, most) = (self.name, self.least, self.most);
        let expected = match (least, most) {
            (least, most) if (least..=most).contains(&count) => return Ok(()),
            (least, most) if least == most => format!("exactly {least}"),
            (least, _) if count < least => format!("a minimum of {least}"),
            (_, most) => format!("a maximum of {most}"),
        };
        Err(usage(format!("hallmark-runtime: {name:?} requires {expected} argument(s)")))
    }
}

const ID: (&str, usize, usize) = ("<container-id>", 1, 1);

const fn value(name: &'static str, short: &'static str, help: &'static str) -> Flag {
    Flag { name, short, takes: Takes::Value, help }
}

const fn switch(name: &'static str, short: &'static str, help: &'static str) -> Flag {
    Flag { name, short, takes: Takes::Nothing, help }
}

const BUNDLE: Flag = value("bundle", "b", "directory with config.json (default: the current one)");
const CONSOLE: Flag = value("console-socket", "", "socket that gets the other end of the terminal");
const PIDFD: Flag = value("pidfd-socket", "", "socket that gets the process' pidfd");
const KEYRING: Flag =
    switch("no-new-keyring", "", "leave the caller's session keyring to the container");
const NO_PIVOT: Flag =
    switch("no-pivot", "", "accepted and ignored: a root that is not pivoted into can be left");
const PID_FILE: Flag = value("pid-file", "", "write the process' number to this file");
const PRESERVE: Flag =
    value("preserve-fds", "", "how many descriptors from 3 on the program keeps");
const ROOTFS: Flag =
    value("rootfs-mounts", "", "file with the mounts of the root, to be judged and made");
const DETACH: Flag = switch("detach", "d", "do not wait for the program");
const FORMAT: Flag = value("format", "f", "table or json (default: table)");

/// Every command, in alphabetical order.
pub(super) const COMMANDS: &[Command] = &[
    Command::new(
        ("checkpoint", "not supported: an error"),
        ("<container-id>", 0, usize::MAX),
        &[],
        no_checkpoints,
    )
    .unparsed(),
    Command::new(
        ("create", "create a container"),
        ID,
        &[BUNDLE, CONSOLE, PIDFD, PID_FILE, NO_PIVOT, KEYRING, PRESERVE, ROOTFS],
        create,
    )
    .launching(Prefix::Program("create failed"), 1),
    Command::new(
        ("delete", "remove what a container leaves"),
        ID,
        &[switch("force", "f", "kill it first if it runs; none is fine, too")],
        delete,
    ),
    Command::new(
        ("events", "print what a container uses, and when it ran out of memory"),
        ID,
        &[
            value("interval", "", "time between two looks (default: 5s)"),
            switch("stats", "", "look once"),
        ],
        events,
    ),
    Command::new(
        ("exec", "run one more program in a container"),
        ("<container-id> <command> [arguments...]", 1, usize::MAX),
        EXEC,
        exec,
    )
    .launching(Prefix::Words("exec failed"), 255)
    .strict(),
    Command::new(("features", "print what this runtime can do"), ("", 0, 0), &[], features),
    Command::new(
        ("kill", "send a signal (default: SIGTERM) to a container's first process"),
        ("<container-id> [signal]", 1, 2),
        &[switch("all", "a", "a container that does not run is no error")],
        kill,
    ),
    Command::new(
        ("list", "list the containers below --root"),
        ("", 0, 0),
        &[FORMAT, switch("quiet", "q", "ids only")],
        list,
    ),
    Command::new(("pause", "freeze all processes of a container"), ID, &[], pause),
    Command::new(
        ("ps", "list the processes of a container"),
        ("<container-id> [ps options]", 1, usize::MAX),
        &[FORMAT],
        ps,
    )
    .strict(),
    Command::new(
        ("restore", "not supported: an error"),
        ("<container-id>", 0, usize::MAX),
        &[],
        no_checkpoints,
    )
    .unparsed(),
    Command::new(("resume", "thaw all processes of a container"), ID, &[], resume),
    Command::new(
        ("run", "create and start a container, wait for it and delete it"),
        ID,
        &[
            BUNDLE,
            CONSOLE,
            PIDFD,
            PID_FILE,
            NO_PIVOT,
            KEYRING,
            PRESERVE,
            ROOTFS,
            DETACH,
            switch("keep", "", "do not delete it afterwards"),
            switch("no-subreaper", "", "accepted and ignored"),
        ],
        run,
    )
    .launching(Prefix::Program("run failed"), 1),
    Command::new(
        ("spec", "write an example config.json"),
        ("", 0, 0),
        &[BUNDLE, switch("rootless", "", "for a caller without root's rights")],
        spec,
    ),
    Command::new(("start", "let the program of a created container run"), ID, &[], start),
    Command::new(("state", "print what a container is doing"), ID, &[], state),
    Command::new(("update", "change a container's limits"), ID, UPDATE, update),
];

const EXEC: &[Flag] = &[
    CONSOLE,
    PIDFD,
    value("cwd", "", "working directory in the container"),
    value("env", "e", "NAME=value, may be repeated"),
    switch("tty", "t", "allocate a terminal"),
    value("user", "u", "uid[:gid]"),
    value("additional-gids", "g", "one more group, may be repeated"),
    value("process", "p", "file with the process as JSON"),
    DETACH,
    PID_FILE,
    value("process-label", "", "SELinux label of the process"),
    value("apparmor", "", "AppArmor profile of the process"),
    switch("no-new-privs", "", "set no_new_privs"),
    value("cap", "c", "one more capability, may be repeated"),
    PRESERVE,
    value("cgroup", "", "[controllers:]directory below the container's cgroup, may be repeated"),
    switch("ignore-paused", "", "allow it in a paused container"),
];

const UPDATE: &[Flag] = &[
    value("resources", "r", "file with the limits as JSON, - for stdin"),
    value("cpu-burst", "", "microseconds"),
    value("cpu-idle", "", "0 or 1"),
    value("cpu-period", "", "microseconds"),
    value("cpu-quota", "", "microseconds"),
    value("cpu-rt-period", "", "microseconds"),
    value("cpu-rt-runtime", "", "microseconds"),
    value("cpu-share", "", "relative weight"),
    value("cpuset-cpus", "", "list of processors"),
    value("cpuset-mems", "", "list of memory nodes"),
    value("memory", "", "bytes"),
    value("memory-reservation", "", "bytes"),
    value("memory-swap", "", "bytes of memory and swap together"),
    value("pids-limit", "", "how many processes"),
];

fn id(parsed: &Parsed) -> Result<ContainerId> {
    ContainerId::parse(parsed.words.first().map_or("", String::as_str))
}

fn path(parsed: &Parsed, name: &str) -> Option<PathBuf> {
    parsed.value(name).map(PathBuf::from)
}

fn launch_options(parsed: &Parsed) -> Result<operation::create::Options> {
    Ok(operation::create::Options {
        id: id(parsed)?,
        bundle: path(parsed, "bundle").unwrap_or_else(|| PathBuf::from(".")),
        console_socket: path(parsed, "console-socket"),
        pidfd_socket: path(parsed, "pidfd-socket"),
        pid_file: path(parsed, "pid-file"),
        keyring: if parsed.is_on("no-new-keyring") { Keyring::Inherited } else { Keyring::New },
        preserved: parsed.number("preserve-fds")?.unwrap_or(0),
        rootfs_mounts: path(parsed, "rootfs-mounts"),
    })
}

fn presence(parsed: &Parsed) -> Presence {
    if parsed.is_on("detach") { Presence::Detached } else { Presence::Foreground }
}

/// What is in a memory image was never judged.
fn no_checkpoints(_: &Globals, _: &Parsed) -> Result<Done> {
    Err(usage("checkpoint and restore are not supported: no gate judges a memory image"))
}

fn create(globals: &Globals, parsed: &Parsed) -> Result<Done> {
    operation::create::create(globals, launch_options(parsed)?)?;
    Ok(Done::default())
}

fn run(globals: &Globals, parsed: &Parsed) -> Result<Done> {
    use operation::run::Afterwards;
    let after = if parsed.is_on("keep") { Afterwards::Keep } else { Afterwards::Delete };
    let status = operation::run::run(globals, launch_options(parsed)?, presence(parsed), after)?;
    Ok(Done { status, ..Done::default() })
}

fn start(globals: &Globals, parsed: &Parsed) -> Result<Done> {
    operation::start::start(globals, &id(parsed)?)?;
    Ok(Done::default())
}

fn state(globals: &Globals, parsed: &Parsed) -> Result<Done> {
    let output = operation::state::state(globals, &id(parsed)?)?;
    Ok(Done { output, status: 0 })
}

fn kill(globals: &Globals, parsed: &Parsed) -> Result<Done> {
    use operation::kill::Gone;
    let gone = if parsed.is_on("all") { Gone::Fine } else { Gone::Error };
    let signal = parsed.words.get(1).map_or("SIGTERM", String::as_str);
    operation::kill::kill(globals, &id(parsed)?, signal, gone)?;
    Ok(Done::default())
}

fn delete(globals: &Globals, parsed: &Parsed) -> Result<Done> {
    use operation::delete::Force;
    let force = if parsed.is_on("force") { Force::Yes } else { Force::No };
    operation::delete::delete(globals, &id(parsed)?, force)?;
    Ok(Done::default())
}

fn events(globals: &Globals, parsed: &Parsed) -> Result<Done> {
    use operation::events::{Until, parse_duration};
    let interval = parse_duration(parsed.value("interval").unwrap_or("5s"))?;
    let until = if parsed.is_on("stats") { Until::Once } else { Until::End(interval) };
    operation::events::events(globals, &id(parsed)?, until)?;
    Ok(Done::default())
}

fn exec(globals: &Globals, parsed: &Parsed) -> Result<Done> {
    use operation::exec::{Changes, Options, Paused, Source};
    let process = match path(parsed, "process") {
        Some(file) => Source::File(file),
        None => Source::Container(Box::new(Changes {
            args: parsed.words.iter().skip(1).cloned().collect(),
            env: parsed.values("env"),
            cwd: parsed.value("cwd").map(str::to_owned),
            terminal: parsed.is_on("tty"),
            user: parsed.value("user").map(user).transpose()?,
            additional_gids: gids(&parsed.values("additional-gids"))?,
            label: parsed.value("process-label").map(str::to_owned),
            apparmor: parsed.value("apparmor").map(str::to_owned),
            no_new_privileges: parsed.switch("no-new-privs"),
            capabilities: parsed.values("cap"),
        })),
    };
    let status = operation::exec::exec(
        globals,
        Options {
            id: id(parsed)?,
            presence: presence(parsed),
            process,
            console_socket: path(parsed, "console-socket"),
            pidfd_socket: path(parsed, "pidfd-socket"),
            pid_file: path(parsed, "pid-file"),
            preserved: parsed.number("preserve-fds")?.unwrap_or(0),
            cgroups: parsed.values("cgroup"),
            paused: if parsed.is_on("ignore-paused") { Paused::Wanted } else { Paused::Refused },
        },
    )?;
    Ok(Done { status, ..Done::default() })
}

/// Numbers only: names are the image's to define, and looking them up there is a way to be fooled.
fn user(text: &str) -> Result<(u32, Option<u32>)> {
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    let number = |text: &str, what: &str| {
        text.parse::<u32>()
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| usage(format!("bad {what}: {text:?} is no number of a user or group")))
    };
    Ok((number(uid, "uid")?, gid.map(|gid| number(gid, "gid")).transpose()?))
}

fn gids(texts: &[String]) -> Result<Vec<u32>> {
    texts.iter().map(|text| user(text).map(|(gid, _)| gid)).collect()
}

fn features(_: &Globals, _: &Parsed) -> Result<Done> {
    Ok(Done { output: operation::features::features(), status: 0 })
}

fn list(globals: &Globals, parsed: &Parsed) -> Result<Done> {
    use operation::list::Format;
    let format = match (parsed.is_on("quiet"), parsed.value("format")) {
        (true, _) => Format::Ids,
        (false, None | Some("table")) => Format::Table,
        (false, Some("json")) => Format::Json,
        (false, Some(_)) => return Err(usage("invalid format option")),
    };
    Ok(Done { output: operation::list::list(globals, format)?, status: 0 })
}

fn ps(globals: &Globals, parsed: &Parsed) -> Result<Done> {
    use operation::ps::Format;
    let format = match parsed.value("format") {
        None | Some("table") => Format::Table,
        Some("json") => Format::Json,
        Some(_) => return Err(usage("invalid format option")),
    };
    let args: Vec<String> = parsed.words.iter().skip(1).cloned().collect();
    Ok(Done { output: operation::ps::ps(globals, &id(parsed)?, format, &args)?, status: 0 })
}

fn pause(globals: &Globals, parsed: &Parsed) -> Result<Done> {
    operation::pause::pause(globals, &id(parsed)?)?;
    Ok(Done::default())
}

fn resume(globals: &Globals, parsed: &Parsed) -> Result<Done> {
    operation::pause::resume(globals, &id(parsed)?)?;
    Ok(Done::default())
}

fn spec(_: &Globals, parsed: &Parsed) -> Result<Done> {
    use operation::spec::Owner;
    let owner = if parsed.is_on("rootless") { Owner::Rootless } else { Owner::Root };
    let bundle = path(parsed, "bundle").unwrap_or_else(|| PathBuf::from("."));
    operation::spec::spec(&bundle, owner)?;
    Ok(Done::default())
}

fn update(globals: &Globals, parsed: &Parsed) -> Result<Done> {
    use operation::update::Source;
    let source = match parsed.value("resources") {
        Some("-") => Source::Stdin,
        Some(file) => Source::File(file.into()),
        None => Source::Options(Box::new(resources(parsed)?)),
    };
    operation::update::update(globals, &id(parsed)?, source)?;
    Ok(Done::default())
}

fn resources(parsed: &Parsed) -> Result<Resources> {
    let text = |name: &str| parsed.value(name).map(str::to_owned);
    let memory = Memory {
        limit: size(parsed, "memory")?,
        reservation: size(parsed, "memory-reservation")?,
        swap: size(parsed, "memory-swap")?,
        ..Memory::default()
    };
    let cpu = Cpu {
        shares: parsed.number("cpu-share")?,
        quota: parsed.number("cpu-quota")?,
        burst: parsed.number("cpu-burst")?,
        period: parsed.number("cpu-period")?,
        realtime_runtime: parsed.number("cpu-rt-runtime")?,
        realtime_period: parsed.number("cpu-rt-period")?,
        cpus: text("cpuset-cpus"),
        mems: text("cpuset-mems"),
        idle: parsed.number("cpu-idle")?,
    };
    let pids = parsed.number("pids-limit")?.map(|limit| Pids { limit: Some(limit) });
    Ok(Resources { memory: Some(memory), cpu: Some(cpu), pids, ..Resources::default() })
}

/// Bytes as Docker writes them: `1073741824`, `50M`, `1.5GiB`; -1 is no limit.
fn size(parsed: &Parsed, name: &str) -> Result<Option<i64>> {
    let Some(text) = parsed.value(name) else { return Ok(None) };
    match bytes(text) {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(usage(format!("invalid value for {name}: invalid size: {text:?}"))),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the bound is looked at first")]
fn bytes(text: &str) -> Option<i64> {
    if let Ok(number) = text.parse() {
        return (number >= -1).then_some(number);
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(end);
    let unit = unit.trim_start().to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    let power = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == unit)?;
    let scaled = number.parse::<f64>().ok()? * 1024_f64.powi(i32::try_from(power).ok()?);
    (scaled < 9e18).then_some(scaled as i64)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("67108864", Some(64 << 20)),
            ("50M", Some(50 << 20)),
            ("1.5GiB", Some(3 << 29)),
            ("2kb", Some(2048)),
            ("7 b", Some(7)),
            ("-2", None),
            ("M", None),
            ("1x", None),
            ("9999999P", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }
}
