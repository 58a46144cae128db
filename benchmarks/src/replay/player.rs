//! One engine that plays an arm: rows come each minute, calls come when the schedule says so, whether or not
//! those before were answered.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use foreshard::{Config, Engine};
use foreshard_actors::ports::{Clock, Outlook, SharedClock};
use foreshard_policy::config::Mode;
use foreshard_policy::decision::DecisionRow;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::arm::{Answer, Arm, Minute, Played};
use super::functions::{checksum, sql};
use super::load::Call;
use super::outlooks::{ByChance, First, Oracle, UsedLately};
use super::stage::{MINUTES_SPARE, TABLE, place};
use super::turn_clock::TurnClock;
use super::world::World;

/// Minutes after which decisions are read: fewer than the engine remembers are made meanwhile.
const READ_EVERY: usize = 8;

/// An engine that plays.
pub(super) struct Player {
    pub(super) arm: Arm,
    pub(super) played: Played,
    engine: Engine,
    clock: Arc<TurnClock>,
    eager: Option<Arc<UsedLately>>,
    first: First,
    decisions: BTreeMap<u64, DecisionRow>,
    warm_up: usize,
    _folder: TempDir,
}

/// Starts an engine with the tables and functions, in a folder; none of it is known to its loop yet.
pub(crate) async fn engine(
    world: &World,
    folder: &Path,
    mode: Mode,
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
    let before = world.stage.load.shape.window as i32;
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
        let lately = Arc::new(UsedLately::new(world.stage.load.shape.minutes));
        let outlook: Option<Arc<dyn Outlook>> = match arm {
            Arm::Oracle => Some(Arc::new(Oracle::new(world.stage.coming(), Arc::clone(&first)))),
            Arm::Random => Some(Arc::new(ByChance { seed: world.stage.seed })),
            Arm::Eager => Some(Arc::clone(&lately) as Arc<dyn Outlook>),
            Arm::Off | Arm::Reactive | Arm::Forecast | Arm::Inverted => None,
        };
        let engine = engine(world, folder.path(), arm.mode(), outlook, clock.clone()).await?;
        let eager = (arm == Arm::Eager).then_some(lately);
        if let Some(eager) = &eager {
            let engine = engine.clone();
            eager.set_look(Some(Box::new(move || engine.placement())));
        }
        let minutes = vec![Minute::default(); world.stage.load.played()];
        Ok(Self {
            arm,
            played: Played { minutes, ..Played::default() },
            engine,
            clock,
            eager,
            first,
            decisions: BTreeMap::new(),
            warm_up: world.stage.load.shape.warm_up,
            _folder: folder,
        })
    }

    /// Plays some minutes. Time stands still for this engine before and after.
    pub(super) async fn play(
        &mut self,
        world: &World,
        minutes: std::ops::Range<usize>,
    ) -> Result<()> {
        let calls = world.stage.calls.iter().copied();
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
            let due = due(call.minute, call.at, world.stage.tick);
            (due, began_ns + u64::try_from((due - began).as_nanos()).unwrap_or(u64::MAX))
        });
        let rows = async {
            let mut ticks = JoinSet::new();
            for minute in minutes.clone() {
                tokio::time::sleep_until(due(minute, 0.0, world.stage.tick)).await;
                self.minute_begins(world, minute).await?;
                appended.send_replace(minute + 1);
                let the_loop = self.engine.control_loop().clone();
                // A late forecast keeps neither rows nor calls waiting.
                self.first.get_or_init(|| the_loop.last_tick().0 + 1);
                ticks.spawn(async move { the_loop.tick().await });
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
        let tick_ms = world.stage.tick.as_millis() as u64;
        for call in self.engine.calls() {
            let Some(since) = call.at_ms.checked_sub(began_ms) else { continue };
            let minute = (first + (since / tick_ms) as usize).min(minutes.end - 1);
            if place(&call.function).is_some() {
                self.played.minutes[minute].count(&call);
            }
        }
        Ok(())
    }

    /// Rows come, and the oldest go.
    async fn minute_begins(&self, world: &World, minute: usize) -> Result<()> {
        let minute = minute as i32 + 1;
        self.engine.append(TABLE, vec![world.rows.minute(minute)?]).await?;
        let oldest = minute - (world.stage.load.shape.window + MINUTES_SPARE) as i32;
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
        let first = self.first.get().copied();
        self.played.decided(self.decisions.values(), first, self.warm_up);
        if let Some(eager) = &self.eager {
            eager.set_look(None);
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
        let (function, partition) = world.stage.load.shape.of_pair(call.pair);
        let sql = sql(function, partition, call.minute as i32 + 1, world.stage.load.shape.window);
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
