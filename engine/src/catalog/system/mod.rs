//! The `system` schema: what the engine has, does and expects, as tables.
//!
//! Each table is made anew when a query plans it, from what the actors have published; none waits. One is
//! read from disk, `system.history`, and one from memory and disk, `system.calls`.

mod buckets;
mod cluster;
mod forecasts;
mod history;
mod past;
mod sheet;

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, Result, exec_datafusion_err};
use datafusion::datasource::MemTable;

use crate::catalog::system::buckets::HistoryTable;
pub(crate) use crate::catalog::system::past::function_stats;
pub(crate) use crate::catalog::system::sheet::Sheet;
use crate::engine::Inner;

type Make = fn(&Inner) -> Sheet;

/// The table that is read from disk.
const HISTORY: &str = "history";

/// The table that is read from memory and disk.
const CALLS: &str = "calls";

/// Every other table with what makes it.
const TABLES: [(&str, Make); 21] = [
    ("announced", forecasts::announced),
    ("budgets", cluster::budgets),
    ("colocated", history::colocated),
    ("controls", history::controls),
    ("decisions", history::decisions),
    ("forecasts", forecasts::forecasts),
    ("function_stats", history::function_stats),
    ("functions", cluster::functions),
    ("groups", cluster::groups),
    ("history_counters", history::counters),
    ("members", forecasts::members),
    ("next_calls", forecasts::next_calls),
    ("nodes", cluster::nodes),
    ("outputs", cluster::outputs),
    ("partials", cluster::partials),
    ("partitions", cluster::partitions),
    ("replicas", cluster::replicas),
    ("scores", forecasts::scores),
    ("segments", cluster::segments),
    ("settings", cluster::settings),
    ("trust", history::trust),
];

/// The schema provider. It knows the engine weakly, because the engine holds it.
pub struct SystemSchema {
    engine: Arc<OnceLock<Weak<Inner>>>,
}

impl fmt::Debug for SystemSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SystemSchema")
    }
}

impl SystemSchema {
    /// A schema that shows the engine once it is set.
    pub(crate) fn new(engine: Arc<OnceLock<Weak<Inner>>>) -> Self {
        Self { engine }
    }
}

#[async_trait]
impl SchemaProvider for SystemSchema {
    fn table_names(&self) -> Vec<String> {
        let names = TABLES.iter().map(|(name, _)| *name).chain([CALLS, HISTORY]);
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort_unstable();
        names
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        if !self.table_exist(name) {
            return Ok(None);
        }
        let engine = self.engine.get().and_then(Weak::upgrade);
        let engine = engine.ok_or_else(|| exec_datafusion_err!("the engine has stopped"))?;
        if name == CALLS {
            return past::calls(&engine).map(Some);
        }
        let Some((_, make)) = TABLES.iter().find(|(table, _)| *table == name) else {
            return Ok(Some(Arc::new(HistoryTable::new(engine.the_loop.history_store()))));
        };
        let batch = make(&engine).finish()?;
        Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)))
    }

    fn table_exist(&self, name: &str) -> bool {
        [CALLS, HISTORY].contains(&name) || TABLES.iter().any(|(table, _)| *table == name)
    }
}
