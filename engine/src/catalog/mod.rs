//! Tables, views and system tables, as DataFusion sees them.

mod adaptive;
mod definitions;
mod schema;
mod system;
pub(crate) mod ticks;
mod views;
pub(crate) mod what_if;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use datafusion::catalog::TableProvider;
use datafusion::common::{Constraints, TableReference};
use datafusion::logical_expr::Expr;
use foreshard_actors::node::Tables;
use foreshard_actors::table::TableStore;

pub use adaptive::AdaptiveTable;
pub use definitions::{Definition, Definitions};
pub use schema::Schemas;
pub use system::SystemSchema;
pub(crate) use system::function_stats;

/// Name of the catalog that all tables are in: plain DataFusion's, so that full names mean the same.
pub const CATALOG: &str = "datafusion";

/// Name of the schema of users' tables that name none.
pub const SCHEMA: &str = "public";

/// Name of the schema of system tables.
pub const SYSTEM: &str = "system";

/// The tables and views of an engine. Names are as DataFusion normalises them; a name in another schema
/// than [`SCHEMA`] has the schema and a point in front.
#[derive(Default)]
pub struct Catalog {
    tables: RwLock<BTreeMap<String, Arc<dyn TableStore>>>,
    views: RwLock<BTreeMap<String, Arc<dyn TableProvider>>>,
    foreign: RwLock<BTreeMap<String, Arc<dyn TableProvider>>>,
    schemas: RwLock<BTreeSet<String>>,
    declared: RwLock<BTreeMap<String, Arc<Declared>>>,
}

/// What the statement that made a table says of its columns besides their types.
#[derive(Debug, Default)]
pub struct Declared {
    /// Keys. As in plain DataFusion nobody checks them; plans rely on them.
    pub constraints: Constraints,
    /// Values of columns that an INSERT leaves out.
    pub defaults: HashMap<String, Expr>,
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Catalog({:?})", self.names())
    }
}

impl Tables for Catalog {
    fn store(&self, table: &str) -> Option<Arc<dyn TableStore>> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner).get(table).cloned()
    }
}

impl Catalog {
    /// Adds a table; false, and nothing happens, if the name is taken.
    #[must_use]
    pub fn add(&self, store: Arc<dyn TableStore>) -> bool {
        let name = store.table().name.to_string();
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let is_view = self.views.read().unwrap_or_else(PoisonError::into_inner).contains_key(&name);
        if is_view || self.foreign(&name).is_some() || tables.contains_key(&name) {
            return false;
        }
        tables.insert(name, store);
        true
    }

    /// Adds a table over files that DataFusion reads itself; false, and nothing happens, if the name is
    /// taken.
    #[must_use]
    pub fn add_foreign(&self, name: &str, table: Arc<dyn TableProvider>) -> bool {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let mut foreign = self.foreign.write().unwrap_or_else(PoisonError::into_inner);
        let is_view = self.views.read().unwrap_or_else(PoisonError::into_inner).contains_key(name);
        if is_view || tables.contains_key(name) || foreign.contains_key(name) {
            return false;
        }
        foreign.insert(name.to_owned(), table);
        true
    }

    /// A table over files that DataFusion reads itself.
    #[must_use]
    pub fn foreign(&self, name: &str) -> Option<Arc<dyn TableProvider>> {
        self.foreign.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Removes a table over files that DataFusion reads itself; false if there is none.
    pub fn remove_foreign(&self, name: &str) -> bool {
        self.foreign.write().unwrap_or_else(PoisonError::into_inner).remove(name).is_some()
    }

    /// Removes a view; false if there is none.
    pub fn remove_view(&self, name: &str) -> bool {
        self.views.write().unwrap_or_else(PoisonError::into_inner).remove(name).is_some()
    }

    /// Notes a schema besides [`SCHEMA`]; false if it is known.
    pub fn add_schema(&self, schema: &str) -> bool {
        self.schemas.write().unwrap_or_else(PoisonError::into_inner).insert(schema.to_owned())
    }

    /// Forgets a schema; false if there is none.
    pub fn remove_schema(&self, schema: &str) -> bool {
        self.schemas.write().unwrap_or_else(PoisonError::into_inner).remove(schema)
    }

    /// Names of the schemas besides [`SCHEMA`].
    #[must_use]
    pub fn schema_names(&self) -> Vec<String> {
        self.schemas.read().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Whether users' tables can be in a schema.
    #[must_use]
    pub fn has_schema(&self, schema: &str) -> bool {
        schema == SCHEMA
            || self.schemas.read().unwrap_or_else(PoisonError::into_inner).contains(schema)
    }

    /// The schema and the bare name of a table or view.
    #[must_use]
    pub fn split<'a>(&self, name: &'a str) -> (&'a str, &'a str) {
        match name.split_once('.') {
            Some((schema, table)) if schema != SCHEMA && self.has_schema(schema) => (schema, table),
            _ => (SCHEMA, name),
        }
    }

    /// Removes a table and returns it.
    pub fn remove(&self, table: &str) -> Option<Arc<dyn TableStore>> {
        self.declared.write().unwrap_or_else(PoisonError::into_inner).remove(table);
        self.tables.write().unwrap_or_else(PoisonError::into_inner).remove(table)
    }

    /// Keeps what was declared about a table for as long as the table is there.
    pub fn declare(&self, table: &str, declared: Declared) {
        let mut all = self.declared.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(table.to_owned(), Arc::new(declared));
    }

    fn declared(&self, table: &str) -> Arc<Declared> {
        let all = self.declared.read().unwrap_or_else(PoisonError::into_inner);
        all.get(table).cloned().unwrap_or_default()
    }

    /// All tables, by name.
    #[must_use]
    pub fn stores(&self) -> Vec<Arc<dyn TableStore>> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Names of all tables and views.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        let foreign = self.foreign.read().unwrap_or_else(PoisonError::into_inner);
        tables.keys().chain(foreign.keys()).chain(views.keys()).cloned().collect()
    }
}

/// The name that [`Catalog`] knows a table by.
#[must_use]
pub fn full_name(reference: &TableReference) -> String {
    match reference.schema() {
        None | Some(SCHEMA) => reference.table().to_owned(),
        Some(schema) => format!("{schema}.{}", reference.table()),
    }
}
