//! What nodes and their coordinator say to each other, and how it becomes the engine's own types.

mod commit;
mod held;
mod rows;
mod stored;

use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::common::{DataFusionError, Result, exec_datafusion_err};
use datafusion::prelude::SessionContext;
use datafusion_proto::physical_plan::from_proto::parse_physical_expr;
use datafusion_proto::physical_plan::to_proto::serialize_physical_expr;
use datafusion_proto::protobuf;
use foreshard_actors::expressions::FunctionExpression;
use foreshard_actors::layout::{Layout, ORDINALS_MAX};
use foreshard_actors::partition::Wanted;
use foreshard_actors::partitioning::Partitioning;
use foreshard_actors::segment::Segment;
use foreshard_actors::table::{Snapshot, Table, TableKind};
use foreshard_policy::ids::{ExpressionId, PartitionId};
use foreshard_udfs::Functions;
use prost::Message;

pub use commit::{CommitMessage, KeptMessage, RewrittenMessage};
pub use held::{OutputMessage, PartialMessage, PinsMessage, ReplicaMessage};
pub use rows::{RowsMessage, RowsRequest, SharesMessage};
pub use stored::{
    AdoptRequest, AdoptStateRequest, OutputReply, OutputRequest, StateMessage, StateReply,
    StateRequest, ValuesMessage,
};

use crate::query::codec::{FunctionCodec, SegmentTicket};

/// A process wants to be a node.
#[derive(Clone, PartialEq, Message)]
pub struct JoinRequest {
    /// Where its tasks are sent.
    #[prost(string, tag = "1")]
    pub url: String,
    /// Version of its program; another one is refused.
    #[prost(string, tag = "2")]
    pub version: String,
    /// Tasks that may compute functions at the same time.
    #[prost(uint32, tag = "3")]
    pub cpu_permits: u32,
    /// Bytes of resident segments and stored outputs.
    #[prost(uint64, tag = "4")]
    pub memory_bytes_max: u64,
    /// The name that whoever started it gave it; empty if none.
    #[prost(string, tag = "5")]
    pub name: String,
}

/// It is one from now on, as soon as it reports.
#[derive(Clone, PartialEq, Message)]
pub struct Welcome {
    /// Its number.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// Id of the coordinating process.
    #[prost(string, tag = "2")]
    pub coordinator: String,
    /// Time between two reports.
    #[prost(uint64, tag = "3")]
    pub beat_ms: u64,
    /// Budget and rules to start with.
    #[prost(message, optional, tag = "4")]
    pub settings: Option<Settings>,
}

/// What a node may use and how it behaves.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Settings {
    /// Tasks that may compute functions at the same time.
    #[prost(uint32, tag = "1")]
    pub cpu_permits: u32,
    /// Bytes of resident segments and stored outputs.
    #[prost(uint64, tag = "2")]
    pub memory_bytes_max: u64,
    /// Whether outputs are stored and read.
    #[prost(bool, tag = "3")]
    pub stores: bool,
    /// Functions cheaper than this are never stored.
    #[prost(uint64, tag = "4")]
    pub ns_per_row_min: u64,
    /// Whether the node gives up its replicas.
    #[prost(bool, tag = "5")]
    pub draining: bool,
}

/// A node is alive, and this is what it has and did.
#[derive(Clone, PartialEq, Message)]
pub struct ReportRequest {
    /// Who.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// The process that welcomed it.
    #[prost(string, tag = "2")]
    pub coordinator: String,
    /// Bytes it holds.
    #[prost(uint64, tag = "3")]
    pub memory_bytes: u64,
    /// Bytes it may hold.
    #[prost(uint64, tag = "4")]
    pub memory_bytes_max: u64,
    /// Tasks that may compute functions at the same time.
    #[prost(uint32, tag = "5")]
    pub cpu_permits: u32,
    /// Measured calls since the last report, as JSON.
    #[prost(bytes = "vec", tag = "6")]
    pub calls: Vec<u8>,
    /// Calls that were lost on the way so far.
    #[prost(uint64, tag = "7")]
    pub calls_dropped: u64,
    /// Expressions that were called here and never reported.
    #[prost(message, repeated, tag = "8")]
    pub expressions: Vec<ExpressionMessage>,
    /// Its replicas.
    #[prost(message, repeated, tag = "9")]
    pub replicas: Vec<ReplicaMessage>,
}

