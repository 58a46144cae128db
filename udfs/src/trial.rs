//! Test kit: calls a function as DataFusion would and checks the rules that all library functions keep.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, StringArray, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::type_coercion::functions::fields_with_udf;
use datafusion::logical_expr::{ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF};

use crate::card::Card;
use crate::registry::Functions;

pub(crate) fn texts<'a>(values: impl IntoIterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

pub(crate) fn numbers(values: impl IntoIterator<Item = f64>) -> ArrayRef {
    Arc::new(Float64Array::from_iter_values(values))
}

/// A column of untyped NULLs, as `SELECT f(NULL)` gives.
pub(crate) fn nulls(rows: usize) -> ArrayRef {
    new_null_array(&DataType::Null, rows)
}

pub(crate) struct Trial {
    udf: Arc<ScalarUDF>,
}

pub(crate) struct Rows(pub(crate) ArrayRef);

impl Trial {
    pub(crate) fn of((card, udf): (Card, ScalarUDF)) -> Self {
        let functions = Functions::new();
        let name = card.name.clone();
        functions.register(card, udf).unwrap();
        Self { udf: functions.get(&name).unwrap() }
    }

    /// Plans and runs one call.
    pub(crate) fn call(&self, args: Vec<ColumnarValue>, rows: usize) -> Result<ColumnarValue> {
        let field = |data_type| Arc::new(Field::new("x", data_type, true));
        let fields: Vec<FieldRef> = args.iter().map(|arg| field(arg.data_type())).collect();
        let fields = fields_with_udf(&fields, self.udf.as_ref())?;
        let coerced = args.iter().zip(&fields);
        let args: Vec<ColumnarValue> =
            coerced.map(|(arg, to)| arg.cast_to(to.data_type(), None)).collect::<Result<_>>()?;
        let scalars: Vec<Option<&ScalarValue>> = args
            .iter()
            .map(|arg| match arg {
                ColumnarValue::Scalar(scalar) => Some(scalar),
                ColumnarValue::Array(_) => None,
            })
            .collect();
        let return_field = self.udf.return_field_from_args(ReturnFieldArgs {
            arg_fields: &fields,
            scalar_arguments: &scalars,
        })?;
        self.udf.invoke_with_args(ScalarFunctionArgs {
            args,
            arg_fields: fields,
            number_rows: rows,
            return_field,
            config_options: Arc::new(ConfigOptions::default()),
        })
    }

    fn columns(&self, columns: &[ArrayRef]) -> Result<ColumnarValue> {
        let args = columns.iter().map(|column| ColumnarValue::Array(Arc::clone(column)));
        self.call(args.collect(), columns[0].len())
    }

    pub(crate) fn rows(&self, columns: &[ArrayRef]) -> Rows {
        match self.columns(columns).unwrap() {
            ColumnarValue::Array(array) => Rows(array),
            ColumnarValue::Scalar(scalar) => panic!("scalar {scalar} for columns"),
        }
    }

    /// The error of a call that must fail.
    pub(crate) fn fails(&self, columns: &[ArrayRef]) -> String {
        self.columns(columns).unwrap_err().to_string()
    }

    /// The planning error of argument types that must be refused.
    pub(crate) fn refuses(&self, types: &[DataType]) -> String {
        let field = |data_type: &DataType| Arc::new(Field::new("x", data_type.clone(), true));
        let fields: Vec<FieldRef> = types.iter().map(field).collect();
        fields_with_udf(&fields, self.udf.as_ref()).unwrap_err().to_string()
    }

    /// Every text type, a slice, constants, an empty batch and NULLs give what they must.
    pub(crate) fn keeps_the_rules_of_the_library(&self, columns: &[ArrayRef]) {
        let rows = columns[0].len();
        let expected = self.rows(columns).0;
        for to in [
            DataType::LargeUtf8,
            DataType::Utf8View,
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
        ] {
            let retyped: Vec<_> = columns.iter().map(|column| retyped(column, &to)).collect();
            assert_eq!(&self.rows(&retyped).0, &expected, "as {to}");
        }
        let tail: Vec<_> = columns.iter().map(|column| column.slice(1, rows - 1)).collect();
        assert_eq!(&self.rows(&tail).0, &expected.slice(1, rows - 1), "of a slice");
        let none: Vec<_> = columns.iter().map(|column| column.slice(0, 0)).collect();
        assert_eq!(&self.rows(&none).0, &expected.slice(0, 0), "of no rows");
        for row in 0..rows {
            let scalar = |column: &ArrayRef| ScalarValue::try_from_array(column, row).unwrap();
            let args: Vec<_> = columns.iter().map(|c| ColumnarValue::Scalar(scalar(c))).collect();
            let expected = ScalarValue::try_from_array(&expected, row).unwrap();
            match self.call(args.clone(), rows).unwrap() {
                ColumnarValue::Scalar(answer) => assert_eq!(answer, expected, "of constants"),
                ColumnarValue::Array(_) => panic!("an array for constants"),
            }
            let mut mixed = args;
            mixed[0] = ColumnarValue::Array(columns[0].slice(row, 1));
            let answer = self.call(mixed, 1).unwrap().into_array(1).unwrap();
            let answer = ScalarValue::try_from_array(&answer, 0).unwrap();
            assert_eq!(answer, expected, "of a column and constants");
        }
        for position in 0..columns.len() {
            let mut columns = columns.to_vec();
            columns[position] = nulls(rows);
            assert_eq!(self.rows(&columns).null_count(), rows, "NULL in argument {position}");
        }
    }
}

fn retyped(column: &ArrayRef, to: &DataType) -> ArrayRef {
    if *column.data_type() == DataType::Utf8 {
        cast(column, to).unwrap()
    } else {
        Arc::clone(column)
    }
}

impl Rows {
    pub(crate) fn null_count(&self) -> usize {
        self.0.logical_null_count()
    }

    pub(crate) fn optional_texts(&self) -> Vec<Option<String>> {
        self.0.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect()
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        self.optional_texts().into_iter().map(|text| text.unwrap()).collect()
    }

    pub(crate) fn optional_numbers(&self) -> Vec<Option<f64>> {
        self.0.as_primitive::<Float64Type>().iter().collect()
    }

    pub(crate) fn numbers(&self) -> Vec<f64> {
        self.optional_numbers().into_iter().map(|number| number.unwrap()).collect()
    }
}
