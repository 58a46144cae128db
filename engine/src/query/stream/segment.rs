//! One segment that is being read: its rows, its calls, and its expressions as they stand at the moment.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::buffer::BooleanBuffer;
use datafusion::common::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use foreshard_actors::node::NodeState;
use foreshard_actors::partition::Offer;
use foreshard_policy::ids::PartitionId;
use foreshard_policy::predicates::{self, Predicate};
use futures::stream::{self, StreamExt};

use crate::query::functions::{is_storable, substitute};
use crate::query::late::Carried;
use crate::query::scan::ScanSegment;
use crate::query::stream::call::SegmentCall;
use crate::query::stream::lazy::LazyCall;
use crate::query::stream::rest::Rest;
use crate::query::stream::rows::Batches;
use crate::query::stream::work::{Step, Work};

/// Rows of a batch that are tried first while nothing is known of the predicates.
const ROWS_TRIED: usize = 64;

/// Such tries per segment: a predicate that never sees a row stays unknown.
const TRIES_MAX: usize = 16;

/// The segment.
pub(super) struct OpenSegment {
    pub(super) partition: PartitionId,
    pub(super) node: Arc<NodeState>,
    pub(super) scan: ScanSegment,
    pub(super) batches: Batches,
    pub(super) rows_done: usize,
    pub(super) calls: Vec<Arc<SegmentCall>>,
    /// Rows of a batch that are still to come.
    pub(super) pending: Option<RecordBatch>,
    tries: usize,
    /// Expressions with some of their calls replaced, by step and the calls that were lazy.
    resolved: Vec<(usize, Vec<usize>, Arc<dyn PhysicalExpr>)>,
}

impl OpenSegment {
    pub(super) fn new(
        partition: PartitionId,
        node: Arc<NodeState>,
        scan: ScanSegment,
        calls: Vec<Arc<SegmentCall>>,
    ) -> Self {
        let (pending, resolved, batches) = (None, vec![], stream::empty().boxed());
        Self { partition, node, scan, batches, rows_done: 0, calls, pending, tries: 0, resolved }
    }

