//! Views, and what becomes of them when a table that they read is dropped.
//!
//! A view holds the tables that it was made over. As in plain DataFusion it goes on answering from the rows
//! that a table in memory had when it was dropped: they are shared, not copied.

use std::sync::{Arc, PoisonError};

use datafusion::catalog::TableProvider;
use datafusion::catalog::view::ViewTable;
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::LogicalPlan;
use foreshard_actors::table::TableStore;

use crate::catalog::{Catalog, full_name};

impl Catalog {
    /// Names of the views that read a table, also through other views.
    #[must_use]
    pub fn views_of(&self, table: &str) -> Vec<String> {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        let is_one = |view: &&Arc<dyn TableProvider>| {
            view.get_logical_plan().is_some_and(|plan| reads(&plan, table))
        };
        let names = views.iter().filter(|(_, view)| is_one(view)).map(|(name, _)| name.clone());
        names.collect()
    }

    /// Gives the views that read a table the rows that it has now, to keep when it is dropped; false if
    /// they are not in memory.
    ///
    /// # Errors
    /// If a view's plan cannot be made anew.
    pub fn keep_rows(&self, store: &dyn TableStore) -> Result<bool> {
        let (table, snapshot) = (store.table(), store.snapshot());
        let pinned: Option<Vec<_>> = snapshot
            .segments()
            .map(|segment| segment.pinned.as_ref().map(|rows| rows.to_vec()))
            .collect();
        let Some(parts) = pinned else { return Ok(false) };
        let parts = if parts.is_empty() { vec![vec![]] } else { parts };
        let rows: Arc<dyn TableProvider> =
            Arc::new(MemTable::try_new(Arc::clone(&table.schema), parts)?);
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        for view in views.values_mut() {
            if let Some(kept) = with_rows(view, &table.name, &rows)? {
                *view = kept;
            }
        }
        Ok(true)
    }
}

fn reads(plan: &LogicalPlan, table: &str) -> bool {
    let mut found = false;
    // The closure never fails, so neither does the walk.
    drop(plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let inner = scan.source.get_logical_plan();
            found |= match inner {
                Some(view) => reads(&view, table),
                None => full_name(&scan.table_name) == table,
            };
        }
        Ok(TreeNodeRecursion::Continue)
    }));
    found
}

/// A view over `rows` instead of `table`; `None` if it does not read the table.
fn with_rows(
    view: &Arc<dyn TableProvider>,
    table: &str,
    rows: &Arc<dyn TableProvider>,
) -> Result<Option<Arc<dyn TableProvider>>> {
    let Some(plan) = view.get_logical_plan() else { return Ok(None) };
    let changed = over_rows(plan.into_owned(), table, rows)?;
    let definition = view.get_table_definition().map(ToOwned::to_owned);
    let kept = || Arc::new(ViewTable::new(changed.data, definition)) as Arc<dyn TableProvider>;
    Ok(changed.transformed.then(kept))
}

fn over_rows(
    plan: LogicalPlan,
    table: &str,
    rows: &Arc<dyn TableProvider>,
) -> Result<Transformed<LogicalPlan>> {
    plan.transform_up_with_subqueries(|node| {
        let LogicalPlan::TableScan(mut scan) = node else { return Ok(Transformed::no(node)) };
        if let Some(inner) = scan.source.get_logical_plan() {
            let inner = over_rows(inner.into_owned(), table, rows)?;
            if inner.transformed {
                scan.source = provider_as_source(Arc::new(ViewTable::new(inner.data, None)));
            }
            return Ok(Transformed::new_transformed(
                LogicalPlan::TableScan(scan),
                inner.transformed,
            ));
        }
        let is_it = full_name(&scan.table_name) == table;
        if is_it {
            scan.source = provider_as_source(Arc::clone(rows));
        }
        Ok(Transformed::new_transformed(LogicalPlan::TableScan(scan), is_it))
    })
}
