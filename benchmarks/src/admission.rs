//! Which rule spares most where not everything fits? Plays traces of keys on stores of several sizes:
//! what was called longest ago goes (LRU), S3-FIFO, GDSF, and worth, which is what the nodes do.
//!
//! It calls no engine and looks at no clock: a trace says what is called, by what it costs follows what
//! each rule would have spared. So the figures are the same on every machine. Without `--trace` a load is
//! made up, of which some keys are called far more often than others, other ones every now and then, and
//! scanned over once in a while.

mod made_up;
mod traces;

use std::collections::BTreeMap;

use anyhow::Result;
use foreshard_policy::caches::{Call, all, bound::ns_spared_max};

use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};

/// Sizes of the stores, in hundredths of the bytes of all keys of a trace.
const SIZES_PERCENT: [u64; 3] = [1, 5, 20];
/// The rule that the others are compared with.
const BASE: &str = "lru";
/// The rule of the nodes.
const OURS: &str = "worth";

/// Calls in the order in which they came.
#[derive(Clone, Debug, PartialEq)]
struct Trace {
    name: String,
    calls: Vec<Call>,
}

/// What a rule came to on one store.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Score {
    rule: &'static str,
    /// Share of the calls that were answered; NaN if it is no rule but a bound.
    hits: f64,
    /// Share of the nanoseconds that were spared.
    spared: f64,
}

/// Scores of all rules on one trace and size.
#[derive(Clone, Debug)]
struct Played {
    trace: String,
    size_percent: u64,
    scores: Vec<Score>,
    bound: f64,
}

impl Played {
    fn spared(&self, rule: &str) -> f64 {
        self.scores.iter().find(|it| it.rule == rule).map_or(f64::NAN, |it| it.spared)
    }

    /// What `rule` spared, over what the base did.
    fn over_base(&self, rule: &str) -> f64 {
        self.spared(rule) / self.spared(BASE)
    }

    /// What ours spared, over the best of the others.
    fn ours_over_best(&self) -> f64 {
        let others = self.scores.iter().filter(|it| it.rule != OURS).map(|it| it.spared);
        self.spared(OURS) / others.fold(0.0, f64::max)
    }
}

/// Runs the benchmark.
///
/// # Errors
/// A file that cannot be read, or is no trace of keys; it is named.
pub async fn run(options: Options) -> Result<Found> {
    let traces: Vec<Trace> = match options.traces.as_slice() {
        [] => vec![made_up::trace(options.seed, options.quick)],
        files => files
            .iter()
            .map(|file| traces::read(file, options.seed, options.quick))
            .collect::<Result<_>>()?,
    };
    let mut played = vec![];
    for trace in &traces {
        for size_percent in SIZES_PERCENT {
            played.push(play(trace, size_percent));
        }
        eprintln!("{}: {} calls", trace.name, trace.calls.len());
    }
    Ok((rows(&played), figures(&played)))
}

fn play(trace: &Trace, size_percent: u64) -> Played {
    let calls = &trace.calls;
    let distinct: BTreeMap<u64, u64> = calls.iter().map(|call| (call.key, call.bytes)).collect();
    let bytes_max = distinct.values().sum::<u64>() / 100 * size_percent;
    let ns: f64 = calls.iter().map(|call| call.ns).sum();
    let scores = all(bytes_max).into_iter().map(|mut store| {
        let (mut hits, mut spared) = (0_u64, 0.0);
        for call in calls {
            if store.call(call) {
                hits += 1;
                spared += call.ns;
            }
        }
        let hits = hits as f64 / calls.len() as f64;
        Score { rule: store.name(), hits, spared: spared / ns }
    });
    let scores = scores.collect();
    let bound = ns_spared_max(calls, bytes_max) / ns;
    Played { trace: trace.name.clone(), size_percent, scores, bound }
}

