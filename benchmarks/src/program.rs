//! Names the benchmarks, runs one, and tells by the exit code what came of it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use clap::{Parser, Subcommand};
use foreshard_actors::ports::{SharedClock, SystemClock};
use futures::future::LocalBoxFuture;

use crate::machine::Machine;
use crate::report::{Figure, Report, Row};
use crate::{
    admission, adversarial, dashboard, demo_day, drill_down, exact, feedback, forecast,
    forecast_cost, moves, next_calls, overhead, plan_cost, predicates, replay, replay_simulated,
    replicate, reuse, simulate, slt, stories,
};

/// Exit code if a bound was missed.
pub const EXIT_MISSED: u8 = 1;
/// Exit code if the command line is wrong.
pub const EXIT_USAGE: u8 = 2;
/// Exit code if a benchmark could not be run to its end.
pub const EXIT_FAILED: u8 = 3;

/// Benchmarks that play files.
const PLAYERS: [&str; 8] =
    ["admission", "feedback", "forecast", "next-calls", "replay", SIMULATED, "safe", "simulate"];

/// The benchmark that simulates another one.
const SIMULATED: &str = "replay-simulated";

/// Stack of the threads that plan queries; debug builds need more than the system's default.
const STACK_BYTES: usize = 32 << 20;

/// What a benchmark is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seed of everything random.
    pub seed: u64,
    /// Run on little data, to see that it works.
    pub quick: bool,
    /// Files to play instead of a load that is made up.
    pub traces: Vec<PathBuf>,
    /// What a simulation is held against, and what it plays, if that is no trace.
    pub simulation: Simulation,
    /// Queries to put, where a benchmark puts as many as it is told; its own number if there is none.
    pub queries: Option<u64>,
    /// The time.
    pub clock: SharedClock,
}

/// What only a simulation is told.
#[derive(Clone, Debug, Default)]
pub struct Simulation {
    /// A report of what it simulates, as it was printed or as JSON.
    pub real: Option<PathBuf>,
    /// An exported history to play.
    pub history: Option<PathBuf>,
}

/// What a benchmark found.
pub type Found = (Vec<Row>, Vec<Figure>);

/// One benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Benchmark {
    /// Name on the command line.
    pub name: &'static str,
    /// What it compares, in one line.
    pub summary: &'static str,
    /// Runs it.
    pub run: fn(Options) -> LocalBoxFuture<'static, Result<Found>>,
}

/// All benchmarks.
pub const BENCHMARKS: [Benchmark; 22] = [
    Benchmark {
        name: "overhead",
        summary: "TPC-H and ClickBench, which call no function, with nothing stored",
        run: |options| Box::pin(overhead::run(options)),
    },
    Benchmark {
        name: "reuse",
        summary: "six functions over the same rows twice, and once more after an append",
        run: |options| Box::pin(reuse::run(options)),
    },
    Benchmark {
        name: "drill-down",
        summary: "an analyst's session of 30 questions about overlapping rows",
        run: |options| Box::pin(drill_down::run(options)),
    },
    Benchmark {
        name: "dashboard",
        summary: "twelve aggregate queries again and again while rows are appended",
        run: |options| Box::pin(dashboard::run(options)),
    },
    Benchmark {
        name: "predicates",
        summary: "two to five function predicates against every fixed order of them",
        run: |options| Box::pin(predicates::run(options)),
    },
    Benchmark {
        name: "adversarial",
        summary: "four loads for which nothing that is stored is worth its place",
        run: |options| Box::pin(adversarial::run(options)),
    },
    Benchmark {
        name: "admission",
        summary: "rules for what is kept where not everything fits, on traces of keys",
        run: |options| Box::pin(admission::run(options)),
    },
    Benchmark {
        name: "demo-day",
        summary: "a day played twice: off, reactive, forecast and inverted forecast",
        run: |options| Box::pin(demo_day::run(options)),
    },
    Benchmark {
        name: "replay",
        summary: "a trace compressed in time: forecast, inverted, oracle and simpler ways to be ready",
        run: |options| Box::pin(replay::run(options)),
    },
    Benchmark {
        name: SIMULATED,
        summary: "the replay in virtual time, held against a report of the real one, or another history",
        run: |options| Box::pin(replay_simulated::run(options)),
    },
    Benchmark {
        name: "safe",
        summary: "forecasts that are wrong, beside an engine that does nothing ahead",
        run: |options| Box::pin(replay::safe::run(options)),
    },
    Benchmark {
        name: "moves",
        summary: "10,000 copies, moves, drops, merges, splits and computations ahead while queries run",
        run: |options| Box::pin(moves::run(options)),
    },
    Benchmark {
        name: "next-calls",
        summary: "which keys are called next, on traces of single calls",
        run: |options| Box::pin(next_calls::run(options)),
    },
    Benchmark {
        name: "forecast",
        summary: "the mix of forecasts against each of its members, on traces of load",
        run: |options| Box::pin(forecast::run(options)),
    },
    Benchmark {
        name: "forecast-cost",
        summary: "time and memory of forecasts, and what queries notice of them",
        run: |options| Box::pin(forecast_cost::run(options)),
    },
    Benchmark {
        name: "simulate",
        summary: "the number of nodes, by us and by other rules, on traces of load in virtual time",
        run: |options| Box::pin(simulate::run(options)),
    },
    Benchmark {
        name: "plan-cost",
        summary: "a plan for 1,000 nodes, 100,000 partitions and a million forecasts",
        run: |options| Box::pin(plan_cost::run(options)),
    },
    Benchmark {
        name: "replicate",
        summary: "how evenly copies and moves load nodes while popularity drifts, in virtual time",
        run: |options| Box::pin(replicate::run(options)),
    },
    Benchmark {
        name: "feedback",
        summary: "what steps spare against what was predicted of them, day by day in virtual time",
        run: |options| Box::pin(feedback::run(options)),
    },
    Benchmark {
        name: "stories",
        summary: "days in the life: dashboards, an analyst, appends, a crowd, pay per node, joins, losses",
        run: |options| Box::pin(stories::run(options)),
    },
    Benchmark {
        name: "slt",
        summary: "DataFusion's own SQL logic tests, on plain DataFusion and on us, twice",
        run: |options| Box::pin(slt::run(options)),
    },
    Benchmark {
        name: "exact",
        summary: "50,000 random queries while rows, functions and settings change",
        run: |options| Box::pin(exact::run(options)),
    },
];

