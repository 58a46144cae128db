//! What does it cost if nothing can be gained? The 22 TPC-H queries and the 43 of ClickBench call no
//! function, so all that the engine adds to plain DataFusion is overhead.
//!
//! Everything is on, storing too, but what is stored is thrown away before each query: it pays for what
//! it leaves behind, and finds nothing. Both sides read the very same Arrow buffers, in the same batches
//! and the same number of partitions, in one process, with the same number of threads. They take turns,
//! query by query.

use anyhow::{Context, Result};
use foreshard::workload::tpch;

use crate::answers::same;
use crate::arms::{Pair, Rounds, geometric_mean, interleave};
use crate::hits;
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};
use crate::sides::Sides;

/// Rows of the ClickBench table.
const HITS: i64 = 1_000_000;

/// Nanoseconds of plain DataFusion that a query is measured for, if that is not too many rounds or too few.
const ROUNDS_NS: u64 = 2_000_000_000;

/// Ratios of one suite, in the order of its queries.
type Ratios = Vec<f64>;

/// Runs the benchmark.
///
/// # Errors
/// The first error of either side, or an answer that differs.
pub async fn run(options: Options) -> Result<Found> {
    let mut rows = Vec::new();
    let scale_factor = if options.quick { 0.1 } else { 1.0 };
    let tpch = Box::pin(tpch_ratios(&options, scale_factor, &mut rows)).await?;
    let hits = if options.quick { HITS / 20 } else { HITS };
    let clickbench = Box::pin(clickbench_ratios(&options, hits, &mut rows)).await?;
    Ok((rows, figures(&tpch, &clickbench)))
}

async fn tpch_ratios(options: &Options, scale: f64, rows: &mut Vec<Row>) -> Result<Ratios> {
    eprintln!("generating TPC-H at scale factor {scale}");
    let mut sides = sides(options).await?;
    for (name, schema, batches) in tpch::tables(scale) {
        let key = tpch::partition_key(name).context("every table has a key")?;
        sides.add_table(name, schema, key, batches).await?;
    }
    let mut ratios = vec![];
    for (number, query) in (1..).zip(tpch::queries()) {
        let (row, ratio) =
            Box::pin(compare(options, &sides, ("tpch", number), (query, query))).await?;
        rows.push(row);
        ratios.push(ratio);
    }
    sides.stop().await?;
    Ok(ratios)
}

async fn clickbench_ratios(options: &Options, hits: i64, rows: &mut Vec<Row>) -> Result<Ratios> {
    eprintln!("generating {hits} rows of ClickBench");
    let mut sides = sides(options).await?;
    let batches = hits::batches(options.seed, 0..hits)?;
    sides.add_table("hits", hits::schema(), hits::KEY, batches).await?;
    let mut ratios = vec![];
    for (number, query) in (0..).zip(hits::queries()) {
        // Which of equal rows a limit keeps is nobody's promise: all of them are compared.
        let checked = hits::without_limit(query);
        let (row, ratio) =
            Box::pin(compare(options, &sides, ("clickbench", number), (query, checked))).await?;
        rows.push(row);
        ratios.push(ratio);
    }
    sides.stop().await?;
    Ok(ratios)
}

async fn sides(options: &Options) -> Result<Sides> {
    Sides::start(&options.clock, &[("loop.mode", "reactive")], &[]).await
}

/// Compares the answers to `checked` once, and the times of `query` in turns.
async fn compare(
    options: &Options,
    sides: &Sides,
    (suite, number): (&'static str, u64),
    (query, checked): (&str, &str),
) -> Result<(Row, f64)> {
    let name = format!("q{number}");
    let ours = sides.ours(checked).await.with_context(|| format!("{suite} {name}"))?;
    let theirs = sides.plain(checked).await.with_context(|| format!("plain {suite} {name}"))?;
    same(&ours, &theirs).with_context(|| format!("the answers to {suite} {name} differ"))?;
    let answers = ours.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
    drop((ours, theirs));
    let (_, ns) = sides.ask_plain(query).await?;
    let counted = if options.quick { 3 } else { rounds_of(ns) };
    let rounds = Rounds { warm_up: 1, counted };
    // Ahead of either side, so that neither comes to colder caches than the other.
    let empty = async |_arm| sides.empty().await;
    let [ours, plain] = interleave(&*options.clock, rounds, empty, async |arm| {
        match arm {
            0 => drop(sides.ours(query).await?),
            _ => drop(sides.plain(query).await?),
        }
        Ok(())
    })
    .await?;
    let pair = Pair { ours, plain };
    let ratio = pair.ratio().median;
    eprintln!("{suite} {name:>3}: {ratio:.3}");
    let row = Row::default().with("suite", suite).with("query", name).with("rows", answers);
    Ok((pair.with_ratio(row), ratio))
}

/// Rounds of a query that takes plain DataFusion so long. Short ones take one of several times, depending on
/// which threads share a core at the moment: a middle of few is any of these.
fn rounds_of(plain_ns: u64) -> usize {
    let rounds = ROUNDS_NS / plain_ns.max(1);
    usize::try_from(rounds).unwrap_or(usize::MAX).clamp(15, 101)
}

fn figures(tpch: &[f64], clickbench: &[f64]) -> Vec<Figure> {
    let all = [tpch, clickbench].concat();
    let worst = |ratios: &[f64]| ratios.iter().copied().fold(f64::NAN, f64::max);
    let mean = geometric_mean;
    let ratio = |name, value| Figure::reported(name, value, "ratio");
    vec![
        Figure::bounded("geomean_ratio", mean(&all), "ratio", Bound::AtMost(1.03)),
        Figure::bounded("worst_ratio", worst(&all), "ratio", Bound::AtMost(1.15)),
        ratio("geomean_ratio_tpch", mean(tpch)),
        ratio("worst_ratio_tpch", worst(tpch)),
        ratio("geomean_ratio_clickbench", mean(clickbench)),
        ratio("worst_ratio_clickbench", worst(clickbench)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_queries_are_asked_more_often() {
        let ms = |ms: u64| rounds_of(ms * 1_000_000);
        assert_eq!([0, 2, 40, 500].map(ms), [101, 101, 50, 15]);
    }

    #[test]
    fn a_mean_or_a_single_query_above_its_bound_is_missed_and_each_suite_is_reported() {
        let kept = figures(&[1.0, 1.02], &[1.01]);
        assert!(kept.iter().all(|figure| figure.holds));
        let slow = figures(&[1.1, 1.1], &[1.1]);
        assert_eq!((slow[0].holds, slow[1].holds), (false, true));
        let one = figures(&[1.0, 0.8], &[1.2]);
        assert_eq!((one[0].holds, one[1].holds), (true, false));
        assert_eq!((one[3].value, one[5].value), (1.0, 1.2));
        assert!(!figures(&[], &[])[0].holds);
    }
}
