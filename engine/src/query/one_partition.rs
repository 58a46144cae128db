//! Brings rows into one partition by collecting them, not by a hash with one value.
//!
//! Before: `RepartitionExec(Hash([k], 1))`, which DataFusion plans for `target_partitions = 1` where rows
//! lie in several partitions. After: `CoalescePartitionsExec`.
//!
//! What makes it necessary: a shuffle by hash is spread over as many tasks as there are nodes. What is above
//! it and counts on one partition, such as a window over all rows, would see a part of them in each.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::physical_expr::Partitioning;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::repartition::RepartitionExec;

use crate::query::mend::Plan;

/// What an exchange by a hash with one value becomes.
pub(super) fn mended(node: &Plan) -> Result<Option<Plan>> {
    let exchange = node.downcast_ref::<RepartitionExec>().filter(|exchange| {
        matches!(exchange.partitioning(), Partitioning::Hash(_, 1)) && !exchange.preserve_order()
    });
    let input = exchange.map(|exchange| Arc::clone(exchange.input()));
    Ok(input.map(|input| Arc::new(CoalescePartitionsExec::new(input)) as Plan))
}
