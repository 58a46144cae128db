//! What fragments have in common that differ in their literals only.
//!
//! A dashboard asks for another day each day, and an analyst for another threshold each time: the state of
//! each is found by its own name, and what is expected of the next one is learned from all of them.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, ScalarValue};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Literal;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use foreshard_policy::ids::ShapeId;

use crate::query::scan::PartitionScanExec;

/// The shape of a fragment: its nodes, tables, functions and expressions, whatever their literals.
pub(super) fn shape(plan: &Arc<dyn ExecutionPlan>) -> Result<ShapeId> {
    let mut hash = blake3::Hasher::new();
    plan.apply(|node| {
        add(&mut hash, node.name());
        if let Some(scan) = node.downcast_ref::<PartitionScanExec>() {
            add(&mut hash, &scan.table.name);
        }
        if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
            aggregate.aggr_expr().iter().for_each(|expr| add(&mut hash, expr.fun().name()));
        }
        node.apply_expressions(&mut |expr| {
            add(&mut hash, &without_literals(expr)?.to_string());
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    let mut id = [0; 16];
    id.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    Ok(ShapeId(u128::from_be_bytes(id)))
}

/// Two texts that follow each other are not one.
fn add(hash: &mut blake3::Hasher, text: &str) {
    hash.update(&text.len().to_le_bytes());
    hash.update(text.as_bytes());
}

fn without_literals(expr: &Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
    let blank = Arc::clone(expr).transform_up(|node| {
        Ok(match node.downcast_ref::<Literal>() {
            Some(literal) => {
                let none = ScalarValue::try_from(literal.value().data_type())?;
                Transformed::yes(Arc::new(Literal::new(none)) as Arc<dyn PhysicalExpr>)
            }
            None => Transformed::no(node),
        })
    });
    blank.data()
}
