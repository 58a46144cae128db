//! One engine that plays an arm: rows come each minute, calls come when the schedule says so, whether or not
//! those before were answered.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use foreshard::{Config, Engine};
use foreshard_actors::ports::{Clock, Outlook, SharedClock};
use foreshard_policy::calls::CallRecord;
use foreshard_policy::decision::{DecisionRow, Outcome};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::functions::{TABLE, checksum, place, sql};
use super::load::Call;
use super::outlooks::{ByChance, First, Oracle, UsedLately};
use super::turn_clock::TurnClock;
use super::world::World;

/// Minutes that rows stay beyond those that a call may ask for, so that a late one finds them.
const MINUTES_SPARE: usize = 2;

/// Minutes after which decisions are read: fewer than the engine remembers are made meanwhile.
const READ_EVERY: usize = 8;

/// The kind of step that is taken ahead of calls.
const AHEAD: &str = "precompute";

/// What is done ahead of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Arm {
    /// Nothing is stored.
    Off,
    /// What a call computed is stored.
    Reactive,
    /// And what was used in the last day is computed when rows come.
    Eager,
    /// And everything is, in an order by chance.
    Random,
    /// And what is expected is.
    Forecast,
    /// And what is not expected is.
    Inverted,
    /// And what will be called is.
    Oracle,
}

impl Arm {
    pub(super) const ALL: [Self; 7] = [
        Self::Off,
        Self::Reactive,
        Self::Eager,
        Self::Random,
        Self::Forecast,
        Self::Inverted,
        Self::Oracle,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Reactive => "reactive",
            Self::Eager => "eager",
            Self::Random => "random",
            Self::Forecast => "forecast",
            Self::Inverted => "inverted",
            Self::Oracle => "oracle",
        }
    }

    fn mode(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Reactive => "reactive",
            Self::Eager | Self::Random | Self::Forecast | Self::Oracle => "forecast",
            Self::Inverted => "inverted",
        }
    }
}

/// One answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) minute: usize,
    /// From when it was due until its last row was there.
    pub(super) ns: u64,
    pub(super) checksum: u64,
}

/// What functions did in a minute.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Minute {
    pub(super) rows: u64,
    pub(super) rows_stored: u64,
    pub(super) rows_fresh: u64,
    pub(super) rows_fresh_stored: u64,
    /// Nanoseconds that calls computed.
    pub(super) ns: u64,
    /// What the fresh rows that were stored would have cost.
    pub(super) spared_ns: f64,
}

/// Everything that an arm did.
#[derive(Clone, Debug, Default)]
pub(super) struct Played {
    /// In the order of the calls.
    pub(super) answers: Vec<Answer>,
    pub(super) minutes: Vec<Minute>,
    /// Nanoseconds of background work, as the steps said.
    pub(super) background_ns: u64,
    pub(super) steps: u64,
    pub(super) steps_failed: u64,
    /// Ticks whose forecast could be acted on, of those that were looked at.
    pub(super) ticks_trusted: u64,
    /// How many computations ahead of calls were decided in each minute.
    pub(super) ahead: Vec<u64>,
}

/// An engine that plays.
pub(super) struct Player {
    pub(super) arm: Arm,
    pub(super) played: Played,
    engine: Engine,
    clock: Arc<TurnClock>,
    eager: Option<Arc<UsedLately>>,
    first: First,
    decisions: BTreeMap<u64, DecisionRow>,
    _folder: TempDir,
}

