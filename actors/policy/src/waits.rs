//! What steps that move load were worth: how much longer calls would have waited without them.
//!
//! Of each tick is known how long each partition kept CPUs of each node busy, and how long calls waited
//! there. A step is undone in that: what it brought to a node goes back to where it came from. How long
//! calls would then have waited follows from how long they do wait on nodes that are so busy, as measured.
//! Steps are undone in turn, the newest first, so what all of them were worth is the sum of what each was.
//!
//! What is so accounted for is checked by experiment: now and then steps are held back. Of steps that were
//! taken and of those that were not is known by how much less calls waited on their nodes afterwards than
//! before, other than because there was more or less to do in all, which no step changes.
//!
//! # Source
//! Difference in differences as in Card and Krueger (1994). That a whole window is held back, and not single
//! steps, is because a node that is not relieved by one step is by the next: a switchback design, as in Bojinov,
//! Simchi-Levi and Zhao, "Design and Analysis of Switchback Experiments", Management Science 69 (2023).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::calls::CallRecord;
use crate::cluster::{NodeView, Step};
use crate::ids::{NodeId, PartitionId, Tick};
use crate::queueing::waiting;

/// Partitions whose load is told apart within a tick; that of others counts for their node only.
const PARTITIONS_MAX: usize = 100_000;

/// Steps that are watched at the same time; others are not.
const WATCHES_MAX: usize = 1_000;

/// Ticks before a step that it is compared with at most.
const BEFORE_MAX: usize = 64;

/// Ticks after which a tick counts half in how long calls wait on a node.
const HALF_LIFE_TICKS: f64 = 50.0;

/// What a node's own past weighs as much as that of all nodes, in ticks of the average node.
const OWN_TICKS: f64 = 10.0;

/// One tick that is over.
#[derive(Clone, Debug, Default)]
struct Past {
    busy_ns: f64,
    waited_ns: BTreeMap<NodeId, f64>,
}

/// Waiting as it was, and as it would be if tasks came and lasted at random.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    measured_ns: f64,
    expected_ns: f64,
}

impl Sums {
    fn add(&mut self, measured_ns: f64, expected_ns: f64) {
        let keep = 0.5_f64.powf(1.0 / HALF_LIFE_TICKS);
        self.measured_ns = keep * self.measured_ns + measured_ns;
        self.expected_ns = keep * self.expected_ns + expected_ns;
    }
}

#[derive(Clone, Debug)]
struct Watch {
    partition: PartitionId,
    from: NodeId,
    to: NodeId,
    is_move: bool,
    is_held_back: bool,
    /// The first tick that counts, and the last.
    ticks: (Tick, Tick),
    /// Busy and waited for on its nodes in a tick before, and in all ticks so far.
    before: (f64, f64),
    after: (f64, f64),
    spared_ns: f64,
    ticks_busy: u64,
}

/// What is known of one step once it had its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spared {
    /// The decision.
    pub id: u64,
    /// Nanoseconds that calls would have waited longer without it; none if it was held back.
    pub measured_ns: Option<f64>,
    /// By how many nanoseconds calls waited less on its two nodes than before, if all that was to do is
    /// allowed for; none if nothing was to do before.
    pub less_ns: Option<f64>,
}

/// Loads and waiting of the open tick, how long calls wait on each node, and the steps that are watched.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    open: BTreeMap<PartitionId, BTreeMap<NodeId, f64>>,
    /// Busy and waited for in the open tick.
    nodes: BTreeMap<NodeId, (f64, f64)>,
    by_node: BTreeMap<NodeId, Sums>,
    past: VecDeque<Past>,
    watches: BTreeMap<u64, Watch>,
}

impl Waits {
    /// Counts what a call computed, and how long it waited.
    pub fn record(&mut self, call: &CallRecord) {
        let node = self.nodes.entry(call.node).or_default();
        node.0 += call.ns as f64;
        node.1 += call.waited_ns as f64;
        if call.ns == 0 {
            return;
        }
        if self.open.len() >= PARTITIONS_MAX && !self.open.contains_key(&call.partition) {
            return;
        }
        let nodes = self.open.entry(call.partition.clone()).or_default();
        *nodes.entry(call.node).or_default() += call.ns as f64;
    }

