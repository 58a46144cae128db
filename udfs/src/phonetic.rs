//! Phonetic keys: texts that sound alike in English have the same key.

use std::sync::Arc;

use arrow::array::StringArray;
use arrow::datatypes::DataType;
use datafusion::logical_expr::{ScalarUDF, Signature, Volatility};
use rphonetic::{DoubleMetaphone, Encoder, Soundex};

use crate::card::{Card, CostClass};
use crate::native::{Native, text};

pub(crate) fn functions() -> Vec<(Card, ScalarUDF)> {
    vec![double_metaphone(), soundex()]
}

fn double_metaphone() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "double_metaphone",
        "1",
        CostClass::Free,
        "The primary Double Metaphone key of a name, at most 4 letters. Accents are dropped, other \
         characters than Latin letters are skipped; empty if none is left.",
        "SELECT double_metaphone('Schmidt')",
    );
    let encoder = DoubleMetaphone::default();
    key(card, move |text| encoder.encode(&plain_letters(text, 'S')))
}

fn soundex() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "soundex",
        "1",
        CostClass::Free,
        "The American Soundex key of a name: a letter and three digits. Accents are dropped, other \
         characters than Latin letters are skipped; empty if none is left.",
        "SELECT soundex('Robert')",
    );
    let encoder = Soundex::default();
    key(card, move |text| {
        let mut letters = plain_letters(text, 'C');
        letters.retain(|c| c.is_ascii_alphabetic());
        encoder.encode(&letters)
    })
}

fn key(card: Card, encode: impl Fn(&str) -> String + Send + Sync + 'static) -> (Card, ScalarUDF) {
    let signature = Signature::coercible(vec![text()], Volatility::Immutable);
    Native::new(card, signature, DataType::Utf8, move |arguments| {
        let names = arguments.texts(0)?;
        let keys = (0..arguments.rows).map(|row| names.get(row).map(&encode));
        Ok(Arc::new(keys.collect::<StringArray>()))
    })
    .with_argument("name", "a name or a word")
    .into_udf()
}

/// The text in ASCII capitals and spaces, which is all that the encoders are safe with: they index
/// bytes. `cedilla` is what a C with a cedilla sounds like.
fn plain_letters(text: &str, cedilla: char) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            'a'..='z' | 'A'..='Z' => plain.push(c.to_ascii_uppercase()),
            c if c.is_whitespace() => plain.push(' '),
            'À'..='Å' | 'à'..='å' | 'Ā'..='ą' => plain.push('A'),
            'Æ' | 'æ' => plain.push_str("AE"),
            'Ç' | 'ç' => plain.push(cedilla),
            'Ć'..='č' => plain.push('C'),
            'Ď'..='đ' | 'Ð' | 'ð' => plain.push('D'),
            'È'..='Ë' | 'è'..='ë' | 'Ē'..='ě' => plain.push('E'),
            'Ĝ'..='ģ' => plain.push('G'),
            'Ĥ'..='ħ' => plain.push('H'),
            'Ì'..='Ï' | 'ì'..='ï' | 'Ĩ'..='ı' => plain.push('I'),
            'Ĵ' | 'ĵ' => plain.push('J'),
            'Ķ' | 'ķ' => plain.push('K'),
            'Ĺ'..='ł' => plain.push('L'),
            'Ñ' | 'ñ' | 'Ń'..='ŋ' => plain.push('N'),
            'Ò'..='Ö' | 'Ø' | 'ò'..='ö' | 'ø' | 'Ō'..='ő' => plain.push('O'),
            'Œ' | 'œ' => plain.push_str("OE"),
            'Ŕ'..='ř' => plain.push('R'),
            'Ś'..='š' => plain.push('S'),
            'ß' | 'ẞ' => plain.push_str("SS"),
            'Ţ'..='ŧ' => plain.push('T'),
            'Þ' | 'þ' => plain.push_str("TH"),
            'Ù'..='Ü' | 'ù'..='ü' | 'Ũ'..='ų' => plain.push('U'),
            'Ŵ' | 'ŵ' => plain.push('W'),
            'Ý' | 'ý' | 'ÿ' | 'Ŷ'..='Ÿ' => plain.push('Y'),
            'Ź'..='ž' => plain.push('Z'),
            _ => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::{Trial, nulls, texts};
    use proptest::prelude::*;

    #[test]
    fn names_that_sound_alike_share_a_key() {
        let names = texts(["Robert", "Rupert", "Ashcraft", "Tymczak", "Müller", "Mueller"]);
        let keys = Trial::of(soundex()).rows(&[names]).texts();
        assert_eq!(keys, ["R163", "R163", "A261", "T522", "M460", "M460"].map(String::from));
        let names = texts(["Schmidt", "Smith", "Thompson", "François", "Ñandú"]);
        let keys = Trial::of(double_metaphone()).rows(&[names]).texts();
        assert_eq!(keys, ["XMT", "SM0", "TMPS", "FRNS", "NNT"].map(String::from));
    }

    #[test]
    fn texts_without_latin_letters_have_an_empty_key() {
        for function in [soundex(), double_metaphone()] {
            let keys =
                Trial::of(function).rows(&[texts(["", "   ", "1234", "東京", "🙂"])]).texts();
            assert_eq!(keys, vec![String::new(); 5]);
        }
    }

    #[test]
    fn null_gives_null_and_numbers_are_refused() {
        for function in functions() {
            let trial = Trial::of(function);
            assert_eq!(trial.rows(&[nulls(2)]).null_count(), 2);
            trial.keeps_the_rules_of_the_library(&[texts(["Robert", "Zoë"])]);
            assert!(trial.refuses(&[DataType::Int64]).contains("String"));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_an_encoder_panic(name in "\\PC{0,40}") {
            for function in functions() {
                Trial::of(function).rows(&[texts([name.as_str()])]).texts();
            }
        }
    }
}
