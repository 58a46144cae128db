//! A day in the life of the loop: each file in `tests/stories` is a script and what must follow.
//!
//! A story is settings (TOML, up to the first `---`), a script (up to the second), and what is
//! told. With `UPDATE_STORIES=1` what is told is written into the files, to be read and committed.
//!
//! ```text
//! nodes 3 of 64 MiB                        live nodes and their memory
//! partition trades/0 on n0 with 1000 rows  a partition and its holders
//! function score on trades/0 at 20 us      an expression and what a row costs
//! every 60 at 30..33 call score on trades/0 x 5
//! every 60 at 20 append 200 to trades/0
//! at 70..75 call score on trades/0 x 50
//! kill n1 | drain n1                       now
//! run 60                                   ticks without telling
//! tell 30                                  ticks, each plan is told
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a story that cannot be read fails its test"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use foreshard_policy::calls::CallRecord;
use foreshard_policy::cluster::{ClusterView, NodeView, OutputView, PartitionView, Step};
use foreshard_policy::config::{LoopConfig, Mode};
use foreshard_policy::forecast::ensemble::{Ensemble, invert, repeat_current};
use foreshard_policy::history::History;
use foreshard_policy::ids::{ExpressionId, NodeId, PartitionId, Tick};
use foreshard_policy::reshape::{BackgroundBudget, PlanState, plan};

/// Something that happens in certain ticks.
struct Rule {
    every: Option<u64>,
    from: u64,
    to: u64,
    event: Event,
}

enum Event {
    Call { function: String, partition: PartitionId, times: u64 },
    Append { partition: PartitionId, rows: u64 },
}

/// Rows of one output that no call asked for yet, and how many of them were computed ahead.
#[derive(Default)]
struct Fresh {
    rows: u64,
    stored: u64,
}

struct World {
    config: LoopConfig,
    view: ClusterView,
    functions: BTreeMap<(String, PartitionId), (ExpressionId, u64)>,
    fresh: BTreeMap<(ExpressionId, PartitionId), Fresh>,
    rules: Vec<Rule>,
    history: History,
    ensemble: Ensemble,
    budget: BackgroundBudget,
    state: PlanState,
    /// Fresh rows that were asked for while telling, and those that were stored by then.
    asked: (u64, u64),
    told: String,
}

fn partition(text: &str) -> PartitionId {
    let (table, ordinal) = text.split_once('/').unwrap();
    PartitionId::new(table, ordinal.parse().unwrap())
}

fn node(text: &str) -> NodeId {
    NodeId(text.strip_prefix('n').unwrap().parse().unwrap())
}

