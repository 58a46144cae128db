//! The way of measured calls to the monitor: bounded, never blocking, readable without queueing.
//!
//! ```text
//! query tasks --offer--> CallSink --credit, Arc--> monitor --record--> RecentCalls <--read-- system.calls
//! ```
//!
//! A task that finds the sink full drops its records and counts them (promises P6 and P7). Credits
//! come back when the monitor, dead or alive, lets a batch go.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use foreshard_policy::calls::CallRecord;
use foreshard_policy::history::Succession;
use foreshard_policy::ids::PartitionId;
use ractor::ActorRef;

use crate::monitor::MonitorMessage;

/// Batches that may wait for the monitor unless told otherwise.
pub const BATCHES_MAX: usize = 1_024;

/// Records of one batch that are kept; a task with more drops the rest and counts them.
pub const RECORDS_PER_BATCH_MAX: usize = 4_096;

/// Raw records that stay readable unless told otherwise.
pub const RECENT_MAX: usize = 10_000;

/// Takes measured calls from query tasks. Cloneable; all clones share one bound.
#[derive(Clone)]
pub struct CallSink {
    shared: Arc<Shared>,
}

struct Shared {
    monitor: ArcSwapOption<ActorRef<MonitorMessage>>,
    waiting: AtomicUsize,
    batches_max: usize,
    dropped: AtomicU64,
}

impl fmt::Debug for CallSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallSink")
            .field("waiting", &self.waiting())
            .field("batches_max", &self.shared.batches_max)
            .field("dropped", &self.dropped())
            .finish()
    }
}

impl Default for CallSink {
    fn default() -> Self {
        Self::new(BATCHES_MAX)
    }
}

impl CallSink {
    /// A sink in which at most `batches_max` batches wait. It drops everything until it is connected.
    #[must_use]
    pub fn new(batches_max: usize) -> Self {
        let shared = Shared {
            monitor: ArcSwapOption::empty(),
            waiting: AtomicUsize::new(0),
            batches_max,
            dropped: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Hands the calls of one task over. Never waits: without a monitor or a credit they are dropped
    /// and counted.
    pub fn offer(&self, mut records: Vec<CallRecord>) {
        if records.is_empty() {
            return;
        }
        if records.len() > RECORDS_PER_BATCH_MAX {
            self.drop_records(records.len() - RECORDS_PER_BATCH_MAX);
            records.truncate(RECORDS_PER_BATCH_MAX);
        }
        let count = records.len();
        let Some(credit) = self.credit() else { return self.drop_records(count) };
        let monitor = self.shared.monitor.load();
        let Some(monitor) = monitor.as_ref() else { return self.drop_records(count) };
        let batch = CallBatch { records: records.into(), _credit: credit };
        if monitor.cast(MonitorMessage::Calls(batch)).is_err() {
            self.drop_records(count); // It has just died; the batch and its credit are gone with it.
        }
    }

    /// Reports a function that gave another value than the stored one. It was quarantined already.
    pub fn found_liar(&self, liar: Liar) {
        if let Some(monitor) = self.shared.monitor.load().as_ref() {
            drop(monitor.cast(MonitorMessage::LiarFound(Box::new(liar))));
        }
    }

    /// Tells that rows are in other partitions now, and that their series go on there.
    pub fn follow(&self, what: Succession) {
        if let Some(monitor) = self.shared.monitor.load().as_ref() {
            drop(monitor.cast(MonitorMessage::Succeeded(Box::new(what))));
        }
    }

    /// Tells of partitions that a query joins by their keys. Never waits: if the monitor is behind, they are not
    /// counted.
    pub fn joined(&self, pairs: Vec<(PartitionId, PartitionId)>) {
        let is_behind = self.waiting() >= self.shared.batches_max;
        if pairs.is_empty() || is_behind {
            return;
        }
        if let Some(monitor) = self.shared.monitor.load().as_ref() {
            drop(monitor.cast(MonitorMessage::Joined(pairs)));
        }
    }

    /// Records that were dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Batches that wait for the monitor now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Acquire)
    }

    /// Sends what comes from now on to `monitor`; its supervisor calls this at every start.
    pub fn connect(&self, monitor: ActorRef<MonitorMessage>) {
        self.shared.monitor.store(Some(Arc::new(monitor)));
    }

    fn drop_records(&self, count: usize) {
        self.shared.dropped.fetch_add(count as u64, Ordering::Relaxed);
    }

    fn credit(&self) -> Option<Credit> {
        let shared = &self.shared;
        let taken = shared.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiting| {
            (waiting < shared.batches_max).then_some(waiting + 1)
        });
        taken.is_ok().then(|| Credit { shared: shared.clone() })
    }
}

/// A function that is declared immutable and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Liar {
    /// When it was found, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Its name.
    pub function: Arc<str>,
    /// The call.
    pub text: String,
    /// Where its values were stored.
    pub partition: PartitionId,
    /// Rows that were computed again.
    pub rows: u64,
}

