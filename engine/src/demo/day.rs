//! Plays a compressed day against several engines that differ in nothing but the mode of the loop.
//!
//! In every hour each engine gets the same rows, then one idle moment (one tick of the loop, in which
//! it may compute ahead within its budget), then the same queries. The engines take turns hour by
//! hour, so that a machine that slows down favours none of them.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use arrow::array::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use datafusion::prelude::SessionContext;
use foreshard_actors::ports::SharedClock;
use foreshard_policy::calls::CallRecord;
use foreshard_policy::config::Mode;
use foreshard_policy::decision::Outcome;
use foreshard_policy::forecast::{Forecast, Quantiles};

use super::error::DemoError;
pub use super::report::{Answer, ArmReport, DayReport, Decided, Hour, Peak};
use super::schedule::{Ask, DAYS, HOURS, REGIONS, Round, Schedule, Shape};
use super::world::{Table, World};
use crate::{Config, Engine};

/// Rows that a function is measured on before the day begins.
const ROWS_MEASURED: usize = 160;
/// Refreshing everything that is appended costs this many times the idle budget.
const SCARCITY: f64 = 2.0;
/// In-process nodes of every engine.
pub const NODES: u32 = 3;
/// Length of a tick as the loop counts it; ticks come by hand, so nobody waits for it.
const TICK_MS: u64 = 1_000;
/// Steps of one idle moment; the budget is what limits them.
const STEPS_MAX: usize = 1_000;

/// One way to play the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// Everything is computed for every query.
    Off,
    /// What a query computed is kept for the next one.
    Reactive,
    /// As reactive, and the idle moments are spent on what the forecast says comes next.
    Forecast,
    /// As forecast, with the forecast turned upside down.
    Inverted,
}

impl Arm {
    /// Short name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Reactive => "reactive",
            Self::Forecast => "forecast",
            Self::Inverted => "inverted",
        }
    }

    /// What it does, in one line.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Off => "every function is computed anew for every query",
            Self::Reactive => "what one query computed is kept for the next",
            Self::Forecast => "and what the forecast expects is computed before it is asked for",
            Self::Inverted => "and what the forecast does not expect is computed ahead",
        }
    }

    /// Mode of the loop.
    #[must_use]
    pub fn mode(self) -> Mode {
        match self {
            Self::Off => Mode::Off,
            Self::Reactive => Mode::Reactive,
            Self::Forecast => Mode::Forecast,
            Self::Inverted => Mode::Inverted,
        }
    }
}

/// How many rows the day is played on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows in each region of each table when the first day begins.
    pub rows_first: usize,
    /// Rows appended to each region of each table before a peak hour.
    pub rows_peak: usize,
}

impl Size {
    /// What the figures are meant for.
    pub const FULL: Self = Self { rows_first: 150, rows_peak: 40 };
    /// A look whether all works.
    pub const QUICK: Self = Self { rows_first: 40, rows_peak: 12 };
}

/// What is played: rows, functions with their measured cost, and who asks when.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Tables and function expressions.
    pub world: World,
    /// Nanoseconds per row of each expression, measured just before.
    pub costs: Vec<f64>,
    /// Who asks what when.
    pub schedule: Schedule,
    /// How many rows.
    pub size: Size,
}

impl Workload {
    /// Measures every function of `world` on some rows, then draws the schedule.
    ///
    /// # Errors
    /// [`DemoError::Measure`] if a function fails.
    pub async fn new(
        world: World,
        size: Size,
        seed: u64,
        clock: &SharedClock,
    ) -> Result<Self, DemoError> {
        let session = SessionContext::new();
        foreshard_udfs::Functions::library().install(&session);
        for table in &world.tables {
            let rows = table.batch(0, ROWS_MEASURED)?;
            let registered = session.register_batch(&table.name, rows);
            registered.map_err(|error| measure_error(&table.name, &error))?;
        }
        let mut costs = Vec::new();
        for expression in &world.expressions {
            let table = &world.tables[expression.table].name;
            let sql = format!("SELECT {} FROM {table}", expression.sql);
            let mut best = f64::INFINITY;
            for _ in 0..3 {
                let start = clock.monotonic_ns();
                let frame = session.sql(&sql).await;
                let frame = frame.map_err(|error| measure_error(&expression.label, &error))?;
                let rows = frame.collect().await;
                rows.map_err(|error| measure_error(&expression.label, &error))?;
                let ns = clock.monotonic_ns().saturating_sub(start);
                best = best.min(ns as f64 / ROWS_MEASURED as f64);
            }
            costs.push(best);
        }
        let schedule = Schedule::new(seed, &costs, size.rows_peak);
        Ok(Self { world, costs, schedule, size })
    }

