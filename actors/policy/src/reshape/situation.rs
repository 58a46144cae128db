//! What all planners look at: the view with the steps under way, and who carries how much.
//!
//! There may be a million forecasts, so nothing of the view is copied but what changes, and what belongs
//! together is found by walking sorted lists side by side.

mod ahead;
mod declared;
mod joins;
mod near;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Basis, PlanState, Planned, Reason, churn, costs};
use crate::budgets::{self, ByTable, Shares};
use crate::cluster::{ClusterView, NodeView, PartitionView, RowsView, Step, TableView};
use crate::config::LoopConfig;
use crate::control::Control;
use crate::forecast::{Forecast, SeriesForecast};
use crate::history::Joined;
use crate::ids::{NodeId, PartitionId, Tick};
use crate::trust::Trusted;
pub(super) use ahead::{Ahead, Known};
use declared::Declared;
use joins::Joins;
use near::Near;

/// A partition by its position in [`Situation::parts`].
pub(super) type Place = usize;

/// One partition as all planners see it.
pub(super) struct Part<'a> {
    pub(super) id: &'a PartitionId,
    /// The partition as it is.
    pub(super) view: &'a PartitionView,
    /// Its holders as if the steps in flight, and those planned so far, were done; none if they are those
    /// of the view.
    after: Option<BTreeSet<NodeId>>,
    /// Expected or measured load in busy ms per s; zero if nothing is known.
    pub(super) busy_ms: f64,
    /// The same on average until the horizon.
    near: Near,
    /// The same at the costs that were known before its replicas changed, and never more; none if it does not
    /// rest.
    pub(super) known_ms: Option<f64>,
    /// Whether a function is called on it whose load was announced.
    announced: bool,
    /// Whether its replicas are changing right now: then it is left alone.
    pub(super) is_moving: bool,
    /// Whether it is being split or merged: then it is no more in a moment.
    is_ending: bool,
    /// Number of its table in [`Situation::shares`].
    table: usize,
    /// What the loop may do to its table.
    control: Control,
}

impl Part<'_> {
    /// Nodes that hold it, or will once what is under way is done. Some may be gone or going.
    pub(super) fn holders(&self) -> &BTreeSet<NodeId> {
        self.after.as_ref().unwrap_or(&self.view.holders)
    }
}

pub(super) struct Situation<'a> {
    /// Every partition, sorted.
    pub(super) parts: Vec<Part<'a>>,
    /// Live nodes; those that are being removed are draining.
    pub(super) nodes: BTreeMap<NodeId, NodeView>,
    /// Whether there is a forecast to tell loads by.
    pub(super) is_load_known: bool,
    /// Whether the load of every partition is what is expected.
    proven: bool,
    /// Load of each live node in busy ms per s, if its partitions' replicas share evenly.
    pub(super) node_busy_ms: BTreeMap<NodeId, f64>,
    /// The same on average until the horizon.
    node_near_ms: BTreeMap<NodeId, f64>,
    /// What is stored, with what is expected of it; nothing if steps must not be taken ahead.
    pub(super) ahead: Ahead<'a>,
    /// Rows of replicas that are read from files, as the view has them.
    pub(super) rows: &'a BTreeMap<(PartitionId, NodeId), RowsView>,
    /// What each table may use of what nodes have.
    pub(super) shares: Shares,
    /// Bytes of stored outputs on each node, by table; not told where there is one table.
    pub(super) held: BTreeMap<NodeId, ByTable>,
    /// Only tables that are controlled like this are planned for; repairs do not ask.
    pub(super) planning_for: Control,
    /// The tables of the view.
    pub(super) tables: &'a BTreeMap<Arc<str>, TableView>,
    /// Tables of which a partition is being split or merged.
    pub(super) reshaping: BTreeSet<Arc<str>>,
    /// Bytes that may still be copied within the hour.
    bytes_left: u64,
    /// Copies that found too few of them left, the hottest first.
    pub(super) waiting: Vec<Planned>,
    /// Steps that are left out to measure what others like them spare.
    pub(super) held_back: Vec<Planned>,
    /// Partitions that queries join; none unless they are to come to one node.
    pub(super) joins: Joins,
    /// Partitions that people want on one node.
    pub(super) declared: Declared,
    /// The view as it was handed in.
    pub(super) view: &'a ClusterView,
    /// What queries join, as the history has it.
    pub(super) joined: &'a [Joined],
    pub(super) state: &'a PlanState,
    pub(super) config: &'a LoopConfig,
    pub(super) now: Tick,
}

