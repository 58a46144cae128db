//! Copies and moves on 32 nodes in virtual time: calls queue for CPUs, the planner evens loads out, and the
//! ledger says what that spared. One step of three is also left out in a twin of the cluster that gets the same calls.

use std::collections::{BTreeMap, BTreeSet};

use foreshard_policy::calls::CallRecord;
use foreshard_policy::cluster::{Aim, ClusterView, NodeView, PartitionView, Step};
use foreshard_policy::config::LoopConfig;
use foreshard_policy::decision::{By, Ledger, Outcome, Stamp};
use foreshard_policy::forecast::ensemble::invert;
use foreshard_policy::ids::{ExpressionId, NodeId, PartitionId, SeriesKey, Tick};
use foreshard_policy::random::SplitMix64;
use foreshard_policy::reshape::{PlanState, plan};

use super::days::Days;
use super::load::Load;
use super::outlook::{Cost, Outlook};

const NODES: usize = 32;
const PERMITS: usize = 2;
const PARTITIONS: usize = 480;

/// What a call takes on average; single ones are as different as can be expected of work at random.
const CALL_NS: f64 = 8e6;
const TICK_NS: f64 = 1e9;

/// Exponent of Zipf's law for the popularity of partitions.
const ZIPF: f64 = 0.8;

/// Deviation of the logarithm of what drifts, and ticks after which a third of it is left.
const DRIFT: f64 = 0.8;
const DRIFT_TICKS: f64 = 100.0;

/// By how much a partition is more popular at its own best hour.
const RHYTHM: f64 = 1.8;

/// Ticks from the plan until a copy serves.
const COPY_TICKS: u64 = 2;

/// Bytes of a partition.
const BYTES: u64 = 16 << 20;

/// One step of so many is left out in a twin.
const TWIN_EVERY: u64 = 3;

/// Decisions that are kept.
const ROWS_MAX: usize = 4_000;

/// One call.
#[derive(Clone, Copy, Debug)]
struct Call {
    partition: usize,
    at_ns: f64,
    ns: f64,
    /// By which of two holders are drawn: the same in all twins.
    draws: [f64; 2],
}

/// When each CPU is free again.
type Cpus = [[f64; PERMITS]; NODES];

/// What each node did for each partition in a tick, in nanoseconds: busy and waited for.
type Did = BTreeMap<(usize, usize), (f64, f64)>;

/// Serves the calls of a tick; each goes to the less busy of two holders.
fn serve(calls: &[Call], holders: &[Vec<usize>], cpus: &mut Cpus) -> Did {
    let mut did = Did::new();
    for call in calls {
        let holders = &holders[call.partition];
        let drawn = |draw: f64| (draw * holders.len() as f64) as usize;
        let first = drawn(call.draws[0]);
        let second =
            (first + 1 + (call.draws[1] * (holders.len() as f64 - 1.0)) as usize) % holders.len();
        let free = |node: usize| cpus[node].iter().copied().fold(f64::INFINITY, f64::min);
        let (first, second) = (holders[first], holders[second]);
        let node = if free(second) < free(first) { second } else { first };
        let cpu = usize::from(cpus[node][1] < cpus[node][0]);
        let start = cpus[node][cpu].max(call.at_ns);
        cpus[node][cpu] = start + call.ns;
        let did = did.entry((call.partition, node)).or_default();
        *did = (did.0 + call.ns, did.1 + start - call.at_ns);
    }
    did
}

fn waited_ns(did: &Did) -> f64 {
    did.values().map(|(_, waited)| waited).sum()
}

/// The same cluster without one step.
struct Twin {
    step: Step,
    partition: usize,
    until: u64,
    cpus: Cpus,
    longer_ns: f64,
}

impl Twin {
    /// Who would hold the partition.
    fn holders(&self, holders: &[usize]) -> Vec<usize> {
        let mut nodes: BTreeSet<usize> = holders.iter().copied().collect();
        let (Step::Copy { to, .. } | Step::Move { to, .. }) = self.step else {
            return holders.to_vec();
        };
        nodes.remove(&(to.0 as usize));
        if let Step::Move { from, .. } = self.step {
            nodes.insert(from.0 as usize);
        }
        if nodes.is_empty() { holders.to_vec() } else { nodes.into_iter().collect() }
    }
}

/// Popularity of one partition, as a logarithm.
struct Part {
    usual: f64,
    phase: f64,
    drift: f64,
}

