//! Joins partitions of two tables where they are, without an exchange.
//!
//! Before: `HashJoinExec(Partitioned)` over `RepartitionExec(Hash)` over `PartitionScanExec`, on both sides.
//! After: the same join over the scans themselves, which have whole ranges of keys in each output partition.
//!
//! It holds if the keys that both tables are partitioned by are among those that are joined: rows whose keys
//! are equal are in the same range of both, and so in output partitions of the same number. A range is read
//! on a node that holds all of its partitions, of both tables; if there is none, the join stays as it is. A
//! side may be a join itself that probes such a scan with all of a smaller side.
//!
//! What it must not change: what is above counts on rows of equal keys being in one output partition, and
//! finds that as before. But two inputs of one node count on the same *number* for the same key, and the
//! hash is ours here, and DataFusion's elsewhere. So a join stays as it is unless there is an exchange, or
//! nothing, between it and the next node with several inputs.
//!
//! Counter-examples: keys of floats, whose two zeros are equal and have two hashes; a scan that ends after
//! its first rows, which would be others; `a JOIN b ON a.k = b.k JOIN c ON c.x = a.k`, where the rows of `c`
//! are dealt out by DataFusion's hash.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::{JoinType, Result};
use datafusion::config::ConfigOptions;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use datafusion::physical_plan::limit::LocalLimitExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::{ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions};
use foreshard_actors::layout::{Layout, SharedRange};
use foreshard_policy::ids::{NodeId, PartitionId};

use crate::cluster::Placement;
use crate::query::dynamic::has_one_order;
use crate::query::late::LateCallExec;
use crate::query::options::SessionOptions;
use crate::query::scan::{PartitionScanExec, Placed, ScanSegment};

type Plan = Arc<dyn ExecutionPlan>;

/// Pairs of partitions of one join that the history is told of.
const PAIRS_MAX: usize = 10_000;

/// The rule. It comes last: the others look for scans below exchanges.
#[derive(Debug)]
pub struct JoinInPlace;

impl PhysicalOptimizerRule for JoinInPlace {
    fn name(&self) -> &str {
        "join_in_place"
    }

    fn schema_check(&self) -> bool {
        true
    }

    fn optimize(&self, plan: Plan, config: &ConfigOptions) -> Result<Plan> {
        let options = config.extensions.get::<SessionOptions>();
        let is_wanted = options.is_none_or(|options| options.colocated_joins);
        if is_wanted { rewritten(&plan, true) } else { Ok(plan) }
    }
}

/// `plan` with the joins in it that may be; `is_free` says that nobody above counts on the number of an output
/// partition.
fn rewritten(plan: &Plan, is_free: bool) -> Result<Plan> {
    if is_free
        && let Some(join) = plan.downcast_ref::<HashJoinExec>()
        && let Some(joined) = in_place(join)?
    {
        return Ok(joined);
    }
    let old = plan.children();
    let new = old
        .iter()
        .zip(0..)
        .map(|(child, position)| rewritten(child, leaves_free(plan, position, is_free)));
    let new = new.collect::<Result<Vec<_>>>()?;
    with_children(plan, new)
}

fn with_children(plan: &Plan, new: Vec<Plan>) -> Result<Plan> {
    if plan.children().iter().zip(&new).all(|(old, new)| Arc::ptr_eq(old, new)) {
        return Ok(Arc::clone(plan));
    }
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    Arc::clone(plan).replace_children(new, options)
}

/// Whether nobody counts on the number of an output partition of a child of `plan`.
fn leaves_free(plan: &Plan, child: usize, is_free: bool) -> bool {
    if plan.is::<RepartitionExec>()
        || plan.is::<CoalescePartitionsExec>()
        || plan.is::<SortPreservingMergeExec>()
    {
        return true;
    }
    if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        // What is probed with all of the other side may be dealt out in any way.
        return *join.partition_mode() == PartitionMode::CollectLeft && child == 1 && is_free;
    }
    let passes_on = plan.is::<ProjectionExec>()
        || plan.is::<FilterExec>()
        || plan.is::<AggregateExec>()
        || plan.is::<SortExec>()
        || plan.is::<CooperativeExec>()
        || plan.is::<LocalLimitExec>()
        || plan.is::<LateCallExec>();
    passes_on && is_free
}

