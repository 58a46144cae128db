//! What an asynchronous call promises: batches in order, a limit, a timeout, retries, and a way out.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{Field, Int64Type, Schema};
use async_trait::async_trait;
use datafusion::common::{ScalarValue, exec_err};
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::async_udf::AsyncScalarUDFImpl;
use datafusion::logical_expr::{Operator, ScalarUDF, Volatility};
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};

use super::*;
use crate::calling::{CalledBy, Caller};
use crate::card::{Card, CostClass};
use crate::registered::registered;
use crate::registry::Functions;

/// What a model does with one request for some rows, as the how-many-eth request for its first row.
type Reply = dyn Fn(&Int64Array, usize) -> Then + Send + Sync;

enum Then {
    Answer(ArrayRef),
    Scalar(ScalarValue),
    Fail,
    Panic,
    Hang,
}

/// A model of one Int64 that counts its requests and how many it has at a time.
struct Model {
    signature: Signature,
    ideal: Option<usize>,
    reply: Box<Reply>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: AtomicUsize,
    open: AtomicUsize,
    open_max: AtomicUsize,
    of_first_row: Mutex<HashMap<i64, usize>>,
}

impl Seen {
    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// One request, however it ends.
struct Open<'a>(&'a Seen);

impl<'a> Open<'a> {
    fn new(seen: &'a Seen) -> Self {
        let open = seen.open.fetch_add(1, Ordering::SeqCst) + 1;
        seen.open_max.fetch_max(open, Ordering::SeqCst);
        Self(seen)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Model")
    }
}

impl PartialEq for Model {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.seen, &other.seen)
    }
}
impl Eq for Model {}
impl Hash for Model {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl ScalarUDFImpl for Model {
    fn name(&self) -> &str {
        "model"
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }
    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        exec_err!("called where it cannot wait")
    }
}

#[async_trait]
impl AsyncScalarUDFImpl for Model {
    fn ideal_batch_size(&self) -> Option<usize> {
        self.ideal
    }

    async fn invoke_async_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let _open = Open::new(&self.seen);
        self.seen.requests.fetch_add(1, Ordering::SeqCst);
        let asked = args.args[0].to_array(args.number_rows)?;
        let asked = asked.as_primitive::<Int64Type>();
        let attempt = {
            let mut all = self.seen.of_first_row.lock().unwrap();
            let attempt = all.entry(asked.value(0)).or_default();
            *attempt += 1;
            *attempt
        };
        // Others get their chance to be on the way as well.
        tokio::time::sleep(Duration::from_millis(2)).await;
        match (self.reply)(asked, attempt) {
            Then::Answer(array) => Ok(ColumnarValue::Array(array)),
            Then::Scalar(scalar) => Ok(ColumnarValue::Scalar(scalar)),
            Then::Fail => exec_err!("HTTP 503"),
            Then::Panic => panic!("out of tensors"),
            Then::Hang => std::future::pending().await,
        }
    }
}

fn plus_one(asked: &Int64Array) -> Then {
    Then::Answer(Arc::new(asked.unary::<_, Int64Type>(|value| value + 1)))
}

/// Ten rows a batch, two at a time, two retries without a pause worth speaking of.
fn options() -> AsyncOptions {
    AsyncOptions::default()
        .with_batch_rows(10)
        .with_concurrency(2)
        .with_retries(2)
        .with_backoff(Duration::from_millis(1))
}

struct Made {
    functions: Functions,
    seen: Arc<Seen>,
}

fn made(
    volatility: Volatility,
    options: AsyncOptions,
    reply: impl Fn(&Int64Array, usize) -> Then + Send + Sync + 'static,
) -> Made {
    let (functions, seen) = (Functions::new(), Arc::new(Seen::default()));
    let signature = Signature::exact(vec![DataType::Int64], volatility);
    let model = Model { signature, ideal: None, reply: Box::new(reply), seen: Arc::clone(&seen) };
    let card = Card::immutable("model", "1", CostClass::Costly, "A test.", "SELECT model(1)");
    let udf = AsyncScalarUDF::new(Arc::new(model));
    functions.register_async(card.with_volatility(volatility), udf, options).unwrap();
    Made { functions, seen }
}

impl Made {
    fn udf(&self) -> Arc<ScalarUDF> {
        self.functions.get("model").unwrap()
    }

    fn call(&self, argument: ColumnarValue, rows: usize) -> Result<ColumnarValue> {
        self.call_with(argument, rows, ConfigOptions::default())
    }

