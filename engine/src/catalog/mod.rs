//! Tables, views and system tables, as DataFusion sees them.

mod adaptive;
mod definitions;
mod system;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Constraints, DataFusionError, Result, exec_err};
use datafusion::logical_expr::{Expr, LogicalPlan};
use foreshard_actors::node::Tables;
use foreshard_actors::table::TableStore;

pub use adaptive::AdaptiveTable;
pub use definitions::{Definition, Definitions};
pub use system::SystemSchema;

/// Name of the catalog that all tables are in.
pub const CATALOG: &str = "foreshard";

/// Name of the schema of users' tables.
pub const SCHEMA: &str = "public";

/// Name of the schema of system tables.
pub const SYSTEM: &str = "system";

/// The tables and views of an engine. Names are as DataFusion normalises them.
#[derive(Default)]
pub struct Catalog {
    tables: RwLock<BTreeMap<String, Arc<dyn TableStore>>>,
    views: RwLock<BTreeMap<String, Arc<dyn TableProvider>>>,
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
        if is_view || tables.contains_key(&name) {
            return false;
        }
        tables.insert(name, store);
        true
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

    /// Names of the views that read a table.
    #[must_use]
    pub fn views_of(&self, table: &str) -> Vec<String> {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        let reads = |view: &&Arc<dyn TableProvider>| {
            let Some(plan) = view.get_logical_plan() else { return false };
            let mut reads = false;
            // The closure never fails, so neither does the walk.
            drop(plan.apply_with_subqueries(|node| {
                if let LogicalPlan::TableScan(scan) = node {
                    let is_public = scan.table_name.schema().is_none_or(|schema| schema == SCHEMA);
                    reads |= is_public && scan.table_name.table() == table;
                }
                Ok(TreeNodeRecursion::Continue)
            }));
            reads
        };
        let names = views.iter().filter(|(_, view)| reads(view)).map(|(name, _)| name.clone());
        names.collect()
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
        tables.keys().chain(views.keys()).cloned().collect()
    }
}

/// The schema of users' tables and views.
#[derive(Debug)]
pub struct PublicSchema(pub Arc<Catalog>);

#[async_trait]
impl SchemaProvider for PublicSchema {
    fn table_names(&self) -> Vec<String> {
        self.0.names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        if let Some(store) = self.0.store(name) {
            let declared = self.0.declared(name);
            return Ok(Some(Arc::new(AdaptiveTable::new(store).with_declared(declared))));
        }
        Ok(self.0.views.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned())
    }

    fn register_table(
        &self,
        name: String,
        table: Arc<dyn TableProvider>,
    ) -> Result<Option<Arc<dyn TableProvider>>> {
        if self.0.store(&name).is_some() {
            return exec_err!("table {name} exists already");
        }
        Ok(self.0.views.write().unwrap_or_else(PoisonError::into_inner).insert(name, table))
    }

    fn deregister_table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        Ok(self.0.views.write().unwrap_or_else(PoisonError::into_inner).remove(name))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.store(name).is_some()
            || self.0.views.read().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }
}
