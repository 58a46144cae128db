//! Evaluates an expression with asynchronous functions in it without holding up the thread.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::{ColumnarValue, Operator, ScalarFunctionArgs};
use datafusion::physical_expr::expressions::{BinaryExpr, CastExpr, Column};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};

use crate::registered::{Registered, registered};

/// Whether `expr` calls an asynchronous function anywhere.
#[must_use]
pub fn calls_asynchronously(expr: &Arc<dyn PhysicalExpr>) -> bool {
    // The closure never fails, so neither does the walk.
    expr.exists(|node| Ok(asynchronous(node).is_some())).unwrap_or(false)
}

/// The values of `expr` on `batch`. Asynchronous calls are awaited; dropping the future stops them.
///
/// A call in a branch that not all rows take, as in CASE, is made where DataFusion evaluates the branch,
/// and holds up the thread.
///
/// # Errors
/// What the functions say.
pub async fn evaluate_later(
    expr: &Arc<dyn PhysicalExpr>,
    batch: &RecordBatch,
) -> Result<ColumnarValue> {
    let (mut expr, mut batch) = (Arc::clone(expr), batch.clone());
    while let Some(call) = innermost(&expr) {
        let answer = answer(&call, &batch).await?.into_array(batch.num_rows())?;
        let field = call.return_field(batch.schema_ref())?;
        let column = format!("answer {}", batch.num_columns());
        let field = field.as_ref().clone().with_name(&column);
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(&column, batch.num_columns()));
        batch = with_column(&batch, field, answer)?;
        let replaced = expr.transform_down(|node| match *node == *call {
            true => Ok(Transformed::new(Arc::clone(&column), true, TreeNodeRecursion::Jump)),
            false => Ok(Transformed::no(node)),
        })?;
        expr = replaced.data;
    }
    expr.evaluate(&batch)
}

fn asynchronous(expr: &Arc<dyn PhysicalExpr>) -> Option<(&ScalarFunctionExpr, &Registered)> {
    let call = expr.downcast_ref::<ScalarFunctionExpr>()?;
    let function = registered(call.fun()).filter(|function| function.is_asynchronous())?;
    Some((call, function))
}

/// An asynchronous call that is evaluated on every row and has no other one in its arguments.
fn innermost(expr: &Arc<dyn PhysicalExpr>) -> Option<Arc<dyn PhysicalExpr>> {
    let is_eager = expr.is::<CastExpr>()
        || expr
            .downcast_ref::<BinaryExpr>()
            .is_some_and(|binary| !matches!(binary.op(), Operator::And | Operator::Or))
        || expr
            .downcast_ref::<ScalarFunctionExpr>()
            .is_some_and(|call| !call.fun().short_circuits());
    if !is_eager {
        return None;
    }
    let below = expr.children().into_iter().find_map(innermost);
    below.or_else(|| asynchronous(expr).map(|_| Arc::clone(expr)))
}

async fn answer(call: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<ColumnarValue> {
    let Some((call, function)) = asynchronous(call) else {
        return internal_err!("{call} calls no asynchronous function");
    };
    let arguments = call.args().iter();
    let args = arguments.clone().map(|argument| argument.evaluate(batch)).collect::<Result<_>>()?;
    let arg_fields = arguments.map(|argument| argument.return_field(batch.schema_ref()));
    let args = ScalarFunctionArgs {
        args,
        arg_fields: arg_fields.collect::<Result<_>>()?,
        number_rows: batch.num_rows(),
        return_field: call.return_field(batch.schema_ref())?,
        config_options: Arc::new(call.config_options().clone()),
    };
    function.invoke_later(args).await
}

fn with_column(batch: &RecordBatch, field: Field, values: ArrayRef) -> Result<RecordBatch> {
    let fields = batch.schema_ref().fields().iter().cloned().chain([Arc::new(field)]);
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let columns = batch.columns().iter().cloned().chain([values]).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
}