impl<'a> Situation<'a> {
    pub(super) fn new(
        view: &'a ClusterView,
        forecast: Option<&'a Forecast>,
        state: &'a PlanState,
        config: &'a LoopConfig,
        now: Tick,
    ) -> Self {
        let parts: Vec<_> = view.partitions.iter().collect();
        let tables = parts.chunk_by(|(a, _), (b, _)| a.table == b.table).enumerate();
        let parts = tables.flat_map(|(table, parts)| {
            let control = state.controls.of(&parts[0].0.table, config.control());
            parts.iter().map(move |&(id, view)| Part {
                id,
                view,
                after: None,
                busy_ms: 0.0,
                known_ms: None,
                near: Near::default(),
                announced: false,
                is_moving: false,
                is_ending: false,
                table,
                control,
            })
        });
        let shares = Shares::new(view, forecast, &state.controls, config);
        let looking = forecast.filter(|_| config.mode().looks_ahead());
        let mut situation = Self {
            parts: parts.collect(),
            nodes: view.nodes.clone(),
            is_load_known: forecast.is_some(),
            proven: looking.is_some_and(|forecast| forecast.trusted),
            node_busy_ms: view.nodes.keys().map(|node| (*node, 0.0)).collect(),
            node_near_ms: view.nodes.keys().map(|node| (*node, 0.0)).collect(),
            ahead: Ahead::new(view, looking, &state.in_flight),
            rows: &view.rows,
            held: if shares.is_of_one() { BTreeMap::new() } else { budgets::held_by_number(view) },
            shares,
            planning_for: Control::Auto,
            tables: &view.tables,
            reshaping: BTreeSet::new(),
            bytes_left: state.moved.left(now, config),
            waiting: Vec::new(),
            held_back: Vec::new(),
            joins: Joins::default(),
            declared: Declared::default(),
            view,
            joined: forecast.map_or(&[], |forecast| forecast.joined.as_slice()),
            state,
            config,
            now,
        };
        for step in &state.in_flight {
            situation.begin(step);
        }
        if let Some(forecast) = forecast {
            situation.read_load(forecast);
            if config.reshape().colocate() {
                situation.joins = Joins::new(&situation, &forecast.joined);
            }
        }
        situation.declared = Declared::new(&situation, view);
        for place in 0..situation.parts.len() {
            situation.share_load(place, 1.0);
        }
        situation
    }

    /// Whether steps on the partition are planned for now.
    pub(super) fn plans_for(&self, place: Place) -> bool {
        self.parts[place].control == self.planning_for
    }

    /// Number of the table of a partition in [`Self::shares`].
    pub(super) fn table(&self, place: Place) -> usize {
        self.parts[place].table
    }

    /// Background nanoseconds that were spent of late on a node.
    pub(super) fn background_spent(&self, node: NodeId) -> ByTable {
        let spent = self.state.background_spent.get(&node);
        spent.map(|spent| self.shares.by_number(spent)).unwrap_or_default()
    }

    /// How far what is expected of a kind of step is trusted.
    pub(super) fn trusted(&self, kind: &str) -> Trusted {
        self.state.trust.get(kind).copied().unwrap_or_default()
    }

    /// Whether the step was undone or did harm not long ago.
    pub(super) fn avoids(&self, step: impl FnOnce() -> Step) -> bool {
        !self.state.avoided.is_empty() && self.state.avoided.contains(&step().aim())
    }

    /// Takes a step as done that is under way.
    pub(super) fn begin(&mut self, step: &Step) {
        if let Some(place) = step.partition_moved().and_then(|partition| self.place(partition)) {
            let part = &mut self.parts[place];
            part.is_moving = true;
            step.change_holders(part.after.get_or_insert_with(|| part.view.holders.clone()));
        }
        for ended in step.partitions_ended() {
            self.reshaping.insert(Arc::clone(&ended.table));
            if let Some(place) = self.place(&ended) {
                self.parts[place].is_moving = true;
                self.parts[place].is_ending = true;
            }
        }
        if let Step::RemoveNode { node } = step
            && let Some(node) = self.nodes.get_mut(node)
        {
            node.draining = true; // It still answers, but gets nothing more.
        }
    }

    pub(super) fn place(&self, partition: &PartitionId) -> Option<Place> {
        self.parts.binary_search_by(|part| part.id.cmp(partition)).ok()
    }

