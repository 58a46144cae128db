//! What a registered function promises: guarded, counted, versioned, and otherwise the same.

use std::collections::hash_map::DefaultHasher;
use std::fmt;

use arrow::array::{Array, ArrayRef, Float64Array, Int64Array, StringArray, StringViewArray};
use arrow::datatypes::Field;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{col, lit};
use datafusion::prelude::SessionContext;
use proptest::prelude::*;

use super::*;
use crate::card::CostClass;
use crate::registry::Functions;

type Invoke = dyn Fn(&ScalarFunctionArgs) -> ColumnarValue + Send + Sync;

/// A function of one Int64 that declares one thing and does another.
struct Scripted {
    signature: Signature,
    returns: FieldRef,
    is_strict: bool,
    invoke: Box<Invoke>,
}

impl Scripted {
    fn new(invoke: impl Fn(&ScalarFunctionArgs) -> ColumnarValue + Send + Sync + 'static) -> Self {
        Self {
            signature: Signature::exact(vec![DataType::Int64], Volatility::Immutable),
            returns: Arc::new(Field::new("f", DataType::Int64, true)),
            is_strict: false,
            invoke: Box::new(invoke),
        }
    }

    fn answering(answer: impl Array + 'static) -> Self {
        let answer: ArrayRef = Arc::new(answer);
        Self::new(move |_| ColumnarValue::Array(Arc::clone(&answer)))
    }