/// Starts an engine with the tables and functions, in a folder; none of it is known to its loop yet.
pub(super) async fn engine(
    world: &World,
    folder: &Path,
    mode: &str,
    outlook: Option<Arc<dyn Outlook>>,
    clock: SharedClock,
) -> Result<Engine> {
    let mut config = Config::default();
    for (key, value) in world.settings(folder, mode) {
        config = config.set(key, &value)?;
    }
    let builder = Engine::builder().config(config).clock(clock);
    let mut builder = builder.manual_ticks(true).keep_state(true);
    for function in &world.functions {
        builder = builder.function(function.card.clone(), function.udf.clone());
    }
    if let Some(outlook) = outlook {
        builder = builder.outlook(outlook);
    }
    let engine = builder.start().await?;
    let before = world.load.shape.window as i32;
    let rows =
        (1 - before..1).map(|minute| world.rows.minute(minute)).collect::<Result<Vec<_>>>()?;
    let (schema, partitioning) = (world.rows.schema(), world.rows.partitioning());
    engine.create_memory_table(TABLE, schema, partitioning, vec![]).await?;
    for minute in rows {
        engine.append(TABLE, vec![minute]).await?;
    }
    for function in 0..world.functions.len() {
        // One call of each: an expression that was never called cannot be computed ahead.
        engine.sql(&sql(function, 0, 0, 1)).await?;
    }
    Ok(engine)
}

impl Player {
    /// Starts an engine that knows what `learned` knows, and whose clock stands since that was kept.
    pub(super) async fn start(
        world: &World,
        arm: Arm,
        learned: &Path,
        clock: Arc<TurnClock>,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        copy_folder(&learned.join("loop"), &folder.path().join("loop"))?;
        let first = First::default();
        let lately = Arc::new(UsedLately::new(world.load.shape.minutes));
        let outlook: Option<Arc<dyn Outlook>> = match arm {
            Arm::Oracle => {
                Some(Arc::new(Oracle::new(world.load.shape, &world.calls, Arc::clone(&first))))
            }
            Arm::Random => Some(Arc::new(ByChance { seed: world.seed })),
            Arm::Eager => Some(Arc::clone(&lately) as Arc<dyn Outlook>),
            Arm::Off | Arm::Reactive | Arm::Forecast | Arm::Inverted => None,
        };
        let engine = engine(world, folder.path(), arm.mode(), outlook, clock.clone()).await?;
        let eager = (arm == Arm::Eager).then_some(lately);
        if let Some(eager) = &eager {
            eager.set_engine(Some(engine.clone()));
        }
        let minutes = vec![Minute::default(); world.load.played()];
        Ok(Self {
            arm,
            played: Played { minutes, ..Played::default() },
            engine,
            clock,
            eager,
            first,
            decisions: BTreeMap::new(),
            _folder: folder,
        })
    }

    /// Plays some minutes. Time stands still for this engine before and after.
    pub(super) async fn play(
        &mut self,
        world: &World,
        minutes: std::ops::Range<usize>,
    ) -> Result<()> {
        let calls = world.calls.iter().copied();
        let calls: Vec<Call> = calls.filter(|call| minutes.contains(&call.minute)).collect();
        self.clock.go_on();
        let began = tokio::time::Instant::now();
        let (began_ns, began_ms) = (self.clock.monotonic_ns(), self.clock.now_ms());
        let first = minutes.start;
        let due = move |minute: usize, at: f64, tick: Duration| {
            began + tick.mul_f64((minute - first) as f64 + at)
        };
        let (appended, seen) = watch::channel(first);
        let asked = ask(self.engine.clone(), self.clock.clone(), world, calls, seen, move |call| {
            let due = due(call.minute, call.at, world.tick);
            (due, began_ns + u64::try_from((due - began).as_nanos()).unwrap_or(u64::MAX))
        });
        let rows = async {
            let mut ticks = JoinSet::new();
            for minute in minutes.clone() {
                tokio::time::sleep_until(due(minute, 0.0, world.tick)).await;
                self.minute_begins(world, minute).await?;
                appended.send_replace(minute + 1);
                let the_loop = self.engine.control_loop().clone();
                // A late forecast keeps neither rows nor calls waiting.
                let first = Arc::clone(&self.first);
                ticks.spawn(async move {
                    let closed = the_loop.tick().await?;
                    first.get_or_init(|| closed.0);
                    anyhow::Ok(())
                });
                if minute % READ_EVERY == 0 {
                    self.read_decisions();
                    self.played.ticks_trusted += u64::from(self.engine.forecast().trusted);
                }
            }
            while let Some(tick) = ticks.join_next().await {
                tick?.context("a tick was skipped")?;
            }
            anyhow::Ok(())
        };
        let (answers, ()) = futures::future::try_join(asked, rows).await?;
        self.played.answers.extend(answers);
        self.engine.control_loop().settled().await;
        self.clock.stand();
        self.read_decisions();
        let tick_ms = world.tick.as_millis() as u64;
        for call in self.engine.calls() {
            let Some(since) = call.at_ms.checked_sub(began_ms) else { continue };
            let minute = (first + (since / tick_ms) as usize).min(minutes.end - 1);
            self.played.minutes[minute].count(&call);
        }
        Ok(())
    }

