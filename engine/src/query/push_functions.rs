//! Moves storable function calls into the scan, where their stored outputs are.
//!
//! Before: `ProjectionExec[k, f(x)+1]` over `FilterExec[y<2]` over `PartitionScanExec[k, x, y]`.
//! After: `ProjectionExec[k, __f+1]` over `PartitionScanExec[k, x, y, f(x) as __f, filters=[y<2]]`.
//!
//! What it must not change: a call is evaluated on no row on which plain DataFusion would not evaluate
//! it. So a filter between the call and the scan moves into the scan first; CASE, AND, OR and other
//! expressions that evaluate a call on some rows only move as a whole (the scan then looks up what is
//! stored where DataFusion evaluates the call); the argument of a filtered aggregate becomes
//! `CASE WHEN filter THEN argument END`; nothing passes a fetch.
//!
//! Counter-example: `SELECT f(x) FROM (SELECT x FROM t LIMIT 5)`: moved below the limit, `f` would run on
//! a whole segment, and might fail on a row that the query never sees.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::config::ConfigOptions;
use datafusion::physical_expr::expressions::{CaseExpr, Column};
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_expr::utils::split_conjunction;
use datafusion::physical_expr::{LexOrdering, Partitioning, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::analyze::AnalyzeExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::limit::GlobalLimitExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::{ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions};

use crate::query::dynamic;
use crate::query::functions::{
    compose, contains_dynamic_filter, contains_storable, is_lazy, is_storable, is_volatile,
};
use crate::query::scan::PartitionScanExec;

/// The rule.
#[derive(Debug, Default)]
pub struct PushFunctionsIntoScan;

impl PhysicalOptimizerRule for PushFunctionsIntoScan {
    fn name(&self) -> &str {
        "push_functions_into_scan"
    }

    fn schema_check(&self) -> bool {
        true
    }

    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = plan.transform_up(|node| {
            if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
                return Ok(changed(push_projection(projection)?, node));
            }
            if let Some(filter) = node.downcast_ref::<FilterExec>() {
                return Ok(changed(push_filter(filter)?, node));
            }
            if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
                return Ok(changed(push_aggregate(aggregate)?, node));
            }
            Ok(Transformed::no(node))
        });
        // Only now it is known which scans evaluate calls.
        dynamic::settle(push_top_sort(plan.data()?)?)
    }
}

type Plan = Arc<dyn ExecutionPlan>;

fn changed(new: Option<Plan>, old: Plan) -> Transformed<Plan> {
    match new {
        Some(new) => Transformed::yes(new),
        None => Transformed::no(old),
    }
}

fn push_projection(projection: &ProjectionExec) -> Result<Option<Plan>> {
    if !projection.expr().iter().any(|projected| contains_storable(&projected.expr)) {
        return Ok(None);
    }
    let mut input = Arc::clone(projection.input());
    let exprs = projection
        .expr()
        .iter()
        .map(|projected| {
            let expr = take_out(&projected.expr, &mut input)?;
            Ok(ProjectionExpr { expr, alias: projected.alias.clone() })
        })
        .collect::<Result<Vec<_>>>()?;
    if Arc::ptr_eq(&input, projection.input()) {
        return Ok(None);
    }
    Ok(Some(Arc::new(ProjectionExec::try_new(exprs, input)?)))
}

/// A filter with a call right above a scan moves into it as a whole: cheap predicates run first there.
fn push_filter(filter: &FilterExec) -> Result<Option<Plan>> {
    let has_call = contains_storable(filter.predicate()) || feeds_on_calls(filter.input());
    if !has_call {
        return Ok(None);
    }
    // A fetch counts rows that passed, per partition: right above the scan that is the scan's own.
    if filter.fetch().is_some() && !filter.input().is::<PartitionScanExec>() {
        return Ok(None);
    }
    let Some(input) = absorb(filter)? else { return Ok(None) };
    let width = filter.input().schema().fields().len();
    let kept: Vec<usize> = match filter.projection().as_ref() {
        Some(projection) => projection.to_vec(),
        None => (0..width).collect(),
    };
    let schema = input.schema();
    let columns = kept.into_iter().map(|index| {
        let name = schema.field(index).name();
        let expr = Arc::new(Column::new(name, index)) as Arc<dyn PhysicalExpr>;
        ProjectionExpr { expr, alias: name.clone() }
    });
    let columns: Vec<ProjectionExpr> = columns.collect();
    let Some(scan) = input.downcast_ref::<PartitionScanExec>() else {
        return Ok(Some(Arc::new(ProjectionExec::try_new(columns, input)?)));
    };
    let outputs = columns
        .into_iter()
        .map(|ProjectionExpr { expr, alias }| {
            Ok(ProjectionExpr { expr: compose(&expr, &scan.outputs)?, alias })
        })
        .collect::<Result<Vec<_>>>()?;
    let scan = Arc::new(scan.with_outputs(outputs)?);
    Ok(match filter.fetch() {
        Some(fetch) => scan.with_fetch(Some(fetch)),
        None => Some(scan),
    })
}

