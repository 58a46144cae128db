//! Puts a [`KeptGroupsExec`] above aggregates whose groups are kept.
//!
//! Before: `AggregateExec(Final)` over aggregates, exchanges, filters and projections over one
//! `PartitionScanExec`. After: `KeptGroupsExec` over the same; over fewer rows if the answer to the same was
//! kept, and the rows that came or went since lie close together in one of its groups' columns.
//!
//! What it must not change: the groups, their values, and the partitions in which they come.
//!
//! Counter-examples: an aggregate without groups, where every row belongs to the only one; groups by an
//! expression, whose values bounds of a column say nothing of; an aggregate that ends after its first groups.
//!
//! Only where states hold values themselves (`count(DISTINCT ..)`, `median`): where they are small, those of
//! segments are merged faster than rows are filtered. And only on one node, and without functions: what is
//! spared of these would be told to nobody.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, ScalarValue};
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::{Aggregate, Operator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, IsNullExpr, Literal};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, ExecutionPlan, ExecutionPlanProperties, ReplaceChildrenOptions,
};
use foreshard_actors::segment::Segment;
use foreshard_udfs::Functions;

use super::exec::{Named, Reused};
use super::{Bounds, Kept, KeptGroups, KeptGroupsExec, Segments};
use crate::query::functions::contains_storable;
use crate::query::options::SessionOptions;
use crate::query::partial::{PartialReuseExec, StorePartials, is_same, name_of, scan_below};
use crate::query::scan::{PartitionScanExec, ScanSegment};

/// Share of the rows beyond which aggregating them anew spares nothing.
const SHARE_MAX: f64 = 0.5;

/// The rule. It comes last.
#[derive(Debug)]
pub struct KeepGroups {
    partials: StorePartials,
    functions: Arc<Functions>,
    store: Arc<KeptGroups>,
}

/// A group of an aggregate that is a column of its table.
#[derive(Clone, Debug)]
struct GroupColumn {
    /// Where it is in the answer.
    output: usize,
    /// Where it is in the table.
    position: usize,
    name: String,
    data_type: DataType,
}

impl KeepGroups {
    /// A rule that keeps groups in `store`.
    #[must_use]
    pub fn new(functions: Arc<Functions>, store: Arc<KeptGroups>) -> Self {
        Self { partials: StorePartials::new(Arc::clone(&functions)), functions, store }
    }
}

impl PhysicalOptimizerRule for KeepGroups {
    fn name(&self) -> &str {
        "keep_groups"
    }

    fn schema_check(&self) -> bool {
        true
    }

    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let options = config.extensions.get::<SessionOptions>();
        let is_on = |options: &SessionOptions| {
            options.use_outputs && options.use_partials && !options.other_nodes
        };
        if !options.is_some_and(is_on) {
            return Ok(plan);
        }
        let down = plan.transform_down(|node| {
            let Some(aggregate) = node.downcast_ref() else { return Ok(Transformed::no(node)) };
            Ok(match self.keep(&node, aggregate, config)? {
                Some(new) => Transformed::new(new, true, TreeNodeRecursion::Jump),
                None => Transformed::no(node),
            })
        });
        down.data()
    }
}

impl KeepGroups {
    fn keep(
        &self,
        node: &Arc<dyn ExecutionPlan>,
        aggregate: &AggregateExec,
        config: &ConfigOptions,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        if !ends_groups(aggregate) || !holds_values(node)? || !self.is_over_one_table(node) {
            return Ok(None);
        }
        let Some(scan) = scan_below(node) else { return Ok(None) };
        let columns = group_columns(node, aggregate, scan);
        if columns.is_empty() || scan.rows() == 0 || node.output_ordering().is_some() {
            return Ok(None);
        }
        let Some(id) = name_of(node, "", scan, &self.functions, config)? else { return Ok(None) };
        let segments = scan.groups.iter().flatten();
        let segments = segments.map(|scan| {
            let bounds = columns
                .iter()
                .map(|column| Bounds::of(&scan.segment, column.position, &column.data_type));
            (scan.segment.id, bounds.collect())
        });
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        let table = Arc::clone(&scan.table.name);
        let text = format!("groups of {table} by {}", names.join(", "));
        let named = Named { id, table, text, segments: segments.collect() };
        let partitions = node.output_partitioning().partition_count();
        let kept = self.store.get(id).filter(|kept| kept.partitions.len() == partitions);
        let reused = kept.map(|kept| reuse(kept, &named.segments, &columns, scan)).transpose()?;
        let (input, reused) = match reused.flatten() {
            Some((reused, scan)) => (over(node, &scan)?, Some(reused)),
            None => (Arc::clone(node), None),
        };
        let store = Arc::clone(&self.store);
        Ok(Some(Arc::new(KeptGroupsExec::new(input, named, reused, store))))
    }