    /// Rows come, and the oldest go.
    async fn minute_begins(&self, world: &World, minute: usize) -> Result<()> {
        let minute = minute as i32 + 1;
        self.engine.append(TABLE, vec![world.rows.minute(minute)?]).await?;
        let oldest = minute - (world.load.shape.window + MINUTES_SPARE) as i32;
        self.engine.sql(&format!("DELETE FROM {TABLE} WHERE minute <= {oldest}")).await?;
        Ok(())
    }

    fn read_decisions(&mut self) {
        for row in self.engine.decisions() {
            self.decisions.insert(row.id, row);
        }
    }

    /// Stops the engine and answers what it did.
    pub(super) async fn end(mut self) -> Result<Played> {
        self.played.ahead = vec![0; self.played.minutes.len()];
        for row in self.decisions.values() {
            match row.outcome {
                Some(Outcome::Done { ns, .. }) => self.played.background_ns += ns,
                Some(Outcome::Failed { .. }) => self.played.steps_failed += 1,
                Some(Outcome::Left { .. }) | None => {}
            }
            let first = self.first.get().copied().unwrap_or_default();
            let minute = row.tick.0.checked_sub(first).map(|minute| minute as usize);
            let minute = minute.and_then(|minute| self.played.ahead.get_mut(minute));
            if let Some(count) = minute.filter(|_| row.kind == AHEAD) {
                *count += 1;
            }
        }
        self.played.steps = self.decisions.len() as u64;
        if let Some(eager) = &self.eager {
            eager.set_engine(None);
        }
        self.engine.shutdown().await?;
        Ok(self.played)
    }
}

/// Puts each call when it is due and its rows are there, and answers in the order of the calls.
async fn ask(
    engine: Engine,
    clock: SharedClock,
    world: &World,
    calls: Vec<Call>,
    mut appended: watch::Receiver<usize>,
    due: impl Fn(&Call) -> (tokio::time::Instant, u64),
) -> Result<Vec<Answer>> {
    let mut asked: JoinSet<Result<(usize, Answer)>> = JoinSet::new();
    let count = calls.len();
    for (number, call) in calls.into_iter().enumerate() {
        let (at, due_ns) = due(&call);
        tokio::time::sleep_until(at).await;
        appended.wait_for(|minutes| *minutes > call.minute).await.context("rows stay away")?;
        let (function, partition) = world.load.shape.of_pair(call.pair);
        let sql = sql(function, partition, call.minute as i32 + 1, world.load.shape.window);
        let (engine, clock) = (engine.clone(), Arc::clone(&clock));
        asked.spawn(async move {
            let rows = engine.sql(&sql).await?;
            let ns = clock.monotonic_ns().saturating_sub(due_ns);
            let checksum = checksum(&rows)?;
            Ok((number, Answer { minute: call.minute, ns, checksum }))
        });
    }
    let mut answers = Vec::with_capacity(count);
    while let Some(answer) = asked.join_next().await {
        answers.push(answer??);
    }
    answers.sort_by_key(|(number, _)| *number);
    Ok(answers.into_iter().map(|(_, answer)| answer).collect())
}

impl Minute {
    fn count(&mut self, call: &CallRecord) {
        if place(&call.function).is_none() {
            return;
        }
        self.rows += call.rows;
        self.rows_stored += call.rows_stored;
        self.rows_fresh += call.rows_fresh;
        self.rows_fresh_stored += call.rows_fresh_stored;
        self.ns += call.ns;
        let row_ns = call.would_be_ns as f64 / call.rows.max(1) as f64;
        self.spared_ns += call.rows_fresh_stored as f64 * row_ns;
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