    /// From the next tick on follows what decision `id` moved, or would have moved were it not held back, for
    /// `ticks` ticks. Steps that move no load are not followed.
    pub fn watch(&mut self, id: u64, step: &Step, is_held_back: bool, now: Tick, ticks: u64) {
        let (partition, from, to, is_move) = match step {
            Step::Copy { partition, from, to } => (partition, *from, *to, false),
            Step::Move { partition, from, to } => (partition, *from, *to, true),
            _ => return,
        };
        if self.watches.len() >= WATCHES_MAX || from == to {
            return;
        }
        let span = usize::try_from(ticks).unwrap_or(BEFORE_MAX).min(self.past.len());
        let past = self.past.iter().rev().take(span);
        let before = past.fold((0.0, 0.0), |(busy, waited), tick| {
            (busy + tick.busy_ns, waited + tick.waited_on(from) + tick.waited_on(to))
        });
        let each = span.max(1) as f64;
        let watch = Watch {
            partition: partition.clone(),
            from,
            to,
            is_move,
            is_held_back,
            ticks: (now.next(), Tick(now.0.saturating_add(ticks))),
            before: (before.0 / each, before.1 / each),
            after: (0.0, 0.0),
            spared_ns: 0.0,
            ticks_busy: 0,
        };
        self.watches.insert(id, watch);
    }

    /// A step that was taken back, or harmed, is not followed any more.
    pub fn forget(&mut self, id: u64) {
        self.watches.remove(&id);
    }

    /// Ends a tick of `tick_ns`; answers what is known of steps whose time is over.
    pub fn close_tick(
        &mut self,
        now: Tick,
        tick_ns: f64,
        nodes: &BTreeMap<NodeId, NodeView>,
    ) -> Vec<Spared> {
        let mut open = std::mem::take(&mut self.open);
        let tick = std::mem::take(&mut self.nodes);
        let curve = self.curve(&tick, tick_ns, nodes);
        let mut busy: BTreeMap<NodeId, f64> =
            tick.iter().map(|(node, (busy, _))| (*node, *busy)).collect();
        let past = Past {
            busy_ns: busy.values().sum(),
            waited_ns: tick.into_iter().map(|(node, (_, waited))| (node, waited)).collect(),
        };
        for watch in self.watches.values_mut().rev() {
            if now < watch.ticks.0 {
                continue;
            }
            watch.after.0 += past.busy_ns;
            watch.after.1 += past.waited_on(watch.from) + past.waited_on(watch.to);
            if !watch.is_held_back
                && let Some(loads) = open.get_mut(&watch.partition)
            {
                watch.ticks_busy += 1;
                watch.spared_ns += watch.undo(loads, &mut busy, &curve);
            }
        }
        self.past.push_back(past);
        if self.past.len() > BEFORE_MAX {
            self.past.pop_front();
        }
        let over = |(id, watch): (&u64, &Watch)| (now >= watch.ticks.1).then(|| watch.spared(*id));
        let over: Vec<Spared> = self.watches.iter().filter_map(over).collect();
        over.iter().for_each(|spared| self.forget(spared.id));
        over
    }

