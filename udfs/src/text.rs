//! Text similarity: how near two texts are, and which of many is nearest.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, StringArray};
use arrow::datatypes::DataType;
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{ScalarUDF, Signature, Volatility};

use crate::card::{Card, CostClass};
use crate::native::{Arguments, Native, is_text, list_item, text};

/// Comparisons of two characters that one row may take, about 1 s of work. Two texts take the
/// product of their lengths: 31,000 characters each.
const COMPARISONS_MAX: usize = 1_000_000_000;

pub(crate) fn functions() -> Vec<(Card, ScalarUDF)> {
    vec![levenshtein_similarity(), jaro_winkler(), best_match(), best_match_score()]
}

fn levenshtein_similarity() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "levenshtein_similarity",
        "1",
        CostClass::Free,
        "Similarity of two texts: 1 - edits / length of the longer, from 0 (nothing in common) to 1 \
         (equal), by Unicode characters. Two empty texts are equal.",
        "SELECT levenshtein_similarity('kitten', 'sitting')",
    );
    two_texts(card, strsim::normalized_levenshtein)
}

fn jaro_winkler() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "jaro_winkler",
        "1",
        CostClass::Free,
        "Jaro-Winkler similarity of two texts, from 0 to 1, which favours a common beginning: made \
         for names. Two empty texts are equal.",
        "SELECT jaro_winkler('MARTHA', 'MARHTA')",
    );
    two_texts(card, strsim::jaro_winkler)
}

fn two_texts(card: Card, similarity: fn(&str, &str) -> f64) -> (Card, ScalarUDF) {
    let signature = Signature::coercible(vec![text(), text()], Volatility::Immutable);
    Native::new(card, signature, DataType::Float64, move |arguments| {
        let (left, right) = (arguments.texts(0)?, arguments.texts(1)?);
        let rows = (0..arguments.rows).map(|row| {
            let (Some(left), Some(right)) = (left.get(row), right.get(row)) else {
                return Ok(None);
            };
            check_comparisons(arguments, left.len(), right.len())?;
            Ok(Some(similarity(left, right)))
        });
        Ok(Arc::new(rows.collect::<Result<Float64Array>>()?))
    })
    .with_argument("a", "one text")
    .with_argument("b", "the other text")
    .into_udf()
}

fn check_comparisons(arguments: &Arguments<'_>, left: usize, right: usize) -> Result<()> {
    if left.saturating_mul(right) <= COMPARISONS_MAX {
        return Ok(());
    }
    let value = format!("two texts of {left} and {right} bytes");
    let expected = format!("of lengths whose product is at most {COMPARISONS_MAX}");
    Err(arguments.refuse("their length", value, expected))
}

fn best_match() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "best_match",
        "1",
        CostClass::Dear,
        "The candidate that is most similar to a text by levenshtein_similarity; the first of equal \
         ones. Candidates are a list, or one text of them separated by |; NULL and empty ones are \
         skipped. NULL if none is left.",
        "SELECT best_match('Untied States', 'United States|United Kingdom|France')",
    );
    match_function(card, DataType::Utf8, |arguments| {
        let best = best_matches(arguments, |best, _| best.to_owned())?;
        Ok(Arc::new(best.into_iter().collect::<StringArray>()))
    })
}

fn best_match_score() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "best_match_score",
        "1",
        CostClass::Dear,
        "The similarity, from 0 to 1, of the candidate that best_match finds. NULL if there is none.",
        "SELECT best_match_score('Untied States', 'United States|United Kingdom|France')",
    );
    match_function(card, DataType::Float64, |arguments| {
        let best = best_matches(arguments, |_, score| score)?;
        Ok(Arc::new(best.into_iter().collect::<Float64Array>()))
    })
}

