//! `LateCallExec`: evaluates calls above joins, sorts and limits, with what is known of the rows below.
//!
//! Before: `ProjectionExec[f(x), k]` over `HashJoinExec` over `PartitionScanExec[x, k]` and another scan.
//! After: `ProjectionExec[__late, k]` over `LateCallExec[f(x)]` over the same join over
//! `PartitionScanExec[x, k, what is known of f(x)]` and the other scan.
//!
//! The scan evaluates nothing for it: it hands on the number of each row, and its value if one is stored.
//! The call is evaluated where plain DataFusion evaluates it, on the rows that get there: only on those
//! whose value is not known, and once for a row that a join repeats. What was evaluated is offered to the
//! partition that the row came from, so that the next query finds it.

mod carried;
mod carry;
mod found;
mod rule;
mod stream;

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::apply_expression_roots;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};

pub use carried::Carried;
pub use rule::CallLate;

use crate::query::partial::Tap;
use crate::query::scan::ScanSegment;

/// The scan that a call's rows come from.
#[derive(Clone, Debug)]
pub struct LateSource {
    /// Name of the table.
    pub table: Arc<str>,
    /// All columns of the table.
    pub schema: SchemaRef,
    /// Segments of the scan; the number of each is its position.
    pub segments: Vec<ScanSegment>,
}

/// A call that is evaluated above the scan of its columns.
#[derive(Clone, Debug)]
pub struct LateCall {
    /// The call, over the columns of the input.
    pub expr: Arc<dyn PhysicalExpr>,
    /// The call, over the columns of the table.
    pub on_table: Arc<dyn PhysicalExpr>,
    /// The column of the input with what is known.
    pub carried: usize,
    /// Where the rows come from.
    pub source: Arc<LateSource>,
}

/// Appends one column per call to its input.
#[derive(Clone, Debug)]
pub struct LateCallExec {
    /// The rows.
    pub input: Arc<dyn ExecutionPlan>,
    /// The calls.
    pub calls: Vec<LateCall>,
    tap: Option<Tap>,
    metrics: ExecutionPlanMetricsSet,
    properties: Arc<PlanProperties>,
}

impl LateCallExec {
    /// Evaluates `calls` on the rows of `input`.
    ///
    /// # Errors
    /// If a call does not fit the input.
    pub fn try_new(input: Arc<dyn ExecutionPlan>, calls: Vec<LateCall>) -> Result<Self> {
        let below = input.schema();
        let mut fields: Vec<Arc<Field>> = below.fields().iter().cloned().collect();
        for call in &calls {
            let field = call.expr.return_field(&below)?;
            let name = format!("__late_{}", fields.len());
            fields.push(Arc::new(field.as_ref().clone().with_name(name)));
        }
        let schema = Arc::new(Schema::new_with_metadata(fields, below.metadata().clone()));
        let equivalences = EquivalenceProperties::new(schema);
        let properties = PlanProperties::new(
            equivalences.extend(input.equivalence_properties().clone())?,
            input.output_partitioning().clone(),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        let (metrics, properties) = (ExecutionPlanMetricsSet::new(), Arc::new(properties));
        Ok(Self { input, calls, tap: None, metrics, properties })
    }

    /// The same over other rows, counting for this one and telling `tap` of its calls.
    pub(in crate::query) fn over(
        &self,
        input: Arc<dyn ExecutionPlan>,
        tap: Option<Tap>,
    ) -> Result<Self> {
        let metrics = self.metrics.clone();
        Ok(Self { tap, metrics, ..Self::try_new(input, self.calls.clone())? })
    }

    /// The same, of no segment in particular.
    pub(in crate::query) fn without_segments(&self) -> Result<Self> {
        let calls = self.calls.iter().cloned().map(|mut call| {
            let source = LateSource { segments: vec![], ..call.source.as_ref().clone() };
            call.source = Arc::new(source);
            call
        });
        Self::try_new(Arc::clone(&self.input), calls.collect())
    }
}

impl DisplayAs for LateCallExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls: Vec<String> = self.calls.iter().map(|call| call.expr.to_string()).collect();
        write!(f, "LateCallExec: calls=[{}]", calls.join(", "))
    }
}

impl ExecutionPlan for LateCallExec {
    fn name(&self) -> &str {
        "LateCallExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        apply_expression_roots(self.calls.iter().map(|call| &call.expr), f)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Ok([input]) = <[_; 1]>::try_from(children) else {
            return internal_err!("LateCallExec has one child");
        };
        Ok(Arc::new(Self::try_new(input, self.calls.clone())?))
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