    fn call_with(
        &self,
        argument: ColumnarValue,
        rows: usize,
        settings: ConfigOptions,
    ) -> Result<ColumnarValue> {
        self.udf().invoke_with_args(ScalarFunctionArgs {
            arg_fields: vec![Arc::new(Field::new("x", DataType::Int64, true))],
            args: vec![argument],
            number_rows: rows,
            return_field: Arc::new(Field::new("model", DataType::Int64, true)),
            config_options: Arc::new(settings),
        })
    }

    fn answers(&self, rows: i64) -> Vec<i64> {
        let answer = self.call(numbers(rows), rows as usize).unwrap();
        let answer = answer.into_array(rows as usize).unwrap();
        answer.as_primitive::<Int64Type>().values().to_vec()
    }

    fn error(&self, rows: i64) -> FunctionError {
        let error = self.call(numbers(rows), rows as usize).unwrap_err();
        FunctionError::of(&error).unwrap().clone()
    }

    fn expr(&self, argument: Arc<dyn PhysicalExpr>) -> Arc<dyn PhysicalExpr> {
        let returns = Arc::new(Field::new("model", DataType::Int64, true));
        let settings = Arc::new(ConfigOptions::default());
        Arc::new(ScalarFunctionExpr::new("model", self.udf(), vec![argument], returns, settings))
    }
}

fn numbers(rows: i64) -> ColumnarValue {
    ColumnarValue::Array(Arc::new(Int64Array::from_iter_values(0..rows)))
}

fn batch(rows: i64) -> RecordBatch {
    let schema = Arc::new(Schema::new(vec![Field::new("x", DataType::Int64, true)]));
    RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from_iter_values(0..rows))]).unwrap()
}

#[test]
fn rows_are_asked_in_batches_and_answered_in_order_whichever_comes_first() {
    // The first batches are answered last.
    let slow = |asked: &Int64Array, _| {
        std::thread::sleep(Duration::from_millis(20_u64.saturating_sub(asked.value(0) as u64)));
        plus_one(asked)
    };
    let made = made(Volatility::Immutable, options(), slow);
    for (rows, requests) in [(1, 1), (10, 1), (11, 2), (95, 10)] {
        let before = made.seen.requests();
        assert_eq!(made.answers(rows), (1..=rows).collect::<Vec<_>>());
        assert_eq!(made.seen.requests() - before, requests, "{rows} rows");
    }
    assert_eq!(made.seen.open_max.load(Ordering::SeqCst), 2, "both places were used");
}

#[test]
fn the_function_says_what_batch_is_ideal_and_the_options_know_better() {
    for (ideal, asked, requests) in
        [(None, None, 1), (Some(25), None, 4), (Some(25), Some(50), 2), (Some(0), None, 95)]
    {
        let (functions, seen) = (Functions::new(), Arc::new(Seen::default()));
        let signature = Signature::exact(vec![DataType::Int64], Volatility::Immutable);
        let reply = Box::new(|asked: &Int64Array, _| plus_one(asked));
        let model = Model { signature, ideal, reply, seen: Arc::clone(&seen) };
        let card = Card::immutable("model", "1", CostClass::Costly, "A test.", "SELECT model(1)");
        let options = AsyncOptions { batch_rows: asked, ..options() };
        let udf = AsyncScalarUDF::new(Arc::new(model));
        functions.register_async(card, udf, options).unwrap();
        Made { functions, seen: Arc::clone(&seen) }.answers(95);
        assert_eq!(seen.requests(), requests, "{ideal:?} {asked:?}");
    }
}

#[test]
fn no_row_is_no_request_and_a_constant_is_one_unless_each_answer_may_differ() {
    for (volatility, requests) in
        [(Volatility::Immutable, 1), (Volatility::Stable, 1), (Volatility::Volatile, 10)]
    {
        let made = made(volatility, options(), |asked, _| plus_one(asked));
        assert!(made.answers(0).is_empty());
        assert_eq!(made.seen.requests(), 0);
        let constant = ColumnarValue::Scalar(ScalarValue::Int64(Some(7)));
        let answer = made.call(constant, 95).unwrap();
        let answer = answer.into_array(95).unwrap();
        assert_eq!(answer.as_primitive::<Int64Type>(), &Int64Array::from(vec![8; 95]));
        assert_eq!(made.seen.requests(), requests, "{volatility:?}");
    }
}

