//! Carries scans and functions between nodes.
//!
//! A scan travels as a ticket: table, version, segments with their locations, filters and outputs; its
//! dynamic filters stay behind, because what makes them is another copy over there. A function travels as
//! its name and version; a node that has another version refuses it, because its stored outputs would be
//! another function's.

mod tickets;

use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::common::{DataFusionError, Result, exec_datafusion_err, internal_err};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::physical_plan::{
    PhysicalExtensionCodec, PhysicalPlanDecodeContext, PhysicalProtoConverterExtension,
};
use datafusion_proto::protobuf;
use foreshard_udfs::{FunctionError, FunctionVersion, Functions, registered};
use prost::Message;

use crate::query::any_order::AnyOrderExec;
pub(crate) use crate::query::codec::tickets::{FragmentTicket, SegmentTicket};
use crate::query::codec::tickets::{
    GroupTicket, LateCallTicket, LateTicket, NodeTicket, ScanTicket,
};
use crate::query::context::QueryContext;
use crate::query::late::{Carried, LateCall, LateCallExec, LateSource};
use crate::query::partial::{PartialReuseExec, SameOrderExec};
use crate::query::scan::{PartitionScanExec, ScanTable};

/// Encodes functions by name and version, and finds them again in a registry.
#[derive(Clone, Debug, Default)]
pub struct FunctionCodec {
    functions: Option<Arc<Functions>>,
}

impl FunctionCodec {
    /// A codec that finds functions in this registry.
    #[must_use]
    pub fn new(functions: Arc<Functions>) -> Self {
        Self { functions: Some(functions) }
    }
}

impl FunctionCodec {
    fn registry(&self, name: &str) -> Result<&Functions> {
        match &self.functions {
            Some(functions) => Ok(functions),
            None => internal_err!("no registry to find function {name} in"),
        }
    }
}

fn version(name: &str, bytes: &[u8]) -> Result<FunctionVersion> {
    let version: [u8; 16] = bytes.try_into().map_err(|_wrong_length| {
        exec_datafusion_err!("function {name} came with {} bytes of version, not 16", bytes.len())
    })?;
    Ok(FunctionVersion(u128::from_be_bytes(version)))
}

impl PhysicalExtensionCodec for FunctionCodec {
    fn try_decode(
        &self,
        _bytes: &[u8],
        _inputs: &[Arc<dyn ExecutionPlan>],
        _context: &TaskContext,
        _converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        internal_err!("a function codec decodes no plan")
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        _bytes: &mut Vec<u8>,
        _converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        internal_err!("a function codec encodes no {}", node.name())
    }

    fn try_encode_udf(&self, function: &ScalarUDF, bytes: &mut Vec<u8>) -> Result<()> {
        if let Some(registered) = registered(function) {
            bytes.extend_from_slice(&registered.version().0.to_be_bytes());
        }
        Ok(())
    }

    fn try_decode_udf(&self, name: &str, bytes: &[u8]) -> Result<Arc<ScalarUDF>> {
        self.registry(name)?
            .get_versioned(name, version(name, bytes)?)
            .map_err(|error| DataFusionError::External(Box::new(error)))
    }

    fn try_encode_udaf(&self, function: &AggregateUDF, bytes: &mut Vec<u8>) -> Result<()> {
        let functions = self.functions.as_ref();
        if let Some(version) = functions.and_then(|all| all.aggregate_version(function)) {
            bytes.extend_from_slice(&version.0.to_be_bytes());
        }
        Ok(())
    }

    fn try_decode_udaf(&self, name: &str, bytes: &[u8]) -> Result<Arc<AggregateUDF>> {
        let asked = version(name, bytes)?;
        let functions = self.registry(name)?;
        let found = functions.aggregate(name);
        let current = found.as_ref().and_then(|found| functions.aggregate_version(found));
        let name = name.to_owned();
        let error = match (found, current) {
            (Some(found), Some(current)) if current == asked => return Ok(found),
            (_, Some(current)) => FunctionError::Version { name, asked, current },
            _ => functions.unknown(&name),
        };
        Err(DataFusionError::External(Box::new(error)))
    }
}

