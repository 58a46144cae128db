//! `PartialReuseExec`: computes a fragment of a plan segment by segment, so that its state over each
//! segment can be stored and used again.
//!
//! Before: `AggregateExec(Partial)` over filters, projections and joins with small sides over
//! `PartitionScanExec`. After: `PartialReuseExec` over the same. The final aggregate above merges states as
//! before; it does not matter which of them were stored. A sort for its first rows is as good a fragment:
//! its state over a segment is the segment's own first rows.
//!
//! An appended segment adds one state, a rewritten one replaces its own. If the states are hardly
//! smaller than the rows, storing them would cost more than it spares: then the rest is computed in one
//! go, as plain DataFusion does.

mod fragment;
mod recipe;
mod rule;
mod same_order;
mod shape;
mod stream;
mod turns;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};
use foreshard_actors::partition::Fragment;
use foreshard_policy::calls::CallRecord;

pub use rule::StorePartials;
pub use same_order::SameOrderExec;

use crate::query::partial::fragment::with_scan;
pub(in crate::query) use crate::query::partial::fragment::{is_same, scan_below};
pub(in crate::query) use crate::query::partial::rule::name_of;
use crate::query::partial::turns::Turns;

/// The calls that a fragment made for each of its partitions, for whoever stores what comes of them.
pub(in crate::query) type Tap = Arc<Mutex<BTreeMap<usize, Vec<CallRecord>>>>;

/// Adds to the calls of a partition.
pub(in crate::query) fn tell(tap: &Tap, partition: usize, calls: &[CallRecord]) {
    let mut told = tap.lock().unwrap_or_else(PoisonError::into_inner);
    told.entry(partition).or_default().extend_from_slice(calls);
}

/// What was told of a partition; nothing is left of it.
fn told(tap: &Tap, partition: usize) -> Vec<CallRecord> {
    let mut told = tap.lock().unwrap_or_else(PoisonError::into_inner);
    told.remove(&partition).unwrap_or_default()
}

/// Takes states of a fragment from where they are stored, and computes the others.
#[derive(Clone, Debug)]
pub struct PartialReuseExec {
    /// The fragment, down to the scan.
    pub input: Arc<dyn ExecutionPlan>,
    /// What names its state over a segment.
    pub fragment: Arc<Fragment>,
    turns: Option<Arc<Turns>>,
    by_segment: Arc<OnceLock<BySegment>>,
    metrics: ExecutionPlanMetricsSet,
    properties: Arc<PlanProperties>,
}

impl PartialReuseExec {
    /// Stores what `input` computes under `fragment`.
    #[must_use]
    pub fn new(input: Arc<dyn ExecutionPlan>, fragment: Arc<Fragment>) -> Self {
        let partitions = input.output_partitioning().partition_count();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            input,
            fragment,
            turns: None,
            by_segment: Arc::default(),
            metrics: ExecutionPlanMetricsSet::new(),
            properties: Arc::new(properties),
        }
    }

    /// The same, handing on its states in the order of its partitions. All of them must be read at once.
    #[must_use]
    pub fn in_turn(mut self) -> Self {
        let partitions = self.properties.output_partitioning().partition_count();
        self.turns = Some(Arc::new(Turns::new(partitions)));
        self
    }

    /// The fragment over each segment alone.
    fn by_segment(&self) -> Result<&BySegment> {
        if let Some(made) = self.by_segment.get() {
            return Ok(made);
        }
        let Some(scan) = scan_below(&self.input) else {
            return internal_err!("PartialReuseExec is over no scan");
        };
        let segments = scan.groups.iter().flatten();
        let mut single = scan.with_groups(segments.map(|one| vec![one.clone()]).collect())?;
        single = single.sharing_metrics_of(scan);
        let calls = Tap::default();
        single.tap = Some(Arc::clone(&calls));
        let plan = with_scan(&self.input, &single)?;
        Ok(self.by_segment.get_or_init(|| BySegment { plan, calls }))
    }
}

/// A fragment whose partitions are the segments, in the order of the scan: what lies beside the scan in a
/// join is read once for all of them.
#[derive(Clone, Debug)]
struct BySegment {
    plan: Arc<dyn ExecutionPlan>,
    calls: Tap,
}

impl BySegment {
    /// The calls that were made over the segment of this number.
    fn calls_of(&self, number: usize) -> Vec<CallRecord> {
        told(&self.calls, number)
    }
}

impl DisplayAs for PartialReuseExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PartialReuseExec")
    }
}

impl ExecutionPlan for PartialReuseExec {
    fn name(&self) -> &str {
        "PartialReuseExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
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
            return internal_err!("PartialReuseExec has one child");
        };
        let new = Self::new(input, Arc::clone(&self.fragment));
        Ok(Arc::new(if self.turns.is_some() { new.in_turn() } else { new }))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        stream::open(self, partition, &context)
    }
}
