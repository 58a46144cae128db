//! Says whether two answers are the same table.

use anyhow::{Result, bail, ensure};
use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// Relative difference of two floating-point answers that is due to the order of summing.
const TOLERANCE: f64 = 1e-9;

/// Checks that both hold the same rows in any order; floats as near as another order of summing.
///
/// # Errors
/// The first row that differs, or the numbers of rows.
pub fn same(ours: &[RecordBatch], theirs: &[RecordBatch]) -> Result<()> {
    let (ours, theirs) = (sorted(ours)?, sorted(theirs)?);
    ensure!(ours.len() == theirs.len(), "{} rows instead of {}", ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let equal = ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| near(a, b));
        if !equal {
            bail!("{ours:?} instead of {theirs:?}");
        }
    }
    Ok(())
}

fn near(a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    // Whole numbers are sums of whole numbers, keys or counts: no order of summing changes them.
    if a.parse::<i128>().is_ok() && b.parse::<i128>().is_ok() {
        return false;
    }
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(x), Ok(y)) => (x - y).abs() <= TOLERANCE * x.abs().max(y.abs()),
        _ => false,
    }
}

fn sorted(batches: &[RecordBatch]) -> Result<Vec<Vec<String>>> {
    let options = FormatOptions::default().with_null("NULL");
    let mut rows = Vec::new();
    for batch in batches {
        let columns =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options));
        let columns: Vec<_> = columns.collect::<Result<_, _>>()?;
        for row in 0..batch.num_rows() {
            rows.push(columns.iter().map(|column| column.value(row).to_string()).collect());
        }
    }
    rows.sort_unstable();
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int64Array};

    use super::*;

    fn rows(keys: &[i64], sums: &[f64]) -> RecordBatch {
        RecordBatch::try_from_iter([
            ("k", Arc::new(Int64Array::from(keys.to_vec())) as arrow::array::ArrayRef),
            ("s", Arc::new(Float64Array::from(sums.to_vec()))),
        ])
        .unwrap()
    }

    #[test]
    fn answers_may_differ_in_order_and_in_the_last_digits_and_in_nothing_else() {
        let plain = rows(&[1, 2], &[0.3, 7.0]);
        assert!(
            same(&[rows(&[2], &[7.0]), rows(&[1], &[0.1 + 0.2])], std::slice::from_ref(&plain))
                .is_ok()
        );
        assert!(same(&[rows(&[1, 2], &[0.3, 7.01])], std::slice::from_ref(&plain)).is_err());
        assert!(same(&[rows(&[1, 3], &[0.3, 7.0])], std::slice::from_ref(&plain)).is_err());
        assert!(same(&[rows(&[1], &[0.3])], &[plain]).is_err());
    }

    #[test]
    fn long_keys_that_differ_in_the_last_digit_are_different() {
        let key = 435_090_932_899_640_449;
        assert!(same(&[rows(&[key], &[1.0])], &[rows(&[key + 1], &[1.0])]).is_err());
    }
}
