//! What a node reports of the replicas that it holds.

use datafusion::common::Result;
use foreshard_actors::partition::Sign;
use foreshard_actors::pins::Pinned;
use foreshard_policy::ids::{ExpressionId, SegmentId};
use prost::Message;

use super::{PartitionMessage, RowsMessage, fingerprint, given};
use crate::cluster::{HeldOutput, HeldPartial};
use crate::query::codec::FragmentTicket;

/// One replica as its node holds it.
#[derive(Clone, PartialEq, Message)]
pub struct ReplicaMessage {
    /// Of what.
    #[prost(message, optional, tag = "1")]
    pub partition: Option<PartitionMessage>,
    /// Number of segments.
    #[prost(uint64, tag = "2")]
    pub segments: u64,
    /// Of these, with rows in memory.
    #[prost(uint64, tag = "3")]
    pub resident: u64,
    /// Stored outputs.
    #[prost(message, repeated, tag = "4")]
    pub outputs: Vec<OutputMessage>,
    /// Stored states of partial aggregates.
    #[prost(message, repeated, tag = "5")]
    pub partials: Vec<PartialMessage>,
    /// What it has of rows that are in files; none if none are.
    #[prost(message, optional, tag = "6")]
    pub rows: Option<RowsMessage>,
}

/// What people want kept.
#[derive(Clone, PartialEq, Message)]
pub struct PinsMessage {
    /// Tables, with all that is stored for them.
    #[prost(string, repeated, tag = "1")]
    pub tables: Vec<String>,
    /// Expressions.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub expressions: Vec<Vec<u8>>,
}

impl PinsMessage {
    pub(crate) fn new(pinned: &Pinned) -> Self {
        let tables = pinned.tables.iter().map(ToString::to_string).collect();
        let expressions = pinned.expressions.iter().map(|id| id.0.to_be_bytes().to_vec());
        Self { tables, expressions: expressions.collect() }
    }

    pub(crate) fn pinned(&self) -> Result<Pinned> {
        let tables = self.tables.iter().map(|table| table.as_str().into()).collect();
        let expressions = self.expressions.iter().map(|id| Ok(ExpressionId(fingerprint(id)?)));
        Ok(Pinned { tables, expressions: expressions.collect::<Result<_>>()? })
    }
}

/// One stored state of a partial aggregate.
#[derive(Clone, PartialEq, Message)]
pub struct PartialMessage {
    /// What it is the state of.
    #[prost(message, optional, tag = "1")]
    pub fragment: Option<FragmentTicket>,
    /// The segment.
    #[prost(bytes = "vec", tag = "3")]
    pub segment: Vec<u8>,
    /// Rows of the state.
    #[prost(uint64, tag = "4")]
    pub rows: u64,
    /// Bytes it takes.
    #[prost(uint64, tag = "5")]
    pub bytes: u64,
    /// Queries that read it.
    #[prost(uint64, tag = "6")]
    pub uses: u64,
    /// Nanoseconds that it took.
    #[prost(uint64, tag = "7")]
    pub ns: u64,
    /// Whether it was computed before a query asked for it.
    #[prost(bool, tag = "10")]
    pub is_ahead: bool,
    /// Whether others can be computed without a query.
    #[prost(bool, tag = "11")]
    pub has_recipe: bool,
}

/// One stored output.
#[derive(Clone, PartialEq, Message)]
pub struct OutputMessage {
    /// The expression.
    #[prost(bytes = "vec", tag = "1")]
    pub expression: Vec<u8>,
    /// The segment.
    #[prost(bytes = "vec", tag = "2")]
    pub segment: Vec<u8>,
    /// Bytes it takes.
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
    /// Queries that read it.
    #[prost(uint64, tag = "4")]
    pub uses: u64,
    /// Rows of the segment that have a value.
    #[prost(uint64, tag = "5")]
    pub rows: u64,
    /// Whether it is on disk only.
    #[prost(bool, tag = "6")]
    pub is_on_disk: bool,
}

impl PartialMessage {
    pub(crate) fn new(held: &HeldPartial) -> Self {
        Self {
            fragment: Some(held.fragment.as_ref().into()),
            segment: held.segment.0.to_be_bytes().to_vec(),
            rows: held.rows,
            bytes: held.bytes,
            uses: held.sign.uses,
            ns: held.ns,
            is_ahead: held.sign.is_ahead,
            has_recipe: held.sign.has_recipe,
        }
    }

    pub(crate) fn held(&self) -> Result<HeldPartial> {
        Ok(HeldPartial {
            fragment: given(self.fragment.as_ref(), "fragment")?.fragment()?,
            segment: SegmentId(fingerprint(&self.segment)?),
            rows: self.rows,
            bytes: self.bytes,
            ns: self.ns,
            sign: Sign { uses: self.uses, is_ahead: self.is_ahead, has_recipe: self.has_recipe },
        })
    }
}

impl OutputMessage {
    pub(crate) fn new(held: &HeldOutput) -> Self {
        Self {
            expression: held.expression.0.to_be_bytes().to_vec(),
            segment: held.segment.0.to_be_bytes().to_vec(),
            bytes: held.bytes,
            uses: held.uses,
            rows: held.rows,
            is_on_disk: held.is_on_disk,
        }
    }

    pub(crate) fn held(&self) -> Result<HeldOutput> {
        Ok(HeldOutput {
            expression: ExpressionId(fingerprint(&self.expression)?),
            segment: SegmentId(fingerprint(&self.segment)?),
            bytes: self.bytes,
            uses: self.uses,
            rows: self.rows,
            is_on_disk: self.is_on_disk,
        })
    }
}
