//! One cluster that serves the calls, and whose planner is told something.

use anyhow::Result;
use foreshard_policy::cluster::{ClusterView, NodeView, PartitionView, Step};
use foreshard_policy::config::{LoopConfig, Mode};
use foreshard_policy::forecast::Forecast;
use foreshard_policy::ids::{NodeId, Tick};
use foreshard_policy::random::SplitMix64;
use foreshard_policy::reshape::{PlanState, plan};

use super::world::{CALL_NS, partition};

const NODES: u32 = 8;

/// Ticks from the plan until a copy serves.
const COPY_TICKS: u64 = 2;

/// Bytes of a partition.
const BYTES: u64 = 64 << 20;

pub(super) struct Arm {
    pub(super) name: &'static str,
    config: LoopConfig,
    view: ClusterView,
    state: PlanState,
    /// Steps under way, with the tick in which they are done.
    under_way: Vec<(u64, Step)>,
    dice: SplitMix64,
    /// Nodes that hold each partition.
    holders: Vec<Vec<usize>>,
    counts: bool,
    /// Load of the busiest node over the mean, by tick that counts.
    pub(super) loads: Vec<f64>,
    pub(super) copies: u64,
    pub(super) moves: u64,
    pub(super) drops: u64,
    /// Replicas over all partitions and ticks that count.
    pub(super) replicas: u64,
}

impl Arm {
    pub(super) fn new(
        name: &'static str,
        mode: Mode,
        config: &LoopConfig,
        partitions: u32,
        seed: u64,
    ) -> Result<Self> {
        let mut dice = SplitMix64::new(seed.wrapping_mul(7) + 1);
        let node = NodeView { memory_bytes_max: 1 << 40, cpu_permits: 2, ..NodeView::default() };
        let nodes = (0..NODES).map(|id| (NodeId(id), node.clone())).collect();
        let mut view = ClusterView { nodes, ..ClusterView::default() };
        for at in 0..partitions {
            let holder = NodeId((dice.uniform() * f64::from(NODES)) as u32);
            let part = PartitionView { holders: [holder].into(), rows: 1_000, bytes: BYTES };
            view.partitions.insert(partition(at), part);
        }
        let mut arm = Self {
            name,
            config: config.clone().with_mode(mode)?,
            view,
            state: PlanState::default(),
            under_way: Vec::new(),
            dice,
            holders: Vec::new(),
            counts: false,
            loads: Vec::new(),
            copies: 0,
            moves: 0,
            drops: 0,
            replicas: 0,
        };
        arm.find_holders();
        Ok(arm)
    }

    fn find_holders(&mut self) {
        let parts = self.view.partitions.values();
        let nodes = |part: &PartitionView| part.holders.iter().map(|it| it.0 as usize).collect();
        self.holders = parts.map(nodes).collect();
    }

    /// Each call goes to the less busy of two holders that are drawn.
    pub(super) fn serve(&mut self, calls: &[u32], counts: bool) {
        self.counts = counts;
        let mut busy_ns = [0_u64; NODES as usize];
        for at in calls {
            let holders = &self.holders[*at as usize];
            let mut draw = || holders[(self.dice.uniform() * holders.len() as f64) as usize];
            let (first, mut second) = (draw(), draw());
            while holders.len() > 1 && second == first {
                second = draw();
            }
            let node = if busy_ns[second] < busy_ns[first] { second } else { first };
            busy_ns[node] += CALL_NS;
        }
        if counts {
            let most = busy_ns.iter().copied().max().unwrap_or(0) as f64;
            let all: u64 = busy_ns.iter().sum();
            self.loads.push(most / (all as f64 / f64::from(NODES)));
            self.replicas += self.holders.iter().map(Vec::len).sum::<usize>() as u64;
        }
    }

    /// Ends what is done by now, and begins what is planned.
    pub(super) fn plan(&mut self, forecast: &Forecast, tick: u64) {
        let (done, under_way) =
            std::mem::take(&mut self.under_way).into_iter().partition(|(at, _)| *at <= tick);
        self.under_way = under_way;
        let done: Vec<(u64, Step)> = done;
        for (_, step) in done {
            if let Some(partition) = step.partition_moved() {
                self.state.changed.insert(partition.clone(), Tick(tick));
            }
            if let Step::Move { from, to, .. } = &step {
                self.state.traded.extend([(*from, Tick(tick)), (*to, Tick(tick))]);
            }
            self.view.apply(&step);
        }
        self.find_holders();
        self.state.in_flight = self.under_way.iter().map(|(_, step)| step.clone()).collect();
        let plan = plan(&self.view, Some(forecast), &self.state, &self.config, Tick(tick));
        let (state, dwell) = (&mut self.state, self.config.reshape().dwell_ticks());
        state.costs.keep(|of| {
            let rests = state.changed.get(of).is_some_and(|at| tick < at.0 + dwell);
            rests || state.in_flight.iter().any(|step| step.partition_moved() == Some(of))
        });
        state.costs.note(&plan.steps, forecast);
        for planned in plan.steps {
            let copied = match planned.step {
                Step::Copy { .. } => &mut self.copies,
                Step::Move { .. } => &mut self.moves,
                _ => &mut self.drops,
            };
            *copied += u64::from(self.counts);
            let ticks = if matches!(planned.step, Step::Drop { .. }) { 1 } else { COPY_TICKS };
            self.under_way.push((tick + ticks, planned.step));
        }
    }

    /// Adds what another run came to.
    pub(super) fn add(&mut self, other: Self) {
        self.loads.extend(other.loads);
        self.copies += other.copies;
        self.moves += other.moves;
        self.drops += other.drops;
        self.replicas += other.replicas;
    }

    /// Load of the busiest node over the mean that so many ticks stay below.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let mut loads = self.loads.clone();
        loads.sort_by(f64::total_cmp);
        let at = ((loads.len() as f64 * share) as usize).min(loads.len().saturating_sub(1));
        loads.get(at).copied().unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_on_two_holders_are_shared_evenly_and_a_copy_takes_two_ticks() {
        let config = LoopConfig::default();
        let mut arm = Arm::new("x", Mode::Reactive, &config, 1, 1).unwrap();
        let from = *arm.view.partitions[&partition(0)].holders.first().unwrap();
        let to = NodeId((from.0 + 1) % NODES);
        arm.under_way.push((2, Step::Copy { partition: partition(0), from, to }));
        let none = Forecast { tick_ms: 1_000, ..Forecast::default() };
        let mut most = Vec::new();
        for tick in 0..4 {
            arm.serve(&[0; 100], true);
            arm.plan(&none, tick);
            most.push(arm.loads[tick as usize]);
        }
        assert_eq!(most, [8.0, 8.0, 8.0, 4.0]);
    }
}
