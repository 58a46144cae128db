//! Puts a [`PartialReuseExec`] above partial aggregates, and above sorts for their first rows, whose state
//! over a segment may be stored.
//!
//! Before: `AggregateExec(Partial)` over filters, projections, joins with a collected side and round-robin
//! over `PartitionScanExec`. After: `PartialReuseExec` over the same without the round-robin; an
//! `AggregateExec(Single)` is taken apart into a partial and a final one first.
//!
//! Before: `SortExec(fetch=3)` over the same, where it sorts by functions or none are called at all.
//! After: `SortExec(fetch=3)` over `PartialReuseExec` over `SortExec(fetch=3)` over the same.
//!
//! What it must not change: the rows that are aggregated, and which function is called on which row.
//!
//! Counter-examples: `SELECT g FROM t GROUP BY g LIMIT 2` aggregates only until it has two groups, and a
//! filter that a join fills in while the query runs leaves rows out that the next query needs: the state
//! of neither stands for its segment.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::Field;
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::config::ConfigOptions;
use datafusion::functions_aggregate::all_default_aggregate_functions;
use datafusion::logical_expr::{AggregateUDF, Volatility};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions};
use datafusion_proto::physical_plan::AsExecutionPlan;
use datafusion_proto::protobuf::PhysicalPlanNode;
use foreshard_actors::partition::Fragment;
use foreshard_policy::ids::FragmentId;
use foreshard_udfs::Functions;
use prost::Message;

use crate::query::codec::ScanCodec;
use crate::query::functions::contains_storable;
use crate::query::options::{SessionOptions, settings_of_results};
use crate::query::partial::fragment::{
    Takes, is_same, over_table, scan_below, segment_wise, without_segments,
};
use crate::query::partial::shape::{pattern, shape};
use crate::query::partial::{PartialReuseExec, SameOrderExec};
use crate::query::scan::PartitionScanExec;

/// Aggregates whose result depends on the order of the rows, or on how they were dealt out: plain
/// DataFusion's answer could not be told from a wrong one.
const ORDER_SENSITIVE: [&str; 8] = [
    "approx_median",
    "approx_percentile_cont",
    "approx_percentile_cont_with_weight",
    "array_agg",
    "first_value",
    "last_value",
    "nth_value",
    "string_agg",
];

/// Most rows of a sort whose first rows are stored.
const FIRST_ROWS_MAX: usize = 1_024;

/// The rule.
#[derive(Debug)]
pub struct StorePartials {
    functions: Arc<Functions>,
    built_in: HashMap<String, Arc<AggregateUDF>>,
}

impl StorePartials {
    /// A rule for queries that call these functions.
    #[must_use]
    pub fn new(functions: Arc<Functions>) -> Self {
        let built_in = all_default_aggregate_functions().into_iter();
        let built_in = built_in.map(|udaf| (udaf.name().to_owned(), udaf)).collect();
        Self { functions, built_in }
    }

    /// Whether the state of `aggregate` over some rows is always the same.
    pub(in crate::query) fn is_storable(&self, aggregate: &AggregateExec) -> bool {
        let is_known = |udaf: &AggregateUDF| {
            let is_built_in =
                self.built_in.get(udaf.name()).is_some_and(|own| own.as_ref() == udaf);
            is_built_in || self.functions.aggregate_version(udaf).is_some()
        };
        let of_any_order = aggregate.aggr_expr().iter().all(|expr| {
            let udaf = expr.fun();
            is_known(udaf)
                && udaf.signature().volatility == Volatility::Immutable
                && expr.order_bys().is_empty()
                && !ORDER_SENSITIVE.contains(&udaf.name())
        });
        let groups = aggregate.group_expr();
        let arguments = aggregate.aggr_expr().iter().flat_map(|expr| expr.expressions());
        let filters = aggregate.filter_expr().iter().flatten().cloned();
        let groups = groups.expr().iter().map(|(expr, _)| Arc::clone(expr));
        of_any_order && arguments.chain(filters).chain(groups).all(|expr| is_same(&expr))
    }
}

impl PhysicalOptimizerRule for StorePartials {
    fn name(&self) -> &str {
        "store_partials"
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
        if !options.is_some_and(|options| options.use_outputs && options.use_partials) {
            return Ok(plan);
        }
        let is_only_node = !options.is_some_and(|options| options.other_nodes);
        plan.transform_up(|node| {
            let new = match (node.downcast_ref(), node.downcast_ref()) {
                (Some(aggregate), _) => match self.store(aggregate, config)? {
                    None if !is_only_node => in_same_order(aggregate)?,
                    stored => stored,
                },
                (_, Some(sort)) => self.store_first(sort, config)?,
                _ if is_only_node => in_turn(&node)?,
                _ => None,
            };
            Ok(new.map_or_else(|| Transformed::no(node), Transformed::yes))
        })
        .data()
    }
}