/// The calls of one task on their way. It gives its credit back when it is dropped.
#[derive(Debug)]
pub struct CallBatch {
    /// What was called.
    pub records: Arc<[CallRecord]>,
    _credit: Credit,
}

struct Credit {
    shared: Arc<Shared>,
}

impl fmt::Debug for Credit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credit")
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The newest raw records, for `system.calls`. Readers hold a lock for as long as it takes to clone
/// some pointers, and never meet the monitor's mailbox.
#[derive(Debug)]
pub struct RecentCalls {
    records_max: usize,
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    batches: VecDeque<Arc<[CallRecord]>>,
    records: usize,
}

impl RecentCalls {
    /// Keeps the newest `records_max` records.
    #[must_use]
    pub fn new(records_max: usize) -> Self {
        Self { records_max, ring: Mutex::default() }
    }

    /// Adds a batch; whole batches fall out at the other end once the rest still holds enough.
    pub fn record(&self, batch: Arc<[CallRecord]>) {
        let mut ring = self.ring();
        ring.records += batch.len();
        ring.batches.push_back(batch);
        while let Some(oldest) = ring.batches.front().map(|batch| batch.len())
            && ring.records - oldest >= self.records_max
        {
            ring.records -= oldest;
            ring.batches.pop_front();
        }
    }

    /// The newest records, oldest first.
    #[must_use]
    pub fn records(&self) -> Vec<CallRecord> {
        let (batches, surplus) = {
            let ring = self.ring();
            let batches: Vec<Arc<[CallRecord]>> = ring.batches.iter().cloned().collect();
            (batches, ring.records.saturating_sub(self.records_max))
        };
        batches.iter().flat_map(|batch| batch.iter()).skip(surplus).cloned().collect()
    }

    /// Where the newest of the calls that `matches` were traced, newest first: each scan once, at most
    /// `traces_max`.
    #[must_use]
    pub fn traces(
        &self,
        traces_max: usize,
        matches: impl Fn(&CallRecord) -> bool,
    ) -> Vec<Arc<str>> {
        let batches: Vec<Arc<[CallRecord]>> = self.ring().batches.iter().rev().cloned().collect();
        let mut traces: Vec<Arc<str>> = Vec::new();
        for call in batches.iter().flat_map(|batch| batch.iter().rev()) {
            if traces.len() == traces_max {
                break;
            }
            if let Some(trace) = call.traceparent.as_ref().filter(|_| matches(call))
                && !traces.contains(trace)
            {
                traces.push(Arc::clone(trace));
            }
        }
        traces
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Every change leaves the ring whole, so a poisoned lock is as good as any.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use foreshard_policy::ids::{ExpressionId, NodeId};

    use super::*;

    fn call(query: u64) -> CallRecord {
        CallRecord {
            at_ms: 0,
            query,
            function: "f".into(),
            expression: ExpressionId(1),
            partition: PartitionId::new("t", 0),
            node: NodeId(0),
            rows: 1,
            rows_stored: 0,
            rows_fresh: 0,
            rows_fresh_stored: 0,
            ns: 1,
            waited_ns: 0,
            would_be_ns: 1,
            bytes: 8,
            traceparent: None,
        }
    }

    #[test]
    fn a_sink_without_a_monitor_drops_and_counts_and_keeps_its_credits() {
        let sink = CallSink::new(1);
        sink.offer(vec![call(1), call(2)]);
        sink.offer(vec![]);
        sink.offer((0..5_000).map(call).collect());
        assert_eq!((sink.dropped(), sink.waiting()), (5_002, 0));
    }

    #[test]
    fn the_newest_records_stay_readable_and_older_ones_go() {
        let recent = RecentCalls::new(5);
        for first in [0, 3, 6] {
            recent.record((first..first + 3).map(call).collect());
        }
        let queries: Vec<u64> = recent.records().iter().map(|record| record.query).collect();
        assert_eq!(queries, [4, 5, 6, 7, 8]);
        assert_eq!(recent.ring().batches.len(), 2);
    }

    #[test]
    fn the_newest_traces_come_first_and_each_once() {
        let recent = RecentCalls::new(10);
        let traced = |query: u64, traceparent: &str| CallRecord {
            traceparent: Some(traceparent.into()),
            ..call(query)
        };
        recent.record([traced(1, "a"), traced(2, "b"), call(2)].into());
        recent.record([traced(3, "c"), traced(4, "c"), traced(5, "d")].into());
        let traces = |most, below| {
            let found = recent.traces(most, |call| call.query < below);
            found.iter().map(ToString::to_string).collect::<String>()
        };
        assert_eq!(
            (traces(9, 9), traces(2, 9), traces(9, 5)),
            ("dcba".into(), "dc".into(), "cba".into())
        );
    }
}
