//! Parts of URLs, by the WHATWG standard that browsers follow.

use std::sync::Arc;

use arrow::array::StringArray;
use arrow::datatypes::DataType;
use datafusion::logical_expr::{ScalarUDF, Signature, Volatility};
use url::Url;

use crate::card::{Card, CostClass};
use crate::native::{Native, text};

pub(crate) fn functions() -> Vec<(Card, ScalarUDF)> {
    vec![url_host(), url_query()]
}

fn url_host() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "url_host",
        "1",
        CostClass::Cheap,
        "The host of a URL, in lower case, international names in ASCII (punycode). NULL if the text \
         is no absolute URL or has no host.",
        "SELECT url_host('https://Docs.Example.com:8443/a?b=c')",
    );
    let signature = Signature::coercible(vec![text()], Volatility::Immutable);
    Native::new(card, signature, DataType::Utf8, |arguments| {
        let urls = arguments.texts(0)?;
        let hosts = (0..arguments.rows).map(|row| {
            let url = Url::parse(urls.get(row)?).ok()?;
            url.host_str().map(str::to_owned)
        });
        Ok(Arc::new(hosts.collect::<StringArray>()))
    })
    .with_argument("url", "an absolute URL")
    .into_udf()
}

fn url_query() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "url_query",
        "1",
        CostClass::Cheap,
        "The first value of a key in a URL's query, decoded; empty if the key stands without a \
         value. NULL if the text is no absolute URL or the key is not there.",
        "SELECT url_query('https://example.com/?q=caf%C3%A9&page=2', 'q')",
    );
    let signature = Signature::coercible(vec![text(), text()], Volatility::Immutable);
    Native::new(card, signature, DataType::Utf8, |arguments| {
        let (urls, keys) = (arguments.texts(0)?, arguments.texts(1)?);
        let values = (0..arguments.rows).map(|row| {
            let (url, key) = (Url::parse(urls.get(row)?).ok()?, keys.get(row)?);
            let mut pairs = url.query_pairs();
            pairs.find(|(name, _)| name == key).map(|(_, value)| value.into_owned())
        });
        Ok(Arc::new(values.collect::<StringArray>()))
    })
    .with_argument("url", "an absolute URL")
    .with_argument("key", "the key, decoded")
    .into_udf()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::{Trial, texts};

    fn some(texts: &[Option<&str>]) -> Vec<Option<String>> {
        texts.iter().map(|text| text.map(str::to_owned)).collect()
    }

    #[test]
    fn a_url_gives_its_host_and_other_texts_give_null() {
        let urls = texts([
            "https://user:pass@Docs.Example.COM:8443/a?b=c#d",
            "http://münchen.de/",
            "http://[::1]:80/",
            "mailto:a@example.com",
            "example.com/path",
            "",
            "http://",
        ]);
        let hosts = Trial::of(url_host()).rows(&[urls]).optional_texts();
        let expected = [
            Some("docs.example.com"),
            Some("xn--mnchen-3ya.de"),
            Some("[::1]"),
            None,
            None,
            None,
            None,
        ];
        assert_eq!(hosts, some(&expected));
    }

    #[test]
    fn a_query_gives_the_first_value_of_the_key_decoded() {
        let url = "https://example.com/?q=caf%C3%A9+au+lait&q=2&flag&%C3%BC=1";
        let urls = texts([url, url, url, url, "no url"]);
        let keys = texts(["q", "flag", "ü", "missing", "q"]);
        let values = Trial::of(url_query()).rows(&[urls, keys]).optional_texts();
        assert_eq!(values, some(&[Some("café au lait"), Some(""), Some("1"), None, None]));
    }

    #[test]
    fn urls_keep_the_rules_of_the_library() {
        let urls = texts(["http://a.b/?c=d", "nothing", "https://ü.de/?ü=ß"]);
        Trial::of(url_host()).keeps_the_rules_of_the_library(&[Arc::clone(&urls)]);
        let trial = Trial::of(url_query());
        trial.keeps_the_rules_of_the_library(&[urls, texts(["c", "c", "ü"])]);
        assert!(trial.refuses(&[DataType::Utf8, DataType::Int64]).contains("url_query"));
    }
}
