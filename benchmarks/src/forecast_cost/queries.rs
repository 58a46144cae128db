//! What queries notice of a network that is trained all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, anyhow};
use foreshard::demo::measure::quantile;
use foreshard_actors::background::behind_others;
use foreshard_actors::lstm::{Lstm, LstmConfig};
use foreshard_policy::forecast::{Member, Past, Series, Window};
use foreshard_policy::ids::Tick;

use super::load::Load;
use super::{DAY, HORIZONS};
use crate::posts::{Column, Posts};
use crate::program::Options;
use crate::sides::Sides;

/// Series of the history that is learned from.
const SERIES: usize = 200;

/// Queries of one turn; there are two turns of each kind, or so many.
const QUERIES: usize = 60;
const TURNS: usize = 10;
const TURNS_QUICK: usize = 1;

/// Rows of the table.
const ROWS: i64 = 600;

/// Some tens of milliseconds on all cores; nothing of it is stored.
const SQL: &str =
    "SELECT category, count(*), avg(ncd(body, reply)) FROM posts GROUP BY category ORDER BY 1";

/// Times of queries while the network is trained, over those while it is not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noticed {
    pub(super) median: f64,
    pub(super) p95: f64,
}

/// Puts one query again and again, in turns with and without training in the background, as the loop
/// trains: behind all other threads.
pub(super) async fn noticed(options: &Options) -> Result<Noticed> {
    let settings = [("loop.mode", "off"), ("loop.lstm.enabled", "false")];
    let mut sides = Sides::start(&options.clock, &settings, &[]).await?;
    let columns = vec![Column::Id, Column::Category, Column::Body, Column::Reply];
    let posts = Posts { seed: options.seed, words: 40, rows_a_day: 80, columns };
    sides.add_table("posts", posts.schema(), "id", posts.batches(0..ROWS)?).await?;
    let turns = if options.quick { TURNS_QUICK } else { TURNS };
    let (mut alone, mut trained) = (Vec::new(), Vec::new());
    for turn in 0..2 * turns {
        // Two and two, so that a drifting machine favours neither.
        let trains = matches!(turn % 4, 1 | 2);
        let training = trains.then(|| Training::start(options.seed));
        for _ in 0..QUERIES {
            let (_, ns) = sides.ask_engine(SQL).await?;
            if trains { trained.push(ns) } else { alone.push(ns) }
        }
        if let Some(training) = training {
            let fits = training.stop()?;
            anyhow::ensure!(fits > 0, "the network was not trained");
        }
    }
    sides.stop().await?;
    let ratio = |q: f64| quantile(&trained, q) / quantile(&alone, q);
    Ok(Noticed { median: ratio(0.5), p95: ratio(0.95) })
}

/// A network that is trained until it is stopped.
struct Training {
    is_over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<u64>>,
}

impl Training {
    fn start(seed: u64) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || behind_others(|| train(seed, &told)));
        Self { is_over, thread }
    }

    /// Answers how often it was fitted.
    fn stop(self) -> Result<u64> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_panic| anyhow!("training broke off"))?
    }
}

fn train(seed: u64, is_over: &AtomicBool) -> Result<u64> {
    let mut load = Load::new(SERIES, seed);
    let past = |series: usize| Past::new((0..DAY).map(|tick| load.calls(series, tick)));
    let pasts: Vec<Past> = (0..SERIES).map(past).collect();
    let series: Vec<Series<'_>> =
        (0..).zip(&pasts).map(|(id, past)| past.series(DAY, id, &[])).collect();
    let window = Window { at: Tick(DAY as u64), tick_ms: 60_000, epoch_ms: 0, series: &series };
    let mut network = Lstm::new(LstmConfig::default())?;
    let mut fits = 0;
    // The first fit is made in any case: short turns say nothing otherwise.
    while fits == 0 || !is_over.load(Ordering::Relaxed) {
        network.fit(&window, &HORIZONS, 1)?;
        fits += 1;
    }
    Ok(fits)
}
