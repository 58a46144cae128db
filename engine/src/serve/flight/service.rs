//! The calls of Flight SQL, each handed to the part that answers it.

use std::pin::Pin;
use std::sync::Arc;

use arrow::datatypes::Schema;
use arrow::ipc::writer::IpcWriteOptions;
use arrow::record_batch::RecordBatch;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::metadata::{SqlInfoData, XdbcTypeInfoData};
use arrow_flight::sql::server::{FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedStatementResult, CommandGetCatalogs, CommandGetDbSchemas,
    CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo,
    CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementQuery,
    CommandStatementUpdate, DoPutPreparedStatementResult, ProstMessageExt, SqlInfo,
    TicketStatementQuery,
};
use arrow_flight::{
    Action, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse,
    IpcMessage, SchemaAsIpc, Ticket,
};
use datafusion::common::ScalarValue;
use foreshard_actors::ports::SharedClock;
use foreshard_actors::trace::TRACEPARENT;
use futures::{Stream, StreamExt, TryStreamExt};
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::kind::changes;
use super::statements::{Open, Statements};
use super::{describe, parameters};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::serve::{Admitted, Gate, Way};

type DoGet = Response<<Service as FlightService>::DoGetStream>;
type Handshake =
    Response<Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send + 'static>>>;

/// The Flight SQL service of one engine.
#[derive(Clone)]
pub(super) struct Service {
    gate: Gate,
    statements: Arc<Statements>,
    abilities: Arc<SqlInfoData>,
    types: Arc<XdbcTypeInfoData>,
}

impl Service {
    pub(super) fn new(gate: Gate, clock: SharedClock) -> Result<Self, EngineError> {
        let limits = gate.engine().config().limits();
        let statements =
            Statements::new(clock, limits.open_statements(), limits.statement_idle_seconds());
        let described = |error: FlightError| EngineError::Request { reason: error.to_string() };
        Ok(Self {
            gate,
            statements: Arc::new(statements),
            abilities: Arc::new(describe::abilities().map_err(described)?),
            types: Arc::new(describe::types().map_err(described)?),
        })
    }

    fn engine(&self) -> &Engine {
        self.gate.engine()
    }

    async fn run(&self, sql: &str, metadata: &MetadataMap) -> Result<Admitted, EngineError> {
        let session = self.engine().session();
        let ask = async |session: crate::session::Session| session.sql(sql).await;
        self.gate.query(Way::Flight, parent(metadata), session, ask).await
    }

    async fn execute(
        &self,
        statement: &Open,
        values: Vec<ScalarValue>,
        metadata: &MetadataMap,
    ) -> Result<Admitted, EngineError> {
        let ask = async |session: crate::session::Session| {
            session.execute(&statement.prepared, values).await
        };
        self.gate.query(Way::Flight, parent(metadata), statement.session.clone(), ask).await
    }

    /// Runs `statement` for every row of `rows` and adds up the rows that it changed.
    async fn update(
        &self,
        statement: &Open,
        rows: Vec<Vec<ScalarValue>>,
        metadata: &MetadataMap,
    ) -> Result<i64, EngineError> {
        let mut changed = 0;
        for values in rows {
            changed += finish(self.execute(statement, values, metadata).await?).await?;
        }
        Ok(changed)
    }
}

/// Reads an update to its end and tells how many rows it changed; a statement that changes none
/// changed zero.
async fn finish(mut rows: Admitted) -> Result<i64, EngineError> {
    while rows.try_next().await?.is_some() {}
    Ok(rows.rows_affected().map_or(0, |rows| i64::try_from(rows).unwrap_or(i64::MAX)))
}

fn parent(metadata: &MetadataMap) -> Option<&str> {
    metadata.get(TRACEPARENT).and_then(|value| value.to_str().ok())
}

fn no_transaction(id: Option<&[u8]>) -> Result<(), EngineError> {
    match id {
        Some(id) if !id.is_empty() => {
            Err(EngineError::NotSupported { message: "transactions".to_owned() })
        }
        _ => Ok(()),
    }
}

