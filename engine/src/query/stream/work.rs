//! What a scan has to do: its expressions, rewritten so that calls are columns where they can be.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{Field, SchemaRef};
use datafusion::common::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::ExecutionPlan;
use foreshard_actors::expressions::FunctionExpression;
use foreshard_actors::partition::StoredOutput;

use crate::query::functions::{all_calls, describe, eager_calls, substitute};
use crate::query::options::SessionOptions;
use crate::query::scan::PartitionScanExec;

/// A function call of the scan.
#[derive(Debug)]
pub(super) struct Call {
    /// What it is called by in the plan.
    pub(super) expr: Arc<dyn PhysicalExpr>,
    /// What it is called by everywhere else.
    pub(super) expression: Arc<FunctionExpression>,
    /// Its type.
    pub(super) field: Arc<Field>,
    /// The first filter (or the outputs, numbered after the last filter) that needs it on every row.
    /// Before that it may stand in a branch that not all rows take, and is a column only where it is
    /// stored.
    pub(super) computed_from: Option<usize>,
}

/// The expressions of a scan, rewritten so that calls are columns behind those of the table.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) table: Arc<str>,
    pub(super) schema: SchemaRef,
    pub(super) output_schema: SchemaRef,
    /// Columns of the table that must be read, ascending.
    pub(super) columns: Vec<usize>,
    pub(super) calls: Vec<Call>,
    pub(super) filters: Vec<Arc<dyn PhysicalExpr>>,
    pub(super) outputs: Vec<Arc<dyn PhysicalExpr>>,
    /// Whether the session reads stored outputs and offers new ones.
    pub(super) uses_outputs: bool,
    pub(super) is_passthrough: bool,
}

impl Work {
    pub(super) fn new(
        exec: &PartitionScanExec,
        settings: &Arc<datafusion::config::ConfigOptions>,
    ) -> Result<Self> {
        let outputs: Vec<_> = exec.outputs.iter().map(|output| Arc::clone(&output.expr)).collect();
        let exprs = || exec.filters.iter().chain(&outputs);
        let eager_in = exec
            .filters
            .iter()
            .map(|filter| eager_calls([filter]))
            .chain([eager_calls(&outputs)])
            .collect::<Result<Vec<_>>>()?;
        let calls = all_calls(exprs())?
            .into_iter()
            .map(|expr| {
                let expression = Arc::new(describe(&expr, &exec.table.name, settings)?);
                let field = expr.return_field(&exec.table.schema)?;
                let computed_from = eager_in.iter().position(|eager| eager.contains(&expr));
                Ok(Call { field, expression, computed_from, expr })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut columns: Vec<usize> =
            exprs().flat_map(collect_columns).map(|column| column.index()).collect();
        columns.sort_unstable();
        columns.dedup();
        let is_column = |expr: &Arc<dyn PhysicalExpr>| expr.is::<Column>();
        Ok(Self {
            table: Arc::clone(&exec.table.name),
            schema: Arc::clone(&exec.table.schema),
            output_schema: exec.schema(),
            columns,
            calls,
            uses_outputs: settings
                .extensions
                .get::<SessionOptions>()
                .is_none_or(|options| options.use_outputs),
            is_passthrough: exec.filters.is_empty() && outputs.iter().all(is_column),
            filters: exec.filters.clone(),
            outputs,
        })
    }

    /// Filters and outputs of one segment, with calls replaced by their columns where they have one.
    #[expect(clippy::type_complexity, reason = "two lists of expressions")]
    pub(super) fn rewrite(
        &self,
        calls: &[SegmentCall],
    ) -> Result<(Vec<Arc<dyn PhysicalExpr>>, Vec<Arc<dyn PhysicalExpr>>)> {
        let columns_at = |step: usize| -> Vec<(Arc<dyn PhysicalExpr>, Column)> {
            let is_column = |(_, call): &(usize, &SegmentCall)| {
                call.column_from.is_some_and(|from| from <= step)
            };
            let column = |(i, _): (usize, &SegmentCall)| {
                let name = self.calls[i].field.name();
                (Arc::clone(&self.calls[i].expr), Column::new(name, self.position(i)))
            };
            calls.iter().enumerate().filter(is_column).map(column).collect()
        };
        let filters = self.filters.iter().enumerate();
        let filters = filters.map(|(step, filter)| substitute(filter, &columns_at(step)));
        let columns = columns_at(self.filters.len());
        let outputs = self.outputs.iter().map(|output| substitute(output, &columns));
        Ok((filters.collect::<Result<_>>()?, outputs.collect::<Result<_>>()?))
    }

    /// Position of a call's column behind those of the table.
    pub(super) fn position(&self, call: usize) -> usize {
        self.schema.fields().len() + call
    }
}

/// A call on one segment.
pub(super) struct SegmentCall {
    pub(super) expression: Arc<FunctionExpression>,
    pub(super) stored: Option<StoredOutput>,
    /// The first filter (or the outputs) that finds it as a column: all do if it is stored.
    pub(super) column_from: Option<usize>,
    pub(super) is_fresh: bool,
    /// Values computed so far, as long as no row was left out.
    pub(super) computed: Option<Vec<ArrayRef>>,
}
