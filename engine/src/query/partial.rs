//! `PartialReuseExec`: computes a partial aggregate segment by segment, so that its state over each
//! segment can be stored and used again.
//!
//! Before: `AggregateExec(Partial)` over filters and projections over `PartitionScanExec`.
//! After: `PartialReuseExec` over the same. The final aggregate above merges states as before; it does
//! not matter which of them were stored.
//!
//! An appended segment adds one state, a rewritten one replaces its own. If the states are hardly
//! smaller than the rows, storing them would cost more than it spares: then the rest is computed in one
//! go, as plain DataFusion does.

mod rule;
mod stream;

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};
use foreshard_policy::ids::FragmentId;

pub use rule::StorePartials;
pub(in crate::query) use stream::Tap;

use crate::query::scan::PartitionScanExec;

/// Takes states of a partial aggregate from where they are stored, and computes the others.
#[derive(Clone, Debug)]
pub struct PartialReuseExec {
    /// The partial aggregate, down to the scan.
    pub input: Arc<dyn ExecutionPlan>,
    /// What names its state over a segment.
    pub fragment: FragmentId,
    /// The same for people.
    pub text: Arc<str>,
    metrics: ExecutionPlanMetricsSet,
    properties: Arc<PlanProperties>,
}

impl PartialReuseExec {
    /// Stores what `input` computes under `fragment`.
    #[must_use]
    pub fn new(input: Arc<dyn ExecutionPlan>, fragment: FragmentId, text: Arc<str>) -> Self {
        let partitions = input.output_partitioning().partition_count();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let metrics = ExecutionPlanMetricsSet::new();
        Self { input, fragment, text, metrics, properties: Arc::new(properties) }
    }
}

/// The scan below a chain of nodes with one child each.
pub(in crate::query) fn scan_below(plan: &Arc<dyn ExecutionPlan>) -> Option<&PartitionScanExec> {
    if let Some(scan) = plan.downcast_ref::<PartitionScanExec>() {
        return Some(scan);
    }
    match plan.children().as_slice() {
        [child] => scan_below(child),
        _ => None,
    }
}

/// The same plan over another scan, with nothing left of an earlier run.
fn with_scan(
    plan: &Arc<dyn ExecutionPlan>,
    scan: &PartitionScanExec,
) -> Result<Arc<dyn ExecutionPlan>> {
    let replaced = Arc::clone(plan).transform_up(|node| match node.is::<PartitionScanExec>() {
        true => Ok(Transformed::yes(Arc::new(scan.clone()) as Arc<dyn ExecutionPlan>)),
        false => Ok(Transformed::no(node)),
    })?;
    Ok(replaced.data)
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
        Ok(Arc::new(Self::new(input, self.fragment, Arc::clone(&self.text))))
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
