//! Plans a query for one node where it cannot be spread over several.
//!
//! A node that the codec does not know fails while its stage is sent, and nobody tells those who wait for
//! that stage: the query would hang. So the whole plan is encoded once here, and planned anew without
//! boundaries if that fails. Three more things do not travel: a scalar sub-query that no rule turned into a
//! join (below ORDER BY, in an aggregate), because its value is computed beside the plan, a literal of type
//! Float16, which arrives as a Float32, and a recursive query, which asks for the same stage in each round.
//! If there is one node, nobody else is asked.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::execution::SessionState;
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion_distributed::{DistributedLeafExec, MaybeEncoded, NetworkBoundaryExt};

use crate::query::context::QueryContext;

/// Asks the distributed planner first.
pub struct OneNodeIfNeeded {
    distributed: Arc<dyn QueryPlanner + Send + Sync>,
}

impl fmt::Debug for OneNodeIfNeeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OneNodeIfNeeded")
    }
}

impl OneNodeIfNeeded {
    /// This planner, in front of the distributed one.
    #[must_use]
    pub fn in_front_of(distributed: Arc<dyn QueryPlanner + Send + Sync>) -> Self {
        Self { distributed }
    }
}

#[async_trait]
impl QueryPlanner for OneNodeIfNeeded {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let local = DefaultPhysicalPlanner::default();
        let Some(state) = session.as_any().downcast_ref::<SessionState>() else {
            return local.create_physical_plan(plan, session).await;
        };
        let stays = stays(plan)?;
        if stays.subquery {
            let mut state = state.clone();
            let options = state.config_mut().options_mut();
            options.optimizer.enable_physical_uncorrelated_scalar_subquery = true;
            return local.create_physical_plan(plan, &state).await;
        }
        let query = state.config().get_extension::<QueryContext>();
        let is_only_node = query.is_some_and(|query| query.placement.nodes.len() == 1);
        if stays.literal || is_only_node {
            return local.create_physical_plan(plan, session).await;
        }
        let planned = self.distributed.create_physical_plan(plan, session).await?;
        match check_sendable(&planned, state) {
            Ok(()) => Ok(planned),
            Err(error) => {
                tracing::debug!(%error, "a plan stays on one node");
                local.create_physical_plan(plan, session).await
            }
        }
    }
}

/// What a logical plan has that does not travel.
#[derive(Clone, Copy, Default)]
struct Stays {
    subquery: bool,
    literal: bool,
}

fn stays(plan: &LogicalPlan) -> Result<Stays> {
    let mut stays = Stays::default();
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                match expr {
                    Expr::ScalarSubquery(_) => stays.subquery = true,
                    Expr::Literal(ScalarValue::Float16(_), _) => stays.literal = true,
                    _ => {}
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(stays)
}

/// Encodes what is below the topmost boundaries, as the first task of each stage would get it.
fn check_sendable(plan: &Arc<dyn ExecutionPlan>, state: &SessionState) -> Result<()> {
    if plan.is::<RecursiveQueryExec>() && plan.exists(|node| Ok(node.is_network_boundary()))? {
        return internal_err!("a stage can be asked for once, and a recursive query asks again");
    }
    if plan.is_network_boundary() {
        let task = Arc::clone(plan).transform_down(|node| {
            let leaf = node.downcast_ref::<DistributedLeafExec>();
            let first = leaf.and_then(|leaf| leaf.variants().first().cloned());
            Ok(first.map_or_else(|| Transformed::no(node), Transformed::yes))
        });
        return MaybeEncoded::Decoded(task.data()?).encode(&state.task_ctx()).map(drop);
    }
    plan.children().into_iter().try_for_each(|child| check_sendable(child, state))
}