#[test]
fn a_null_is_asked_like_any_value_and_one_value_may_answer_a_whole_batch() {
    let counted = made(Volatility::Immutable, options(), |asked, _| {
        Then::Answer(Arc::new(Int64Array::from(vec![asked.null_count() as i64; asked.len()])))
    });
    let asked = ColumnarValue::Array(Arc::new(Int64Array::from(vec![Some(1), None, None])));
    let answer = counted.call(asked, 3).unwrap().into_array(3).unwrap();
    assert_eq!(answer.as_primitive::<Int64Type>().values().to_vec(), [2, 2, 2]);
    let same = made(Volatility::Immutable, options(), |asked, _| {
        Then::Scalar(ScalarValue::Int64(Some(asked.value(0))))
    });
    assert_eq!(same.answers(12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 10]);
}

#[test]
fn calls_of_many_threads_share_the_limit() {
    let made = made(Volatility::Immutable, options(), |asked, _| plus_one(asked));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(made.answers(60).len(), 60));
        }
    });
    assert_eq!(made.seen.requests(), 8 * 6);
    assert_eq!(made.seen.open_max.load(Ordering::SeqCst), 2);
}

#[test]
fn what_fails_is_asked_again_and_only_that() {
    let made = made(Volatility::Immutable, options(), |asked, attempt| match asked.value(0) {
        20 if attempt < 3 => Then::Fail,
        _ => plus_one(asked),
    });
    assert_eq!(made.answers(40), (1..=40).collect::<Vec<_>>());
    assert_eq!(made.seen.requests(), 4 + 2);
}