impl StorePartials {
    fn store(
        &self,
        aggregate: &AggregateExec,
        config: &ConfigOptions,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let is_single = match aggregate.mode() {
            AggregateMode::Partial => false,
            AggregateMode::Single | AggregateMode::SinglePartitioned => true,
            _ => return Ok(None),
        };
        if aggregate.limit_options().is_some() || !self.is_storable(aggregate) {
            return Ok(None);
        }
        let takes = Takes { joins: true, carried: false };
        let Some(input) = segment_wise(aggregate.input(), takes)? else { return Ok(None) };
        let Some(scan) = scan_below(&input) else { return Ok(None) };
        if scan.rows() == 0 || is_single && scan.groups.len() != 1 {
            return Ok(None);
        }
        let over_segments = |mode| -> Result<Arc<dyn ExecutionPlan>> {
            Ok(Arc::new(AggregateExec::try_new(
                mode,
                aggregate.group_expr().clone(),
                aggregate.aggr_expr().to_vec(),
                aggregate.filter_expr().to_vec(),
                Arc::clone(&input),
                aggregate.input_schema(),
            )?))
        };
        let tables = tables(&input, scan)?;
        let text = text(aggregate, &tables);
        // A partial `min` or `max` has a filter of its own, under a number that is new each time.
        let named = over_segments(AggregateMode::Single)?;
        let fragment = self.fragment(&named, None, (text, &tables), scan, config)?;
        let Some(fragment) = fragment else { return Ok(None) };
        let partial = over_segments(AggregateMode::Partial)?;
        let reuse = Arc::new(PartialReuseExec::new(partial, fragment));
        if !is_single {
            return Ok(Some(reuse));
        }
        Ok(Some(Arc::new(AggregateExec::try_new(
            AggregateMode::Final,
            aggregate.group_expr().as_final(),
            aggregate.aggr_expr().to_vec(),
            vec![None; aggregate.aggr_expr().len()],
            reuse,
            aggregate.input_schema(),
        )?)))
    }

    /// First rows: those of each segment are stored, and sorted again.
    fn store_first(
        &self,
        sort: &SortExec,
        config: &ConfigOptions,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let is_small = sort.fetch().is_some_and(|rows| rows <= FIRST_ROWS_MAX);
        if !is_small || !sort.expr().iter().all(|key| is_same(&key.expr)) {
            return Ok(None);
        }
        let takes = Takes { joins: false, carried: false };
        let Some(input) = segment_wise(sort.input(), takes)? else { return Ok(None) };
        let Some(scan) = scan_below(&input) else { return Ok(None) };
        let is_alone = !sort.preserve_partitioning() && scan.groups.len() != 1;
        if scan.rows() == 0 || is_alone || !is_worth_sorting(sort, scan, &input)? {
            return Ok(None);
        }
        let first = |input| {
            let first = SortExec::new(sort.expr().clone(), input).with_fetch(sort.fetch());
            Arc::new(first.with_preserve_partitioning(sort.preserve_partitioning()))
        };
        let rows = sort.fetch().unwrap_or_default();
        // By itself such a sort has a filter of its own, under a number that is new each time.
        let all: Arc<dyn ExecutionPlan> =
            Arc::new(SortExec::new(sort.expr().clone(), Arc::clone(&input)));
        let tables = tables(&input, scan)?;
        let text = format!("first {rows} of {tables} by {}", sort.expr());
        let Some(fragment) = self.fragment(&all, Some(rows), (text, &tables), scan, config)? else {
            return Ok(None);
        };
        let partial: Arc<dyn ExecutionPlan> = first(Arc::clone(&input));
        let reuse = PartialReuseExec::new(partial, fragment);
        Ok(Some(first(Arc::new(reuse))))
    }

    /// Names what `partial` computes over a segment, and how many of its rows are taken. `None` if it cannot be
    /// written down.
    fn fragment(
        &self,
        partial: &Arc<dyn ExecutionPlan>,
        fetch: Option<usize>,
        (text, tables): (String, &str),
        scan: &PartitionScanExec,
        config: &ConfigOptions,
    ) -> Result<Option<Arc<Fragment>>> {
        let rows = format!("{fetch:?} ");
        let name = name_of(partial, &rows, scan, &self.functions, config)?;
        let Some(id) = name.map(FragmentId) else { return Ok(None) };
        let (shape, pattern) = (shape(partial)?, pattern(partial, tables)?);
        Ok(Some(Arc::new(Fragment { id, shape, text: text.into(), pattern })))
    }
}

