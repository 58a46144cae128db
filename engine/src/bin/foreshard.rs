//! The command line.

use std::process::ExitCode;

use clap::Parser;
use foreshard::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
