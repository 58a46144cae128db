//! Before a query is planned: looks for Parquet files that were written over, added or removed.
//!
//! A listing per query and table is what plain DataFusion pays for a file too. (Of a folder it remembers the
//! first listing for ever, unless `datafusion.runtime.list_files_cache_limit` is 0; we never do.) A file
//! that changes after this look, while the query runs, is an error that names it, never other rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::common::Result;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::LogicalPlan;
use foreshard_actors::table::{Committed, TableKind, TableStore};

use crate::catalog::AdaptiveTable;
use crate::engine::Inner;
use crate::error::EngineError;

/// Makes the newest snapshot of each table over Parquet files that `plan` reads one of the files as they
/// are now, and tells the nodes of it if it is another one than before.
pub(crate) async fn look(inner: &Inner, plan: &LogicalPlan) -> Result<(), EngineError> {
    let mut tables = BTreeMap::new();
    collect(plan, &mut tables)?;
    for store in tables.into_values() {
        let before = store.snapshot().version;
        let snapshot = store.refresh().await?;
        if snapshot.version != before {
            inner.publish(Committed { snapshot, added: vec![], rewritten: vec![] });
        }
    }
    Ok(())
}

/// The stores of tables over Parquet files below `plan`, by name; views are looked through.
fn collect(plan: &LogicalPlan, tables: &mut BTreeMap<Arc<str>, Arc<dyn TableStore>>) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        let LogicalPlan::TableScan(scan) = node else { return Ok(TreeNodeRecursion::Continue) };
        if let Some(view) = scan.source.get_logical_plan() {
            collect(&view, tables)?;
        } else if let Ok(provider) = source_as_provider(&scan.source) {
            let provider: &dyn TableProvider = provider.as_ref();
            if let Some(table) = provider.downcast_ref::<AdaptiveTable>()
                && table.store().table().kind == TableKind::Parquet
            {
                let name = Arc::clone(&table.store().table().name);
                tables.insert(name, Arc::clone(table.store()));
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}
