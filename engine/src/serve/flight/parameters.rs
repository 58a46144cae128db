//! Parameters of a prepared statement as they come in a Flight stream.

use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use datafusion::common::ScalarValue;
use futures::{Stream, StreamExt, TryStreamExt};
use tonic::Status;

use super::statements::Open;
use crate::error::EngineError;

/// Rows of parameters that may be bound at once.
const ROWS_MAX: usize = 10_000;

/// The schema of the parameters of `statement`; all may be NULL.
pub(super) fn schema(statement: &Open) -> Schema {
    let parameters = statement.prepared.parameters().iter();
    let fields = parameters.map(|(name, kind)| Field::new(name, kind.clone(), true));
    Schema::new(fields.collect::<Vec<_>>())
}

/// Reads the rows of parameters in `stream`, cast to the types that `statement` takes. There are none
/// if the stream has no batches.
pub(super) async fn read<S>(
    stream: S,
    statement: &Open,
) -> Result<Vec<Vec<ScalarValue>>, EngineError>
where
    S: Stream<Item = Result<FlightData, Status>> + Send + 'static,
{
    // The first message of an update without parameters has a descriptor and no data.
    let data = stream
        .try_filter(|message| std::future::ready(!message.data_header.is_empty()))
        .map_err(|status| FlightError::Tonic(Box::new(status)));
    let mut batches = FlightRecordBatchStream::new_from_flight_data(data);
    let mut rows = Vec::new();
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(|error| EngineError::Request {
            reason: format!("the parameters cannot be read: {error}"),
        })?;
        if rows.len() + batch.num_rows() > ROWS_MAX {
            return Err(EngineError::TooMany { what: "rows of parameters", max: ROWS_MAX });
        }
        let kinds: Vec<_> = statement.kinds().cloned().collect();
        append(&batch, &kinds, &mut rows)?;
    }
    Ok(rows)
}

fn append(
    batch: &RecordBatch,
    kinds: &[DataType],
    rows: &mut Vec<Vec<ScalarValue>>,
) -> Result<(), EngineError> {
    if batch.num_columns() != kinds.len() {
        let (expected, given) = (kinds.len(), batch.num_columns());
        return Err(EngineError::ParameterCount { expected, given });
    }
    for row in 0..batch.num_rows() {
        let values = kinds.iter().zip(batch.columns()).enumerate();
        let values = values.map(|(at, (kind, column))| {
            let value = ScalarValue::try_from_array(column, row)?;
            value.cast_to(kind).map_err(|_| EngineError::Parameter {
                index: at + 1,
                reason: format!("is {value} of type {}; it must be {kind}", column.data_type()),
            })
        });
        rows.push(values.collect::<Result<_, EngineError>>()?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int32Array, StringArray};

    use super::*;

    #[test]
    fn parameters_are_cast_to_what_the_statement_takes_or_refused_by_position() {
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1, 2]));
        let names: ArrayRef = Arc::new(StringArray::from(vec!["x", "y"]));
        let batch = RecordBatch::try_from_iter([("$1", numbers), ("$2", names)]).unwrap();
        let mut rows = Vec::new();
        append(&batch, &[DataType::Int64, DataType::Utf8View], &mut rows).unwrap();
        assert_eq!(rows[1], [ScalarValue::from(2_i64), ScalarValue::Utf8View(Some("y".into()))]);

        let wrong = append(&batch, &[DataType::Int64, DataType::Float64], &mut rows).unwrap_err();
        assert_eq!(
            wrong.line(),
            "error[FS-SQL-10]: parameter $2 is x of type Utf8; it must be Float64"
        );
        let few = append(&batch, &[DataType::Int64], &mut rows).unwrap_err();
        assert_eq!(few.to_string(), "the statement takes 1 parameters and 2 were given");
    }
}
