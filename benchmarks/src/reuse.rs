//! What is a stored output worth? Six functions, from two milliseconds to a sixth of a microsecond a
//! row, each asked for twice over the same rows and once more after one percent was appended.
//!
//! The question is the ten highest values: it needs every row's output, and nothing smaller than the
//! outputs can answer it. Both runs are timed against plain DataFusion in turns. For the three dear
//! functions the second run must be many times faster; for the two cheap ones storing cannot pay, and
//! the engine must see that and stay as fast as plain. Rows that are recomputed after the append are
//! counted in the function itself.
//!
//! The loop is `reactive`: nothing is computed ahead. One dear function is asked for with the loop
//! `off` besides: if that were fast too, the rest would prove nothing.

use anyhow::Result;

use crate::arms::{Pair, Rounds};
use crate::posts::{Column, Posts};
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};
use crate::sides::Sides;

/// Second run over plain that a dear function must reach.
const SPEEDUP_MIN: f64 = 20.0;

/// What storing is expected to bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Over 20 us a row: much.
    Dear,
    /// Between: reported.
    Between,
    /// Nothing, and so nothing may be lost.
    Cheap,
}

/// A function, and rows for it.
struct Workload {
    function: &'static str,
    call: String,
    class: Class,
    posts: Posts,
    rows: i64,
}

/// The workloads; `quick` has a twentieth of the rows. Plain takes 0.3 to 1 s for the dear ones on two
/// cores, and over 100 ms for the cheap ones.
fn workloads(seed: u64, quick: bool) -> Vec<Workload> {
    let workload =
        |function, call: &str, class, (rows, words): (i64, usize), columns: &[Column]| {
            let mut all = vec![Column::Id];
            all.extend_from_slice(columns);
            let rows = if quick { rows / 20 } else { rows };
            let posts = Posts { seed, words, rows_a_day: rows, columns: all };
            Workload { function, call: call.to_owned(), class, posts, rows }
        };
    let texts = Posts { seed, words: 12, rows_a_day: 1, columns: vec![] };
    let best = format!("best_match(body, '{}')", texts.candidates(200, 12));
    use Column::{Body, Code, Latitude, Longitude, Reply};
    vec![
        workload("best_match", &best, Class::Dear, (800, 16), &[Body]),
        workload("ncd", "ncd(body, reply)", Class::Dear, (20_000, 40), &[Body, Reply]),
        workload("language", "language(body)", Class::Dear, (30_000, 16), &[Body]),
        workload("sentiment", "sentiment(body)", Class::Between, (60_000, 16), &[Body]),
        workload(
            "h3_cell",
            "h3_cell(latitude, longitude, 9)",
            Class::Cheap,
            (1_000_000, 0),
            &[Latitude, Longitude],
        ),
        workload(
            "regex_extract",
            "regex_extract(code, '([0-9]+) of', 1)",
            Class::Cheap,
            (1_500_000, 0),
            &[Code],
        ),
    ]
}

/// Runs the benchmark.
///
/// # Errors
/// The first error of either side, or an answer that differs.
pub async fn run(options: Options) -> Result<Found> {
    let workloads = workloads(options.seed, options.quick);
    let mut results = vec![];
    for workload in &workloads {
        let mut found = Reuse { class: workload.class, ..Reuse::default() };
        for (round, counts) in Rounds::long(options.quick).all() {
            let played = Box::pin(play(&options, workload, "reactive", round)).await?;
            found.add(&played, counts);
        }
        eprintln!("{}: {:.1} times as fast", workload.function, found.second.speedup().median);
        results.push((workload.function, found));
    }
    let mut off = Reuse::default();
    off.add(&Box::pin(play(&options, &workloads[1], "off", 0)).await?, true);
    let rows = results
        .iter()
        .zip(&workloads)
        .map(|((function, found), workload)| row(function, found, workload.rows))
        .collect();
    Ok((rows, figures(&results, &off)))
}

/// One repetition: nanoseconds of the engine and of plain for each of the three runs.
#[derive(Clone, Copy, Debug, Default)]
struct Played {
    first: (u64, u64),
    second: (u64, u64),
    appended: (u64, u64),
    stored_per_byte: f64,
    recomputed: f64,
}

/// First run, second run, append, third run, on fresh sides.
async fn play(options: &Options, workload: &Workload, mode: &str, round: usize) -> Result<Played> {
    let Workload { function, call, posts, rows, .. } = workload;
    let mut sides = Sides::start(&options.clock, &[("loop.mode", mode)], &[*function]).await?;
    sides.add_table("posts", posts.schema(), "id", posts.batches(0..*rows)?).await?;
    let sql = format!(
        "SELECT id, {call} AS value FROM posts ORDER BY value DESC NULLS LAST, id LIMIT 10"
    );
    let mut played = Played::default();
    let times = |asked: crate::sides::Asked| (asked.ours_ns, asked.plain_ns);
    played.first = times(sides.ask(&sql, round).await?);
    played.second = times(sides.ask(&sql, round + 1).await?);
    played.stored_per_byte = sides.stored_bytes().await? / sides.table_bytes("posts").await?;
    let end = rows + (rows / 100).max(1);
    let appended = sides.append("posts", posts.batches(*rows..end)?).await?;
    let before = sides.rows_ours();
    played.appended = times(sides.ask(&sql, round).await?);
    played.recomputed = (sides.rows_ours() - before) as f64 / appended as f64;
    sides.stop().await?;
    Ok(played)
}