    fn registered(self) -> Arc<ScalarUDF> {
        let functions = Functions::new().with_output_bytes_max(10_000);
        let card = card("f").with_volatility(self.signature.volatility);
        functions.register(card, self.into()).unwrap();
        functions.get("f").unwrap()
    }
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

impl PartialEq for Scripted {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Scripted {}
impl Hash for Scripted {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl ScalarUDFImpl for Scripted {
    fn name(&self) -> &str {
        "f"
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.returns.data_type().clone())
    }
    fn return_field_from_args(&self, _: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(Arc::clone(&self.returns))
    }
    fn is_strict(&self) -> bool {
        self.is_strict
    }
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok((self.invoke)(&args))
    }
    fn placement(&self, _: &[ExpressionPlacement]) -> ExpressionPlacement {
        ExpressionPlacement::MoveTowardsLeafNodes
    }
}

fn card(name: &str) -> Card {
    Card::immutable(name, "1", CostClass::Free, "A test.", format!("SELECT {name}(1)"))
}

fn column(values: &[Option<i64>]) -> ColumnarValue {
    ColumnarValue::Array(Arc::new(Int64Array::from(values.to_vec())))
}

fn call(udf: &ScalarUDF, argument: ColumnarValue, rows: usize) -> Result<ColumnarValue> {
    let field = Arc::new(Field::new("x", argument.data_type(), true));
    let fields = [Arc::clone(&field)];
    let args = ReturnFieldArgs { arg_fields: &fields, scalar_arguments: &[None] };
    udf.invoke_with_args(ScalarFunctionArgs {
        args: vec![argument],
        arg_fields: vec![field],
        number_rows: rows,
        return_field: udf.return_field_from_args(args)?,
        config_options: Arc::new(ConfigOptions::default()),
    })
}

fn three() -> ColumnarValue {
    column(&[Some(1), None, Some(3)])
}

fn failure(udf: &ScalarUDF) -> FunctionError {
    FunctionError::of(&call(udf, three(), 3).unwrap_err()).unwrap().clone()
}

fn hash(udf: &ScalarUDF) -> u64 {
    let mut hasher = DefaultHasher::new();
    udf.hash(&mut hasher);
    hasher.finish()
}

#[test]
fn an_honest_answer_passes_and_is_counted() {
    let udf = Scripted::new(|args| args.args[0].clone()).registered();
    let answer = call(&udf, three(), 3).unwrap().into_array(3).unwrap();
    assert_eq!(answer.as_ref(), &Int64Array::from(vec![Some(1), None, Some(3)]) as &dyn Array);
    call(&udf, ColumnarValue::Scalar(ScalarValue::from(7_i64)), 100).unwrap();
    let metered = registered(&udf).unwrap().metered();
    // A constant was answered once, not 100 times.
    assert_eq!((metered.calls, metered.rows, metered.failures), (2, 4, 0));
    assert!(metered.ns > 0);
}

#[test]
fn a_panic_is_an_error_and_ends_storing() {
    let udf = Scripted::new(|_| panic!("index out of range")).registered();
    let function = registered(&udf).unwrap();
    assert!(function.is_storable());
    let error = failure(&udf);
    assert_eq!(error.code(), "FS-FN-1");
    let text = "f(Int64) over 3 rows failed: the function panicked with \"index out of range\"";
    assert_eq!(error.to_string(), text);
    assert!(!function.is_storable());
    assert_eq!((function.panics(), function.metered().failures), (1, 1));
}

#[test]
fn a_wrong_number_of_rows_is_an_error() {
    for rows in [0, 1, 2, 4] {
        let error = failure(&Scripted::answering(Int64Array::from(vec![1; rows])).registered());
        assert_eq!(error.code(), "FS-FN-2");
        let text = format!(
            "f(Int64) over 3 rows returned {rows} rows; it must return as many as it is given"
        );
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn one_row_for_constants_is_a_constant_as_in_datafusion() {
    let udf = Scripted::answering(Int64Array::from(vec![9])).registered();
    let constant = ColumnarValue::Scalar(ScalarValue::from(1_i64));
    match call(&udf, constant, 5).unwrap() {
        ColumnarValue::Scalar(answer) => assert_eq!(answer, ScalarValue::from(9_i64)),
        ColumnarValue::Array(_) => panic!("an array"),
    }
}

#[test]
fn a_wrong_type_is_an_error_for_arrays_and_scalars() {
    let array = Scripted::answering(StringArray::from(vec!["a", "b", "c"])).registered();
    let scalar = Scripted::new(|_| ColumnarValue::Scalar(ScalarValue::from("a"))).registered();
    for udf in [array, scalar] {
        let error = failure(&udf);
        assert_eq!(error.code(), "FS-FN-3");
        assert_eq!(error.to_string(), "f(Int64) over 3 rows returned Utf8; it declared Int64");
    }
}

#[test]
fn a_null_of_a_function_that_declares_none_is_an_error() {
    let lie = |invoke: Box<Invoke>| {
        let mut function = Scripted::new(invoke);
        function.returns = Arc::new(Field::new("f", DataType::Int64, false));
        failure(&function.registered())
    };
    for error in [
        lie(Box::new(|_| column(&[Some(1), None, Some(3)]))),
        lie(Box::new(|_| ColumnarValue::Scalar(ScalarValue::Int64(None)))),
    ] {
        assert_eq!(error.code(), "FS-FN-4");
        assert!(error.to_string().ends_with("it declares to answer no NULL, and did"), "{error}");
    }
}

#[test]
fn a_strict_function_that_answers_a_null_argument_is_an_error() {
    // The argument is NULL in the second row; a NULL elsewhere does not make up for it.
    for lie in [[Some(1), Some(2), Some(3)], [None, Some(2), Some(3)]] {
        let mut liar = Scripted::new(move |_| column(&lie));
        liar.is_strict = true;
        let error = failure(&liar.registered());
        assert_eq!(error.code(), "FS-FN-4");
        assert!(error.to_string().contains("answer NULL to a NULL argument"), "{error}");
    }
    let mut honest = Scripted::new(|_| column(&[None, None, Some(3)]));
    honest.is_strict = true;
    assert!(call(&honest.registered(), three(), 3).is_ok());
    let not_strict = Scripted::answering(Int64Array::from(vec![1, 2, 3]));
    assert!(call(&not_strict.registered(), three(), 3).is_ok());
}

#[test]
fn more_bytes_than_a_batch_may_have_are_an_error() {
    let returning = |array: ArrayRef| {
        let mut function = Scripted::answering(Arc::clone(&array));
        function.returns = Arc::new(Field::new("f", array.data_type().clone(), true));
        function.registered()
    };
    let long = "a".repeat(4_000);
    for array in [
        Arc::new(StringArray::from(vec![long.as_str(); 3])) as ArrayRef,
        Arc::new(StringViewArray::from(vec![long.as_str(); 3])),
    ] {
        let error = failure(&returning(array));
        assert_eq!(error.code(), "FS-FN-5");
        assert!(error.to_string().contains("a batch may have at most 10000"), "{error}");
    }
    let short = &long[..3_000];
    let udf = returning(Arc::new(StringArray::from(vec![short; 3])));
    assert!(call(&udf, three(), 3).is_ok());
}

#[test]
fn an_error_of_the_function_passes_as_it_is() {
    let (_, udf) = crate::pattern::functions().pop().unwrap();
    let functions = Functions::new();
    functions.register(card_of(&udf), udf).unwrap();
    let udf = functions.get("regex_extract").unwrap();
    let (text, pattern) = (ScalarValue::from("a"), ScalarValue::from("("));
    let fields: Vec<FieldRef> =
        (0..2).map(|_| Arc::new(Field::new("x", DataType::Utf8, true)) as FieldRef).collect();
    let error = udf.invoke_with_args(ScalarFunctionArgs {
        args: vec![ColumnarValue::Scalar(text), ColumnarValue::Scalar(pattern)],
        arg_fields: fields,
        number_rows: 1,
        return_field: Arc::new(Field::new("f", DataType::Utf8, true)),
        config_options: Arc::new(ConfigOptions::default()),
    });
    assert_eq!(FunctionError::of(&error.unwrap_err()).map(FunctionError::code), Some("FS-FN-6"));
    assert_eq!(registered(&udf).unwrap().metered().failures, 1);
    assert!(registered(&udf).unwrap().is_storable());
}

fn card_of(udf: &ScalarUDF) -> Card {
    card(udf.name())
}

#[test]
fn quarantine_is_seen_by_all_copies_and_ends_storing() {
    let udf = Scripted::new(|args| args.args[0].clone()).registered();
    let copy = udf.as_ref().clone();
    registered(&udf).unwrap().quarantine();
    assert!(registered(&copy).unwrap().is_quarantined());
    assert!(!registered(&copy).unwrap().is_storable());
    assert!(call(&copy, three(), 3).is_ok());
}

#[test]
fn only_immutable_functions_are_storable() {
    for volatility in [Volatility::Stable, Volatility::Volatile] {
        let mut function = Scripted::new(|args| args.args[0].clone());
        function.signature.volatility = volatility;
        assert!(!registered(&function.registered()).unwrap().is_storable());
    }
}

#[test]
fn two_definitions_are_never_equal_and_one_equals_its_copies() {
    let functions = Functions::new();
    let honest = || Scripted::new(|args| args.args[0].clone());
    functions.register(card("f"), honest().into()).unwrap();
    let first = functions.get("f").unwrap();
    assert_eq!(first, functions.get("f").unwrap());
    functions.register(card("f"), honest().into()).unwrap();
    let second = functions.get("f").unwrap();
    assert_ne!(first, second);
    assert_ne!(hash(&first), hash(&second));
    assert_ne!(first.call(vec![lit(1_i64)]), second.call(vec![lit(1_i64)]));
}

#[test]
fn the_function_stays_where_the_query_put_it() {
    let udf = Scripted::new(|args| args.args[0].clone()).registered();
    let inner = registered(&udf).unwrap().inner();
    assert_eq!(inner.placement(&[]), ExpressionPlacement::MoveTowardsLeafNodes);
    assert_eq!(udf.placement(&[]), ExpressionPlacement::KeepInPlace);
}

/// A function that simplifies to `expr` and panics while it plans if there is none.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Simplifying {
    signature: Signature,
    to: Option<Expr>,
}

impl ScalarUDFImpl for Simplifying {
    fn name(&self) -> &str {
        "s"
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        match &self.to {
            Some(_) => Ok(DataType::Int64),
            None => panic!("no type"),
        }
    }
    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(ScalarValue::from(1_i64)))
    }
    fn simplify(&self, _: Vec<Expr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        Ok(self
            .to
            .clone()
            .map_or(ExprSimplifyResult::Original(vec![]), ExprSimplifyResult::Simplified))
    }
    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let zone = lit(config.execution.time_zone.clone()?);
        Some(Self { signature: self.signature.clone(), to: Some(zone) }.into())
    }
}

