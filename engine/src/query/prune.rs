//! Leaves out partitions and segments that cannot hold a matching row: partitions by key, segments by
//! their smallest and largest values.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use datafusion::catalog::Session;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, DFSchema, Result, ScalarValue};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use foreshard_actors::segment::{ColumnRange, Segment};
use foreshard_actors::table::Snapshot;

/// The segments of `snapshot` that may hold a row for which all `filters` are true.
///
/// # Errors
/// If a filter cannot be planned.
pub fn prune(
    session: &dyn Session,
    snapshot: &Snapshot,
    filters: &[Expr],
) -> Result<Vec<Arc<Segment>>> {
    let segments: Vec<Arc<Segment>> = snapshot.segments().cloned().collect();
    let Some(filter) = conjunction(filters.to_vec()) else { return Ok(segments) };
    if segments.is_empty() {
        return Ok(segments);
    }
    let schema = &snapshot.table.schema;
    let planned =
        session.create_physical_expr(filter, &DFSchema::try_from(schema.as_ref().clone())?)?;
    // A predicate that pruning cannot use is no error: everything stays.
    let builder = PruningPredicateBuilder::new().with_file_schema(Arc::clone(schema));
    let Some(predicate) = builder.build(planned) else { return Ok(segments) };
    let kept = predicate.prune(&Statistics { snapshot, segments: &segments })?;
    Ok(segments
        .into_iter()
        .zip(kept)
        .filter(|(_, keep)| *keep)
        .map(|(segment, _)| segment)
        .collect())
}

struct Statistics<'a> {
    snapshot: &'a Snapshot,
    segments: &'a [Arc<Segment>],
}

impl Statistics<'_> {
    fn ranges(&self, column: &Column) -> Option<Vec<Option<&ColumnRange>>> {
        let index = self.snapshot.table.schema.index_of(column.name()).ok()?;
        Some(self.segments.iter().map(|segment| segment.columns.get(index)).collect())
    }

    fn bound(
        &self,
        column: &Column,
        bound: impl Fn(&ColumnRange) -> Option<&ScalarValue>,
    ) -> Option<ArrayRef> {
        let data_type =
            self.snapshot.table.schema.field_with_name(column.name()).ok()?.data_type().clone();
        let unknown = ScalarValue::try_from(&data_type).ok()?;
        let values = self.ranges(column)?.into_iter().map(|range| {
            let value = range.and_then(&bound).cloned();
            let is_usable = |value: &ScalarValue| value.data_type() == data_type && !is_zero(value);
            value.filter(is_usable).unwrap_or_else(|| unknown.clone())
        });
        ScalarValue::iter_to_array(values).ok()
    }
}

/// Whether a bound is a zero of floats. There are two, which are equal to one operator and not to another,
/// so pruning by them would change answers.
fn is_zero(value: &ScalarValue) -> bool {
    match value {
        ScalarValue::Float16(Some(value)) => value.to_f32() == 0.0,
        ScalarValue::Float32(Some(value)) => *value == 0.0,
        ScalarValue::Float64(Some(value)) => *value == 0.0,
        _ => false,
    }
}

impl PruningStatistics for Statistics<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bound(column, |range| range.min.as_ref())
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bound(column, |range| range.max.as_ref())
    }

    fn num_containers(&self) -> usize {
        self.segments.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let nulls = self.ranges(column)?;
        let nulls = nulls.into_iter().map(|range| range.and_then(|range| range.nulls));
        Some(Arc::new(nulls.collect::<UInt64Array>()))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(
            self.segments.iter().map(|segment| Some(segment.rows)).collect::<UInt64Array>(),
        ))
    }

    /// Hash partitions: a segment of another partition holds none of the values.
    fn contained(&self, column: &Column, values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        let Snapshot { table, layout, .. } = self.snapshot;
        if layout.key_columns() != [column.name()] {
            return None;
        }
        let data_type = table.schema.field_with_name(column.name()).ok()?.data_type();
        let owners: Option<HashSet<u32>> =
            values.iter().map(|value| layout.owner_of(data_type, value)).collect();
        let owners = owners?;
        let holds =
            |segment: &Arc<Segment>| (!owners.contains(&segment.partition)).then_some(false);
        Some(self.segments.iter().map(holds).collect())
    }
}
