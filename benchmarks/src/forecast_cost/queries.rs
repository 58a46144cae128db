//! What queries notice of a network that is trained as the loop trains, again and again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};
use foreshard::demo::measure::quantile;
use foreshard_actors::background::{behind_others, pauses};
use foreshard_actors::lstm::{Lstm, LstmConfig};
use foreshard_actors::ports::SharedClock;
use foreshard_actors::traffic::TrafficGauge;
use foreshard_policy::config::LoopConfig;
use foreshard_policy::forecast::{Effort, Member, Past, Series, Window};
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

/// How long the network is trained before, without queries.
const ALONE: Duration = Duration::from_secs(2);

/// Rows of the table.
const ROWS: i64 = 600;

/// Some tens of milliseconds on all cores; nothing of it is stored.
const SQL: &str =
    "SELECT category, count(*), avg(ncd(body, reply)) FROM posts GROUP BY category ORDER BY 1";

/// Times of queries while the network is trained, over those while it is not; and what came of training.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noticed {
    pub(super) median: f64,
    pub(super) p95: f64,
    /// Training steps a second beside queries, over those a second without any.
    pub(super) pace: f64,
}

/// Puts one query again and again, in turns with and without training in the background, as the loop
/// trains: behind all other threads, and with the pauses that it makes while queries run. Other than in the
/// loop, one fit follows the other.
pub(super) async fn noticed(options: &Options) -> Result<Noticed> {
    let settings = [("loop.mode", "off"), ("loop.lstm.enabled", "false")];
    let mut sides = Sides::start(&options.clock, &settings, &[]).await?;
    let columns = vec![Column::Id, Column::Category, Column::Body, Column::Reply];
    let posts = Posts { seed: options.seed, words: 40, rows_a_day: 80, columns };
    sides.add_table("posts", posts.schema(), "id", posts.batches(0..ROWS)?).await?;
    let lesson = Lesson::new(options, Arc::clone(&sides.engine().control_loop().board().traffic));
    let training = Training::start(&lesson, Lstm::new(LstmConfig::default())?);
    tokio::time::sleep(ALONE).await;
    let mut done = training.stop()?;
    let alone_pace = done.pace;
    let turns = if options.quick { TURNS_QUICK } else { TURNS };
    let (mut alone, mut trained, mut paces) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..2 * turns {
        // Two and two, so that a drifting machine favours neither.
        let trains = matches!(turn % 4, 1 | 2);
        if trains {
            let training = Training::start(&lesson, done.network);
            ask(&sides, &mut trained).await?;
            done = training.stop()?;
            paces.push(done.pace);
        } else {
            ask(&sides, &mut alone).await?;
        }
    }
    sides.stop().await?;
    let ratio = |q: f64| quantile(&trained, q) / quantile(&alone, q);
    let pace = paces.iter().sum::<f64>() / paces.len().max(1) as f64 / alone_pace;
    Ok(Noticed { median: ratio(0.5), p95: ratio(0.95), pace })
}

/// Puts the queries of one turn.
async fn ask(sides: &Sides, took: &mut Vec<u64>) -> Result<()> {
    for _ in 0..QUERIES {
        took.push(sides.ask_engine(SQL).await?.1);
    }
    Ok(())
}

/// A network that is trained until it is stopped.
struct Training {
    is_over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Trained>>,
}

/// What came of it.
struct Trained {
    network: Lstm,
    /// Training steps a second.
    pace: f64,
}

impl Training {
    fn start(lesson: &Arc<Lesson>, network: Lstm) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (told, lesson) = (Arc::clone(&is_over), Arc::clone(lesson));
        let thread = std::thread::spawn(move || behind_others(|| lesson.train(network, &told)));
        Self { is_over, thread }
    }

    fn stop(self) -> Result<Trained> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_panic| anyhow!("training broke off"))?
    }
}

/// What is learned from, and how.
struct Lesson {
    pasts: Vec<Past>,
    gauge: Arc<TrafficGauge>,
    clock: SharedClock,
}

impl Lesson {
    fn new(options: &Options, gauge: Arc<TrafficGauge>) -> Arc<Self> {
        let mut load = Load::new(SERIES, options.seed);
        let past = |series: usize| Past::new((0..DAY).map(|tick| load.calls(series, tick)));
        let pasts = (0..SERIES).map(past).collect();
        Arc::new(Self { pasts, gauge, clock: Arc::clone(&options.clock) })
    }

    fn train(&self, mut network: Lstm, is_over: &AtomicBool) -> Result<Trained> {
        let ids = (0..).zip(&self.pasts);
        let series: Vec<Series<'_>> = ids.map(|(id, past)| past.series(DAY, id, &[])).collect();
        let at = Tick(DAY as u64);
        let window = Window { at, tick_ms: 60_000, epoch_ms: 0, series: &series };
        let settings = LoopConfig::default();
        let pause = {
            let share = settings.lstm().busy_share();
            pauses(share, &self.gauge, &*self.clock, std::thread::sleep)
        };
        let effort = Effort::steps(settings.lstm().steps_per_tick()).with_pauses(&pause);
        let (started, mut steps) = (self.clock.monotonic_ns(), 0);
        while !is_over.load(Ordering::Relaxed) {
            steps += u64::from(network.fit(&window, &HORIZONS, effort)?.steps);
            if network.progress().is_some_and(|progress| progress.frozen_since.is_some()) {
                // It has learned what there is, and would rest.
                network = Lstm::new(LstmConfig::default())?;
            }
        }
        let seconds = self.clock.monotonic_ns().saturating_sub(started) as f64 / 1e9;
        Ok(Trained { network, pace: steps as f64 / seconds.max(1e-9) })
    }
}
