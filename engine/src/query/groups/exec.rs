//! `KeptGroupsExec`: hands on the groups that are kept, then those that are computed, and keeps the whole.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch, not};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};
use futures::{StreamExt, TryStreamExt, stream};

use super::{ANSWER_BYTES_MAX, Gathered, Kept, KeptGroups, Segments};
use crate::query::context::LocalNodes;

/// Which answer a plan gives.
#[derive(Clone)]
pub(super) struct Named {
    pub(super) id: u128,
    pub(super) table: Arc<str>,
    pub(super) text: String,
    pub(super) segments: Segments,
}

/// What is used of an answer that is kept.
#[derive(Clone)]
pub(super) struct Reused {
    pub(super) kept: Arc<Kept>,
    /// True of the groups that are computed anew, over the columns of the answer; `None` if none is.
    pub(super) anew: Option<Arc<dyn PhysicalExpr>>,
}

impl Reused {
    /// The groups of one partition that are as they were.
    fn rows(&self, partition: usize) -> Result<Option<RecordBatch>> {
        let Some(batch) = self.kept.partitions.get(partition).and_then(Option::as_ref) else {
            return Ok(None);
        };
        let Some(anew) = &self.anew else { return Ok(Some(batch.clone())) };
        let anew = anew.evaluate(batch)?.into_array(batch.num_rows())?;
        let Some(anew) = anew.as_boolean_opt() else {
            return internal_err!("whether a group is computed anew is no boolean");
        };
        // What is unknown is not in the range.
        let anew: BooleanArray = anew.iter().map(|is| Some(is == Some(true))).collect();
        Ok(Some(filter_record_batch(batch, &not(&anew)?)?))
    }
}

/// Computes an aggregate as far as its groups are not kept.
pub struct KeptGroupsExec {
    /// The aggregate, over the rows of the groups that are not.
    pub input: Arc<dyn ExecutionPlan>,
    named: Named,
    reused: Option<Reused>,
    store: Arc<KeptGroups>,
    ended: Arc<Mutex<Ended>>,
    metrics: ExecutionPlanMetricsSet,
}

impl fmt::Debug for KeptGroupsExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptGroupsExec({})", self.named.text)
    }
}

/// Partitions that were read to their end.
#[derive(Default)]
struct Ended {
    partitions: Vec<Option<Vec<RecordBatch>>>,
}

impl KeptGroupsExec {
    /// The groups of `input`, and those that are `reused`.
    pub(super) fn new(
        input: Arc<dyn ExecutionPlan>,
        named: Named,
        reused: Option<Reused>,
        store: Arc<KeptGroups>,
    ) -> Self {
        let partitions = vec![None; input.output_partitioning().partition_count()];
        let ended = Arc::new(Mutex::new(Ended { partitions }));
        let metrics = ExecutionPlanMetricsSet::new();
        Self { input, named, reused, store, ended, metrics }
    }

    /// What EXPLAIN says; `None` if nothing is kept yet.
    pub(in crate::query) fn explained(&self) -> Option<String> {
        let Reused { kept, anew } = self.reused.as_ref()?;
        let rows: usize = kept.partitions.iter().flatten().map(RecordBatch::num_rows).sum();
        let text = &self.named.text;
        Some(match anew {
            Some(anew) => format!("{text}: {rows} groups are kept but those with {anew}"),
            None => format!("{text}: all {rows} groups are kept"),
        })
    }

    /// `partition` was read to its end. Keeps the answer with the last one.
    fn end(
        ended: &Mutex<Ended>,
        store: &KeptGroups,
        named: &Named,
        (partition, batches): (usize, Vec<RecordBatch>),
        nodes: &LocalNodes,
    ) -> Result<()> {
        let all: Option<Vec<Vec<RecordBatch>>> = {
            let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(place) = ended.partitions.get_mut(partition) {
                *place = Some(batches);
            }
            match ended.partitions.iter().all(Option::is_some) {
                true => ended.partitions.iter_mut().map(Option::take).collect(),
                false => None,
            }
        };
        let Some(all) = all else { return Ok(()) };
        // One piece each: with every answer one more would come, and slices keep what they are of.
        let whole = |batches: &Vec<RecordBatch>| match batches.first() {
            Some(first) => Ok(Some(concat_batches(&first.schema(), batches)?)),
            None => Ok(None),
        };
        let partitions = all.iter().map(whole).collect::<Result<_>>()?;
        let gathered = Gathered { segments: named.segments.clone(), partitions };
        store.keep(&nodes.own, named.id, (&named.table, &named.text), gathered);
        Ok(())
    }
}

impl DisplayAs for KeptGroupsExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reused {
            None => f.write_str("KeptGroupsExec: computes all"),
            Some(Reused { anew: None, .. }) => f.write_str("KeptGroupsExec: computes none"),
            Some(Reused { anew: Some(anew), .. }) => write!(f, "KeptGroupsExec: computes {anew}"),
        }
    }
}

impl ExecutionPlan for KeptGroupsExec {
    fn name(&self) -> &str {
        "KeptGroupsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![false]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Ok([input]) = <[_; 1]>::try_from(children) else {
            return internal_err!("KeptGroupsExec has one child");
        };
        let (named, reused) = (self.named.clone(), self.reused.clone());
        Ok(Arc::new(Self::new(input, named, reused, Arc::clone(&self.store))))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let schema = self.input.schema();
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let Some(nodes) = context.session_config().get_extension::<LocalNodes>() else {
            return internal_err!("kept groups are asked for outside of a query");
        };
        let kept = self.reused.as_ref().map(|reused| reused.rows(partition)).transpose()?.flatten();
        if let (0, Some(reused)) = (partition, &self.reused) {
            self.store.used(&reused.kept);
        }
        let rows = kept.as_ref().map_or(0, RecordBatch::num_rows);
        MetricBuilder::new(&self.metrics).counter("groups_kept", partition).add(rows);
        let rows_max = context.session_config().batch_size().max(1);
        let pieces = kept.into_iter().flat_map(move |batch| {
            let rows = batch.num_rows();
            let starts = (0..rows).step_by(rows_max);
            starts.map(move |start| Ok(batch.slice(start, rows_max.min(rows - start))))
        });
        let all = stream::iter(pieces).chain(input);
        let (named, store) = (self.named.clone(), Arc::clone(&self.store));
        let ended = Arc::clone(&self.ended);
        let state = (all.boxed(), Some((vec![], 0)));
        let tapped = stream::try_unfold(state, move |(mut all, mut seen)| {
            let (named, store, nodes) = (named.clone(), Arc::clone(&store), Arc::clone(&nodes));
            let ended = Arc::clone(&ended);
            async move {
                match all.try_next().await? {
                    Some(batch) => {
                        seen = seen.and_then(|(mut batches, bytes): (Vec<RecordBatch>, usize)| {
                            // Counted as if each batch were a piece of its own.
                            let bytes = bytes + batch.num_columns() * 8 * batch.num_rows();
                            batches.push(batch.clone());
                            (bytes <= ANSWER_BYTES_MAX).then_some((batches, bytes))
                        });
                        Ok(Some((batch, (all, seen))))
                    }
                    None => {
                        if let Some((batches, _)) = seen {
                            Self::end(&ended, &store, &named, (partition, batches), &nodes)?;
                        }
                        Ok(None)
                    }
                }
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, tapped.boxed())))
    }
}