fn match_function(
    card: Card,
    returns: DataType,
    answer: fn(&Arguments<'_>) -> Result<ArrayRef>,
) -> (Card, ScalarUDF) {
    Native::new(card, Signature::user_defined(Volatility::Immutable), returns, answer)
        .with_argument("text", "the text to look for")
        .with_argument("candidates", "a list of texts, or one text of them separated by |")
        .with_coercion(coerce_match)
        .into_udf()
}

fn coerce_match(types: &[DataType]) -> Result<Vec<DataType>> {
    let [sought, candidates] = types else {
        return plan_err!("a text and its candidates are needed, got {} arguments", types.len());
    };
    let sought = text_type(sought);
    let candidates = match list_item(candidates) {
        Some(item) if is_text(item) || item.is_null() => Some(candidates.clone()),
        Some(_) => None,
        None => text_type(candidates),
    };
    match (sought, candidates) {
        (Some(sought), Some(candidates)) => Ok(vec![sought, candidates]),
        _ => plan_err!(
            "the text must be text and the candidates a list of texts or a text, got {} and {}",
            types[0],
            types[1]
        ),
    }
}

/// The type that text is passed as: its own, a dictionary's values unpacked, NULL as text.
fn text_type(data_type: &DataType) -> Option<DataType> {
    match data_type {
        DataType::Null => Some(DataType::Utf8View),
        DataType::Dictionary(_, value) => text_type(value),
        other => is_text(other).then(|| other.clone()),
    }
}

/// Candidates taken apart into characters once, however many texts they are compared with.
struct Candidates {
    texts: Vec<(String, Vec<char>)>,
    chars: usize,
}

impl Candidates {
    fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let texts = texts.filter(|text| !text.is_empty());
        let texts: Vec<_> = texts.map(|text| (text.to_owned(), text.chars().collect())).collect();
        let chars = texts.iter().map(|(_, chars): &(_, Vec<char>)| chars.len()).sum();
        Self { texts, chars }
    }

    /// The most similar candidate and its similarity; the first of equal ones.
    fn best(&self, text: &str) -> Option<(&str, f64)> {
        let text: Vec<char> = text.chars().collect();
        let mut best: Option<(&str, f64)> = None;
        for (candidate, chars) in &self.texts {
            let longer = text.len().max(chars.len());
            let shorter = text.len().min(chars.len());
            // Each character that one text has more is an edit: this much is out of reach.
            let reachable = shorter as f64 / longer as f64;
            if best.is_some_and(|(_, score)| reachable <= score) {
                continue;
            }
            let edits = strsim::generic_levenshtein(&text, chars);
            let score = 1.0 - edits as f64 / longer as f64;
            if best.is_none_or(|(_, highest)| score > highest) {
                best = Some((candidate, score));
            }
        }
        best
    }
}

fn best_matches<T>(
    arguments: &Arguments<'_>,
    answer: impl Fn(&str, f64) -> T,
) -> Result<Vec<Option<T>>> {
    let texts = arguments.texts(0)?;
    let (candidates, is_constant) = candidates(arguments)?;
    let constant = if is_constant { candidates(0) } else { None };
    let mut answers = Vec::with_capacity(arguments.rows);
    for row in 0..arguments.rows {
        let own = if is_constant { None } else { candidates(row) };
        let (Some(text), Some(candidates)) = (texts.get(row), own.as_ref().or(constant.as_ref()))
        else {
            answers.push(None);
            continue;
        };
        check_comparisons(arguments, text.len(), candidates.chars)?;
        answers.push(candidates.best(text).map(|(best, score)| answer(best, score)));
    }
    Ok(answers)
}

type CandidatesOfRow = Box<dyn Fn(usize) -> Option<Candidates>>;

/// Reads the candidates of a row, and tells if they are the same in all rows.
fn candidates(arguments: &Arguments<'_>) -> Result<(CandidatesOfRow, bool)> {
    if arguments.is_list(1) {
        let lists = arguments.lists(1, DataType::Utf8View)?;
        let is_constant = lists.is_constant;
        let of_row = move |row| {
            let list = lists.get(row)?;
            let texts = list.as_string_view_opt()?;
            Some(Candidates::new(texts.iter().flatten()))
        };
        return Ok((Box::new(of_row), is_constant));
    }
    let texts = arguments.texts(1)?;
    let is_constant = texts.is_constant;
    Ok((Box::new(move |row| Some(Candidates::new(texts.get(row)?.split('|')))), is_constant))
}

#[cfg(test)]
mod tests;
