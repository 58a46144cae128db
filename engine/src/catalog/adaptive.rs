//! A table as DataFusion plans it: pins a snapshot, leaves out what cannot match, and assigns segments
//! to nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{ScanArgs, ScanResult, Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{
    ColumnStatistics, Constraints, Result, ScalarValue, Statistics, internal_err,
};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_plan::ExecutionPlan;
use foreshard_actors::segment::{ColumnRange, Segment};
use foreshard_actors::table::{Snapshot, TableStore};
use foreshard_policy::ids::{NodeId, PartitionId};

use crate::catalog::Declared;
use crate::query::context::QueryContext;
use crate::query::key_range::asked;
use crate::query::prune::prune;
use crate::query::scan::{PartitionScanExec, Placed, ScanSegment, ScanTable};

/// A table of the catalog.
///
/// `delete_from` and `update` stay unimplemented on purpose: DataFusion hands them the filters of the
/// optimised plan, in which `WHERE false` and `WHERE id IN (SELECT ..)` have none left.
#[derive(Debug)]
pub struct AdaptiveTable {
    store: Arc<dyn TableStore>,
    declared: Arc<Declared>,
}

impl AdaptiveTable {
    /// The table that `store` keeps.
    #[must_use]
    pub fn new(store: Arc<dyn TableStore>) -> Self {
        Self { store, declared: Arc::default() }
    }

    /// Adds what was declared about its columns.
    #[must_use]
    pub fn with_declared(mut self, declared: Arc<Declared>) -> Self {
        self.declared = declared;
        self
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn TableStore> {
        &self.store
    }
}

#[async_trait]
impl TableProvider for AdaptiveTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.store.table().schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn constraints(&self) -> Option<&Constraints> {
        Some(&self.declared.constraints)
    }

    fn get_column_default(&self, column: &str) -> Option<&Expr> {
        self.declared.defaults.get(column)
    }

    /// Filters are only used to leave segments out: DataFusion keeps each one above the scan, and
    /// [`crate::query::push_functions`] moves those with function calls into it. A filter taken here as
    /// `Exact` could lose its call to a later simplification, and with it the sign that it is ours.
    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |filter: &&Expr| match is_plain(filter) {
            true => TableProviderFilterPushDown::Inexact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let args = ScanArgs::default()
            .with_projection(projection.map(Vec::as_slice))
            .with_filters(Some(filters))
            .with_limit(limit);
        Ok(self.scan_with_args(session, args).await?.into_inner())
    }

    async fn scan_with_args<'a>(
        &self,
        session: &dyn Session,
        args: ScanArgs<'a>,
    ) -> Result<ScanResult> {
        let Some(query) = session.config().get_extension::<QueryContext>() else {
            return internal_err!(
                "table {} is scanned outside of a query",
                self.store.table().name
            );
        };
        let snapshot = query.pin(self.store.as_ref());
        let table = &snapshot.table;
        let filters = args.filters().unwrap_or_default();
        let segments = prune(session, &snapshot, filters)?;
        if let ("range", [key]) =
            (snapshot.layout.strategy(), snapshot.layout.key_columns().as_slice())
        {
            let field = table.schema.field_with_name(key)?;
            query.asks_for(&table.name, asked(filters, key, field.data_type()));
        }
        let limit = args.limit().filter(|_| filters.is_empty());
        let columns: Vec<usize> = match args.projection() {
            Some(projection) => projection.to_vec(),
            None => (0..table.schema.fields().len()).collect(),
        };
        let outputs = columns.into_iter().map(|index| {
            let name = table.schema.field(index).name();
            ProjectionExpr { expr: Arc::new(Column::new(name, index)), alias: name.clone() }
        });
        let scan_table = ScanTable {
            name: Arc::clone(&table.name),
            schema: Arc::clone(&table.schema),
            version: snapshot.version,
            statistics: Some(Arc::new(statistics(&snapshot, &segments))),
            placed: Some(Placed {
                layout: Arc::clone(&snapshot.layout),
                query: Arc::clone(&query),
            }),
        };
        let groups = assign(&query, &table.name, segments, session.config().target_partitions());
        let scan = PartitionScanExec::try_new(
            Arc::new(scan_table),
            groups,
            vec![],
            outputs.collect(),
            limit,
        )?;
        Ok(ScanResult::new(Arc::new(scan)))
    }
}

