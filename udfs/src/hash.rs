//! Content hashes.

use std::sync::Arc;

use arrow::array::StringArray;
use arrow::datatypes::DataType;
use datafusion::logical_expr::{
    Coercion, ScalarUDF, Signature, TypeSignature, TypeSignatureClass, Volatility,
};

use crate::card::{Card, CostClass};
use crate::native::{Native, text};

pub(crate) fn functions() -> Vec<(Card, ScalarUDF)> {
    vec![blake3_hex()]
}

fn blake3_hex() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "blake3_hex",
        "1",
        CostClass::Free,
        "The BLAKE3 hash of a text's UTF-8 bytes or of binary data, as 64 hexadecimal digits.",
        "SELECT blake3_hex('hello')",
    );
    let binary = Coercion::new_exact(TypeSignatureClass::Binary);
    let content =
        vec![TypeSignature::Coercible(vec![text()]), TypeSignature::Coercible(vec![binary])];
    Native::new(card, Signature::one_of(content, Volatility::Immutable), DataType::Utf8, |args| {
        let contents = args.bytes(0)?;
        let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
        let hashes = (0..args.rows).map(|row| contents.get(row).map(hash));
        Ok(Arc::new(hashes.collect::<StringArray>()))
    })
    .with_argument("content", "text or binary data")
    .into_udf()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::{Trial, texts};
    use arrow::array::{ArrayRef, BinaryArray};
    use arrow::compute::cast;

    #[test]
    fn the_hash_is_that_of_the_specification() {
        let empty = Trial::of(blake3_hex()).rows(&[texts([""])]).texts();
        assert_eq!(empty, ["af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"]);
    }

    #[test]
    fn text_and_the_same_bytes_have_the_same_hash() {
        let words = ["", "hello", "Zoë 🙂", &"long".repeat(100_000)];
        let trial = Trial::of(blake3_hex());
        let expected = trial.rows(&[texts(words)]).texts();
        let binary: ArrayRef = Arc::new(BinaryArray::from_iter_values(words));
        for to in [DataType::Binary, DataType::LargeBinary, DataType::BinaryView] {
            assert_eq!(trial.rows(&[cast(&binary, &to).unwrap()]).texts(), expected, "{to}");
        }
        let hello: ArrayRef = Arc::new(BinaryArray::from_iter_values(["hello"]));
        let fixed = cast(&hello, &DataType::FixedSizeBinary(5)).unwrap();
        assert_eq!(trial.rows(&[fixed]).texts(), expected[1..2]);
    }

    #[test]
    fn hashing_keeps_the_rules_of_the_library_and_refuses_numbers() {
        let trial = Trial::of(blake3_hex());
        trial.keeps_the_rules_of_the_library(&[texts(["a", "ß", ""])]);
        assert!(trial.refuses(&[DataType::Int64]).contains("blake3_hex"));
    }
}
