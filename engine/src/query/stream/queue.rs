//! The segments that a scan has still to read, and in which order. Those that hold no row that its dynamic
//! filters let through go, each time one of the filters has changed.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::metrics::{Count, MetricBuilder};

use crate::query::dynamic::{first_bound, may_pass};
use crate::query::scan::{PartitionScanExec, ScanSegment};

/// The segments.
pub(super) struct Queue {
    segments: VecDeque<ScanSegment>,
    filters: Vec<Arc<dyn PhysicalExpr>>,
    /// Sum of the filters' generations when they were looked at last.
    generation: u64,
    is_sorted: bool,
    segments_pruned: Count,
}

impl Queue {
    /// The segments of one output partition.
    pub(super) fn new(
        exec: &PartitionScanExec,
        segments: &[ScanSegment],
        partition: usize,
    ) -> Self {
        Self {
            segments: segments.iter().cloned().collect(),
            filters: exec.dynamic.clone(),
            generation: 0,
            is_sorted: false,
            segments_pruned: MetricBuilder::new(&exec.metrics)
                .counter("segments_pruned", partition),
        }
    }

    /// The segment to read next.
    pub(super) fn next(&mut self) -> Option<ScanSegment> {
        let generation = self.filters.iter().map(|filter| filter.snapshot_generation()).sum();
        if generation != self.generation {
            self.generation = generation;
            self.prune();
        }
        self.segments.pop_front()
    }

    fn prune(&mut self) {
        // A filter whose value cannot be had leaves nothing out.
        let now = self.filters.iter().filter_map(|filter| filter.snapshot().ok().flatten());
        let now: Vec<Arc<dyn PhysicalExpr>> = now.collect();
        let before = self.segments.len();
        self.segments.retain(|scan| now.iter().all(|filter| may_pass(filter, &scan.segment)));
        self.segments_pruned.add(before - self.segments.len());
        if !self.is_sorted
            && let Some((column, is_descending)) = now.iter().find_map(first_bound)
        {
            self.sort(column, is_descending);
            self.is_sorted = true;
        }
    }

    /// Puts first what a top-k wants most: its filter then leaves out most of the others.
    fn sort(&mut self, column: usize, is_descending: bool) {
        self.segments.make_contiguous().sort_by(|one, next| {
            let [one, next] = [one, next].map(|scan| {
                let range = scan.segment.columns.get(column);
                range.and_then(
                    |range| if is_descending { range.max.as_ref() } else { range.min.as_ref() },
                )
            });
            match (one, next) {
                (Some(one), Some(next)) => {
                    let order = one.partial_cmp(next).unwrap_or(Ordering::Equal);
                    if is_descending { order.reverse() } else { order }
                }
                (one, next) => next.is_some().cmp(&one.is_some()),
            }
        });
    }
}