    /// Whether an answer is the same for the same rows of one table, and nothing else is told by the way.
    fn is_over_one_table(&self, plan: &Arc<dyn ExecutionPlan>) -> bool {
        if let Some(scan) = plan.downcast_ref::<PartitionScanExec>() {
            let outputs = scan.outputs.iter().map(|output| &output.expr);
            return scan.fetch.is_none()
                && scan.dynamic.is_empty()
                && scan.offered.is_empty()
                && scan.filters.iter().chain(outputs).all(is_plain);
        }
        let is_known = if let Some(aggregate) = plan.downcast_ref::<AggregateExec>() {
            let groups = aggregate.group_expr();
            let is_set = |name: &str| name == Aggregate::INTERNAL_GROUPING_ID;
            aggregate.limit_options().is_none()
                && !groups.has_grouping_set()
                && !groups.expr().iter().any(|(_, name)| is_set(name))
                && self.partials.is_storable(aggregate)
        } else if let Some(filter) = plan.downcast_ref::<FilterExec>() {
            filter.fetch().is_none() && is_plain(filter.predicate())
        } else if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
            projection.expr().iter().all(|output| is_plain(&output.expr))
        } else if let Some(collecting) = plan.downcast_ref::<CoalescePartitionsExec>() {
            collecting.fetch().is_none()
        } else {
            plan.is::<RepartitionExec>()
                || plan.is::<CooperativeExec>()
                || plan.is::<PartialReuseExec>()
        };
        is_known && matches!(plan.children().as_slice(), [below] if self.is_over_one_table(below))
    }
}

/// Whether `expr` is the same in every query, and calls no function whose calls are counted.
fn is_plain(expr: &Arc<dyn PhysicalExpr>) -> bool {
    is_same(expr) && !contains_storable(expr)
}

/// Whether an aggregate gives whole groups.
fn ends_groups(aggregate: &AggregateExec) -> bool {
    use AggregateMode::{Final, FinalPartitioned, Single, SinglePartitioned};
    matches!(aggregate.mode(), Final | FinalPartitioned | Single | SinglePartitioned)
}