/// A kind, its steps that were held back, what comparing with them says with its error, and the factor by the
/// account.
pub(crate) type HeldBack = (&'static str, u64, Option<(f64, f64)>, f64);

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spread {
    pub(crate) days: Days,
    /// Nanoseconds that steps spared by their account, and by their twins.
    pub(crate) account_ns: f64,
    pub(crate) truth_ns: f64,
    /// Waiting in all.
    pub(crate) waited_ns: f64,
    /// By kind: steps that were held back, and what comparing with them says, with its error.
    pub(crate) by_holdback: Vec<HeldBack>,
}

/// The cluster and everything around it.
struct Cluster {
    config: LoopConfig,
    view: ClusterView,
    state: PlanState,
    ledger: Ledger,
    under_way: Vec<(u64, u64, Step)>,
    held: BTreeSet<Aim>,
    cpus: Cpus,
    twins: BTreeMap<u64, Twin>,
    spread: Spread,
}

fn id(partition: usize) -> PartitionId {
    PartitionId::new("t", partition as u32)
}

fn key(partition: usize) -> SeriesKey {
    let expression = ExpressionId(1);
    SeriesKey { function: "score".into(), expression, partition: id(partition) }
}

/// Plays a load; `is_inverted` turns forecasts upside down.
pub(crate) fn play(load: &Load, seed: u64, config: &LoopConfig, is_inverted: bool) -> Spread {
    let mut dice = SplitMix64::new(seed);
    let mut parts: Vec<Part> = (1..=PARTITIONS)
        .map(|rank| Part {
            usual: -ZIPF * (rank as f64).ln(),
            phase: dice.uniform(),
            drift: DRIFT * dice.normal(),
        })
        .collect();
    let cost = Cost { ns_per_call: CALL_NS, ns_per_row: CALL_NS, bytes_per_row: 8.0 };
    let keys = (0..PARTITIONS).map(|at| (key(at), cost)).collect();
    let mut outlook = Outlook::new(keys, load.day_ticks);
    let mut cluster = Cluster::new(config);
    for (tick, share) in load.shares.iter().enumerate() {
        let hour = tick as f64 / load.day_ticks as f64;
        let calls = calls(&mut parts, (tick, hour), *share, &mut dice);
        let mut counts = vec![0; PARTITIONS];
        calls.iter().for_each(|call| counts[call.partition] += 1);
        cluster.serve(&calls, tick as u64);
        let forecast = outlook.next(&counts, config);
        let forecast = if is_inverted { invert(&forecast) } else { forecast };
        cluster.close(tick as u64, load.day_ticks);
        cluster.plan(&forecast, tick as u64);
    }
    let kinds = cluster.ledger.trust().kinds();
    cluster.spread.by_holdback = kinds
        .map(|kind| (kind.kind, kind.held_back, kind.by_trial, kind.measured_ns / kind.expected_ns))
        .collect();
    cluster.spread
}

fn calls(
    parts: &mut [Part],
    (tick, hour): (usize, f64),
    share: f64,
    dice: &mut SplitMix64,
) -> Vec<Call> {
    let keep = 1.0 - 1.0 / DRIFT_TICKS;
    let more = DRIFT * (1.0 - keep * keep).sqrt();
    let weights: Vec<f64> = parts
        .iter_mut()
        .map(|part| {
            part.drift = keep * part.drift + more * dice.normal();
            let rhythm = RHYTHM.ln() * (std::f64::consts::TAU * (hour + part.phase)).sin();
            (part.usual + rhythm + part.drift).exp()
        })
        .collect();
    let all: f64 = weights.iter().sum();
    let calls = share * (NODES * PERMITS) as f64 * TICK_NS / CALL_NS;
    let mut called = Vec::with_capacity(calls as usize);
    for (partition, weight) in weights.iter().enumerate() {
        for _ in 0..dice.poisson(calls * weight / all) {
            let at_ns = (tick as f64 + dice.uniform()) * TICK_NS;
            let ns = -CALL_NS * (1.0 - dice.uniform()).ln();
            called.push(Call { partition, at_ns, ns, draws: [dice.uniform(), dice.uniform()] });
        }
    }
    called.sort_by(|a, b| a.at_ns.total_cmp(&b.at_ns));
    called
}

impl Cluster {
    fn new(config: &LoopConfig) -> Self {
        let (memory_bytes_max, cpu_permits) = (1 << 40, PERMITS as u32);
        let node = NodeView { memory_bytes_max, cpu_permits, ..NodeView::default() };
        let nodes = (0..NODES as u32).map(|id| (NodeId(id), node.clone())).collect();
        let mut view = ClusterView { nodes, ..ClusterView::default() };
        for partition in 0..PARTITIONS {
            let holders = [NodeId((partition % NODES) as u32)].into();
            let part = PartitionView { holders, rows: 1_000, bytes: BYTES };
            view.partitions.insert(id(partition), part);
        }
        Self {
            config: config.clone(),
            view,
            state: PlanState::default(),
            ledger: Ledger::new(ROWS_MAX),
            under_way: Vec::new(),
            held: BTreeSet::new(),
            cpus: [[0.0; PERMITS]; NODES],
            twins: BTreeMap::new(),
            spread: Spread::default(),
        }
    }

    fn holders(&self) -> Vec<Vec<usize>> {
        let of = |at: usize| self.view.partitions[&id(at)].holders.iter();
        (0..PARTITIONS).map(|at| of(at).map(|node| node.0 as usize).collect()).collect()
    }

    fn serve(&mut self, calls: &[Call], tick: u64) {
        let mut holders = self.holders();
        let did = serve(calls, &holders, &mut self.cpus);
        let waited = waited_ns(&did);
        self.spread.waited_ns += waited;
        for twin in self.twins.values_mut().filter(|twin| tick <= twin.until) {
            let without = twin.holders(&holders[twin.partition]);
            let with = std::mem::replace(&mut holders[twin.partition], without);
            twin.longer_ns += waited_ns(&serve(calls, &holders, &mut twin.cpus)) - waited;
            holders[twin.partition] = with;
        }
        for ((partition, node), (busy, waited)) in did {
            let call = CallRecord {
                rows: 1,
                ns: busy as u64,
                waited_ns: waited as u64,
                would_be_ns: busy as u64,
                ..CallRecord::empty(key(partition), tick, NodeId(node as u32), None)
            };
            self.ledger.credit(&call);
        }
    }

    /// Ends a tick: judges what is due, and carries out what is done by now.
    fn close(&mut self, tick: u64, day_ticks: usize) {
        let harms = self.ledger.close_tick(Tick(tick), &self.config, &self.view.nodes);
        debug_assert!(harms.is_empty());
        self.spread.days.judge(&self.ledger, day_ticks, |row| row.measured.is_some());
        let over: Vec<u64> =
            self.twins.iter().filter(|(_, twin)| twin.until <= tick).map(|(id, _)| *id).collect();
        for id in over {
            let twin = self.twins.remove(&id);
            if let (Some(twin), Ok(row)) = (twin, self.ledger.get(id)) {
                self.spread.truth_ns += twin.longer_ns;
                self.spread.account_ns += row.measured.unwrap_or(0.0);
            }
        }
        let under_way = std::mem::take(&mut self.under_way);
        for (at, id, step) in under_way {
            if at > tick {
                self.under_way.push((at, id, step));
                continue;
            }
            self.view.apply(&step);
            self.done(tick, id, step);
        }
    }

    fn done(&mut self, tick: u64, id: u64, step: Step) {
        let horizon = self.config.horizon_ticks() as u64;
        self.ledger.ended(id, Outcome::Done { rows: 0, bytes: BYTES, ns: 1 });
        self.ledger.follow(id, Tick(tick), horizon);
        if let Some(partition) = step.partition_moved() {
            self.state.changed.insert(partition.clone(), Tick(tick));
            if !matches!(step, Step::Drop { .. }) && id.is_multiple_of(TWIN_EVERY) {
                let (partition, until) = (partition.ordinal as usize, tick + horizon);
                let (cpus, step) = (self.cpus, step.clone());
                self.twins.insert(id, Twin { step, partition, until, cpus, longer_ns: 0.0 });
            }
        }
        if let Step::Move { from, to, .. } = &step {
            self.state.traded.extend([(*from, Tick(tick)), (*to, Tick(tick))]);
        }
    }

    fn plan(&mut self, forecast: &foreshard_policy::forecast::Forecast, tick: u64) {
        self.state.in_flight = self.under_way.iter().map(|(.., step)| step.clone()).collect();
        self.state.trust = self.ledger.trust().now();
        self.state.known = self.ledger.trust().known();
        let plan = plan(&self.view, Some(forecast), &self.state, &self.config, Tick(tick));
        let stamp = Stamp {
            epoch: plan.epoch,
            mode: self.config.mode(),
            tick: Tick(tick),
            at_ms: tick * self.config.tick_ms(),
        };
        // As long as it is held back it is one row.
        let aims: BTreeSet<Aim> = plan.held_back.iter().map(|held| held.step.aim()).collect();
        for held in &plan.held_back {
            if !self.held.contains(&held.step.aim()) {
                self.ledger.decided(held, By::Holdback, stamp);
            }
        }
        self.held = aims;
        for planned in plan.steps {
            let id = self.ledger.decided(&planned, By::Loop, stamp);
            if planned.reason.expected().is_some() {
                self.spread.days.taken(id);
            }
            let ticks = if matches!(planned.step, Step::Drop { .. }) { 1 } else { COPY_TICKS };
            self.under_way.push((tick + ticks, id, planned.step));
        }
    }
}
