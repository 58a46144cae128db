//! Puts a [`PartialReuseExec`] above partial aggregates whose state over a segment may be stored.
//!
//! Before: `AggregateExec(Partial)` over filters, projections and round-robin over `PartitionScanExec`.
//! After: `PartialReuseExec` over `AggregateExec(Partial)` over filters and projections over the scan;
//! an `AggregateExec(Single)` is taken apart into a partial and a final one first.
//!
//! What it must not change: the rows that are aggregated, and which function is called on which row.
//!
//! Counter-examples: `SELECT g FROM t GROUP BY g LIMIT 2` aggregates only until it has two groups, and a
//! filter that a join fills in while the query runs leaves rows out that the next query needs: the state
//! of neither stands for its segment.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::functions_aggregate::all_default_aggregate_functions;
use datafusion::logical_expr::{AggregateUDF, Volatility};
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::{ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions};
use datafusion_proto::physical_plan::AsExecutionPlan;
use datafusion_proto::protobuf::PhysicalPlanNode;
use foreshard_policy::ids::FragmentId;
use foreshard_udfs::Functions;
use prost::Message;

use crate::query::codec::ScanCodec;
use crate::query::functions::{contains_dynamic_filter, is_immutable};
use crate::query::options::{SessionOptions, settings_of_results};
use crate::query::partial::{PartialReuseExec, scan_below, with_scan};
use crate::query::scan::{PartitionScanExec, ScanTable};

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
    fn is_storable(&self, aggregate: &AggregateExec) -> bool {
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

/// Whether `expr` gives the same for the same row in every query.
fn is_same(expr: &Arc<dyn PhysicalExpr>) -> bool {
    is_immutable(expr) && !contains_dynamic_filter(expr)
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
        plan.transform_up(|node| match node.downcast_ref::<AggregateExec>() {
            Some(aggregate) => match self.store(aggregate, config)? {
                Some(new) => Ok(Transformed::yes(new)),
                None => Ok(Transformed::no(node)),
            },
            None => Ok(Transformed::no(node)),
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
        let Some(input) = segment_wise(aggregate.input())? else { return Ok(None) };
        let Some(scan) = scan_below(&input) else { return Ok(None) };
        if scan.rows() == 0 || is_single && scan.groups.len() != 1 {
            return Ok(None);
        }
        let partial = AggregateExec::try_new(
            AggregateMode::Partial,
            aggregate.group_expr().clone(),
            aggregate.aggr_expr().to_vec(),
            aggregate.filter_expr().to_vec(),
            Arc::clone(&input),
            aggregate.input_schema(),
        )?;
        let partial = Arc::new(partial) as Arc<dyn ExecutionPlan>;
        let Some(fragment) = self.fragment(&partial, scan, config)? else { return Ok(None) };
        let text = text(aggregate, &scan.table.name);
        let reuse = Arc::new(PartialReuseExec::new(partial, fragment, text.into()));
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

    /// Names what `partial` computes over a segment: the plan without its segments, with the versions of
    /// its functions, and the settings that change results. `None` if it cannot be written down.
    fn fragment(
        &self,
        partial: &Arc<dyn ExecutionPlan>,
        scan: &PartitionScanExec,
        config: &ConfigOptions,
    ) -> Result<Option<FragmentId>> {
        let table = ScanTable { version: 0, statistics: None, ..scan.table.as_ref().clone() };
        let mut blank = scan.with_groups(vec![vec![]])?;
        blank.table = Arc::new(table);
        let plan = with_scan(partial, &blank)?;
        let codec = ScanCodec::new(Arc::clone(&self.functions), None);
        let Ok(node) = PhysicalPlanNode::try_from_physical_plan(plan, &codec) else {
            return Ok(None);
        };
        let mut hash = blake3::Hasher::new();
        hash.update(&node.encode_to_vec());
        hash.update(settings_of_results(config).as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hash.finalize().as_bytes()[..16]);
        Ok(Some(FragmentId(u128::from_be_bytes(id))))
    }
}

fn text(aggregate: &AggregateExec, table: &str) -> String {
    let names: Vec<&str> = aggregate.aggr_expr().iter().map(|expr| expr.name()).collect();
    let groups: Vec<&str> =
        aggregate.group_expr().expr().iter().map(|(_, name)| name.as_str()).collect();
    let by = if groups.is_empty() { String::new() } else { format!(" by {}", groups.join(", ")) };
    format!("{} of {table}{by}", names.join(", "))
}

/// `plan` as it can be run over single segments: filters and projections over a scan, without what only
/// deals rows out. `None` if there is anything else.
fn segment_wise(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if let Some(scan) = plan.downcast_ref::<PartitionScanExec>() {
        let outputs = scan.outputs.iter().map(|output| &output.expr);
        let is_whole = scan.fetch.is_none() && scan.filters.iter().chain(outputs).all(is_same);
        return Ok(is_whole.then(|| Arc::clone(plan)));
    }
    let is_dealing = plan.downcast_ref::<RepartitionExec>().is_some_and(|repartition| {
        matches!(repartition.partitioning(), Partitioning::RoundRobinBatch(_))
    });
    if is_dealing || plan.is::<CooperativeExec>() {
        return segment_wise(plan.children()[0]);
    }
    let is_kept = match (plan.downcast_ref::<FilterExec>(), plan.downcast_ref::<ProjectionExec>()) {
        (Some(filter), _) => filter.fetch().is_none() && is_same(filter.predicate()),
        (_, Some(projection)) => projection.expr().iter().all(|output| is_same(&output.expr)),
        _ => false,
    };
    if !is_kept {
        return Ok(None);
    }
    let child = plan.children()[0];
    let Some(new) = segment_wise(child)? else { return Ok(None) };
    if Arc::ptr_eq(child, &new) {
        return Ok(Some(Arc::clone(plan)));
    }
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    Arc::clone(plan).replace_children(vec![new], options).map(Some)
}
