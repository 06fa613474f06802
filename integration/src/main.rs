//! Proves Hallmark on real kernels with the real containerd and nerdctl.
//!
//! One program that builds what the proof needs, starts private nodes here and in a guest, and runs
//! one table of tests in both.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports to people")]

mod cache;
mod components;
mod debian;
mod files;
mod images;
mod run;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

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
    let cache = cache::Cache::open()?;
    debian::install(&cache.log("packages"))?;
    match command {
        Command::Components => {
            println!("{:#?}", components::Components::build(&cache)?);
        }
        Command::Images => {
            println!("{:#?}", images::Images::build(&cache)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One line of progress, on standard error.
pub(crate) fn say(line: &str) {
    eprintln!("integration: {line}");
}