/// What a client asks for next to get the rows that `command` describes.
fn info(
    schema: &Schema,
    ticket: &impl ProstMessageExt,
    request: Request<FlightDescriptor>,
) -> Result<Response<FlightInfo>, Status> {
    let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket.as_any().encode_to_vec()));
    let info = FlightInfo::new()
        .try_with_schema(schema)
        .map_err(EngineError::from)?
        .with_endpoint(endpoint)
        .with_descriptor(request.into_inner());
    Ok(Response::new(info))
}

/// The answer to a statement that changed `rows` rows: there is nothing to fetch.
fn done(rows: i64, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
    let info = FlightInfo::new().try_with_schema(&Schema::empty()).map_err(EngineError::from)?;
    Ok(Response::new(info.with_total_records(rows).with_descriptor(request.into_inner())))
}

/// The columns of a statement; none tells JDBC that it is an update.
fn dataset(statement: &Open) -> Schema {
    if changes(statement.prepared.sql()) {
        return Schema::empty();
    }
    statement.prepared.schema().as_ref().clone()
}

fn encoded<S>(schema: arrow::datatypes::SchemaRef, rows: S) -> DoGet
where
    S: Stream<Item = Result<RecordBatch, EngineError>> + Send + 'static,
{
    let rows = rows.map_err(|error| FlightError::Tonic(Box::new(Status::from(error))));
    let data = FlightDataEncoderBuilder::new().with_schema(schema).build(rows);
    Response::new(data.map_err(Status::from).boxed())
}

fn one(batch: Result<RecordBatch, EngineError>) -> Result<DoGet, Status> {
    let batch = batch?;
    Ok(encoded(batch.schema(), futures::stream::iter([Ok(batch)])))
}

fn answer(rows: Admitted) -> DoGet {
    let trace = rows.trace_id().and_then(|id| id.parse().ok());
    let mut response = encoded(rows.schema(), rows);
    if let Some(id) = trace {
        response.metadata_mut().insert("x-foreshard-trace-id", id);
    }
    response
}

fn ipc(schema: &Schema) -> Result<bytes::Bytes, EngineError> {
    let options = IpcWriteOptions::default();
    let message: IpcMessage = SchemaAsIpc::new(schema, &options).try_into()?;
    Ok(message.0)
}

#[tonic::async_trait]
impl FlightSqlService for Service {
    type FlightService = Self;

