//! A rule that mends plans that are wrong, node by node from the leaves up.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;

pub(super) type Plan = Arc<dyn ExecutionPlan>;

/// The rule.
#[derive(Debug)]
pub(super) struct Mend {
    name: &'static str,
    node: fn(&Plan) -> Result<Option<Plan>>,
}

impl Mend {
    /// A rule that puts what `node` makes of a node in its place; `None` leaves it as it is.
    pub(super) fn new(name: &'static str, node: fn(&Plan) -> Result<Option<Plan>>) -> Arc<Self> {
        Arc::new(Self { name, node })
    }
}

impl PhysicalOptimizerRule for Mend {
    fn name(&self) -> &str {
        self.name
    }

    fn schema_check(&self) -> bool {
        true
    }

    fn optimize(&self, plan: Plan, _config: &ConfigOptions) -> Result<Plan> {
        plan.transform_up(|node| {
            let mended = (self.node)(&node)?;
            Ok(mended.map_or_else(|| Transformed::no(node), Transformed::yes))
        })
        .data()
    }
}
