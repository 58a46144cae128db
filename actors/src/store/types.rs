//! Which Arrow types a managed table keeps, and as what: every mapping is exact, both ways.
//!
//! | logical | stored as |
//! |---|---|
//! | Boolean, Int8-64, Float32/64, Utf8, Binary, Date32, Timestamp(us), Decimal128 | itself |
//! | UInt8, UInt16, UInt32, UInt64 | Int16, Int32, Int64, Decimal128(20, 0) |
//! | LargeUtf8, Utf8View, LargeBinary, BinaryView, FixedSizeBinary | Utf8, Binary |
//! | Dictionary | its values |
//! | Timestamp(s, ms), Date64 | Timestamp(us) |
//! | Timestamp(ns) | Int64: Delta has no nanoseconds, and dropping them would change answers |
//! | Decimal32, Decimal64 | Decimal128 |
//! | LargeList, FixedSizeList | List |
//! | Struct, List, Map | the same of stored types |
//!
//! Everything else is refused when the table is created.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use serde_json::{Value, json};

use super::error::StoreError;

/// Name of the hidden column that says which partition a file belongs to.
pub(crate) const PARTITION_COLUMN: &str = "_partition";

/// Deepest nesting of a column's type.
const NESTING_MAX: usize = 32;

/// The schema that files of a table with logical schema `schema` have.
pub(crate) fn storage_schema(schema: &Schema, table: &str) -> Result<SchemaRef, StoreError> {
    let mut names = std::collections::HashSet::new();
    let mut fields = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let lower = field.name().to_lowercase();
        if lower == PARTITION_COLUMN || lower.is_empty() || !names.insert(lower) {
            return Err(StoreError::Unsupported {
                path: table.to_owned(),
                what: format!(
                    "column name {:?} is reserved, empty or there twice (case does not count)",
                    field.name()
                ),
            });
        }
        let data_type = storage_type(field.name(), field.data_type(), 0)?;
        fields.push(Field::new(field.name(), data_type, field.is_nullable()));
    }
    Ok(Arc::new(Schema::new(fields)))
}

fn storage_type(column: &str, logical: &DataType, depth: usize) -> Result<DataType, StoreError> {
    let stored = match logical {
        _ if depth > NESTING_MAX => Err("at most 32 levels of nesting"),
        DataType::Dictionary(_, values) => return storage_type(column, values, depth + 1),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            Ok(DataType::List(Arc::new(child(column, "element", item, depth)?)))
        }
        DataType::Struct(fields) => {
            let fields: Result<Vec<_>, _> =
                fields.iter().map(|field| child(column, field.name(), field, depth)).collect();
            Ok(DataType::Struct(Fields::from(fields?)))
        }
        DataType::Map(entries, false) => return storage_map(column, logical, entries, depth),
        scalar => scalar_type(scalar),
    };
    stored.map_err(|alternatives| StoreError::UnsupportedType {
        column: column.to_owned(),
        data_type: logical.clone(),
        alternatives,
    })
}

/// What a type without children is stored as, or what to use instead of it.
fn scalar_type(logical: &DataType) -> Result<DataType, &'static str> {
    Ok(match logical {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::Binary
        | DataType::Date32 => logical.clone(),
        DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            DataType::Binary
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => DataType::Int64,
        DataType::Timestamp(_, None) | DataType::Date64 => {
            DataType::Timestamp(TimeUnit::Microsecond, None)
        }
        DataType::Timestamp(_, Some(_)) => {
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
        }
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale) => {
            if !(0..=i16::from(*precision)).contains(&i16::from(*scale)) {
                return Err("a decimal whose scale is 0 to its precision");
            }
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Map(_, _) => return Err("a map whose keys are not declared sorted"),
        DataType::Float16 => return Err("Float32"),
        DataType::Time32(_) | DataType::Time64(_) => return Err("Int64 or Utf8"),
        DataType::Duration(_) | DataType::Interval(_) => return Err("Int64"),
        DataType::Decimal256(_, _) => return Err("Decimal128 or Utf8"),
        DataType::Null => return Err("a nullable column of a named type"),
        _ => return Err("List, Struct or Utf8"),
    })
}

fn child(column: &str, name: &str, field: &FieldRef, depth: usize) -> Result<Field, StoreError> {
    let path = format!("{column}.{}", field.name());
    let data_type = storage_type(&path, field.data_type(), depth + 1)?;
    Ok(Field::new(name, data_type, field.is_nullable()))
}