/// Whether a filter can be planned over the columns of the table alone.
fn is_plain(filter: &Expr) -> bool {
    let mut plain = true;
    // The closure never fails, so neither does the walk.
    drop(filter.apply(|node| {
        plain &= !matches!(
            node,
            Expr::ScalarSubquery(_)
                | Expr::InSubquery(_)
                | Expr::Exists(_)
                | Expr::SetComparison(_)
                | Expr::OuterReferenceColumn(..)
                | Expr::Placeholder(_)
        );
        Ok(if plain { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    }));
    plain
}

/// Chooses a node for each partition and deals its segments out over that node's share of groups.
fn assign(
    query: &QueryContext,
    table: &Arc<str>,
    segments: Vec<Arc<Segment>>,
    groups_per_node: usize,
) -> Vec<Vec<ScanSegment>> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let mut of_node: std::collections::BTreeMap<NodeId, Vec<Arc<Segment>>> = Default::default();
    for segment in segments {
        let partition = PartitionId::new(Arc::clone(table), segment.partition);
        let node = query.placement.choose(&partition, turn + segment.partition as usize);
        of_node.entry(node).or_default().push(segment);
    }
    let mut groups = vec![];
    let mut numbers = 0..;
    for (node, segments) in of_node {
        let count = groups_per_node.clamp(1, segments.len());
        let mut of_group: Vec<(u64, Vec<ScanSegment>)> = vec![(0, vec![]); count];
        for segment in segments {
            // The group with the fewest rows gets the next segment.
            let least = of_group.iter_mut().min_by_key(|(rows, _)| *rows);
            if let Some((rows, group)) = least {
                *rows += segment.rows;
                let number = numbers.next().unwrap_or(u32::MAX);
                group.push(ScanSegment { segment, node, number });
            }
        }
        groups.extend(of_group.into_iter().map(|(_, group)| group));
    }
    if groups.is_empty() {
        groups.push(vec![]);
    }
    groups
}

/// Row counts are exact. Bounds are exact only for types whose statistics no format shortens or rounds.
fn statistics(snapshot: &Snapshot, segments: &[Arc<Segment>]) -> Statistics {
    let mut statistics = Statistics::new_unknown(&snapshot.table.schema);
    let rows: u64 = segments.iter().map(|segment| segment.rows).sum();
    statistics.num_rows = Precision::Exact(usize::try_from(rows).unwrap_or(usize::MAX));
    for (index, field) in snapshot.table.schema.fields().iter().enumerate() {
        let ranges: Option<Vec<&ColumnRange>> =
            segments.iter().map(|segment| segment.columns.get(index)).collect();
        if let Some(ranges) = ranges
            && !segments.is_empty()
        {
            statistics.column_statistics[index] = column(&ranges, field.data_type());
        }
    }
    statistics
}

fn column(ranges: &[&ColumnRange], data_type: &DataType) -> ColumnStatistics {
    let is_exact = data_type.is_integer() || *data_type == DataType::Date32;
    let precise = |value: Option<ScalarValue>| match value {
        Some(value) if value.data_type() == *data_type && is_exact => Precision::Exact(value),
        Some(value) if value.data_type() == *data_type => Precision::Inexact(value),
        _ => Precision::Absent,
    };
    let mut column = ColumnStatistics::new_unknown();
    let nulls: Option<u64> = ranges.iter().map(|range| range.nulls).sum();
    if let Some(nulls) = nulls.and_then(|nulls| usize::try_from(nulls).ok()) {
        column.null_count = Precision::Exact(nulls);
    }
    column.min_value =
        precise(extreme(ranges, |range| range.min.as_ref(), std::cmp::Ordering::Less));
    column.max_value =
        precise(extreme(ranges, |range| range.max.as_ref(), std::cmp::Ordering::Greater));
    column
}

/// The smallest or largest of all bounds; `None` unless every segment has one.
fn extreme(
    ranges: &[&ColumnRange],
    bound: impl Fn(&ColumnRange) -> Option<&ScalarValue>,
    wanted: std::cmp::Ordering,
) -> Option<ScalarValue> {
    let mut best: Option<&ScalarValue> = None;
    for range in ranges {
        let value = bound(range)?;
        best = match best {
            Some(best) if value.partial_cmp(best)? != wanted => Some(best),
            _ => Some(value),
        };
    }
    best.cloned()
}
