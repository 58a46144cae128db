//! A function as the engine runs it: guarded, metered and versioned.
//!
//! [`Registered`] wraps any scalar function of DataFusion and answers as it does, except that
//!
//! - a panic is an error ([`FunctionError::Panicked`]), while planning as well as while running;
//! - an answer of the wrong length, type or size, or one that breaks the function's own NULL rule,
//!   is an error and never reaches the plan;
//! - calls, rows and nanoseconds are counted;
//! - two definitions of a function are never equal, so no plan and no store mistakes one for another;
//! - it stays where the query put it ([`ExpressionPlacement::KeepInPlace`]): the engine moves it.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{ExprSchema, Result, ScalarValue};
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::preimage::PreimageResult;
use datafusion::logical_expr::scalar_doc_sections::DOC_SECTION_OTHER;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ExpressionPlacement, ReturnFieldArgs, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, StructFieldMapping, Volatility,
};

use crate::asynchronous::Asynchronous;
use crate::calling::CalledBy;
use crate::calling::running::{self, Asker};
use crate::card::Card;
use crate::conduct::Conduct;
use crate::error::{Call, FunctionError};
use crate::guard::{self, Promise};
use crate::meter::{Meter, Metered};
use crate::version::FunctionVersion;

/// Bytes that one call may return, unless a registry says otherwise: 1 GiB.
pub const OUTPUT_BYTES_MAX: usize = 1 << 30;

/// A guarded, metered and versioned scalar function. Made by [`crate::Functions::register`].
#[derive(Debug, Clone)]
pub struct Registered {
    inner: Arc<ScalarUDF>,
    card: Arc<Card>,
    version: FunctionVersion,
    output_bytes_max: usize,
    documentation: Arc<Documentation>,
    meter: Arc<Meter>,
    conduct: Arc<Conduct>,
}

/// The registered function in `udf`, if it is one. An engine sees in a plan what it may store.
#[must_use]
pub fn registered(udf: &ScalarUDF) -> Option<&Registered> {
    udf.inner().downcast_ref::<Registered>()
}

impl Registered {
    pub(crate) fn new(inner: Arc<ScalarUDF>, card: Card, version: FunctionVersion) -> Self {
        let documentation = inner.documentation().cloned().unwrap_or_else(|| {
            Documentation::builder(DOC_SECTION_OTHER, &card.summary, &card.example).build()
        });
        let conduct = Arc::new(Conduct::new(inner.name()));
        Self {
            inner,
            card: Arc::new(card),
            version,
            output_bytes_max: OUTPUT_BYTES_MAX,
            documentation: Arc::new(documentation),
            meter: Arc::default(),
            conduct,
        }
    }

    pub(crate) fn with_output_bytes_max(mut self, bytes: usize) -> Self {
        self.output_bytes_max = bytes;
        self
    }

    /// The function that answers.
    #[must_use]
    pub fn inner(&self) -> &Arc<ScalarUDF> {
        &self.inner
    }

    /// What the function says about itself.
    #[must_use]
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Which definition of the function this is.
    #[must_use]
    pub fn version(&self) -> FunctionVersion {
        self.version
    }

    /// What was counted since the registration.
    #[must_use]
    pub fn metered(&self) -> Metered {
        self.meter.read()
    }

    /// The counters themselves, for those who keep them longer than a plan lives.
    #[must_use]
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// True if outputs may be stored and computed ahead: the function is declared immutable, has
    /// never panicked and is not in quarantine.
    #[must_use]
    pub fn is_storable(&self) -> bool {
        self.inner.signature().volatility == Volatility::Immutable
            && self.panics() == 0
            && !self.is_quarantined()
    }

    /// Stops the storing of outputs for good: the function was found to answer the same arguments
    /// in two ways. It is still called. A new registration starts with a clean slate.
    pub fn quarantine(&self) {
        self.conduct.quarantine();
    }

