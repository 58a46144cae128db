//! Does one person's second question use what the first one computed? An analyst's session of 30
//! questions about overlapping rows, with one dear function.
//!
//! No question covers the whole table or a whole segment, so an engine that stores only what it
//! computed for a whole segment gains nothing here. Whatever the questions are, no row needs the
//! function twice: the number of rows that the function is evaluated on is counted in the function
//! itself and compared with the number of distinct rows that the session touches.
//!
//! The loop is `reactive`: nothing is computed ahead. The same session is played once more with the
//! loop `off`; it must miss what the bounds ask for, or they would prove nothing.

use anyhow::Result;

use crate::analyst::{ASKS, Ask, DAYS, session};
use crate::arms::{Pair, Rounds};
use crate::posts::{Column, Posts};
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};
use crate::sides::{Asked, Sides};

/// The function, some 70 us a row.
const CALL: &str = "ncd(body, reply)";
/// About half of its values are below.
const LOW: f64 = 0.75;
/// The table is written in so many commits, one after the other, as time goes by.
const COMMITS: i64 = 12;

/// Runs the benchmark.
///
/// # Errors
/// The first error of either side, or an answer that differs.
pub async fn run(options: Options) -> Result<Found> {
    let rows_a_day = if options.quick { 6 } else { 80 };
    let columns = vec![
        Column::Id,
        Column::Day,
        Column::Region,
        Column::Category,
        Column::Price,
        Column::Body,
        Column::Reply,
    ];
    let posts = Posts { seed: options.seed, words: 40, rows_a_day, columns };
    let asks = session(options.seed);
    let mut questions = vec![Pair::default(); ASKS];
    let mut found = Session::default();
    let rounds = Rounds::long(options.quick);
    for (round, counts) in rounds.all() {
        let played = Box::pin(play(&options, &posts, &asks, "reactive", round)).await?;
        eprintln!("session {round}: {:.1} times as fast", played.speedup());
        found.rows_ours = found.rows_ours.max(played.rows_ours);
        (found.rows_plain, found.rows_distinct) = (played.rows_plain, played.rows_distinct);
        if counts {
            found
                .pair
                .push(played.total(|asked| asked.ours_ns), played.total(|asked| asked.plain_ns));
            for (question, asked) in questions.iter_mut().zip(&played.asked) {
                question.push(asked.ours_ns, asked.plain_ns);
            }
        }
    }
    let off = Box::pin(play(&options, &posts, &asks, "off", 0)).await?;
    let mut rows: Vec<Row> = asks
        .iter()
        .zip(&questions)
        .map(|(ask, pair)| pair.with_speedup(row(format!("{:?} {:?}", ask.by, ask.shape))))
        .collect();
    rows.push(found.pair.with_speedup(row("whole session".to_owned())));
    Ok((rows, figures(&found, &off)))
}

fn row(question: String) -> Row {
    Row::default().with("question", question)
}

/// All repetitions of the session.
#[derive(Debug, Default)]
struct Session {
    pair: Pair,
    /// The most of all repetitions.
    rows_ours: u64,
    rows_plain: u64,
    rows_distinct: u64,
}

/// One repetition.
#[derive(Debug, Default)]
struct Played {
    asked: Vec<Asked>,
    rows_ours: u64,
    rows_plain: u64,
    rows_distinct: u64,
}

impl Played {
    fn total(&self, ns: impl Fn(&Asked) -> u64) -> u64 {
        self.asked.iter().map(ns).sum()
    }

    fn speedup(&self) -> f64 {
        self.total(|asked| asked.plain_ns) as f64 / self.total(|asked| asked.ours_ns) as f64
    }
}

/// One session on fresh sides: question by question, the sides in turns.
async fn play(
    options: &Options,
    posts: &Posts,
    asks: &[Ask],
    mode: &str,
    round: usize,
) -> Result<Played> {
    let mut sides = Sides::start(&options.clock, &[("loop.mode", mode)], &["ncd"]).await?;
    let rows = i64::from(DAYS) * posts.rows_a_day;
    sides.add_table("posts", posts.schema(), "id", vec![]).await?;
    for commit in 0..COMMITS {
        let ids = rows * commit / COMMITS..rows * (commit + 1) / COMMITS;
        sides.append("posts", posts.batches(ids)?).await?;
    }
    let mut played = Played::default();
    for (turn, ask) in asks.iter().enumerate() {
        played.asked.push(sides.ask(&ask.sql("posts", CALL, LOW), round + turn).await?);
    }
    (played.rows_ours, played.rows_plain) = (sides.rows_ours(), sides.rows_plain());
    let touched: Vec<String> =
        asks.iter().map(|ask| format!("({})", ask.window.predicate())).collect();
    let sql = format!("SELECT count(*) FROM posts WHERE {}", touched.join(" OR "));
    played.rows_distinct = sides.plain_number(&sql).await? as u64;
    sides.stop().await?;
    Ok(played)
}

fn figures(found: &Session, off: &Played) -> Vec<Figure> {
    let per_distinct = |rows: u64| rows as f64 / found.rows_distinct as f64;
    let speedup = found.pair.speedup().median;
    vec![
        Figure::bounded("session_speedup", speedup, "times", Bound::AtLeast(4.0)),
        Figure::bounded(
            "rows_evaluated_per_distinct",
            per_distinct(found.rows_ours),
            "ratio",
            Bound::AtMost(1.0),
        ),
        Figure::bounded("session_speedup_off", off.speedup(), "times", Bound::Below(4.0)),
        Figure::bounded(
            "rows_evaluated_per_distinct_off",
            per_distinct(off.rows_ours),
            "ratio",
            Bound::AtLeast(2.0),
        ),
        Figure::reported(
            "rows_evaluated_per_distinct_plain",
            per_distinct(found.rows_plain),
            "ratio",
        ),
        Figure::reported("rows_distinct", found.rows_distinct as f64, "rows"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session_of(ours_ns: u64, rows_ours: u64) -> Session {
        let mut pair = Pair::default();
        pair.push(ours_ns, 1_000);
        Session { pair, rows_ours, rows_plain: 800, rows_distinct: 100 }
    }

    fn off() -> Played {
        let asked = vec![Asked { ours_ns: 1_000, plain_ns: 1_000, rows: 1 }];
        Played { asked, rows_ours: 800, rows_plain: 800, rows_distinct: 100 }
    }

    fn missed(figures: &[Figure]) -> Vec<&str> {
        let missed = figures.iter().filter(|figure| !figure.holds);
        missed.map(|figure| figure.name.as_str()).collect()
    }

    #[test]
    fn one_row_evaluated_twice_is_one_too_many() {
        assert_eq!(missed(&figures(&session_of(100, 100), &off())), [""; 0]);
        assert_eq!(
            missed(&figures(&session_of(100, 101), &off())),
            ["rows_evaluated_per_distinct"]
        );
    }

    #[test]
    fn an_engine_that_stores_nothing_misses_both_bounds() {
        assert_eq!(
            missed(&figures(&session_of(1_000, 800), &off())),
            ["session_speedup", "rows_evaluated_per_distinct"]
        );
    }

    #[test]
    fn a_control_that_is_as_good_as_the_engine_is_missed() {
        let good = Played { rows_ours: 100, ..off() };
        assert_eq!(
            missed(&figures(&session_of(100, 100), &good)),
            ["rows_evaluated_per_distinct_off"]
        );
    }
}
