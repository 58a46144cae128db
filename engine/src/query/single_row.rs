//! Makes a scalar sub-query that gives several rows an error, on any number of nodes.
//!
//! Plain DataFusion evaluates such a sub-query beside the plan and counts its rows. That does not travel
//! to other nodes, so the distributed planner turns it into a join, which would answer with every row.
//!
//! Before: `(SELECT x FROM t)`. After: `(SELECT single_value(x) FROM t)`, an aggregate that takes one row.
//! Sub-queries that cannot give more (aggregates, LIMIT 1) stay as they are, and so do correlated ones:
//! DataFusion itself asks that they aggregate.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Field, FieldRef, UInt64Type};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Column, Result, ScalarValue, exec_err, internal_datafusion_err};
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Expr, LogicalPlan, LogicalPlanBuilder, Signature,
    Subquery, Volatility,
};
use datafusion::optimizer::AnalyzerRule;

/// The rule.
#[derive(Debug, Default)]
pub struct ScalarSubqueriesGiveOneRow;

impl AnalyzerRule for ScalarSubqueriesGiveOneRow {
    fn name(&self) -> &str {
        "scalar_subqueries_give_one_row"
    }

    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|node| {
            let names = NamePreserver::new(&node);
            let changed = node.map_expressions(|expr| {
                let name = names.save(&expr);
                let changed = expr.transform_up(|expr| match expr {
                    Expr::ScalarSubquery(subquery) if may_give_more(&subquery) => {
                        Ok(Transformed::yes(Expr::ScalarSubquery(checked(subquery)?)))
                    }
                    expr => Ok(Transformed::no(expr)),
                })?;
                Ok(changed.update_data(|expr| name.restore(expr)))
            })?;
            match changed.transformed {
                true => changed.map_data(LogicalPlan::recompute_schema),
                false => Ok(changed),
            }
        })
        .data()
    }
}

fn may_give_more(subquery: &Subquery) -> bool {
    subquery.outer_ref_columns.is_empty()
        && subquery.subquery.max_rows().is_none_or(|rows| rows > 1)
        && subquery.subquery.schema().fields().len() == 1
}

fn checked(subquery: Subquery) -> Result<Subquery> {
    let (qualifier, field) = subquery.subquery.schema().qualified_field(0);
    let name = field.name().clone();
    let value = Expr::Column(Column::new(qualifier.cloned(), &name));
    let value = single_value().call(vec![value]).alias(&name);
    let plan = LogicalPlanBuilder::from(subquery.subquery.as_ref().clone())
        .aggregate(Vec::<Expr>::new(), vec![value])?
        .build()?;
    Ok(subquery.with_plan(Arc::new(plan)))
}

/// The aggregate. Sessions and workers register it, so that it travels by name.
#[must_use]
pub fn single_value() -> AggregateUDF {
    AggregateUDF::from(SingleValue { signature: Signature::any(1, Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct SingleValue {
    signature: Signature,
}

impl AggregateUDFImpl for SingleValue {
    fn name(&self) -> &str {
        "single_value"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        let first = arguments.first().cloned();
        first.ok_or_else(|| internal_datafusion_err!("single_value has one argument"))
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let value = ScalarValue::try_from(args.return_field.data_type())?;
        Ok(Box::new(Single { value, rows: 0 }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let name = |part| format_state_name(args.name, part);
        let value = args.return_field.as_ref().clone().with_name(name("value"));
        let rows = Field::new(name("rows"), DataType::UInt64, false);
        Ok(vec![Arc::new(value.with_nullable(true)), Arc::new(rows)])
    }
}

/// The value of the only row so far.
#[derive(Debug)]
struct Single {
    value: ScalarValue,
    rows: u64,
}

impl Single {
    fn take(&mut self, values: &ArrayRef, position: usize, rows: u64) -> Result<()> {
        self.rows += rows;
        if self.rows > 1 {
            return exec_err!("Scalar subquery returned more than one row");
        }
        if rows == 1 {
            self.value = ScalarValue::try_from_array(values, position)?;
        }
        Ok(())
    }
}

impl Accumulator for Single {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        match values.first() {
            Some(values) => self.take(values, 0, values.len() as u64),
            None => Ok(()),
        }
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let [values, rows] = states else {
            return Err(internal_datafusion_err!("single_value has two fields of state"));
        };
        let rows = rows.as_primitive::<UInt64Type>().values();
        rows.iter().enumerate().try_for_each(|(at, rows)| self.take(values, at, *rows))
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(self.value.clone())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.value.clone(), ScalarValue::from(self.rows)])
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.value.size() - size_of_val(&self.value)
    }
}
