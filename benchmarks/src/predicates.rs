//! In which order are predicates best evaluated? Eight queries with two to five predicates that call
//! functions of very different cost and let very different shares of the rows through.
//!
//! Half of the queries are written in a good order and half in a bad one. The loop is `off`: nothing is
//! stored, so that whatever is gained is the order. The rival is the best that plain DataFusion can do
//! with any fixed order: all orders are timed once over a sample of the rows, then the best three in
//! turns with us and with plain DataFusion as the query is written.

use anyhow::{Context, Result};

use crate::answers::same;
use crate::arms::{Pair, Rounds, Samples, interleave};
use crate::orders::{conjunction, nested, orders};
use crate::posts::{Column, Posts};
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};
use crate::sides::Sides;

/// Orders that are timed properly.
const BEST: usize = 3;

// Cost and share of rows that pass, about; the values of the last four go over the whole text.
const NEAR_BERN: &str = "haversine_km(latitude, longitude, 46.95, 7.45) < 60"; // 0.05 us, 8 %
const IN_MAY: &str = "regex_extract(code, 'of ([A-Z][a-z]+)', 1) = 'May'"; // 0.3 us, 8 %
const EARLY_HASH: &str = "blake3_hex(body) < '8'"; // 0.4 us, 50 %
const NOT_KELLER: &str = "levenshtein_similarity(author, 'K. Keller') < 0.7"; // 0.3 us, 95 %
const FROM_ZURICH: &str = "best_match(town, 'Zürich|Genève|Bern|Hamburg|München|Marseille|Bordeaux|\
                           Manchester|Edinburgh|Barcelona|Valencia|Palermo') = 'Zürich'"; // 2 us, 8 %
const CHEERFUL: &str = "sentiment(body) > 0.3"; // 10 us, 30 %
const GERMAN: &str = "language(body) = 'deu'"; // 50 us, 20 %
const NOT_SPANISH: &str = "language(body) <> 'spa'"; // 50 us, 90 %
const CLOSE_REPLY: &str = "ncd(body, reply) < 0.6"; // 70 us, 30 %
const ANY_REPLY: &str = "ncd(body, reply) < 0.97"; // 70 us, nearly all

/// The queries: those at odd positions are written in a bad order.
const QUERIES: [&[&str]; 8] = [
    &[IN_MAY, CLOSE_REPLY],
    &[CLOSE_REPLY, NEAR_BERN],
    &[EARLY_HASH, CHEERFUL, GERMAN],
    &[ANY_REPLY, NOT_SPANISH, FROM_ZURICH],
    &[EARLY_HASH, FROM_ZURICH, CHEERFUL, CLOSE_REPLY],
    &[ANY_REPLY, GERMAN, NOT_KELLER, IN_MAY],
    &[IN_MAY, EARLY_HASH, NOT_KELLER, GERMAN, CLOSE_REPLY],
    &[NOT_SPANISH, ANY_REPLY, CHEERFUL, NOT_KELLER, FROM_ZURICH],
];

/// Runs the benchmark.
///
/// # Errors
/// The first error of either side, or an answer that differs.
pub async fn run(options: Options) -> Result<Found> {
    let rows = if options.quick { 1_500 } else { 20_000 };
    let columns = vec![
        Column::Id,
        Column::Price,
        Column::Latitude,
        Column::Longitude,
        Column::Town,
        Column::Author,
        Column::Code,
        Column::Body,
        Column::Reply,
    ];
    let posts = Posts { seed: options.seed, words: 30, rows_a_day: rows, columns };
    let mut sides = Sides::start(&options.clock, &[("loop.mode", "off")], &[]).await?;
    sides.add_table("posts", posts.schema(), "id", posts.batches(0..rows)?).await?;
    sides.add_table("sample", posts.schema(), "id", posts.batches(0..rows / 10)?).await?;
    let mut results = vec![];
    for (position, predicates) in QUERIES.iter().enumerate() {
        let result = Box::pin(compare(&options, &sides, predicates)).await;
        let result = result.with_context(|| format!("query {}", position + 1))?;
        eprintln!(
            "query {}: {:.2} of the best order's time, {:.1} times as fast as written",
            position + 1,
            result.over_best(),
            result.speedup()
        );
        results.push(result);
    }
    sides.stop().await?;
    let rows = (1..).zip(&results).zip(QUERIES);
    let rows = rows.map(|((number, result), predicates)| row(number, result, predicates.len()));
    Ok((rows.collect(), figures(&results)))
}

/// What one query found.
#[derive(Debug)]
struct Compared {
    /// We and plain DataFusion as the query is written.
    written: Pair,
    /// Plain DataFusion in the order that turned out best.
    best: Samples,
    best_order: Vec<usize>,
}

impl Compared {
    fn over_best(&self) -> f64 {
        let (ours, plain) = (self.written.ours.clone(), self.best.clone());
        Pair { ours, plain }.ratio().median
    }

    fn speedup(&self) -> f64 {
        self.written.speedup().median
    }
}

