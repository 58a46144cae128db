//! Carries what a scan knows of a call up to where the call is evaluated: one more column, behind the
//! columns of each node in between. No node in between evaluates or drops anything that it did not before.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{JoinSide, Result};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::joins::utils::{ColumnIndex, build_join_schema};
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec,
};
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::{ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions};

use crate::query::functions::{compose, is_storable};
use crate::query::late::{Carried, LateCallExec, LateSource};
use crate::query::scan::PartitionScanExec;

type Plan = Arc<dyn ExecutionPlan>;
type Expr = Arc<dyn PhysicalExpr>;

/// A plan that carries a call.
pub(super) struct Carrying {
    /// The plan: its columns as before, and one more.
    pub(super) plan: Plan,
    /// The one more.
    pub(super) column: usize,
    /// The call over the columns of the table.
    pub(super) on_table: Expr,
    /// Where the rows come from.
    pub(super) source: Arc<LateSource>,
}

/// Makes `plan` carry `call`, given over its columns; `None` if they are not those of one scan, or
/// something in between does not hand rows on one by one.
pub(super) fn carry(plan: &Plan, call: &Expr) -> Result<Option<Carrying>> {
    if let Some(scan) = plan.downcast_ref::<PartitionScanExec>() {
        return from_scan(scan, call);
    }
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        let inner = compose(call, projection.expr())?;
        let below = if is_storable(&inner) { carry(projection.input(), &inner)? } else { None };
        let Some(below) = below else { return Ok(None) };
        let columns = projection.expr().to_vec();
        return project(columns, below).map(Some);
    }
    if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        return through_filter(filter, call);
    }
    if let Some(late) = plan.downcast_ref::<LateCallExec>() {
        let width = late.input.schema().fields().len();
        if collect_columns(call).iter().any(|column| column.index() >= width) {
            return Ok(None);
        }
        let Some(below) = carry(&late.input, call)? else { return Ok(None) };
        let plan: Plan = Arc::new(LateCallExec::try_new(below.plan, late.calls.clone())?);
        let moved = (0..width).chain(width + 1..=width + late.calls.len());
        // What is above knows the columns by the names that they had.
        let names = late.schema();
        let named = moved.zip(names.fields()).map(|(index, field)| {
            let column = column_of(&plan, index);
            ProjectionExpr { alias: field.name().clone(), ..column }
        });
        let columns = named.collect();
        return project(columns, Carrying { plan, ..below }).map(Some);
    }
    if let Some(join) = join_of(plan) {
        return through_join(plan, join, call);
    }
    let hands_on = plan.is::<CooperativeExec>()
        || plan.is::<RepartitionExec>()
        || plan.is::<CoalescePartitionsExec>()
        || plan.is::<SortExec>()
        || plan.is::<SortPreservingMergeExec>()
        || plan.is::<GlobalLimitExec>()
        || plan.is::<LocalLimitExec>();
    if !hands_on {
        return Ok(None);
    }
    let Some(below) = carry(plan.children()[0], call)? else { return Ok(None) };
    let plan = with_children(plan, vec![below.plan])?;
    Ok(Some(Carrying { plan, ..below }))
}

fn from_scan(scan: &PartitionScanExec, call: &Expr) -> Result<Option<Carrying>> {
    let on_table = compose(call, &scan.outputs)?;
    if !is_storable(&on_table) {
        return Ok(None);
    }
    let mut segments: Vec<_> = scan.groups.iter().flatten().cloned().collect();
    segments.sort_unstable_by_key(|segment| segment.number);
    let is_numbered = (0..).zip(&segments).all(|(number, segment)| segment.number == number);
    let column = scan.outputs.len();
    let mut outputs = scan.outputs.clone();
    let carried: Expr = Arc::new(Carried { call: Arc::clone(&on_table) });
    outputs.push(ProjectionExpr { expr: carried, alias: format!("__carried_{column}") });
    let table = Arc::clone(&scan.table.name);
    let source = Arc::new(LateSource { table, schema: Arc::clone(&scan.table.schema), segments });
    let plan: Plan = Arc::new(scan.with_outputs(outputs)?);
    Ok(is_numbered.then_some(Carrying { plan, column, on_table, source }))
}

fn through_filter(filter: &FilterExec, call: &Expr) -> Result<Option<Carrying>> {
    let width = filter.input().schema().fields().len();
    let kept: Vec<usize> = match filter.projection().as_ref() {
        Some(projection) => projection.to_vec(),
        None => (0..width).collect(),
    };
    let Some(inner) = move_columns(call, |index| kept.get(index).copied())? else {
        return Ok(None);
    };
    let Some(below) = carry(filter.input(), &inner)? else { return Ok(None) };
    let column = kept.len();
    let kept = kept.into_iter().chain([below.column]).collect();
    let new = FilterExecBuilder::new(Arc::clone(filter.predicate()), Arc::clone(&below.plan))
        .with_default_selectivity(filter.default_selectivity())
        .with_batch_size(filter.batch_size())
        .with_fetch(filter.fetch())
        .apply_projection(Some(kept))?
        .build()?;
    Ok(Some(Carrying { plan: Arc::new(new), column, ..below }))
}

/// A join, as far as it matters here.
struct Join {
    columns: Vec<ColumnIndex>,
    projection: Option<Vec<usize>>,
}