    /// True after [`Self::quarantine`].
    #[must_use]
    pub fn is_quarantined(&self) -> bool {
        self.conduct.is_quarantined()
    }

    /// True if the function waits for something else: a model behind HTTP, another database.
    #[must_use]
    pub fn is_asynchronous(&self) -> bool {
        self.asynchronous().is_some()
    }

    fn asynchronous(&self) -> Option<&Asynchronous> {
        self.inner.inner().downcast_ref()
    }

    /// As `invoke_with_args`, without holding up the thread while an asynchronous function waits.
    pub(crate) async fn invoke_later(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(function) = self.asynchronous() else { return self.invoke_with_args(args) };
        let rows = Self::rows_answered(args.number_rows);
        self.meter.measure_later(self.answer_later(function, args), rows).await
    }

    /// How often the function panicked.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.conduct.panics()
    }

    fn planning(&self, arguments: &[DataType]) -> Call {
        let (function, arguments) = (self.inner.name().to_owned(), arguments.to_vec());
        Call { function, arguments, rows: 0, part: None }
    }

    /// True if `simplified` calls this function without guard and meter.
    fn is_bypassed_by(&self, simplified: &Expr) -> Result<bool> {
        simplified.exists(|expr| {
            Ok(matches!(expr, Expr::ScalarFunction(call)
                if call.func.name() == self.inner.name() && registered(&call.func).is_none()))
        })
    }

    fn answer(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (arguments, returns) = (args.arg_fields.clone(), Arc::clone(&args.return_field));
        let promise = self.promise(&args, &arguments, &returns);
        let asker = CalledBy::known(&args.config_options).map_or(Asker::Nobody, Asker::Caller);
        let _in_progress =
            running::begin(&self.conduct, arguments.as_slice().into(), promise.rows, asker)?;
        // Not through `ScalarUDF::invoke_with_args`: its own type check, in debug builds only,
        // would speak before ours.
        let answer = self.conduct.guarded(
            || Call::new(self.inner.name(), &arguments, promise.rows),
            || self.counted(self.inner.inner().invoke_with_args(args)),
        )?;
        promise.check(self.inner.name(), answer)
    }

    async fn answer_later(
        &self,
        function: &Asynchronous,
        args: ScalarFunctionArgs,
    ) -> Result<ColumnarValue> {
        let (arguments, returns) = (args.arg_fields.clone(), Arc::clone(&args.return_field));
        let promise = self.promise(&args, &arguments, &returns);
        let answer = self.counted(function.answer(args).await)?;
        promise.check(self.inner.name(), answer)
    }

    fn promise<'a>(
        &self,
        args: &ScalarFunctionArgs,
        arguments: &'a [FieldRef],
        returns: &'a FieldRef,
    ) -> Promise<'a> {
        let is_scalar = |value: &ColumnarValue| matches!(value, ColumnarValue::Scalar(_));
        let strict = self.inner.is_strict().then(|| guard::null_rows(&args.args, args.number_rows));
        Promise {
            arguments,
            rows: args.number_rows,
            returns,
            all_scalars: !args.args.is_empty() && args.args.iter().all(is_scalar),
            strict: strict.flatten(),
            bytes_max: self.output_bytes_max,
        }
    }

    /// Counts a panic that was caught where an asynchronous function ran.
    fn counted(&self, answer: Result<ColumnarValue>) -> Result<ColumnarValue> {
        let error = answer.as_ref().err().and_then(FunctionError::of);
        if matches!(error, Some(FunctionError::Panicked { .. })) {
            self.conduct.panicked();
        }
        answer
    }

    fn rows_answered(rows: usize) -> impl FnOnce(&ColumnarValue) -> usize {
        move |answer| match answer {
            ColumnarValue::Array(_) => rows,
            ColumnarValue::Scalar(_) => 1,
        }
    }
}

impl PartialEq for Registered {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.inner == other.inner
    }
}

impl Eq for Registered {}

