//! What a text says of itself: its mood and its language.

use std::sync::Arc;

use arrow::array::{Float64Array, StringArray};
use arrow::datatypes::DataType;
use datafusion::logical_expr::{ScalarUDF, Signature, Volatility};
use vader_sentimental::SentimentIntensityAnalyzer;

use crate::card::{Card, CostClass};
use crate::native::{Native, text};

pub(crate) fn functions() -> Vec<(Card, ScalarUDF)> {
    vec![sentiment(), language()]
}

fn sentiment() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "sentiment",
        "vader-0.1",
        CostClass::Cheap,
        "The mood of an English text by the VADER lexicon: its compound score from -1 (bad) to 1 \
         (good); 0 if no word of it is known.",
        "SELECT sentiment('The food was GREAT!')",
    );
    let signature = Signature::coercible(vec![text()], Volatility::Immutable);
    let analyzer = SentimentIntensityAnalyzer::new();
    Native::new(card, signature, DataType::Float64, move |arguments| {
        let texts = arguments.texts(0)?;
        let score = |text: &str| analyzer.polarity_scores(text).compound;
        let scores = (0..arguments.rows).map(|row| texts.get(row).map(score));
        Ok(Arc::new(scores.collect::<Float64Array>()))
    })
    .with_argument("text", "a sentence or a paragraph in English")
    .into_udf()
}

fn language() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "language",
        "whatlang-0.18",
        CostClass::Dear,
        "The language of a text as its ISO 639-3 code, by script and trigrams. Short texts are \
         guessed. NULL if the text has no letters.",
        "SELECT language('Wo ist der nächste Bahnhof?')",
    );
    let signature = Signature::coercible(vec![text()], Volatility::Immutable);
    Native::new(card, signature, DataType::Utf8, |arguments| {
        let texts = arguments.texts(0)?;
        let code = |text: &str| whatlang::detect_lang(text).map(|language| language.code());
        let codes = (0..arguments.rows).map(|row| texts.get(row).and_then(code));
        Ok(Arc::new(codes.collect::<StringArray>()))
    })
    .with_argument("text", "a sentence or more, in any language")
    .into_udf()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::{Trial, texts};
    use proptest::prelude::*;

    #[test]
    fn good_words_score_above_neutral_and_bad_words_below() {
        let reviews = texts([
            "VADER is smart, handsome, and funny.",
            "The book was not good.",
            "The book was good.",
            "A table.",
            "",
            "🙂 💔 日本語",
        ]);
        let scores = Trial::of(sentiment()).rows(&[reviews]).numbers();
        // 0.8316, -0.3412 and 0.4404 are the figures of the VADER paper's own implementation.
        let rounded: Vec<f64> = scores.iter().map(|s| (s * 10_000.0).round() / 10_000.0).collect();
        assert_eq!(rounded[..5], [0.8316, -0.3412, 0.4404, 0.0, 0.0]);
        assert!((-1.0..=1.0).contains(&rounded[5]));
    }

    #[test]
    fn sentences_give_the_code_of_their_language() {
        let sentences = texts([
            "The quick brown fox jumps over the lazy dog and runs away from it",
            "Wo ist der nächste Bahnhof, bitte? Ich möchte nach München fahren.",
            "Où est la gare la plus proche, s'il vous plaît ?",
            "最寄りの駅はどこですか",
            "Где находится ближайший вокзал",
            "1234 !?",
            "",
        ]);
        let codes = Trial::of(language()).rows(&[sentences]).optional_texts();
        let codes: Vec<Option<&str>> = codes.iter().map(Option::as_deref).collect();
        let expected =
            [Some("eng"), Some("deu"), Some("fra"), Some("jpn"), Some("rus"), None, None];
        assert_eq!(codes, expected);
    }

    #[test]
    fn texts_keep_the_rules_of_the_library() {
        let columns = [texts(["I love it", "Das ist schlecht", ""])];
        for function in functions() {
            let trial = Trial::of(function);
            trial.keeps_the_rules_of_the_library(&columns);
            assert!(trial.refuses(&[DataType::Float64]).contains("String"));
        }
    }

    #[test]
    fn a_long_text_is_read_to_its_end() {
        let long = format!("{} horrible", "table ".repeat(50_000));
        let scores = Trial::of(sentiment()).rows(&[texts([long.as_str()])]).numbers();
        assert!(scores[0] < -0.3, "{scores:?}");
        let codes = Trial::of(language()).rows(&[texts([long.as_str()])]).optional_texts();
        assert!(codes[0].is_some());
    }

    proptest! {
        #[test]
        fn any_text_has_one_answer(text in "\\PC{0,60}") {
            for function in functions() {
                let trial = Trial::of(function);
                let columns = [texts([text.as_str()])];
                prop_assert_eq!(&trial.rows(&columns).0, &trial.rows(&columns).0);
            }
        }
    }
}
