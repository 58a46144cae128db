//! `system.history`: what was called by the second, the minute and the hour, read from disk.
//!
//! Conditions on `start` choose the files; those on any column leave out row groups by their statistics,
//! and files are sorted by function. Nothing is taken as exact: DataFusion keeps each filter above.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DFSchema, Result, ScalarValue, exec_datafusion_err, internal_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::utils::{conjunction, iter_conjunction};
use datafusion::logical_expr::{
    BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType,
};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use foreshard_actors::history_store::{
    HistoryFile, HistoryStore, HistoryStoreError, Listing, START, schema,
};

/// The table. Without a store it is empty.
#[derive(Debug)]
pub(super) struct HistoryTable {
    store: Option<Arc<HistoryStore>>,
}

impl HistoryTable {
    pub(super) fn new(store: Option<Arc<HistoryStore>>) -> Self {
        Self { store }
    }

    /// Looks up what is to be read; off the runtime's threads, for it reads frames.
    async fn list(&self, filters: &[Expr]) -> Result<Listing> {
        let (from_ms, to_ms) = times(filters);
        let Some(store) = self.store.clone() else {
            let live = RecordBatch::new_empty(schema());
            return Ok(Listing { files: vec![], live, files_skipped: 0, frames: (0, 0) });
        };
        let listing = tokio::task::spawn_blocking(move || store.list(from_ms, to_ms)).await;
        let listing = listing.map_err(|error| exec_datafusion_err!("{error}"))?;
        listing.map_err(failed)
    }
}

fn failed(error: HistoryStoreError) -> datafusion::error::DataFusionError {
    datafusion::error::DataFusionError::External(Box::new(error))
}

#[async_trait]
impl TableProvider for HistoryTable {
    fn schema(&self) -> SchemaRef {
        schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let listing = self.list(filters).await?;
        let mut inputs: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        if !listing.files.is_empty() {
            inputs.push(of_files(session, &listing.files, projection, filters)?);
        }
        if listing.live.num_rows() > 0 || inputs.is_empty() {
            let live = vec![vec![listing.live]];
            let live = MemorySourceConfig::try_new_exec(&live, schema(), projection.cloned())?;
            inputs.push(live);
        }
        let input = match <[_; 1]>::try_from(inputs) {
            Ok([input]) => input,
            Err(inputs) => UnionExec::try_new(inputs)?,
        };
        let skipped = listing.files_skipped;
        Ok(Arc::new(HistoryExec { input, files: listing.files.into(), skipped }))
    }
}

fn of_files(
    session: &dyn Session,
    files: &[Arc<HistoryFile>],
    projection: Option<&Vec<usize>>,
    filters: &[Expr],
) -> Result<Arc<dyn ExecutionPlan>> {
    let mut source = ParquetSource::new(schema());
    if let Some(filter) = conjunction(filters.to_vec()) {
        let columns = DFSchema::try_from(schema().as_ref().clone())?;
        source = source.with_predicate(session.create_physical_expr(filter, &columns)?);
    }
    let groups = session.config().target_partitions().clamp(1, files.len());
    let mut groups = vec![FileGroup::default(); groups];
    let count = groups.len();
    for (number, file) in files.iter().enumerate() {
        let path = file.path.canonicalize()?;
        let path = object_store::path::Path::from_absolute_path(&path)
            .map_err(|error| exec_datafusion_err!("{error}"))?;
        let file = PartitionedFile::new(path.to_string(), file.about.bytes);
        if let Some(group) = groups.get_mut(number % count) {
            group.push(file);
        }
    }
    let url = ObjectStoreUrl::local_filesystem();
    let config = FileScanConfigBuilder::new(url, Arc::new(source))
        .with_file_groups(groups)
        .with_projection_indices(projection.cloned())?
        .build();
    Ok(DataSourceExec::from_data_source(config))
}

/// The first and the last beginning that all of these filters let through. A filter of another form
/// lets everything through.
fn times(filters: &[Expr]) -> (u64, u64) {
    let (mut from, mut to) = (i64::MIN, i64::MAX);
    for filter in filters.iter().flat_map(iter_conjunction) {
        let Some((operator, ms)) = bound(filter) else { continue };
        match operator {
            Operator::Eq => (from, to) = (from.max(ms), to.min(ms)),
            Operator::GtEq => from = from.max(ms),
            Operator::LtEq => to = to.min(ms),
            Operator::Gt => from = from.max(ms.saturating_add(1)),
            Operator::Lt => to = to.min(ms.saturating_sub(1)),
            _ => {}
        }
    }
    let known = |ms: i64| u64::try_from(ms).unwrap_or(0);
    (known(from), known(to))
}

/// A comparison of `start` with a moment, in milliseconds.
fn bound(filter: &Expr) -> Option<(Operator, i64)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return None };
    let is_start = |expr: &Expr| matches!(expr, Expr::Column(column) if column.name == START);
    let moment = |expr: &Expr| match expr {
        Expr::Literal(ScalarValue::TimestampMillisecond(ms, _), _) => *ms,
        _ => None,
    };
    if is_start(left) {
        return Some((*op, moment(right)?));
    }
    is_start(right).then(|| Some((op.swap()?, moment(left)?)))?
}

/// Reads files of this process, which nobody else can: a node that no codec knows keeps its plan here.
/// As long as the plan lives, so do the files.
#[derive(Debug)]
struct HistoryExec {
    input: Arc<dyn ExecutionPlan>,
    files: Arc<[Arc<HistoryFile>]>,
    skipped: usize,
}

impl DisplayAs for HistoryExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (read, skipped) = (self.files.len(), self.skipped);
        write!(f, "HistoryExec: files={read}, files_outside_the_time={skipped}")
    }
}

impl ExecutionPlan for HistoryExec {
    fn name(&self) -> &str {
        "HistoryExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([input]) => {
                let (files, skipped) = (Arc::clone(&self.files), self.skipped);
                Ok(Arc::new(Self { input, files, skipped }))
            }
            Err(_) => internal_err!("HistoryExec has one child"),
        }
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let rows = self.input.execute(partition, context)?;
        Ok(Box::pin(Reading { rows, _files: Arc::clone(&self.files) }))
    }
}

/// A stream that holds the files it reads: it may outlive its plan.
struct Reading {
    rows: SendableRecordBatchStream,
    _files: Arc<[Arc<HistoryFile>]>,
}

impl futures::Stream for Reading {
    type Item = Result<RecordBatch>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.rows.as_mut().poll_next(context)
    }
}

impl datafusion::execution::RecordBatchStream for Reading {
    fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::{and, col, lit};

    use super::*;

    fn moment(ms: i64) -> Expr {
        lit(ScalarValue::TimestampMillisecond(Some(ms), Some("UTC".into())))
    }

    #[test]
    fn comparisons_of_the_start_bound_the_time_and_others_do_not() {
        let start = || col(START);
        assert_eq!(times(&[]), (0, i64::MAX as u64));
        assert_eq!(times(&[start().gt_eq(moment(5)), start().lt(moment(9))]), (5, 8));
        assert_eq!(times(&[and(moment(5).lt(start()), moment(9).gt_eq(start()))]), (6, 9));
        assert_eq!(times(&[start().eq(moment(7)), start().gt(moment(3))]), (7, 7));
        let either = start().lt(moment(5)).or(col("function").eq(lit("f")));
        assert_eq!(times(&[either, col("calls").gt(lit(5u64))]), (0, i64::MAX as u64));
        assert_eq!(
            times(&[start().gt(moment(-5)), start().not_eq(moment(9))]),
            (0, i64::MAX as u64)
        );
    }
}
