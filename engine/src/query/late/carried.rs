//! What a scan hands on of a call that is evaluated above it: one column with, for each row, its number,
//! whether its value is known, and the value.

use std::any::Any;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, StructArray, UInt64Array};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, UInt64Type};
use datafusion::common::cast::{as_boolean_array, as_primitive_array};
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;

/// The number of a row among all rows of a scan: its segment's number, and its number in the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::query) struct RowNumber(u64);

impl RowNumber {
    pub(in crate::query) fn new(segment: u32, row: u32) -> Self {
        Self(u64::from(segment) << 32 | u64::from(row))
    }

    pub(in crate::query) fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(in crate::query) fn row(self) -> u32 {
        self.0 as u32
    }
}

/// Stands in a scan's outputs for a call that the scan does not evaluate. The scan alone knows the
/// values: [`evaluate`](PhysicalExpr::evaluate) is an error.
#[derive(Debug)]
pub struct Carried {
    /// The call, over the columns of the table.
    pub call: Arc<dyn PhysicalExpr>,
}

impl Carried {
    /// The column for these rows of one segment. `known` says which of them have a value; the others'
    /// values are NULL.
    pub(in crate::query) fn column(
        segment: u32,
        rows: impl Iterator<Item = u32>,
        known: BooleanBuffer,
        values: ArrayRef,
    ) -> Result<ArrayRef> {
        let rows = rows.map(|row| RowNumber::new(segment, row).0);
        let rows: ArrayRef = Arc::new(UInt64Array::from_iter_values(rows));
        let known: ArrayRef = Arc::new(BooleanArray::new(known, None));
        let fields = fields(values.data_type());
        Ok(Arc::new(StructArray::try_new(fields, vec![rows, known, values], None)?))
    }
}

/// The three columns of a carried column.
pub(in crate::query) struct CarriedColumn<'a> {
    column: &'a StructArray,
    rows: &'a UInt64Array,
    known: &'a BooleanArray,
}

impl<'a> CarriedColumn<'a> {
    pub(in crate::query) fn of(column: &'a ArrayRef) -> Result<Self> {
        let Some(column) = column.as_any().downcast_ref::<StructArray>() else {
            return internal_err!("a carried column is a {}", column.data_type());
        };
        let rows = as_primitive_array::<UInt64Type>(column.column(0))?;
        Ok(Self { column, rows, known: as_boolean_array(column.column(1))? })
    }

    /// Number of the row at a position; `None` where a join made the row up.
    pub(in crate::query) fn row(&self, position: usize) -> Option<RowNumber> {
        self.column.is_valid(position).then(|| RowNumber(self.rows.value(position)))
    }

    /// Whether the value of the row is known.
    pub(in crate::query) fn is_known(&self, position: usize) -> bool {
        self.column.is_valid(position) && self.known.value(position)
    }

    /// The values.
    pub(in crate::query) fn values(&self) -> &'a ArrayRef {
        self.column.column(2)
    }
}

fn fields(value: &DataType) -> Fields {
    Fields::from(vec![
        Field::new("row", DataType::UInt64, false),
        Field::new("known", DataType::Boolean, false),
        Field::new("value", value.clone(), true),
    ])
}

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what is known of {}", self.call)
    }
}

impl PartialEq for Carried {
    fn eq(&self, other: &Self) -> bool {
        self.call.eq(&other.call)
    }
}

impl Eq for Carried {}

impl Hash for Carried {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.type_id().hash(state);
        self.call.hash(state);
    }
}

impl PhysicalExpr for Carried {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        Ok(DataType::Struct(fields(&self.call.data_type(schema)?)))
    }

    fn nullable(&self, _schema: &Schema) -> Result<bool> {
        Ok(false)
    }

    fn return_field(&self, schema: &Schema) -> Result<FieldRef> {
        Ok(Arc::new(Field::new("carried", self.data_type(schema)?, false)))
    }

    fn evaluate(&self, _batch: &RecordBatch) -> Result<ColumnarValue> {
        internal_err!("only a scan evaluates {self}")
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.call]
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        let Ok([call]) = <[_; 1]>::try_from(children) else {
            return internal_err!("what is carried is one call");
        };
        Ok(Arc::new(Self { call }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