#[derive(Debug, Parser)]
#[command(name = "foreshard-benchmarks", about = "Comparisons of Foreshard, each with bounds")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Name the benchmarks.
    List,
    /// Run one benchmark. Exit code 1 if a bound was missed.
    Run {
        /// Name of the benchmark.
        #[arg(value_parser = benchmark)]
        name: Benchmark,
        /// Seed of everything random.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Run on little data: to see that it works; the bounds are not meant for it.
        #[arg(long)]
        quick: bool,
        /// Play this file; may be given several times. Only some benchmarks play files.
        #[arg(long = "trace", value_name = "FILE")]
        traces: Vec<PathBuf>,
        /// Put so many queries instead of the benchmark's own number; only `exact` puts random ones.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        queries: Option<u64>,
        /// Hold the simulation against this report of the real benchmark; only `replay-simulated` is one.
        #[arg(long, value_name = "FILE")]
        real: Option<PathBuf>,
        /// Simulate this history, which `CALL export_history` wrote; only `replay-simulated` does.
        #[arg(long, value_name = "FILE", conflicts_with = "real")]
        history: Option<PathBuf>,
        /// Write the report as JSON to this file, or to standard output if it is `-`.
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
}

fn benchmark(name: &str) -> Result<Benchmark, String> {
    let known = || BENCHMARKS.iter().map(|benchmark| benchmark.name);
    if let Some(found) = BENCHMARKS.iter().find(|benchmark| benchmark.name == name) {
        return Ok(*found);
    }
    Err(match foreshard::error::nearest(name, known()) {
        Some(nearest) => format!("there is no such benchmark; did you mean {nearest}?"),
        None => {
            format!("there is no such benchmark; there are {}", Vec::from_iter(known()).join(", "))
        }
    })
}

/// Does what the command line `arguments` (the program's name first) ask for.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            // A closed output is no reason to fail differently.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    match cli.command {
        Command::List => {
            for Benchmark { name, summary, .. } in BENCHMARKS {
                println!("{name:<16} {summary}");
            }
            ExitCode::SUCCESS
        }
        Command::Run { name, traces, .. }
            if !traces.is_empty() && !PLAYERS.contains(&name.name) =>
        {
            let players = PLAYERS.join(", ");
            eprintln!("error: {} plays no files; --trace is for {players}", name.name);
            ExitCode::from(EXIT_USAGE)
        }
        Command::Run { name, real, history, .. }
            if (real.is_some() || history.is_some()) && name.name != SIMULATED =>
        {
            eprintln!(
                "error: {} simulates nothing; --real and --history are for {SIMULATED}",
                name.name
            );
            ExitCode::from(EXIT_USAGE)
        }
        Command::Run { name, seed, quick, traces, queries, real, history, json } => {
            let (clock, simulation) = (Arc::new(SystemClock), Simulation { real, history });
            let options = Options { seed, quick, traces, simulation, queries, clock };
            match run(name, options, json.as_deref()) {
                Ok(report) => ExitCode::from(exit_code(&report)),
                Err(error) => {
                    eprintln!("error: {error:#}");
                    ExitCode::from(EXIT_FAILED)
                }
            }
        }
    }
}

