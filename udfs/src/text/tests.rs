//! What text similarity promises, and that shortcuts change no answer.

use super::*;
use crate::trial::{Trial, nulls, numbers, texts};
use arrow::array::{ListArray, ListBuilder, StringBuilder};
use arrow::compute::cast;

fn lists(rows: &[Option<&[Option<&str>]>]) -> ArrayRef {
    let mut builder = ListBuilder::new(StringBuilder::new());
    for row in rows {
        match row {
            Some(items) => builder.append_value(items.iter().copied()),
            None => builder.append_null(),
        }
    }
    let lists: ListArray = builder.finish();
    Arc::new(lists)
}

#[test]
fn similarity_counts_edits_of_characters_not_of_bytes() {
    let left = texts(["kitten", "", "日本語", "Straße", "abc"]);
    let right = texts(["sitting", "", "日本", "Strasse", ""]);
    let answers = Trial::of(levenshtein_similarity()).rows(&[left, right]).numbers();
    assert_eq!(answers, [1.0 - 3.0 / 7.0, 1.0, 1.0 - 1.0 / 3.0, 1.0 - 2.0 / 7.0, 0.0]);
}

#[test]
fn jaro_winkler_favours_a_common_beginning() {
    let left = texts(["MARTHA", "DIXON", "", "x"]);
    let right = texts(["MARHTA", "DICKSONX", "", ""]);
    let answers = Trial::of(jaro_winkler()).rows(&[left, right]).numbers();
    let rounded: Vec<f64> = answers.iter().map(|a| (a * 1000.0).round() / 1000.0).collect();
    assert_eq!(rounded, [0.961, 0.813, 1.0, 0.0]);
}

#[test]
fn two_texts_keep_the_rules_of_the_library() {
    let columns = [texts(["kitten", "Zoë", ""]), texts(["sitting", "Zoe", "a"])];
    Trial::of(levenshtein_similarity()).keeps_the_rules_of_the_library(&columns);
    Trial::of(jaro_winkler()).keeps_the_rules_of_the_library(&columns);
}

#[test]
fn numbers_are_not_texts() {
    let error = Trial::of(levenshtein_similarity()).refuses(&[DataType::Int64, DataType::Utf8]);
    assert!(error.contains("levenshtein_similarity"), "{error}");
    assert!(error.contains("String"), "{error}");
}

#[test]
fn two_books_are_refused_rather_than_compared_for_hours() {
    let book = "a".repeat(40_000);
    let books = [texts([book.as_str()]), texts([book.as_str()])];
    let error = Trial::of(levenshtein_similarity()).fails(&books);
    assert!(error.contains("40000 and 40000 bytes"), "{error}");
    assert!(error.contains("at most 1000000000"), "{error}");
    let word = [texts([book.as_str()]), texts(["aa"])];
    let answer = Trial::of(levenshtein_similarity()).rows(&word).numbers();
    assert_eq!(answer, [1.0 - 39_998.0 / 40_000.0]);
}

#[test]
fn the_best_match_is_the_nearest_and_the_first_of_equals() {
    let sought = texts(["Untied States", "Frnace", "bat"]);
    let countries = "United States|France";
    let candidates = texts([countries, countries, "cat|rat|cat"]);
    let columns = [sought, candidates];
    let best = Trial::of(best_match()).rows(&columns).texts();
    assert_eq!(best, ["United States", "France", "cat"].map(String::from));
    let scores = Trial::of(best_match_score()).rows(&columns).numbers();
    assert_eq!(scores, [1.0 - 2.0 / 13.0, 1.0 - 2.0 / 6.0, 1.0 - 1.0 / 3.0]);
}

#[test]
fn lists_and_separated_texts_of_candidates_give_the_same_answers() {
    let sought = texts(["Zürich", "Genf", "Bern", "x"]);
    let listed = lists(&[
        Some(&[Some("Zurich"), None, Some("Zug")]),
        Some(&[Some("Genève"), Some("Gent")]),
        Some(&[]),
        None,
    ]);
    let separated: ArrayRef =
        Arc::new(StringArray::from(vec![Some("Zurich||Zug"), Some("Genève|Gent"), Some(""), None]));
    let expected = [Some("Zurich"), Some("Gent"), None, None].map(|t| t.map(String::from));
    let trial = Trial::of(best_match());
    assert_eq!(trial.rows(&[Arc::clone(&sought), separated]).optional_texts(), expected);
    for list in [
        DataType::new_list(DataType::Utf8, true),
        DataType::new_list(DataType::Utf8View, true),
        DataType::new_large_list(DataType::LargeUtf8, true),
    ] {
        let listed = cast(&listed, &list).unwrap();
        assert_eq!(trial.rows(&[Arc::clone(&sought), listed]).optional_texts(), expected, "{list}");
    }
}

#[test]
fn matching_keeps_the_rules_of_the_library() {
    let columns = [texts(["Zoë", "", "Ann"]), texts(["Zoe|Ann", "x", "Anne|Anna"])];
    Trial::of(best_match()).keeps_the_rules_of_the_library(&columns);
    Trial::of(best_match_score()).keeps_the_rules_of_the_library(&columns);
    assert_eq!(Trial::of(best_match()).rows(&[nulls(2), nulls(2)]).null_count(), 2);
}

#[test]
fn candidates_that_are_no_texts_are_refused_with_their_type() {
    let trial = Trial::of(best_match());
    let error = trial.refuses(&[DataType::Utf8, DataType::new_list(DataType::Int64, true)]);
    assert!(error.contains("list of texts") && error.contains("Int64"), "{error}");
    let error = trial.refuses(&[DataType::Utf8]);
    assert!(error.contains("got 1 arguments"), "{error}");
    let number = trial.refuses(&[numbers([1.0]).data_type().clone(), DataType::Utf8]);
    assert!(number.contains("Float64"), "{number}");
}

#[test]
fn a_search_in_too_long_a_list_is_refused() {
    let text = "a".repeat(2_000);
    let candidates = "b".repeat(600_000);
    let error =
        Trial::of(best_match()).fails(&[texts([text.as_str()]), texts([candidates.as_str()])]);
    assert!(error.contains("2000 and 600000 bytes"), "{error}");
}

proptest::proptest! {
    #[test]
    fn skipping_hopeless_candidates_changes_no_answer(
        text in "[abc]{0,8}",
        candidates in proptest::collection::vec("[abc]{1,8}", 0..6),
    ) {
        let mut expected: Option<(&str, f64)> = None;
        for candidate in &candidates {
            let score = strsim::normalized_levenshtein(&text, candidate);
            if expected.is_none_or(|(_, best)| score > best) {
                expected = Some((candidate, score));
            }
        }
        let known = Candidates::new(candidates.iter().map(String::as_str));
        proptest::prop_assert_eq!(known.best(&text), expected);
    }
}