/// One side of a join: a scan, and what is between it and the join without exchanges.
struct Side<'a> {
    scan: &'a PartitionScanExec,
    placed: &'a Placed,
    /// From the join down.
    between: Vec<&'a Plan>,
    /// Partitions that its rows are dealt out to now.
    exchanged: usize,
    /// For each key of the join, the output of the scan.
    outputs: Vec<usize>,
    /// For each key of the join, the column of the table.
    columns: Vec<Option<usize>>,
    /// For each partition that is read, the node that was chosen for it, and its rows.
    read: HashMap<u32, (NodeId, u64)>,
}

impl<'a> Side<'a> {
    fn of<'k>(
        plan: &'a Plan,
        keys: impl Iterator<Item = &'k Arc<dyn PhysicalExpr>>,
    ) -> Option<Self> {
        let exchange = plan.downcast_ref::<RepartitionExec>()?;
        let Partitioning::Hash(_, exchanged) = exchange.partitioning() else { return None };
        let index = |key: &Arc<dyn PhysicalExpr>| key.downcast_ref::<Column>().map(Column::index);
        let mut columns: Vec<Option<usize>> = keys.map(index).collect();
        let mut between = vec![];
        let mut below = exchange.input();
        loop {
            if let Some(scan) = below.downcast_ref::<PartitionScanExec>() {
                let outputs = columns.into_iter().collect::<Option<Vec<usize>>>()?;
                let column = |at: &usize| {
                    let output = scan.outputs.get(*at)?;
                    output.expr.downcast_ref::<Column>().map(Column::index)
                };
                let columns = outputs.iter().map(column).collect();
                let placed = scan.table.placed.as_ref().filter(|_| scan.fetch.is_none())?;
                let exchanged = *exchanged;
                let mut read: HashMap<u32, (NodeId, u64)> = HashMap::new();
                for it in scan.groups.iter().flatten() {
                    read.entry(it.segment.partition).or_insert((it.node, 0)).1 += it.segment.rows;
                }
                return Some(Self { scan, placed, between, exchanged, outputs, columns, read });
            }
            if let Some(turns) = below.downcast_ref::<RepartitionExec>() {
                if !matches!(turns.partitioning(), Partitioning::RoundRobinBatch(_)) {
                    return None;
                }
                below = turns.input();
                continue;
            }
            below = if let Some(filter) = below.downcast_ref::<FilterExec>() {
                if filter.fetch().is_some() {
                    return None;
                }
                if let Some(projection) = filter.projection() {
                    let column = |at: usize| projection.get(at).copied();
                    columns.iter_mut().for_each(|at| *at = at.and_then(column));
                }
                between.push(below);
                filter.input()
            } else if let Some(projection) = below.downcast_ref::<ProjectionExec>() {
                let column = |at: usize| {
                    let projected = projection.expr().get(at)?;
                    projected.expr.downcast_ref::<Column>().map(Column::index)
                };
                columns.iter_mut().for_each(|at| *at = at.and_then(column));
                between.push(below);
                projection.input()
            } else if let Some(join) = below.downcast_ref::<HashJoinExec>() {
                if !keeps_probed(join) {
                    return None;
                }
                columns.iter_mut().for_each(|at| *at = at.and_then(|at| probed(join, at)));
                between.push(below);
                join.right()
            } else if let Some(cooperative) = below.downcast_ref::<CooperativeExec>() {
                between.push(below);
                cooperative.input()
            } else {
                return None;
            };
        }
    }

    /// Position in the table of each column of its partition key.
    fn partitioned_by(&self) -> Option<Vec<usize>> {
        let columns = self.placed.layout.key_columns();
        columns.into_iter().map(|name| self.scan.table.schema.index_of(name).ok()).collect()
    }

    /// The scan over its segments, dealt out so, below what was above it.
    fn dealt_out(&self, dealt: &[(&Vec<u32>, Home)], join: &HashJoinExec) -> Result<Option<Plan>> {
        let homes = dealt.iter().flat_map(|(all, home)| all.iter().map(|one| (*one, *home)));
        let home_of: HashMap<u32, Home> = homes.collect();
        let count = dealt.iter().map(|(_, home)| home.group + 1).max().unwrap_or(1);
        let mut groups: Vec<Vec<ScanSegment>> = vec![vec![]; count];
        for scan in self.scan.groups.iter().flatten() {
            let Some(home) = home_of.get(&scan.segment.partition) else { return Ok(None) };
            groups[home.group].push(ScanSegment { node: home.node, ..scan.clone() });
        }
        let scan = self.scan.colocated(groups, &self.outputs)?;
        // Its dynamic filter tells partitions apart by DataFusion's hash.
        let mut plan: Plan = Arc::new(scan.without_dynamic_of(join));
        for node in self.between.iter().rev() {
            let mut children: Vec<Plan> = node.children().into_iter().cloned().collect();
            // The side that is probed is the last one.
            children.pop();
            children.push(plan);
            plan = with_children(node, children)?;
        }
        Ok(Some(plan))
    }

    /// Rows that are read of partitions.
    fn rows(&self, ordinals: &[u32]) -> u64 {
        ordinals.iter().filter_map(|ordinal| self.read.get(ordinal)).map(|(_, rows)| rows).sum()
    }
}