/// Encodes and decodes whole plans with scans in them.
#[derive(Clone, Debug)]
pub struct ScanCodec {
    functions: FunctionCodec,
    query: Option<Arc<QueryContext>>,
}

impl ScanCodec {
    /// A codec with this registry. `query` is the running query if it is one of this process: its
    /// pinned segments keep rows of memory tables readable.
    #[must_use]
    pub fn new(functions: Arc<Functions>, query: Option<Arc<QueryContext>>) -> Self {
        Self { functions: FunctionCodec::new(functions), query }
    }
}

impl ScanCodec {
    fn late_ticket(
        &self,
        call: &LateCall,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<LateCallTicket> {
        Ok(LateCallTicket {
            expr: Some(converter.physical_expr_to_proto(&call.expr, self)?),
            on_table: Some(converter.physical_expr_to_proto(&call.on_table, self)?),
            carried: call.carried as u64,
            table: call.source.table.to_string(),
            schema: Some(call.source.schema.as_ref().try_into()?),
            segments: call.source.segments.iter().map(SegmentTicket::new).collect(),
        })
    }

    fn late(
        &self,
        ticket: LateTicket,
        input: &Arc<dyn ExecutionPlan>,
        context: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let decoding = PhysicalPlanDecodeContext::new(context, self);
        let query = self.query.as_deref();
        let below = input.schema();
        let call = |ticket: LateCallTicket| {
            let (Some(expr), Some(on_table), Some(schema)) =
                (&ticket.expr, &ticket.on_table, &ticket.schema)
            else {
                return internal_err!("the ticket of a late call over {} is torn", ticket.table);
            };
            let schema: Schema = schema.try_into()?;
            let expr = converter.proto_to_physical_expr(expr, &below, &decoding)?;
            let on_table = converter.proto_to_physical_expr(on_table, &schema, &decoding)?;
            let carried = usize::try_from(ticket.carried)
                .ok()
                .filter(|carried| *carried < below.fields().len());
            let Some(carried) = carried else {
                return internal_err!("a late call reads column {} of its input", ticket.carried);
            };
            let open = |segment: SegmentTicket| segment.open(&ticket.table, query);
            let segments = ticket.segments.into_iter().map(open).collect::<Result<_>>()?;
            let (table, schema) = (ticket.table.as_str().into(), Arc::new(schema));
            let source = Arc::new(LateSource { table, schema, segments });
            Ok(LateCall { expr, on_table, carried, source })
        };
        let calls = ticket.calls.into_iter().map(call).collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(LateCallExec::try_new(Arc::clone(input), calls)?))
    }
}

