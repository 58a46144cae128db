//! Likeness by compression: how much of one text a compressor learns from another.

use std::sync::Arc;

use arrow::array::Float64Array;
use arrow::datatypes::DataType;
use datafusion::common::{Result, exec_datafusion_err};
use datafusion::logical_expr::{ScalarUDF, Signature, Volatility};
use flate2::{Compress, Compression, FlushCompress, Status};

use crate::card::{Card, CostClass};
use crate::native::{Arguments, Native, text};

/// Bytes that the two texts of one row may have together, about 1 s of work.
const BYTES_MAX: usize = 16 << 20;

/// Bytes of compressed text that are counted before they are thrown away.
const SCRATCH_BYTES: usize = 8 << 10;

pub(crate) fn functions() -> Vec<(Card, ScalarUDF)> {
    vec![ncd()]
}

/// Normalised compression distance: Cilibrasi and Vitányi, "Clustering by compression", IEEE
/// Transactions on Information Theory 51 (2005), section IV.
fn ncd() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "ncd",
        "zlib-rs-0.6",
        CostClass::Dear,
        "The normalised compression distance of two texts by zlib, from 0 (one tells all of the \
         other) to about 1 (nothing in common; less for short texts). zlib looks back 32 KiB. Two \
         empty texts have 0.",
        "SELECT ncd('a stitch in time saves nine', 'a stitch in time saves ten')",
    );
    let signature = Signature::coercible(vec![text(), text()], Volatility::Immutable);
    Native::new(card, signature, DataType::Float64, |arguments| {
        let (left, right) = (arguments.texts(0)?, arguments.texts(1)?);
        let mut zlib = Zlib::new();
        let mut constants = [None, None];
        let mut distances = Vec::with_capacity(arguments.rows);
        for row in 0..arguments.rows {
            let (Some(left_text), Some(right_text)) = (left.get(row), right.get(row)) else {
                distances.push(None);
                continue;
            };
            check_bytes(arguments, left_text.len(), right_text.len())?;
            let [of_left, of_right] = &mut constants;
            let alone = [
                zlib.length_alone(left_text, left.is_constant.then_some(of_left))?,
                zlib.length_alone(right_text, right.is_constant.then_some(of_right))?,
            ];
            let together = zlib.length(&[left_text.as_bytes(), right_text.as_bytes()])?;
            distances.push(Some(distance(alone, together)));
        }
        Ok(Arc::new(Float64Array::from(distances)))
    })
    .with_argument("a", "one text")
    .with_argument("b", "the other text")
    .into_udf()
}

/// How far apart two texts are by their compressed lengths, alone and one after the other.
fn distance(alone: [u64; 2], together: u64) -> f64 {
    let [left, right] = alone;
    // A text after itself may take fewer bytes than alone, by the checksum's chance: that is 0.
    together.saturating_sub(left.min(right)) as f64 / left.max(right) as f64
}

fn check_bytes(arguments: &Arguments<'_>, left: usize, right: usize) -> Result<()> {
    if left.saturating_add(right) <= BYTES_MAX {
        return Ok(());
    }
    let value = format!("two texts of {left} and {right} bytes");
    let expected = format!("of at most {BYTES_MAX} bytes together");
    Err(arguments.refuse("their length", value, expected))
}

/// A compressor that is made once for many texts, and only counts what it writes.
struct Zlib {
    compress: Compress,
    input: Vec<u8>,
    scratch: Vec<u8>,
}

impl Zlib {
    fn new() -> Self {
        let compress = Compress::new(Compression::default(), true);
        Self { compress, input: Vec::new(), scratch: vec![0; SCRATCH_BYTES] }
    }

    /// The length of one text; that of a constant is found once.
    fn length_alone(&mut self, text: &str, known: Option<&mut Option<u64>>) -> Result<u64> {
        if let Some(Some(length)) = known {
            return Ok(*length);
        }
        let length = self.length(&[text.as_bytes()])?;
        if let Some(known) = known {
            *known = Some(length);
        }
        Ok(length)
    }

    /// Compressed bytes of `parts`, one after the other.
    fn length(&mut self, parts: &[&[u8]]) -> Result<u64> {
        let Self { compress, input, scratch } = self;
        input.clear();
        parts.iter().for_each(|part| input.extend_from_slice(part));
        compress.reset();
        let mut rest = input.as_slice();
        loop {
            let before = compress.total_in();
            let status = compress
                .compress(rest, scratch, FlushCompress::Finish)
                .map_err(|error| exec_datafusion_err!("ncd: zlib failed: {error}"))?;
            if status == Status::StreamEnd {
                return Ok(compress.total_out());
            }
            let taken = usize::try_from(compress.total_in() - before).unwrap_or(rest.len());
            rest = &rest[taken.min(rest.len())..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::{Trial, texts};
    use arrow::array::ArrayRef;

    const FOX: &str = "The quick brown fox jumps over the lazy dog, while the sun goes down";
    const TAX: &str = "Einkommensteuerpflichtige beantragen jährlich Vorauszahlungsbescheide";

    #[test]
    fn a_text_is_nearest_to_itself_and_farthest_from_another_language() {
        let near = FOX.replace("dog", "cat");
        let left = texts([FOX, FOX, FOX]);
        let right = texts([FOX, near.as_str(), TAX]);
        let found = Trial::of(ncd()).rows(&[left, right]).numbers();
        assert!(found[0] < found[1] && found[1] < found[2], "{found:?}");
        assert!(found[0] < 0.1 && found[2] > 0.6 && found[2] < 1.2, "{found:?}");
    }

    #[test]
    fn empty_texts_are_equal_and_far_from_all_others() {
        let found = Trial::of(ncd()).rows(&[texts(["", ""]), texts(["", FOX])]).numbers();
        assert_eq!(found[0], 0.0);
        assert!(found[1] > 0.8, "{found:?}");
    }

    #[test]
    fn the_distance_follows_its_definition() {
        assert_eq!(distance([40, 50], 60), 20.0 / 50.0);
        assert_eq!(distance([40, 40], 39), 0.0);
    }

    #[test]
    fn a_compressor_that_was_used_before_counts_as_a_new_one() {
        let long: String = (0..20_000_u32).map(|n| format!("{:x} ", n.wrapping_mul(n))).collect();
        let mut used = Zlib::new();
        for text in [long.as_str(), FOX, "", TAX, long.as_str()] {
            let fresh = Zlib::new().length(&[text.as_bytes()]).unwrap();
            assert_eq!(used.length(&[text.as_bytes()]).unwrap(), fresh);
            let (start, end) = text.as_bytes().split_at(text.len() / 3);
            assert_eq!(used.length(&[start, end]).unwrap(), fresh);
        }
    }

    #[test]
    fn compression_keeps_the_rules_of_the_library_and_refuses_numbers() {
        let trial = Trial::of(ncd());
        let columns: [ArrayRef; 2] = [texts([FOX, "Zoë", ""]), texts([TAX, "Zoe", "a"])];
        trial.keeps_the_rules_of_the_library(&columns);
        let error = trial.refuses(&[DataType::Int64, DataType::Utf8]);
        assert!(error.contains("ncd"), "{error}");
    }

    #[test]
    fn two_libraries_are_refused_rather_than_compressed_for_minutes() {
        let library = "a".repeat(9 << 20);
        let error = Trial::of(ncd()).fails(&[texts([library.as_str()]), texts([library.as_str()])]);
        assert!(error.contains("at most 16777216 bytes together"), "{error}");
    }
}
