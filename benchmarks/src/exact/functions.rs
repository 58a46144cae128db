//! The functions that random queries call: those of the library and two made for tests.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, AsArray, Int64Array};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use foreshard_udfs::{Card, CostClass, Functions};

use crate::exact::random::Kind;

/// The value that `unlucky` fails on.
pub const UNLUCKY: i64 = 13;

/// A function as the grammar sees it.
#[derive(Debug)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// What stands in its arguments.
    pub arguments: &'static [Argument],
    /// What it gives.
    pub result: Kind,
}

/// What may stand in one argument.
#[derive(Debug)]
pub enum Argument {
    /// Any expression of the kind.
    Of(Kind),
    /// A column of the kind.
    Column(Kind),
    /// One of these texts.
    Literal(&'static [&'static str]),
    /// Degrees from -90 to 90, best from a column with this name.
    Degrees(&'static str),
}

use Argument::{Column, Degrees, Literal, Of};

/// The functions that random queries call.
pub const FUNCTIONS: &[Function] = &[
    Function {
        name: "jaro_winkler",
        arguments: &[Of(Kind::Text), Of(Kind::Text)],
        result: Kind::Float,
    },
    Function {
        name: "levenshtein_similarity",
        arguments: &[Of(Kind::Text), Literal(&["'smith'", "'order 4711'", "''"])],
        result: Kind::Float,
    },
    Function { name: "sentiment", arguments: &[Column(Kind::Text)], result: Kind::Float },
    Function {
        name: "haversine_km",
        arguments: &[
            Degrees("lat"),
            Degrees("lon"),
            Literal(&["48.1", "-33.9"]),
            Literal(&["11.5"]),
        ],
        result: Kind::Float,
    },
    Function { name: "blake3_hex", arguments: &[Of(Kind::Text)], result: Kind::Text },
    Function { name: "double_metaphone", arguments: &[Of(Kind::Text)], result: Kind::Text },
    Function {
        name: "best_match",
        arguments: &[Column(Kind::Text), Literal(&["'smith|rupert|apple'"])],
        result: Kind::Text,
    },
    Function { name: "url_host", arguments: &[Column(Kind::Text)], result: Kind::Text },
    Function { name: "soundex", arguments: &[Of(Kind::Text)], result: Kind::Text },
    Function { name: "language", arguments: &[Column(Kind::Text)], result: Kind::Text },
    Function {
        name: "regex_extract",
        arguments: &[Of(Kind::Text), Literal(&["'([a-z]+) ([0-9]+)'", "'(.)$'"]), Literal(&["1"])],
        result: Kind::Text,
    },
    Function {
        name: "h3_cell",
        arguments: &[Degrees("lat"), Degrees("lon"), Literal(&["3", "7"])],
        result: Kind::Text,
    },
    Function { name: "counted", arguments: &[Of(Kind::Int)], result: Kind::Int },
    Function { name: "counted", arguments: &[Column(Kind::Int)], result: Kind::Int },
    Function { name: "unlucky", arguments: &[Column(Kind::Int)], result: Kind::Int },
];

/// A function of one BIGINT, made for tests.
#[derive(Debug)]
struct OfInt {
    name: String,
    signature: Signature,
    body: Body,
    rows: Arc<AtomicU64>,
}

/// What a function of one BIGINT does.
#[derive(Clone)]
struct Body(Arc<dyn Fn(i64) -> Result<Option<i64>> + Send + Sync>);

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Body")
    }
}

impl PartialEq for OfInt {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.rows, &other.rows)
    }
}

impl Eq for OfInt {}

impl Hash for OfInt {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for OfInt {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, call: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let array = call.args[0].to_array(call.number_rows)?;
        self.rows.fetch_add(array.len() as u64, Ordering::Relaxed);
        let values = array.as_primitive::<Int64Type>();
        let answers: Result<Int64Array> =
            values.iter().map(|value| value.map_or(Ok(None), &*self.body.0)).collect();
        Ok(ColumnarValue::Array(Arc::new(answers?)))
    }
}

/// Makes the immutable function `name` of one BIGINT; NULL gives NULL. The counter counts the rows
/// that it is evaluated on.
pub fn of_int(
    name: &str,
    body: impl Fn(i64) -> Result<Option<i64>> + Send + Sync + 'static,
) -> (Card, ScalarUDF, Arc<AtomicU64>) {
    let rows = Arc::new(AtomicU64::new(0));
    let signature = Signature::exact(vec![DataType::Int64], Volatility::Immutable);
    let body = Body(Arc::new(body));
    let udf = ScalarUDF::new_from_impl(OfInt {
        name: name.to_owned(),
        signature,
        body,
        rows: Arc::clone(&rows),
    });
    let card = Card::immutable(name, "1", CostClass::Dear, "made for tests", format!("{name}(1)"));
    (card, udf, rows)
}

/// The functions made for tests, fresh: `unlucky` and `counted`, and what `counted` counts.
pub fn made_for_tests() -> (Vec<(Card, ScalarUDF)>, Arc<AtomicU64>) {
    let (unlucky_card, unlucky, _) = of_int("unlucky", |value| match value {
        UNLUCKY => exec_err!("unlucky value {UNLUCKY}"),
        value => Ok(Some(value - 1)),
    });
    let (counted_card, counted, rows) = of_int("counted", |value| Ok(Some(value + 1)));
    (vec![(unlucky_card, unlucky), (counted_card, counted)], rows)
}

/// The library and the functions made for tests, as plain DataFusion gets them, and what `counted`
/// counts.
///
/// # Errors
/// If a card does not fit its function.
pub fn all() -> anyhow::Result<(Functions, Arc<AtomicU64>)> {
    let functions = Functions::library();
    let (made, rows) = made_for_tests();
    for (card, udf) in made {
        functions.register(card, udf)?;
    }
    Ok((functions, rows))
}