fn push_aggregate(aggregate: &AggregateExec) -> Result<Option<Plan>> {
    let mode = aggregate.mode();
    if !matches!(
        mode,
        AggregateMode::Partial | AggregateMode::Single | AggregateMode::SinglePartitioned
    ) || aggregate.limit_options().is_some()
    {
        return Ok(None);
    }
    let mut input = Arc::clone(aggregate.input());
    let group_by = aggregate.group_expr();
    let groups = group_by
        .expr()
        .iter()
        .map(|(expr, name)| Ok((take_out(expr, &mut input)?, name.clone())))
        .collect::<Result<Vec<_>>>()?;
    let mut aggregates = Vec::with_capacity(aggregate.aggr_expr().len());
    let mut filters = Vec::with_capacity(aggregate.filter_expr().len());
    for (expr, filter) in aggregate.aggr_expr().iter().zip(aggregate.filter_expr()) {
        let new_filter = filter.as_ref().map(|filter| take_out(filter, &mut input));
        filters.push(new_filter.transpose()?);
        let is_ordered = !expr.order_bys().is_empty();
        if is_ordered || !expr.expressions().iter().any(contains_storable) {
            aggregates.push(Arc::clone(expr));
            continue;
        }
        let argument = |argument: &Arc<dyn PhysicalExpr>| match filter {
            Some(filter) if contains_storable(argument) => {
                let branch = (Arc::clone(filter), Arc::clone(argument));
                let lazily = Arc::new(CaseExpr::try_new(None, vec![branch], None)?);
                take_out(&(lazily as Arc<dyn PhysicalExpr>), &mut input)
            }
            _ => take_out(argument, &mut input),
        };
        let arguments = expr.expressions().iter().map(argument).collect::<Result<Vec<_>>>()?;
        aggregates.push(match expr.with_new_expressions(arguments, vec![]) {
            Some(new) => Arc::new(new),
            None => return Ok(None),
        });
    }
    if Arc::ptr_eq(&input, aggregate.input()) {
        return Ok(None);
    }
    let groups = PhysicalGroupBy::new(
        groups,
        group_by.null_expr().to_vec(),
        group_by.groups().to_vec(),
        group_by.has_grouping_set(),
    );
    let schema = input.schema();
    Ok(Some(Arc::new(AggregateExec::try_new(*mode, groups, aggregates, filters, input, schema)?)))
}

/// Sorts by calls that order the answer. Others stay: what stands above them, a window for example, may
/// count on an order by the call itself.
fn push_top_sort(plan: Plan) -> Result<Plan> {
    if let Some(sort) = plan.downcast_ref::<SortExec>() {
        return Ok(push_sort(sort)?.unwrap_or(plan));
    }
    let keeps_order = plan.is::<ProjectionExec>()
        || plan.is::<SortPreservingMergeExec>()
        || plan.is::<GlobalLimitExec>()
        || plan.is::<AnalyzeExec>();
    if !keeps_order {
        return Ok(plan);
    }
    let child = plan.children()[0];
    let new = push_top_sort(Arc::clone(child))?;
    if Arc::ptr_eq(child, &new) {
        return Ok(plan);
    }
    let plan = with_child(&plan, new)?;
    match plan.downcast_ref::<SortPreservingMergeExec>() {
        Some(merge) => Ok(push_merge(merge)?.unwrap_or(plan)),
        None => Ok(plan),
    }
}

