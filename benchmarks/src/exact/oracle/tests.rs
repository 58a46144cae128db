//! The judge of the differential tests must itself be able to find a difference.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch};

use super::{Answer, Rows, Verdict, compare};

fn answer(ids: &[i64], values: &[f64]) -> Answer {
    let columns: [(&str, ArrayRef); 2] = [
        ("id", Arc::new(Int64Array::from(ids.to_vec()))),
        ("v", Arc::new(Float64Array::from(values.to_vec()))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    Ok(Rows { schema: batch.schema(), batches: vec![batch] })
}

fn failure() -> Answer {
    Err("no".into())
}

#[test]
fn rows_in_another_order_are_the_same_answer_unless_the_query_orders_them() {
    let plain = answer(&[1, 2, 3], &[0.5, 1.5, 2.5]);
    let ours = answer(&[3, 1, 2], &[2.5, 0.5, 1.5]);
    assert_eq!(compare(&plain, &ours, false), Ok(Verdict::Same));
    assert!(compare(&plain, &ours, true).unwrap_err().contains("row 0"));
}

#[test]
fn a_missing_row_and_a_doubled_row_are_found() {
    let plain = answer(&[1, 2], &[0.5, 1.5]);
    assert!(compare(&plain, &answer(&[1], &[0.5]), false).unwrap_err().contains("1 rows instead"));
    let doubled = compare(&plain, &answer(&[1, 1], &[0.5, 0.5]), false).unwrap_err();
    assert!(doubled.contains("only plain: [Exact(\"2\")"), "{doubled}");
}

#[test]
fn the_last_digits_of_a_float_may_differ_but_no_more() {
    let plain = answer(&[1, 1], &[0.1 + 0.2, 1e12]);
    assert_eq!(compare(&plain, &answer(&[1, 1], &[1e12 + 1e-3, 0.3]), false), Ok(Verdict::Same));
    assert!(compare(&plain, &answer(&[1, 1], &[1e12, 0.300_001]), false).is_err());
}

#[test]
fn nan_is_nan_and_zero_has_no_sign() {
    let plain = answer(&[1, 2], &[f64::NAN, 0.0]);
    assert_eq!(compare(&plain, &answer(&[1, 2], &[f64::NAN, -0.0]), true), Ok(Verdict::Same));
    assert!(compare(&plain, &answer(&[1, 2], &[0.0, 0.0]), true).is_err());
}

#[test]
fn near_floats_that_sort_apart_are_still_paired() {
    let plain = answer(&[7, 7], &[1.0, 1.0 + 1e-12]);
    let ours = answer(&[7, 7], &[1.0 + 2e-12, 1.0 - 1e-12]);
    assert_eq!(compare(&plain, &ours, false), Ok(Verdict::Same));
}

#[test]
fn an_error_is_ours_alone_or_it_is_allowed() {
    let table = answer(&[1], &[0.5]);
    assert!(compare(&table, &failure(), false).unwrap_err().contains("ours fails"));
    assert_eq!(compare(&failure(), &table, false), Ok(Verdict::OnlyPlainFails));
    assert_eq!(compare(&failure(), &failure(), false), Ok(Verdict::BothFail));
}

#[test]
fn another_type_or_name_is_another_answer() {
    let integers: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![1.0]));
    let table = |name: &str, column: &ArrayRef| -> Answer {
        let batch = RecordBatch::try_from_iter([(name, Arc::clone(column))]).unwrap();
        Ok(Rows { schema: batch.schema(), batches: vec![batch] })
    };
    assert!(compare(&table("a", &integers), &table("a", &floats), false).is_err());
    assert!(compare(&table("a", &integers), &table("b", &integers), false).is_err());
}