/// The answer to a report.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Heard {
    /// False if the coordinator knows no such node: it was forgotten, and may join again.
    #[prost(bool, tag = "1")]
    pub is_known: bool,
    /// Whether queries are sent to it.
    #[prost(bool, tag = "2")]
    pub is_admitted: bool,
}

/// Asks for the rows of a segment of a memory table.
#[derive(Clone, PartialEq, Message)]
pub struct FetchRequest {
    /// The table.
    #[prost(string, tag = "1")]
    pub table: String,
    /// The segment.
    #[prost(bytes = "vec", tag = "2")]
    pub segment: Vec<u8>,
    /// Its partition.
    #[prost(uint32, tag = "3")]
    pub partition: u32,
    /// Whether only some columns are wanted.
    #[prost(bool, tag = "4")]
    pub is_projected: bool,
    /// Which.
    #[prost(uint32, repeated, tag = "5")]
    pub columns: Vec<u32>,
}

/// What happened since the node was last told; also asks whether it is there.
#[derive(Clone, PartialEq, Message)]
pub struct News {
    /// Who says it.
    #[prost(string, tag = "1")]
    pub coordinator: String,
    /// Tables that changed.
    #[prost(message, repeated, tag = "2")]
    pub commits: Vec<CommitMessage>,
    /// Queries that are over, whether done or not.
    #[prost(uint64, repeated, tag = "3")]
    pub ended: Vec<u64>,
    /// New settings, if they changed.
    #[prost(message, optional, tag = "4")]
    pub settings: Option<Settings>,
    /// The node is not needed any more.
    #[prost(bool, tag = "5")]
    pub is_dismissed: bool,
    /// What is pinned, if that changed.
    #[prost(message, optional, tag = "6")]
    pub pins: Option<PinsMessage>,
    /// Which part of what it has each table gets, if that changed.
    #[prost(message, optional, tag = "7")]
    pub shares: Option<SharesMessage>,
}

/// A table that the node must be able to read.
#[derive(Clone, PartialEq, Message)]
pub struct TableMessage {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Kind, as the word that SQL uses.
    #[prost(string, tag = "2")]
    pub kind: String,
    /// Root of its files.
    #[prost(string, optional, tag = "3")]
    pub url: Option<String>,
    /// Its columns.
    #[prost(message, optional, tag = "4")]
    pub schema: Option<protobuf::Schema>,
    /// How rows are spread, as JSON.
    #[prost(string, tag = "5")]
    pub partitioning: String,
}

/// Names a table.
#[derive(Clone, PartialEq, Message)]
pub struct TableName {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// Names a partition.
#[derive(Clone, PartialEq, Message)]
pub struct PartitionMessage {
    /// The table.
    #[prost(string, tag = "1")]
    pub table: String,
    /// Position within it.
    #[prost(uint32, tag = "2")]
    pub ordinal: u32,
}

/// Hold a replica of these segments.
#[derive(Clone, PartialEq, Message)]
pub struct OpenRequest {
    /// The partition.
    #[prost(message, optional, tag = "1")]
    pub partition: Option<PartitionMessage>,
    /// Version of the table's snapshot.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// Its segments.
    #[prost(message, repeated, tag = "3")]
    pub segments: Vec<SegmentTicket>,
}

/// A function expression over the columns of a table.
#[derive(Clone, PartialEq, Message)]
pub struct ExpressionMessage {
    /// Fingerprint.
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// Names of its functions, the outermost first.
    #[prost(string, repeated, tag = "2")]
    pub functions: Vec<String>,
    /// The table.
    #[prost(string, tag = "3")]
    pub table: String,
    /// The expression.
    #[prost(message, optional, tag = "4")]
    pub expr: Option<protobuf::PhysicalExprNode>,
}

/// Compute and store what is missing of an expression, or the states of a shape.
#[derive(Clone, PartialEq, Message)]
pub struct PrecomputeRequest {
    /// Over which rows.
    #[prost(message, optional, tag = "1")]
    pub partition: Option<PartitionMessage>,
    /// The expression.
    #[prost(message, optional, tag = "2")]
    pub expression: Option<ExpressionMessage>,
    /// The shape, if there is no expression.
    #[prost(bytes = "vec", tag = "3")]
    pub shape: Vec<u8>,
}

/// How computing ended.
#[derive(Clone, PartialEq, Message)]
pub struct Computed {
    /// Code of the error; empty if there was none.
    #[prost(string, tag = "1")]
    pub code: String,
    /// Text of the error.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// Rows computed.
    #[prost(uint64, tag = "3")]
    pub rows: u64,
    /// Bytes stored.
    #[prost(uint64, tag = "4")]
    pub bytes: u64,
    /// Nanoseconds it took.
    #[prost(uint64, tag = "5")]
    pub ns: u64,
}

/// Throw outputs of a partition away.
#[derive(Clone, PartialEq, Message)]
pub struct DropOutputsRequest {
    /// Of what.
    #[prost(message, optional, tag = "1")]
    pub partition: Option<PartitionMessage>,
    /// Which expression's; all if there is none.
    #[prost(bytes = "vec", optional, tag = "2")]
    pub expression: Option<Vec<u8>>,
}

/// How many outputs were dropped.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Dropped {
    /// The number.
    #[prost(uint64, tag = "1")]
    pub outputs: u64,
}