/// The exit code that says what a report comes down to.
#[must_use]
pub fn exit_code(report: &Report) -> u8 {
    if report.holds() { 0 } else { EXIT_MISSED }
}

fn run(benchmark: Benchmark, options: Options, json: Option<&std::path::Path>) -> Result<Report> {
    let machine = Machine::this();
    let (seed, quick) = (options.seed, options.quick);
    // A thread of its own: the main thread's stack is the system's, and too small for deep plans.
    let work = std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || blocking(benchmark, options))
        .context("cannot start a thread")?;
    let found = work.join().map_err(|_panic| anyhow!("the benchmark broke off"))?;
    let (rows, figures) = found?;
    let report = Report { name: benchmark.name.to_owned(), seed, quick, machine, rows, figures };
    match json {
        Some(path) if path.as_os_str() == "-" => {
            println!("{}", serde_json::to_string_pretty(&report)?);
        }
        Some(path) => {
            print!("{report}");
            std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => print!("{report}"),
    }
    Ok(report)
}

fn blocking(benchmark: Benchmark, options: Options) -> Result<Found> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        .build()
        .context("cannot start threads")?
        .block_on((benchmark.run)(options))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Bound;

    fn parsed(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(
            std::iter::once("foreshard-benchmarks").chain(arguments.iter().copied()),
        )
    }

    fn report(figures: Vec<Figure>) -> Report {
        let machine = Machine::this();
        Report { name: "x".into(), seed: 1, quick: true, machine, rows: vec![], figures }
    }

    #[test]
    fn a_mistyped_name_is_answered_with_the_nearest() {
        let error = parsed(&["run", "overhaed"]).unwrap_err();
        assert!(error.to_string().contains("did you mean overhead?"), "{error}");
        let error = parsed(&["run", "zzzzzzzzzzzzzzzz"]).unwrap_err();
        assert!(error.to_string().contains("adversarial, admission, demo-day"), "{error}");
    }

    #[test]
    fn seed_quick_queries_and_json_are_understood() {
        let cli =
            parsed(&["run", "demo-day", "--seed", "9", "--quick", "--json", "a.json"]).unwrap();
        let Command::Run { name, seed, quick, queries: None, json, .. } = cli.command else {
            panic!("not run")
        };
        assert_eq!((name.name, seed, quick, json), ("demo-day", 9, true, Some("a.json".into())));
        let cli = parsed(&["run", "exact", "--queries", "250"]).unwrap();
        let Command::Run { queries, .. } = cli.command else { panic!("not run") };
        assert_eq!(queries, Some(250));
        assert!(parsed(&["run", "exact", "--queries", "0"]).is_err());
        let Command::Run { json, .. } = parsed(&["run", "demo-day", "--json"]).unwrap().command
        else {
            panic!("not run")
        };
        assert_eq!(json, Some("-".into()));
    }

    #[test]
    fn the_exit_code_tells_a_missed_bound_from_a_wrong_command_line() {
        let kept = Figure::bounded("a", 1.0, "ratio", Bound::AtMost(1.0));
        let missed = Figure::bounded("b", 1.1, "ratio", Bound::AtMost(1.0));
        assert_eq!(exit_code(&report(vec![kept.clone()])), 0);
        assert_eq!(exit_code(&report(vec![kept, missed])), EXIT_MISSED);
        let code = |arguments: &[&str]| main(arguments.iter().map(OsString::from));
        assert_eq!(code(&["foreshard-benchmarks", "run", "nothing"]), ExitCode::from(EXIT_USAGE));
        assert_eq!(
            code(&["foreshard-benchmarks", "run", "overhead", "--sed"]),
            ExitCode::from(EXIT_USAGE)
        );
        assert_eq!(
            code(&["foreshard-benchmarks", "run", "overhead", "--trace", "a.csv"]),
            ExitCode::from(EXIT_USAGE)
        );
        assert_eq!(
            code(&["foreshard-benchmarks", "run", "replay", "--history", "a.parquet"]),
            ExitCode::from(EXIT_USAGE)
        );
        assert_eq!(code(&["foreshard-benchmarks", "list"]), ExitCode::SUCCESS);
    }
}