/// Where a range is joined.
#[derive(Clone, Copy)]
struct Home {
    node: NodeId,
    /// Number of the output partition.
    group: usize,
}

/// The output partition of each range: as many on each node as the exchange would make, or as the node has
/// ranges, with about as many rows.
fn homes(left: &Side<'_>, right: &Side<'_>, ranges: &[(&SharedRange, NodeId)]) -> Vec<Home> {
    let most = left.exchanged.max(right.exchanged);
    let mut of_node: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    for (at, (_, node)) in ranges.iter().enumerate() {
        of_node.entry(*node).or_default().push(at);
    }
    let mut homes: Vec<Option<Home>> = vec![None; ranges.len()];
    let mut first = 0;
    for (node, own) in of_node {
        let mut rows = vec![0_u64; most.clamp(1, own.len())];
        for at in own {
            let least = rows.iter().enumerate().min_by_key(|(_, rows)| **rows);
            let bin = least.map_or(0, |(bin, _)| bin);
            let (range, _) = ranges[at];
            rows[bin] += left.rows(&range.left) + right.rows(&range.right);
            homes[at] = Some(Home { node, group: first + bin });
        }
        first += rows.len();
    }
    homes.into_iter().flatten().collect()
}

/// Whether each row that a join gives is one of the side that it probes with all of the other side, in an
/// output partition of the same number.
fn keeps_probed(join: &HashJoinExec) -> bool {
    use JoinType::{Inner, Right, RightAnti, RightSemi};
    *join.partition_mode() == PartitionMode::CollectLeft
        && matches!(join.join_type(), Inner | Right | RightAnti | RightSemi)
        && join.fetch().is_none()
}

/// The column of the side that is probed which is column `at` of what such a join gives.
fn probed(join: &HashJoinExec, at: usize) -> Option<usize> {
    let at = match join.projection.as_deref() {
        Some(projection) => *projection.get(at)?,
        None => at,
    };
    match join.join_type() {
        JoinType::RightAnti | JoinType::RightSemi => Some(at),
        _ => at.checked_sub(join.left().schema().fields().len()),
    }
}

/// The join without exchanges; `None` if it is not one of partitions that lie together.
fn in_place(join: &HashJoinExec) -> Result<Option<Plan>> {
    if *join.partition_mode() != PartitionMode::Partitioned {
        return Ok(None);
    }
    let left = Side::of(join.left(), join.on().iter().map(|(left, _)| left));
    let right = Side::of(join.right(), join.on().iter().map(|(_, right)| right));
    let (Some(left), Some(right)) = (left, right) else { return Ok(None) };
    let Some(ranges) = ranges(&left, &right) else { return Ok(None) };
    // With fewer ranges, fewer CPUs would work.
    if ranges.len() < left.exchanged.max(right.exchanged) {
        return Ok(None);
    }
    note(&left, &right, &ranges);
    let on_node = |range| Some((range, node_of(&left, &right, range)?));
    let Some(placed) = ranges.iter().map(on_node).collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    let homes = homes(&left, &right, &placed);
    let dealt = |side: fn(&SharedRange) -> &Vec<u32>| -> Vec<(&Vec<u32>, Home)> {
        ranges.iter().map(side).zip(homes.iter().copied()).collect()
    };
    let left = left.dealt_out(&dealt(|range| &range.left), join)?;
    let right = right.dealt_out(&dealt(|range| &range.right), join)?;
    let (Some(left), Some(right)) = (left, right) else { return Ok(None) };
    let joined = join.builder().reset_state().with_new_children(vec![left, right])?;
    Ok(Some(joined.build_exec()?))
}

