//! What does it cost where storing cannot pay? Four loads that are made against the engine: unique
//! arguments in ever new segments, a function that is cheaper than looking its output up, updates of
//! every segment in each round, and a memory budget of a twentieth of the data.
//!
//! Everything is on and nobody waits: what the engine stores in the background, and for nothing, takes
//! its time from its next query. So that it takes none from plain DataFusion, each repetition plays the
//! whole load on the engine and then, over the same rows at each turn, on plain DataFusion. Queries are
//! timed; how rows come into the tables is not, since plain DataFusion has no commits to compare with.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;

use crate::answers::same;
use crate::arms::{Pair, Rounds};
use crate::posts::{Column, Posts};
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};
use crate::sides::Sides;

/// The table of every load.
const TABLE: &str = "posts";
/// Turns of one load.
const TURNS: usize = 8;
/// Part of the data that the small budget is.
const BUDGET_SHARE: f64 = 0.05;
/// Smallest budget that a node can have.
const BUDGET_BYTES_MIN: u64 = 1 << 20;
/// Time between two looks at the memory that a node uses.
const SAMPLING: Duration = Duration::from_millis(5);

/// A load that is made against the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    NewSegments,
    CheapFunction,
    Updates,
    SmallBudget,
}

const LOADS: [Load; 4] = [Load::NewSegments, Load::CheapFunction, Load::Updates, Load::SmallBudget];

impl Load {
    fn name(self) -> &'static str {
        match self {
            Self::NewSegments => "new_segments",
            Self::CheapFunction => "cheap_function",
            Self::Updates => "updates",
            Self::SmallBudget => "small_budget",
        }
    }
}

/// Runs the benchmark.
///
/// # Errors
/// The first error of either side, or an answer that differs.
pub async fn run(options: Options) -> Result<Found> {
    let mut results = vec![];
    let mut exceeded = 0;
    for load in LOADS {
        let mut pair = Pair::default();
        for (_, counts) in Rounds::long(options.quick).all() {
            let play = Play { options: &options };
            let times = match load {
                Load::NewSegments => Box::pin(play.new_segments()).await?,
                Load::CheapFunction => Box::pin(play.cheap_function()).await?,
                Load::Updates => Box::pin(play.updates()).await?,
                Load::SmallBudget => Box::pin(play.small_budget(&mut exceeded)).await?,
            };
            if counts {
                pair.push(times.0, times.1);
            }
        }
        eprintln!("{}: {:.3}", load.name(), pair.ratio().median);
        results.push((load, pair));
    }
    let rows = results
        .iter()
        .map(|(load, pair)| pair.with_ratio(Row::default().with("load", load.name())))
        .collect();
    Ok((rows, figures(&results, exceeded)))
}

/// One repetition of one load.
#[derive(Clone, Copy, Debug)]
struct Play<'a> {
    options: &'a Options,
}

/// Nanoseconds of the engine and of plain DataFusion.
type Times = (u64, u64);

/// What the engine was asked so far, its answers, and the rows that it was asked about.
#[derive(Debug, Default)]
struct Played {
    asked: Vec<(String, Vec<RecordBatch>, Arc<dyn TableProvider>)>,
    ours_ns: u64,
}

impl Played {
    async fn ask(&mut self, sides: &Sides, sql: &str) -> Result<()> {
        let (answer, ns) = sides.ask_engine(sql).await?;
        self.asked.push((sql.to_owned(), answer, sides.plain_rows(TABLE).await?));
        self.ours_ns += ns;
        Ok(())
    }

    /// Asks plain DataFusion the same about the same rows, and stops.
    async fn finish(self, sides: Sides) -> Result<Times> {
        sides.think().await;
        let mut plain_ns = 0;
        for (sql, ours, rows) in self.asked {
            sides.set_plain_rows(TABLE, rows)?;
            let (plain, ns) = sides.ask_plain(&sql).await?;
            same(&ours, &plain).with_context(|| format!("the answers to {sql} differ"))?;
            plain_ns += ns;
        }
        sides.stop().await?;
        Ok((self.ours_ns, plain_ns))
    }
}

