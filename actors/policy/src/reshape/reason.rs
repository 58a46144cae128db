//! Why a step was chosen, in words an operator understands.

use std::fmt;

use crate::ids::{NodeId, Tick};
use crate::trust::Expected;

/// What a load figure rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// A forecast that has proven itself.
    Forecast,
    /// The load of the last few ticks.
    Current,
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forecast => "expected",
            Self::Current => "measured",
        })
    }
}

/// Why a step was chosen. Its text is what `system.decisions` shows.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// The replicas that exist carry too much each.
    Hot {
        /// Load per replica in busy ms per s.
        busy_ms: f64,
        /// What a replica may carry.
        limit_ms: f64,
        /// What the load rests on.
        basis: Basis,
        /// What shall be measured of it.
        expected: Expected,
    },
    /// One replica fewer would still carry little.
    Cold {
        /// Load per replica in busy ms per s, once one is gone.
        busy_ms: f64,
        /// What makes a replica worth having.
        limit_ms: f64,
        /// What the load rests on.
        basis: Basis,
    },
    /// One node carries more than others.
    Uneven {
        /// The node.
        node: NodeId,
        /// Load of the node in busy ms per s of each CPU.
        level_ms: f64,
        /// The same if all nodes carried the same.
        mean_ms: f64,
        /// Load that the step takes off the node, in busy ms per s.
        shed_ms: f64,
        /// What the load rests on.
        basis: Basis,
        /// What shall be measured of it.
        expected: Expected,
    },
    /// Queries join it with what another node holds.
    Joined {
        /// The other node.
        node: NodeId,
        /// Queries per tick that join it with partitions that no node holds with it.
        queries: f64,
        /// Copying that it spares all of them, in ms per s.
        spared_ms: f64,
    },
    /// People said that its table belongs together with others.
    Declared {
        /// Where all partitions with the same keys come together.
        node: NodeId,
        /// How many they are.
        partitions: usize,
    },
    /// There are more replicas than `reshape.copies-max`.
    TooMany {
        /// Replicas that exist.
        replicas: usize,
        /// Replicas allowed.
        most: u32,
    },
    /// A partition is called too much, and copies are no help any more.
    TooHot {
        /// Load per replica in busy ms per s.
        busy_ms: f64,
        /// What a replica may carry.
        limit_ms: f64,
        /// Replicas that share it.
        replicas: usize,
        /// What the load rests on.
        basis: Basis,
    },
    /// A partition is too large to be moved and computed as a whole.
    TooLarge {
        /// Bytes of a replica.
        bytes: u64,
        /// What a partition may have.
        limit: u64,
    },
    /// Two neighbours are small and hardly called.
    TooSmall {
        /// Bytes of both.
        bytes: u64,
        /// What two that are merged may have.
        bytes_limit: f64,
        /// Load of both in busy ms per s.
        busy_ms: f64,
        /// What two that are merged may carry.
        limit_ms: f64,
        /// Partitions that people want at least.
        made: u32,
    },
    /// No live node holds the partition; it is loaded from the store.
    Lost,
    /// The node is to be removed.
    Draining {
        /// The node.
        node: NodeId,
    },
    /// Calls are expected, and the output is missing.
    Needed {
        /// Calls expected within the lead time.
        calls: f64,
        /// When the first is expected, in ms from now.
        in_ms: f64,
        /// Rows whose output is missing.
        rows: u64,
        /// Cost of one row in ns.
        ns_per_row: f64,
        /// What the ledger shall measure of it.
        expected: Expected,
    },
    /// Calls are expected, and rows are read from files each time.
    Awaited {
        /// Calls expected on the replica within the lead time.
        calls: f64,
        /// When the first is expected, in ms from now.
        in_ms: f64,
        /// Bytes that are missing in memory.
        bytes: u64,
        /// How long reading them takes, in ns.
        read_ns: f64,
    },
    /// Nobody reads the rows, and memory is needed for what somebody is expected to ask for.
    Unread {
        /// For how long nobody did, in ms.
        idle_ms: u64,
        /// Calls that are expected; others are called already.
        calls: f64,
        /// Bytes that are lacking.
        lacking: f64,
        /// Where.
        node: NodeId,
    },
    /// Memory is short and nobody is expected to ask for the output.
    Unused {
        /// Share of a holder's memory in use or wanted for outputs that are needed.
        memory: f64,
        /// Share above which outputs are dropped.
        limit: f64,
    },
    /// More nodes are needed for the load.
    Overloaded {
        /// Load in busy CPUs.
        busy_cpus: f64,
        /// Nodes that this takes.
        need: u32,
        /// Nodes there are.
        nodes: u32,
        /// What the load rests on.
        basis: Basis,
    },
    /// Fewer nodes were enough for a while.
    Idle {
        /// Load in busy CPUs.
        busy_cpus: f64,
        /// Nodes that this takes.
        need: u32,
        /// Nodes there are.
        nodes: u32,
        /// For how many ticks.
        ticks: u64,
    },
    /// It would be taken for another reason, but replicas were copied too much within the hour.
    Churn {
        /// Bytes to copy.
        bytes: f64,
        /// Bytes that may still be copied.
        left: u64,
        /// Bytes that may be copied within an hour.
        most: u64,
    },
    /// It would be taken for another reason, but is left out so that steps like it can be compared with it.
    HeldBack {
        /// The tick after which steps are taken again.
        until: Tick,
        /// Ticks for which what becomes of it is followed.
        ticks: u64,
        /// Share of the time in which steps are held back.
        share: f64,
        /// What it would be expected to spare.
        expected: Expected,
    },
    /// What an earlier decision changed got slower since.
    Harmed {
        /// The earlier decision.
        id: u64,
        /// How many times as long as before a row takes.
        slower: f64,
        /// The chance that it is slower at all.
        chance: f64,
    },
    /// Somebody undid an earlier decision.
    Undone {
        /// The earlier decision.
        id: u64,
    },
    /// The node-hours of the day do not allow more nodes.
    NodeHours {
        /// Node-hours that are left.
        hours: f64,
        /// Hours until the day is over.
        rest: f64,
        /// Nodes that they allow.
        most: u32,
        /// Nodes that the load takes.
        wanted: u32,
    },
    /// The number of nodes is outside its bounds.
    Bounds {
        /// Nodes there are.
        nodes: u32,
        /// Nodes there shall be.
        need: u32,
    },
}

