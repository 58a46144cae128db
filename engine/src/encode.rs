//! Rows as bytes, batch by batch: JSON, CSV and Arrow, for HTTP and the command line.

use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json::writer::{JsonArray, JsonFormat, LineDelimited, Writer, WriterBuilder};
use arrow::record_batch::RecordBatch;

/// A form of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object with `schema` and `rows`.
    Document,
    /// A JSON array of objects.
    Array,
    /// One JSON object per line.
    Lines,
    /// Comma-separated values with a header.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
}

impl Format {
    /// The media type that HTTP calls it by.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Document | Self::Array => "application/json",
            Self::Lines => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Arrow => "application/vnd.apache.arrow.stream",
        }
    }
}

enum Rows {
    Array(Box<Writer<Vec<u8>, JsonArray>>),
    Lines(Box<Writer<Vec<u8>, LineDelimited>>),
    Csv { header_due: bool },
    Arrow(Box<StreamWriter<Vec<u8>>>),
}

/// Writes one result. Start with [`Encoder::start`], then every batch, then [`Encoder::finish`].
pub struct Encoder {
    format: Format,
    schema: SchemaRef,
    rows: Rows,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("format", &self.format).finish_non_exhaustive()
    }
}

fn json<F: JsonFormat>() -> Box<Writer<Vec<u8>, F>> {
    Box::new(WriterBuilder::new().with_explicit_nulls(true).build(Vec::new()))
}

impl Encoder {
    /// An encoder for rows of `schema`.
    ///
    /// # Errors
    /// [`ArrowError`] if `format` cannot say the types of `schema`.
    pub fn new(format: Format, schema: &SchemaRef) -> Result<Self, ArrowError> {
        let rows = match format {
            Format::Document | Format::Array => Rows::Array(json()),
            Format::Lines => Rows::Lines(json()),
            Format::Csv => Rows::Csv { header_due: true },
            Format::Arrow => Rows::Arrow(Box::new(StreamWriter::try_new(Vec::new(), schema)?)),
        };
        Ok(Self { format, schema: schema.clone(), rows })
    }

    /// What comes before the rows.
    #[must_use]
    pub fn start(&mut self) -> Vec<u8> {
        match (&mut self.rows, self.format) {
            (Rows::Array(_), Format::Document) => {
                format!("{{\"schema\":{},\"rows\":", schema_json(&self.schema)).into_bytes()
            }
            (Rows::Arrow(writer), _) => std::mem::take(writer.get_mut()),
            _ => Vec::new(),
        }
    }

    /// The bytes of one batch.
    ///
    /// # Errors
    /// [`ArrowError`] if a value cannot be said in this form.
    pub fn batch(&mut self, batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
        match &mut self.rows {
            Rows::Array(writer) => {
                writer.write(batch)?;
                Ok(std::mem::take(writer.get_mut()))
            }
            Rows::Lines(writer) => {
                writer.write(batch)?;
                Ok(std::mem::take(writer.get_mut()))
            }
            Rows::Csv { header_due } => {
                let header = std::mem::take(header_due);
                csv(batch, header)
            }
            Rows::Arrow(writer) => {
                writer.write(batch)?;
                Ok(std::mem::take(writer.get_mut()))
            }
        }
    }

    /// What comes after the rows.
    ///
    /// # Errors
    /// [`ArrowError`] if the header of an empty result cannot be written.
    pub fn finish(mut self) -> Result<Vec<u8>, ArrowError> {
        match &mut self.rows {
            Rows::Array(writer) => {
                writer.finish()?;
                let mut end = std::mem::take(writer.get_mut());
                if self.format == Format::Document {
                    end.push(b'}');
                }
                end.push(b'\n');
                Ok(end)
            }
            Rows::Lines(writer) => {
                writer.finish()?;
                Ok(std::mem::take(writer.get_mut()))
            }
            Rows::Csv { header_due: true } => csv(&RecordBatch::new_empty(self.schema), true),
            Rows::Csv { .. } => Ok(Vec::new()),
            Rows::Arrow(writer) => {
                writer.finish()?;
                Ok(std::mem::take(writer.get_mut()))
            }
        }
    }
}

fn csv(batch: &RecordBatch, header: bool) -> Result<Vec<u8>, ArrowError> {
    let mut bytes = Vec::new();
    arrow::csv::WriterBuilder::new().with_header(header).build(&mut bytes).write(batch)?;
    Ok(bytes)
}

fn schema_json(schema: &Schema) -> serde_json::Value {
    schema
        .fields()
        .iter()
        .map(|field| {
            serde_json::json!({
                "name": field.name(),
                "type": field.data_type().to_string(),
                "nullable": field.is_nullable(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, StringArray};
    use arrow::ipc::reader::StreamReader;

    use super::*;

    fn batch() -> RecordBatch {
        let price: ArrayRef = Arc::new(Float64Array::from(vec![Some(1.5), None, Some(f64::NAN)]));
        let name: ArrayRef = Arc::new(StringArray::from(vec![Some("a,\"b\""), Some(""), None]));
        RecordBatch::try_from_iter_with_nullable([("price", price, true), ("name", name, true)])
            .unwrap()
    }

    fn encoded(format: Format, batches: &[RecordBatch]) -> Vec<u8> {
        let mut encoder = Encoder::new(format, &batch().schema()).unwrap();
        let mut bytes = encoder.start();
        for batch in batches {
            bytes.extend(encoder.batch(batch).unwrap());
        }
        bytes.extend(encoder.finish().unwrap());
        bytes
    }

    fn text(format: Format, batches: &[RecordBatch]) -> String {
        String::from_utf8(encoded(format, batches)).unwrap()
    }

    #[test]
    fn a_document_is_one_json_value_however_many_batches_there_are() {
        for batches in 0..3 {
            let text = text(Format::Document, &vec![batch(); batches]);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["rows"].as_array().unwrap().len(), 3 * batches, "{text}");
            assert_eq!(value["schema"][0]["type"], "Float64");
        }
        let value: serde_json::Value =
            serde_json::from_str(&text(Format::Array, &[batch()])).unwrap();
        assert_eq!(value[0]["name"], "a,\"b\"");
        assert!(value[1]["price"].is_null() && value[2]["price"].is_null());
    }

    #[test]
    fn lines_and_csv_have_one_row_per_line_and_csv_has_its_header_once() {
        assert_eq!(text(Format::Lines, &[batch(), batch()]).lines().count(), 6);
        let csv = text(Format::Csv, &[batch(), batch()]);
        assert_eq!(csv.lines().count(), 7);
        assert!(csv.starts_with("price,name\n1.5,\"a,\"\"b\"\"\"\n"), "{csv}");
        assert_eq!(text(Format::Csv, &[]), "price,name\n");
    }

    #[test]
    fn an_arrow_stream_comes_back_as_it_was() {
        let bytes = encoded(Format::Arrow, &[batch(), batch()]);
        let back: Vec<_> =
            StreamReader::try_new(bytes.as_slice(), None).unwrap().map(Result::unwrap).collect();
        assert_eq!(back.len(), 2);
        assert_eq!(back[0].schema(), batch().schema());
        assert_eq!(back[0].column(1), batch().column(1));
    }
}