/// The ranges of keys that both sides are cut into, if the join is by these keys.
fn ranges(left: &Side<'_>, right: &Side<'_>) -> Option<Vec<SharedRange>> {
    let (by_left, by_right) = (left.partitioned_by()?, right.partitioned_by()?);
    if by_left.is_empty() || by_left.len() != by_right.len() {
        return None;
    }
    for (one, other) in by_left.iter().zip(&by_right) {
        let keys = left.columns.iter().zip(&right.columns);
        let is_joined = keys.clone().any(|key| key == (&Some(*one), &Some(*other)));
        let data_type = left.scan.table.schema.field(*one).data_type();
        let is_same = data_type == right.scan.table.schema.field(*other).data_type();
        if !(is_joined && is_same && has_one_order(data_type)) {
            return None;
        }
    }
    left.placed.layout.ranges_shared_with(&right.placed.layout)
}

/// What kind of key a table is partitioned by, in words: partitions of two tables may be joined in place only if
/// it is the same. None if keys are files, or of a type that has more than one order.
pub(crate) fn key_kind(layout: &Layout, schema: &Schema) -> Option<String> {
    let columns = layout.key_columns();
    let data_type = |name: &&str| schema.field_with_name(name).ok().map(Field::data_type);
    let types: Vec<&DataType> = columns.iter().map(data_type).collect::<Option<_>>()?;
    let are_ordered = !types.is_empty() && types.iter().all(|data_type| has_one_order(data_type));
    let types: Vec<String> = types.iter().map(ToString::to_string).collect();
    are_ordered.then(|| format!("{} of {}", layout.strategy(), types.join(", ")))
}

fn partition(side: &Side<'_>, ordinal: u32) -> PartitionId {
    PartitionId::new(Arc::clone(&side.scan.table.name), ordinal)
}

/// Tells the history which partitions are read and joined.
fn note(left: &Side<'_>, right: &Side<'_>, ranges: &[SharedRange]) {
    let pairs = ranges.iter().flat_map(|range| {
        let others = move |one: &u32| {
            let one = partition(left, *one);
            let read = range.right.iter().filter(|other| right.read.contains_key(other));
            read.map(move |other| (one.clone(), partition(right, *other)))
        };
        range.left.iter().filter(|one| left.read.contains_key(one)).flat_map(others)
    });
    left.placed.query.joins(pairs.take(PAIRS_MAX));
}

/// A node that holds all partitions of a range of which something is read: one that was chosen for any of
/// them, if there is one. `None` if there is no such node.
fn node_of(left: &Side<'_>, right: &Side<'_>, range: &SharedRange) -> Option<NodeId> {
    let placement: &Placement = &left.placed.query.placement;
    let mut chosen: Vec<NodeId> = vec![];
    let mut able: Option<BTreeSet<NodeId>> = None;
    for (side, ordinals) in [(left, &range.left), (right, &range.right)] {
        for ordinal in ordinals {
            let Some((node, _)) = side.read.get(ordinal) else { continue };
            chosen.push(*node);
            let holders = placement.holders.get(&partition(side, *ordinal))?.iter().copied();
            let live = holders.filter(|node| placement.position(*node).is_some());
            able = Some(match able {
                None => live.collect(),
                Some(able) => live.filter(|node| able.contains(node)).collect(),
            });
        }
    }
    match able {
        None => placement.nodes.first().map(|node| node.id),
        Some(able) => {
            chosen.into_iter().find(|node| able.contains(node)).or_else(|| able.first().copied())
        }
    }
}
