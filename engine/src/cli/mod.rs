//! The command line: `sql`, `serve`, `node`, `forecast show`, `demo` and `config show`.

mod configuration;
mod forecast;
mod output;
mod progress;
mod prompt;
mod servers;
mod split;
mod sql;

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError, Loaded};
use crate::demo::DemoArgs;
use crate::error::EngineError;
use crate::telemetry::Telemetry;

/// Stack of the threads that plan and run queries, in bytes: plans are deep.
const STACK_BYTES: usize = 8 << 20;

/// A SQL engine that forecasts function calls and gets ready before they come.
#[derive(Debug, Parser)]
#[command(name = "foreshard", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run SQL: one text, a file, or a prompt.
    Sql(sql::SqlArgs),
    /// Serve SQL over HTTP and Arrow Flight SQL.
    Serve(servers::ServeArgs),
    /// Join a running server as one more node.
    Node(servers::NodeArgs),
    /// Look at what is expected.
    Forecast {
        #[command(subcommand)]
        command: forecast::ForecastCommand,
    },
    /// See the engine learn a load and get ready for it, in two minutes.
    Demo(DemoArgs),
    /// Look at the settings.
    Config {
        #[command(subcommand)]
        command: configuration::ConfigCommand,
    },
}

/// Where settings come from; the same for all commands.
#[derive(Clone, Debug, Default, Args)]
struct Settings {
    /// Settings file; `foreshard.toml` in the working folder if it is there.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, for example `limits.query-seconds=60`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    /// The settings, with `flags` winning over `--set`.
    fn load(&self, flags: &[(&str, Option<String>)]) -> Result<Loaded, EngineError> {
        let mut overrides = Vec::new();
        for text in &self.set {
            let (key, value) =
                text.split_once('=').ok_or_else(|| ConfigError::Flag { text: text.clone() })?;
            overrides.push((key.trim().to_owned(), value.trim().to_owned()));
        }
        let given =
            flags.iter().filter_map(|(key, value)| Some(((*key).to_owned(), value.clone()?)));
        overrides.extend(given);
        Ok(Loaded::load(self.config.as_deref(), &overrides)?)
    }
}

/// How a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The reader of our output went away, which is its good right.
    #[error("the reader of the output went away")]
    Reader,
    /// The output cannot be written.
    #[error("error: the output cannot be written: {0}")]
    Output(std::io::Error),
    /// An error of the engine.
    #[error("{}", .0.line())]
    Engine(Box<EngineError>),
    /// An error of a statement in a file, with its place.
    #[error("{place}: {}", error.line())]
    Statement {
        /// File, line and column of the statement.
        place: String,
        /// The error.
        error: Box<EngineError>,
    },
    /// The demo failed.
    #[error("error[{}]: {source}", source.code())]
    Demo {
        /// How.
        #[from]
        source: crate::demo::DemoError,
    },
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Engine(Box::new(error))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::Reader,
            _ => Self::Output(error),
        }
    }
}

impl Cli {
    /// Runs the command and says how the process ends: 0 if it did what was asked, 1 if not.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let done = match self.command {
            Command::Sql(args) => sql::run(&args),
            Command::Serve(args) => servers::serve(&args),
            Command::Node(args) => servers::node(&args),
            Command::Forecast { command } => forecast::run(&command),
            Command::Demo(args) => demo(args),
            Command::Config { command } => configuration::run(&command),
        };
        match done {
            Ok(()) | Err(Failure::Reader) => ExitCode::SUCCESS,
            Err(failure) => {
                use std::io::Write;
                // If even this cannot be written there is nobody to tell.
                let _untold = writeln!(std::io::stderr(), "{failure}");
                ExitCode::FAILURE
            }
        }
    }
}

fn demo(args: DemoArgs) -> Result<(), Failure> {
    let loaded = Settings::default().load(&[])?;
    block_on(&loaded.config, crate::demo::run(args))?.map_err(Failure::from)
}

/// A runtime with stacks that deep plans fit on.
fn runtime() -> Result<tokio::runtime::Runtime, EngineError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        .build()
        .map_err(|error| EngineError::Io { message: format!("no threads: {error}") })
}

/// Runs `work` on a runtime of its own, with logs and traces as `config` says.
fn block_on<T>(config: &Config, work: impl Future<Output = T>) -> Result<T, EngineError> {
    let runtime = runtime()?;
    runtime.block_on(async {
        let telemetry = Telemetry::start(config.telemetry())?;
        let done = work.await;
        telemetry.stop().await;
        Ok(done)
    })
}
