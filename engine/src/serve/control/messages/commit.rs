//! What a commit means to the replicas that a node holds.

use arrow::buffer::{BooleanBuffer, Buffer};
use datafusion::common::{Result, exec_err};
use foreshard_actors::table::{Committed, Rewritten};
use foreshard_policy::ids::{PartitionId, SegmentId};
use prost::Message;

use super::{OpenRequest, fingerprint};

/// A commit changed the partitions that a node holds.
#[derive(Clone, PartialEq, Message)]
pub struct CommitMessage {
    /// The newest segments; one entry per partition that the node holds.
    #[prost(message, repeated, tag = "1")]
    pub partitions: Vec<OpenRequest>,
    /// New segments with rows that were there before.
    #[prost(message, repeated, tag = "2")]
    pub rewritten: Vec<RewrittenMessage>,
}

/// Where a new segment has its first rows from.
#[derive(Clone, PartialEq, Message)]
pub struct RewrittenMessage {
    /// The new segment.
    #[prost(bytes = "vec", tag = "1")]
    pub segment: Vec<u8>,
    /// Removed segments, one after the other.
    #[prost(message, repeated, tag = "2")]
    pub kept: Vec<KeptMessage>,
}

/// Which rows of a removed segment were kept.
#[derive(Clone, PartialEq, Message)]
pub struct KeptMessage {
    /// The segment.
    #[prost(bytes = "vec", tag = "1")]
    pub segment: Vec<u8>,
    /// Its rows.
    #[prost(uint64, tag = "2")]
    pub rows: u64,
    /// A bit for each, the lowest of a byte first.
    #[prost(bytes = "vec", tag = "3")]
    pub kept: Vec<u8>,
}

impl CommitMessage {
    /// What `change` means to these partitions.
    pub(crate) fn new(change: &Committed, held: &[PartitionId]) -> Self {
        let is_held = |rewritten: &&Rewritten| {
            let mut of_held =
                held.iter().filter_map(|id| change.snapshot.partitions.get(id.ordinal as usize));
            of_held.any(|segments| segments.iter().any(|new| new.id == rewritten.segment))
        };
        let open = |held| OpenRequest::new(held, &change.snapshot);
        Self {
            partitions: held.iter().map(open).collect(),
            rewritten: change.rewritten.iter().filter(is_held).map(Into::into).collect(),
        }
    }
}

impl From<&Rewritten> for RewrittenMessage {
    fn from(rewritten: &Rewritten) -> Self {
        let kept = rewritten.kept.iter().map(|(segment, kept)| KeptMessage {
            segment: segment.0.to_be_bytes().to_vec(),
            rows: kept.len() as u64,
            kept: kept.sliced().to_vec(),
        });
        Self { segment: rewritten.segment.0.to_be_bytes().to_vec(), kept: kept.collect() }
    }
}

impl RewrittenMessage {
    pub(crate) fn rewritten(self) -> Result<Rewritten> {
        let kept = self.kept.into_iter().map(|message| {
            let (bytes, rows) = (message.kept, message.rows);
            let Some(rows) =
                usize::try_from(rows).ok().filter(|rows| rows.div_ceil(8) <= bytes.len())
            else {
                return exec_err!(
                    "{} bytes say of {rows} rows whether they were kept",
                    bytes.len()
                );
            };
            let kept = BooleanBuffer::new(Buffer::from(bytes), 0, rows);
            Ok((SegmentId(fingerprint(&message.segment)?), kept))
        });
        let segment = SegmentId(fingerprint(&self.segment)?);
        Ok(Rewritten { segment, kept: kept.collect::<Result<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_rows_were_kept_arrives_as_it_was_sent() {
        let bits = |rows: std::ops::Range<usize>| rows.map(|row| row % 3 == 0).collect();
        let whole: BooleanBuffer = bits(0..100);
        let sent = Rewritten {
            segment: SegmentId(9),
            kept: vec![
                (SegmentId(1), whole.slice(13, 70)),
                (SegmentId(2), bits(0..0)),
                (SegmentId(3), bits(0..8)),
            ],
        };
        let arrived = RewrittenMessage::from(&sent).rewritten().unwrap();
        assert_eq!((arrived.segment, &arrived.kept), (sent.segment, &sent.kept));
    }

    #[test]
    fn too_few_bits_are_an_error() {
        let kept = KeptMessage { segment: vec![0; 16], rows: 17, kept: vec![0; 2] };
        let message = RewrittenMessage { segment: vec![0; 16], kept: vec![kept] };
        let error = message.rewritten().unwrap_err().to_string();
        assert!(error.contains("2 bytes say of 17 rows"), "{error}");
    }
}