    /// Whether stored values of calls alone tell that a filter drops every row, so that no row need be
    /// read. Takes note of the calls that told it.
    pub(super) fn drops_every_row(&mut self, work: &Work) -> Result<bool> {
        let rows = self.scan.segment.rows as usize;
        let is_told = |filter: &Step| {
            let is_whole = |call: &usize| self.calls[*call].is_whole();
            !filter.calls.is_empty()
                && filter.calls.len() == filter.eager.len()
                && filter.calls.iter().all(is_whole)
        };
        let told: Vec<usize> =
            (0..work.filters.len()).filter(|number| is_told(&work.filters[*number])).collect();
        for number in told {
            let mut rest = Rest::unread(work, rows)?;
            for call in &work.filters[number].calls {
                let Some(stored) = &self.calls[*call].stored else { return Ok(false) };
                let values = stored.values.values()?;
                rest.add(*call, values, work.calls[*call].field.data_type())?;
            }
            let predicate = self.resolve(work, number, &rest)?;
            let of_calls = |column: &Column| column.index() >= work.position(0);
            if !collect_columns(&predicate).iter().all(of_calls) {
                continue;
            }
            // What fails on some row may fail on one that another filter drops.
            let Ok(mask) = rest.mask(&predicate) else { continue };
            if mask.true_count() == 0 {
                for call in &work.filters[number].calls {
                    self.calls[*call].begin(0, rows);
                    self.calls[*call].answered(None, None, 0)?;
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What is known of a call that is evaluated above the scan, for the rows that are left of the batch
    /// that begins with the row `start` of the segment.
    pub(super) fn carried(&self, call: usize, start: usize, rest: &Rest) -> Result<ArrayRef> {
        let found = self.calls[call].look(rest.selected.as_ref())?;
        let rows = rest.batch.num_rows();
        let (known, values) = match &found.known {
            None => (BooleanBuffer::new_set(rows), found.values),
            Some(known) => {
                let missing = known.len() - known.count_set_bits();
                let nulls = new_null_array(found.values.data_type(), missing);
                (known.clone(), found.complete(&nulls)?)
            }
        };
        let first = start as u32;
        let numbers = rest.rows().map(|row| first + row);
        Carried::column(self.scan.number, numbers, known, values)
    }

    /// Cuts some rows off a batch if predicates are to be tried before all of it goes through them.
    pub(super) fn cut(&mut self, work: &Work, batch: RecordBatch) -> RecordBatch {
        let is_unknown = |(filter, stats): (&Step, &Arc<_>)| {
            let stats: &foreshard_actors::predicates::PredicateStats = stats;
            !filter.calls.is_empty() && stats.rows() < ROWS_TRIED as f64
        };
        let with_calls = work.filters.iter().filter(|filter| !filter.calls.is_empty());
        let tries = with_calls.count() > 1
            && self.tries < TRIES_MAX
            && batch.num_rows() > ROWS_TRIED
            && work.filters.iter().zip(&work.stats).any(is_unknown);
        if !tries {
            return batch;
        }
        self.tries += 1;
        self.pending = Some(batch.slice(ROWS_TRIED, batch.num_rows() - ROWS_TRIED));
        batch.slice(0, ROWS_TRIED)
    }

    /// The position in `left` of the filter to evaluate next.
    pub(super) fn next_filter(&self, work: &Work, left: &[usize], rest: &Rest) -> usize {
        let view = |filter: &usize| {
            let ns = work.filters[*filter].eager.iter().map(|call| match rest.has[*call] {
                true => 0.0,
                false => {
                    let call = &self.calls[*call];
                    call.expression.ns_per_row() as f64 * call.share_missing()
                }
            });
            let stats = &work.stats[*filter];
            let ns_per_row = ns.sum::<f64>() + stats.ns_per_row();
            Predicate { ns_per_row, passes: stats.passes() }
        };
        predicates::next(left.iter().map(view)).unwrap_or(0)
    }

    /// Calls that are to be columns before `step` is evaluated.
    pub(super) fn columns_needed(&self, step: &Step, rest: &Rest) -> Vec<usize> {
        let is_needed = |call: &&usize| {
            !rest.has[**call] && (step.eager.contains(call) || self.calls[**call].is_whole())
        };
        step.calls.iter().filter(is_needed).copied().collect()
    }

    /// The expression of a step with its calls replaced: by their columns where they have one, else by
    /// calls that look up what is known. Steps are numbered filters first.
    pub(super) fn resolve(
        &mut self,
        work: &Work,
        number: usize,
        rest: &Rest,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        let step = match number.checked_sub(work.filters.len()) {
            None => &work.filters[number],
            Some(output) => &work.outputs[output],
        };
        if step.calls.is_empty() {
            return Ok(Arc::clone(&step.expr));
        }
        let lazy: Vec<usize> =
            step.calls.iter().filter(|call| !rest.has[**call]).copied().collect();
        let known = self.resolved.iter().find(|(of, calls, _)| *of == number && *calls == lazy);
        if let Some((.., expr)) = known {
            return Ok(Arc::clone(expr));
        }
        let replaced = step.calls.iter().map(|call| {
            let expr = &work.calls[*call].expr;
            let new: Arc<dyn PhysicalExpr> = match rest.has[*call] {
                true => Arc::new(Column::new(work.calls[*call].field.name(), work.position(*call))),
                false => Arc::new(LazyCall::new(
                    Arc::clone(expr),
                    Arc::new(work.row_column()),
                    Arc::clone(&self.calls[*call]),
                    Arc::clone(&self.node.clock),
                )),
            };
            (Arc::clone(expr), new)
        });
        let expr = substitute(&step.expr, &replaced.collect::<Vec<_>>())?;
        self.resolved.push((number, lazy, Arc::clone(&expr)));
        Ok(expr)
    }
}

/// What was computed is offered also when the query ends early: the next one computes only the rest.
impl Drop for OpenSegment {
    fn drop(&mut self) {
        let policy = self.node.store_policy();
        let rows = self.scan.segment.rows as usize;
        for call in self.calls.drain(..) {
            let expression = &call.expression;
            let is_dear = expression.ns_per_row() >= policy.ns_per_row_min;
            if !is_dear || !is_storable(&expression.expr) {
                continue;
            }
            let Some(values) = call.collected(rows) else { continue };
            let Some(handle) = self.node.handle(&self.partition) else { continue };
            let (segment, flight) = (self.scan.segment.id, call.flight.clone());
            let offer = Offer { segment, expression: Arc::clone(expression), values, flight };
            if !handle.actor.offer(offer) {
                self.node.offers_dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
