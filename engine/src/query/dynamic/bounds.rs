//! Whether a segment can hold a row that passes a filter, by the smallest and largest values of its
//! columns. Cheap enough to ask for each segment each time the filter changes: nothing is built for it.

use std::cmp::Ordering;
use std::sync::Arc;

use datafusion::common::ScalarValue;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{
    BinaryExpr, CaseExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, Literal,
};
use datafusion::physical_expr::utils::collect_columns;
use foreshard_actors::segment::{ColumnRange, Segment};

use crate::query::scan::ScanSegment;

/// Whether `segment` may hold a row for which `filter`, over columns of the table, is true. What is not
/// understood may be true.
pub(in crate::query) fn may_pass(filter: &Arc<dyn PhysicalExpr>, segment: &Segment) -> bool {
    if let Some(binary) = filter.downcast_ref::<BinaryExpr>() {
        let (left, right) = (binary.left(), binary.right());
        return match binary.op() {
            Operator::And => may_pass(left, segment) && may_pass(right, segment),
            Operator::Or => may_pass(left, segment) || may_pass(right, segment),
            op => match (range_of(left, segment), right.downcast_ref::<Literal>()) {
                (Some(range), Some(literal)) => {
                    may_compare(range, segment.rows, *op, literal.value())
                }
                _ => true,
            },
        };
    }
    if let Some(case) = filter.downcast_ref::<CaseExpr>() {
        let branches = case.when_then_expr().iter().map(|(_, then)| then);
        return branches.chain(case.else_expr()).any(|branch| may_pass(branch, segment));
    }
    if let Some(is_null) = filter.downcast_ref::<IsNullExpr>() {
        let nulls = range_of(is_null.arg(), segment).and_then(|range| range.nulls);
        return nulls != Some(0);
    }
    if let Some(is_not_null) = filter.downcast_ref::<IsNotNullExpr>() {
        let nulls = range_of(is_not_null.arg(), segment).and_then(|range| range.nulls);
        return nulls != Some(segment.rows);
    }
    if let Some(list) = filter.downcast_ref::<InListExpr>() {
        let Some(range) = range_of(list.expr(), segment).filter(|_| !list.negated()) else {
            return true;
        };
        return list.list().iter().any(|value| match value.downcast_ref::<Literal>() {
            Some(literal) => may_compare(range, segment.rows, Operator::Eq, literal.value()),
            None => true,
        });
    }
    match filter.downcast_ref::<Literal>() {
        Some(literal) => *literal.value() != ScalarValue::Boolean(Some(false)),
        None => true,
    }
}

/// What is known of `expr` in the segment, if it is a column.
fn range_of<'a>(expr: &Arc<dyn PhysicalExpr>, segment: &'a Segment) -> Option<&'a ColumnRange> {
    segment.columns.get(expr.downcast_ref::<Column>()?.index())
}

/// Whether a value within `range` may compare so with `value`.
fn may_compare(range: &ColumnRange, rows: u64, op: Operator, value: &ScalarValue) -> bool {
    use Operator::{Eq, Gt, GtEq, Lt, LtEq};
    if !matches!(op, Eq | Gt | GtEq | Lt | LtEq) {
        return true;
    }
    // A comparison with NULL is never true.
    if value.is_null() || range.nulls == Some(rows) {
        return false;
    }
    let may = |bound: &Option<ScalarValue>, is: fn(Ordering) -> bool| {
        let order = bound.as_ref().and_then(|bound| bound.partial_cmp(value));
        order.is_none_or(is)
    };
    match op {
        Gt => may(&range.max, Ordering::is_gt),
        GtEq => may(&range.max, Ordering::is_ge),
        Lt => may(&range.min, Ordering::is_lt),
        LtEq => may(&range.min, Ordering::is_le),
        _ => may(&range.min, Ordering::is_le) && may(&range.max, Ordering::is_ge),
    }
}

/// The column that a top-k sorts by first, and whether it wants the largest values; `None` as long as the
/// filter tells nothing, or if it is a join's.
pub(in crate::query) fn first_bound(filter: &Arc<dyn PhysicalExpr>) -> Option<(usize, bool)> {
    let binary = filter.downcast_ref::<BinaryExpr>()?;
    match binary.op() {
        Operator::And | Operator::Or => {
            first_bound(binary.left()).or_else(|| first_bound(binary.right()))
        }
        op @ (Operator::Gt | Operator::Lt) => {
            let column = binary.left().downcast_ref::<Column>()?;
            Some((column.index(), *op == Operator::Gt))
        }
        _ => None,
    }
}

