//! INSERT, UPDATE, DELETE, TRUNCATE: each one commit.
//!
//! UPDATE and DELETE are planned from the *unoptimised* plan. Segments that may hold a hit are
//! numbered row by row and put in the place of the target table; the predicate and the new values are
//! evaluated once, and each segment that was hit is replaced by one without the old rows. If another
//! commit removed such a segment meanwhile, all of it starts again on the new snapshot.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt32Array, UInt64Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{CastOptions, cast_with_options, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Column, TableReference};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::execution::SessionState;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::utils::split_conjunction_owned;
use datafusion::logical_expr::{
    DmlStatement, Expr, Filter, LogicalPlan, LogicalPlanBuilder, SubqueryAlias, WriteOp,
};
use foreshard_actors::layout::{Layout, deal_out_all};
use foreshard_actors::segment::{Rows, Segment};
use foreshard_actors::store::StoreError;
use foreshard_actors::table::{Change, Committed, Operation, Rewritten, Snapshot, TableStore};
use foreshard_policy::ids::SegmentId;
use futures::TryStreamExt;

use crate::engine::ATTEMPTS_MAX;
use crate::error::EngineError;
use crate::query::context::QueryContext;
use crate::query::prune::prune;
use crate::session::Session;
use crate::statements::create::rows;
use crate::statements::{files, table_name};

const SEGMENT_COLUMN: &str = "__foreshard_segment";
const ROW_COLUMN: &str = "__foreshard_row";

/// What a statement does to a table.
struct Planned {
    change: Change,
    /// By partition: what its new segment begins with.
    kept: BTreeMap<u32, Kept>,
    /// Rows that are hit.
    hits: u64,
}

/// Rows that a new segment begins with.
#[derive(Default)]
struct Kept {
    /// All rows of the new segment.
    rows: usize,
    /// Segments that it replaces, each with the rows that were not hit.
    from: Vec<(SegmentId, BooleanBuffer)>,
}

/// Runs a statement and returns how many rows it touched.
pub(super) async fn run(
    session: &Session,
    state: &SessionState,
    statement: DmlStatement,
    query: &Arc<QueryContext>,
) -> Result<u64, EngineError> {
    let name = table_name(session, &statement.table_name)?;
    if session.inner.catalog.foreign(&name).is_some() {
        return files::write(session, state, statement).await;
    }
    let store = session.inner.writable(&name)?;
    match &statement.op {
        WriteOp::Insert(InsertOp::Append) => {
            let batches = rows(session, state, statement.input.as_ref().clone()).await?;
            let batches = fit_all(&store.table().schema, batches)?;
            let count = batches.iter().map(|batch| batch.num_rows() as u64).sum();
            session.inner.append(&store, batches).await?;
            Ok(count)
        }
        WriteOp::Truncate => truncate(session, &store).await,
        WriteOp::Delete | WriteOp::Update => change_rows(session, &store, &statement, query).await,
        other => Err(EngineError::NotSupported { message: format!("{other} on table {name}") }),
    }
}