/// A sort by a call sorts by a column, which goes away above it.
fn push_sort(sort: &SortExec) -> Result<Option<Plan>> {
    if !sort.expr().iter().any(|key| contains_storable(&key.expr)) {
        return Ok(None);
    }
    let mut input = Arc::clone(sort.input());
    let keys = sort
        .expr()
        .iter()
        .map(|key| Ok(PhysicalSortExpr::new(take_out(&key.expr, &mut input)?, key.options)))
        .collect::<Result<Vec<_>>>()?;
    let Some(keys) = LexOrdering::new(keys).filter(|_| !Arc::ptr_eq(&input, sort.input())) else {
        return Ok(None);
    };
    let sorted = SortExec::new(keys, input)
        .with_preserve_partitioning(sort.preserve_partitioning())
        .with_fetch(sort.fetch());
    Ok(Some(first_columns(&sort.schema(), Arc::new(sorted))?))
}

/// A merge of what [`push_sort`] sorted merges by the same columns.
fn push_merge(merge: &SortPreservingMergeExec) -> Result<Option<Plan>> {
    let keys = merge.expr().len();
    if !merge.expr().iter().any(|key| contains_storable(&key.expr)) {
        return Ok(None);
    }
    let Some(projection) = merge.input().downcast_ref::<ProjectionExec>() else { return Ok(None) };
    let Some(sort) = projection.input().downcast_ref::<SortExec>() else { return Ok(None) };
    let is_same = |(ours, theirs): (&PhysicalSortExpr, &PhysicalSortExpr)| {
        ours.options == theirs.options && (ours.expr.eq(&theirs.expr) || theirs.expr.is::<Column>())
    };
    if sort.expr().len() < keys || !merge.expr().iter().zip(sort.expr().iter()).all(is_same) {
        return Ok(None);
    }
    let Some(by) = LexOrdering::new(sort.expr().iter().take(keys).cloned()) else {
        return Ok(None);
    };
    let merged =
        SortPreservingMergeExec::new(by, Arc::clone(projection.input())).with_fetch(merge.fetch());
    Ok(Some(first_columns(&merge.schema(), Arc::new(merged))?))
}

/// The first columns of `plan`: those of `schema`.
fn first_columns(schema: &Schema, plan: Plan) -> Result<Plan> {
    let column = |(index, field): (usize, &Arc<Field>)| ProjectionExpr {
        expr: Arc::new(Column::new(field.name(), index)),
        alias: field.name().clone(),
    };
    let columns: Vec<ProjectionExpr> = schema.fields().iter().enumerate().map(column).collect();
    Ok(Arc::new(ProjectionExec::try_new(columns, plan)?))
}

/// Whether the scan can do something with `expr`: a call whose output may be stored, or an expression
/// with such calls in branches.
fn is_wanted(expr: &Arc<dyn PhysicalExpr>) -> bool {
    is_storable(expr) || is_lazy(expr) && contains_storable(expr) && !is_volatile(expr)
}

/// Replaces the calls of `expr` that `input` can deliver by columns of it.
fn take_out(expr: &Arc<dyn PhysicalExpr>, input: &mut Plan) -> Result<Arc<dyn PhysicalExpr>> {
    let taken = Arc::clone(expr).transform_down(|node| {
        if is_wanted(&node)
            && let Some((plan, index)) = request(input, &node)?
        {
            let name = plan.schema().field(index).name().clone();
            *input = plan;
            let column = Arc::new(Column::new(&name, index)) as Arc<dyn PhysicalExpr>;
            return Ok(Transformed::new(column, true, TreeNodeRecursion::Jump));
        }
        if is_lazy(&node) {
            return Ok(Transformed::new(node, false, TreeNodeRecursion::Jump));
        }
        Ok(Transformed::no(node))
    })?;
    Ok(taken.data)
}

/// Asks `plan` to deliver `expr`, given over its output, as a column; existing columns keep their
/// places, a new one comes last.
fn request(plan: &Plan, expr: &Arc<dyn PhysicalExpr>) -> Result<Option<(Plan, usize)>> {
    let last = plan.schema().fields().len();
    if let Some(scan) = plan.downcast_ref::<PartitionScanExec>() {
        if scan.fetch.is_some() {
            return Ok(None);
        }
        let expr = compose(expr, &scan.outputs)?;
        if !is_wanted(&expr) {
            return Ok(None);
        }
        if let Some(index) = scan.outputs.iter().position(|output| output.expr.eq(&expr)) {
            return Ok(Some((Arc::clone(plan), index)));
        }
        let mut outputs = scan.outputs.clone();
        outputs.push(ProjectionExpr { alias: format!("__call_{last}"), expr });
        return Ok(Some((Arc::new(scan.with_outputs(outputs)?), last)));
    }
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        return request_below_projection(projection, expr, last);
    }
    if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        if filter.fetch().is_some() {
            return Ok(None);
        }
        let Some(input) = absorb(filter)? else { return Ok(None) };
        let Some(projection) = filter.projection().as_ref() else { return request(&input, expr) };
        let schema = input.schema();
        let exprs = projection.iter().map(|index| {
            let name = schema.field(*index).name();
            let expr = Arc::new(Column::new(name, *index)) as Arc<dyn PhysicalExpr>;
            ProjectionExpr { expr, alias: name.clone() }
        });
        let projection = ProjectionExec::try_new(exprs.collect::<Vec<_>>(), input)?;
        return request_below_projection(&projection, expr, last);
    }
    if is_transparent(plan)
        && let Some((child, index)) = request(plan.children()[0], expr)?
    {
        return Ok(Some((with_child(plan, child)?, index)));
    }
    Ok(None)
}

