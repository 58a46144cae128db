//! Stored outputs on their way from one process to another: they follow their partition.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::common::{Result, exec_datafusion_err};
use foreshard_actors::partition::OutputValues;
use prost::Message;

use super::{ExpressionMessage, PartitionMessage};

/// Asks for the values of one stored output.
#[derive(Clone, PartialEq, Message)]
pub struct OutputRequest {
    /// Where.
    #[prost(message, optional, tag = "1")]
    pub partition: Option<PartitionMessage>,
    /// The expression.
    #[prost(bytes = "vec", tag = "2")]
    pub expression: Vec<u8>,
    /// The segment.
    #[prost(bytes = "vec", tag = "3")]
    pub segment: Vec<u8>,
}

/// The values, if they are held.
#[derive(Clone, PartialEq, Message)]
pub struct OutputReply {
    /// They.
    #[prost(message, optional, tag = "1")]
    pub values: Option<ValuesMessage>,
}

/// Store these values of an expression, which another node computed.
#[derive(Clone, PartialEq, Message)]
pub struct AdoptRequest {
    /// Where.
    #[prost(message, optional, tag = "1")]
    pub partition: Option<PartitionMessage>,
    /// The expression.
    #[prost(message, optional, tag = "2")]
    pub expression: Option<ExpressionMessage>,
    /// Nanoseconds that one evaluation takes.
    #[prost(uint64, tag = "3")]
    pub ns_per_evaluation: u64,
    /// The segment.
    #[prost(bytes = "vec", tag = "4")]
    pub segment: Vec<u8>,
    /// The values.
    #[prost(message, optional, tag = "5")]
    pub values: Option<ValuesMessage>,
}

/// Values of some or all rows of a segment.
#[derive(Clone, PartialEq, Message)]
pub struct ValuesMessage {
    /// Rows of the segment.
    #[prost(uint64, tag = "1")]
    pub rows: u64,
    /// Which of them have a value, a bit for each, the lowest first.
    #[prost(bytes = "vec", tag = "2")]
    pub known: Vec<u8>,
    /// Their values: one column, as an Arrow IPC stream.
    #[prost(bytes = "vec", tag = "3")]
    pub values: Vec<u8>,
}

impl ValuesMessage {
    pub(crate) fn new(values: &OutputValues) -> Result<Self> {
        let rows = values.rows();
        let known = values.known().cloned().unwrap_or_else(|| BooleanBuffer::new_set(rows));
        let batch = RecordBatch::try_from_iter_with_nullable([("value", values.values()?, true)])?;
        let mut bytes = vec![];
        let mut writer = StreamWriter::try_new(&mut bytes, batch.schema_ref())?;
        writer.write(&batch)?;
        writer.finish()?;
        drop(writer);
        // A copy, because the bits may begin within a byte.
        let bits: BooleanBuffer = known.iter().collect();
        let known = bits.inner().as_slice().to_vec();
        Ok(Self { rows: rows as u64, known, values: bytes })
    }

    pub(crate) fn values(&self) -> Result<OutputValues> {
        let rows = usize::try_from(self.rows).unwrap_or(usize::MAX);
        if self.known.len() != rows.div_ceil(8) {
            let bytes = self.known.len();
            return Err(exec_datafusion_err!("{bytes} bytes of bits came for {rows} rows"));
        }
        let known = BooleanBuffer::new(self.known.clone().into(), 0, rows);
        let batch = StreamReader::try_new(Cursor::new(&self.values), None)?.next().transpose()?;
        let batch = batch.filter(|batch| batch.num_columns() == 1);
        let batch = batch.ok_or_else(|| exec_datafusion_err!("an output came without values"))?;
        let values: ArrayRef = Arc::clone(batch.column(0));
        let (count, given) = (known.count_set_bits(), values.len());
        OutputValues::of_rows(known, values)
            .ok_or_else(|| exec_datafusion_err!("{given} values came for {count} rows"))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, StringArray};

    use super::*;

    fn stored(known: &[bool]) -> OutputValues {
        let count = known.iter().filter(|known| **known).count();
        let texts = (0..count).map(|row| (row % 3 > 0).then(|| format!("text {}", row % 5)));
        let values: ArrayRef = Arc::new(texts.collect::<StringArray>());
        OutputValues::of_rows(known.iter().copied().collect(), values).unwrap().packed()
    }

    #[test]
    fn values_arrive_for_the_rows_they_were_sent_for() {
        for known in [vec![], vec![true; 77], (0..1_003).map(|row| row % 3 == 1).collect()] {
            let sent = stored(&known);
            let arrived = ValuesMessage::new(&sent).unwrap().values().unwrap();
            assert_eq!(arrived.known(), sent.known());
            assert_eq!(arrived.values().unwrap().to_data(), sent.values().unwrap().to_data());
            let part = sent.slice(known.len() / 3, known.len() / 2);
            let arrived = ValuesMessage::new(&part).unwrap().values().unwrap();
            assert_eq!(arrived.known(), part.known(), "bits that begin within a byte");
        }
    }

    #[test]
    fn a_message_that_contradicts_itself_is_refused() {
        let sent = ValuesMessage::new(&stored(&[true, false, true])).unwrap();
        for (change, named) in [
            (ValuesMessage { rows: 900, ..sent.clone() }, "900 rows"),
            (ValuesMessage { known: vec![1], ..sent.clone() }, "2 values came for 1 rows"),
            (ValuesMessage { values: vec![], ..sent }, ""),
        ] {
            let error = change.values().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