async fn truncate(session: &Session, store: &Arc<dyn TableStore>) -> Result<u64, EngineError> {
    let mut snapshot = store.snapshot();
    for _ in 0..ATTEMPTS_MAX {
        let removed = snapshot.segments().map(|segment| segment.id).collect();
        let rows = snapshot.rows();
        let (operation, added) = (Operation::Truncate, vec![]);
        let change = Change { operation, removed, added, layout: None, transaction: None };
        match store.commit(change).await {
            Ok(committed) => {
                session.inner.publish(committed);
                return Ok(rows);
            }
            Err(error @ StoreError::Conflict { .. }) if error.is_retryable() => {
                snapshot = store.refresh().await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(too_many_conflicts())
}

fn too_many_conflicts() -> EngineError {
    EngineError::TooMany { what: "conflicting commits", max: ATTEMPTS_MAX }
}

async fn change_rows(
    session: &Session,
    store: &Arc<dyn TableStore>,
    statement: &DmlStatement,
    query: &Arc<QueryContext>,
) -> Result<u64, EngineError> {
    let mut query = Arc::clone(query);
    for _ in 0..ATTEMPTS_MAX {
        let state = session.state(&query)?;
        let snapshot = query.pin(store.as_ref());
        let planned = plan_change(session, &state, store, &snapshot, statement).await?;
        let Some(Planned { change, kept, hits }) = planned else { return Ok(0) };
        match store.commit(change).await {
            Ok(committed) => {
                let rewritten = rewritten(&committed.added, kept);
                session.inner.publish(Committed { rewritten, ..committed });
                return Ok(hits);
            }
            Err(error @ StoreError::Conflict { .. }) if error.is_retryable() => {
                store.refresh().await?;
                query = session.begin();
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(too_many_conflicts())
}

/// What `statement` does on `snapshot`; `None` if it hits no row.
async fn plan_change(
    session: &Session,
    state: &SessionState,
    store: &Arc<dyn TableStore>,
    snapshot: &Snapshot,
    statement: &DmlStatement,
) -> Result<Option<Planned>, EngineError> {
    let is_update = statement.op == WriteOp::Update;
    let (input, values) = match (is_update, statement.input.as_ref()) {
        (false, input) => (input.clone(), vec![]),
        (true, LogicalPlan::Projection(projection)) => {
            (projection.input.as_ref().clone(), projection.expr.clone())
        }
        (true, other) => {
            let message = format!("UPDATE over {}", other.display());
            return Err(EngineError::NotSupported { message });
        }
    };
    let candidates = candidates(state, snapshot, &input)?;
    let mut held: Vec<(Arc<Segment>, RecordBatch)> = Vec::with_capacity(candidates.len());
    for segment in candidates {
        let stream = store.read(&segment, None).await?;
        let batches: Vec<RecordBatch> =
            stream.try_collect().await.map_err(|error| session.explain(error))?;
        let rows = arrow::compute::concat_batches(&store.table().schema, &batches)?;
        held.push((segment, rows));
    }
    let numbered = number(&store.table().schema, &held)?;
    let hits = rows(session, state, over_numbered(&input, numbered, values)?).await?;
    let total: u64 = hits.iter().map(|batch| batch.num_rows() as u64).sum();
    if total == 0 {
        return Ok(None);
    }
    let (change, kept) = replace(store, &snapshot.layout, &held, &hits, is_update)?;
    Ok(Some(Planned { change, kept, hits: total }))
}

/// Segments that may hold a row that the predicate is true for.
fn candidates(
    state: &SessionState,
    snapshot: &Snapshot,
    input: &LogicalPlan,
) -> Result<Vec<Arc<Segment>>, EngineError> {
    let LogicalPlan::Filter(filter) = input else {
        return Ok(snapshot.segments().cloned().collect());
    };
    let usable = split_conjunction_owned(filter.predicate.clone())
        .into_iter()
        .filter(|part| !has_subquery(part) && !part.is_volatile())
        .map(|part| {
            let bare = part.transform(|node| match node {
                Expr::Column(column) => {
                    Ok(Transformed::yes(Expr::Column(Column::from_name(column.name))))
                }
                other => Ok(Transformed::no(other)),
            });
            bare.data()
        })
        .collect::<Result<Vec<_>, _>>()?;
    // A predicate that cannot be planned on its own prunes nothing.
    Ok(prune(state, snapshot, &usable).unwrap_or_else(|_| snapshot.segments().cloned().collect()))
}

fn has_subquery(expr: &Expr) -> bool {
    expr.exists(|node| {
        let is_one = matches!(
            node,
            Expr::ScalarSubquery(_)
                | Expr::InSubquery(_)
                | Expr::Exists(_)
                | Expr::SetComparison(_)
                | Expr::OuterReferenceColumn(..)
        );
        Ok(is_one)
    })
    .unwrap_or(true)
}

/// The rows of all candidates with the numbers of their segment and row.
fn number(
    schema: &SchemaRef,
    held: &[(Arc<Segment>, RecordBatch)],
) -> Result<(SchemaRef, Vec<RecordBatch>), EngineError> {
    let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(SEGMENT_COLUMN, DataType::UInt32, false)));
    fields.push(Arc::new(Field::new(ROW_COLUMN, DataType::UInt64, false)));
    let numbered = Arc::new(Schema::new(fields));
    let batches = (0u32..).zip(held).map(|(segment, (_, rows))| {
        let mut columns = rows.columns().to_vec();
        let count = rows.num_rows();
        columns.push(Arc::new(UInt32Array::from(vec![segment; count])));
        columns.push(Arc::new(UInt64Array::from_iter_values(0..count as u64)));
        RecordBatch::try_new(Arc::clone(&numbered), columns)
    });
    let batches = batches.collect::<Result<Vec<_>, _>>()?;
    Ok((numbered, batches))
}

/// `input` with its target table replaced by the numbered rows, projected to the numbers and the new
/// values.
fn over_numbered(
    input: &LogicalPlan,
    numbered: (SchemaRef, Vec<RecordBatch>),
    values: Vec<Expr>,
) -> Result<LogicalPlan, EngineError> {
    let (plan, qualifier) = replace_target(input, numbered)?;
    let numbers = [SEGMENT_COLUMN, ROW_COLUMN]
        .map(|name| Expr::Column(Column::new(Some(qualifier.clone()), name)));
    let outputs: Vec<Expr> = numbers.into_iter().chain(values).collect();
    Ok(LogicalPlanBuilder::from(plan).project(outputs)?.build()?)
}

fn replace_target(
    plan: &LogicalPlan,
    numbered: (SchemaRef, Vec<RecordBatch>),
) -> Result<(LogicalPlan, TableReference), EngineError> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let (schema, batches) = numbered;
            let source = provider_as_source(Arc::new(MemTable::try_new(schema, vec![batches])?));
            let name = scan.table_name.clone();
            let scan = LogicalPlanBuilder::scan(name.clone(), source, None)?.build()?;
            Ok((scan, name))
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let (input, _) = replace_target(&alias.input, numbered)?;
            let alias = SubqueryAlias::try_new(Arc::new(input), alias.alias.clone())?;
            let name = alias.alias.clone();
            Ok((LogicalPlan::SubqueryAlias(alias), name))
        }
        LogicalPlan::Filter(filter) => {
            let (input, name) = replace_target(&filter.input, numbered)?;
            let filter = Filter::try_new(filter.predicate.clone(), Arc::new(input))?;
            Ok((LogicalPlan::Filter(filter), name))
        }
        other => Err(EngineError::NotSupported {
            message: format!("UPDATE or DELETE over {}", other.display()),
        }),
    }
}

/// Replaces each segment that was hit by one without the hit rows, and adds the new rows where their
/// key belongs. Returns what is kept of them, too.
fn replace(
    store: &Arc<dyn TableStore>,
    layout: &Layout,
    held: &[(Arc<Segment>, RecordBatch)],
    hits: &[RecordBatch],
    is_update: bool,
) -> Result<(Change, BTreeMap<u32, Kept>), EngineError> {
    let mut rows_hit: HashMap<u32, HashSet<u64>> = HashMap::new();
    let mut new_rows = vec![];
    for batch in hits {
        let segments = batch.column(0).as_any().downcast_ref::<UInt32Array>();
        let rows = batch.column(1).as_any().downcast_ref::<UInt64Array>();
        let (Some(segments), Some(rows)) = (segments, rows) else {
            return Err(EngineError::Invalid { message: "row numbers were lost".to_owned() });
        };
        for (segment, row) in segments.values().iter().zip(rows.values()) {
            rows_hit.entry(*segment).or_default().insert(*row);
        }
        if is_update {
            new_rows.push(fit(&store.table().schema, &batch.columns()[2..], batch.num_rows())?);
        }
    }
    let mut added: BTreeMap<u32, Vec<RecordBatch>> = BTreeMap::new();
    let mut kept: BTreeMap<u32, Kept> = BTreeMap::new();
    let mut removed = vec![];
    for (position, (segment, rows)) in (0u32..).zip(held) {
        let Some(hit) = rows_hit.get(&position) else { continue };
        removed.push(segment.id);
        let left: BooleanBuffer =
            (0..rows.num_rows() as u64).map(|row| !hit.contains(&row)).collect();
        let batch = filter_record_batch(rows, &BooleanArray::from(left.clone()))?;
        added.entry(segment.partition).or_default().push(batch);
        kept.entry(segment.partition).or_default().from.push((segment.id, left));
    }
    let placed = deal_out_all(layout, &new_rows).map_err(StoreError::from)?;
    for (partition, batches) in placed {
        added.entry(partition).or_default().extend(batches);
    }
    for (partition, kept) in &mut kept {
        kept.rows = added.get(partition).into_iter().flatten().map(RecordBatch::num_rows).sum();
    }
    let added = added
        .into_iter()
        .map(|(partition, mut batches)| {
            batches.retain(|batch| batch.num_rows() > 0);
            (partition, batches)
        })
        .filter(|(_, batches)| !batches.is_empty())
        .collect();
    let operation = if is_update { Operation::Update } else { Operation::Delete };
    Ok((Change { operation, removed, added, layout: None, transaction: None }, kept))
}

/// Which of the segments that were `added` begin with rows that were kept. A partition whose rows are not
/// all in one segment has none.
fn rewritten(added: &[(Arc<Segment>, Rows)], kept: BTreeMap<u32, Kept>) -> Vec<Rewritten> {
    let of_partition = |(partition, kept): (u32, Kept)| {
        let mut new = added.iter().filter(|(segment, _)| segment.partition == partition);
        let (Some((segment, _)), None) = (new.next(), new.next()) else { return None };
        let is_whole = segment.rows == kept.rows as u64;
        is_whole.then(|| Rewritten { segment: segment.id, kept: kept.from })
    };
    kept.into_iter().filter_map(of_partition).collect()
}

/// Batches of a query's result as rows of a table.
pub(super) fn fit_all(
    schema: &SchemaRef,
    batches: Vec<RecordBatch>,
) -> Result<Vec<RecordBatch>, EngineError> {
    let fitted = batches.iter().map(|batch| fit(schema, batch.columns(), batch.num_rows()));
    fitted.collect()
}

fn fit(schema: &SchemaRef, columns: &[ArrayRef], rows: usize) -> Result<RecordBatch, EngineError> {
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let columns = schema
        .fields()
        .iter()
        .zip(columns)
        .map(|(field, column)| {
            if !field.is_nullable() && column.null_count() > 0 {
                let message = format!("column {} of the table does not take NULL", field.name());
                return Err(EngineError::Invalid { message });
            }
            Ok(cast_with_options(column, field.data_type(), &options)?)
        })
        .collect::<Result<Vec<_>, EngineError>>()?;
    let options = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}