impl Join {
    /// Side and position of each column that the join gives.
    fn given(&self) -> Vec<&ColumnIndex> {
        match &self.projection {
            Some(projection) => projection.iter().map(|index| &self.columns[*index]).collect(),
            None => self.columns.iter().collect(),
        }
    }
}

fn join_of(plan: &Plan) -> Option<Join> {
    let (join_type, projection) = if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        (*join.join_type(), join.projection.as_ref().map(|projection| projection.to_vec()))
    } else if let Some(join) = plan.downcast_ref::<NestedLoopJoinExec>() {
        (*join.join_type(), join.projection().as_ref().map(|projection| projection.to_vec()))
    } else if let Some(join) = plan.downcast_ref::<SortMergeJoinExec>() {
        (join.join_type(), None)
    } else if plan.is::<CrossJoinExec>() {
        (datafusion::common::JoinType::Inner, None)
    } else {
        return None;
    };
    let [left, right] = plan.children()[..] else { return None };
    let (_, columns) = build_join_schema(&left.schema(), &right.schema(), &join_type);
    Some(Join { columns, projection })
}

fn through_join(plan: &Plan, join: Join, call: &Expr) -> Result<Option<Carrying>> {
    let given = join.given();
    let side = |column: &Column| given.get(column.index()).map(|given| given.side);
    let mut sides = collect_columns(call).iter().map(side).collect::<Vec<_>>();
    sides.dedup();
    let [Some(side)] = sides[..] else { return Ok(None) };
    let child = match side {
        JoinSide::Left => 0,
        JoinSide::Right => 1,
        JoinSide::None => return Ok(None),
    };
    let Some(inner) = move_columns(call, |index| given.get(index).map(|given| given.index))? else {
        return Ok(None);
    };
    let mut children: Vec<Plan> = plan.children().into_iter().cloned().collect();
    let Some(below) = carry(&children[child], &inner)? else { return Ok(None) };
    children[child] = Arc::clone(&below.plan);
    let (left, right) = (children[0].schema(), children[1].schema());
    let bare = without_projection(plan, children)?;
    let Some(Join { columns: new, .. }) = join_of(&bare) else { return Ok(None) };
    debug_assert_eq!(bare.schema().fields().len(), new.len(), "{left:?} {right:?}");
    let place = |wanted: &ColumnIndex| new.iter().position(|column| column == wanted);
    let carried = ColumnIndex { index: below.column, side };
    let places: Option<Vec<usize>> = given.into_iter().chain([&carried]).map(place).collect();
    let Some(places) = places else { return Ok(None) };
    let column = places.len() - 1;
    let plan = with_projection(bare, places, &plan.schema())?;
    Ok(Some(Carrying { plan, column, ..below }))
}

fn without_projection(plan: &Plan, children: Vec<Plan>) -> Result<Plan> {
    if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        return join.builder().with_projection(None).with_new_children(children)?.build_exec();
    }
    if let Some(join) = plan.downcast_ref::<NestedLoopJoinExec>() {
        let [left, right] = [Arc::clone(&children[0]), Arc::clone(&children[1])];
        let (filter, join_type) = (join.filter().cloned(), join.join_type());
        return Ok(Arc::new(NestedLoopJoinExec::try_new(left, right, filter, join_type, None)?));
    }
    with_children(plan, children)
}

/// The columns of a join at `places`; all but the last are named as in `names`.
fn with_projection(
    join: Plan,
    places: Vec<usize>,
    names: &arrow::datatypes::Schema,
) -> Result<Plan> {
    if let Some(hash) = join.downcast_ref::<HashJoinExec>() {
        return hash.builder().with_projection(Some(places)).build_exec();
    }
    let mut columns: Vec<ProjectionExpr> =
        places.into_iter().map(|place| column_of(&join, place)).collect();
    for (column, field) in columns.iter_mut().zip(names.fields()) {
        column.alias.clone_from(field.name());
    }
    Ok(Arc::new(ProjectionExec::try_new(columns, join)?))
}

/// `columns` over the plan that carries, and what it carries.
fn project(mut columns: Vec<ProjectionExpr>, below: Carrying) -> Result<Carrying> {
    let column = columns.len();
    columns.push(column_of(&below.plan, below.column));
    let plan: Plan = Arc::new(ProjectionExec::try_new(columns, Arc::clone(&below.plan))?);
    Ok(Carrying { plan, column, ..below })
}

fn column_of(plan: &Plan, index: usize) -> ProjectionExpr {
    let schema = plan.schema();
    let name = schema.field(index).name();
    ProjectionExpr { expr: Arc::new(Column::new(name, index)), alias: name.clone() }
}

/// The same expression over columns at other places; `None` if a column has none.
fn move_columns(expr: &Expr, place: impl Fn(usize) -> Option<usize>) -> Result<Option<Expr>> {
    let mut is_whole = true;
    let moved = Arc::clone(expr).transform_up(|node| match node.downcast_ref::<Column>() {
        Some(column) => {
            let index = place(column.index());
            is_whole &= index.is_some();
            let column = Column::new(column.name(), index.unwrap_or_default());
            Ok(Transformed::yes(Arc::new(column) as Expr))
        }
        None => Ok(Transformed::no(node)),
    })?;
    Ok(is_whole.then_some(moved.data))
}

fn with_children(plan: &Plan, children: Vec<Plan>) -> Result<Plan> {
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    Arc::clone(plan).replace_children(children, options)
}