fn request_below_projection(
    projection: &ProjectionExec,
    expr: &Arc<dyn PhysicalExpr>,
    last: usize,
) -> Result<Option<(Plan, usize)>> {
    let inner = compose(expr, projection.expr())?;
    // Over `random() AS r` a call of `r` is a call of `random()`: asked for again, it would be another.
    if !is_wanted(&inner) {
        return Ok(None);
    }
    let Some((child, index)) = request(projection.input(), &inner)? else { return Ok(None) };
    let name = child.schema().field(index).name().clone();
    let column = Arc::new(Column::new(&name, index)) as Arc<dyn PhysicalExpr>;
    let mut exprs: Vec<ProjectionExpr> = projection.expr().to_vec();
    if let Some(there) = exprs.iter().position(|projected| projected.expr.eq(&column)) {
        return Ok(Some((Arc::new(ProjectionExec::try_new(exprs, child)?), there)));
    }
    exprs.push(ProjectionExpr { expr: column, alias: format!("__call_{last}") });
    Ok(Some((Arc::new(ProjectionExec::try_new(exprs, child)?), last)))
}

/// The input of `filter` with the predicate moved into the scan below it, if nothing but transparent
/// nodes lies between and the predicate does not change while the query runs.
fn absorb(filter: &FilterExec) -> Result<Option<Plan>> {
    if contains_dynamic_filter(filter.predicate()) {
        return Ok(None);
    }
    let predicates: Vec<Arc<dyn PhysicalExpr>> =
        split_conjunction(filter.predicate()).into_iter().map(Arc::clone).collect();
    absorb_below(filter.input(), &predicates)
}

fn absorb_below(plan: &Plan, predicates: &[Arc<dyn PhysicalExpr>]) -> Result<Option<Plan>> {
    if predicates.iter().any(is_volatile) {
        return Ok(None);
    }
    if let Some(scan) = plan.downcast_ref::<PartitionScanExec>() {
        if scan.fetch.is_some() {
            return Ok(None);
        }
        return Ok(Some(Arc::new(scan.with_filters_on_outputs(predicates)?)));
    }
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        let inner = predicates
            .iter()
            .map(|predicate| compose(predicate, projection.expr()))
            .collect::<Result<Vec<_>>>()?;
        let Some(child) = absorb_below(projection.input(), &inner)? else { return Ok(None) };
        return with_child(plan, child).map(Some);
    }
    if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        // The lower filter goes first, so that the upper one still sees fewer rows.
        if filter.projection().is_some() || filter.fetch().is_some() {
            return Ok(None);
        }
        let Some(input) = absorb(filter)? else { return Ok(None) };
        return absorb_below(&input, predicates);
    }
    if is_transparent(plan) {
        let Some(child) = absorb_below(plan.children()[0], predicates)? else { return Ok(None) };
        return with_child(plan, child).map(Some);
    }
    Ok(None)
}

/// Whether the scan below computes functions, on rows that a filter above would not need.
fn feeds_on_calls(plan: &Plan) -> bool {
    match plan.downcast_ref::<PartitionScanExec>() {
        Some(scan) => scan.has_function_work(),
        None => is_transparent(plan) && feeds_on_calls(plan.children()[0]),
    }
}

/// Nodes that hand each row on as it is.
fn is_transparent(plan: &Plan) -> bool {
    plan.is::<CooperativeExec>()
        || plan.downcast_ref::<RepartitionExec>().is_some_and(|repartition| {
            matches!(repartition.partitioning(), Partitioning::RoundRobinBatch(_))
        })
}

fn with_child(plan: &Plan, child: Plan) -> Result<Plan> {
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    Arc::clone(plan).replace_children(vec![child], options)
}