    /// Accepts everybody, as nothing here is behind a password.
    async fn do_handshake(
        &self,
        _request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Handshake, Status> {
        let answer = HandshakeResponse { protocol_version: 0, payload: "anonymous".into() };
        let mut response: Handshake = Response::new(futures::stream::iter([Ok(answer)]).boxed());
        let token = tonic::metadata::MetadataValue::from_static("Bearer anonymous");
        response.metadata_mut().insert("authorization", token);
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        no_transaction(query.transaction_id.as_deref())?;
        if changes(&query.query) {
            let rows = finish(self.run(&query.query, request.metadata()).await?).await?;
            return done(rows, request);
        }
        let prepared = self.engine().session().prepare(&query.query).await?;
        let ticket = TicketStatementQuery { statement_handle: query.query.into() };
        info(&prepared.schema(), &ticket, request)
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        request: Request<Ticket>,
    ) -> Result<DoGet, Status> {
        let sql = std::str::from_utf8(&ticket.statement_handle).map_err(|error| {
            EngineError::Request { reason: format!("the ticket is not one of ours: {error}") }
        })?;
        Ok(answer(self.run(sql, request.metadata()).await?))
    }

    async fn do_put_statement_update(
        &self,
        command: CommandStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        no_transaction(command.transaction_id.as_deref())?;
        Ok(finish(self.run(&command.query, request.metadata()).await?).await?)
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        _request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        no_transaction(query.transaction_id.as_deref())?;
        let session = self.engine().session();
        let prepared = session.prepare(&query.query).await?;
        let handle = self.statements.open(session, prepared)?;
        let statement = self.statements.find(handle.as_bytes())?;
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: handle.into(),
            dataset_schema: ipc(&dataset(&statement))?,
            parameter_schema: ipc(&parameters::schema(&statement))?,
        })
    }

    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        _request: Request<Action>,
    ) -> Result<(), Status> {
        self.statements.close(&query.prepared_statement_handle);
        Ok(())
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let statement = self.statements.find(&query.prepared_statement_handle)?;
        let rows = parameters::read(request.into_inner(), &statement).await?;
        statement.bind(rows);
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: None })
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let statement = self.statements.find(&query.prepared_statement_handle)?;
        if changes(statement.prepared.sql()) {
            let bound = statement.bound()?;
            return done(self.update(&statement, bound, request.metadata()).await?, request);
        }
        info(&statement.prepared.schema(), &query, request)
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<Ticket>,
    ) -> Result<DoGet, Status> {
        let statement = self.statements.find(&query.prepared_statement_handle)?;
        let mut bound = statement.bound()?;
        if bound.len() == 1 {
            let values = bound.pop().unwrap_or_default();
            return Ok(answer(self.execute(&statement, values, request.metadata()).await?));
        }
        // One answer after the other, each started when the one before it is read.
        let (service, metadata) = (self.clone(), request.metadata().clone());
        let schema = statement.prepared.schema();
        let answers = futures::stream::iter(bound).then(move |values| {
            let (service, statement, metadata) =
                (service.clone(), Arc::clone(&statement), metadata.clone());
            async move { service.execute(&statement, values, &metadata).await }
        });
        Ok(encoded(schema, answers.try_flatten()))
    }

    async fn do_put_prepared_statement_update(
        &self,
        query: CommandPreparedStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let statement = self.statements.find(&query.prepared_statement_handle)?;
        let metadata = request.metadata().clone();
        // ADBC sends the parameters here, others bind them before.
        let mut rows = parameters::read(request.into_inner(), &statement).await?;
        if rows.is_empty() {
            rows = statement.bound()?;
        }
        Ok(self.update(&statement, rows, &metadata).await?)
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query.into_builder().schema(), &query, request)
    }

    async fn do_get_catalogs(
        &self,
        query: CommandGetCatalogs,
        _request: Request<Ticket>,
    ) -> Result<DoGet, Status> {
        one(describe::catalogs(self.engine(), query).await)
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query.clone().into_builder().schema(), &query, request)
    }

    async fn do_get_schemas(
        &self,
        query: CommandGetDbSchemas,
        _request: Request<Ticket>,
    ) -> Result<DoGet, Status> {
        one(describe::schemas(self.engine(), query).await)
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query.clone().into_builder().schema(), &query, request)
    }

    async fn do_get_tables(
        &self,
        query: CommandGetTables,
        _request: Request<Ticket>,
    ) -> Result<DoGet, Status> {
        one(describe::matching_tables(self.engine(), query).await)
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query.into_builder().schema(), &query, request)
    }

    async fn do_get_table_types(
        &self,
        query: CommandGetTableTypes,
        _request: Request<Ticket>,
    ) -> Result<DoGet, Status> {
        one(describe::table_types(query))
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query.clone().into_builder(&self.abilities).schema(), &query, request)
    }

    async fn do_get_sql_info(
        &self,
        query: CommandGetSqlInfo,
        _request: Request<Ticket>,
    ) -> Result<DoGet, Status> {
        let batch = query.into_builder(&self.abilities).build().map_err(Status::from)?;
        one(Ok(batch))
    }

    async fn get_flight_info_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query.into_builder(&self.types).schema(), &query, request)
    }

    async fn do_get_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        _request: Request<Ticket>,
    ) -> Result<DoGet, Status> {
        let batch = query.into_builder(&self.types).build().map_err(Status::from)?;
        one(Ok(batch))
    }

    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}
}