    /// Nanoseconds of computing that it takes to refresh every expression over every region after an
    /// hour's append, as a mean over the hours of a day.
    #[must_use]
    pub fn refresh_ns(&self) -> f64 {
        let rows = self.schedule.rows_appended() as f64 / f64::from(HOURS * DAYS);
        self.costs.iter().sum::<f64>() * rows * f64::from(REGIONS)
    }

    /// Nanoseconds of background computing per idle moment, over all nodes: too few for everything.
    #[must_use]
    pub fn idle_ns(&self) -> f64 {
        self.refresh_ns() / SCARCITY
    }

    /// Rows of all tables at the end.
    #[must_use]
    pub fn rows(&self) -> usize {
        let each = self.size.rows_first + self.schedule.rows_appended();
        each * REGIONS as usize * self.world.tables.len()
    }

    /// The query as SQL.
    #[must_use]
    pub fn sql(&self, ask: &Ask) -> String {
        let expression = &self.world.expressions[ask.expression];
        let table = &self.world.tables[expression.table].name;
        let (first, last) = ask.regions;
        let rows = match first == last {
            true => format!("region = {first}"),
            false => format!("region BETWEEN {first} AND {last}"),
        };
        let call = &expression.sql;
        match ask.shape {
            Shape::Summary => format!(
                "SELECT count(score) AS known, min(score) AS lowest, max(score) AS highest \
                 FROM (SELECT {call} AS score FROM {table} WHERE {rows}) AS scores"
            ),
            Shape::TopTen => format!(
                "SELECT row_id, {call} AS score FROM {table} WHERE {rows} \
                 ORDER BY score DESC NULLS LAST, row_id LIMIT 10"
            ),
        }
    }

    fn config(&self, arm: Arm, folder: &str) -> Result<Config, DemoError> {
        let share = self.idle_ns() / (f64::from(NODES) * TICK_MS as f64 * 1e6);
        let mut config = Config::default();
        for (key, value) in [
            ("data-dir", folder.to_owned()),
            ("nodes", NODES.to_string()),
            ("loop.mode", arm.mode().to_string()),
            ("loop.tick-ms", TICK_MS.to_string()),
            ("loop.season-ticks", HOURS.to_string()),
            ("loop.reshape.steps-in-flight-max", STEPS_MAX.to_string()),
            ("loop.precompute.budget-share", format!("{:.6}", share.min(1.0))),
            ("loop.allocate.nodes-min", NODES.to_string()),
            ("loop.allocate.nodes-max", NODES.to_string()),
        ] {
            config = config.set(key, &value)?;
        }
        Ok(config)
    }
}

fn measure_error(expression: &str, error: &datafusion::error::DataFusionError) -> DemoError {
    DemoError::Measure { expression: expression.to_owned(), reason: error.strip_backtrace() }
}

/// How far the days are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Rounds that all arms have played.
    pub rounds_done: usize,
    /// Rounds to be played.
    pub rounds: usize,
    /// The arm that plays now.
    pub arm: Arm,
}

/// Plays the workload with each arm and reports what came of it.
///
/// # Errors
/// The first error of an engine.
pub async fn play(
    workload: &Workload,
    arms: &[Arm],
    clock: &SharedClock,
    mut on_progress: impl FnMut(Progress),
) -> Result<DayReport, DemoError> {
    let folder = scratch_folder();
    let mut players = Vec::new();
    for (position, arm) in arms.iter().enumerate() {
        let own = folder.join(format!("{position}-{}", arm.name()));
        players.push(Player::start(workload, *arm, &own.to_string_lossy(), clock).await?);
    }
    let rounds = workload.schedule.rounds.len();
    let mut rows_before = workload.size.rows_first;
    for (at, round) in workload.schedule.rounds.iter().enumerate() {
        let mut order: Vec<&mut Player> = players.iter_mut().collect();
        if at % 2 == 1 {
            order.reverse();
        }
        for player in order {
            on_progress(Progress { rounds_done: at, rounds, arm: player.report.arm });
            player.play(workload, at, round, rows_before).await?;
        }
        rows_before += round.rows_appended;
    }
    let mut reports = Vec::new();
    for player in players {
        on_progress(Progress { rounds_done: rounds, rounds, arm: player.report.arm });
        reports.push(player.end().await?);
    }
    drop(std::fs::remove_dir_all(folder));
    Ok(DayReport { rounds: workload.schedule.rounds.clone(), arms: reports })
}