fn simplifying(to: Option<Expr>) -> Arc<ScalarUDF> {
    let signature = Signature::any(1, Volatility::Immutable);
    let functions = Functions::new();
    functions.register(card("s"), Simplifying { signature, to }.into()).unwrap();
    functions.get("s").unwrap()
}

#[test]
fn a_simplification_is_used_unless_it_calls_the_function_unguarded() {
    let info = SimplifyContext::default();
    let simplified = simplifying(Some(lit(2_i64))).simplify(vec![col("a")], &info).unwrap();
    assert!(matches!(simplified, ExprSimplifyResult::Simplified(expr) if expr == lit(2_i64)));
    let bare = Arc::clone(registered(&simplifying(Some(lit(2_i64)))).unwrap().inner());
    let bypass = bare.call(vec![col("a")]) + lit(1_i64);
    let kept = simplifying(Some(bypass)).simplify(vec![col("a")], &info).unwrap();
    assert!(matches!(kept, ExprSimplifyResult::Original(args) if args == [col("a")]));
}

#[test]
fn a_panic_while_planning_is_an_error_that_says_so() {
    let error = simplifying(None).return_type(&[DataType::Utf8]).unwrap_err();
    let error = FunctionError::of(&error).unwrap();
    let text = "s(Utf8) over 0 rows failed: the function panicked with \"no type\"";
    assert_eq!(error.to_string(), text);
}