    /// How long calls wait on nodes, as learned up to this tick.
    fn curve(
        &mut self,
        tick: &BTreeMap<NodeId, (f64, f64)>,
        tick_ns: f64,
        nodes: &BTreeMap<NodeId, NodeView>,
    ) -> Curve {
        self.by_node.retain(|node, _| nodes.contains_key(node));
        let permits: BTreeMap<NodeId, f64> =
            nodes.iter().map(|(node, view)| (*node, f64::from(view.cpu_permits.max(1)))).collect();
        let mut curve = Curve { tick_ns, permits, factors: BTreeMap::new(), usual: 1.0 };
        for node in nodes.keys() {
            let (busy, waited) = tick.get(node).copied().unwrap_or_default();
            self.by_node.entry(*node).or_default().add(waited, curve.random_ns(*node, busy));
        }
        let all = self.by_node.values().fold(Sums::default(), |all, of| Sums {
            measured_ns: all.measured_ns + of.measured_ns,
            expected_ns: all.expected_ns + of.expected_ns,
        });
        if all.expected_ns > 0.0 {
            curve.usual = all.measured_ns / all.expected_ns;
        }
        let ticks = HALF_LIFE_TICKS / std::f64::consts::LN_2;
        let prior = OWN_TICKS / ticks * all.expected_ns / (self.by_node.len() as f64).max(1.0);
        curve.factors = (self.by_node.iter())
            .filter(|(_, of)| of.expected_ns + prior > 0.0)
            .map(|(node, of)| {
                let measured = of.measured_ns + curve.usual * prior;
                (*node, measured / (of.expected_ns + prior))
            })
            .collect();
        curve
    }
}

impl Past {
    fn waited_on(&self, node: NodeId) -> f64 {
        self.waited_ns.get(&node).copied().unwrap_or(0.0)
    }
}

/// How long calls wait in a tick on a node that is so busy.
struct Curve {
    tick_ns: f64,
    permits: BTreeMap<NodeId, f64>,
    /// How many times as long as at random they wait on each node.
    factors: BTreeMap<NodeId, f64>,
    usual: f64,
}

impl Curve {
    fn random_ns(&self, node: NodeId, busy_ns: f64) -> f64 {
        let permits = self.permits.get(&node).copied().unwrap_or(1.0);
        waiting(busy_ns / self.tick_ns, permits) * self.tick_ns
    }

    fn waited_ns(&self, node: NodeId, busy_ns: f64) -> f64 {
        self.factors.get(&node).unwrap_or(&self.usual) * self.random_ns(node, busy_ns)
    }

    /// On several nodes together.
    fn sum(&self, nodes: &BTreeSet<NodeId>, busy: &BTreeMap<NodeId, f64>) -> f64 {
        let on = |node: &NodeId| self.waited_ns(*node, busy.get(node).copied().unwrap_or(0.0));
        nodes.iter().map(on).sum()
    }
}

impl Watch {
    /// Takes the step back in the `loads` of its partition and in what nodes are busy with; answers how much
    /// longer calls would have waited.
    fn undo(
        &self,
        loads: &mut BTreeMap<NodeId, f64>,
        busy: &mut BTreeMap<NodeId, f64>,
        curve: &Curve,
    ) -> f64 {
        let Some(moved) = loads.remove(&self.to).filter(|moved| *moved > 0.0) else { return 0.0 };
        // Without a copy those that share the load now would have shared all of it.
        let rest: f64 = loads.values().sum();
        let back: BTreeMap<NodeId, f64> = if self.is_move || rest <= 0.0 {
            [(self.from, moved)].into()
        } else {
            loads.iter().map(|(node, load)| (*node, moved * load / rest)).collect()
        };
        let touched: BTreeSet<NodeId> = back.keys().copied().chain([self.to]).collect();
        let with = curve.sum(&touched, busy);
        *busy.entry(self.to).or_default() -= moved;
        for (node, load) in back {
            *loads.entry(node).or_default() += load;
            *busy.entry(node).or_default() += load;
        }
        curve.sum(&touched, busy) - with
    }

    fn spared(&self, id: u64) -> Spared {
        let ticks = (self.ticks.1.0 + 1).saturating_sub(self.ticks.0.0).max(1) as f64;
        let more = self.after.0 / (self.before.0 * ticks);
        let is_known = self.before.0 > 0.0 && self.after.0 > 0.0;
        // Twice as much to do has calls wait four times as long, for all that is known.
        let less_ns = is_known.then_some(self.before.1 * ticks * more * more - self.after.1);
        let is_called = self.ticks_busy > 0 && !self.is_held_back;
        Spared { id, measured_ns: is_called.then_some(self.spared_ns), less_ns }
    }
}

#[cfg(test)]
mod tests;
