//! How busy partitions and nodes are on average until the horizon, and what a change of holders spares.
//!
//! Whether something is too much is decided by the busiest tick; what a step is worth by all of them.

use std::collections::BTreeSet;

use super::{Place, Situation};
use crate::forecast::SeriesForecast;
use crate::ids::NodeId;
use crate::queueing::waiting;
use crate::trust::Expected;

/// Busy ms per s of a partition over the horizon.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Near {
    low_ms: f64,
    pub(super) mean_ms: f64,
    high_ms: f64,
}

impl Near {
    /// Adds a series that goes on as it is now.
    pub(super) fn add_now(&mut self, now_ms: f64) {
        self.low_ms += now_ms;
        self.mean_ms += now_ms;
        self.high_ms += now_ms;
    }

    /// Adds what is expected of a series within `ticks` ticks, of which each call is so many ms per s.
    pub(super) fn add_ahead(&mut self, series: &SeriesForecast, ms_per_s: f64, ticks: usize) {
        let each = ms_per_s / ticks.max(1) as f64;
        for calls in series.calls.iter().take(ticks) {
            self.low_ms += calls.q10 * each;
            self.mean_ms += calls.mean() * each;
            self.high_ms += calls.q90 * each;
        }
    }
}

impl Situation<'_> {
    /// How much less calls wait within the horizon if `after` hold the partition instead of those that do.
    pub(in crate::reshape) fn sparing(&self, place: Place, after: &BTreeSet<NodeId>) -> Expected {
        let part = &self.parts[place];
        let live = |nodes: &BTreeSet<NodeId>| -> BTreeSet<NodeId> {
            nodes.iter().filter(|node| self.nodes.contains_key(node)).copied().collect()
        };
        let (before, after) = (live(part.holders()), live(after));
        let share = |holders: &BTreeSet<NodeId>, node: NodeId, ms: f64| {
            if holders.contains(&node) { ms / holders.len() as f64 } else { 0.0 }
        };
        let horizon_ns = self.config.horizon_ticks() as f64 * self.config.tick_ns();
        let spared_ns = |ms: f64| -> f64 {
            let on = |node: &NodeId| {
                let others = self.node_near_ms[node] - share(&before, *node, part.near.mean_ms);
                let waits = |holders: &BTreeSet<NodeId>| {
                    waiting((others + share(holders, *node, ms)) / 1e3, self.permits(*node))
                };
                waits(&before) - waits(&after)
            };
            before.union(&after).map(on).sum::<f64>() * horizon_ns
        };
        let mean_ns = spared_ns(part.near.mean_ms);
        let (low, high) = (spared_ns(part.near.low_ms), spared_ns(part.near.high_ms));
        let (low_ns, high_ns) = (low.min(high).min(mean_ns), low.max(high).max(mean_ns));
        Expected { mean_ns, most_ns: high_ns.max(0.0), low_ns, high_ns }
    }
}
