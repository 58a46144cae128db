//! Which function calls can be stored, and the fingerprints that name their outputs.

use std::sync::Arc;

use arrow::datatypes::{FieldRef, Schema};
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::type_coercion::functions::fields_with_udf;
use datafusion::logical_expr::{Operator, ScalarUDF, Volatility};
use datafusion::physical_expr::expressions::{
    BinaryExpr, CaseExpr, Column, DynamicFilterPhysicalExpr,
};
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion_proto::physical_plan::to_proto::serialize_physical_expr;
use foreshard_actors::expressions::FunctionExpression;
use foreshard_policy::ids::ExpressionId;
use foreshard_udfs::registered;
use prost::Message;

use crate::query::codec::FunctionCodec;
use crate::query::late::Carried;
use crate::query::options::settings_of_results;

/// Whether `expr` is a call whose output may be stored: a registered immutable function that was not
/// caught lying, over arguments that are themselves immutable and read at least one column.
#[must_use]
pub fn is_storable(expr: &Arc<dyn PhysicalExpr>) -> bool {
    let is_call = expr
        .downcast_ref::<ScalarFunctionExpr>()
        .and_then(|call| registered(call.fun()))
        .is_some_and(foreshard_udfs::Registered::is_storable);
    is_call && is_immutable(expr) && reads_a_column(expr)
}

