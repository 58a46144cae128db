//! An aggregate function as the engine runs it: guarded, watched and versioned.
//!
//! [`RegisteredAggregate`] answers as the function that it wraps, except that a panic is an error that names
//! the function, that a call which does not end is known to be one, and that two definitions are never equal.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::{
    AggregateFunction, AggregateFunctionParams, WindowFunctionParams,
};
use datafusion::logical_expr::function::{
    AccumulatorArgs, AggregateFunctionSimplification, StateFieldsArgs,
};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, Expr, GroupsAccumulator,
    Operator, ReversedUDAF, SetMonotonicity, Signature, StatisticsArgs,
};

use crate::calling::running::{self, Asker};
use crate::conduct::Conduct;
use crate::error::Call;
use crate::version::FunctionVersion;

/// A guarded, watched and versioned aggregate function. Made by
/// [`crate::Functions::register_aggregate`].
#[derive(Debug, Clone)]
pub struct RegisteredAggregate {
    inner: Arc<AggregateUDF>,
    version: FunctionVersion,
    conduct: Arc<Conduct>,
}

/// The registered aggregate function in `udaf`, if it is one.
#[must_use]
pub fn registered_aggregate(udaf: &AggregateUDF) -> Option<&RegisteredAggregate> {
    udaf.inner().downcast_ref::<RegisteredAggregate>()
}

impl RegisteredAggregate {
    pub(crate) fn new(inner: AggregateUDF, version: FunctionVersion) -> Self {
        let conduct = Arc::new(Conduct::new(inner.name()));
        Self { inner: Arc::new(inner), version, conduct }
    }

    fn watch(&self, args: &AccumulatorArgs<'_>) -> Watch {
        Watch { conduct: Arc::clone(&self.conduct), arguments: args.expr_fields.into() }
    }

    fn planning<T>(&self, types: &[DataType], work: impl FnOnce() -> Result<T>) -> Result<T> {
        let (function, arguments) = (self.inner.name().to_owned(), types.to_vec());
        self.conduct.guarded(|| Call { function, arguments, rows: 0, part: None }, work)
    }

    fn watched(
        &self,
        args: AccumulatorArgs<'_>,
        make: impl FnOnce(AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>>,
    ) -> Result<Box<dyn Accumulator>> {
        let watch = self.watch(&args);
        let inner = watch.run(0, || make(args))?;
        Ok(Box::new(Watched { inner, watch }))
    }
}

impl PartialEq for RegisteredAggregate {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.inner == other.inner
    }
}

impl Eq for RegisteredAggregate {}

impl Hash for RegisteredAggregate {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.version.hash(state);
        self.inner.hash(state);
    }
}

