//! Tables over files that DataFusion reads and writes itself: CSV, JSON, Arrow, and Parquet with columns,
//! folders that name values, orders or options.
//!
//! They are in no partitions, and nothing is stored for them. What DataFusion promises of them holds: an
//! INSERT adds a file, and is no commit.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef, UInt64Type};
use datafusion::catalog::TableProvider;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{
    CreateExternalTable, DdlStatement, DmlStatement, LogicalPlan, WriteOp,
};
use foreshard_actors::segment::{Location, Segment};
use foreshard_actors::table::{TableKind, TableStore};

use crate::catalog::{Definition, SCHEMA};
use crate::engine::Inner;
use crate::error::EngineError;
use crate::session::Session;
use crate::statements::create::rows;
use crate::statements::parse_one;

/// What DataFusion makes tables of. Avro is a feature of it that is not built.
const KINDS: [&str; 5] = ["PARQUET", "CSV", "JSON", "NDJSON", "ARROW"];

/// Whether a statement asks for nothing but the files as they are.
pub(super) fn is_bare(create: &CreateExternalTable) -> bool {
    let [location] = create.locations.as_slice() else { return create.locations.is_empty() };
    create.schema.fields().is_empty()
        && create.table_partition_cols.is_empty()
        && create.order_exprs.is_empty()
        && create.constraints.is_empty()
        && !create.unbounded
        && !location.contains(['*', '?', '['])
        && create.options.is_empty()
}

/// Whether plain DataFusion sees the same rows and columns in the files as our own table does. A setting
/// of each query says whether it looks into folders below.
pub(super) fn same(own: &dyn TableStore, foreign: &SchemaRef) -> bool {
    let columns = |schema: &SchemaRef| -> Vec<(String, DataType)> {
        let fields = schema.fields().iter();
        fields.map(|field| (field.name().clone(), without_views(field.data_type()))).collect()
    };
    let is_below_a_folder = |segment: &Arc<Segment>| match &segment.location {
        Location::Parquet { path, .. } => path.contains('/'),
        Location::Memory => false,
    };
    let is_nested = || own.snapshot().segments().any(is_below_a_folder);
    columns(&own.table().schema) == columns(foreign) && !is_nested()
}

/// DataFusion reads texts as views of them, which hold the same values.
fn without_views(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        other => other.clone(),
    }
}

/// The table that DataFusion makes of a statement.
pub(super) async fn provider(
    state: &SessionState,
    create: &CreateExternalTable,
) -> Result<Arc<dyn TableProvider>, EngineError> {
    let kind = create.file_type.to_uppercase();
    let factory = state.table_factories().get(&kind).filter(|_| KINDS.contains(&kind.as_str()));
    let factory = factory.ok_or_else(|| EngineError::NotSupported {
        message: format!("STORED AS {kind}; it must be DELTA, MEMORY, PARQUET, CSV, JSON or ARROW"),
    })?;
    Ok(factory.create(state, create).await?)
}

/// Adds a table that DataFusion made, and keeps the statement for the next start.
pub(super) fn add(
    inner: &Inner,
    name: &str,
    create: &CreateExternalTable,
    sql: &str,
    table: Arc<dyn TableProvider>,
) -> Result<(), EngineError> {
    if !inner.catalog.add_foreign(name, table) {
        return Err(EngineError::TableExists { name: name.to_owned() });
    }
    let locations: Vec<String> =
        create.locations.iter().map(|location| absolute(location)).collect::<Result<_, _>>()?;
    inner.definitions.add(Definition {
        name: name.to_owned(),
        kind: TableKind::Parquet,
        url: locations.first().cloned().unwrap_or_default(),
        partitions: 1,
        statement: Some(sql.to_owned()),
        locations,
        in_schema: inner.catalog.split(name).0 != SCHEMA,
    })
}

/// A path that means the same from every working folder.
fn absolute(location: &str) -> Result<String, EngineError> {
    if location.contains("://") {
        return Ok(location.to_owned());
    }
    let path = std::path::absolute(location)
        .map_err(|source| EngineError::Unwritable { path: location.into(), source })?;
    Ok(path.to_string_lossy().into_owned())
}

/// Opens a table of an earlier run again.
pub(crate) async fn reopen(
    session: &Session,
    state: &SessionState,
    definition: &Definition,
    sql: &str,
) -> Result<(), EngineError> {
    let statement = parse_one(state, sql)?;
    let plan = state.statement_to_plan(statement).await?;
    let LogicalPlan::Ddl(DdlStatement::CreateExternalTable(mut create)) = plan else {
        let message = format!("table {} has another statement: {sql}", definition.name);
        return Err(EngineError::Damaged { message });
    };
    create.locations.clone_from(&definition.locations);
    let table = provider(state, &create).await?;
    match session.inner.catalog.add_foreign(&definition.name, table) {
        true => Ok(()),
        false => Err(EngineError::TableExists { name: definition.name.clone() }),
    }
}

/// Adds rows as DataFusion does; nothing else can be changed.
pub(super) async fn write(
    session: &Session,
    state: &SessionState,
    statement: DmlStatement,
) -> Result<u64, EngineError> {
    if !matches!(statement.op, WriteOp::Insert(_)) {
        let table = &statement.table_name;
        let message = format!("{} on table {table}, whose rows are in files", statement.op);
        return Err(EngineError::NotSupported { message });
    }
    let counts = rows(session, state, LogicalPlan::Dml(statement)).await?;
    let count = |batch: &RecordBatch| -> u64 {
        let column = batch.column(0).as_primitive_opt::<UInt64Type>();
        column.map(|rows| rows.values().iter().sum()).unwrap_or_default()
    };
    Ok(counts.iter().map(count).sum())
}
