//! What EXPLAIN ANALYZE shows of a scan's calls: of all together, and of each if there are several.

use std::time::Duration;

use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, Time};

use crate::query::stream::call::Used;
use crate::query::stream::work::Work;

/// The numbers of one scan.
pub(super) struct Counted {
    all: Numbers,
    /// By call; empty if there is only one.
    each: Vec<Numbers>,
}

struct Numbers {
    rows_stored: Count,
    rows_waited: Count,
    rows_computed: Count,
    time_computing: Time,
    time_saved: Time,
}

impl Counted {
    pub(super) fn new(work: &Work, metrics: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        let each = match work.calls.as_slice() {
            [] | [_] => vec![],
            calls => {
                let names = calls.iter().map(|call| format!(" of {}", call.expression.text));
                names.map(|name| Numbers::new(&name, metrics, partition)).collect()
            }
        };
        Self { all: Numbers::new("", metrics, partition), each }
    }

    /// Counts what the call at `position` was used for, and what that spared.
    pub(super) fn add(&self, position: usize, used: Used, ns_saved: u64) {
        self.all.add(used, ns_saved);
        if let Some(numbers) = self.each.get(position) {
            numbers.add(used, ns_saved);
        }
    }
}

impl Numbers {
    fn new(of: &str, metrics: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        let count = |name| MetricBuilder::new(metrics).counter(format!("{name}{of}"), partition);
        let time = |name| MetricBuilder::new(metrics).subset_time(format!("{name}{of}"), partition);
        Self {
            rows_stored: count("rows_stored"),
            rows_waited: count("rows_waited"),
            rows_computed: count("rows_computed"),
            time_computing: time("time_computing"),
            time_saved: time("time_saved"),
        }
    }

    fn add(&self, used: Used, ns_saved: u64) {
        // What was waited for by several predicates of a batch is asked for once.
        let waited = used.rows_waited.min(used.rows_stored);
        self.rows_stored.add((used.rows_stored - waited) as usize);
        self.rows_waited.add(waited as usize);
        self.rows_computed.add((used.rows - used.rows_stored) as usize);
        self.time_computing.add_duration(Duration::from_nanos(used.ns));
        self.time_saved.add_duration(Duration::from_nanos(ns_saved));
    }
}
