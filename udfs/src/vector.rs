//! Similarity of embeddings.

use std::sync::Arc;

use arrow::array::{Array, AsArray, Float64Array};
use arrow::datatypes::DataType;
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{ScalarUDF, Signature, Volatility};

use crate::card::{Card, CostClass};
use crate::native::{Native, list_item};

pub(crate) fn functions() -> Vec<(Card, ScalarUDF)> {
    vec![embedding_similarity()]
}

fn embedding_similarity() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "embedding_similarity",
        "1",
        CostClass::Cheap,
        "Cosine of the angle between two vectors, from -1 to 1. NULL if either holds a NULL or has \
         no direction (empty, or all zero). Vectors of different lengths are an error.",
        "SELECT embedding_similarity([1.0, 0.0], [0.6, 0.8])",
    );
    let signature = Signature::user_defined(Volatility::Immutable);
    Native::new(card, signature, DataType::Float64, |arguments| {
        let left = arguments.lists(0, DataType::Float64)?;
        let right = arguments.lists(1, DataType::Float64)?;
        let cosines = (0..arguments.rows).map(|row| {
            let (Some(left), Some(right)) = (left.get(row), right.get(row)) else {
                return Ok(None);
            };
            if left.len() != right.len() {
                let expected = format!("{}, as the length of a", left.len());
                return Err(arguments.refuse("the length of b", right.len(), expected));
            }
            let (left, right) = (left.as_primitive_opt(), right.as_primitive_opt());
            Ok(left.zip(right).and_then(|(left, right)| cosine(left, right)))
        });
        Ok(Arc::new(cosines.collect::<Result<Float64Array>>()?))
    })
    .with_argument("a", "a list of numbers")
    .with_argument("b", "a list of as many numbers")
    .with_coercion(coerce_vectors)
    .into_udf()
}

fn coerce_vectors(types: &[DataType]) -> Result<Vec<DataType>> {
    let is_vector = |data_type: &DataType| {
        let numbers = |item: &DataType| item.is_numeric() || item.is_null();
        data_type.is_null() || list_item(data_type).is_some_and(numbers)
    };
    match types {
        [left, right] if is_vector(left) && is_vector(right) => Ok(types.to_vec()),
        [left, right] => plan_err!("two lists of numbers are needed, got {left} and {right}"),
        _ => plan_err!("two lists of numbers are needed, got {} arguments", types.len()),
    }
}

fn cosine(left: &Float64Array, right: &Float64Array) -> Option<f64> {
    if left.null_count() + right.null_count() > 0 {
        return None;
    }
    let (mut product, mut left_square, mut right_square) = (0.0, 0.0, 0.0);
    for (left, right) in left.values().iter().zip(right.values()) {
        product += left * right;
        left_square += left * left;
        right_square += right * right;
    }
    let lengths = left_square.sqrt() * right_square.sqrt();
    (lengths != 0.0).then(|| product / lengths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::Trial;
    use arrow::array::{ArrayRef, FixedSizeListArray, ListArray};
    use arrow::compute::cast;
    use arrow::datatypes::Float32Type;

    fn vectors(rows: &[Option<Vec<Option<f32>>>]) -> ArrayRef {
        Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(rows.to_vec()))
    }

    fn vector(values: &[f32]) -> Option<Vec<Option<f32>>> {
        Some(values.iter().copied().map(Some).collect())
    }

    #[test]
    fn the_cosine_tells_direction_and_not_length() {
        let left = [vector(&[1.0, 0.0]), vector(&[2.0, 0.0]), vector(&[1.0, 1.0])];
        let right = [vector(&[3.0, 4.0]), vector(&[-1.0, 0.0]), vector(&[-5.0, 5.0])];
        let answers =
            Trial::of(embedding_similarity()).rows(&[vectors(&left), vectors(&right)]).numbers();
        assert_eq!(answers, [0.6, -1.0, 0.0]);
    }

    #[test]
    fn vectors_without_direction_give_null() {
        let left = [vector(&[]), vector(&[0.0]), None, Some(vec![None])];
        let right = [vector(&[]), vector(&[1.0]), vector(&[1.0]), vector(&[1.0])];
        let answers = Trial::of(embedding_similarity()).rows(&[vectors(&left), vectors(&right)]);
        assert_eq!(answers.null_count(), 4);
    }

    #[test]
    fn vectors_of_different_lengths_are_an_error_that_names_both() {
        let columns = [vectors(&[vector(&[1.0, 2.0])]), vectors(&[vector(&[1.0])])];
        let error = Trial::of(embedding_similarity()).fails(&columns);
        let expected =
            "embedding_similarity: the length of b is 1; it must be 2, as the length of a";
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn every_kind_of_list_of_numbers_is_a_vector_and_nothing_else_is() {
        let list = vectors(&[vector(&[1.0, 2.0]), vector(&[3.0, 4.0])]);
        let fixed: ArrayRef =
            Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(
                [vector(&[1.0, 2.0]), vector(&[3.0, 4.0])],
                2,
            ));
        let large = cast(&list, &DataType::new_large_list(DataType::Float64, true)).unwrap();
        let integers = cast(&list, &DataType::new_list(DataType::Int32, true)).unwrap();
        let trial = Trial::of(embedding_similarity());
        for other in [fixed, large, integers] {
            let answers = trial.rows(&[Arc::clone(&list), other]).numbers();
            assert!(answers.iter().all(|cosine| (cosine - 1.0).abs() < 1e-12), "{answers:?}");
        }
        let error = trial.refuses(&[DataType::Utf8, list.data_type().clone()]);
        assert!(error.contains("two lists of numbers are needed, got Utf8"), "{error}");
    }

    #[test]
    fn vectors_keep_the_rules_of_the_library() {
        let list = vectors(&[vector(&[1.0, 2.0]), vector(&[0.0, 0.0]), vector(&[-1.0, 0.5])]);
        let columns = [Arc::clone(&list), list];
        Trial::of(embedding_similarity()).keeps_the_rules_of_the_library(&columns);
    }
}