#[test]
fn what_fails_for_good_names_function_types_rows_and_attempts() {
    let fails = |asked: &Int64Array, _| match asked.value(0) {
        20 => Then::Fail,
        _ => plus_one(asked),
    };
    for (volatility, attempts, said) in [
        (Volatility::Immutable, 3, "3 attempts"),
        (Volatility::Stable, 1, "1 attempt"),
        (Volatility::Volatile, 1, "1 attempt"),
    ] {
        let made = made(volatility, options(), fails);
        let error = made.error(40);
        assert_eq!((error.code(), error.is_retryable()), ("FS-FN-12", true));
        assert_eq!(
            error.to_string(),
            format!(
                "model(Int64) over 40 rows, in rows 20 to 29, had no answer in {said}: \
                 Execution error: HTTP 503"
            )
        );
        assert_eq!(made.seen.of_first_row.lock().unwrap()[&20], attempts, "{volatility:?}");
        assert_eq!(made.seen.open.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn what_takes_too_long_is_stopped_and_asked_again() {
    let short = options().with_timeout(Duration::from_millis(30));
    let once = made(Volatility::Immutable, short, |asked, attempt| match attempt {
        1 => Then::Hang,
        _ => plus_one(asked),
    });
    assert_eq!(once.answers(15), (1..=15).collect::<Vec<_>>());
    let ever = made(Volatility::Immutable, short, |_, _| Then::Hang);
    let text = ever.error(15).to_string();
    assert!(text.ends_with("in 3 attempts: it gave no answer within 30ms"), "{text}");
    let never = made(Volatility::Volatile, short, |_, _| Then::Hang);
    assert!(never.error(5).to_string().contains("in 1 attempt: "));
    assert_eq!(never.seen.open.load(Ordering::SeqCst), 0, "nothing is left on its way");
}

#[test]
fn a_panic_is_an_error_is_not_asked_again_and_ends_storing() {
    let made = made(Volatility::Immutable, options(), |_, _| Then::Panic);
    let text = made.error(15).to_string();
    assert!(text.starts_with("model(Int64) over 15 rows, in rows "), "{text}");
    assert!(text.ends_with("failed: the function panicked with \"out of tensors\""), "{text}");
    assert!(made.seen.requests() <= 2);
    let udf = made.udf();
    let function = registered(&udf).unwrap();
    assert_eq!((function.panics(), function.is_storable()), (1, false));
    assert_eq!(function.metered().failures, 1);
}

#[test]
fn a_batch_of_a_wrong_length_or_type_is_found_before_it_is_put_together() {
    // Together the lengths would be right.
    let wrong = |asked: &Int64Array, _| {
        let rows = if asked.value(0) == 0 { 9 } else { 11 };
        Then::Answer(Arc::new(Int64Array::from(vec![1; rows])))
    };
    let lengths = made(Volatility::Immutable, options().with_concurrency(1), wrong);
    assert_eq!(
        lengths.error(20).to_string(),
        "model(Int64) over 20 rows, in rows 0 to 9, returned 9 rows; it must return as many as it \
         is given"
    );
    assert_eq!(lengths.seen.requests(), 1, "it would be as wrong again");
    let text = made(Volatility::Immutable, options(), |asked, _| {
        Then::Answer(Arc::new(StringArray::from(vec!["1"; asked.len()])))
    });
    assert!(text.error(5).to_string().ends_with("returned Utf8; it declared Int64"));
}

/// Whoever calls, until told otherwise.
#[derive(Debug, Default)]
struct Client(AtomicBool);

impl Caller for Client {
    fn is_gone(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

#[test]
fn a_thread_is_let_go_when_nobody_waits_any_more() {
    let made = made(Volatility::Immutable, options(), |_, _| Then::Hang);
    let client = Arc::new(Client::default());
    let mut settings = ConfigOptions::default();
    settings.extensions.insert(CalledBy::new(&client));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| made.call_with(numbers(50), 50, settings.clone()));
        while made.seen.open.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        client.0.store(true, Ordering::SeqCst);
        let error = waiting.join().unwrap().unwrap_err();
        let error = FunctionError::of(&error).unwrap();
        assert_eq!((error.code(), error.is_retryable()), ("FS-FN-13", false));
    });
    while made.seen.open.load(Ordering::SeqCst) > 0 {
        std::thread::yield_now();
    }
    assert_eq!(made.seen.requests(), 2, "nothing was asked afterwards");
    // Who is forgotten is not gone: settings of old queries are kept with their expressions.
    drop(client);
    assert!(CalledBy::caller(&settings).is_none());
}

#[test]
fn an_awaited_call_stops_when_it_is_dropped() {
    let made = made(Volatility::Immutable, options(), |_, _| Then::Hang);
    let expr = made.expr(Arc::new(Column::new("x", 0)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let rows = batch(50);
        let mut asking = Box::pin(evaluate_later(&expr, &rows));
        while made.seen.open.load(Ordering::SeqCst) < 2 {
            assert!(futures::poll!(asking.as_mut()).is_pending());
        }
        drop(asking);
        while made.seen.open.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(made.seen.requests(), 2, "nothing was asked afterwards");
}

#[test]
fn a_call_that_holds_up_its_thread_works_on_every_kind_of_thread() {
    let made = Arc::new(made(Volatility::Immutable, options(), |asked, _| plus_one(asked)));
    let expected: Vec<i64> = (1..=40).collect();
    let asks = |made: &Arc<Made>| {
        let made = Arc::clone(made);
        move || made.answers(40)
    };
    let alone = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(alone.block_on(async { made.answers(40) }), expected);
    let bound = tokio::task::LocalSet::new();
    assert_eq!(bound.block_on(&alone, async { made.answers(40) }), expected);
    let two = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let bound = tokio::task::LocalSet::new();
    assert_eq!(bound.block_on(&two, async { made.answers(40) }), expected);
    assert_eq!(two.block_on(two.spawn_blocking(asks(&made))).unwrap(), expected);
    // More callers than threads.
    let callers: Vec<_> = (0..12)
        .map(|_| {
            let ask = asks(&made);
            two.spawn(async move { ask() })
        })
        .collect();
    for caller in callers {
        assert_eq!(two.block_on(caller).unwrap(), expected);
    }
    assert!(made.seen.open_max.load(Ordering::SeqCst) <= 2);
}

#[test]
fn calls_within_calls_and_beside_each_other_are_all_awaited() {
    let made = made(Volatility::Immutable, options(), |asked, _| plus_one(asked));
    let x: Arc<dyn PhysicalExpr> = Arc::new(Column::new("x", 0));
    let two: Arc<dyn PhysicalExpr> = Arc::new(Literal::new(ScalarValue::Int64(Some(2))));
    let times = |left, right| -> Arc<dyn PhysicalExpr> {
        Arc::new(BinaryExpr::new(left, Operator::Multiply, right))
    };
    let once = made.expr(Arc::clone(&x));
    let twice = made.expr(times(Arc::clone(&once), two));
    let expr = times(twice, once);
    assert!(calls_asynchronously(&expr) && !calls_asynchronously(&x));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rows = batch(30);
    let answer = runtime.block_on(evaluate_later(&expr, &rows)).unwrap().into_array(30).unwrap();
    let expected: Int64Array = (0..30).map(|x| Some((2 * (x + 1) + 1) * (x + 1))).collect();
    assert_eq!(answer.as_primitive::<Int64Type>(), &expected);
    assert_eq!(made.seen.requests(), 6, "the same call is made once");
    assert_eq!(registered(&made.udf()).unwrap().metered().rows, 60);
}
