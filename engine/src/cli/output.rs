//! Rows on stdout: a table for people, CSV or JSON for programs.

use std::io::Write;

use arrow::record_batch::RecordBatch;
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;
use clap::ValueEnum;
use futures::StreamExt;

use super::Failure;
use super::progress::Progress;
use crate::encode::{Encoder, Format};
use crate::error::EngineError;
use crate::query_stream::QueryStream;

/// Rows that are laid out as one table; a longer result goes on in further tables.
const ROWS_PER_TABLE: usize = 10_000;

/// The form of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Shape {
    /// A table with borders, for people.
    #[default]
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// One JSON array of objects per statement.
    Json,
}

/// Writes the rows of one statement as they come, and tells how many there were.
pub(super) async fn write(
    mut rows: QueryStream,
    shape: Shape,
    progress: &mut Progress,
    out: &mut impl Write,
) -> Result<usize, Failure> {
    let schema = rows.schema();
    if schema.fields().is_empty() {
        while let Some(batch) = progress.watch(rows.next()).await {
            batch?;
        }
        return Ok(0);
    }
    let mut written = 0;
    match encoder(shape, &schema)? {
        Some(mut encoder) => {
            out.write_all(&encoder.start())?;
            while let Some(batch) = progress.watch(rows.next()).await {
                let batch = batch?;
                written += batch.num_rows();
                progress.rows(batch.num_rows());
                out.write_all(&encoder.batch(&batch).map_err(EngineError::from)?)?;
            }
            out.write_all(&encoder.finish().map_err(EngineError::from)?)?;
        }
        None => {
            let mut held = Vec::new();
            let mut held_rows = 0;
            while let Some(batch) = progress.watch(rows.next()).await {
                let batch = batch?;
                written += batch.num_rows();
                held_rows += batch.num_rows();
                progress.rows(batch.num_rows());
                held.push(batch);
                if held_rows >= ROWS_PER_TABLE {
                    table(&held, progress, out)?;
                    held.clear();
                    held_rows = 0;
                }
            }
            if held_rows > 0 || written == 0 {
                held.push(RecordBatch::new_empty(schema));
                table(&held, progress, out)?;
            }
        }
    }
    progress.clear();
    out.flush()?;
    Ok(written)
}

fn encoder(
    shape: Shape,
    schema: &arrow::datatypes::SchemaRef,
) -> Result<Option<Encoder>, EngineError> {
    let format = match shape {
        Shape::Table => return Ok(None),
        Shape::Csv => Format::Csv,
        Shape::Json => Format::Array,
    };
    Ok(Some(Encoder::new(format, schema)?))
}

fn table(
    batches: &[RecordBatch],
    progress: &mut Progress,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let options = FormatOptions::default().with_null("NULL").with_types_info(false);
    let table = pretty_format_batches_with_options(batches, &options).map_err(EngineError::from)?;
    progress.clear();
    writeln!(out, "{table}")?;
    Ok(())
}