/// A folder of its own for what the engines keep; memory tables leave nothing of worth in it.
fn scratch_folder() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("foreshard-demo-{}", uuid::Uuid::new_v4().simple()))
}

/// One engine with what it did so far.
struct Player {
    engine: Engine,
    clock: SharedClock,
    report: ArmReport,
    queries_seen: HashSet<u64>,
    decisions_seen: HashSet<u64>,
}

impl Player {
    async fn start(
        workload: &Workload,
        arm: Arm,
        folder: &str,
        clock: &SharedClock,
    ) -> Result<Self, DemoError> {
        let config = workload.config(arm, folder)?;
        let engine = Engine::builder().config(config).manual_ticks(true).start().await?;
        for table in &workload.world.tables {
            let rows = table.batch(0, workload.size.rows_first * REGIONS as usize)?;
            let schema = table.schema();
            engine
                .create_memory_table(&table.name, schema, Table::partitioning(), vec![rows])
                .await?;
        }
        Ok(Self {
            engine,
            clock: clock.clone(),
            report: ArmReport { arm, answers: vec![], hours: vec![], decisions: vec![] },
            queries_seen: HashSet::new(),
            decisions_seen: HashSet::new(),
        })
    }

    /// One hour: append, one idle moment, queries.
    async fn play(
        &mut self,
        workload: &Workload,
        at: usize,
        round: &Round,
        rows_before: usize,
    ) -> Result<(), DemoError> {
        let regions = REGIONS as usize;
        for table in &workload.world.tables {
            let rows = table.batch(rows_before * regions, round.rows_appended * regions)?;
            self.engine.append(&table.name, vec![rows]).await?;
        }
        self.idle(at).await;
        for ask in &round.asks {
            let sql = workload.sql(ask);
            let start = self.clock.monotonic_ns();
            let rows = self.engine.sql(&sql).await?;
            let ns = self.clock.monotonic_ns().saturating_sub(start);
            self.report.answers.push(Answer { round: at, ns, checksum: checksum(&rows)? });
        }
        Ok(())
    }

    /// One turn of the loop; then the calls of the hour before are known, and what comes is expected.
    async fn idle(&mut self, at: usize) {
        let start = self.clock.monotonic_ns();
        self.engine.tick().await;
        let idle_ns = self.clock.monotonic_ns().saturating_sub(start);
        self.count_calls();
        let background_ns = self.note_decisions(at);
        let expected_ns = expected(&self.engine.forecast());
        self.report.hours.push(Hour { background_ns, expected_ns, idle_ns, ..Hour::default() });
    }

    fn count_calls(&mut self) {
        let Some(hour) = self.report.hours.last_mut() else { return };
        let calls = self.engine.calls();
        let new = |call: &&CallRecord| !self.queries_seen.contains(&call.query);
        let expressions = self.engine.members().expressions();
        for call in calls.iter().filter(new) {
            hour.count(call, expressions.get(call.expression).is_none());
        }
        self.queries_seen = calls.iter().map(|call| call.query).collect();
    }

    fn note_decisions(&mut self, round: usize) -> u64 {
        let mut background_ns = 0;
        for row in self.engine.decisions() {
            if self.decisions_seen.insert(row.id) {
                if let Some(Outcome::Done { ns, .. }) = row.outcome {
                    background_ns += ns;
                }
                self.report.decisions.push(Decided { round, row });
            }
        }
        background_ns
    }

    /// The last turn of the loop, for the calls of the last hour and what decisions were worth.
    async fn end(mut self) -> Result<ArmReport, DemoError> {
        self.engine.tick().await;
        self.count_calls();
        for row in self.engine.decisions() {
            let known = self.report.decisions.iter_mut().find(|known| known.row.id == row.id);
            if let Some(known) = known {
                known.row = row;
            }
        }
        self.engine.shutdown().await?;
        Ok(self.report)
    }
}

fn checksum(rows: &[RecordBatch]) -> Result<u64, DemoError> {
    let mut hasher = DefaultHasher::new();
    pretty_format_batches(rows)?.to_string().hash(&mut hasher);
    Ok(hasher.finish())
}

/// Function work expected in the coming hour: sums over all series.
fn expected(forecast: &Forecast) -> Option<Quantiles> {
    let mut sum = Quantiles::default();
    for series in &forecast.series {
        let next = series.calls.first()?;
        sum.q10 += next.q10 * series.ns_per_call;
        sum.q50 += next.q50 * series.ns_per_call;
        sum.q90 += next.q90 * series.ns_per_call;
    }
    (!forecast.series.is_empty()).then_some(sum)
}
