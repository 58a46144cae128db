//! `CREATE SCHEMA` and `DROP SCHEMA`.

use datafusion::common::{SchemaReference, TableReference};
use datafusion::logical_expr::{CreateCatalogSchema, DropCatalogSchema};

use crate::catalog::{CATALOG, SCHEMA, SYSTEM, full_name};
use crate::error::EngineError;
use crate::session::Session;
use crate::statements::create;

/// Name of DataFusion's own schema.
const INFORMATION: &str = "information_schema";

/// The catalog's name of a user's table.
pub(crate) fn table_name(
    session: &Session,
    reference: &TableReference,
) -> Result<String, EngineError> {
    own_catalog(reference.catalog())?;
    match reference.schema() {
        Some(SYSTEM | INFORMATION) => Err(EngineError::ReadOnly { name: reference.to_string() }),
        Some(schema) if !session.inner.catalog.has_schema(schema) => Err(unknown(schema)),
        _ => Ok(full_name(reference)),
    }
}

fn own_catalog(catalog: Option<&str>) -> Result<(), EngineError> {
    match catalog {
        None | Some(CATALOG) => Ok(()),
        Some(other) => {
            Err(invalid(format!("there is no catalog {other}; the only one is {CATALOG}")))
        }
    }
}

fn unknown(schema: &str) -> EngineError {
    invalid(format!("there is no schema {schema}; CREATE SCHEMA {schema} makes one"))
}

fn invalid(message: String) -> EngineError {
    EngineError::Invalid { message }
}

/// Makes a schema. It lasts as long as the engine; one with durable tables comes back with them.
pub(super) fn create(session: &Session, create: &CreateCatalogSchema) -> Result<(), EngineError> {
    let (catalog, name) = match create.schema_name.split_once('.') {
        Some((catalog, name)) => (Some(catalog), name),
        None => (None, create.schema_name.as_str()),
    };
    own_catalog(catalog)?;
    if name.is_empty() || name.contains('.') {
        return Err(invalid(format!(
            "{name:?} cannot be a schema's name: it is empty or has a point"
        )));
    }
    let all = &session.inner.catalog;
    if all.has_schema(name) || [SYSTEM, INFORMATION].contains(&name) {
        let exists = format!("schema {name} exists already");
        return if create.if_not_exists { Ok(()) } else { Err(invalid(exists)) };
    }
    let start = format!("{name}.");
    if let Some(taken) = all.names().iter().find(|table| table.starts_with(&start)) {
        return Err(invalid(format!("table {taken} would be one of schema {name}; drop it first")));
    }
    all.add_schema(name);
    Ok(())
}

/// Drops a schema; one with tables only with CASCADE.
pub(super) async fn drop(session: &Session, drop: &DropCatalogSchema) -> Result<(), EngineError> {
    let name = match &drop.name {
        SchemaReference::Bare { schema } => schema,
        SchemaReference::Full { schema, catalog } => {
            own_catalog(Some(catalog))?;
            schema
        }
    };
    if [SCHEMA, SYSTEM, INFORMATION].contains(&name.as_ref()) {
        return Err(invalid(format!("schema {name} cannot be dropped")));
    }
    let all = &session.inner.catalog;
    if !all.has_schema(name) {
        return if drop.if_exists { Ok(()) } else { Err(unknown(name)) };
    }
    let tables: Vec<String> =
        all.names().into_iter().filter(|table| all.split(table).0 == name.as_ref()).collect();
    if !tables.is_empty() && !drop.cascade {
        let held = tables.join(", ");
        return Err(invalid(format!("schema {name} has {held}; drop them first, or say CASCADE")));
    }
    let readers = tables.iter().flat_map(|table| all.views_of(table));
    if let Some(view) = readers.into_iter().find(|view| !tables.contains(view)) {
        return Err(invalid(format!("view {view} reads from schema {name}; drop the view first")));
    }
    // A table that a view reads is not dropped.
    for view in tables.iter().filter(|table| all.remove_view(table)) {
        tracing::debug!(view, "dropped with its schema");
    }
    for table in &tables {
        create::drop_table(session, table, true).await?;
    }
    all.remove_schema(name);
    Ok(())
}
