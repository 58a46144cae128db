//! The command line of the benchmarks; see `foreshard_benchmarks::program`.

use std::process::ExitCode;

fn main() -> ExitCode {
    foreshard_benchmarks::program::main(std::env::args_os())
}
