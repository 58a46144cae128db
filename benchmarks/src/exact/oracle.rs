//! Says whether our answer is the answer of plain DataFusion.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::ScalarUDF;
use datafusion::physical_plan::collect;
use datafusion::prelude::{SessionConfig, SessionContext};
use foreshard_udfs::Functions;
use futures::FutureExt;

use crate::exact::data::Sample;
use crate::exact::rows::{are_identical, difference, rows};

/// What a statement gave: a table, or the text of an error.
pub type Answer = Result<Rows, String>;

/// A table with its schema, which may have no batch.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Its columns.
    pub schema: SchemaRef,
    /// Its rows.
    pub batches: Vec<RecordBatch>,
}

/// How two answers that are right together relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
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
pub fn compare(plain: &Answer, ours: &Answer, ordered: bool) -> Result<Verdict, String> {
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
#[derive(Debug)]
pub struct Plain {
    context: Layout,
    /// The same rows in other batches, partitions and degrees of parallelism.
    others: Vec<Layout>,
}

impl Plain {
    /// Plain DataFusion with `tables` in memory and `functions` registered.
    ///
    /// # Errors
    /// What DataFusion says.
    pub fn new(tables: &[Sample], functions: &Functions) -> Result<Self, DataFusionError> {
        let layouts = [(1, 8_192), (1, 64), (4, 97), (7, 8_192)];
        let layout =
            |(partitions, batch_rows)| Layout::new(tables, functions, partitions, batch_rows);
        let others = layouts.into_iter().map(layout).collect::<Result<_, _>>()?;
        Ok(Self { context: layout((2, 8_192))?, others })
    }

    /// The session that answers.
    #[must_use]
    pub fn context(&self) -> &SessionContext {
        &self.context.context
    }

    fn layouts(&self) -> impl Iterator<Item = &Layout> {
        std::iter::once(&self.context).chain(&self.others)
    }

    /// Gives a table other rows.
    ///
    /// # Errors
    /// What DataFusion says.
    pub fn set_rows(
        &self,
        table: &str,
        schema: &SchemaRef,
        batches: &[RecordBatch],
    ) -> Result<(), DataFusionError> {
        self.layouts().try_for_each(|layout| layout.set_rows(table, schema, batches))
    }

    /// Defines a function, anew if there is one of its name.
    pub fn define(&self, function: &ScalarUDF) {
        for layout in self.layouts() {
            layout.context.register_udf(function.clone());
        }
    }

    /// Changes a setting that changes results.
    ///
    /// # Errors
    /// What DataFusion says.
    pub async fn set(&self, sql: &str) -> Result<(), DataFusionError> {
        for layout in self.layouts() {
            layout.context.sql(sql).await?.collect().await?;
        }
        Ok(())
    }

    /// What plain DataFusion answers.
    pub async fn answer(&self, sql: &str) -> Answer {
        answer_of(&self.context.context, sql).await
    }

    /// Judges our answer; on a difference asks plain again on other layouts of the same rows.
    ///
    /// # Errors
    /// The difference, in words.
    pub async fn judge(
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
            if compare(&answer_of(&other.context, sql).await, ours, ordered).is_ok() {
                return Ok(Verdict::PlainVaries);
            }
        }
        Err(difference)
    }
}

/// Plain DataFusion with its rows dealt out in one way.
struct Layout {
    context: SessionContext,
    partitions: usize,
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layout({} partitions)", self.partitions)
    }
}

impl Layout {
    fn new(
        tables: &[Sample],
        functions: &Functions,
        partitions: usize,
        batch_rows: usize,
    ) -> Result<Self, DataFusionError> {
        let config = SessionConfig::new()
            .with_target_partitions(partitions)
            .with_batch_size(batch_rows)
            .with_information_schema(true);
        let layout = Self { context: SessionContext::new_with_config(config), partitions };
        functions.install(&layout.context);
        for table in tables {
            layout.set_rows(table.name, &table.schema, &table.segments)?;
        }
        Ok(layout)
    }

    fn set_rows(
        &self,
        table: &str,
        schema: &SchemaRef,
        batches: &[RecordBatch],
    ) -> Result<(), DataFusionError> {
        let mut spread = vec![Vec::new(); self.partitions];
        for (index, batch) in batches.iter().enumerate() {
            spread[index % self.partitions].push(batch.clone());
        }
        let rows = MemTable::try_new(Arc::clone(schema), spread)?;
        self.context.deregister_table(table)?;
        self.context.register_table(table, Arc::new(rows))?;
        Ok(())
    }
}

/// What `context` answers; a panic of DataFusion is an error that says so.
pub async fn answer_of(context: &SessionContext, sql: &str) -> Answer {
    match AssertUnwindSafe(rows_of(context, sql)).catch_unwind().await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_panic) => Err("PANICS".to_owned()),
    }
}

async fn rows_of(context: &SessionContext, sql: &str) -> Result<Rows, DataFusionError> {
    let plan = context.sql(sql).await?.create_physical_plan().await?;
    let batches = collect(Arc::clone(&plan), context.task_ctx()).await?;
    Ok(Rows { schema: plan.schema(), batches })
}

#[cfg(test)]
mod tests;