/// It was done.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Done {}

/// The 16 bytes of a fingerprint.
pub(crate) fn fingerprint(bytes: &[u8]) -> Result<u128> {
    let bytes: [u8; 16] = bytes.try_into().map_err(|_wrong_length| {
        exec_datafusion_err!("a fingerprint has {} bytes, not 16", bytes.len())
    })?;
    Ok(u128::from_be_bytes(bytes))
}

/// What `message` must have.
pub(crate) fn given<T>(part: Option<T>, name: &str) -> Result<T> {
    part.ok_or_else(|| exec_datafusion_err!("a control message lacks its {name}"))
}

impl From<&PartitionId> for PartitionMessage {
    fn from(partition: &PartitionId) -> Self {
        Self { table: partition.table.to_string(), ordinal: partition.ordinal }
    }
}

impl PartitionMessage {
    pub(crate) fn id(&self) -> PartitionId {
        PartitionId::new(self.table.as_str(), self.ordinal)
    }
}

impl OpenRequest {
    /// The segments of one partition in a snapshot; none of a partition that it does not have yet.
    pub(crate) fn new(partition: &PartitionId, snapshot: &Snapshot) -> Self {
        let segments = snapshot.partitions.get(partition.ordinal as usize);
        let segments = segments.into_iter().flat_map(|segments| segments.iter());
        Self {
            partition: Some(partition.into()),
            version: snapshot.version,
            segments: segments.map(|segment| SegmentTicket::of(segment)).collect(),
        }
    }

    /// A snapshot of `table` that has the segments of this partition and no others. Which rows belong to it
    /// nobody asks here: its layout is the one that the table was opened with.
    pub(crate) fn snapshot(self, table: &Arc<Table>) -> Result<(PartitionId, Arc<Snapshot>)> {
        let partition = given(self.partition, "partition")?.id();
        let segments: Vec<Arc<Segment>> =
            self.segments.into_iter().map(SegmentTicket::segment).collect::<Result<_>>()?;
        if partition.ordinal >= ORDINALS_MAX {
            return Err(exec_datafusion_err!("there is no partition {partition}"));
        }
        let mut partitions = vec![Arc::default(); partition.ordinal as usize];
        partitions.push(Arc::new(segments));
        let layout = Arc::new(Layout::new(&table.partitioning));
        let (table, version) = (Arc::clone(table), self.version);
        Ok((partition, Arc::new(Snapshot { table, version, layout, partitions })))
    }
}

impl PrecomputeRequest {
    pub(crate) fn new(partition: &PartitionId, wanted: &Wanted) -> Result<Self> {
        let request = Self { partition: Some(partition.into()), ..Self::default() };
        Ok(match wanted {
            Wanted::Outputs(expression) => {
                Self { expression: Some(ExpressionMessage::new(expression)?), ..request }
            }
            Wanted::States(shape) => Self { shape: shape.0.to_be_bytes().to_vec(), ..request },
        })
    }
}

impl TableMessage {
    pub(crate) fn new(table: &Table) -> Result<Self> {
        let partitioning = serde_json::to_string(&table.partitioning)
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        Ok(Self {
            name: table.name.to_string(),
            kind: table.kind.as_str().to_owned(),
            url: table.url.as_ref().map(ToString::to_string),
            schema: Some(table.schema.as_ref().try_into()?),
            partitioning,
        })
    }