#[test]
fn other_settings_give_a_function_that_depends_on_them_another_version() {
    let udf = simplifying(Some(lit(1_i64)));
    let version = registered(&udf).unwrap().version();
    let mut config = ConfigOptions::default();
    config.execution.time_zone = None;
    assert!(udf.inner().with_updated_config(&config).is_none());
    config.execution.time_zone = Some("+02:00".to_owned());
    let changed = udf.inner().with_updated_config(&config).unwrap();
    let changed = registered(&changed).unwrap();
    assert_ne!(changed.version(), version);
    changed.quarantine();
    assert!(registered(&udf).unwrap().is_quarantined());
}

#[test]
fn a_function_without_documentation_is_documented_by_its_card() {
    let udf = Scripted::new(|args| args.args[0].clone()).registered();
    let documentation = udf.documentation().unwrap();
    assert_eq!(documentation.description, "A test.");
    assert_eq!(documentation.syntax_example, "SELECT f(1)");
}

#[tokio::test]
async fn a_registered_builtin_answers_as_the_builtin() {
    let context = SessionContext::new();
    let sql = "SELECT upper(a), coalesce(b, 0), substr(a, 2), upper('ß'), coalesce(NULL, b)
               FROM (VALUES ('ab', 1), (NULL, NULL), ('ü🙂', 3)) AS t(a, b)";
    let plain = context.sql(sql).await.unwrap().collect().await.unwrap();
    let functions = Functions::new();
    for name in ["upper", "coalesce", "substr"] {
        let builtin = context.udf(name).unwrap().as_ref().clone();
        let card = Card { name: builtin.name().to_owned(), ..card(name) };
        functions.register(card, builtin).unwrap();
    }
    functions.install(&context);
    let ours = context.sql(sql).await.unwrap().collect().await.unwrap();
    assert_eq!(ours, plain);
    let upper = functions.get("upper").unwrap();
    assert!(registered(&upper).unwrap().metered().rows >= 3);
}

proptest! {
    #[test]
    fn a_registered_function_answers_as_its_inner_function(
        rows in proptest::collection::vec(
            (proptest::option::of("\\PC{0,6}"), proptest::option::of("\\PC{0,6}")), 0..20),
        constant in proptest::option::of("\\PC{0,6}"),
        skip in 0_usize..3,
    ) {
        let (card, inner) = crate::text::functions().remove(0);
        let functions = Functions::new();
        let name = card.name.clone();
        functions.register(card, inner.clone()).unwrap();
        let ours = functions.get(&name).unwrap();
        let left: StringArray = rows.iter().map(|row| row.0.clone()).collect();
        let right: StringArray = rows.iter().map(|row| row.1.clone()).collect();
        let count = rows.len().saturating_sub(skip);
        let slice = |array: StringArray| {
            ColumnarValue::Array(Arc::new(array.slice(rows.len() - count, count)))
        };
        let (left, right) = (slice(left), slice(right));
        let constant = ColumnarValue::Scalar(ScalarValue::Utf8(constant));
        for args in [
            vec![left.clone(), right],
            vec![left, constant.clone()],
            vec![constant.clone(), constant],
        ] {
            let answer = |udf: &ScalarUDF| {
                let field = Arc::new(Field::new("x", DataType::Utf8, true));
                let answer = udf.invoke_with_args(ScalarFunctionArgs {
                    args: args.clone(),
                    arg_fields: vec![Arc::clone(&field), field],
                    number_rows: count,
                    return_field: Arc::new(Field::new("f", DataType::Float64, true)),
                    config_options: Arc::new(ConfigOptions::default()),
                });
                answer.unwrap().into_array(count).unwrap()
            };
            let (ours, inner) = (answer(&ours), answer(&inner));
            prop_assert_eq!(&ours, &inner);
            prop_assert!(ours.as_any().is::<Float64Array>());
        }
    }
}
