//! Brings rows into one partition by collecting them, not by a hash with one value.
//!
//! Before: `RepartitionExec(Hash([k], 1))`, which DataFusion plans for `target_partitions = 1` where rows
//! lie in several partitions. After: `CoalescePartitionsExec`.
//!
//! What makes it necessary: a shuffle by hash is spread over as many tasks as there are nodes. What is above
//! it and counts on one partition, such as a window over all rows, would see a part of them in each.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::physical_expr::Partitioning;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::repartition::RepartitionExec;

/// The rule.
#[derive(Debug, Default)]
pub struct CollectIntoOne;

impl PhysicalOptimizerRule for CollectIntoOne {
    fn name(&self) -> &str {
        "collect_into_one"
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
            let input = node.downcast_ref::<RepartitionExec>().filter(|exchange| {
                matches!(exchange.partitioning(), Partitioning::Hash(_, 1))
                    && !exchange.preserve_order()
            });
            Ok(match input.map(|exchange| Arc::clone(exchange.input())) {
                Some(input) => Transformed::yes(Arc::new(CoalescePartitionsExec::new(input))),
                None => Transformed::no(node),
            })
        })
        .data()
    }
}