impl World {
    fn new(config: LoopConfig) -> Self {
        Self {
            history: History::new(&config),
            ensemble: Ensemble::new(&config, Vec::new()),
            view: ClusterView::default(),
            functions: BTreeMap::new(),
            fresh: BTreeMap::new(),
            rules: Vec::new(),
            budget: BackgroundBudget::default(),
            state: PlanState::default(),
            asked: (0, 0),
            told: String::new(),
            config,
        }
    }

    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["nodes", count, "of", mib, "MiB"] => self.nodes(count, mib),
            ["partition", name, "on", ref holders @ .., "with", rows, "rows"] => {
                let holders = holders.iter().map(|name| node(name)).collect();
                let rows = rows.parse().unwrap();
                let view = PartitionView { holders, rows, bytes: rows * 64 };
                self.view.partitions.insert(partition(name), view);
            }
            ["function", name, "on", of, "at", us, "us"] => self.function(name, of, us),
            ["every", every, "at", ticks, ref event @ ..] => {
                self.rule(Some(every.parse().unwrap()), ticks, event);
            }
            ["at", ticks, ref event @ ..] => self.rule(None, ticks, event),
            ["kill", name] => drop(self.view.nodes.remove(&node(name))),
            ["drain", name] => self.view.nodes.get_mut(&node(name)).unwrap().draining = true,
            ["run", ticks] => (0..ticks.parse().unwrap()).for_each(|_: u64| self.tick(false)),
            ["tell", ticks] => (0..ticks.parse().unwrap()).for_each(|_: u64| self.tick(true)),
            _ => panic!("no such line in a story: {line}"),
        }
    }

    fn nodes(&mut self, count: &str, mib: &str) {
        let memory_bytes_max = mib.parse::<u64>().unwrap() << 20;
        let view = NodeView { memory_bytes_max, cpu_permits: 2, ..NodeView::default() };
        for id in 0..count.parse().unwrap() {
            self.view.nodes.insert(NodeId(id), view.clone());
        }
    }

    fn function(&mut self, name: &str, of: &str, us: &str) {
        let expression = ExpressionId(self.functions.len() as u128 + 1);
        let partition = partition(of);
        let rows_missing = self.view.partitions[&partition].rows;
        self.view.outputs.insert(
            (expression, partition.clone()),
            OutputView {
                function: name.into(),
                rows_stored: 0,
                rows_missing,
                bytes: 0,
                is_state: false,
                pinned: false,
            },
        );
        let fresh = Fresh { rows: rows_missing, stored: 0 };
        self.fresh.insert((expression, partition.clone()), fresh);
        let ns = us.parse::<u64>().unwrap() * 1_000;
        self.functions.insert((name.to_owned(), partition), (expression, ns));
    }

    fn rule(&mut self, every: Option<u64>, ticks: &str, event: &[&str]) {
        let (from, to) = ticks.split_once("..").unwrap_or((ticks, ticks));
        let event = match event {
            ["call", function, "on", of, "x", times] => Event::Call {
                function: (*function).to_owned(),
                partition: partition(of),
                times: times.parse().unwrap(),
            },
            ["append", rows, "to", of] => {
                Event::Append { partition: partition(of), rows: rows.parse().unwrap() }
            }
            _ => panic!("no such event in a story: {event:?}"),
        };
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        self.rules.push(Rule { every, from, to, event });
    }

    /// One tick: appends and calls, then the loop plans, then its steps are carried out.
    fn tick(&mut self, tell: bool) {
        let tick = self.history.now();
        let rules = std::mem::take(&mut self.rules);
        for Rule { every, from, to, event } in &rules {
            let phase = every.map_or(tick.0, |every| tick.0 % every);
            if (*from..=*to).contains(&phase) {
                self.happen(event, tell);
            }
        }
        self.rules = rules;
        self.history.close_tick();
        let view = self.history.view();
        self.ensemble.observe(&view);
        let fitted = self.ensemble.fit(&view, foreshard_policy::forecast::Effort::steps(0));
        assert!(fitted.iter().all(|(_, report)| report.is_ok()));
        let forecast = match self.config.mode() {
            Mode::Off | Mode::Reactive => repeat_current(&view, &self.config),
            Mode::Forecast => self.ensemble.forecast(&view, self.config.horizon_ticks()).unwrap(),
            Mode::Inverted => {
                invert(&self.ensemble.forecast(&view, self.config.horizon_ticks()).unwrap())
            }
        };
        self.budget.refill(self.view.nodes.keys().copied(), &self.config);
        self.state.background_ns = self.budget.free_ns().clone();
        let plan = plan(&self.view, Some(&forecast), &self.state, &self.config, tick);
        if tell && !plan.steps.is_empty() {
            write!(self.told, "tick {}, {plan}", tick.0).unwrap();
        }
        self.view.epoch = plan.epoch;
        let (changed, dwell) = (&self.state.changed, self.config.reshape().dwell_ticks());
        let rests = |of: &PartitionId| changed.get(of).is_some_and(|at| tick.0 < at.0 + dwell);
        self.state.costs.keep(rests);
        self.state.costs.note(&plan.steps, &forecast);
        for planned in &plan.steps {
            self.carry_out(&planned.step, tick);
        }
    }

    fn happen(&mut self, event: &Event, tell: bool) {
        match event {
            Event::Append { partition, rows } => {
                self.view.partitions.get_mut(partition).unwrap().rows += rows;
                for (target, output) in &mut self.view.outputs {
                    if target.1 == *partition {
                        output.rows_missing += rows;
                        self.fresh.get_mut(target).unwrap().rows += rows;
                    }
                }
            }
            Event::Call { function, partition, times } => {
                for query in 0..*times {
                    self.call(function, partition, query, tell);
                }
            }
        }
    }

    fn call(&mut self, function: &str, partition: &PartitionId, query: u64, tell: bool) {
        let (expression, ns_per_row) = self.functions[&(function.to_owned(), partition.clone())];
        let target = (expression, partition.clone());
        let output = self.view.outputs.get_mut(&target).unwrap();
        let fresh = std::mem::take(self.fresh.get_mut(&target).unwrap());
        let rows = output.rows_stored + output.rows_missing;
        if tell {
            self.asked = (self.asked.0 + fresh.rows, self.asked.1 + fresh.stored);
        }
        self.history.record(&CallRecord {
            at_ms: 0,
            query: self.history.now().0 * 1_000 + query,
            function: function.into(),
            expression,
            partition: partition.clone(),
            node: NodeId(0),
            rows,
            rows_stored: output.rows_stored,
            rows_fresh: fresh.rows,
            rows_fresh_stored: fresh.stored,
            ns: output.rows_missing * ns_per_row,
            waited_ns: 0,
            would_be_ns: rows * ns_per_row,
            bytes: output.rows_missing * 8,
            traceparent: None,
        });
        if self.config.mode().stores_outputs() {
            output.rows_stored = rows;
            output.rows_missing = 0;
            output.bytes = rows * 8;
        }
    }

    fn carry_out(&mut self, step: &Step, tick: Tick) {
        if let Some(partition) = step.partition_moved() {
            self.state.changed.insert(partition.clone(), tick);
        }
        if let Step::Precompute { function, expression, partition } = step {
            let target = (*expression, partition.clone());
            let rows = self.view.outputs[&target].rows_missing;
            let ns_per_row = self.functions[&(function.to_string(), partition.clone())].1;
            for node in &self.view.partitions[partition].holders {
                self.budget.charge(*node, &partition.table, (rows * ns_per_row) as f64);
            }
            let fresh = self.fresh.get_mut(&target).unwrap();
            fresh.stored = fresh.rows;
        }
        self.view.apply(step);
    }

    fn end(mut self) -> String {
        let (asked, stored) = self.asked;
        if asked > 0 {
            let share = stored as f64 / asked as f64 * 100.0;
            writeln!(self.told, "{asked} fresh rows asked for, {share:.0} % were stored by then")
                .unwrap();
        }
        self.told
    }
}

fn tell(story: &str) -> String {
    let mut parts = story.split("---\n");
    let config = parts.next().unwrap().lines().filter(|line| !line.starts_with('#'));
    let config = config.collect::<Vec<_>>().join("\n");
    let mut world = World::new(toml::from_str(&config).unwrap());
    for line in parts.next().unwrap().lines() {
        if !line.trim().is_empty() && !line.starts_with('#') {
            world.line(line);
        }
    }
    world.end()
}

#[test]
fn every_story_ends_as_it_is_told() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stories");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        let story = std::fs::read_to_string(&file).unwrap();
        let told = tell(&story);
        let script_end = story.match_indices("---\n").nth(1).unwrap().0 + "---\n".len();
        if std::env::var_os("UPDATE_STORIES").is_some() {
            std::fs::write(&file, format!("{}{told}", &story[..script_end])).unwrap();
        } else {
            let name = file.file_name().unwrap().to_string_lossy();
            assert_eq!(told, story[script_end..], "{name} ends differently");
        }
    }
}

#[test]
fn a_story_ends_the_same_each_time_it_is_told() {
    let story = include_str!("stories/morning_dashboards.txt");
    assert_eq!(tell(story), tell(story));
}