impl Reason {
    /// What the ledger shall measure of a step that is taken for this reason; none if it can measure nothing.
    #[must_use]
    pub fn expected(&self) -> Option<Expected> {
        match *self {
            Self::Needed { expected, .. }
            | Self::Hot { expected, .. }
            | Self::Uneven { expected, .. }
            | Self::HeldBack { expected, .. } => Some(expected),
            _ => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Hot { busy_ms, limit_ms, basis, .. } => write!(
                f,
                "hot: {busy_ms:.0} ms/s per replica {basis}, more than {limit_ms:.0} ms/s"
            ),
            Self::Cold { busy_ms, limit_ms, basis } => write!(
                f,
                "cold: {busy_ms:.0} ms/s per remaining replica {basis}, less than {limit_ms:.0} ms/s"
            ),
            Self::Uneven { node, level_ms, mean_ms, shed_ms, basis, .. } => write!(
                f,
                "uneven: {node} carries {level_ms:.0} ms/s per CPU {basis}, {:.2} times the mean; \
                 this takes {shed_ms:.0} ms/s off it",
                level_ms / mean_ms
            ),
            Self::Joined { node, queries, spared_ms } => write!(
                f,
                "joined: {queries:.1} queries a tick join it with what {node} holds; \
                 this spares {spared_ms:.0} ms/s of copying"
            ),
            Self::Declared { node, partitions } => write!(
                f,
                "declared: people want its {partitions} partitions with the same keys on one node \
                 (CALL colocate), and {node} has room for them"
            ),
            Self::TooMany { replicas, most } => {
                write!(f, "{replicas} replicas, at most {most} are allowed")
            }
            Self::TooHot { busy_ms, limit_ms, replicas, basis } => write!(
                f,
                "too hot: {busy_ms:.0} ms/s on each of {replicas} replicas {basis}, more than \
                 {limit_ms:.0} ms/s, and there may be no more (reshape.copies-max)"
            ),
            Self::TooLarge { bytes, limit } => {
                write!(f, "too large: {bytes} bytes, more than {limit} (reshape.split-bytes)")
            }
            Self::TooSmall { bytes, bytes_limit, busy_ms, limit_ms, made } => write!(
                f,
                "small and cold: {bytes} bytes and {busy_ms:.0} ms/s together, less than \
                 {bytes_limit:.0} bytes and {limit_ms:.0} ms/s; people made {made} partitions, and \
                 there are more"
            ),
            Self::Lost => f.write_str("no live node holds it: load it from the store"),
            Self::Draining { node } => write!(f, "{node} is draining"),
            Self::Needed { calls, in_ms, rows, ns_per_row, .. } => write!(
                f,
                "{calls:.1} calls expected, the first within {}; {rows} rows of {} are missing",
                duration(in_ms * 1e6),
                duration(ns_per_row)
            ),
            Self::Awaited { calls, in_ms, bytes, read_ns } => write!(
                f,
                "{calls:.1} calls expected, the first within {}; each reads {bytes} bytes from files, \
                 which takes {}",
                duration(in_ms * 1e6),
                duration(read_ns)
            ),
            Self::Unread { idle_ms, calls, lacking, node } => {
                let idle = duration(idle_ms as f64 * 1e6);
                match calls < 0.01 {
                    true => write!(f, "nobody read it for {idle} and nobody is expected to; ")?,
                    false => write!(
                        f,
                        "nobody read it for {idle}, though {calls:.1} calls were expected; "
                    )?,
                }
                write!(f, "{node} lacks {lacking:.0} bytes for what calls are expected on")
            }
            Self::Unused { memory, limit } => write!(
                f,
                "no call expected this season; memory is {:.0} % taken or wanted, more than {:.0} %",
                memory * 100.0,
                limit * 100.0
            ),
            Self::Overloaded { busy_cpus, need, nodes, basis } => {
                write!(f, "{busy_cpus:.1} busy CPUs {basis}: {need} nodes needed, {nodes} running")
            }
            Self::Idle { busy_cpus, need, nodes, ticks } => write!(
                f,
                "{busy_cpus:.1} busy CPUs: {need} nodes were enough for {ticks} ticks, {nodes} running"
            ),
            Self::Churn { bytes, left, most } => write!(
                f,
                "{bytes:.0} bytes to copy, {left} of the {most} of an hour are left \
                 (reshape.moved-bytes-per-hour-max)"
            ),
            Self::HeldBack { until, share, .. } => write!(
                f,
                "held back until tick {} to measure what such steps spare: {:.0} % of the time \
                 (feedback.holdback-share)",
                until.0,
                share * 100.0
            ),
            Self::Harmed { id, slower, chance } => write!(
                f,
                "since decision {id} a row takes {slower:.2} times as long there as before and as \
                 elsewhere; the chance of harm is {chance:.2}"
            ),
            Self::Undone { id } => write!(f, "somebody undid decision {id}"),
            Self::NodeHours { hours, rest, most, wanted } => write!(
                f,
                "{hours:.1} node-hours are left for the {rest:.1} hours of the day, which is {most} nodes; \
                 the load takes {wanted} (allocate.node-hours-max)"
            ),
            Self::Bounds { nodes, need } => {
                write!(f, "{nodes} nodes running, the settings ask for {need}")
            }
        }
    }
}

/// Nanoseconds in the unit a reader expects.
pub(crate) fn duration(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.1} us", ns / 1e3),
        ns if ns < 1e9 => format!("{:.0} ms", ns / 1e6),
        ns => format!("{:.1} s", ns / 1e9),
    }
}
