//! The command line: runc's, so that whatever drives runc drives this.
//!
//! Hand-written, because it is parsed at every step of every container: a table of options for each command, and one
//! function that reads them.

mod args;
mod commands;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use args::{Flag, Order, Parsed, Takes, parse, usage};
use commands::{Binary, COMMANDS, Command, Prefix};

use crate::cgroup::Driver;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::log::{Format, Level, Log};
use crate::operation::{Globals, RootIs};
use crate::spec::OCI_VERSION;
use crate::state::RootDirectory;

/// Where state lives unless `--root` says otherwise.
const DEFAULT_ROOT: &str = "/run/hallmark-runtime";

/// What the program is called unless its caller says otherwise.
const PROGRAM: &str = "hallmark-runtime";

const GLOBAL: [Flag; 8] = [
    Flag { name: "debug", short: "", takes: Takes::Nothing, help: "write steps to the log, too" },
    Flag {
        name: "log",
        short: "",
        takes: Takes::Value,
        help: "append the log to this file (default: stderr)",
    },
    Flag {
        name: "log-format",
        short: "",
        takes: Takes::Value,
        help: "text or json (default: text)",
    },
    Flag {
        name: "root",
        short: "",
        takes: Takes::Value,
        help: "directory for state (default: /run/hallmark-runtime)",
    },
    Flag {
        name: "systemd-cgroup",
        short: "",
        takes: Takes::Nothing,
        help: "have systemd make the cgroups",
    },
    Flag {
        name: "rootless",
        short: "",
        takes: Takes::Value,
        help: "true, false or auto; accepted and ignored",
    },
    Flag { name: "help", short: "h", takes: Takes::Nothing, help: "show help" },
    Flag { name: "version", short: "v", takes: Takes::Nothing, help: "print the version" },
];

/// Runs one command line, the program's own name included, and returns the exit status.
pub fn run(args: impl Iterator<Item = OsString>) -> u8 {
    let mut log = Log::default();
    match dispatch(args, &mut log) {
        Ok(status) => status,
        Err(failed) => {
            let message = failed.error.to_string();
            match failed.error.kind() {
                // stderr is the program's, and its reader may know nothing of us
                ErrorKind::Program => log.plain_error(&message),
                _ => log.error(&message),
            }
            failed.status
        }
    }
}

/// An error and what to exit with.
struct Failed {
    error: Error,
    status: u8,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, status: 1 }
    }
}

fn dispatch(
    args: impl Iterator<Item = OsString>,
    log: &mut Log,
) -> std::result::Result<u8, Failed> {
    let mut args = args;
    let program = args.next().map(PathBuf::from).unwrap_or_default();
    // as it was called: whoever installs us as runc looks for that name
    let program = program.file_name().and_then(|name| name.to_str()).unwrap_or(PROGRAM);
    let args = texts(args)?;
    let global = parse(&args, &GLOBAL, Order::Strict)?;
    if global.is_on("version") {
        print(&version(program))?;
        return Ok(0);
    }
    let Some((name, rest)) = global.words.split_first() else {
        print(&help(program))?;
        return Ok(0);
    };
    if name == "help" || name == "h" || global.is_on("help") {
        print(&help(program))?;
        return Ok(0);
    }
    let (opened, globals) = globals(&global)?;
    *log = opened;
    let command = COMMANDS.iter().find(|command| command.name == name);
    let command = command.ok_or_else(|| usage(format!("No help topic for '{name}'")))?;
    // later words may be another program's
    let ours = if command.order == Order::Strict { 1 } else { rest.len() };
    if rest.iter().take(ours).any(|word| matches!(word.as_str(), "--help" | "-h" | "-help")) {
        print(&command.help(program))?;
        return Ok(0);
    }
    let parsed = parse(rest, command.flags, command.order)?;
    command.require_words(parsed.words.len())?;
    let outcome = protected(command, &globals).and_then(|()| (command.run)(&globals, &parsed));
    match outcome {
        Ok(done) => {
            print(&done.output)?;
            Ok(done.status)
        }
        Err(error) => Err(fail(command, program, error)),
    }
}

/// Commands from which a process of the container comes must not show it a binary that can be written to.
fn protected(command: &Command, globals: &Globals) -> Result<()> {
    if command.binary == Binary::Protected {
        RootDirectory::open_or_make(&globals.root)?;
        crate::exe::protect(&globals.root, &globals.log)?;
        // executed through a descriptor, it would be called by its number
        rustix::thread::set_name(c"hallmark-rt").context(|| "prctl(PR_SET_NAME)")?;
    }
    Ok(())
}