async fn compare(options: &Options, sides: &Sides, predicates: &[&str]) -> Result<Compared> {
    let sql = |table: &str, rows: &str| {
        format!("SELECT count(*) AS posts, sum(price) AS paid FROM {table} WHERE {rows}")
    };
    let written = sql("posts", &conjunction(predicates));
    let ranked = ranked(options, sides, predicates, |rows| sql("sample", rows)).await?;
    let of_order = |order: &[usize]| sql("posts", &nested(predicates, order));
    let candidates: Vec<String> = ranked.iter().take(BEST).map(|order| of_order(order)).collect();
    let ours = sides.ours(&written).await?;
    for rival in candidates.iter().chain([&written]) {
        same(&ours, &sides.plain(rival).await?).with_context(|| format!("{rival} differs"))?;
    }
    let rounds = Rounds { warm_up: 1, counted: if options.quick { 2 } else { 15 } };
    let ask = async |arm: usize| -> Result<()> {
        match arm {
            0 => drop(sides.ours(&written).await?),
            1 => drop(sides.plain(&written).await?),
            // Two predicates have two orders: the first one is measured twice.
            arm => drop(sides.plain(&candidates[(arm - 2) % candidates.len()]).await?),
        }
        Ok(())
    };
    // Each run comes after one of its own kind that does not count. Whoever comes after the query as it is
    // written, which takes a second, is slower by half, and that would be we in half of the rounds.
    let times = interleave::<{ 2 + BEST }>(&*options.clock, rounds, ask, ask).await?;
    let [ours, plain, best @ ..] = times;
    let fastest = (0..BEST).min_by(|a, b| best[*a].median().total_cmp(&best[*b].median()));
    let fastest = fastest.unwrap_or(0);
    Ok(Compared {
        written: Pair { ours, plain },
        best: best[fastest].clone(),
        best_order: ranked[fastest % candidates.len()].clone(),
    })
}

/// All orders, the fastest over the sample first. Each is timed once.
async fn ranked(
    options: &Options,
    sides: &Sides,
    predicates: &[&str],
    sql: impl Fn(&str) -> String,
) -> Result<Vec<Vec<usize>>> {
    let mut timed = vec![];
    for order in orders(predicates.len()) {
        let sql = sql(&nested(predicates, &order));
        let start = options.clock.monotonic_ns();
        drop(sides.plain(&sql).await?);
        timed.push((options.clock.monotonic_ns().saturating_sub(start), order));
    }
    timed.sort();
    Ok(timed.into_iter().map(|(_, order)| order).collect())
}

fn row(number: u64, result: &Compared, predicates: usize) -> Row {
    let order: Vec<String> =
        result.best_order.iter().map(|position| (position + 1).to_string()).collect();
    let row = Row::default()
        .with("query", format!("q{number}"))
        .with("predicates", predicates as u64)
        .with("written", if number.is_multiple_of(2) { "badly" } else { "well" })
        .with("best_order", order.join(" "))
        .with("best_ms", result.best.median() / 1e6)
        .with("best_spread", result.best.spread())
        .with("over_best", result.over_best());
    result.written.with_speedup(row)
}

fn figures(results: &[Compared]) -> Vec<Figure> {
    let worst = results.iter().map(Compared::over_best).fold(f64::NAN, f64::max);
    let faster = results.iter().filter(|result| result.speedup() >= 2.0).count();
    let share = faster as f64 / results.len() as f64;
    vec![
        Figure::bounded("worst_over_best_order", worst, "ratio", Bound::AtMost(1.1)),
        Figure::bounded("share_twice_as_fast_as_written", share, "ratio", Bound::AtLeast(0.5)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(ours: u64, written: u64, best: u64) -> Compared {
        let mut pair = Pair::default();
        pair.push(ours, written);
        let mut samples = Samples::default();
        samples.push(best);
        Compared { written: pair, best: samples, best_order: vec![0, 1] }
    }

    fn holds(results: &[Compared]) -> Vec<bool> {
        figures(results).iter().map(|figure| figure.holds).collect()
    }

    #[test]
    fn one_query_behind_its_best_order_is_missed() {
        assert_eq!(holds(&[compared(10, 30, 10), compared(10, 10, 10)]), [true, true]);
        assert_eq!(holds(&[compared(10, 30, 10), compared(12, 12, 10)]), [false, true]);
    }

    #[test]
    fn plain_datafusion_in_our_place_misses_both_bounds() {
        assert_eq!(holds(&[compared(30, 30, 10), compared(10, 10, 10)]), [false, false]);
        assert_eq!(holds(&[]), [false, false]);
    }

    #[test]
    fn there_are_two_to_five_different_predicates_in_each_query() {
        for predicates in QUERIES {
            assert!((2..=5).contains(&predicates.len()));
            for (position, predicate) in predicates.iter().enumerate() {
                assert!(!predicates[..position].contains(predicate), "{predicate}");
            }
        }
    }
}