#[warn(clippy::missing_trait_methods)] // A method that is not delegated changes answers or plans.
impl AggregateUDFImpl for RegisteredAggregate {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, params: &AggregateFunctionParams) -> Result<String> {
        self.inner.schema_name(params)
    }

    fn human_display(&self, params: &AggregateFunctionParams) -> Result<String> {
        self.inner.human_display(params)
    }

    fn window_function_schema_name(&self, params: &WindowFunctionParams) -> Result<String> {
        self.inner.window_function_schema_name(params)
    }

    fn display_name(&self, params: &AggregateFunctionParams) -> Result<String> {
        self.inner.display_name(params)
    }

    fn window_function_display_name(&self, params: &WindowFunctionParams) -> Result<String> {
        self.inner.window_function_display_name(params)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.planning(arg_types, || self.inner.return_type(arg_types))
    }

    fn return_field(&self, arg_fields: &[FieldRef]) -> Result<FieldRef> {
        self.planning(&[], || self.inner.return_field(arg_fields))
    }

    fn is_nullable(&self) -> bool {
        self.inner.is_nullable()
    }

    fn accumulator(&self, acc_args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        self.watched(acc_args, |args| self.inner.accumulator(args))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.planning(&[], || self.inner.state_fields(args))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        let watch = self.watch(&args);
        let inner = watch.run(0, || self.inner.create_groups_accumulator(args))?;
        Ok(Box::new(Watched { inner, watch }))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        self.watched(args, |args| self.inner.create_sliding_accumulator(args))
    }

    fn with_beneficial_ordering(
        self: Arc<Self>,
        beneficial_ordering: bool,
    ) -> Result<Option<Arc<dyn AggregateUDFImpl>>> {
        let ordered = self.inner.as_ref().clone().with_beneficial_ordering(beneficial_ordering)?;
        Ok(ordered.map(|inner| {
            let ordered = Self { inner: Arc::new(inner), ..self.as_ref().clone() };
            Arc::new(ordered) as Arc<dyn AggregateUDFImpl>
        }))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.inner.order_sensitivity()
    }

    fn simplify(&self) -> Option<AggregateFunctionSimplification> {
        self.inner.simplify()
    }

    fn simplify_expr_op_literal(
        &self,
        agg_function: &AggregateFunction,
        arg: &Expr,
        op: Operator,
        lit: &Expr,
        arg_is_left: bool,
    ) -> Result<Option<Expr>> {
        self.inner.simplify_expr_op_literal(agg_function, arg, op, lit, arg_is_left)
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        self.inner.reverse_udf()
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.planning(arg_types, || self.inner.coerce_types(arg_types))
    }

    fn is_descending(&self) -> Option<bool> {
        self.inner.is_descending()
    }

    fn value_from_stats(&self, statistics_args: &StatisticsArgs) -> Option<ScalarValue> {
        self.inner.value_from_stats(statistics_args)
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        self.inner.default_value(data_type)
    }

    fn supports_null_handling_clause(&self) -> bool {
        self.inner.supports_null_handling_clause()
    }

    fn supports_within_group_clause(&self) -> bool {
        self.inner.supports_within_group_clause()
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.inner.inner().set_monotonicity(data_type)
    }
}

/// Whose calls are watched.
#[derive(Debug)]
struct Watch {
    conduct: Arc<Conduct>,
    arguments: Arc<[FieldRef]>,
}

impl Watch {
    /// Runs a call over `rows` rows. DataFusion does not say for which query.
    fn run<T>(&self, rows: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let arguments = Arc::clone(&self.arguments);
        let _in_progress = running::begin(&self.conduct, arguments, rows, Asker::Unknown)?;
        let call = || Call::new(self.conduct.name(), &self.arguments, rows);
        self.conduct.guarded(call, work)
    }
}

#[derive(Debug)]
struct Watched<A: ?Sized> {
    watch: Watch,
    inner: Box<A>,
}

fn rows(columns: &[ArrayRef]) -> usize {
    columns.first().map_or(0, |column| column.len())
}

#[warn(clippy::missing_trait_methods)]
impl Accumulator for Watched<dyn Accumulator> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.watch.run(rows(values), || self.inner.update_batch(values))
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.watch.run(0, || self.inner.evaluate())
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.inner.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.watch.run(0, || self.inner.state())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.watch.run(rows(states), || self.inner.merge_batch(states))
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.watch.run(rows(values), || self.inner.retract_batch(values))
    }

    fn supports_retract_batch(&self) -> bool {
        self.inner.supports_retract_batch()
    }
}

#[warn(clippy::missing_trait_methods)]
impl GroupsAccumulator for Watched<dyn GroupsAccumulator> {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.watch.run(group_indices.len(), || {
            self.inner.update_batch(values, group_indices, opt_filter, total_num_groups)
        })
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        self.watch.run(0, || self.inner.evaluate(emit_to))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.watch.run(0, || self.inner.state(emit_to))
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        total_num_groups: usize,
    ) -> Result<()> {
        self.watch.run(group_indices.len(), || {
            self.inner.merge_batch(values, group_indices, total_num_groups)
        })
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        opt_filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        self.watch.run(rows(values), || self.inner.convert_to_state(values, opt_filter))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.inner.size()
    }
}
