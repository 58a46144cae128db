//! Does the work follow what is new? A dashboard of twelve aggregate queries, asked again each time
//! that one percent has been appended.
//!
//! Half of the queries aggregate what functions say of posts, half aggregate plain columns of two
//! million sales, grouped and counted as dashboards do. The first look pays for itself and is not
//! counted; in every later one 99 % of the rows were there before. Plain DataFusion starts from the
//! first row each time, over the same rows in memory.
//!
//! The two tables are sized so that either half is about half of plain's time.

use anyhow::{Context, Result};

use crate::arms::{Pair, Rounds};
use crate::posts::{Column, Posts};
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};
use crate::sides::Sides;

/// Looks at the dashboard after the first.
const LOOKS: i64 = 6;

/// Which table a query reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Functions,
    Columns,
}

/// The queries without functions: over `sales`.
const OVER_COLUMNS: [(&str, &str); 6] = [
    ("sales by day", "SELECT day, count(*) AS sales, sum(price) AS paid FROM sales GROUP BY day"),
    (
        "prices by category",
        "SELECT category, avg(price) AS mean, min(price) AS low, max(price) AS high FROM sales \
         GROUP BY category",
    ),
    (
        "pieces by region and category",
        "SELECT region, category, sum(quantity) AS pieces, count(*) AS sales FROM sales \
         GROUP BY region, category",
    ),
    (
        "all sales",
        "SELECT count(*) AS sales, sum(price) AS paid, avg(quantity) AS pieces, max(day) AS newest \
         FROM sales",
    ),
    (
        "customers by day",
        "SELECT day, count(DISTINCT customer) AS customers FROM sales GROUP BY day",
    ),
    (
        "large sales by region",
        "SELECT region, count(*) AS sales, max(price) AS high, count(DISTINCT customer) AS customers \
         FROM sales WHERE quantity > 2 GROUP BY region",
    ),
];

/// The queries with functions: over `posts`.
const OVER_FUNCTIONS: [(&str, &str); 6] = [
    (
        "posts by language",
        "SELECT language(body) AS spoken, count(*) AS posts FROM posts GROUP BY 1",
    ),
    (
        "mood by category",
        "SELECT category, avg(sentiment(body)) AS mood, count(*) AS posts FROM posts \
         GROUP BY category",
    ),
    (
        "likeness of replies by region",
        "SELECT region, avg(ncd(body, reply)) AS mean, max(ncd(body, reply)) AS farthest FROM posts \
         GROUP BY region",
    ),
    (
        "towns as they are spelt",
        "SELECT best_match(town, 'Zürich|Genève|Bern|Hamburg|München|Marseille|Bordeaux|Manchester|\
         Edinburgh|Barcelona|Valencia|Palermo') AS meant, count(*) AS posts, avg(price) AS paid \
         FROM posts GROUP BY 1",
    ),
    (
        "languages and moods by day",
        "SELECT day, count(DISTINCT language(body)) AS spoken, min(sentiment(body)) AS worst, \
         max(sentiment(body)) AS best FROM posts GROUP BY day",
    ),
    (
        "close replies in German",
        "SELECT count(*) AS posts, avg(price) AS paid FROM posts \
         WHERE language(body) = 'deu' AND ncd(body, reply) < 0.7",
    ),
];

/// Runs the benchmark.
///
/// # Errors
/// The first error of either side, or an answer that differs.
pub async fn run(options: Options) -> Result<Found> {
    let tables = Tables::new(&options);
    let queries: Vec<(Half, &str, &str)> = OVER_COLUMNS
        .iter()
        .map(|(name, sql)| (Half::Columns, *name, *sql))
        .chain(OVER_FUNCTIONS.iter().map(|(name, sql)| (Half::Functions, *name, *sql)))
        .collect();
    let mut pairs = vec![Pair::default(); queries.len()];
    let mut whole = Whole::default();
    for (round, counts) in Rounds::long(options.quick).all() {
        let times = Box::pin(play(&options, &tables, &queries, round)).await?;
        let total = |half: Option<Half>| {
            let of_half = queries.iter().zip(&times);
            let of_half = of_half.filter(|((is, ..), _)| half.is_none_or(|half| half == *is));
            of_half.fold((0, 0), |sum, (_, time)| (sum.0 + time.0, sum.1 + time.1))
        };
        let all = total(None);
        eprintln!("dashboard {round}: {:.1} times as fast", all.1 as f64 / all.0 as f64);
        if counts {
            whole.push(all, total(Some(Half::Functions)), total(Some(Half::Columns)));
            for (pair, (ours, plain)) in pairs.iter_mut().zip(times) {
                pair.push(ours, plain);
            }
        }
    }
    let named = |(half, name): (String, &str)| {
        Row::default().with("half", half.to_lowercase()).with("query", name)
    };
    let mut rows: Vec<Row> = queries
        .iter()
        .zip(&pairs)
        .map(|((half, name, _), pair)| pair.with_speedup(named((format!("{half:?}"), name))))
        .collect();
    rows.push(whole.all.with_speedup(named(("both".to_owned(), "whole dashboard"))));
    Ok((rows, figures(&whole)))
}

