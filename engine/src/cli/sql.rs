//! `foreshard sql`: runs one text, a file, or what is typed.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use clap::Args;

use super::output::{Shape, write};
use super::progress::Progress;
use super::split::{Statement, statements};
use super::{Failure, Settings, block_on, prompt};
use crate::engine::Engine;
use crate::error::{EngineError, Position};
use crate::session::Session;

#[derive(Debug, Args)]
pub(super) struct SqlArgs {
    /// Run this text and end.
    #[arg(long, short, value_name = "SQL", conflicts_with = "file")]
    command: Option<String>,
    /// Run this file and end; `-` is stdin.
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Form of the rows.
    #[arg(long, value_enum, default_value_t)]
    format: Shape,
    #[command(flatten)]
    settings: Settings,
}

/// Where statements come from.
enum Source {
    Text { name: String, text: String },
    Typed,
}

pub(super) fn run(args: &SqlArgs) -> Result<(), Failure> {
    let config = args.settings.load(&[])?.config;
    let source = source(args)?;
    block_on(&config, async {
        let engine = Engine::builder().config(config.clone()).keep_state(true).start().await?;
        let session = engine.session();
        let done = match source {
            Source::Text { name, text } => script(&session, &name, &text, args.format).await,
            Source::Typed => prompt::run(&session, &config, args.format).await,
        };
        let stopped = engine.shutdown().await;
        done?;
        Ok(stopped?)
    })?
}

fn source(args: &SqlArgs) -> Result<Source, Failure> {
    if let Some(text) = &args.command {
        return Ok(Source::Text { name: "command".to_owned(), text: text.clone() });
    }
    match &args.file {
        Some(path) if path.as_os_str() != "-" => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => EngineError::Missing { path: name.clone() },
                _ => EngineError::Io { message: format!("{name}: {error}") },
            })?;
            Ok(Source::Text { name, text })
        }
        None if std::io::stdin().is_terminal() => Ok(Source::Typed),
        _ => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| EngineError::Io { message: format!("stdin: {error}") })?;
            Ok(Source::Text { name: "stdin".to_owned(), text })
        }
    }
}

/// Runs every statement of `text` and stops at the first that fails.
async fn script(session: &Session, name: &str, text: &str, shape: Shape) -> Result<(), Failure> {
    let placed = |at: Position, error: EngineError| Failure::Statement {
        place: format!("{name}:{}:{}", at.line, at.column),
        error: Box::new(error),
    };
    let statements = statements(text).map_err(|error| match error {
        EngineError::Syntax { message, position: Some(at) } => {
            placed(at, EngineError::Syntax { message, position: None })
        }
        other => other.into(),
    })?;
    let mut out = std::io::stdout().lock();
    for statement in statements {
        let done = one(session, statement.sql, shape, &mut out).await;
        done.map_err(|failure| match failure {
            Failure::Engine(error) => {
                let (at, error) = in_text(&statement, *error);
                placed(at, error)
            }
            other => other,
        })?;
    }
    Ok(())
}

/// Where in the whole text an error is: the place that a syntax error names, or else the start of
/// the statement.
fn in_text(statement: &Statement<'_>, error: EngineError) -> (Position, EngineError) {
    let start = statement.start;
    match error {
        EngineError::Syntax { message, position: Some(Position { line, column }) } => {
            let first = line <= 1;
            let at = Position {
                line: start.line + line.saturating_sub(1),
                column: if first { start.column + column.saturating_sub(1) } else { column },
            };
            (at, EngineError::Syntax { message, position: None })
        }
        other => (start, other),
    }
}

/// What one statement did.
pub(super) struct Done {
    /// Rows that were shown.
    pub(super) shown: usize,
    /// Rows that were changed.
    pub(super) changed: Option<u64>,
    /// How long it took.
    pub(super) took: std::time::Duration,
}

/// Runs one statement and writes its rows.
pub(super) async fn one(
    session: &Session,
    sql: &str,
    shape: Shape,
    out: &mut impl std::io::Write,
) -> Result<Done, Failure> {
    let mut progress = Progress::new();
    let started = progress.watch(session.sql(sql)).await;
    let written = match started {
        Ok(rows) => {
            let changed = rows.rows_affected();
            write(rows, shape, &mut progress, out).await.map(|shown| (shown, changed))
        }
        Err(error) => Err(error.into()),
    };
    progress.clear();
    let (shown, changed) = written?;
    Ok(Done { shown, changed, took: progress.elapsed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syntax_error_is_placed_in_the_whole_file() {
        let start = Position { line: 7, column: 5 };
        let statement = Statement { sql: "", start, ended: true };
        let syntax = |line, column| EngineError::Syntax {
            message: "m".to_owned(),
            position: Some(Position { line, column }),
        };
        assert_eq!(in_text(&statement, syntax(1, 3)).0, Position { line: 7, column: 7 });
        assert_eq!(in_text(&statement, syntax(2, 3)).0, Position { line: 8, column: 3 });
        assert_eq!(in_text(&statement, EngineError::Cancelled).0, start);
    }
}
