//! Says whether our answer is the answer of plain DataFusion.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::physical_plan::collect;
use datafusion::prelude::{SessionConfig, SessionContext};

use foreshard_udfs::Functions;

use super::data::Sample;
use super::rows::{are_identical, difference, rows};

/// What a statement gave: a table, or the text of an error.
pub(crate) type Answer = Result<Rows, String>;

/// A table with its schema, which may have no batch.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    pub(crate) schema: SchemaRef,
    pub(crate) batches: Vec<RecordBatch>,
}

/// How two answers that are right together relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The same table.
    Same,
    /// Neither has a table.
    BothFail,
    /// Ours has a table and plain fails: allowed by P1, as plain's own success depends on its order.
    OnlyPlainFails,
    /// Ours is what plain answers on another layout of the same rows.
    PlainVaries,
}

/// Compares our answer with plain's.
///
/// # Errors
/// The difference, in words.
pub(crate) fn compare(plain: &Answer, ours: &Answer, ordered: bool) -> Result<Verdict, String> {
    let (plain, ours) = match (plain, ours) {
        (Err(_), Err(_)) => return Ok(Verdict::BothFail),
        (Err(_), Ok(_)) => return Ok(Verdict::OnlyPlainFails),
        (Ok(plain), Err(error)) => {
            let count: usize = plain.batches.iter().map(RecordBatch::num_rows).sum();
            return Err(format!("ours fails where plain gives {count} rows: {error}"));
        }
        (Ok(plain), Ok(ours)) => (plain, ours),
    };
    let shape = |schema: &SchemaRef| -> Vec<String> {
        let fields = schema.fields().iter();
        fields.map(|field| format!("{} {}", field.name(), field.data_type())).collect()
    };
    if shape(&plain.schema) != shape(&ours.schema) {
        return Err(format!(
            "schema {:?}\n instead of {:?}",
            shape(&ours.schema),
            shape(&plain.schema)
        ));
    }
    for batch in &ours.batches {
        if shape(batch.schema_ref()) != shape(&ours.schema) {
            return Err(format!("a batch says {:?}", shape(batch.schema_ref())));
        }
    }
    if are_identical(&plain.schema, &plain.batches, &ours.batches, ordered) {
        return Ok(Verdict::Same);
    }
    match difference(&rows(&plain.batches), &rows(&ours.batches), ordered) {
        None => Ok(Verdict::Same),
        Some(difference) => Err(difference),
    }
}

/// Plain DataFusion over the same rows.
pub(crate) struct Plain {
    context: SessionContext,
    /// The same rows in other batches, partitions and degrees of parallelism.
    others: Vec<SessionContext>,
}

impl Plain {
    /// Plain DataFusion with `tables` in memory and `functions` registered.
    pub(crate) fn new(tables: &[Sample], functions: &Functions) -> Self {
        let layouts = [(1, 8_192), (1, 64), (4, 97), (7, 8_192)];
        let context = in_layout(tables, functions, 2, 8_192);
        let others = layouts
            .iter()
            .map(|(partitions, batch_rows)| in_layout(tables, functions, *partitions, *batch_rows))
            .collect();
        Self { context, others }
    }

    pub(crate) async fn answer(&self, sql: &str) -> Answer {
        answer_of(&self.context, sql).await
    }

    /// Judges our answer; on a difference asks plain again on other layouts of the same rows.
    ///
    /// # Errors
    /// The difference, in words.
    pub(crate) async fn judge(
        &self,
        sql: &str,
        ordered: bool,
        plain: &Answer,
        ours: &Answer,
    ) -> Result<Verdict, String> {
        let difference = match compare(plain, ours, ordered) {
            Ok(verdict) => return Ok(verdict),
            Err(difference) => difference,
        };
        for other in &self.others {
            if compare(&answer_of(other, sql).await, ours, ordered).is_ok() {
                return Ok(Verdict::PlainVaries);
            }
        }
        Err(difference)
    }
}

fn in_layout(
    tables: &[Sample],
    functions: &Functions,
    partitions: usize,
    batch_rows: usize,
) -> SessionContext {
    let config = SessionConfig::new()
        .with_target_partitions(partitions)
        .with_batch_size(batch_rows)
        .with_information_schema(true);
    let context = SessionContext::new_with_config(config);
    functions.install(&context);
    for table in tables {
        let mut spread = vec![Vec::new(); partitions];
        for (index, batch) in table.segments.iter().enumerate() {
            spread[index % partitions].push(batch.clone());
        }
        let table_of = MemTable::try_new(Arc::clone(&table.schema), spread).unwrap();
        context.register_table(table.name, Arc::new(table_of)).unwrap();
    }
    context
}

/// What `context` answers.
pub(crate) async fn answer_of(context: &SessionContext, sql: &str) -> Answer {
    rows_of(context, sql).await.map_err(|error| error.to_string())
}

async fn rows_of(context: &SessionContext, sql: &str) -> Result<Rows, DataFusionError> {
    let plan = context.sql(sql).await?.create_physical_plan().await?;
    let batches = collect(Arc::clone(&plan), context.task_ctx()).await?;
    Ok(Rows { schema: plan.schema(), batches })
}