/// Whether two of the segments have no value of a column of `filter` in common: else a filter hardly ever
/// leaves one out.
pub(in crate::query) fn tells_apart(
    filter: &Arc<dyn PhysicalExpr>,
    groups: &[Vec<ScanSegment>],
) -> bool {
    let order = |a: &&ScalarValue, b: &&ScalarValue| a.partial_cmp(b).unwrap_or(Ordering::Equal);
    collect_columns(filter).iter().any(|column| {
        let ranges = || {
            let segments = groups.iter().flatten();
            segments.filter_map(|scan| scan.segment.columns.get(column.index()))
        };
        let highest = ranges().filter_map(|range| range.min.as_ref()).max_by(order);
        let lowest = ranges().filter_map(|range| range.max.as_ref()).min_by(order);
        matches!((highest, lowest), (Some(highest), Some(lowest)) if highest > lowest)
    })
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, BooleanArray, Int64Array, RecordBatch};
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::physical_expr::expressions::{case, col, in_list, is_not_null, is_null, lit};
    use foreshard_actors::segment::Location;
    use foreshard_policy::ids::SegmentId;

    use super::*;

    fn schema() -> Schema {
        Schema::new(vec![Field::new("x", DataType::Int64, true)])
    }

    fn segment(values: &[Option<i64>]) -> Segment {
        let bound = |bound: Option<i64>| bound.map(|bound| ScalarValue::Int64(Some(bound)));
        let range = ColumnRange {
            min: bound(values.iter().flatten().min().copied()),
            max: bound(values.iter().flatten().max().copied()),
            nulls: Some(values.iter().filter(|value| value.is_none()).count() as u64),
        };
        Segment {
            id: SegmentId(1),
            partition: 0,
            rows: values.len() as u64,
            bytes: 0,
            columns: vec![range],
            location: Location::Memory,
            pinned: None,
        }
    }

    fn passes(filter: &Arc<dyn PhysicalExpr>, values: &[Option<i64>]) -> bool {
        let column = Arc::new(Int64Array::from(values.to_vec()));
        let batch = RecordBatch::try_new(Arc::new(schema()), vec![column]).unwrap();
        let mask = filter.evaluate(&batch).unwrap().into_array(values.len()).unwrap();
        let mask: &BooleanArray = mask.as_boolean();
        mask.iter().any(|passes| passes == Some(true))
    }

    fn x() -> Arc<dyn PhysicalExpr> {
        col("x", &schema()).unwrap()
    }

    fn x_is(op: Operator, value: Option<i64>) -> Arc<dyn PhysicalExpr> {
        Arc::new(BinaryExpr::new(x(), op, lit(ScalarValue::Int64(value))))
    }

    /// One condition each of all kinds that a dynamic filter has, and of some that it has not.
    fn conditions() -> Vec<Arc<dyn PhysicalExpr>> {
        use Operator::{Eq, Gt, GtEq, IsDistinctFrom, Lt, LtEq, NotEq};
        let values = [None, Some(1), Some(2), Some(3)];
        let ops = [Eq, Gt, GtEq, Lt, LtEq, NotEq, IsDistinctFrom];
        let compared = ops.into_iter().flat_map(|op| values.map(|value| x_is(op, value)));
        let listed = [vec![None, Some(2)], vec![Some(0), Some(4)]].into_iter().flat_map(|list| {
            let list: Vec<_> =
                list.into_iter().map(|value| lit(ScalarValue::Int64(value))).collect();
            [false, true].map(|negated| in_list(x(), list.clone(), &negated, &schema()).unwrap())
        });
        let others = [is_null(x()).unwrap(), is_not_null(x()).unwrap(), lit(true), lit(false)];
        compared.chain(listed).chain(others).collect()
    }

    #[test]
    fn no_segment_with_a_row_that_passes_is_left_out() {
        let segments: [&[Option<i64>]; 7] = [
            &[None],
            &[Some(1)],
            &[Some(2), None],
            &[Some(1), Some(3)],
            &[Some(3), Some(4), Some(2)],
            &[None, Some(0), Some(4)],
            &[Some(5), Some(6)],
        ];
        let check = |filter: &Arc<dyn PhysicalExpr>| {
            for values in segments.into_iter().filter(|values| passes(filter, values)) {
                let known = segment(values);
                assert!(may_pass(filter, &known), "{filter}: {values:?}");
                assert!(may_pass(filter, &Segment { columns: vec![], ..known }), "{filter}");
            }
        };
        let conditions = conditions();
        for one in &conditions {
            for other in &conditions {
                for op in [Operator::And, Operator::Or] {
                    check(
                        &(Arc::new(BinaryExpr::new(Arc::clone(one), op, Arc::clone(other))) as _),
                    );
                }
                let branches = vec![(x_is(Operator::Gt, Some(2)), Arc::clone(one))];
                check(&case(None, branches, Some(Arc::clone(other))).unwrap());
            }
        }
    }

    #[test]
    fn segments_beyond_a_bound_are_left_out() {
        let (low, nulls) = (segment(&[Some(1), None, Some(3)]), segment(&[None, None]));
        for (op, value, expected) in [
            (Operator::Gt, 2, true),
            (Operator::Gt, 3, false),
            (Operator::GtEq, 3, true),
            (Operator::Lt, 2, true),
            (Operator::Lt, 1, false),
            (Operator::LtEq, 1, true),
            (Operator::Eq, 0, false),
            (Operator::Eq, 2, true),
            (Operator::Eq, 4, false),
        ] {
            assert_eq!(may_pass(&x_is(op, Some(value)), &low), expected, "{op} {value}");
            assert!(!may_pass(&x_is(op, Some(value)), &nulls), "{op} {value}");
        }
        assert!(!may_pass(&x_is(Operator::Gt, None), &low));
        assert!(!may_pass(&is_not_null(x()).unwrap(), &nulls));
    }

    #[test]
    fn the_first_bound_of_a_top_k_is_that_of_its_first_key() {
        let or = |left, right| -> Arc<dyn PhysicalExpr> {
            Arc::new(BinaryExpr::new(left, Operator::Or, right))
        };
        let down = or(is_null(x()).unwrap(), x_is(Operator::Gt, Some(3)));
        assert_eq!(first_bound(&or(down, x_is(Operator::Eq, Some(3)))), Some((0, true)));
        assert_eq!(first_bound(&x_is(Operator::Lt, Some(3))), Some((0, false)));
        assert_eq!(first_bound(&x_is(Operator::GtEq, Some(3))), None);
        assert_eq!(first_bound(&lit(true)), None);
    }
}