/// What the dashboard is about.
struct Tables {
    sales: (Posts, i64),
    posts: (Posts, i64),
}

impl Tables {
    fn new(options: &Options) -> Self {
        let (sales, posts) = if options.quick { (60_000, 600) } else { (2_000_000, 6_000) };
        let table = |rows: i64, words, columns: &[Column]| {
            let columns = columns.to_vec();
            (Posts { seed: options.seed, words, rows_a_day: rows / 90, columns }, rows)
        };
        Self {
            sales: table(
                sales,
                0,
                &[
                    Column::Id,
                    Column::Day,
                    Column::Region,
                    Column::Category,
                    Column::Price,
                    Column::Quantity,
                    Column::Customer,
                ],
            ),
            posts: table(
                posts,
                30,
                &[
                    Column::Id,
                    Column::Day,
                    Column::Region,
                    Column::Category,
                    Column::Price,
                    Column::Town,
                    Column::Body,
                    Column::Reply,
                ],
            ),
        }
    }
}

/// Plays all looks on fresh sides; gives our and plain's nanoseconds for each query over all looks but
/// the first.
async fn play(
    options: &Options,
    tables: &Tables,
    queries: &[(Half, &str, &str)],
    round: usize,
) -> Result<Vec<(u64, u64)>> {
    let mut sides = Sides::start(&options.clock, &[("loop.mode", "reactive")], &[]).await?;
    let both = [("sales", &tables.sales), ("posts", &tables.posts)];
    for (name, (table, rows)) in both {
        sides.add_table(name, table.schema(), "id", table.batches(0..*rows)?).await?;
    }
    let mut times = vec![(0, 0); queries.len()];
    for look in 0..=LOOKS {
        for (turn, (_, name, sql)) in queries.iter().enumerate() {
            let asked = sides.ask(sql, round + look as usize + turn).await;
            let asked = asked.with_context(|| format!("{name}, look {look}"))?;
            if look > 0 {
                times[turn] = (times[turn].0 + asked.ours_ns, times[turn].1 + asked.plain_ns);
            }
        }
        for (name, (table, rows)) in both {
            let each = rows / 100;
            let first = rows + look * each;
            sides.append(name, table.batches(first..first + each)?).await?;
        }
    }
    sides.stop().await?;
    Ok(times)
}

/// Totals over all looks but the first, one per repetition.
#[derive(Debug, Default)]
struct Whole {
    all: Pair,
    functions: Pair,
    columns: Pair,
}

impl Whole {
    fn push(&mut self, all: (u64, u64), functions: (u64, u64), columns: (u64, u64)) {
        self.all.push(all.0, all.1);
        self.functions.push(functions.0, functions.1);
        self.columns.push(columns.0, columns.1);
    }
}

fn figures(whole: &Whole) -> Vec<Figure> {
    let speedup = |pair: &Pair| pair.speedup().median;
    let share = whole.functions.plain.median() / whole.all.plain.median();
    vec![
        Figure::bounded("dashboard_speedup", speedup(&whole.all), "times", Bound::AtLeast(10.0)),
        Figure::reported("dashboard_speedup_functions", speedup(&whole.functions), "times"),
        Figure::reported("dashboard_speedup_columns", speedup(&whole.columns), "times"),
        Figure::reported("functions_share_of_plain", share, "ratio"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speedup_is_that_of_all_queries_together() {
        let mut whole = Whole::default();
        whole.push((30, 400), (10, 300), (20, 100));
        let found = figures(&whole);
        assert!(found[0].holds);
        assert_eq!((found[1].value, found[2].value, found[3].value), (30.0, 5.0, 0.75));
        let mut slow = Whole::default();
        slow.push((50, 400), (10, 300), (40, 100));
        assert!(!figures(&slow)[0].holds);
    }
}