impl Play<'_> {
    fn rows(&self, rows: i64) -> i64 {
        if self.options.quick { rows / 20 } else { rows }
    }

    fn posts(&self, words: usize, rows_a_day: i64, columns: &[Column]) -> Posts {
        let mut all = vec![Column::Id, Column::Day];
        all.extend_from_slice(columns);
        Posts { seed: self.options.seed, words, rows_a_day, columns: all }
    }

    async fn sides(&self, settings: &[(&str, &str)]) -> Result<Sides> {
        Sides::start(&self.options.clock, settings, &[]).await
    }

    /// Each turn brings rows that nobody asked about, and nobody asks about them again.
    async fn new_segments(&self) -> Result<Times> {
        let each = self.rows(3_000);
        let posts = self.posts(40, each, &[Column::Body, Column::Reply]);
        let mut sides = self.sides(&[]).await?;
        sides.add_table(TABLE, posts.schema(), "id", vec![]).await?;
        let mut load = Played::default();
        for turn in 0..TURNS {
            let first = turn as i64 * each;
            sides.append(TABLE, posts.batches(first..first + each)?).await?;
            let sql = format!(
                "SELECT count(*) AS posts, max(ncd(body, reply)) AS farthest FROM posts \
                 WHERE day = {turn}"
            );
            load.ask(&sides, &sql).await?;
        }
        load.finish(sides).await
    }

    /// The same call over the same rows each turn, which tempts to store; but it takes less than a
    /// look at what is stored.
    async fn cheap_function(&self) -> Result<Times> {
        let rows = self.rows(1_000_000);
        let posts = self.posts(0, rows, &[Column::Latitude, Column::Longitude]);
        let mut sides = self.sides(&[]).await?;
        sides.add_table(TABLE, posts.schema(), "id", posts.batches(0..rows)?).await?;
        let mut times = (0, 0);
        for turn in 0..TURNS {
            let sql = format!(
                "SELECT count(*) AS posts FROM posts \
                 WHERE haversine_km(latitude, longitude, 47.4, 8.5) < {}",
                100 * (turn + 1)
            );
            let asked = sides.ask(&sql, turn).await?;
            times = (times.0 + asked.ours_ns, times.1 + asked.plain_ns);
        }
        sides.stop().await?;
        Ok(times)
    }

    /// Each turn replaces every segment, though few rows of each.
    async fn updates(&self) -> Result<Times> {
        let rows = self.rows(4_000);
        let columns = [Column::Quantity, Column::Body, Column::Reply];
        let posts = self.posts(40, rows, &columns);
        let mut sides = self.sides(&[]).await?;
        sides.add_table(TABLE, posts.schema(), "id", posts.batches(0..rows)?).await?;
        let mut load = Played::default();
        for turn in 0..TURNS {
            let update = format!("UPDATE posts SET quantity = quantity + 1 WHERE id % 8 = {turn}");
            sides.engine().sql(&update).await?;
            sides.mirror(TABLE).await?;
            let sql =
                "SELECT sum(quantity) AS pieces, max(ncd(body, reply)) AS farthest FROM posts";
            load.ask(&sides, sql).await?;
        }
        load.finish(sides).await
    }

    /// More outputs than there is memory for, asked for in a circle: what is asked for next is what
    /// was thrown away first. Counts how often a node was seen over its budget.
    async fn small_budget(&self, exceeded: &mut u64) -> Result<Times> {
        let rows = self.rows(40_000);
        let posts = self.posts(80, rows, &[Column::Author, Column::Body]);
        let batches = posts.batches(0..rows)?;
        let bytes: usize = batches.iter().map(|batch| batch.get_array_memory_size()).sum();
        let budget = ((bytes as f64 * BUDGET_SHARE) as u64).max(BUDGET_BYTES_MIN).to_string();
        let mut sides = self.sides(&[("loop.allocate.memory-bytes", &budget)]).await?;
        sides.add_table(TABLE, posts.schema(), "id", batches).await?;
        let questions: Vec<String> = (1..=6)
            .map(|list| {
                let names = Posts { seed: posts.seed + list, ..posts.clone() }.candidates(20, 3);
                format!(
                    "SELECT best_match(author, '{names}') AS meant, count(*) AS posts FROM posts \
                     GROUP BY 1"
                )
            })
            .collect();
        let mut load = Played::default();
        for sql in questions.iter().chain(&questions) {
            load.ask(&sides, sql).await?;
            *exceeded += over_budget(&sides).await?;
        }
        // Once more, watched while they run; that is not timed.
        for sql in &questions {
            *exceeded += watched(&sides, sql).await?;
        }
        load.finish(sides).await
    }
}

/// Nodes that use more than their budget now.
async fn over_budget(sides: &Sides) -> Result<u64> {
    let sql = "SELECT count(*) FROM system.nodes WHERE memory_bytes > memory_bytes_max";
    Ok(sides.number(sql).await? as u64)
}

/// How often a node was seen over its budget while the engine answered a question.
async fn watched(sides: &Sides, sql: &str) -> Result<u64> {
    let mut exceeded = 0;
    let mut question = Box::pin(sides.engine().sql(sql));
    loop {
        tokio::select! {
            answer = &mut question => {
                answer?;
                return Ok(exceeded);
            }
            () = tokio::time::sleep(SAMPLING) => exceeded += over_budget(sides).await?,
        }
    }
}

fn figures(results: &[(Load, Pair)], exceeded: u64) -> Vec<Figure> {
    let ratio = |pair: &Pair| pair.ratio().median;
    let worst = results.iter().map(|(_, pair)| ratio(pair)).fold(f64::NAN, f64::max);
    let mut figures = vec![
        Figure::bounded("worst_ratio", worst, "ratio", Bound::AtMost(1.05)),
        Figure::bounded("budget_exceeded", exceeded as f64, "samples", Bound::AtMost(0.0)),
    ];
    for (load, pair) in results {
        figures.push(Figure::reported(&format!("ratio_{}", load.name()), ratio(pair), "ratio"));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(load: Load, ours: u64) -> (Load, Pair) {
        let mut pair = Pair::default();
        pair.push(ours, 100);
        (load, pair)
    }

    #[test]
    fn one_slow_load_or_one_sample_over_the_budget_is_missed() {
        let holds = |slow: u64, exceeded: u64| {
            let results = [result(Load::Updates, 100), result(Load::SmallBudget, slow)];
            let figures = figures(&results, exceeded);
            (figures[0].holds, figures[1].holds)
        };
        assert_eq!(holds(105, 0), (true, true));
        assert_eq!(holds(106, 0), (false, true));
        assert_eq!(holds(90, 1), (true, false));
        assert!(!figures(&[], 0)[0].holds);
    }
}