impl PhysicalExtensionCodec for ScanCodec {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        context: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let ticket = NodeTicket::decode(bytes)
            .map_err(|error| exec_datafusion_err!("a ticket is unreadable: {error}"))?;
        let ticket = match (ticket.scan, ticket.reuse, ticket.late, inputs) {
            (Some(scan), ..) => scan,
            (None, None, Some(late), [input]) => {
                return self.late(late, input, context, converter);
            }
            (None, None, None, [input]) if ticket.any_order => {
                return Ok(Arc::new(AnyOrderExec::new(Arc::clone(input))));
            }
            (None, None, None, [input]) if ticket.same_order => {
                return Ok(Arc::new(SameOrderExec::new(Arc::clone(input))));
            }
            (None, Some(reuse), _, [input]) => {
                let fragment = reuse.fragment()?;
                return Ok(Arc::new(PartialReuseExec::new(Arc::clone(input), fragment)));
            }
            _ => return internal_err!("a ticket is of no node that is known here"),
        };
        let Some(schema) = ticket.schema.as_ref() else {
            return internal_err!("the ticket of a scan of {} has no schema", ticket.table);
        };
        let schema: Schema = schema.try_into()?;
        let decoding = PhysicalPlanDecodeContext::new(context, self);
        let expr = |node: &protobuf::PhysicalExprNode| {
            converter.proto_to_physical_expr(node, &schema, &decoding)
        };
        let filters = ticket.filters.iter().map(expr).collect::<Result<Vec<_>>>()?;
        let outputs = ticket
            .outputs
            .iter()
            .zip(ticket.aliases)
            .zip(0..)
            .map(|((node, alias), position)| {
                let expr = match ticket.carried.contains(&position) {
                    true => Arc::new(Carried { call: expr(node)? }),
                    false => expr(node)?,
                };
                Ok(ProjectionExpr { expr, alias })
            })
            .collect::<Result<Vec<_>>>()?;
        let query = self.query.as_deref();
        let group = |group: GroupTicket| {
            group.segments.into_iter().map(|ticket_| ticket_.open(&ticket.table, query)).collect()
        };
        let groups = ticket.groups.into_iter().map(group).collect::<Result<Vec<_>>>()?;
        let table = ScanTable {
            name: ticket.table.as_str().into(),
            schema: Arc::new(schema.clone()),
            version: ticket.version,
            statistics: None,
            placed: None,
        };
        let fetch = ticket.fetch.map(usize::try_from).transpose().map_err(|error| {
            exec_datafusion_err!("the fetch of a scan ticket is too large: {error}")
        })?;
        Ok(Arc::new(PartitionScanExec::try_new(Arc::new(table), groups, filters, outputs, fetch)?))
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        if let Some(reuse) = node.downcast_ref::<PartialReuseExec>() {
            let reuse = Some(reuse.fragment.as_ref().into());
            return written(NodeTicket { reuse, ..NodeTicket::default() }, bytes);
        }
        if let Some(late) = node.downcast_ref::<LateCallExec>() {
            let calls = late.calls.iter().map(|call| self.late_ticket(call, converter));
            let late = LateTicket { calls: calls.collect::<Result<_>>()? };
            return written(NodeTicket { late: Some(late), ..NodeTicket::default() }, bytes);
        }
        if node.is::<AnyOrderExec>() {
            return written(NodeTicket { any_order: true, ..NodeTicket::default() }, bytes);
        }
        if node.is::<SameOrderExec>() {
            return written(NodeTicket { same_order: true, ..NodeTicket::default() }, bytes);
        }
        let Some(scan) = node.downcast_ref::<PartitionScanExec>() else {
            return internal_err!("{} cannot be sent to another node", node.name());
        };
        let expr = |expr: &Arc<dyn PhysicalExpr>| converter.physical_expr_to_proto(expr, self);
        let ticket = ScanTicket {
            table: scan.table.name.to_string(),
            version: scan.table.version,
            schema: Some(scan.table.schema.as_ref().try_into()?),
            groups: scan
                .groups
                .iter()
                .map(|group| GroupTicket {
                    segments: group.iter().map(SegmentTicket::new).collect(),
                })
                .collect(),
            filters: scan.filters.iter().map(expr).collect::<Result<_>>()?,
            outputs: scan
                .outputs
                .iter()
                .map(|output| match output.expr.downcast_ref::<Carried>() {
                    Some(carried) => expr(&carried.call),
                    None => expr(&output.expr),
                })
                .collect::<Result<_>>()?,
            carried: (0..)
                .zip(&scan.outputs)
                .filter(|(_, output)| output.expr.is::<Carried>())
                .map(|(position, _)| position)
                .collect(),
            aliases: scan.outputs.iter().map(|output| output.alias.clone()).collect(),
            fetch: scan.fetch.map(|fetch| fetch as u64),
        };
        written(NodeTicket { scan: Some(ticket), ..NodeTicket::default() }, bytes)
    }

    fn try_encode_udaf(&self, function: &AggregateUDF, bytes: &mut Vec<u8>) -> Result<()> {
        self.functions.try_encode_udaf(function, bytes)
    }

    fn try_decode_udaf(&self, name: &str, bytes: &[u8]) -> Result<Arc<AggregateUDF>> {
        self.functions.try_decode_udaf(name, bytes)
    }

    fn try_encode_udf(&self, function: &ScalarUDF, bytes: &mut Vec<u8>) -> Result<()> {
        self.functions.try_encode_udf(function, bytes)
    }

    fn try_decode_udf(&self, name: &str, bytes: &[u8]) -> Result<Arc<ScalarUDF>> {
        self.functions.try_decode_udf(name, bytes)
    }
}

fn written(ticket: NodeTicket, bytes: &mut Vec<u8>) -> Result<()> {
    ticket.encode(bytes).map_err(|error| exec_datafusion_err!("a plan cannot be encoded: {error}"))
}