/// Whether states of an aggregate are values of its rows: of nested types, or the groups of another aggregate.
fn holds_values(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let (mut levels, mut is_nested) = (0, false);
    plan.apply(|node| {
        if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
            levels += usize::from(ends_groups(aggregate));
            for expr in aggregate.aggr_expr() {
                is_nested |= expr.state_fields()?.iter().any(|field| field.data_type().is_nested());
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(is_nested || levels > 1)
}

/// The groups of `aggregate` that are columns of the table with an order that bounds keep to.
fn group_columns(
    node: &Arc<dyn ExecutionPlan>,
    aggregate: &AggregateExec,
    scan: &PartitionScanExec,
) -> Vec<GroupColumn> {
    let of_output = |output: usize| {
        let position = column_below(node, output)?;
        let field = scan.table.schema.field(position);
        let data_type = field.data_type().clone();
        let is_ordered = data_type.is_integer()
            || data_type.is_decimal()
            || matches!(data_type, DataType::Date32 | DataType::Date64 | DataType::Timestamp(..));
        let name = field.name().clone();
        is_ordered.then_some(GroupColumn { output, position, name, data_type })
    };
    (0..aggregate.group_expr().expr().len()).filter_map(of_output).collect()
}

/// The column of the table that an output of `plan` is.
fn column_below(plan: &Arc<dyn ExecutionPlan>, output: usize) -> Option<usize> {
    let column = |expr: &Arc<dyn PhysicalExpr>| Some(expr.downcast_ref::<Column>()?.index());
    if let Some(scan) = plan.downcast_ref::<PartitionScanExec>() {
        return column(&scan.outputs.get(output)?.expr);
    }
    let below = *plan.children().first()?;
    if let Some(aggregate) = plan.downcast_ref::<AggregateExec>() {
        return column_below(below, column(&aggregate.group_expr().expr().get(output)?.0)?);
    }
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        return column_below(below, column(&projection.expr().get(output)?.expr)?);
    }
    if let Some(projection) = plan.downcast_ref::<FilterExec>().map(FilterExec::projection)
        && let Some(projection) = projection
    {
        return column_below(below, *projection.get(output)?);
    }
    column_below(below, output)
}

/// What is used of an answer over other segments, and the scan of the rows that are aggregated anew; `None`
/// if these are too many.
fn reuse(
    kept: Arc<Kept>,
    segments: &Segments,
    columns: &[GroupColumn],
    scan: &PartitionScanExec,
) -> Result<Option<(Reused, PartitionScanExec)>> {
    let came = segments.iter().filter(|(id, _)| !kept.segments.contains_key(*id));
    let went = kept.segments.iter().filter(|(id, _)| !segments.contains_key(*id));
    let changed: Vec<&Vec<Option<Bounds>>> = came.chain(went).map(|(_, bounds)| bounds).collect();
    let without = |is_read: &dyn Fn(&ScanSegment) -> bool| {
        let group = |all: &Vec<ScanSegment>| -> Vec<ScanSegment> {
            all.iter().filter(|it| is_read(it)).cloned().collect()
        };
        scan.with_groups(scan.groups.iter().map(group).collect())
    };
    if changed.is_empty() {
        let scan = without(&|_| false)?.sharing_metrics_of(scan);
        return Ok(Some((Reused { kept, anew: None }, scan)));
    }
    let mut best: Option<(f64, &GroupColumn, Bounds)> = None;
    for (at, column) in columns.iter().enumerate() {
        let mut all = changed.iter().map(|bounds| bounds.get(at)?.clone());
        let Some(first) = all.next().flatten() else { continue };
        let hull = all.try_fold(first, |hull, bounds| hull.hull(&bounds?));
        let Some(hull) = hull else { continue };
        let read = scan.groups.iter().flatten();
        let rows: f64 = read.map(|it| rows_within(&it.segment, column, &hull)).sum();
        if best.as_ref().is_none_or(|(fewest, ..)| rows < *fewest) {
            best = Some((rows, column, hull));
        }
    }
    let Some((_, column, hull)) = best.filter(|(rows, ..)| *rows <= scan.rows() as f64 * SHARE_MAX)
    else {
        return Ok(None);
    };
    let mut new = without(&|it| rows_within(&it.segment, column, &hull) > 0.0)?;
    let in_table = Column::new(&column.name, column.position);
    new.filters.insert(0, within(Arc::new(in_table), &hull));
    let in_answer = Column::new(&column.name, column.output);
    let anew = Some(within(Arc::new(in_answer), &hull));
    Ok(Some((Reused { kept, anew }, new.sharing_metrics_of(scan))))
}

/// Rows of a segment with a value of `column` between these, or with none: an estimate, 0 only if there can be
/// none.
fn rows_within(segment: &Segment, column: &GroupColumn, between: &Bounds) -> f64 {
    let rows = segment.rows as f64;
    let Some(bounds) = Bounds::of(segment, column.position, &column.data_type) else { return rows };
    let nulls = segment.columns.get(column.position).and_then(|range| range.nulls);
    let Some(nulls) = nulls else { return rows };
    rows * bounds.share_within(between) + nulls as f64
}

/// True where `column` is between these, or NULL: bounds say nothing of that.
fn within(column: Arc<dyn PhysicalExpr>, between: &Bounds) -> Arc<dyn PhysicalExpr> {
    let compared = |operator, value: &ScalarValue| -> Arc<dyn PhysicalExpr> {
        let value = Arc::new(Literal::new(value.clone()));
        Arc::new(BinaryExpr::new(Arc::clone(&column), operator, value))
    };
    let (from, to) =
        (compared(Operator::GtEq, &between.min), compared(Operator::LtEq, &between.max));
    let is_between = Arc::new(BinaryExpr::new(from, Operator::And, to));
    let is_null = Arc::new(IsNullExpr::new(Arc::clone(&column)));
    Arc::new(BinaryExpr::new(is_between, Operator::Or, is_null))
}

/// The same plan over another scan. Its states are of a few rows of each segment, and stored for nobody.
fn over(plan: &Arc<dyn ExecutionPlan>, scan: &PartitionScanExec) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(partial) = plan.downcast_ref::<PartialReuseExec>() {
        return over(&partial.input, scan);
    }
    let children = plan.children();
    let Some(below) = children.first() else { return Ok(Arc::new(scan.clone())) };
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    Arc::clone(plan).replace_children(vec![over(below, scan)?], options)
}