fn storage_map(
    column: &str,
    logical: &DataType,
    entries: &FieldRef,
    depth: usize,
) -> Result<DataType, StoreError> {
    let DataType::Struct(fields) = entries.data_type() else {
        return Err(StoreError::UnsupportedType {
            column: column.to_owned(),
            data_type: logical.clone(),
            alternatives: "a map of keys and values",
        });
    };
    let [key, value] = fields.as_ref() else {
        return Err(StoreError::UnsupportedType {
            column: column.to_owned(),
            data_type: logical.clone(),
            alternatives: "a map of keys and values",
        });
    };
    let key = child(column, "key", key, depth)?.with_nullable(false);
    let value = child(column, "value", value, depth)?;
    let fields = Fields::from(vec![key, value]);
    Ok(DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(fields), false)), false))
}

/// Casts without losing anything, or says that it cannot.
pub(crate) fn cast_exact(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(array, to, &options)
}

/// Casts every column of `batch` to the type it has in `schema`, by position.
pub(crate) fn cast_batch(
    batch: &RecordBatch,
    schema: &SchemaRef,
) -> Result<RecordBatch, ArrowError> {
    let columns: Result<Vec<_>, _> = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| cast_exact(column, field.data_type()))
        .collect();
    // A batch without columns still has rows.
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns?, &options)
}

/// Checks that `batch` has the table's columns and gives it the table's schema.
pub(crate) fn adopt(
    batch: &RecordBatch,
    schema: &SchemaRef,
    table: &str,
) -> Result<RecordBatch, StoreError> {
    let types = |schema: &Schema| -> Vec<String> {
        let fields = schema.fields().iter();
        fields.map(|field| format!("{} {}", field.name(), field.data_type())).collect()
    };
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let same_names = batch.num_columns() == schema.fields().len()
        && batch.schema().fields().iter().zip(schema.fields()).all(|(a, b)| a.name() == b.name());
    let adopted = same_names.then(|| {
        RecordBatch::try_new_with_options(Arc::clone(schema), batch.columns().to_vec(), &options)
    });
    match adopted {
        Some(Ok(batch)) => Ok(batch),
        Some(Err(error)) if types(&batch.schema()) == types(schema) => {
            // Same types, yet refused: a NULL where there must be none.
            Err(StoreError::arrow(table, error))
        }
        _ => Err(StoreError::SchemaMismatch {
            path: table.to_owned(),
            expected: format!("columns {:?}", types(schema)),
            found: format!("columns {:?}", types(&batch.schema())),
        }),
    }
}

/// The schema as text, for a table property.
pub(crate) fn schema_to_text(schema: &Schema) -> Result<String, ArrowError> {
    let mut bytes = Vec::new();
    StreamWriter::try_new(&mut bytes, schema)?.finish()?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The inverse of [`schema_to_text`].
pub(crate) fn schema_from_text(text: &str) -> Result<SchemaRef, ArrowError> {
    let odd = || ArrowError::ParseError("a schema is written in pairs of hex digits".to_owned());
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|value| u8::try_from(value).ok()))
        .collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2)).ok_or_else(odd)?;
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair[0] * 16 + pair[1]).collect();
    Ok(StreamReader::try_new(Cursor::new(bytes), None)?.schema())
}

/// The stored schema, with the partition column, as Delta writes it into its log.
pub(crate) fn delta_schema(storage: &Schema) -> String {
    let mut fields: Vec<Value> =
        storage.fields().iter().map(|field| delta_field(field.name(), field)).collect();
    let partition = Field::new(PARTITION_COLUMN, DataType::Int32, true);
    fields.push(delta_field(PARTITION_COLUMN, &partition));
    json!({ "type": "struct", "fields": fields }).to_string()
}

fn delta_field(name: &str, field: &Field) -> Value {
    json!({
        "name": name,
        "type": delta_type(field.data_type()),
        "nullable": field.is_nullable(),
        "metadata": {},
    })
}

