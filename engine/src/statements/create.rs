//! `CREATE EXTERNAL TABLE`, `CREATE TABLE`, `DROP TABLE`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{CreateExternalTable, CreateMemoryTable, LogicalPlan};
use foreshard_actors::node::Tables;
use foreshard_actors::partitioning::Partitioning;
use futures::TryStreamExt;

use crate::catalog::Declared;
use crate::error::EngineError;
use crate::query::context::QueryContext;
use crate::session::Session;
use crate::statements::{dml, files, table_name};

/// Partitions of a table over files when nothing is said.
const FILE_PARTITIONS: u32 = 8;

/// Partitions of a written table when nothing is said.
const PARTITIONS: u32 = 4;

/// `CREATE EXTERNAL TABLE name (columns) STORED AS kind PARTITIONED BY (key) LOCATION 'where' OPTIONS (..)`.
///
/// Kinds: `DELTA` (a managed table), `PARQUET` (existing files), `MEMORY`, and what DataFusion reads
/// itself. Options of the first three: `partitions`, `strategy` (`hash` or `range`), `bounds` (comma
/// separated, for ranges).
pub(super) async fn external(
    session: &Session,
    state: &SessionState,
    create: CreateExternalTable,
    sql: &str,
) -> Result<(), EngineError> {
    let name = table_name(session, &create.name)?;
    refuse_temporary(create.temporary)?;
    let exists = session.inner.catalog.names().contains(&name);
    let kind = create.file_type.to_uppercase();
    match (exists, create.if_not_exists, create.or_replace) {
        (_, true, true) => return Err(never_both()),
        (true, true, false) => return Ok(()),
        (true, false, false) => return Err(EngineError::TableExists { name }),
        (_, false, true) if ["DELTA", "MANAGED", "MEMORY"].contains(&kind.as_str()) => {
            let message = "OR REPLACE: drop the table first".to_owned();
            return Err(EngineError::NotSupported { message });
        }
        (true, false, true) => drop_table(session, &name, true).await?,
        (false, ..) => {}
    }
    match kind.as_str() {
        "PARQUET" => parquet(session, state, &name, create, sql).await,
        "DELTA" | "MANAGED" | "MEMORY" => written(session, &name, &kind, create).await,
        _ => {
            let table = files::provider(state, &create).await?;
            files::add(&session.inner, &name, &create, sql, table)
        }
    }
}

/// A table whose rows we write.
async fn written(
    session: &Session,
    name: &str,
    kind: &str,
    create: CreateExternalTable,
) -> Result<(), EngineError> {
    let mut options = Options::new(create.options);
    let partitioning = options.partitioning(&create.table_partition_cols)?;
    options.finish()?;
    let schema: SchemaRef = Arc::new(create.schema.as_arrow().clone());
    if schema.fields().is_empty() {
        return Err(EngineError::Invalid {
            message: format!(
                "a {kind} table needs columns: CREATE EXTERNAL TABLE {name} (column TYPE, ..)"
            ),
        });
    }
    if kind == "MEMORY" {
        return memory_table(session, name, schema, partitioning).await;
    }
    let location = create.locations.first().cloned().unwrap_or_default();
    session.inner.create_managed(name, &location, schema, partitioning).await
}

/// A table over Parquet files: one of ours if that gives the rows that DataFusion itself would give.
async fn parquet(
    session: &Session,
    state: &SessionState,
    name: &str,
    mut create: CreateExternalTable,
    sql: &str,
) -> Result<(), EngineError> {
    let given = create.options.remove("partitions");
    let given = given.or_else(|| create.options.remove("format.partitions"));
    let location = create.locations.first().cloned().unwrap_or_default();
    let inner = &session.inner;
    let opened = if files::is_bare(&create) {
        let mut options =
            Options(given.iter().map(|n| ("partitions".to_owned(), n.clone())).collect());
        let partitions = options.number("partitions", FILE_PARTITIONS)?;
        let own = inner.parquet_table(name, &location, partitions).await;
        let foreign = files::provider(state, &create).await;
        match (own, foreign) {
            (Ok(own), Ok(foreign)) if !files::same(&own, &foreign.schema()) => Ok(foreign),
            (Ok(own), _) => return inner.add_parquet(name, own).await,
            (Err(_), Ok(foreign)) => Ok(foreign),
            (Err(own), Err(_)) => Err(own),
        }
    } else {
        files::provider(state, &create).await
    };
    let table = opened?;
    if given.is_some() {
        let message = format!(
            "option partitions is for files that are read as they are, all of one folder; {name} has \
             columns, folders, orders or options of its own"
        );
        return Err(EngineError::Invalid { message });
    }
    files::add(inner, name, &create, sql, table)
}

fn never_both() -> EngineError {
    let message = "IF NOT EXISTS and OR REPLACE exclude each other".to_owned();
    EngineError::Invalid { message }
}

fn refuse_temporary(is_temporary: bool) -> Result<(), EngineError> {
    let message = "temporary tables: every session sees every table";
    if is_temporary {
        Err(EngineError::NotSupported { message: message.to_owned() })
    } else {
        Ok(())
    }
}

async fn memory_table(
    session: &Session,
    name: &str,
    schema: SchemaRef,
    partitioning: Partitioning,
) -> Result<(), EngineError> {
    let store = foreshard_actors::store::MemoryTable::create(name, schema, partitioning)?;
    session.inner.add_table(Arc::new(store)).await
}

