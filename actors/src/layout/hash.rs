//! The hash of keys. It is our own and never changes: layouts are stored with the table, and the hash that
//! DataFusion uses for its own exchanges may differ from release to release.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, Float64Type, Int64Type, TimeUnit, UInt64Type};

use crate::partitioning::PartitioningError;

pub(super) const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const NULL_HASH: u64 = 0x6e75_6c6c_6e75_6c6c;

/// One round of splitmix64: every input bit reaches every output bit.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

fn fold(hash: u64, value: u64) -> u64 {
    mix(hash.rotate_left(23) ^ mix(value ^ SEED))
}

fn fold_bytes(hash: u64, bytes: &[u8]) -> u64 {
    let length = bytes.len() as u64;
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.fold(fold(hash, length), fold)
}

/// The type a key is hashed as, so that equal values of related types meet.
pub(crate) fn canonical_type(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::Date32 => DataType::Int64,
        DataType::Date64 | DataType::Timestamp(TimeUnit::Millisecond, _) => DataType::Int64,
        DataType::Timestamp(_, _) => DataType::Int64,
        DataType::UInt64 => DataType::UInt64,
        DataType::Float16 | DataType::Float32 | DataType::Float64 => DataType::Float64,
        DataType::Decimal128(precision, scale) => DataType::Decimal128(*precision, *scale),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8View,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => DataType::BinaryView,
        DataType::Dictionary(_, value) => return canonical_type(value),
        _ => return None,
    })
}

pub(super) fn hash_column(array: &ArrayRef, hashes: &mut [u64]) -> Result<(), PartitioningError> {
    let Some(canonical) = canonical_type(array.data_type()) else {
        return Err(PartitioningError::KeyType {
            column: String::new(),
            data_type: array.data_type().clone(),
        });
    };
    // Dates and timestamps cast to their number in two steps where Arrow knows no direct way.
    let array = match array.data_type() {
        DataType::Date32 => cast(&cast(array, &DataType::Int32)?, &DataType::Int64)?,
        _ => cast(array, &canonical)?,
    };
    let fold_all = |hashes: &mut [u64], value: &dyn Fn(usize, u64) -> u64| {
        for (row, hash) in hashes.iter_mut().enumerate() {
            *hash = if array.is_null(row) { fold(*hash, NULL_HASH) } else { value(row, *hash) };
        }
    };
    match &canonical {
        DataType::Int64 => {
            let values = array.as_primitive::<Int64Type>();
            fold_all(hashes, &|row, hash| fold(hash, values.value(row).cast_unsigned()));
        }
        DataType::UInt64 => {
            let values = array.as_primitive::<UInt64Type>();
            fold_all(hashes, &|row, hash| fold(hash, values.value(row)));
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>();
            fold_all(hashes, &|row, hash| {
                let value = values.value(row);
                let value = if value.is_nan() { f64::NAN } else { value + 0.0 };
                fold(hash, value.to_bits())
            });
        }
        DataType::Decimal128(..) => {
            let values = array.as_primitive::<Decimal128Type>();
            fold_all(hashes, &|row, hash| fold_bytes(hash, &values.value(row).to_le_bytes()));
        }
        DataType::Utf8View => {
            let values = array.as_string_view();
            fold_all(hashes, &|row, hash| fold_bytes(hash, values.value(row).as_bytes()));
        }
        _ => {
            let values = array.as_binary_view();
            fold_all(hashes, &|row, hash| fold_bytes(hash, values.value(row)));
        }
    }
    Ok(())
}
