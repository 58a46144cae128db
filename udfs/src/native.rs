//! The one shape of all functions of the library: a card, a signature and the code for one batch.
//!
//! All of them are immutable and strict: a NULL argument gives NULL. Values that come from data and
//! mean nothing (a latitude of 91, a text that is no URL) give NULL too, so that one bad row does not
//! fail a query over millions; a setting that means nothing (a broken pattern) is an error.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayAccessor, ArrayRef, AsArray, BinaryViewArray, Float64Array, Int64Array, ListArray,
    StringViewArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use datafusion::common::types::{NativeType, logical_float64, logical_int64, logical_string};
use datafusion::common::{DataFusionError, Result, ScalarValue, internal_datafusion_err, plan_err};
use datafusion::logical_expr::scalar_doc_sections::DOC_SECTION_OTHER;
use datafusion::logical_expr::{
    Coercion, ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, TypeSignatureClass,
};

use crate::card::Card;
use crate::error::FunctionError;

type Answer = dyn Fn(&Arguments<'_>) -> Result<ArrayRef> + Send + Sync;
type Coerce = fn(&[DataType]) -> Result<Vec<DataType>>;

/// A function of the library.
pub(crate) struct Native {
    card: Card,
    signature: Signature,
    returns: DataType,
    documentation: Documentation,
    coerce: Option<Coerce>,
    answer: Arc<Answer>,
}

impl Native {
    /// `answer` gives one row for each of [`Arguments::rows`], of type `returns`.
    pub(crate) fn new(
        card: Card,
        signature: Signature,
        returns: DataType,
        answer: impl Fn(&Arguments<'_>) -> Result<ArrayRef> + Send + Sync + 'static,
    ) -> Self {
        let documentation =
            Documentation::builder(DOC_SECTION_OTHER, &card.summary, &card.example).build();
        Self { card, signature, returns, documentation, coerce: None, answer: Arc::new(answer) }
    }

    /// Names and explains the next argument.
    pub(crate) fn with_argument(mut self, name: &str, meaning: &str) -> Self {
        let arguments = self.documentation.arguments.get_or_insert_default();
        arguments.push((name.to_owned(), meaning.to_owned()));
        let names: Vec<String> = arguments.iter().map(|(name, _)| name.clone()).collect();
        // Refused while arguments are still missing; the last one makes them all callable by name.
        if let Ok(named) = self.signature.clone().with_parameter_names(names) {
            self.signature = named;
        }
        self
    }

    /// How argument types are made to fit, for a signature that is user-defined.
    pub(crate) fn with_coercion(mut self, coerce: Coerce) -> Self {
        self.coerce = Some(coerce);
        self
    }

    /// The card and the function, ready to be registered.
    pub(crate) fn into_udf(self) -> (Card, ScalarUDF) {
        (self.card.clone(), ScalarUDF::from(self))
    }
}

impl fmt::Debug for Native {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Native")
            .field("name", &self.card.name)
            .field("version", &self.card.version)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Native {
    fn eq(&self, other: &Self) -> bool {
        self.card == other.card
            && self.signature == other.signature
            && self.returns == other.returns
    }
}

impl Eq for Native {}

impl Hash for Native {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.card.hash(state);
        self.signature.hash(state);
    }
}

impl ScalarUDFImpl for Native {
    fn name(&self) -> &str {
        &self.card.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(self.returns.clone())
    }

    fn is_strict(&self) -> bool {
        true
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match self.coerce {
            Some(coerce) => coerce(arg_types),
            None => Ok(arg_types.to_vec()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_scalar = |value: &ColumnarValue| matches!(value, ColumnarValue::Scalar(_));
        let is_constant = args.args.iter().all(is_scalar);
        let rows = if is_constant { 1 } else { args.number_rows };
        let arguments = Arguments { function: &self.card.name, values: &args.args, rows };
        let answer = (self.answer)(&arguments)?;
        if is_constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&answer, 0)?));
        }
        Ok(ColumnarValue::Array(answer))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}

/// The arguments of one call over `rows` rows.
pub(crate) struct Arguments<'a> {
    pub(crate) function: &'a str,
    values: &'a [ColumnarValue],
    /// Rows to answer; 1 if all arguments are constants.
    pub(crate) rows: usize,
}

