//! The answer to a statement: its columns, its rows as they come, and how many rows it changed.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow::array::UInt64Array;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use futures::{Stream, StreamExt, TryStreamExt};

use crate::config::LimitsConfig;
use crate::error::EngineError;

/// Rows and bytes of an answer so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AnswerSize {
    rows: u64,
    bytes: u64,
}

impl AnswerSize {
    /// Counts a batch.
    ///
    /// # Errors
    /// If the answer is larger than the limits allow.
    pub(crate) fn add(
        &mut self,
        batch: &RecordBatch,
        limits: &LimitsConfig,
    ) -> Result<(), EngineError> {
        self.rows += batch.num_rows() as u64;
        self.bytes += batch.get_array_memory_size() as u64;
        let (rows, bytes) = (limits.answer_rows_max(), limits.answer_bytes_max());
        let too_large = |max, unit, setting| EngineError::AnswerTooLarge { max, unit, setting };
        if self.rows > rows {
            return Err(too_large(rows, "rows", "limits.answer-rows-max"));
        }
        if self.bytes > bytes {
            return Err(too_large(bytes, "bytes", "limits.answer-bytes-max"));
        }
        Ok(())
    }
}

/// The rows of a query as they come. Dropping it cancels the query.
pub struct QueryStream {
    pub(crate) schema: SchemaRef,
    pub(crate) batches: Pin<Box<dyn Stream<Item = Result<RecordBatch, EngineError>> + Send>>,
    pub(crate) rows_affected: Option<u64>,
}

impl fmt::Debug for QueryStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryStream").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl QueryStream {
    /// Columns of the result.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Rows that the statement inserted, changed or removed; `None` for a query.
    #[must_use]
    pub fn rows_affected(&self) -> Option<u64> {
        self.rows_affected
    }

    /// Waits for all rows.
    ///
    /// # Errors
    /// What went wrong while the query ran.
    pub async fn collect(self) -> Result<Vec<RecordBatch>, EngineError> {
        self.batches.try_collect().await
    }

    /// No rows.
    pub(crate) fn empty() -> Self {
        Self::of(Arc::new(Schema::empty()), vec![])
    }

    /// The number of rows that were changed, as one row.
    pub(crate) fn affected(rows: u64) -> Result<Self, EngineError> {
        let schema = Arc::new(Schema::new(vec![Field::new("count", DataType::UInt64, false)]));
        let count = Arc::new(UInt64Array::from(vec![rows]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![count])?;
        Ok(Self { rows_affected: Some(rows), ..Self::of(schema, vec![batch]) })
    }

    /// Rows that are there already.
    pub(crate) fn of(schema: SchemaRef, batches: Vec<RecordBatch>) -> Self {
        let batches = futures::stream::iter(batches.into_iter().map(Ok)).boxed();
        Self { schema, batches, rows_affected: None }
    }
}

impl Stream for QueryStream {
    type Item = Result<RecordBatch, EngineError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.poll_next_unpin(context)
    }
}
