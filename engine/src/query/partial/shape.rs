//! What fragments have in common that differ in their literals only.
//!
//! A dashboard asks for another day each day, and an analyst for another threshold each time: the state of
//! each is found by its own name, and what is expected of the next one is learned from all of them.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, ScalarValue};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, Literal, UnKnownColumn};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use foreshard_policy::ids::ShapeId;

use crate::query::partial::fragment::over_table;
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

/// Characters of a pattern; what is longer ends in dots.
const PATTERN_CHARS_MAX: usize = 160;

/// What the fragments of a shape over `tables` are, for people.
pub(super) fn pattern(plan: &Arc<dyn ExecutionPlan>, tables: &str) -> Result<Arc<str>> {
    let (mut what, mut by, mut conditions) = (vec![], vec![], vec![]);
    plan.apply(|node| {
        let below = node.children().first().copied();
        if let (Some(aggregate), Some(input)) = (node.downcast_ref::<AggregateExec>(), below) {
            for expr in aggregate.aggr_expr() {
                let of = texts(expr.expressions().iter(), input)?.join(", ");
                let distinct = if expr.is_distinct() { "DISTINCT " } else { "" };
                what.push(format!("{}({distinct}{of})", expr.fun().name()));
            }
            by.extend(texts(aggregate.group_expr().expr().iter().map(|(expr, _)| expr), input)?);
        }
        if let (Some(sort), Some(input)) = (node.downcast_ref::<SortExec>(), below) {
            what.push("first rows".to_owned());
            by.extend(texts(sort.expr().iter().map(|key| &key.expr), input)?);
        }
        if let Some(filter) = node.downcast_ref::<FilterExec>() {
            conditions.extend(texts(std::iter::once(filter.predicate()), filter.input())?);
        }
        if let Some(scan) = node.downcast_ref::<PartitionScanExec>() {
            let filters = scan.filters.iter();
            conditions.extend(filters.map(text).collect::<Result<Vec<_>>>()?);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let part = |word: &str, of: &[String], between: &str| match of {
        [] => String::new(),
        of => format!(" {word} {}", of.join(between)),
    };
    let (what, by) = (what.join(", "), part("by", &by, ", "));
    let mut text = format!("{what} of {tables}{by}{}", part("where", &conditions, " AND "));
    if let Some((end, _)) = text.char_indices().nth(PATTERN_CHARS_MAX) {
        text.truncate(end);
        text.push_str("..");
    }
    Ok(text.into())
}

/// Expressions over what `input` gives, as texts over the columns of the table.
fn texts<'a>(
    exprs: impl Iterator<Item = &'a Arc<dyn PhysicalExpr>>,
    input: &Arc<dyn ExecutionPlan>,
) -> Result<Vec<String>> {
    exprs.map(|expr| text(&over_table(expr, input)?)).collect()
}

/// With a question mark for each literal.
fn text(expr: &Arc<dyn PhysicalExpr>) -> Result<String> {
    // It can be read and not run.
    let name = |name: &str| -> Arc<dyn PhysicalExpr> { Arc::new(UnKnownColumn::new(name)) };
    let blank = Arc::clone(expr).transform_up(|node| {
        Ok(match (node.is::<Literal>(), node.downcast_ref::<Column>()) {
            (true, _) => Transformed::yes(name("?")),
            (_, Some(column)) => Transformed::yes(name(column.name())),
            _ => Transformed::no(node),
        })
    });
    let blank = blank.data().or_else(|_no_name_may_stand_there| without_literals(expr));
    Ok(blank?.to_string())
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
