//! Regular expressions, compiled once however many rows and batches use them.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use arrow::array::StringArray;
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::{ScalarUDF, Signature, TypeSignature, Volatility};
use regex::{Regex, RegexBuilder};

use crate::card::{Card, CostClass};
use crate::native::{Arguments, Native, integer, text};

/// Patterns kept compiled, for the whole process; the one unused for longest goes first.
const PATTERNS_KEPT_MAX: usize = 64;
/// Bytes that one compiled pattern may have, which bounds the cache to 128 MiB.
const PATTERN_BYTES_MAX: usize = 2 << 20;

static PATTERNS: LazyLock<Patterns> = LazyLock::new(Patterns::default);

pub(crate) fn functions() -> Vec<(Card, ScalarUDF)> {
    vec![regex_extract()]
}

fn regex_extract() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "regex_extract",
        "1",
        CostClass::Free,
        "The part of a text that a group of a regular expression (of Rust's regex crate: linear \
         time, no look-around) matches first; group 0, the default, is the whole match. NULL if \
         nothing matches or the group took no part.",
        "SELECT regex_extract('order 4711 of May', '([0-9]+) of (\\w+)', 2)",
    );
    let shapes = vec![
        TypeSignature::Coercible(vec![text(), text()]),
        TypeSignature::Coercible(vec![text(), text(), integer()]),
    ];
    Native::new(card, Signature::one_of(shapes, Volatility::Immutable), DataType::Utf8, |args| {
        let extracted = extract(args)?;
        Ok(Arc::new(extracted))
    })
    .with_argument("text", "the text to search")
    .with_argument("pattern", "a regular expression")
    .with_argument("group", "number of a group; 0 is the whole match")
    .into_udf()
}

fn extract(arguments: &Arguments<'_>) -> Result<StringArray> {
    let (texts, patterns) = (arguments.texts(0)?, arguments.texts(1)?);
    let groups = if arguments.len() > 2 { Some(arguments.integers(2)?) } else { None };
    let mut compiled: Option<(&str, Arc<Regex>)> = None;
    let extracted = (0..arguments.rows).map(|row| {
        let group = groups.as_ref().map_or(Some(0), |groups| groups.get(row));
        let (Some(pattern), Some(group)) = (patterns.get(row), group) else { return Ok(None) };
        let regex = match compiled.take() {
            Some((same, regex)) if same == pattern => regex,
            _ => PATTERNS.compiled(arguments, pattern)?,
        };
        let (_, regex) = compiled.insert((pattern, regex));
        let group = checked_group(arguments, regex, group)?;
        let Some(text) = texts.get(row) else { return Ok(None) };
        if group == 0 {
            return Ok(regex.find(text).map(|found| found.as_str()));
        }
        let captures = regex.captures(text);
        Ok(captures.and_then(|captures| captures.get(group)).map(|found| found.as_str()))
    });
    extracted.collect()
}

fn checked_group(arguments: &Arguments<'_>, regex: &Regex, group: i64) -> Result<usize> {
    let last = regex.captures_len() - 1;
    match usize::try_from(group) {
        Ok(group) if group <= last => Ok(group),
        _ => Err(arguments.refuse("group", group, format!("0 to {last}, the groups of {regex}"))),
    }
}

/// Compiled patterns, the newest used at the back.
#[derive(Default)]
struct Patterns {
    kept: Mutex<VecDeque<(String, Arc<Regex>)>>,
}

impl Patterns {
    fn compiled(&self, arguments: &Arguments<'_>, pattern: &str) -> Result<Arc<Regex>> {
        if let Some(regex) = self.recall(pattern) {
            return Ok(regex);
        }
        // Compiled without the lock: it may take milliseconds, and others wait for it.
        let regex = RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build();
        let regex = regex.map_err(|error| {
            arguments.refuse("pattern", pattern, format!("a regular expression ({error})"))
        })?;
        let regex = Arc::new(regex);
        self.keep(pattern, Arc::clone(&regex));
        Ok(regex)
    }

