//! `hallmark`: seal and verify images, sign IPE policies, show what a node enforces.
//!
//! Results go to standard output, one fact a line; an error is one line on standard error: what was found, what was
//! expected, what to do. Exit codes are in `error.rs`: 0 done, 1 refused, 2 wrong command line, 3 could not be done.

mod certificate;
mod claims;
mod error;
mod image;
mod keygen;
mod packing;
mod place;
mod policy;
mod posture;
mod push;
mod replace;
mod seal;
mod verify;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Seal images, verify them, and show what this node enforces.
///
/// Exit codes: 0 done, and the answer is yes; 1 refused, and why; 2 the command line is wrong; 3 could not be done.
#[derive(Debug, Parser)]
#[command(name = "hallmark", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Keygen(keygen::Arguments),
    #[command(subcommand)]
    Policy(policy::Command),
    Posture(posture::Arguments),
    Push(push::Arguments),
    Seal(seal::Arguments),
    Verify(verify::Arguments),
}

fn main() -> ExitCode {
    let out = &mut io::stdout().lock();
    let done = match Cli::parse().command {
        Command::Keygen(arguments) => keygen::run(&arguments, out),
        Command::Policy(command) => policy::run(&command, out),
        Command::Posture(arguments) => posture::run(&arguments, out),
        Command::Push(arguments) => push::run(&arguments, out),
        Command::Seal(arguments) => seal::run(&arguments, out),
        Command::Verify(arguments) => verify::run(&arguments, out),
    };
    let done = done.and_then(|()| out.flush().map_err(error::Error::Output));
    let Err(error) = done else { return ExitCode::SUCCESS };
    let line = format!("hallmark: {}\n", chain(&error));
    match io::stderr().write_all(line.as_bytes()) {
        Ok(()) => ExitCode::from(error.exit_code()),
        // nobody reads: the exit code still tells
        Err(_) => ExitCode::from(error.exit_code()),
    }
}

/// An error and what led to it, on one line; a source that its error already quotes is not said twice.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line.replace(['\n', '\r'], " ")
}