    /// The table as it was described.
    pub(crate) fn table(&self) -> Result<Table> {
        let schema = given(self.schema.as_ref(), "schema")?;
        let schema: Schema = schema.try_into()?;
        let kinds = [TableKind::Managed, TableKind::Parquet, TableKind::Memory];
        let kind = kinds.into_iter().find(|kind| kind.as_str() == self.kind);
        let external = |error| DataFusionError::External(Box::new(error));
        let partitioning: Partitioning =
            serde_json::from_str(&self.partitioning).map_err(external)?;
        let url = self.url.as_deref().map(url::Url::parse).transpose();
        Ok(Table {
            name: self.name.as_str().into(),
            schema: Arc::new(schema),
            partitioning,
            kind: given(kind, "kind")?,
            url: url.map_err(|error| DataFusionError::External(Box::new(error)))?,
        })
    }
}

impl ExpressionMessage {
    pub(crate) fn new(expression: &FunctionExpression) -> Result<Self> {
        Ok(Self {
            id: expression.id.0.to_be_bytes().to_vec(),
            functions: expression.functions.iter().map(ToString::to_string).collect(),
            table: expression.table.to_string(),
            expr: Some(serialize_physical_expr(&expression.expr, &FunctionCodec::default())?),
        })
    }

    /// The expression over `schema`; fails if a function is missing here or has another version.
    pub(crate) fn expression(
        &self,
        schema: &Schema,
        functions: &Arc<Functions>,
    ) -> Result<FunctionExpression> {
        let id = ExpressionId(fingerprint(&self.id)?);
        let session = SessionContext::new();
        functions.install(&session);
        let codec = FunctionCodec::new(Arc::clone(functions));
        let expr = given(self.expr.as_ref(), "expression")?;
        let expr = parse_physical_expr(expr, &session.task_ctx(), schema, &codec)?;
        let functions = self.functions.iter().map(|name| name.as_str().into()).collect();
        Ok(FunctionExpression::new(id, functions, self.table.as_str().into(), expr))
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};
    use foreshard_actors::segment::Location;

    use foreshard_policy::ids::SegmentId;

    use super::*;

    fn table() -> Table {
        Table {
            name: "t".into(),
            schema: Arc::new(Schema::new(vec![Field::new("name", DataType::Utf8, true)])),
            partitioning: Partitioning::Hash { columns: vec!["name".to_owned()], partitions: 3 },
            kind: TableKind::Managed,
            url: Some(url::Url::parse("file:///data/t/").unwrap()),
        }
    }

    #[test]
    fn a_table_arrives_as_it_was_sent() {
        let (sent, arrived) = (table(), TableMessage::new(&table()).unwrap().table().unwrap());
        assert_eq!((&arrived.name, &arrived.schema), (&sent.name, &sent.schema));
        assert_eq!((&arrived.partitioning, arrived.kind), (&sent.partitioning, sent.kind));
        assert_eq!(arrived.url, sent.url);
    }

    #[test]
    fn one_partition_of_a_snapshot_arrives_and_a_foreign_one_is_refused() {
        let table = Arc::new(table());
        let segment = Segment {
            id: SegmentId(7),
            partition: 1,
            rows: 5,
            bytes: 50,
            columns: vec![],
            location: Location::Parquet {
                path: "a.parquet".into(),
                file_bytes: 9,
                row_group: Some(2),
            },
            pinned: None,
        };
        let mut partitions = vec![Arc::default(); 3];
        partitions[1] = Arc::new(vec![Arc::new(segment.clone())]);
        let layout = Arc::new(Layout::new(&table.partitioning));
        let snapshot = Snapshot { table: Arc::clone(&table), version: 4, layout, partitions };
        let request = OpenRequest::new(&PartitionId::new("t", 1), &snapshot);
        let (partition, arrived) = request.clone().snapshot(&table).unwrap();
        assert_eq!((partition.ordinal, arrived.version, arrived.rows()), (1, 4, 5));
        let got = &arrived.partitions[1][0];
        assert_eq!((got.id, &got.location), (segment.id, &segment.location));
        let new = OpenRequest::new(&PartitionId::new("t", 7), &snapshot);
        assert_eq!(new.snapshot(&table).unwrap().1.rows(), 0, "it has no segments yet");
        let foreign = PartitionMessage { table: "t".to_owned(), ordinal: u32::MAX };
        assert!(OpenRequest { partition: Some(foreign), ..request }.snapshot(&table).is_err());
    }
}