/// Takes the functions of a call that gave two values for the same arguments out of those whose outputs
/// are stored.
///
/// # Errors
/// If the walk fails.
pub fn quarantine(expr: &Arc<dyn PhysicalExpr>) -> Result<()> {
    expr.apply(|node| {
        let call = node.downcast_ref::<ScalarFunctionExpr>();
        if let Some(function) = call.and_then(|call| registered(call.fun())) {
            function.quarantine();
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// Whether any call below `expr` can be stored.
#[must_use]
pub fn contains_storable(expr: &Arc<dyn PhysicalExpr>) -> bool {
    contains(expr, &is_storable)
}

/// Whether the value of `expr` changes while a query runs. Such a filter must never shape a stored
/// result.
#[must_use]
pub fn contains_dynamic_filter(expr: &Arc<dyn PhysicalExpr>) -> bool {
    contains(expr, &|node| node.is::<DynamicFilterPhysicalExpr>())
}

/// Whether `expr` gives another value each time it is evaluated: it must be evaluated once per row.
#[must_use]
pub fn is_volatile(expr: &Arc<dyn PhysicalExpr>) -> bool {
    contains(expr, &|node| node.is_volatile_node())
}

/// Whether `expr` gives the same for the same arguments in every query.
#[must_use]
pub fn is_immutable(expr: &Arc<dyn PhysicalExpr>) -> bool {
    !contains(expr, &|node| {
        node.is_volatile_node()
            || node.downcast_ref::<ScalarFunctionExpr>().is_some_and(|call| {
                call.fun().signature().volatility != Volatility::Immutable
                    || registered(call.fun()).is_some_and(|function| function.is_quarantined())
            })
    })
}

fn reads_a_column(expr: &Arc<dyn PhysicalExpr>) -> bool {
    contains(expr, &|node| node.is::<Column>())
}

fn contains(expr: &Arc<dyn PhysicalExpr>, wanted: &dyn Fn(&Arc<dyn PhysicalExpr>) -> bool) -> bool {
    let mut found = false;
    // The closure never fails, so neither does the walk.
    drop(expr.apply(|node| {
        found |= wanted(node);
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    }));
    found
}

/// Whether `expr` evaluates some of its children on fewer rows than it is given: calls below it are not
/// to be computed ahead of it.
#[must_use]
pub fn is_lazy(expr: &Arc<dyn PhysicalExpr>) -> bool {
    let is_logic = |binary: &BinaryExpr| matches!(binary.op(), Operator::And | Operator::Or);
    expr.is::<CaseExpr>()
        || expr.is::<Carried>()
        || expr.downcast_ref::<BinaryExpr>().is_some_and(is_logic)
        || expr.downcast_ref::<ScalarFunctionExpr>().is_some_and(|call| call.fun().short_circuits())
}

/// Rewrites `expr` over the outputs of a projection into an expression over its input.
///
/// # Errors
/// If the walk fails.
pub fn compose(
    expr: &Arc<dyn PhysicalExpr>,
    outputs: &[ProjectionExpr],
) -> Result<Arc<dyn PhysicalExpr>> {
    let composed = Arc::clone(expr).transform_down(|node| match node.downcast_ref::<Column>() {
        Some(column) => match outputs.get(column.index()) {
            Some(output) => {
                Ok(Transformed::new(Arc::clone(&output.expr), true, TreeNodeRecursion::Jump))
            }
            None => datafusion::common::internal_err!("no output for column {column}"),
        },
        None => Ok(Transformed::no(node)),
    })?;
    Ok(composed.data)
}

/// Calls that are evaluated on every row whenever one of `exprs` is, each one once, in order of first
/// use.
///
/// # Errors
/// If the walk fails.
pub fn eager_calls<'a>(
    exprs: impl IntoIterator<Item = &'a Arc<dyn PhysicalExpr>>,
) -> Result<Vec<Arc<dyn PhysicalExpr>>> {
    calls(exprs, true)
}

/// All calls in `exprs` that can be stored, those in lazy branches too.
///
/// # Errors
/// If the walk fails.
pub fn all_calls<'a>(
    exprs: impl IntoIterator<Item = &'a Arc<dyn PhysicalExpr>>,
) -> Result<Vec<Arc<dyn PhysicalExpr>>> {
    calls(exprs, false)
}

fn calls<'a>(
    exprs: impl IntoIterator<Item = &'a Arc<dyn PhysicalExpr>>,
    eager_only: bool,
) -> Result<Vec<Arc<dyn PhysicalExpr>>> {
    let mut found: Vec<Arc<dyn PhysicalExpr>> = vec![];
    for expr in exprs {
        expr.apply(|node| {
            if is_storable(node) {
                if !found.contains(node) {
                    found.push(Arc::clone(node));
                }
                return Ok(TreeNodeRecursion::Jump);
            }
            let skip = eager_only && is_lazy(node);
            Ok(if skip { TreeNodeRecursion::Jump } else { TreeNodeRecursion::Continue })
        })?;
    }
    Ok(found)
}

/// A call, and what takes its place.
pub type Replacement = (Arc<dyn PhysicalExpr>, Arc<dyn PhysicalExpr>);

/// Replaces calls: `new` says which, and by what.
///
/// # Errors
/// If the walk fails.
pub fn substitute(
    expr: &Arc<dyn PhysicalExpr>,
    new: &[Replacement],
) -> Result<Arc<dyn PhysicalExpr>> {
    let replaced = Arc::clone(expr).transform_down(|node| {
        match new.iter().find(|(call, _)| call == &node) {
            Some((_, new)) => Ok(Transformed::new(Arc::clone(new), true, TreeNodeRecursion::Jump)),
            None => Ok(Transformed::no(node)),
        }
    })?;
    Ok(replaced.data)
}

/// A number that names an expression over `table`: the same for two that give the same values.
///
/// It covers the functions' names and versions, the argument expressions with the types of their
/// literals and casts, the table's name, and the settings that change results. Operands of `+`, `*`,
/// `=` and other symmetric operators have one order, so that `f(a + 1)` and `f(1 + a)` are the same.
///
/// # Errors
/// If the expression cannot be serialised.
pub fn fingerprint(
    expr: &Arc<dyn PhysicalExpr>,
    table: &str,
    settings: &ConfigOptions,
) -> Result<u128> {
    let node = serialize_physical_expr(&normal_form(expr)?, &FunctionCodec::default())?;
    let mut hash = blake3::Hasher::new();
    hash.update(&node.encode_to_vec());
    hash.update(table.as_bytes());
    hash.update(settings_of_results(settings).as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    Ok(u128::from_be_bytes(id))
}

/// Symmetric operators with their operands in one order.
fn normal_form(expr: &Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
    let ordered = Arc::clone(expr).transform_up(|node| {
        let Some(binary) = node.downcast_ref::<BinaryExpr>() else {
            return Ok(Transformed::no(node));
        };
        let (left, right) = (binary.left(), binary.right());
        if !is_symmetric(*binary.op()) || left.to_string() <= right.to_string() {
            return Ok(Transformed::no(node));
        }
        let swapped = vec![Arc::clone(right), Arc::clone(left)];
        Ok(Transformed::yes(Arc::clone(&node).with_new_children(swapped)?))
    })?;
    Ok(ordered.data)
}

/// Whether `a op b` is `b op a`, bit by bit. AND and OR are not: they may skip their right side.
fn is_symmetric(op: Operator) -> bool {
    matches!(
        op,
        Operator::Plus
            | Operator::Multiply
            | Operator::Eq
            | Operator::NotEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
            | Operator::BitwiseAnd
            | Operator::BitwiseOr
            | Operator::BitwiseXor
    )
}

/// Describes a storable call over the columns of `table`.
///
/// # Errors
/// As [`fingerprint`].
pub fn describe(
    expr: &Arc<dyn PhysicalExpr>,
    table: &Arc<str>,
    settings: &ConfigOptions,
) -> Result<FunctionExpression> {
    let id = fingerprint(expr, table, settings)?;
    let mut functions: Vec<Arc<str>> = vec![];
    expr.apply(|node| {
        if let Some(call) = node.downcast_ref::<ScalarFunctionExpr>() {
            functions.push(call.fun().name().into());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(FunctionExpression::new(ExpressionId(id), functions, Arc::clone(table), Arc::clone(expr)))
}

/// `known` with `function` in the place of the one of that name, over a table of `schema`; `None` if that
/// is no call whose output may be stored, takes other types of arguments, or gives another one.
///
/// # Errors
/// If the new function does not say what it gives.
pub fn redefined(
    known: &FunctionExpression,
    function: &Arc<ScalarUDF>,
    schema: &Schema,
) -> Result<Option<FunctionExpression>> {
    let Some(outermost) = known.expr.downcast_ref::<ScalarFunctionExpr>() else { return Ok(None) };
    let mut fits = true;
    let expr = Arc::clone(&known.expr).transform_up(|node| {
        let call = node.downcast_ref::<ScalarFunctionExpr>();
        let Some(call) = call.filter(|call| call.name() == function.name()) else {
            return Ok(Transformed::no(node));
        };
        let args = call.args().iter().map(|arg| arg.return_field(schema));
        let args: Vec<FieldRef> = args.collect::<Result<_>>()?;
        // Its caller casts arguments for the former function; for this one that may be too little.
        fits &= fields_with_udf(&args, function.as_ref()).is_ok_and(|wanted| {
            let types = |fields: &[FieldRef]| {
                fields.iter().map(|field| field.data_type().clone()).collect::<Vec<_>>()
            };
            types(&wanted) == types(&args)
        });
        if !fits {
            return Ok(Transformed::no(node));
        }
        let settings = Arc::new(call.config_options().clone());
        let args = call.args().to_vec();
        let new = ScalarFunctionExpr::try_new(Arc::clone(function), args, schema, settings)?;
        fits &= new.return_type() == call.return_type();
        Ok(Transformed::yes(Arc::new(new) as Arc<dyn PhysicalExpr>))
    })?;
    if !fits || !is_storable(&expr.data) {
        return Ok(None);
    }
    describe(&expr.data, &known.table, outermost.config_options()).map(Some)
}