impl Arguments<'_> {
    /// Number of arguments.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    pub(crate) fn texts(&self, position: usize) -> Result<Column<StringViewArray>> {
        self.column(position, &DataType::Utf8View, |array| array.as_string_view_opt().cloned())
    }

    pub(crate) fn bytes(&self, position: usize) -> Result<Column<BinaryViewArray>> {
        self.column(position, &DataType::BinaryView, |array| array.as_binary_view_opt().cloned())
    }

    pub(crate) fn numbers(&self, position: usize) -> Result<Column<Float64Array>> {
        let downcast = |array: &ArrayRef| array.as_primitive_opt::<Float64Type>().cloned();
        self.column(position, &DataType::Float64, downcast)
    }

    pub(crate) fn integers(&self, position: usize) -> Result<Column<Int64Array>> {
        let downcast = |array: &ArrayRef| array.as_primitive_opt::<Int64Type>().cloned();
        self.column(position, &DataType::Int64, downcast)
    }

    /// Lists of `item`s, whatever kind of list they come as.
    pub(crate) fn lists(&self, position: usize, item: DataType) -> Result<Column<ListArray>> {
        let list = DataType::new_list(item, true);
        self.column(position, &list, |array| array.as_list_opt::<i32>().cloned())
    }

    /// True if the argument came as a list.
    pub(crate) fn is_list(&self, position: usize) -> bool {
        self.values.get(position).is_some_and(|value| list_item(&value.data_type()).is_some())
    }

    /// The error for an argument's value.
    pub(crate) fn refuse(
        &self,
        argument: &'static str,
        value: impl fmt::Display,
        expected: impl Into<String>,
    ) -> DataFusionError {
        FunctionError::argument(self.function, argument, value, expected).into()
    }

    fn column<A>(
        &self,
        position: usize,
        target: &DataType,
        downcast: impl Fn(&ArrayRef) -> Option<A>,
    ) -> Result<Column<A>> {
        let function = self.function;
        let (array, is_constant) = match self.values.get(position) {
            Some(ColumnarValue::Array(array)) => (Arc::clone(array), false),
            Some(ColumnarValue::Scalar(scalar)) => (scalar.to_array_of_size(1)?, true),
            None => return plan_err!("{function} has no argument {position}"),
        };
        let array = if array.data_type() == target { array } else { cast(&array, target)? };
        let array = downcast(&array)
            .ok_or_else(|| internal_datafusion_err!("{function}: cannot read a {target} array"))?;
        Ok(Column { array, is_constant })
    }
}

/// One argument, read row by row; a constant has the same value in each.
pub(crate) struct Column<A> {
    array: A,
    pub(crate) is_constant: bool,
}

impl<A> Column<A> {
    pub(crate) fn get<'a>(&'a self, row: usize) -> Option<<&'a A as ArrayAccessor>::Item>
    where
        &'a A: ArrayAccessor,
    {
        let array = &self.array;
        let row = if self.is_constant { 0 } else { row };
        (!array.is_null(row)).then(|| array.value(row))
    }
}

/// An argument that is text: Utf8, LargeUtf8, Utf8View or a dictionary of them, and nothing else.
pub(crate) fn text() -> Coercion {
    Coercion::new_exact(TypeSignatureClass::Native(logical_string()))
}

/// An argument that is a number of any type, read as Float64.
pub(crate) fn number() -> Coercion {
    let desired = TypeSignatureClass::Native(logical_float64());
    Coercion::new_implicit(desired, vec![TypeSignatureClass::Numeric], NativeType::Float64)
}

/// An argument that is an integer of any type, read as Int64.
pub(crate) fn integer() -> Coercion {
    let desired = TypeSignatureClass::Native(logical_int64());
    Coercion::new_implicit(desired, vec![TypeSignatureClass::Integer], NativeType::Int64)
}

/// True for text, plain or in a dictionary.
pub(crate) fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, value) => is_text(value),
        _ => false,
    }
}

/// The type of a list's items, for the list types that cast to a list.
pub(crate) fn list_item(data_type: &DataType) -> Option<&DataType> {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            Some(item.data_type())
        }
        _ => None,
    }
}
