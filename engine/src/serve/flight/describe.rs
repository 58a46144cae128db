//! What clients ask about the database: catalogs, schemas, tables, types and abilities.

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};
use arrow::record_batch::RecordBatch;
use arrow_flight::error::FlightError;
use arrow_flight::sql::metadata::{
    SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder,
};
use arrow_flight::sql::{
    CommandGetCatalogs, CommandGetDbSchemas, CommandGetTableTypes, CommandGetTables, Nullable,
    Searchable, SqlInfo, SqlSupportedTransaction, XdbcDataType,
};

use crate::engine::Engine;
use crate::error::EngineError;

/// The kinds of tables as `information_schema` calls them.
const TABLE_TYPES: [&str; 3] = ["BASE TABLE", "LOCAL TEMPORARY", "VIEW"];

/// A table as clients see it.
struct Listed {
    catalog: String,
    schema: String,
    name: String,
    kind: String,
}

async fn tables(engine: &Engine) -> Result<Vec<Listed>, EngineError> {
    let sql = "SELECT table_catalog, table_schema, table_name, table_type \
               FROM information_schema.tables ORDER BY 1, 2, 3";
    let mut listed = Vec::new();
    for batch in engine.sql(sql).await? {
        let texts: Result<Vec<_>, _> =
            batch.columns().iter().map(|column| cast(column, &DataType::Utf8)).collect();
        let texts = texts?;
        let text = |column: usize, row| texts[column].as_string::<i32>().value(row).to_owned();
        listed.extend((0..batch.num_rows()).map(|row| Listed {
            catalog: text(0, row),
            schema: text(1, row),
            name: text(2, row),
            kind: text(3, row),
        }));
    }
    Ok(listed)
}

fn built(batch: Result<RecordBatch, FlightError>) -> Result<RecordBatch, EngineError> {
    batch.map_err(|error| match error {
        FlightError::Arrow(error) => error.into(),
        other => EngineError::Request { reason: other.to_string() },
    })
}

/// All catalogs.
pub(super) async fn catalogs(
    engine: &Engine,
    asked: CommandGetCatalogs,
) -> Result<RecordBatch, EngineError> {
    let mut builder = asked.into_builder();
    let mut names: Vec<_> = tables(engine).await?.into_iter().map(|table| table.catalog).collect();
    names.dedup();
    names.into_iter().for_each(|name| builder.append(name));
    built(builder.build())
}

/// The schemas that match.
pub(super) async fn schemas(
    engine: &Engine,
    asked: CommandGetDbSchemas,
) -> Result<RecordBatch, EngineError> {
    let mut builder = asked.into_builder();
    let tables = tables(engine).await?;
    let mut names: Vec<_> = tables.into_iter().map(|table| (table.catalog, table.schema)).collect();
    names.dedup();
    names.iter().for_each(|(catalog, schema)| builder.append(catalog, schema));
    built(builder.build())
}

/// The tables that match, with their schemas if they are asked for.
pub(super) async fn matching_tables(
    engine: &Engine,
    asked: CommandGetTables,
) -> Result<RecordBatch, EngineError> {
    let with_schema = asked.include_schema;
    let mut builder = asked.into_builder();
    let session = engine.session();
    for Listed { catalog, schema, name, kind } in tables(engine).await? {
        let columns = if with_schema {
            let [c, s, n] = [&catalog, &schema, &name].map(|part| part.replace('"', "\"\""));
            let all = format!("SELECT * FROM \"{c}\".\"{s}\".\"{n}\"");
            session.prepare(&all).await?.schema().as_ref().clone()
        } else {
            Schema::empty()
        };
        builder.append(catalog, schema, name, kind, &columns).map_err(|error| {
            EngineError::Request { reason: format!("a schema cannot be sent: {error}") }
        })?;
    }
    built(builder.build())
}

/// The kinds of tables there can be.
pub(super) fn table_types(asked: CommandGetTableTypes) -> Result<RecordBatch, EngineError> {
    let mut builder = asked.into_builder();
    TABLE_TYPES.iter().for_each(|kind| builder.append(kind));
    built(builder.build())
}

/// What the server can do.
pub(super) fn abilities() -> Result<SqlInfoData, FlightError> {
    let mut builder = SqlInfoDataBuilder::new();
    builder.append(SqlInfo::FlightSqlServerName, "foreshard");
    builder.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    builder.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    builder.append(SqlInfo::FlightSqlServerReadOnly, false);
    builder.append(SqlInfo::FlightSqlServerSql, true);
    builder.append(SqlInfo::FlightSqlServerSubstrait, false);
    let none = SqlSupportedTransaction::None as i32;
    builder.append(SqlInfo::FlightSqlServerTransaction, none);
    builder.append(SqlInfo::FlightSqlServerCancel, false);
    builder.append(SqlInfo::SqlDdlTable, true);
    builder.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    builder.append(SqlInfo::SqlAllTablesAreSelectable, true);
    builder.build()
}

/// The SQL types that columns can have.
pub(super) fn types() -> Result<XdbcTypeInfoData, FlightError> {
    let mut builder = XdbcTypeInfoDataBuilder::new();
    let mut add = |name: &str, kind: XdbcDataType, size: i32, quote: Option<&str>| {
        builder.append(XdbcTypeInfo {
            type_name: name.to_owned(),
            data_type: kind,
            sql_data_type: kind,
            column_size: Some(size),
            literal_prefix: quote.map(str::to_owned),
            literal_suffix: quote.map(str::to_owned),
            nullable: Nullable::NullabilityNullable,
            case_sensitive: quote.is_some(),
            searchable: Searchable::Full,
            unsigned_attribute: quote.is_none().then_some(false),
            local_type_name: Some(name.to_owned()),
            num_prec_radix: quote.is_none().then_some(10),
            ..XdbcTypeInfo::default()
        });
    };
    add("BOOLEAN", XdbcDataType::XdbcBit, 1, None);
    add("TINYINT", XdbcDataType::XdbcTinyint, 3, None);
    add("SMALLINT", XdbcDataType::XdbcSmallint, 5, None);
    add("INTEGER", XdbcDataType::XdbcInteger, 10, None);
    add("BIGINT", XdbcDataType::XdbcBigint, 19, None);
    add("REAL", XdbcDataType::XdbcReal, 7, None);
    add("DOUBLE", XdbcDataType::XdbcDouble, 15, None);
    add("DECIMAL", XdbcDataType::XdbcDecimal, 38, None);
    add("VARCHAR", XdbcDataType::XdbcVarchar, i32::MAX, Some("'"));
    add("BYTEA", XdbcDataType::XdbcVarbinary, i32::MAX, Some("'"));
    add("DATE", XdbcDataType::XdbcDate, 10, Some("'"));
    add("TIMESTAMP", XdbcDataType::XdbcTimestamp, 29, Some("'"));
    builder.build()
}
