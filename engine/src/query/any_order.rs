//! Aggregates by several grouping sets take their rows in any order.
//!
//! Before: `AggregateExec(Final)` by `GROUP BY CUBE (a)`, told that its rows come in the order of `a`.
//! After: the same over an `AnyOrderExec`, which hands rows on and promises nothing of their order.
//!
//! What makes it necessary: DataFusion takes a group for constant, and so for sorted, that is constant in
//! one grouping set and NULL in another (`GROUP BY CUBE (b = b)` where `b` has no NULL). The aggregate then
//! ends a group each time it meets the next one, and gives the same group again when it comes back.

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Aggregate;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, InputOrderMode,
    PlanProperties,
};

use crate::query::mend::Plan;

/// What an aggregate by grouping sets that counts on an order becomes.
pub(super) fn mended(node: &Plan) -> Result<Option<Plan>> {
    let aggregate = node.downcast_ref::<AggregateExec>().filter(|node| counts_on_order(node));
    let Some(aggregate) = aggregate else { return Ok(None) };
    let new = AggregateExec::try_new(
        *aggregate.mode(),
        aggregate.group_expr().clone(),
        aggregate.aggr_expr().to_vec(),
        aggregate.filter_expr().to_vec(),
        Arc::new(AnyOrderExec::new(Arc::clone(aggregate.input()))),
        aggregate.input_schema(),
    )?;
    Ok(Some(Arc::new(new.with_limit_options(aggregate.limit_options()))))
}

/// Whether an aggregate by grouping sets ends groups as soon as the next one comes. One of rows that must
/// come in an order of their own, as for `array_agg`, stays as it is.
fn counts_on_order(aggregate: &AggregateExec) -> bool {
    let groups = aggregate.group_expr();
    let is_set = |name: &str| name == Aggregate::INTERNAL_GROUPING_ID;
    *aggregate.input_order_mode() != InputOrderMode::Linear
        && (groups.has_grouping_set() || groups.expr().iter().any(|(_, name)| is_set(name)))
        && aggregate.aggr_expr().iter().all(|expr| expr.order_bys().is_empty())
}

/// Hands rows on, and promises nothing of their order.
#[derive(Debug)]
pub struct AnyOrderExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl AnyOrderExec {
    /// The rows of `input`.
    #[must_use]
    pub fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            input.output_partitioning().clone(),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        Self { input, properties: Arc::new(properties) }
    }
}

impl DisplayAs for AnyOrderExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyOrderExec")
    }
}

impl ExecutionPlan for AnyOrderExec {
    fn name(&self) -> &str {
        "AnyOrderExec"
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
        match <[_; 1]>::try_from(children) {
            Ok([input]) => Ok(Arc::new(Self::new(input))),
            Err(_) => internal_err!("AnyOrderExec has one child"),
        }
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        self.input.execute(partition, context)
    }
}