/// Whether the first rows of each segment spare more than what a sort tells the scan below it. A sort by a
/// column leaves out rows before functions are called on them, and segments before they are opened; a sort by
/// a function leaves out nothing, and one over segments that hold rows of the whole range nearly nothing.
fn is_worth_sorting(
    sort: &SortExec,
    scan: &PartitionScanExec,
    input: &Arc<dyn ExecutionPlan>,
) -> Result<bool> {
    if contains_storable(&over_table(&sort.expr().first().expr, input)?) {
        return Ok(true);
    }
    let below = sort.input();
    let leaves_out = scan_below(below).is_none_or(|scan| !scan.dynamic.is_empty());
    Ok(!leaves_out && !scan.has_function_work())
}

/// What names the answer of `plan`, which reads one table by `scan`: the plan without its segments, with the
/// versions of its functions, `more`, and the settings that change results. `None` if it cannot be written
/// down.
pub(in crate::query) fn name_of(
    plan: &Arc<dyn ExecutionPlan>,
    more: &str,
    scan: &PartitionScanExec,
    functions: &Arc<Functions>,
    config: &ConfigOptions,
) -> Result<Option<u128>> {
    let plan = without_segments(plan, scan)?;
    let codec = ScanCodec::new(Arc::clone(functions), None);
    let Ok(node) = PhysicalPlanNode::try_from_physical_plan(plan, &codec) else {
        return Ok(None);
    };
    let mut hash = blake3::Hasher::new();
    hash.update(&node.encode_to_vec());
    hash.update(more.as_bytes());
    hash.update(settings_of_results(config).as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    Ok(Some(u128::from_be_bytes(id)))
}

/// The states that an exchange takes, if the order in which they are merged may show.
fn inexact_states(node: &Arc<dyn ExecutionPlan>) -> Option<&PartialReuseExec> {
    if !node.is::<RepartitionExec>() && !node.is::<CoalescePartitionsExec>() {
        return None;
    }
    let is_exact = |field: &Arc<Field>| {
        let data_type = field.data_type();
        !data_type.is_floating() && !data_type.is_nested()
    };
    let partial = node.children()[0].downcast_ref::<PartialReuseExec>()?;
    (!partial.schema().fields().iter().all(is_exact)).then_some(partial)
}

/// An aggregate that merges states of several nodes in an order that is always the same, if it may show.
fn in_same_order(aggregate: &AggregateExec) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let merges = matches!(aggregate.mode(), AggregateMode::Final | AggregateMode::FinalPartitioned);
    if !merges || inexact_states(aggregate.input()).is_none() {
        return Ok(None);
    }
    let new = AggregateExec::try_new(
        *aggregate.mode(),
        aggregate.group_expr().clone(),
        aggregate.aggr_expr().to_vec(),
        aggregate.filter_expr().to_vec(),
        Arc::new(SameOrderExec::new(Arc::clone(aggregate.input()))),
        aggregate.input_schema(),
    )?;
    Ok(Some(Arc::new(new.with_limit_options(aggregate.limit_options()))))
}

/// An exchange that takes states in turn, if the order in which they are merged may show.
fn in_turn(node: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(partial) = inexact_states(node) else { return Ok(None) };
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    let ordered = Arc::new(partial.clone().in_turn());
    Arc::clone(node).replace_children(vec![ordered], options).map(Some)
}

/// The table that `scan` reads, and those that it is joined with.
fn tables(plan: &Arc<dyn ExecutionPlan>, scan: &PartitionScanExec) -> Result<String> {
    let mut text = scan.table.name.to_string();
    plan.apply(|node| {
        let other = node.downcast_ref::<PartitionScanExec>();
        if let Some(other) = other.filter(|other| !std::ptr::eq(*other, scan)) {
            text.push_str(" with ");
            text.push_str(&other.table.name);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(text)
}

fn text(aggregate: &AggregateExec, tables: &str) -> String {
    let names: Vec<&str> = aggregate.aggr_expr().iter().map(|expr| expr.name()).collect();
    let groups: Vec<&str> =
        aggregate.group_expr().expr().iter().map(|(_, name)| name.as_str()).collect();
    let by = if groups.is_empty() { String::new() } else { format!(" by {}", groups.join(", ")) };
    format!("{} of {tables}{by}", names.join(", "))
}