/// A refusal is the whole message; anything else says which command failed, where runc does.
fn fail(command: &Command, program: &str, error: Error) -> Failed {
    let status = command.failure_status;
    match (error.kind(), command.prefix) {
        (ErrorKind::Program | ErrorKind::Refused, _) | (_, Prefix::None) => {
            Failed { error, status }
        }
        (_, Prefix::Program(what)) => {
            Failed { error: error.within(format!("{program} {what}")), status }
        }
        (_, Prefix::Words(what)) => Failed { error: error.within(what), status },
    }
}

fn texts(args: impl Iterator<Item = OsString>) -> Result<Vec<String>> {
    args.map(|arg| arg.into_string().map_err(|arg| usage(format!("argument {arg:?} is not UTF-8"))))
        .collect()
}

fn globals(parsed: &Parsed) -> Result<(Log, Globals)> {
    let format = match parsed.value("log-format") {
        None | Some("text") => Format::Text,
        Some("json") => Format::Json,
        Some(other) => return Err(usage(format!("invalid log-format: {other}"))),
    };
    let least = if parsed.is_on("debug") { Level::Debug } else { Level::Warning };
    let file = parsed.value("log").map(Path::new);
    let root = absolute_root(parsed.value("root").unwrap_or(DEFAULT_ROOT))?;
    let root_is = if parsed.value("root").is_some() { RootIs::AskedFor } else { RootIs::Default };
    let driver = if parsed.is_on("systemd-cgroup") { Driver::Systemd } else { Driver::Cgroupfs };
    let log = Log::open(file, format, least)?;
    // one for the operation, one for its failure
    Ok((Log::open(file, format, least)?, Globals { root, root_is, driver, log }))
}

fn absolute_root(root: &str) -> Result<PathBuf> {
    let path = std::path::absolute(root).context(|| format!("--root {root}"))?;
    let cleaned = path.to_str().map(crate::spec::clean);
    match cleaned.as_deref() {
        Some("/") | None => Err(usage("Option --root argument should not be set to /")),
        Some(cleaned) => Ok(cleaned.into()),
    }
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context(|| "stdout")
}

/// Three lines as go-runc parses them.
fn version(program: &str) -> String {
    let commit = option_env!("HALLMARK_COMMIT").unwrap_or("unknown");
    format!(
        "{program} version {}\ncommit: {commit}\nspec: {OCI_VERSION}\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn help(program: &str) -> String {
    let mut text = format!(
        "NAME:\n   {program} - Open Container Initiative runtime for signed images\n\n\
         USAGE:\n   {program} [global options] command [command options] [arguments...]\n\nCOMMANDS:\n",
    );
    for command in COMMANDS {
        text.push_str(&format!("   {:12} {}\n", command.name, command.summary));
    }
    text.push_str("\nGLOBAL OPTIONS:\n");
    text.push_str(&options(&GLOBAL));
    text
}

fn options(flags: &[Flag]) -> String {
    flags
        .iter()
        .map(|flag| {
            let short =
                if flag.short.is_empty() { String::new() } else { format!(", -{}", flag.short) };
            let value = if flag.takes == Takes::Value { " value" } else { "" };
            let names = format!("--{}{short}{value}", flag.name);
            format!("   {names:28} {}\n", flag.help)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(words: &str) -> u8 {
        run(words.split(' ').map(OsString::from))
    }

    #[test]
    fn wrong_command_lines_exit_1() {
        for words in [
            "x nope",
            "x --nope",
            "x state",
            "x state a b",
            "x --root / list",
            "x --log-format xml list",
        ] {
            assert_eq!(status(words), 1, "{words}");
        }
    }

    #[test]
    fn help_is_there_for_every_command() {
        for command in COMMANDS {
            for word in ["-h", "--help"] {
                assert_eq!(status(&format!("x {} {word}", command.name)), 0, "{}", command.name);
            }
        }
    }

    #[test]
    fn the_version_is_three_lines() {
        let version = version(PROGRAM);
        let lines: Vec<&str> = version.lines().collect();
        assert!(lines[0].starts_with("hallmark-runtime version "));
        assert!(lines[1].starts_with("commit: ") && lines[2] == "spec: 1.3.0");
    }

    #[test]
    fn every_command_has_help_with_all_its_options() {
        for command in COMMANDS {
            let help = command.help(PROGRAM);
            assert!(help.contains(&format!("{PROGRAM} {}", command.name)), "{help}");
            for flag in command.flags {
                assert!(help.contains(flag.name), "{} {}", command.name, flag.name);
            }
        }
    }
}
