//! Which keys will be called next? Plays traces of single calls, and compares what is learned from them
//! with the last hour's keys, the popular ones, and the last key. Without `--trace` it plays those of the
//! folder `shared/traces` beside the repository.
//!
//! It calls no engine and looks at no clock, so the figures are the same on every machine. The next hour:
//! every rule names ten keys by the hours before. *Precision* is the share of the ten places whose key
//! was called at all; *recall* the share of the hour's most called keys, at most ten, that were named, and
//! *recall of calls* the share of its calls that went to named keys. Hours without calls are not scored,
//! nor is the first day. The next call: one or three keys are named by the calls before.

mod play;

use std::collections::HashMap;

use anyhow::{Context, Result, bail};

use crate::loads::{self, Event};
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};
use play::{Call, CallScore, HourScore, Played, play};

/// Runs the benchmark.
///
/// # Errors
/// If there is no trace to play, or a file that cannot be read or is named and is no table of calls.
pub async fn run(options: Options) -> Result<Found> {
    let mut rows = vec![];
    let mut figures = vec![];
    let beside = if options.traces.is_empty() { loads::beside() } else { Vec::new() };
    for file in options.traces.iter().chain(&beside) {
        let (name, events) = loads::read(file)?;
        let is_single = |event: &Event| event.value.is_none() && !event.series.is_empty();
        if options.traces.is_empty() && !events.iter().any(is_single) {
            continue;
        }
        let calls = calls(&events).with_context(|| format!("{}", file.display()))?;
        let played = play(&calls)?;
        eprintln!("{name}: {} calls, {} hours scored", played.calls, played.hours);
        rows.extend(self::rows(&name, &played));
        figures.extend(self::figures(&name, &played));
    }
    if rows.is_empty() {
        bail!("there is no trace of single calls to play; give one with --trace FILE");
    }
    Ok((rows, figures))
}

/// The rows as calls, sorted by time; those of one second stay in the order of the file.
fn calls(events: &[Event]) -> Result<Vec<Call>> {
    if events.iter().all(|event| event.series.is_empty()) {
        bail!("there are no calls of anything: no column names what was called");
    }
    let mut numbers = HashMap::new();
    let mut calls = Vec::with_capacity(events.len());
    for event in events {
        let new = numbers.len() as u32;
        let key = *numbers.entry(event.series.as_str()).or_insert(new);
        calls.push(Call { second: event.at_ms.div_euclid(1_000), key });
    }
    calls.sort_by_key(|call| call.second);
    Ok(calls)
}

fn rows(trace: &str, played: &Played) -> Vec<Row> {
    let row = |what: &str, rule: &str| {
        Row::default().with("trace", trace).with("next", what).with("rule", rule)
    };
    let by_hour = played.by_hour.iter().map(|score| {
        let HourScore { rule, precision, precision_of_named, recall, recall_of_calls } = *score;
        row("hour", rule)
            .with("precision", precision)
            .with("precision_of_named", precision_of_named)
            .with("recall", recall)
            .with("recall_of_calls", recall_of_calls)
            .with("first", f64::NAN)
            .with("of_three", f64::NAN)
    });
    let by_call = played.by_call.iter().map(|score| {
        let CallScore { rule, first, three } = *score;
        row("call", rule)
            .with("precision", f64::NAN)
            .with("precision_of_named", f64::NAN)
            .with("recall", f64::NAN)
            .with("recall_of_calls", f64::NAN)
            .with("first", first)
            .with("of_three", three)
    });
    by_hour.chain(by_call).collect()
}

/// What the learned rules are worth over the best of the others.
fn figures(trace: &str, played: &Played) -> Vec<Figure> {
    // The first two after ours are what it must be better than; what ours is mixed from comes after them.
    let over = |values: Vec<f64>| match values.as_slice() {
        [ours, one, other, ..] => ours / one.max(*other),
        _ => f64::NAN,
    };
    let by_hour = |of: fn(&HourScore) -> f64| over(played.by_hour.iter().map(of).collect());
    let by_call = |of: fn(&CallScore) -> f64| over(played.by_call.iter().map(of).collect());
    let figures = [
        ("precision", by_hour(|it| it.precision)),
        ("recall", by_hour(|it| it.recall)),
        ("recall_of_calls", by_hour(|it| it.recall_of_calls)),
        ("next_call", by_call(|it| it.first)),
    ];
    let name = |what: &str| format!("{trace}_{what}_over_best");
    figures
        .map(|(what, value)| Figure::bounded(&name(what), value, "ratio", Bound::AtLeast(1.0)))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at_ms: i64, series: &str) -> Event {
        Event { at_ms, value: None, series: series.to_owned() }
    }

    #[test]
    fn calls_are_sorted_by_seconds_and_keys_numbered_as_they_come() {
        let found = calls(&[event(60_900, "b"), event(5_000, "a"), event(60_100, "b")]).unwrap();
        let call = |second, key| Call { second, key };
        assert_eq!(found, [call(5, 1), call(60, 0), call(60, 0)]);
    }

    #[test]
    fn rows_that_name_nothing_are_refused() {
        let error = calls(&[event(1, ""), event(2, "")]).unwrap_err().to_string();
        assert!(error.contains("no column names what was called"), "{error}");
        assert!(calls(&[]).is_err());
    }
}
