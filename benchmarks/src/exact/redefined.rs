//! Functions whose definitions change while they are in use. Each gives away what a stored output must
//! not be mixed up with: the definition, the sign of a zero, the type of an argument, the settings.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use foreshard_udfs::{Card, CostClass};

use crate::exact::functions::{Argument, Function};
use crate::exact::random::Kind;

/// The functions as random queries call them.
pub const CALLS: &[Function] = &[
    Function { name: "twice", arguments: &[Argument::Of(Kind::Int)], result: Kind::Int },
    Function { name: "shifted", arguments: &[Argument::Of(Kind::Int)], result: Kind::Int },
    Function { name: "shown", arguments: &[Argument::Of(Kind::Float)], result: Kind::Text },
    Function { name: "say", arguments: &[Argument::Of(Kind::Text)], result: Kind::Text },
    Function { name: "here", arguments: &[Argument::Of(Kind::Int)], result: Kind::Text },
    Function {
        name: "pair",
        arguments: &[Argument::Of(Kind::Int), Argument::Of(Kind::Float)],
        result: Kind::Text,
    },
];

/// What one of the functions does, in its first definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Body {
    /// Multiplies a BIGINT.
    Twice,
    /// Adds to a BIGINT.
    Shifted,
    /// Writes a DOUBLE down, with the sign of its zero.
    Shown,
    /// Turns a text around.
    Say,
    /// Writes a BIGINT down, with the settings that functions may answer by.
    Here,
    /// Writes any two values down, with their types.
    Pair,
}

const BODIES: [(&str, Body); 6] = [
    ("twice", Body::Twice),
    ("shifted", Body::Shifted),
    ("shown", Body::Shown),
    ("say", Body::Say),
    ("here", Body::Here),
    ("pair", Body::Pair),
];

/// The functions of one play, with the number of times that each was defined anew.
#[derive(Clone, Debug, Default)]
pub struct Redefined {
    definitions: [i64; BODIES.len()],
}

impl Redefined {
    /// How many functions there are.
    pub const COUNT: usize = BODIES.len();

    /// The function `index` as it is defined now.
    #[must_use]
    pub fn definition(&self, index: usize) -> (Card, ScalarUDF) {
        let (name, body) = BODIES[index];
        let types = match body {
            Body::Twice | Body::Shifted | Body::Here => vec![DataType::Int64],
            Body::Shown => vec![DataType::Float64],
            Body::Say => vec![DataType::Utf8],
            Body::Pair => vec![],
        };
        let signature = match body {
            Body::Pair => Signature::any(2, Volatility::Immutable),
            _ => Signature::exact(types, Volatility::Immutable),
        };
        let function = Own { name, body, definition: self.definitions[index], signature };
        // The version stays: whoever forgets to change it must not get old outputs either.
        let card = Card::immutable(name, "1", CostClass::Dear, "of the benchmark exact", name);
        (card, ScalarUDF::new_from_impl(function))
    }

    /// The function with this name as it is defined now; `None` if there is none.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<(Card, ScalarUDF)> {
        let index = BODIES.iter().position(|(known, _)| *known == name)?;
        Some(self.definition(index))
    }

    /// Defines the function `index` anew; says its name.
    pub fn redefine(&mut self, index: usize) -> &'static str {
        self.definitions[index] += 1;
        BODIES[index].0
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Own {
    name: &'static str,
    body: Body,
    definition: i64,
    signature: Signature,
}

impl Own {
    fn of_ints(&self, values: &Int64Array) -> ArrayRef {
        let definition = self.definition;
        let answer = |value: i64| match self.body {
            Body::Twice => value.wrapping_mul(2 + definition),
            _ => value.wrapping_add(100 + definition),
        };
        Arc::new(values.iter().map(|value| value.map(answer)).collect::<Int64Array>())
    }

    /// Texts of each row of `arguments`: `None` where the first one is NULL.
    fn texts(&self, arguments: &[ArrayRef], settings: &str) -> Result<ArrayRef> {
        let options = FormatOptions::default().with_null("NULL");
        let shown: Vec<ArrayFormatter<'_>> = arguments
            .iter()
            .map(|argument| ArrayFormatter::try_new(argument, &options))
            .collect::<Result<_, _>>()?;
        let types: Vec<String> =
            arguments.iter().map(|argument| argument.data_type().to_string()).collect();
        let first = &arguments[0];
        let text = |row: usize| match self.body {
            Body::Shown => format!("{:?}", first.as_primitive::<Float64Type>().value(row)),
            Body::Say => first.as_string::<i32>().value(row).chars().rev().collect(),
            Body::Here => format!("{} in {settings}", first.as_primitive::<Int64Type>().value(row)),
            _ => {
                let pairs = shown.iter().zip(&types);
                let pairs: Vec<String> =
                    pairs.map(|(shown, of)| format!("{of} {}", shown.value(row))).collect();
                pairs.join(", ")
            }
        };
        let is_any = self.body == Body::Pair;
        let rows = (0..first.len()).map(|row| {
            (is_any || first.is_valid(row)).then(|| format!("{}/{}", text(row), self.definition))
        });
        Ok(Arc::new(rows.collect::<StringArray>()))
    }
}

impl ScalarUDFImpl for Own {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(match self.body {
            Body::Twice | Body::Shifted => DataType::Int64,
            _ => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, call: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arguments = ColumnarValue::values_to_arrays(&call.args)?;
        let answers = match self.body {
            Body::Twice | Body::Shifted => self.of_ints(arguments[0].as_primitive::<Int64Type>()),
            _ => {
                let settings = &call.config_options.execution;
                let zone = settings.time_zone.as_deref().unwrap_or("no zone");
                let mode = if settings.enable_ansi_mode { "ansi" } else { "permissive" };
                self.texts(&arguments, &format!("{zone}, {mode}"))?
            }
        };
        if answers.len() == call.number_rows {
            return Ok(ColumnarValue::Array(answers));
        }
        // Constants only: one value stands for all rows.
        Ok(ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&answers, 0)?))
    }
}
