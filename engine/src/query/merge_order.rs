//! Sorts each partition by all keys that the partitions are then merged by.
//!
//! Before: `SortPreservingMergeExec[a, b]` over `SortExec[b]`. After: the same over `SortExec[a, b]`.
//!
//! What makes it necessary: DataFusion leaves a key out of a sort where it takes it for constant. It takes
//! for constant what is not: `f(x)` where `x = 0.0`, which -0.0 passes too, a column of the outer side of a
//! join that was filtered by `a = 1`, a group that is NULL in another grouping set. The merge compares the
//! key nevertheless, and what comes out is in no order, or are other rows if there is a LIMIT.
//!
//! Where the key is constant the rows stay as they are.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::physical_expr::PhysicalSortExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::{ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions};

/// The rule.
#[derive(Debug, Default)]
pub struct SortAsMerged;

impl PhysicalOptimizerRule for SortAsMerged {
    fn name(&self) -> &str {
        "sort_as_merged"
    }

    fn schema_check(&self) -> bool {
        true
    }

    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let Some(sorted) = node.downcast_ref().and_then(sorted) else {
                return Ok(Transformed::no(node));
            };
            let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
            node.replace_children(vec![sorted], options).map(Transformed::yes)
        })
        .data()
    }
}

/// The sort below `merge` by all of its keys, if it is by some of them only.
fn sorted(merge: &SortPreservingMergeExec) -> Option<Arc<dyn ExecutionPlan>> {
    let sort = merge.input().downcast_ref::<SortExec>()?;
    let mut of_merge = merge.expr().iter();
    let is_there = |key: &PhysicalSortExpr| of_merge.any(|of_merge| of_merge == key);
    if sort.expr().len() >= merge.expr().len() || !sort.expr().iter().all(is_there) {
        return None;
    }
    let sorted = SortExec::new(merge.expr().clone(), Arc::clone(sort.input()))
        .with_preserve_partitioning(sort.preserve_partitioning())
        .with_fetch(sort.fetch());
    Some(Arc::new(sorted))
}
