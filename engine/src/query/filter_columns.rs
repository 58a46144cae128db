//! Joins that are merged keep the columns that their filter reads, and take NULL in them.
//!
//! DataFusion's rule that pushes projections below a join forgets the filter of a `SortMergeJoinExec`: the
//! columns that only the filter reads are dropped below it, and the query panics or fails (`SELECT a.id
//! FROM t a JOIN t b ON a.id = b.id AND a.x <> b.x` with `prefer_hash_join = false`). While that rule looks at
//! the plan, such joins stand behind a node that lets no projection through.
//!
//! The filter of an outer join is also shown rows that found no partner, with NULL for its columns: it fails
//! where the column itself has none, unless its schema allows it.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::Schema;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err};
use datafusion::config::ConfigOptions;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::joins::SortMergeJoinExec;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};

use crate::query::mend::Plan;

/// Name of the rule that forgets filters.
const PUSHES: &str = "ProjectionPushdown";

type Rule = Arc<dyn PhysicalOptimizerRule + Send + Sync>;

/// The same rules, of which none forgets a filter.
pub(super) fn mended(rules: Vec<Rule>) -> Vec<Rule> {
    let one =
        |rule: Rule| -> Rule { if rule.name() == PUSHES { Arc::new(Fenced(rule)) } else { rule } };
    rules.into_iter().map(one).collect()
}

/// What a merge join becomes whose filter is told that there is no NULL.
pub(super) fn nullable(node: &Plan) -> Result<Option<Plan>> {
    let Some(join) = node.downcast_ref::<SortMergeJoinExec>() else { return Ok(None) };
    let Some(filter) = join.filter() else { return Ok(None) };
    let fields = filter.schema().fields();
    if fields.iter().all(|field| field.is_nullable()) {
        return Ok(None);
    }
    let fields: Vec<_> =
        fields.iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    let filter = JoinFilter::new(
        Arc::clone(filter.expression()),
        filter.column_indices().to_vec(),
        Arc::new(Schema::new(fields)),
    );
    Ok(Some(Arc::new(SortMergeJoinExec::try_new(
        Arc::clone(join.left()),
        Arc::clone(join.right()),
        join.on().to_vec(),
        Some(filter),
        join.join_type(),
        join.sort_options().to_vec(),
        join.null_equality(),
    )?)))
}

/// A rule that sees a fence in place of joins that it must not change.
#[derive(Debug)]
struct Fenced(Rule);

impl PhysicalOptimizerRule for Fenced {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn schema_check(&self) -> bool {
        self.0.schema_check()
    }

    fn optimize(&self, plan: Plan, config: &ConfigOptions) -> Result<Plan> {
        let has_filter = |node: &Plan| {
            let join = node.downcast_ref::<SortMergeJoinExec>();
            join.is_some_and(|join| join.filter().is_some())
        };
        if !plan.exists(|node| Ok(has_filter(node)))? {
            return self.0.optimize(plan, config);
        }
        let fenced = plan.transform_up(|node| {
            if !has_filter(&node) {
                return Ok(Transformed::no(node));
            }
            Ok(Transformed::yes(Arc::new(FenceExec { join: node }) as Plan))
        });
        let pushed = self.0.optimize(fenced.data()?, config)?;
        let open = pushed.transform_up(|node| {
            let join = node.downcast_ref::<FenceExec>().map(|fence| Arc::clone(&fence.join));
            Ok(join.map_or_else(|| Transformed::no(node), Transformed::yes))
        });
        open.data()
    }
}

/// A join that no projection gets through. It is never run.
#[derive(Debug)]
struct FenceExec {
    join: Plan,
}

impl DisplayAs for FenceExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FenceExec")
    }
}

impl ExecutionPlan for FenceExec {
    fn name(&self) -> &str {
        "FenceExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.join.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.join]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([join]) => Ok(Arc::new(Self { join })),
            Err(_) => internal_err!("FenceExec has one child"),
        }
    }

    fn execute(
        &self,
        _partition: usize,
        _context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        internal_err!("FenceExec stands in plans only while they are made")
    }
}
