//! `hallmark-runtime`: see the library for everything.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(hallmark_runtime::cli::run(std::env::args_os()))
}
