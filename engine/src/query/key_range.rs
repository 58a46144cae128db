//! Which range of the partition key a query asks for: what its filters say of it, all taken together.
//!
//! `k >= 10 AND k < 20`, `k BETWEEN 10 AND 19` and `k IN (10, 17)` are ranges; what is said otherwise is not
//! looked at, so a range may be wider than what is read, and never narrower.

use std::cmp::Ordering;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{Between, BinaryExpr, Expr, Operator};
use foreshard_policy::key_ranges::{Edge, KeyRange};

/// A place before or after all rows with a key.
#[derive(Clone)]
struct Place {
    key: ScalarValue,
    is_after: bool,
}

impl Place {
    fn cmp(&self, other: &Self) -> Option<Ordering> {
        let keys = self.key.partial_cmp(&other.key)?;
        Some(keys.then(self.is_after.cmp(&other.is_after)))
    }

    fn edge(self) -> Option<Edge> {
        match self.key.cast_to(&DataType::Utf8).ok()? {
            ScalarValue::Utf8(Some(key)) => Some(Edge { key, is_after: self.is_after }),
            _ => None,
        }
    }
}

#[derive(Default)]
struct Range {
    from: Option<Place>,
    to: Option<Place>,
}

impl Range {
    fn narrow(&mut self, other: Self) {
        let is = |a: &Option<Place>, b: &Place, order| {
            a.as_ref().is_none_or(|a| b.cmp(a) == Some(order))
        };
        if let Some(from) = other.from.filter(|from| is(&self.from, from, Ordering::Greater)) {
            self.from = Some(from);
        }
        if let Some(to) = other.to.filter(|to| is(&self.to, to, Ordering::Less)) {
            self.to = Some(to);
        }
    }
}

/// The range of `column` that rows must be in for all `filters` to hold; all keys if they say nothing of it.
pub(crate) fn asked(filters: &[Expr], column: &str, data_type: &DataType) -> KeyRange {
    let mut range = Range::default();
    filters.iter().for_each(|filter| add(&mut range, filter, column, data_type));
    KeyRange { from: range.from.and_then(Place::edge), to: range.to.and_then(Place::edge) }
}

fn add(range: &mut Range, filter: &Expr, column: &str, data_type: &DataType) {
    let is_key = |expr: &Expr| matches!(expr, Expr::Column(found) if found.name == column);
    let key = |expr: &Expr| match expr {
        Expr::Literal(value, _) if !value.is_null() => value.cast_to(data_type).ok(),
        _ => None,
    };
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            add(range, left, column, data_type);
            add(range, right, column, data_type);
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let compared = match (is_key(left), is_key(right)) {
                (true, false) => key(right).map(|key| (Some(*op), key)),
                (false, true) => key(left).map(|key| (op.swap(), key)),
                _ => None,
            };
            if let Some((Some(op), key)) = compared {
                range.narrow(side(op, key));
            }
        }
        Expr::Between(Between { expr, negated: false, low, high }) if is_key(expr) => {
            if let (Some(low), Some(high)) = (key(low), key(high)) {
                range.narrow(side(Operator::GtEq, low));
                range.narrow(side(Operator::LtEq, high));
            }
        }
        Expr::InList(InList { expr, list, negated: false }) if is_key(expr) => {
            let keys: Option<Vec<ScalarValue>> = list.iter().map(key).collect();
            let mut keys = keys.unwrap_or_default();
            keys.sort_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
            if let (Some(low), Some(high)) = (keys.first(), keys.last()) {
                range.narrow(side(Operator::GtEq, low.clone()));
                range.narrow(side(Operator::LtEq, high.clone()));
            }
        }
        _ => {}
    }
}

/// The keys for which a comparison with `key` holds.
fn side(op: Operator, key: ScalarValue) -> Range {
    let at = |is_after| Some(Place { key: key.clone(), is_after });
    match op {
        Operator::Eq => Range { from: at(false), to: at(true) },
        Operator::Gt => Range { from: at(true), to: None },
        Operator::GtEq => Range { from: at(false), to: None },
        Operator::Lt => Range { from: None, to: at(false) },
        Operator::LtEq => Range { from: None, to: at(true) },
        _ => Range::default(),
    }
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::{col, lit};

    use super::*;

    fn text(filters: &[Expr]) -> String {
        let range = asked(filters, "k", &DataType::Int64);
        let edge = |edge: Option<Edge>| match edge {
            None => "..".to_owned(),
            Some(Edge { key, is_after }) => format!("{}{key}", if is_after { ">" } else { "<" }),
        };
        format!("{} {}", edge(range.from), edge(range.to))
    }

    #[test]
    fn what_all_filters_say_of_the_key_is_one_range() {
        assert_eq!(text(&[col("k").gt_eq(lit(10_i64)), col("k").lt(lit(20_i64))]), "<10 <20");
        assert_eq!(text(&[col("k").gt(lit(10_i64)).and(lit(30).gt_eq(col("k")))]), ">10 >30");
        assert_eq!(text(&[col("k").eq(lit(7_i32))]), "<7 >7");
        assert_eq!(text(&[col("k").between(lit(5_i64), lit(9_i64)), col("k").lt(lit(7))]), "<5 <7");
        let list = vec![lit(9_i64), lit(2_i64), lit(5_i64)];
        assert_eq!(text(&[col("k").in_list(list.clone(), false)]), "<2 >9");
        // What says nothing of the key, or not in so many words, narrows nothing.
        let others = [
            col("v").lt(lit(3)),
            col("k").in_list(list, true),
            col("k").not_eq(lit(3)),
            col("k").lt(lit(3)).or(col("v").lt(lit(3))),
            col("k").lt(lit(ScalarValue::Int64(None))),
            col("k").lt(col("v")),
        ];
        assert_eq!(text(&others), ".. ..");
    }
}
