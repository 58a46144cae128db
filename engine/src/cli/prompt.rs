//! The prompt: statements over several lines, history, `\d` and `\q`. An error is shown and the
//! prompt goes on; ctrl-c ends a running statement and not the prompt.

use std::io::Write;
use std::path::Path;

use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{DefaultEditor, Editor};

use super::output::Shape;
use super::split::statements;
use super::{Failure, sql};
use crate::config::Config;
use crate::error::EngineError;
use crate::session::Session;

/// Name of the history file in the data folder.
const HISTORY: &str = "history.txt";
/// Lines of history that are kept.
const HISTORY_LINES_MAX: usize = 10_000;
/// What `\d` runs.
const TABLES: &str = "SELECT table_schema AS schema, table_name AS name, table_type AS type \
    FROM information_schema.tables ORDER BY 1, 2";

/// What is to be done with what was typed so far.
#[derive(Debug, PartialEq, Eq)]
enum Typed<'a> {
    /// Run these statements.
    Run(Vec<&'a str>),
    /// Ask for one more line.
    More,
    /// List the tables.
    Tables,
    /// Say what can be typed.
    Help,
    /// End.
    Quit,
    /// Nothing.
    Nothing,
}

pub(super) async fn run(session: &Session, config: &Config, shape: Shape) -> Result<(), Failure> {
    let history = config.data_dir().join(HISTORY);
    let mut editor = editor(&history)?;
    println(&format!(
        "foreshard {}: end a statement with ;  \\d lists tables  \\q ends",
        env!("CARGO_PKG_VERSION")
    ))?;
    let mut typed = String::new();
    loop {
        let prompt = if typed.is_empty() { "foreshard> " } else { "       ..> " };
        let line;
        (editor, line) = read(editor, prompt).await?;
        match line {
            Ok(line) => {
                if !typed.is_empty() {
                    typed.push('\n');
                }
                typed.push_str(&line);
            }
            Err(ReadlineError::Interrupted) => {
                typed.clear();
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(Failure::Output(std::io::Error::other(error))),
        }
        match understand(&typed) {
            Typed::More => continue,
            Typed::Nothing => {}
            Typed::Quit => break,
            Typed::Help => println("\\d lists tables, \\q ends, anything else is SQL up to a ;")?,
            Typed::Tables => answer(session, TABLES, shape).await?,
            Typed::Run(list) => {
                for sql in list {
                    answer(session, sql, shape).await?;
                }
            }
        }
        // A history that is not kept is no reason to stop.
        let _unkept = editor.add_history_entry(typed.trim());
        let _unkept = editor.append_history(&history);
        typed.clear();
    }
    Ok(())
}

fn editor(history: &Path) -> Result<DefaultEditor, Failure> {
    let mut editor =
        DefaultEditor::new().map_err(|error| Failure::Output(std::io::Error::other(error)))?;
    let _short = editor.set_max_history_size(HISTORY_LINES_MAX);
    if let Some(folder) = history.parent() {
        let _unkept = std::fs::create_dir_all(folder);
    }
    let _none_yet = editor.load_history(history);
    Ok(editor)
}

/// Reads a line on a thread that may wait.
async fn read(
    mut editor: Editor<(), FileHistory>,
    prompt: &'static str,
) -> Result<(Editor<(), FileHistory>, Result<String, ReadlineError>), Failure> {
    let read = tokio::task::spawn_blocking(move || {
        let line = editor.readline(prompt);
        (editor, line)
    });
    read.await.map_err(|error| Failure::Output(std::io::Error::other(error)))
}

/// Runs one statement; ctrl-c ends it.
async fn answer(session: &Session, sql: &str, shape: Shape) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    let done = tokio::select! {
        done = sql::one(session, sql, shape, &mut out) => done,
        _ = tokio::signal::ctrl_c() => Err(EngineError::Cancelled.into()),
    };
    match done {
        Ok(done) => {
            let rows = match done.changed {
                Some(changed) => format!("{changed} rows changed"),
                None => format!("{} rows", done.shown),
            };
            println(&format!("{rows}, {:.3} s", done.took.as_secs_f64()))
        }
        Err(Failure::Engine(error)) => {
            writeln!(std::io::stderr(), "{}", error.line()).map_err(Failure::from)
        }
        Err(other) => Err(other),
    }
}

fn println(text: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

fn understand(typed: &str) -> Typed<'_> {
    match typed.trim() {
        "" => return Typed::Nothing,
        "\\q" | "exit" | "quit" => return Typed::Quit,
        "\\d" | "\\d;" => return Typed::Tables,
        "\\?" | "\\h" | "help" => return Typed::Help,
        _ => {}
    }
    match statements(typed) {
        // An open quote or comment may be closed by the next line.
        Err(_) => Typed::More,
        Ok(list) if list.is_empty() => Typed::Nothing,
        Ok(list) if list.iter().all(|statement| statement.ended) => {
            Typed::Run(list.into_iter().map(|statement| statement.sql).collect())
        }
        Ok(_) => Typed::More,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_runs_when_its_semicolon_is_typed() {
        assert_eq!(understand("SELECT 1"), Typed::More);
        assert_eq!(understand("SELECT ';"), Typed::More);
        assert_eq!(understand("SELECT ';\n';"), Typed::Run(vec!["SELECT ';\n'"]));
        assert_eq!(understand("SELECT 1; SELECT 2;"), Typed::Run(vec!["SELECT 1", "SELECT 2"]));
        assert_eq!(understand("SELECT 1; SELECT"), Typed::More);
    }

    #[test]
    fn words_of_the_prompt_are_not_sql() {
        assert_eq!(understand(" \\q "), Typed::Quit);
        assert_eq!(understand("\\d"), Typed::Tables);
        assert_eq!(understand("-- only a comment\n"), Typed::Nothing);
        assert_eq!(understand("help"), Typed::Help);
    }
}
