//! Stored outputs and states on their way from one process to another: they follow their partition.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::common::{Result, exec_datafusion_err};
use foreshard_actors::partition::{OutputValues, PartialOffer};
use foreshard_policy::ids::SegmentId;
use prost::Message;

use super::{ExpressionMessage, PartitionMessage, fingerprint, given};
use crate::query::codec::FragmentTicket;

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

/// Asks for one stored state.
#[derive(Clone, PartialEq, Message)]
pub struct StateRequest {
    /// Where.
    #[prost(message, optional, tag = "1")]
    pub partition: Option<PartitionMessage>,
    /// The fragment.
    #[prost(bytes = "vec", tag = "2")]
    pub fragment: Vec<u8>,
    /// The segment.
    #[prost(bytes = "vec", tag = "3")]
    pub segment: Vec<u8>,
}

/// The state, if it is held.
#[derive(Clone, PartialEq, Message)]
pub struct StateReply {
    /// It.
    #[prost(message, optional, tag = "1")]
    pub state: Option<StateMessage>,
}

/// Store this state, which another node computed.
#[derive(Clone, PartialEq, Message)]
pub struct AdoptStateRequest {
    /// Where.
    #[prost(message, optional, tag = "1")]
    pub partition: Option<PartitionMessage>,
    /// The state.
    #[prost(message, optional, tag = "2")]
    pub state: Option<StateMessage>,
}

/// The state of a fragment over one segment.
#[derive(Clone, PartialEq, Message)]
pub struct StateMessage {
    /// Of what.
    #[prost(message, optional, tag = "1")]
    pub fragment: Option<FragmentTicket>,
    /// The segment.
    #[prost(bytes = "vec", tag = "2")]
    pub segment: Vec<u8>,
    /// Nanoseconds that it took.
    #[prost(uint64, tag = "3")]
    pub ns: u64,
    /// The calls that were made for it, as JSON; empty if there were none.
    #[prost(bytes = "vec", tag = "4")]
    pub calls: Vec<u8>,
    /// Whether it was computed before a query asked for it.
    #[prost(bool, tag = "5")]
    pub is_ahead: bool,
    /// Its rows, as an Arrow IPC stream; empty if it has no batch.
    #[prost(bytes = "vec", tag = "6")]
    pub rows: Vec<u8>,
}

/// Batches of one schema as an Arrow IPC stream.
fn written(batches: &[RecordBatch]) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    let Some(first) = batches.first() else { return Ok(bytes) };
    let mut writer = StreamWriter::try_new(&mut bytes, first.schema_ref())?;
    batches.iter().try_for_each(|batch| writer.write(batch))?;
    writer.finish()?;
    drop(writer);
    Ok(bytes)
}

impl StateMessage {
    pub(crate) fn new(state: &PartialOffer) -> Result<Self> {
        let unwritable = |error| exec_datafusion_err!("calls cannot be written down: {error}");
        let calls = match state.calls.as_slice() {
            [] => vec![],
            calls => serde_json::to_vec(calls).map_err(unwritable)?,
        };
        Ok(Self {
            fragment: Some(state.fragment.as_ref().into()),
            segment: state.segment.0.to_be_bytes().to_vec(),
            ns: state.ns,
            calls,
            is_ahead: state.is_ahead,
            rows: written(&state.batches)?,
        })
    }

    /// The state. It comes without what computes the same over other segments.
    pub(crate) fn state(&self) -> Result<PartialOffer> {
        let unreadable = |error| exec_datafusion_err!("calls cannot be read: {error}");
        let calls = match self.calls.as_slice() {
            [] => vec![],
            json => serde_json::from_slice(json).map_err(unreadable)?,
        };
        let batches = match self.rows.as_slice() {
            [] => vec![],
            rows => StreamReader::try_new(Cursor::new(rows), None)?.collect::<Result<_, _>>()?,
        };
        Ok(PartialOffer {
            segment: SegmentId(fingerprint(&self.segment)?),
            fragment: given(self.fragment.as_ref(), "fragment")?.fragment()?,
            batches,
            ns: self.ns,
            calls,
            recipe: None,
            is_ahead: self.is_ahead,
        })
    }
}

impl ValuesMessage {
    pub(crate) fn new(values: &OutputValues) -> Result<Self> {
        let rows = values.rows();
        let known = values.known().cloned().unwrap_or_else(|| BooleanBuffer::new_set(rows));
        let batch = RecordBatch::try_from_iter_with_nullable([("value", values.values()?, true)])?;
        // A copy, because the bits may begin within a byte.
        let bits: BooleanBuffer = known.iter().collect();
        let known = bits.inner().as_slice().to_vec();
        Ok(Self { rows: rows as u64, known, values: written(&[batch])? })
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
