//! `foreshard forecast show`: what is expected of functions, as a chart in the terminal or a picture.
//!
//! Asks a running server, or makes the last forecast of a stopped engine again from its data folder, which
//! stays as it is.

mod chart;
mod picture;
mod shown;
mod source;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use self::shown::{Shown, number};
use self::source::Source;
use super::{Failure, Settings, block_on};
use crate::error::EngineError;

/// Most characters in a line of text.
const COLUMNS_MAX: usize = 100;

/// Ticks of the past that are shown, for each tick of the horizon.
const PAST_PER_HORIZON: usize = 3;

/// Fewest ticks of the past that are shown, if there are so many.
const PAST_MIN: usize = 60;

#[derive(Debug, Subcommand)]
pub(super) enum ForecastCommand {
    /// Show what is expected of a function, or of all of them.
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The function; without one, a line for each.
    function: Option<String>,
    /// Ticks ahead; as many as are forecast if it is not given.
    #[arg(long, value_name = "TICKS")]
    horizon: Option<usize>,
    /// Draw into this SVG file, too.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Ask the server that answers Arrow Flight SQL here, host:port, instead of reading the data folder.
    #[arg(long, value_name = "ADDRESS")]
    server: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(command: &ForecastCommand) -> Result<(), Failure> {
    let ForecastCommand::Show(args) = command;
    let config = args.settings.load(&[])?.config;
    block_on(&config, async {
        let mut source = match &args.server {
            Some(address) => Source::server(address).await?,
            None => Source::folder(&config).await?,
        };
        show(&mut source, args).await
    })?
}

async fn show(source: &mut Source, args: &ShowArgs) -> Result<(), Failure> {
    let names = match &args.function {
        Some(function) => vec![function.clone()],
        None => source.functions().await?,
    };
    let mut all = Vec::with_capacity(names.len());
    for name in &names {
        all.push(source.function(name, args.horizon).await?);
    }
    let mut out = std::io::stdout().lock();
    match (all.as_slice(), &args.function) {
        ([one], Some(_)) => write!(out, "{}", with_chart(one, has_colour()))?,
        (all, _) => write!(out, "{}", list(all))?,
    }
    out.flush()?;
    if let Some(file) = &args.svg {
        picture::draw(&all, file).map_err(|error| EngineError::Io {
            message: format!("{} cannot be drawn: {error}", file.display()),
        })?;
    }
    Ok(())
}

/// Whether the reader of stdout is a terminal whose user wants colours.
fn has_colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty())
}

fn with_chart(shown: &Shown, colour: bool) -> String {
    if shown.coming.is_empty() {
        return format!("{}\n", shown.sentence());
    }
    let (sentence, reason) = (wrapped(&shown.sentence()), wrapped(&shown.reason));
    format!("{sentence}\n{reason}\n\n{}", chart::draw(shown, colour))
}

/// `text` in lines of at most [`COLUMNS_MAX`] characters, unless a word is longer.
fn wrapped(text: &str) -> String {
    let (mut all, mut column) = (String::with_capacity(text.len()), 0);
    for word in text.split(' ') {
        let width = word.chars().count();
        let fits = column + 1 + width <= COLUMNS_MAX;
        if column > 0 {
            all.push(if fits { ' ' } else { '\n' });
        }
        column = if fits && column > 0 { column + 1 + width } else { width };
        all.push_str(word);
    }
    all
}

/// A line for each function, and why their forecasts are trusted or not.
fn list(all: &[Shown]) -> String {
    if all.is_empty() {
        return "nothing is expected: no function was called, or no tick is over yet\n".to_owned();
    }
    let width = all.iter().map(|it| it.function.chars().count()).max().unwrap_or(0).clamp(8, 26);
    let mut text = format!(
        "{:<width$}  {:>9}  {:>9}  {:>12}  {:>9}  calls ┊ expected\n",
        "function", "next tick", "most", "at", "at a time"
    );
    for shown in all {
        let next = shown.coming.first().map_or(0.0, |tick| tick.q50);
        let (at, most) = shown.most().unwrap_or_default();
        let name: String = shown.function.chars().take(width).collect();
        text.push_str(&format!(
            "{name:<width$}  {:>9}  {:>9}  {at:>12}  {:>9}  {}\n",
            number(next),
            number(most),
            number(shown.crowded()),
            chart::spark(shown, 24),
        ));
    }
    let mut reasons: Vec<&str> = all.iter().map(|shown| shown.reason.as_str()).collect();
    reasons.dedup();
    text.push('\n');
    reasons.iter().for_each(|reason| text.push_str(&format!("{}\n", wrapped(reason))));
    text
}

/// Ticks of the past that go with a horizon.
fn past_ticks(horizon: usize) -> usize {
    horizon.saturating_mul(PAST_PER_HORIZON).max(PAST_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_breaks_between_words_and_loses_none() {
        let text = format!("trusted: {}", "it avoided a share of the loss ".repeat(9));
        let lines = wrapped(text.trim_end());
        assert!(lines.lines().count() > 2);
        assert!(lines.lines().all(|line| line.chars().count() <= COLUMNS_MAX), "{lines}");
        assert_eq!(lines.replace('\n', " "), text.trim_end());
        let word = "x".repeat(COLUMNS_MAX + 9);
        assert_eq!(wrapped(&format!("a {word} b")), format!("a\n{word}\nb"));
    }
}