/// All repetitions of one workload.
#[derive(Debug)]
struct Reuse {
    class: Class,
    first: Pair,
    second: Pair,
    appended: Pair,
    stored_per_byte: f64,
    /// Of all repetitions the one farthest from one.
    recomputed: f64,
}

impl Default for Reuse {
    fn default() -> Self {
        let [first, second, appended] = std::array::from_fn(|_| Pair::default());
        let class = Class::Between;
        Self { class, first, second, appended, stored_per_byte: 0.0, recomputed: 1.0 }
    }
}

impl Reuse {
    fn add(&mut self, played: &Played, counts: bool) {
        self.recomputed = farther_from_one(self.recomputed, played.recomputed);
        self.stored_per_byte = self.stored_per_byte.max(played.stored_per_byte);
        if counts {
            self.first.push(played.first.0, played.first.1);
            self.second.push(played.second.0, played.second.1);
            self.appended.push(played.appended.0, played.appended.1);
        }
    }
}

fn farther_from_one(a: f64, b: f64) -> f64 {
    if (b - 1.0).abs() > (a - 1.0).abs() { b } else { a }
}

fn row(function: &str, found: &Reuse, rows: i64) -> Row {
    let us_per_row = found.second.plain.median() / 1e3 / rows as f64;
    let row = Row::default()
        .with("function", function)
        .with("rows", rows as u64)
        .with("plain_wall_us_per_row", us_per_row)
        .with("first_ratio", found.first.ratio().median)
        .with("appended_speedup", found.appended.speedup().median)
        .with("recomputed", found.recomputed)
        .with("stored_per_byte", found.stored_per_byte);
    found.second.with_speedup(row)
}

fn figures(results: &[(&str, Reuse)], off: &Reuse) -> Vec<Figure> {
    let of = |class: Class| results.iter().filter(move |(_, found)| found.class == class);
    let slowest = of(Class::Dear).map(|(_, found)| found.second.speedup().median);
    let slowest = slowest.fold(f64::NAN, f64::min);
    let recomputed = of(Class::Dear).map(|(_, found)| found.recomputed);
    let recomputed = recomputed.reduce(farther_from_one).unwrap_or(f64::NAN);
    let cheap = of(Class::Cheap)
        .flat_map(|(_, found)| [found.first.ratio().median, found.second.ratio().median]);
    let cheap = cheap.fold(f64::NAN, f64::max);
    let mut figures = vec![
        Figure::bounded("reuse_min_speedup", slowest, "times", Bound::AtLeast(SPEEDUP_MIN)),
        Figure::bounded("reuse_cheap_ratio", cheap, "ratio", Bound::AtMost(1.03)),
        Figure::bounded("rows_recomputed_per_appended", recomputed, "ratio", Bound::Exactly(1.0)),
        Figure::bounded(
            "reuse_speedup_off",
            off.second.speedup().median,
            "times",
            Bound::Below(SPEEDUP_MIN),
        ),
    ];
    for (function, found) in results {
        let speedup = found.second.speedup().median;
        figures.push(Figure::reported(&format!("reuse_speedup_{function}"), speedup, "times"));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reuse(class: Class, (first, second): (u64, u64), recomputed: f64) -> Reuse {
        let played = Played {
            first: (first, 1_000),
            second: (second, 1_000),
            appended: (second, 1_000),
            stored_per_byte: 0.1,
            recomputed,
        };
        let mut found = Reuse { class, ..Reuse::default() };
        found.add(&played, true);
        found
    }

    fn missed(results: &[(&str, Reuse)], off: &Reuse) -> Vec<String> {
        let figures = figures(results, off);
        figures.iter().filter(|figure| !figure.holds).map(|figure| figure.name.clone()).collect()
    }

    #[test]
    fn one_slow_dear_function_one_cheap_ratio_or_one_row_too_many_is_missed() {
        let off = || reuse(Class::Dear, (1_000, 1_000), 100.0);
        let good = || ("ncd", reuse(Class::Dear, (1_000, 10), 1.0));
        let cheap = || ("h3_cell", reuse(Class::Cheap, (1_010, 1_000), 100.0));
        assert_eq!(missed(&[good(), cheap()], &off()), [""; 0]);
        let slow = ("language", reuse(Class::Dear, (1_000, 60), 1.0));
        assert_eq!(missed(&[good(), slow, cheap()], &off()), ["reuse_min_speedup"]);
        let late = ("regex", reuse(Class::Cheap, (1_050, 1_000), 100.0));
        assert_eq!(missed(&[good(), cheap(), late], &off()), ["reuse_cheap_ratio"]);
        for recomputed in [1.01, 0.99, 100.0] {
            let again = ("language", reuse(Class::Dear, (1_000, 10), recomputed));
            assert_eq!(missed(&[good(), again, cheap()], &off()), ["rows_recomputed_per_appended"]);
        }
        assert_eq!(missed(&[good(), cheap()], &good().1), ["reuse_speedup_off"]);
        assert_eq!(missed(&[], &off()).len(), 3);
    }

    #[test]
    fn no_call_can_end_its_literal_too_early() {
        for workload in workloads(1, true) {
            assert_eq!(workload.call.matches('\'').count() % 2, 0, "{}", workload.function);
        }
    }
}
