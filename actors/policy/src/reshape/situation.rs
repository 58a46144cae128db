//! What all planners look at: the view with the steps under way, and who carries how much.

use std::collections::{BTreeMap, BTreeSet};

use super::{Basis, PlanState};
use crate::cluster::{ClusterView, PartitionView, Step};
use crate::config::LoopConfig;
use crate::forecast::{Forecast, SeriesForecast};
use crate::ids::{ExpressionId, NodeId, PartitionId, Tick};

pub(super) struct Situation<'a> {
    /// The view as it is.
    now_held: &'a ClusterView,
    /// The view as if the steps in flight, and those planned so far, were done.
    pub(super) view: ClusterView,
    /// Partitions whose replicas are changing right now: they are left alone.
    pub(super) moving: BTreeSet<PartitionId>,
    /// Expected or measured load in busy ms per s; without a forecast nothing is known.
    pub(super) busy_ms: Option<BTreeMap<PartitionId, f64>>,
    /// Whether the load of every partition is what is expected.
    proven: bool,
    /// Partitions on which a function is called whose load was announced.
    announced: BTreeSet<PartitionId>,
    /// Load of each live node in busy ms per s, if its partitions' replicas share evenly.
    pub(super) node_busy_ms: BTreeMap<NodeId, f64>,
    /// Forecasts by what they are about; empty if steps must not be taken ahead.
    pub(super) ahead: BTreeMap<(ExpressionId, PartitionId), &'a SeriesForecast>,
    pub(super) state: &'a PlanState,
    pub(super) config: &'a LoopConfig,
    pub(super) now: Tick,
}

impl<'a> Situation<'a> {
    pub(super) fn new(
        now_held: &'a ClusterView,
        forecast: Option<&'a Forecast>,
        state: &'a PlanState,
        config: &'a LoopConfig,
        now: Tick,
    ) -> Self {
        let view = with_in_flight(now_held, &state.in_flight);
        let moving = state.in_flight.iter().filter_map(Step::partition_moved).cloned().collect();
        let busy_ms = forecast.map(|forecast| load(forecast, config));
        let looking = forecast.filter(|_| config.mode().looks_ahead());
        let ahead = looking.into_iter().flat_map(|forecast| {
            forecast.series.iter().filter(|series| forecast.may_act_on(series))
        });
        let announced = ahead.clone().filter(|series| series.announced);
        let mut situation = Self {
            now_held,
            node_busy_ms: view.nodes.keys().map(|node| (*node, 0.0)).collect(),
            ahead: ahead
                .map(|series| ((series.key.expression, series.key.partition.clone()), series))
                .collect(),
            view,
            moving,
            busy_ms,
            proven: looking.is_some_and(|forecast| forecast.trusted),
            announced: announced.map(|series| series.key.partition.clone()).collect(),
            state,
            config,
            now,
        };
        situation.spread_load();
        situation
    }

    /// Live holders that stay.
    pub(super) fn staying(&self, partition: &PartitionView) -> BTreeSet<NodeId> {
        self.holders(partition, false)
    }

    /// Live holders that have a replica already and keep it: those that can compute outputs now.
    pub(super) fn computing(&self, partition: &PartitionId) -> BTreeSet<NodeId> {
        let staying = self.view.partitions.get(partition).map(|after| self.staying(after));
        let held = self.now_held.partitions.get(partition).map(|before| &before.holders);
        match (staying, held) {
            (Some(staying), Some(held)) => staying.intersection(held).copied().collect(),
            _ => BTreeSet::new(),
        }
    }

    /// Live holders that are to be removed.
    pub(super) fn leaving(&self, partition: &PartitionView) -> BTreeSet<NodeId> {
        self.holders(partition, true)
    }

    fn holders(&self, partition: &PartitionView, draining: bool) -> BTreeSet<NodeId> {
        let is_one = |node: &&NodeId| {
            self.view.nodes.get(node).is_some_and(|view| view.draining == draining)
        };
        partition.holders.iter().filter(is_one).copied().collect()
    }

