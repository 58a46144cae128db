//! Values of an output as bytes: two Arrow IPC streams, the values and, if not all rows have one, which do.

use std::io::Cursor;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;

use crate::partition::OutputValues;

/// The bytes of `values`, as they are: packed ones stay packed.
///
/// # Errors
/// If Arrow cannot write a type.
pub(super) fn encode(values: &OutputValues) -> Result<Vec<u8>, ArrowError> {
    let mut bytes = Vec::with_capacity(usize::try_from(values.bytes()).unwrap_or(0));
    write(&mut bytes, values.raw())?;
    if let Some(known) = values.known() {
        let known: ArrayRef = std::sync::Arc::new(BooleanArray::from(known.clone()));
        write(&mut bytes, &known)?;
    }
    Ok(bytes)
}

/// The values behind `bytes`; `None` unless they are what [`encode`] made of values that were packed or
/// not, as `is_packed` says.
///
/// # Errors
/// If the bytes are no Arrow IPC streams.
pub(super) fn decode(bytes: &[u8], is_packed: bool) -> Result<Option<OutputValues>, ArrowError> {
    let mut rest = Cursor::new(bytes);
    let Some(values) = read(&mut rest)? else { return Ok(None) };
    let known = match rest.position() < bytes.len() as u64 {
        true => read(&mut rest)?,
        false => None,
    };
    let known = match &known {
        None => None,
        Some(known) => match known.as_boolean_opt() {
            Some(known) => Some(known.values().clone()),
            None => return Ok(None),
        },
    };
    Ok(OutputValues::of_raw(known, values, is_packed))
}

fn write(bytes: &mut Vec<u8>, column: &ArrayRef) -> Result<(), ArrowError> {
    let batch = RecordBatch::try_from_iter_with_nullable([("value", column.clone(), true)])?;
    let mut writer = StreamWriter::try_new(bytes, batch.schema_ref())?;
    writer.write(&batch)?;
    writer.finish()
}

fn read(bytes: &mut Cursor<&[u8]>) -> Result<Option<ArrayRef>, ArrowError> {
    let mut reader = StreamReader::try_new(bytes, None)?;
    let batch = reader.next().transpose()?;
    // The mark at the end of the stream.
    if reader.next().is_some() {
        return Ok(None);
    }
    Ok(batch.filter(|batch| batch.num_columns() == 1).map(|batch| batch.column(0).clone()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Array, Int64Array, ListArray, NullArray, StringArray, StringViewArray};
    use arrow::buffer::BooleanBuffer;
    use arrow::datatypes::Int64Type;
    use proptest::prelude::*;

    use super::*;

    fn comes_back(values: &OutputValues) {
        let bytes = encode(values).unwrap();
        let back = decode(&bytes, values.is_packed()).unwrap().unwrap();
        assert_eq!(back.known(), values.known());
        assert_eq!(back.rows(), values.rows());
        assert_eq!(back.values().unwrap().to_data(), values.values().unwrap().to_data());
    }

    #[test]
    fn values_of_every_shape_come_back_as_they_were() {
        let texts = || (0..1_000).map(|row| (row % 7 > 0).then(|| format!("text {}", row % 9)));
        let lists = (0..1_000).map(|row| (row % 3 > 0).then(|| vec![Some(row), None]));
        let columns: [ArrayRef; 5] = [
            Arc::new((0..1_000).map(|row| (row % 5 > 0).then_some(row)).collect::<Int64Array>()),
            Arc::new(texts().collect::<StringArray>()),
            Arc::new(texts().collect::<StringViewArray>()),
            Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists)),
            Arc::new(NullArray::new(1_000)),
        ];
        for column in columns {
            let whole = OutputValues::whole(column.clone());
            comes_back(&whole);
            comes_back(&whole.clone().packed());
            comes_back(&whole.slice(333, 77));
            let known: BooleanBuffer = (0..1_000).map(|row| row % 3 == 1).collect();
            let some = whole.select(Some(&known)).unwrap().values;
            let some = OutputValues::of_rows(known, some).unwrap();
            comes_back(&some);
            comes_back(&some.clone().packed());
            comes_back(&some.slice(501, 99));
        }
        comes_back(&OutputValues::whole(Arc::new(Int64Array::from(Vec::<i64>::new()))));
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_output_are_refused_and_nothing_panics(
            noise in prop::collection::vec(any::<u8>(), 0..600),
            at in 0usize..2_000,
        ) {
            drop(decode(&noise, false));
            let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..100));
            let known: BooleanBuffer = (0..200).map(|row| row % 2 == 0).collect();
            let bytes = encode(&OutputValues::of_rows(known, column).unwrap()).unwrap();
            let cut = &bytes[..at.min(bytes.len() - 1)];
            if let Ok(Some(values)) = decode(cut, false) {
                // Only the mask was cut off, or the mark at its end: the caller compares the lengths.
                prop_assert!([100, 200].contains(&values.rows()), "{} rows", values.rows());
                prop_assert_eq!(values.rows_known(), 100);
            }
        }
    }
}
