//! The catalog as DataFusion asks for it: schemas of users' tables and views, and the system tables.

use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, Result, TableReference, exec_err};
use foreshard_actors::node::Tables;

use crate::catalog::{AdaptiveTable, Catalog, SCHEMA, SYSTEM, SystemSchema, full_name};

/// All schemas.
#[derive(Debug)]
pub struct Schemas {
    catalog: Arc<Catalog>,
    system: Arc<SystemSchema>,
}

impl Schemas {
    /// The schemas of `catalog`, and the system tables.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>, system: SystemSchema) -> Self {
        Self { catalog, system: Arc::new(system) }
    }
}

impl CatalogProvider for Schemas {
    fn schema_names(&self) -> Vec<String> {
        let mut names = self.catalog.schema_names();
        names.extend([SCHEMA, SYSTEM].map(ToOwned::to_owned));
        names
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        match name {
            SYSTEM => Some(Arc::clone(&self.system) as Arc<dyn SchemaProvider>),
            name if self.catalog.has_schema(name) => {
                Some(Arc::new(UserSchema::new(Arc::clone(&self.catalog), name)))
            }
            _ => None,
        }
    }
}

/// The part of a catalog that is in one schema.
#[derive(Debug)]
struct UserSchema {
    catalog: Arc<Catalog>,
    name: String,
}

impl UserSchema {
    fn new(catalog: Arc<Catalog>, name: &str) -> Self {
        Self { catalog, name: name.to_owned() }
    }

    fn full(&self, table: &str) -> String {
        full_name(&TableReference::partial(self.name.as_str(), table))
    }

    fn view(&self, name: &str) -> Option<Arc<dyn TableProvider>> {
        self.catalog.views.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

#[async_trait]
impl SchemaProvider for UserSchema {
    fn table_names(&self) -> Vec<String> {
        let names = self.catalog.names();
        let parts = names.iter().map(|name| self.catalog.split(name));
        let own = parts.filter(|(schema, _)| *schema == self.name);
        own.map(|(_, table)| table.to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let name = self.full(name);
        if let Some(store) = self.catalog.store(&name) {
            let declared = self.catalog.declared(&name);
            return Ok(Some(Arc::new(AdaptiveTable::new(store).with_declared(declared))));
        }
        Ok(self.catalog.foreign(&name).or_else(|| self.view(&name)))
    }

    fn register_table(
        &self,
        name: String,
        table: Arc<dyn TableProvider>,
    ) -> Result<Option<Arc<dyn TableProvider>>> {
        let name = self.full(&name);
        if self.catalog.store(&name).is_some() || self.catalog.foreign(&name).is_some() {
            return exec_err!("table {name} exists already");
        }
        let mut views = self.catalog.views.write().unwrap_or_else(PoisonError::into_inner);
        Ok(views.insert(name, table))
    }

    fn deregister_table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let mut views = self.catalog.views.write().unwrap_or_else(PoisonError::into_inner);
        Ok(views.remove(&self.full(name)))
    }

    fn table_exist(&self, name: &str) -> bool {
        let name = self.full(name);
        self.catalog.store(&name).is_some()
            || self.catalog.foreign(&name).is_some()
            || self.view(&name).is_some()
    }
}