    /// Load of one partition in busy ms per s; zero if nothing is known.
    pub(super) fn busy(&self, partition: &PartitionId) -> f64 {
        self.busy_ms.as_ref().and_then(|busy| busy.get(partition)).copied().unwrap_or(0.0)
    }

    /// What the load of one partition rests on.
    pub(super) fn basis(&self, partition: &PartitionId) -> Basis {
        if self.proven || self.announced.contains(partition) {
            Basis::Forecast
        } else {
            Basis::Current
        }
    }

    /// Nodes that could take a replica, best first: room in memory, then least load.
    pub(super) fn targets(&self, partition: &PartitionView) -> Vec<NodeId> {
        let nodes = self.view.nodes.iter();
        let mut targets: Vec<_> = nodes
            .filter(|(node, view)| !view.draining && !partition.holders.contains(node))
            .map(|(node, view)| {
                let room = view.memory_bytes_max.saturating_sub(view.memory_bytes);
                (room < partition.bytes, self.node_busy_ms[node], view.memory_bytes, *node)
            })
            .collect();
        targets.sort_by(|a, b| {
            (a.0.cmp(&b.0)).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)).then(a.3.cmp(&b.3))
        });
        targets.into_iter().map(|(.., node)| node).collect()
    }

    /// Counts a replica step that was just planned.
    pub(super) fn apply(&mut self, step: &Step) {
        if let Some(partition) = step.partition_moved().cloned() {
            self.share_load(&partition, -1.0);
            self.view.apply(step);
            self.share_load(&partition, 1.0);
        }
    }

    fn spread_load(&mut self) {
        let partitions: Vec<_> = self.view.partitions.keys().cloned().collect();
        for partition in partitions {
            self.share_load(&partition, 1.0);
        }
    }

    fn share_load(&mut self, partition: &PartitionId, sign: f64) {
        let busy = self.busy(partition) * sign;
        let Some(view) = self.view.partitions.get(partition) else { return };
        let live = view.holders.iter().filter(|node| self.node_busy_ms.contains_key(node));
        let share = busy / live.count().max(1) as f64;
        for node in &view.holders {
            if let Some(load) = self.node_busy_ms.get_mut(node) {
                *load += share;
            }
        }
    }
}

fn with_in_flight(view: &ClusterView, in_flight: &[Step]) -> ClusterView {
    let mut view = view.clone();
    for step in in_flight {
        match step {
            // It still answers, but gets nothing more.
            Step::RemoveNode { node } => {
                if let Some(node) = view.nodes.get_mut(node) {
                    node.draining = true;
                }
            }
            step => view.apply(step),
        }
    }
    view
}

/// Busy ms per s of each partition: the highest tick of the last ones and of the horizon. A series that
/// may not be acted on ahead is taken to go on as in the last ticks.
fn load(forecast: &Forecast, config: &LoopConfig) -> BTreeMap<PartitionId, f64> {
    let horizon = config.horizon_ticks();
    let looks_ahead = config.mode().looks_ahead();
    let mut by_tick: BTreeMap<PartitionId, Vec<f64>> = BTreeMap::new();
    for series in &forecast.series {
        let ticks =
            by_tick.entry(series.key.partition.clone()).or_insert_with(|| vec![0.0; horizon + 1]);
        let ms_per_s = series.ns_per_call / config.tick_ns() * 1e3;
        let now = series.calls_now * ms_per_s;
        if !(looks_ahead && forecast.may_act_on(series)) {
            ticks.iter_mut().for_each(|tick| *tick += now);
            continue;
        }
        ticks[0] += now;
        for (tick, calls) in ticks[1..].iter_mut().zip(&series.calls) {
            *tick += calls.mean() * ms_per_s;
        }
    }
    let highest = |ticks: Vec<f64>| ticks.into_iter().fold(0.0, f64::max);
    by_tick.into_iter().map(|(partition, ticks)| (partition, highest(ticks))).collect()
}