    fn recall(&self, pattern: &str) -> Option<Arc<Regex>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let position = kept.iter().rposition(|(known, _)| known == pattern)?;
        let found = kept.remove(position)?;
        let regex = Arc::clone(&found.1);
        kept.push_back(found);
        Some(regex)
    }

    fn keep(&self, pattern: &str, regex: Arc<Regex>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= PATTERNS_KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back((pattern.to_owned(), regex));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::{Trial, texts};
    use arrow::array::{ArrayRef, Int64Array};

    fn groups(values: &[i64]) -> ArrayRef {
        Arc::new(Int64Array::from(values.to_vec()))
    }

    #[test]
    fn a_group_gives_its_part_and_no_match_gives_null() {
        let pattern = "([0-9]+) of (\\w+)|(none)";
        let columns = [
            texts(["order 4711 of Mäi", "order 4711 of Mäi", "none", "none", "nothing"]),
            texts([pattern; 5]),
            groups(&[0, 2, 3, 1, 0]),
        ];
        let found = Trial::of(regex_extract()).rows(&columns).optional_texts();
        let found: Vec<Option<&str>> = found.iter().map(Option::as_deref).collect();
        assert_eq!(found, [Some("4711 of Mäi"), Some("Mäi"), Some("none"), None, None]);
    }

    #[test]
    fn without_a_group_the_whole_match_is_extracted() {
        let found = Trial::of(regex_extract()).rows(&[texts(["a12b"]), texts(["[0-9]+"])]).texts();
        assert_eq!(found, ["12"]);
    }

    #[test]
    fn a_broken_pattern_is_an_error_that_names_it() {
        let error = Trial::of(regex_extract()).fails(&[texts(["a"]), texts(["(a"])]);
        assert!(error.contains("regex_extract: pattern is (a;"), "{error}");
        assert!(error.contains("unclosed group"), "{error}");
        let huge = "\\w{1000}{1000}";
        let error = Trial::of(regex_extract()).fails(&[texts(["a"]), texts([huge])]);
        assert!(error.contains(huge) && error.contains("size limit"), "{error}");
    }

    #[test]
    fn a_group_that_the_pattern_lacks_is_an_error_that_names_the_range() {
        for group in [-1, 2] {
            let columns = [texts(["a"]), texts(["(a)"]), groups(&[group])];
            let error = Trial::of(regex_extract()).fails(&columns);
            let expected = format!("group is {group}; it must be 0 to 1, the groups of (a)");
            assert!(error.contains(&expected), "{error}");
        }
    }

    #[test]
    fn an_evil_pattern_takes_linear_time() {
        let text = "a".repeat(100_000);
        let found = Trial::of(regex_extract())
            .rows(&[texts([text.as_str()]), texts(["(a*)*(a*)*(a*)*b"])])
            .optional_texts();
        assert_eq!(found, [None]);
    }

    #[test]
    fn the_cache_keeps_the_last_patterns_used_and_no_more() {
        let patterns = Patterns::default();
        let regex = Arc::new(Regex::new("x").unwrap());
        for number in 0..PATTERNS_KEPT_MAX {
            patterns.keep(&number.to_string(), Arc::clone(&regex));
        }
        assert!(patterns.recall("0").is_some());
        patterns.keep("new", Arc::clone(&regex));
        assert!(patterns.recall("0").is_some());
        assert!(patterns.recall("1").is_none());
        assert_eq!(patterns.kept.lock().unwrap().len(), PATTERNS_KEPT_MAX);
    }

    #[test]
    fn extraction_keeps_the_rules_of_the_library() {
        let columns =
            [texts(["a1", "ü22", ""]), texts(["([0-9])", "(.)2", "x"]), groups(&[1, 1, 0])];
        let trial = Trial::of(regex_extract());
        trial.keeps_the_rules_of_the_library(&columns);
        assert!(trial.refuses(&[DataType::Int64, DataType::Utf8]).contains("regex_extract"));
    }
}
