//! What is sent of the nodes that are ours.

use std::sync::Arc;

use datafusion::common::{Result, exec_datafusion_err, exec_err};
use datafusion_proto::protobuf;
use foreshard_actors::partition::Fragment;
use foreshard_actors::segment::{Location, Segment};
use foreshard_policy::ids::{FragmentId, NodeId, SegmentId, ShapeId};
use prost::Message;

use crate::query::context::QueryContext;
use crate::query::scan::ScanSegment;

/// One segment on its way to another node.
#[derive(Clone, PartialEq, Message)]
pub struct SegmentTicket {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(uint32, tag = "2")]
    partition: u32,
    #[prost(uint64, tag = "3")]
    rows: u64,
    #[prost(uint64, tag = "4")]
    bytes: u64,
    #[prost(string, optional, tag = "5")]
    path: Option<String>,
    #[prost(uint64, tag = "6")]
    file_bytes: u64,
    #[prost(uint32, optional, tag = "7")]
    row_group: Option<u32>,
    #[prost(uint32, tag = "8")]
    node: u32,
    #[prost(uint32, tag = "9")]
    number: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct GroupTicket {
    #[prost(message, repeated, tag = "1")]
    pub(super) segments: Vec<SegmentTicket>,
}

/// What one of our nodes is sent as: one of them.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeTicket {
    #[prost(message, optional, tag = "1")]
    pub(super) scan: Option<ScanTicket>,
    /// A `PartialReuseExec`; its child travels beside it.
    #[prost(message, optional, tag = "2")]
    pub(super) reuse: Option<FragmentTicket>,
    #[prost(message, optional, tag = "3")]
    pub(super) late: Option<LateTicket>,
    /// An `AnyOrderExec`; its child travels beside it.
    #[prost(bool, tag = "4")]
    pub(super) any_order: bool,
    /// A `SameOrderExec`; its child travels beside it.
    #[prost(bool, tag = "5")]
    pub(super) same_order: bool,
}

/// What names the states of a fragment.
#[derive(Clone, PartialEq, Message)]
pub struct FragmentTicket {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(string, tag = "2")]
    text: String,
    #[prost(bytes = "vec", tag = "3")]
    shape: Vec<u8>,
    #[prost(string, tag = "4")]
    pattern: String,
}

/// A `LateCallExec`; its child travels beside it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LateTicket {
    #[prost(message, repeated, tag = "1")]
    pub(super) calls: Vec<LateCallTicket>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LateCallTicket {
    #[prost(message, optional, tag = "1")]
    pub(super) expr: Option<protobuf::PhysicalExprNode>,
    #[prost(message, optional, tag = "2")]
    pub(super) on_table: Option<protobuf::PhysicalExprNode>,
    #[prost(uint64, tag = "3")]
    pub(super) carried: u64,
    #[prost(string, tag = "4")]
    pub(super) table: String,
    #[prost(message, optional, tag = "5")]
    pub(super) schema: Option<protobuf::Schema>,
    #[prost(message, repeated, tag = "6")]
    pub(super) segments: Vec<SegmentTicket>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ScanTicket {
    #[prost(string, tag = "1")]
    pub(super) table: String,
    #[prost(uint64, tag = "2")]
    pub(super) version: u64,
    #[prost(message, optional, tag = "3")]
    pub(super) schema: Option<protobuf::Schema>,
    #[prost(message, repeated, tag = "4")]
    pub(super) groups: Vec<GroupTicket>,
    #[prost(message, repeated, tag = "5")]
    pub(super) filters: Vec<protobuf::PhysicalExprNode>,
    #[prost(message, repeated, tag = "6")]
    pub(super) outputs: Vec<protobuf::PhysicalExprNode>,
    #[prost(string, repeated, tag = "7")]
    pub(super) aliases: Vec<String>,
    #[prost(uint64, optional, tag = "8")]
    pub(super) fetch: Option<u64>,
    /// Outputs of which only what is known is handed on.
    #[prost(uint32, repeated, tag = "9")]
    pub(super) carried: Vec<u32>,
}

impl From<&Fragment> for FragmentTicket {
    fn from(fragment: &Fragment) -> Self {
        let Fragment { id, shape, text, pattern } = fragment;
        Self {
            id: id.0.to_be_bytes().to_vec(),
            text: text.to_string(),
            shape: shape.0.to_be_bytes().to_vec(),
            pattern: pattern.to_string(),
        }
    }
}

impl FragmentTicket {
    pub(crate) fn fragment(&self) -> Result<Arc<Fragment>> {
        let id = |bytes: &[u8]| match <[u8; 16]>::try_from(bytes) {
            Ok(id) => Ok(u128::from_be_bytes(id)),
            Err(_) => exec_err!("the name of a fragment has {} bytes, not 16", bytes.len()),
        };
        Ok(Arc::new(Fragment {
            id: FragmentId(id(&self.id)?),
            shape: ShapeId(id(&self.shape)?),
            text: self.text.as_str().into(),
            pattern: self.pattern.as_str().into(),
        }))
    }
}

impl SegmentTicket {
    pub(super) fn new(scan: &ScanSegment) -> Self {
        Self { node: scan.node.0, number: scan.number, ..Self::of(&scan.segment) }
    }

    /// A segment that is read on no node in particular.
    pub(crate) fn of(segment: &Segment) -> Self {
        let (path, file_bytes, row_group) = match &segment.location {
            Location::Memory => (None, 0, None),
            Location::Parquet { path, file_bytes, row_group } => {
                (Some(path.to_string()), *file_bytes, *row_group)
            }
        };
        Self {
            id: segment.id.0.to_be_bytes().to_vec(),
            partition: segment.partition,
            rows: segment.rows,
            bytes: segment.bytes,
            path,
            file_bytes,
            row_group,
            node: 0,
            number: 0,
        }
    }

    /// The segment, without what is only known in the process that owns it.
    pub(crate) fn segment(self) -> Result<Arc<Segment>> {
        Ok(self.open("", None)?.segment)
    }

    pub(super) fn open(self, table: &str, query: Option<&QueryContext>) -> Result<ScanSegment> {
        let id: [u8; 16] = self.id.as_slice().try_into().map_err(|_wrong_length| {
            exec_datafusion_err!("a segment id has {} bytes, not 16", self.id.len())
        })?;
        let id = SegmentId(u128::from_be_bytes(id));
        let (node, number) = (NodeId(self.node), self.number);
        if let Some(segment) = query.and_then(|query| query.segment(table, id)) {
            return Ok(ScanSegment { segment, node, number });
        }
        let location = match self.path {
            None => Location::Memory,
            Some(path) => Location::Parquet {
                path: path.into(),
                file_bytes: self.file_bytes,
                row_group: self.row_group,
            },
        };
        let segment = Segment {
            id,
            partition: self.partition,
            rows: self.rows,
            bytes: self.bytes,
            columns: vec![],
            location,
            pinned: None,
        };
        Ok(ScanSegment { segment: Arc::new(segment), node, number })
    }
}