/// `CREATE TABLE name (columns)` and `CREATE TABLE name AS SELECT ..`: a memory table.
pub(super) async fn memory(
    session: &Session,
    state: &SessionState,
    create: CreateMemoryTable,
    _query: &Arc<QueryContext>,
) -> Result<(), EngineError> {
    let name = table_name(session, &create.name)?;
    refuse_temporary(create.temporary)?;
    let exists = session.inner.catalog.names().contains(&name);
    match (exists, create.if_not_exists, create.or_replace) {
        (_, true, true) => return Err(never_both()),
        (true, true, false) => return Ok(()),
        (true, false, false) => return Err(EngineError::TableExists { name }),
        (true, false, true) => drop_table(session, &name, true).await?,
        (false, ..) => {}
    }
    let schema: SchemaRef = Arc::new(create.input.schema().as_arrow().clone());
    let batches = rows(session, state, create.input.as_ref().clone()).await?;
    let partitions = session.inner.config.table_partitions();
    memory_table(session, &name, Arc::clone(&schema), spread(&schema, partitions)).await?;
    let declared = Declared {
        constraints: create.constraints,
        defaults: create.column_defaults.into_iter().collect(),
    };
    session.inner.catalog.declare(&name, declared);
    let store = session.inner.writable(&name)?;
    let batches = dml::fit_all(&store.table().schema, batches)?;
    session.inner.append(&store, batches).await
}

/// Partitions by the hash of the first column that has one; a single partition if none has.
fn spread(schema: &SchemaRef, partitions: u32) -> Partitioning {
    let by = |name: &String| Partitioning::Hash { columns: vec![name.clone()], partitions };
    let mut keys = schema.fields().iter().map(|field| by(field.name()));
    let key = keys.find(|key| partitions > 1 && key.check(schema).is_ok());
    key.unwrap_or_else(Partitioning::single)
}

/// Runs a plan to its end.
pub(super) async fn rows(
    session: &Session,
    state: &SessionState,
    plan: LogicalPlan,
) -> Result<Vec<arrow::record_batch::RecordBatch>, EngineError> {
    let plan = session.physical(state, plan).await?;
    let stream = session.execute_plan(state, plan)?;
    stream.try_collect().await.map_err(|error| session.explain(error))
}

/// Takes a table out of the catalog. Files of managed tables and foreign files stay where they are.
pub(super) async fn drop_table(
    session: &Session,
    name: &str,
    if_exists: bool,
) -> Result<(), EngineError> {
    let inner = &session.inner;
    if let Some(view) = inner.catalog.views_of(name).first()
        && let Some(store) = inner.catalog.store(name)
        && !inner.catalog.keep_rows(store.as_ref())?
    {
        let message = format!("view {view} reads table {name}; drop the view first");
        return Err(EngineError::Invalid { message });
    }
    if inner.catalog.remove_foreign(name) {
        return inner.definitions.remove(name);
    }
    if inner.catalog.remove(name).is_none() {
        if if_exists {
            return Ok(());
        }
        let names = inner.catalog.names();
        if names.iter().any(|taken| taken == name) {
            let name = format!("{name}: it is a view, and DROP VIEW {name} drops it");
            return Err(EngineError::UnknownTable { name, nearest: None });
        }
        return Err(EngineError::UnknownTable { name: name.to_owned(), nearest: None }
            .with_nearest(names.iter().map(String::as_str)));
    }
    inner.definitions.remove(name)?;
    inner.members.table_dropped(name).await;
    inner.groups.forget(Some(name));
    let table = name.to_owned();
    // A table of this name that comes later is another one.
    inner.the_loop.change_controls(move |all| all.forget(&table)).await?;
    Ok(())
}

/// Options of a `CREATE` statement; one that is not taken is an error.
struct Options(HashMap<String, String>);

impl Options {
    fn new(given: HashMap<String, String>) -> Self {
        let plain = |key: String| key.strip_prefix("format.").map(ToOwned::to_owned).unwrap_or(key);
        Self(given.into_iter().map(|(key, value)| (plain(key), value)).collect())
    }

    fn number(&mut self, key: &str, default: u32) -> Result<u32, EngineError> {
        let Some(text) = self.0.remove(key) else { return Ok(default) };
        text.parse().map_err(|_no_number| EngineError::Invalid {
            message: format!("option {key} is {text:?}; it must be a whole number from 1"),
        })
    }

    fn partitioning(&mut self, key: &[String]) -> Result<Partitioning, EngineError> {
        let strategy = self.0.remove("strategy").unwrap_or_else(|| "hash".to_owned());
        let partitions = self.number("partitions", PARTITIONS)?;
        match (strategy.to_lowercase().as_str(), key) {
            ("hash", []) => Ok(Partitioning::Files { partitions: 1 }),
            ("hash", columns) => Ok(Partitioning::Hash { columns: columns.to_vec(), partitions }),
            ("range", [column]) => {
                let bounds = self.0.remove("bounds").unwrap_or_default();
                let bounds = bounds.split(',').map(str::trim).filter(|bound| !bound.is_empty());
                let bounds = bounds.map(ToOwned::to_owned).collect();
                Ok(Partitioning::Range { column: column.clone(), bounds })
            }
            ("range", columns) => Err(EngineError::Invalid {
                message: format!("a range needs PARTITIONED BY one column, not {}", columns.len()),
            }),
            (other, _) => Err(EngineError::Invalid {
                message: format!("option strategy is {other:?}; it must be hash or range"),
            }),
        }
    }

    fn finish(self) -> Result<(), EngineError> {
        let known = ["partitions", "strategy", "bounds"];
        match self.0.into_keys().min() {
            None => Ok(()),
            Some(key) => {
                let nearest = crate::error::nearest(&key, known);
                let hint = nearest.map(|name| format!("; did you mean {name}?"));
                let hint = hint.unwrap_or_else(|| format!("; known are {}", known.join(", ")));
                Err(EngineError::Invalid { message: format!("unknown option {key}{hint}") })
            }
        }
    }
}
