//! Columns by name, one after the other, for tables that are made of a list of things.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, RecordBatch, RecordBatchOptions, StringArray,
    TimestampMillisecondArray, UInt64Array,
};
use arrow::datatypes::{Field, Schema};
use arrow::error::ArrowError;

/// A table under construction. All columns must be of the same length.
#[derive(Debug, Default)]
pub(crate) struct Sheet {
    fields: Vec<Field>,
    columns: Vec<ArrayRef>,
    rows: usize,
}

impl Sheet {
    fn column(mut self, name: &str, values: ArrayRef) -> Self {
        self.rows = values.len();
        self.fields.push(Field::new(name, values.data_type().clone(), true));
        self.columns.push(values);
        self
    }

    /// A column of text.
    pub(crate) fn text<T: ToString>(self, name: &str, values: impl Iterator<Item = T>) -> Self {
        let values = values.map(|value| Some(value.to_string()));
        self.column(name, Arc::new(values.collect::<StringArray>()))
    }

    /// A column of text that may be absent.
    pub(crate) fn text_or_null(
        self,
        name: &str,
        values: impl Iterator<Item = Option<String>>,
    ) -> Self {
        self.column(name, Arc::new(values.collect::<StringArray>()))
    }

    /// A column of whole numbers.
    pub(crate) fn count(self, name: &str, values: impl Iterator<Item = u64>) -> Self {
        self.column(name, Arc::new(UInt64Array::from_iter_values(values)))
    }

    /// A column of whole numbers that may be absent.
    pub(crate) fn count_or_null(
        self,
        name: &str,
        values: impl Iterator<Item = Option<u64>>,
    ) -> Self {
        self.column(name, Arc::new(values.collect::<UInt64Array>()))
    }

    /// A column of numbers.
    pub(crate) fn number(self, name: &str, values: impl Iterator<Item = f64>) -> Self {
        self.column(name, Arc::new(Float64Array::from_iter_values(values)))
    }

    /// A column of numbers that may be absent.
    pub(crate) fn number_or_null(
        self,
        name: &str,
        values: impl Iterator<Item = Option<f64>>,
    ) -> Self {
        self.column(name, Arc::new(values.collect::<Float64Array>()))
    }

    /// A column of yes and no.
    pub(crate) fn flag(self, name: &str, values: impl Iterator<Item = bool>) -> Self {
        self.column(name, Arc::new(values.map(Some).collect::<BooleanArray>()))
    }

    /// A column of moments, given in milliseconds since the Unix epoch.
    pub(crate) fn moment(self, name: &str, values: impl Iterator<Item = u64>) -> Self {
        let values = values.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX));
        let values = TimestampMillisecondArray::from_iter_values(values).with_timezone("UTC");
        self.column(name, Arc::new(values))
    }

    /// The table.
    pub(crate) fn finish(self) -> Result<RecordBatch, ArrowError> {
        let schema = Arc::new(Schema::new(self.fields));
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        RecordBatch::try_new_with_options(schema, self.columns, &options)
    }
}
