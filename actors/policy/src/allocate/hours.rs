//! How many nodes the node-hours of a day still allow.

use crate::config::LoopConfig;
use crate::ids::Tick;

const DAY_MS: u64 = 24 * HOUR_MS;
const HOUR_MS: u64 = 3_600_000;

/// Node-hours that nodes which can be started here ran for, since midnight in UTC or since the count began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NodeHours {
    day: u64,
    node_ms: u64,
    seen_ms: Option<u64>,
}

/// What is left of the budget of a day.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Left {
    /// Node-hours.
    pub(super) hours: f64,
    /// Hours until midnight.
    pub(super) rest: f64,
    /// Nodes that may run until then.
    pub(super) nodes: u32,
}

impl NodeHours {
    /// Counts what ran since the last time.
    pub(super) fn pass(&mut self, now_ms: u64, nodes: u32) {
        let day = now_ms / DAY_MS;
        if day > self.day {
            (self.day, self.node_ms) = (day, 0);
        }
        let from = self.seen_ms.unwrap_or(now_ms).max(day * DAY_MS);
        let passed = now_ms.saturating_sub(from);
        self.node_ms = self.node_ms.saturating_add(passed.saturating_mul(nodes.into()));
        self.seen_ms = Some(now_ms.max(self.seen_ms.unwrap_or(0)));
    }

    /// What `allocate.node-hours-max` leaves for the rest of the day; none if there is no such limit.
    pub(super) fn left(&self, now_ms: u64, config: &LoopConfig) -> Option<Left> {
        let most = config.allocate().node_hours_max();
        if most <= 0.0 {
            return None;
        }
        let hours = (most - self.node_ms as f64 / HOUR_MS as f64).max(0.0);
        let rest = (DAY_MS - now_ms % DAY_MS) as f64 / HOUR_MS as f64;
        // What is left exactly may run; the cast saturates.
        Some(Left { hours, rest, nodes: (hours / rest + 1e-9).floor() as u32 })
    }
}

/// The time: that of the caller, or that of the ticks.
pub(super) fn clock_ms(clock_ms: Option<u64>, now: Tick, config: &LoopConfig) -> u64 {
    clock_ms.unwrap_or_else(|| now.0.saturating_mul(config.tick_ms()))
}