    /// Live holders that stay, in order.
    pub(super) fn staying(&self, place: Place) -> impl Iterator<Item = NodeId> + '_ {
        self.live(place, false)
    }

    /// Live holders that are to be removed, in order.
    pub(super) fn leaving(&self, place: Place) -> impl Iterator<Item = NodeId> + '_ {
        self.live(place, true)
    }

    /// Live holders that have a replica already and keep it: those that can compute outputs now.
    pub(super) fn computing(&self, place: Place) -> impl Iterator<Item = NodeId> + '_ {
        let part = &self.parts[place];
        let held = |node: &NodeId| !part.is_ending && part.view.holders.contains(node);
        self.staying(place).filter(held)
    }

    fn live(&self, place: Place, draining: bool) -> impl Iterator<Item = NodeId> + '_ {
        let is_one = move |node: &&NodeId| {
            self.nodes.get(node).is_some_and(|view| view.draining == draining)
        };
        self.parts[place].holders().iter().filter(is_one).copied()
    }

    /// What the load of one partition rests on.
    pub(super) fn basis(&self, place: Place) -> Basis {
        if self.proven || self.parts[place].announced { Basis::Forecast } else { Basis::Current }
    }

    /// Partitions that are not changing already, those with the highest load first.
    pub(super) fn by_heat(&self) -> Vec<Place> {
        let still = self.parts.iter().enumerate().filter(|(_, part)| !part.is_moving);
        let mut all: Vec<_> = still.map(|(place, part)| (part.busy_ms, place)).collect();
        all.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        all.into_iter().map(|(_, place)| place).collect()
    }

    /// At most `count` nodes that could take a replica, best first: room in memory, then least load.
    pub(super) fn targets(&self, place: Place, count: usize) -> Vec<NodeId> {
        let part = &self.parts[place];
        let nodes = self.nodes.iter();
        let mut targets: Vec<_> = nodes
            .filter(|(node, view)| !view.draining && !part.holders().contains(node))
            .map(|(node, view)| {
                let room = view.memory_bytes_max.saturating_sub(view.memory_bytes);
                (room < part.view.bytes, self.node_busy_ms[node], view.memory_bytes, *node)
            })
            .collect();
        let better = |a: &(bool, f64, u64, NodeId), b: &(bool, f64, u64, NodeId)| {
            (a.0.cmp(&b.0)).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)).then(a.3.cmp(&b.3))
        };
        if targets.len() > count && count > 0 {
            targets.select_nth_unstable_by(count - 1, better);
            targets.truncate(count);
        }
        targets.sort_unstable_by(better);
        targets.into_iter().map(|(.., node)| node).collect()
    }

    /// Takes the bytes of a copy from those of the hour, if there are enough; what waits for them is noted.
    /// What is only suggested takes none before it is approved.
    pub(super) fn may_copy(&mut self, planned: &Planned) -> bool {
        let Some(bytes) = churn::bytes_copied(planned) else { return true };
        if self.planning_for != Control::Auto {
            return true;
        }
        if bytes <= self.bytes_left as f64 {
            self.take_bytes(bytes);
            return true;
        }
        let (left, most) = (self.bytes_left, self.config.reshape().moved_bytes_per_hour_max());
        if self.waiting.len() < self.config.reshape().steps_in_flight_max() {
            self.waiting.push(Planned {
                reason: Reason::Churn { bytes, left, most },
                inputs: format!("{}; {}", planned.inputs, planned.reason),
                ..planned.clone()
            });
        }
        false
    }

    /// Takes bytes that are copied whatever is left.
    pub(super) fn take_bytes(&mut self, bytes: f64) {
        self.bytes_left = self.bytes_left.saturating_sub(bytes as u64);
    }

    /// Tasks that may compute at the same time on a live node.
    pub(super) fn permits(&self, node: NodeId) -> f64 {
        self.nodes.get(&node).map_or(1.0, |view| f64::from(view.cpu_permits.max(1)))
    }

    /// Busy ms per s of each CPU if all nodes that stay carried the same.
    pub(super) fn mean_level(&self) -> f64 {
        let staying = self.nodes.iter().filter(|(_, view)| !view.draining);
        let sums = staying.fold((0.0, 0.0), |(busy, permits), (node, _)| {
            (busy + self.node_busy_ms[node], permits + self.permits(*node))
        });
        sums.0 / sums.1.max(1.0)
    }

    /// Counts a replica step of one partition that was just planned.
    pub(super) fn apply(&mut self, place: Place, step: &Step) {
        self.share_load(place, -1.0);
        let part = &mut self.parts[place];
        step.change_holders(part.after.get_or_insert_with(|| part.view.holders.clone()));
        self.share_load(place, 1.0);
    }

    fn share_load(&mut self, place: Place, sign: f64) {
        let part = &self.parts[place];
        let live = part.holders().iter().filter(|node| self.node_busy_ms.contains_key(node));
        let each = sign / live.count().max(1) as f64;
        for node in part.holders() {
            if let Some(load) = self.node_busy_ms.get_mut(node) {
                *load += each * part.busy_ms;
            }
            if let Some(load) = self.node_near_ms.get_mut(node) {
                *load += each * part.near.mean_ms;
            }
        }
    }

    /// Busy ms per s of each partition: the highest tick of the last ones and of the horizon. A series that
    /// may not be acted on ahead is taken to go on as in the last ticks.
    fn read_load(&mut self, forecast: &Forecast) {
        let looks_ahead = self.config.mode().looks_ahead();
        let ticks = self.config.horizon_ticks() + 1;
        let mut by_tick = vec![0.0; self.parts.len() * ticks];
        let known = |(place, part): (Place, &Part<'a>)| {
            Some((place, (self.state.costs.of(part.id)?, vec![0.0; ticks])))
        };
        let mut resting: BTreeMap<Place, _> =
            self.parts.iter().enumerate().filter_map(known).collect();
        let mut near = 0;
        for series in &forecast.series {
            let Some(place) = self.place_near(&series.key.partition, &mut near) else { continue };
            let acts = looks_ahead && forecast.may_act_on(series);
            let ms_per_s = series.ns_per_call / self.config.tick_ns() * 1e3;
            add(series, (ms_per_s, acts), &mut by_tick[place * ticks..(place + 1) * ticks]);
            if let Some((costs, ticks)) = resting.get_mut(&place) {
                let known = costs::share_known(costs, series);
                add(series, (ms_per_s * known, acts), ticks);
            }
            let part = &mut self.parts[place];
            part.announced |= acts && series.announced;
            match acts {
                true => part.near.add_ahead(series, ms_per_s, ticks - 1),
                false => part.near.add_now(series.calls_now * ms_per_s),
            }
        }
        let highest = |ticks: &[f64]| ticks.iter().copied().fold(0.0, f64::max);
        for (part, ticks) in self.parts.iter_mut().zip(by_tick.chunks(ticks)) {
            part.busy_ms = highest(ticks);
        }
        for (place, (_, ticks)) in resting {
            self.parts[place].known_ms = Some(highest(&ticks));
        }
    }

    /// As [`place`](Self::place), quick if it is at or soon after `near`, which follows.
    pub(super) fn place_near(&self, partition: &PartitionId, near: &mut Place) -> Option<Place> {
        let parts = self.parts.get(*near..).unwrap_or_default();
        let (from, parts) = match parts.first() {
            Some(first) if first.id <= partition => (*near, parts),
            _ => (0, &self.parts[..*near]),
        };
        let place = from + skip_while(parts, |part| part.id < partition);
        let found = self.parts.get(place).is_some_and(|part| part.id == partition);
        *near = place.min(self.parts.len());
        found.then_some(place)
    }
}

/// Adds the load of a series to the last ticks and those of the horizon: what is expected if that may be acted
/// on, else as it is now.
fn add(series: &SeriesForecast, (ms_per_s, acts): (f64, bool), ticks: &mut [f64]) {
    let now = series.calls_now * ms_per_s;
    if !acts {
        return ticks.iter_mut().for_each(|tick| *tick += now);
    }
    let Some((first, ahead)) = ticks.split_first_mut() else { return };
    *first += now;
    for (tick, calls) in ahead.iter_mut().zip(&series.calls) {
        *tick += calls.mean() * ms_per_s;
    }
}

/// How many items there are before the first that does not hold, of sorted ones: quick if there are few.
fn skip_while<T>(items: &[T], holds: impl Fn(&T) -> bool) -> usize {
    let mut step = 1;
    let mut low = 0;
    while low + step <= items.len() && holds(&items[low + step - 1]) {
        low += step;
        step *= 2;
    }
    let high = (low + step - 1).min(items.len());
    low + items[low..high].partition_point(holds)
}