fn delta_type(storage: &DataType) -> Value {
    match storage {
        DataType::Boolean => json!("boolean"),
        DataType::Int8 => json!("byte"),
        DataType::Int16 => json!("short"),
        DataType::Int32 => json!("integer"),
        DataType::Int64 => json!("long"),
        DataType::Float32 => json!("float"),
        DataType::Float64 => json!("double"),
        DataType::Binary => json!("binary"),
        DataType::Date32 => json!("date"),
        DataType::Timestamp(_, None) => json!("timestamp_ntz"),
        DataType::Timestamp(_, Some(_)) => json!("timestamp"),
        DataType::Decimal128(precision, scale) => json!(format!("decimal({precision},{scale})")),
        DataType::List(item) => json!({
            "type": "array",
            "elementType": delta_type(item.data_type()),
            "containsNull": item.is_nullable(),
        }),
        DataType::Struct(fields) => {
            let fields: Vec<Value> =
                fields.iter().map(|field| delta_field(field.name(), field)).collect();
            json!({ "type": "struct", "fields": fields })
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => json!({
                "type": "map",
                "keyType": delta_type(fields[0].data_type()),
                "valueType": delta_type(fields[1].data_type()),
                "valueContainsNull": fields[1].is_nullable(),
            }),
            _ => json!("string"),
        },
        // `storage_type` gives no other type than text.
        _ => json!("string"),
    }
}

/// Whether any column needs the table feature for timestamps without a time zone.
pub(crate) fn has_local_timestamps(storage: &Schema) -> bool {
    fn within(data_type: &DataType) -> bool {
        match data_type {
            DataType::Timestamp(_, None) => true,
            DataType::List(item) | DataType::Map(item, _) => within(item.data_type()),
            DataType::Struct(fields) => fields.iter().any(|field| within(field.data_type())),
            _ => false,
        }
    }
    storage.fields().iter().any(|field| within(field.data_type()))
}

/// Whether a column holds dictionary keys that could run out.
pub(crate) fn has_dictionary(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, _) => true,
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => has_dictionary(item.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_dictionary(field.data_type())),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(data_type: DataType) -> Schema {
        Schema::new(vec![Field::new("c", data_type, true)])
    }

    #[test]
    fn a_type_that_cannot_be_kept_is_named_with_what_to_use_instead() {
        let refused = [
            (DataType::Float16, "Float32"),
            (DataType::Time64(TimeUnit::Microsecond), "Int64 or Utf8"),
            (DataType::Duration(TimeUnit::Second), "Int64"),
            (DataType::Interval(arrow::datatypes::IntervalUnit::DayTime), "Int64"),
            (DataType::Decimal256(50, 2), "Decimal128 or Utf8"),
        ];
        for (data_type, instead) in refused {
            let nested = DataType::Struct(vec![Field::new("x", data_type.clone(), true)].into());
            for (column, given) in [("c", data_type.clone()), ("c.x", nested)] {
                let error = storage_schema(&one(given), "t").unwrap_err();
                let StoreError::UnsupportedType { column: named, data_type: kept, alternatives } =
                    error
                else {
                    panic!("{error}");
                };
                assert_eq!(
                    (named.as_str(), kept, alternatives),
                    (column, data_type.clone(), instead)
                );
            }
        }
    }

    #[test]
    fn the_partition_column_and_names_that_differ_in_case_only_are_refused() {
        for names in [vec!["_Partition"], vec!["a", "A"], vec![""]] {
            let fields: Vec<_> =
                names.iter().map(|name| Field::new(*name, DataType::Int64, true)).collect();
            let error = storage_schema(&Schema::new(fields), "t").unwrap_err();
            assert_eq!(error.code(), "FS-STORE-8", "{names:?}");
        }
    }

    #[test]
    fn a_schema_survives_its_text_form_with_metadata_and_dictionaries() {
        let dictionary = DataType::Dictionary(Box::new(DataType::Int16), Box::new(DataType::Utf8));
        let schema = Schema::new(vec![
            Field::new("d", dictionary, false)
                .with_metadata([("unit".to_owned(), "m".to_owned())].into()),
            Field::new(
                "e",
                DataType::FixedSizeList(Arc::new(Field::new("item", DataType::Float32, true)), 384),
                true,
            ),
        ]);
        let text = schema_to_text(&schema).unwrap();
        assert_eq!(schema_from_text(&text).unwrap().as_ref(), &schema);
        assert!(schema_from_text("0x").is_err());
        assert!(schema_from_text(&text[1..]).is_err());
    }
}