/// The rule with the highest value; of equals the first.
fn best(values: impl Iterator<Item = (&'static str, f64)>) -> &'static str {
    let first = (BASE, f64::NEG_INFINITY);
    values.fold(first, |best, it| if it.1 > best.1 { it } else { best }).0
}

fn mark(is_best: bool) -> &'static str {
    if is_best { "best" } else { "" }
}

fn rows(played: &[Played]) -> Vec<Row> {
    let mut rows = vec![];
    let row = |trace: &str, size: f64, rule: &str, hits: f64, spared: f64, over: f64| {
        Row::default()
            .with("trace", trace)
            .with("size_percent", size)
            .with("rule", rule)
            .with("hits", hits)
            .with("time_saved", spared)
            .with("over_lru", over)
    };
    for it in played {
        let size = it.size_percent as f64;
        let best = best(it.scores.iter().map(|score| (score.rule, score.spared)));
        for Score { rule, hits, spared } in it.scores.iter().copied() {
            let row = row(&it.trace, size, rule, hits, spared, it.over_base(rule));
            rows.push(row.with("best", mark(rule == best)));
        }
        let over = it.bound / it.spared(BASE);
        rows.push(row(&it.trace, size, "bound", f64::NAN, it.bound, over).with("best", ""));
    }
    let rules = rules(played);
    let best = best(rules.iter().copied());
    for (rule, over) in rules {
        let row = row("all", f64::NAN, rule, f64::NAN, f64::NAN, over);
        rows.push(row.with("best", mark(rule == best)));
    }
    rows
}

/// Every rule, and what it spared over the base: the geometric mean.
fn rules(played: &[Played]) -> Vec<(&'static str, f64)> {
    let scores = played.first().map(|it| it.scores.as_slice()).unwrap_or_default();
    let mean = |rule| geometric_mean(played.iter().map(|it| it.over_base(rule)));
    scores.iter().map(|score| (score.rule, mean(score.rule))).collect()
}

fn figures(played: &[Played]) -> Vec<Figure> {
    let mut figures = vec![];
    for (rule, over) in rules(played) {
        let name = format!("{}_over_lru", rule.replace('-', "_"));
        match rule {
            BASE => {}
            OURS => figures.push(Figure::bounded(&name, over, "ratio", Bound::AtLeast(1.0))),
            _ => figures.push(Figure::reported(&name, over, "ratio")),
        }
    }
    let over_best = geometric_mean(played.iter().map(Played::ours_over_best));
    let worst = played.iter().map(Played::ours_over_best).fold(f64::INFINITY, f64::min);
    let of_bound = geometric_mean(played.iter().map(|it| it.spared(OURS) / it.bound));
    figures.push(Figure::bounded("worth_over_best", over_best, "ratio", Bound::AtLeast(0.97)));
    figures.push(Figure::reported("worth_over_best_worst", worst, "ratio"));
    figures.push(Figure::reported("worth_over_bound", of_bound, "ratio"));
    figures
}

fn geometric_mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values
        .filter(|value| value.is_finite())
        .fold((0.0, 0_u32), |(sum, count), value| (sum + value.ln(), count + 1));
    (sum / f64::from(count)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_rule_spares_more_than_lru_on_the_made_up_load_and_no_rule_more_than_the_bound() {
        let trace = made_up::trace(1, true);
        for size_percent in SIZES_PERCENT {
            let played = play(&trace, size_percent);
            assert!(played.over_base(OURS) > 1.05, "{played:?}");
            assert!(played.scores.iter().all(|it| it.spared <= played.bound), "{played:?}");
            assert_eq!(played.scores, play(&trace, size_percent).scores);
        }
    }

    #[test]
    fn the_report_names_the_best_rule_and_leaves_out_what_lru_cannot_be_compared_on() {
        let score = |rule, spared| Score { rule, hits: 0.5, spared };
        let one = |base, ours| Played {
            trace: "t".into(),
            size_percent: 5,
            scores: vec![score(BASE, base), score(OURS, ours)],
            bound: 0.8,
        };
        let played = [one(0.2, 0.4), one(0.1, 0.1), one(0.0, 0.1)];
        let report = serde_json::to_value(rows(&played)).unwrap();
        assert_eq!(report[1]["best"], "best");
        assert_eq!(report[3]["best"], "best", "of equals the first");
        assert_eq!((&report[9]["trace"], &report[9]["best"]), (&"all".into(), &"".into()));
        assert_eq!(report[10]["best"], "best");
        let over = report[10]["over_lru"].as_f64().unwrap();
        assert!((over - 2_f64.sqrt()).abs() < 1e-9, "{over}");
    }
}