impl Hash for Registered {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.version.hash(state);
        self.inner.hash(state);
    }
}

#[warn(clippy::missing_trait_methods)] // A method that is not delegated changes answers or plans.
impl ScalarUDFImpl for Registered {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        #[expect(deprecated, reason = "delegated as long as it exists")]
        self.inner.display_name(args)
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.conduct.guarded(|| self.planning(arg_types), || self.inner.return_type(arg_types))
    }

    /// A function that depends on settings gets another version under other settings.
    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let inner = self.inner.inner().with_updated_config(config)?;
        let version = self.version.with_settings(config);
        Some(Self { inner: Arc::new(inner), version, ..self.clone() }.into())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let call = || Call::new(self.inner.name(), args.arg_fields, 0);
        let args = ReturnFieldArgs { ..args };
        self.conduct.guarded(call, || self.inner.return_field_from_args(args))
    }

    fn is_nullable(&self, args: &[Expr], schema: &dyn ExprSchema) -> bool {
        #[expect(deprecated, reason = "delegated as long as it exists")]
        self.inner.is_nullable(args, schema)
    }

    fn is_strict(&self) -> bool {
        self.inner.is_strict()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = Self::rows_answered(args.number_rows);
        self.meter.measure(|| self.answer(args), rows)
    }

    /// The inner function's simplification, unless it calls the inner function itself: that call
    /// would be neither guarded nor metered, and would carry no version.
    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let simplified = self
            .conduct
            .guarded(|| self.planning(&[]), || self.inner.simplify(args.clone(), info))?;
        match simplified {
            ExprSimplifyResult::Simplified(expr) if self.is_bypassed_by(&expr)? => {
                Ok(ExprSimplifyResult::Original(args))
            }
            simplified => Ok(simplified),
        }
    }

    fn preimage(
        &self,
        args: &[Expr],
        lit_expr: &Expr,
        info: &SimplifyContext,
    ) -> Result<PreimageResult> {
        self.conduct.guarded(|| self.planning(&[]), || self.inner.preimage(args, lit_expr, info))
    }

    fn short_circuits(&self) -> bool {
        self.inner.short_circuits()
    }

    fn conditional_arguments<'a>(
        &self,
        args: &'a [Expr],
    ) -> Option<(Vec<&'a Expr>, Vec<&'a Expr>)> {
        self.inner.conditional_arguments(args)
    }

    fn evaluate_bounds(&self, input: &[&Interval]) -> Result<Interval> {
        self.conduct.guarded(|| self.planning(&[]), || self.inner.evaluate_bounds(input))
    }

    fn propagate_constraints(
        &self,
        interval: &Interval,
        inputs: &[&Interval],
    ) -> Result<Option<Vec<Interval>>> {
        let work = || self.inner.propagate_constraints(interval, inputs);
        self.conduct.guarded(|| self.planning(&[]), work)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.conduct.guarded(|| self.planning(&[]), || self.inner.output_ordering(inputs))
    }

    fn preserves_lex_ordering(&self, inputs: &[ExprProperties]) -> Result<bool> {
        self.conduct.guarded(|| self.planning(&[]), || self.inner.preserves_lex_ordering(inputs))
    }

    fn strictly_order_preserving(&self, inputs: &[ExprProperties]) -> Result<bool> {
        self.conduct.guarded(|| self.planning(&[]), || self.inner.strictly_order_preserving(inputs))
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.conduct.guarded(|| self.planning(arg_types), || self.inner.coerce_types(arg_types))
    }

    fn struct_field_mapping(
        &self,
        literal_args: &[Option<ScalarValue>],
    ) -> Option<StructFieldMapping> {
        self.inner.struct_field_mapping(literal_args)
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }

    fn placement(&self, _args: &[ExpressionPlacement]) -> ExpressionPlacement {
        ExpressionPlacement::KeepInPlace
    }
}

#[cfg(test)]
mod tests;
