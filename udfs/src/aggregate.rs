//! Aggregates: one answer a group.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type};
use datafusion::common::{DataFusionError, Result, ScalarValue, internal_datafusion_err, plan_err};
use datafusion::logical_expr::aggregate_doc_sections::DOC_SECTION_GENERAL;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, Signature, Volatility,
};

use crate::card::{Card, CostClass};
use crate::native::number;

pub(crate) fn functions() -> Vec<(Card, AggregateUDF)> {
    let card = Card::immutable(
        "weighted_avg",
        "1",
        CostClass::Free,
        "The average of values by their weights: sum(value * weight) / sum(weight). Rows in which \
         either is NULL are skipped; NULL if none is left or the weights sum to 0; NaN if a value or \
         weight is not finite.",
        "SELECT weighted_avg(price, quantity) FROM sales",
    );
    let function = AggregateUDF::from(WeightedAvg::new(&card));
    vec![(card, function)]
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct WeightedAvg {
    signature: Signature,
    documentation: Documentation,
}

impl WeightedAvg {
    fn new(card: &Card) -> Self {
        let signature = Signature::coercible(vec![number(), number()], Volatility::Immutable);
        let names = vec!["value", "weight"];
        let signature = signature.clone().with_parameter_names(names).unwrap_or(signature);
        let documentation =
            Documentation::builder(DOC_SECTION_GENERAL, &card.summary, &card.example)
                .with_argument("value", "the number to average")
                .with_argument("weight", "how much it counts; may be negative")
                .build();
        Self { signature, documentation }
    }
}

impl AggregateUDFImpl for WeightedAvg {
    fn name(&self) -> &str {
        "weighted_avg"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return plan_err!("weighted_avg(DISTINCT ..) has no meaning: give each pair once");
        }
        Ok(Box::new(Sums::default()))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let field = |name, data_type| {
            Arc::new(Field::new(format_state_name(args.name, name), data_type, false))
        };
        Ok(vec![
            field("weighted", DataType::Float64),
            field("weights", DataType::Float64),
            field("pairs", DataType::Int64),
            field("not_finite", DataType::Int64),
        ])
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}

/// The state. Pairs that are not finite are counted and not added, so that a sliding window can lose
/// them again: infinity minus infinity would be NaN for ever.
#[derive(Debug, Default)]
struct Sums {
    weighted: f64,
    weights: f64,
    pairs: i64,
    not_finite: i64,
}

impl Sums {
    /// Adds (`sign` 1) or takes away (`sign` -1) all pairs of two columns.
    fn count(&mut self, columns: &[ArrayRef], sign: i8) -> Result<()> {
        let (values, weights) = (numbers(columns, 0)?, numbers(columns, 1)?);
        for pair in values.iter().zip(weights) {
            let (Some(value), Some(weight)) = pair else { continue };
            let product = value * weight;
            self.pairs += i64::from(sign);
            if product.is_finite() && weight.is_finite() {
                self.weighted += f64::from(sign) * product;
                self.weights += f64::from(sign) * weight;
            } else {
                self.not_finite += i64::from(sign);
            }
        }
        Ok(())
    }
}

impl Accumulator for Sums {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.count(values, 1)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.count(values, -1)?;
        if self.pairs == self.not_finite {
            // Rounding must not outlive the last pair: 0.1 + 0.2 - 0.1 - 0.2 is not 0.
            (self.weighted, self.weights) = (0.0, 0.0);
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let average = match self {
            Self { pairs: 0, .. } => None,
            Self { not_finite: 1.., .. } => Some(f64::NAN),
            Self { weights: 0.0, .. } => None,
            Self { weighted, weights, .. } => Some(*weighted / *weights),
        };
        Ok(ScalarValue::Float64(average))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![
            ScalarValue::from(self.weighted),
            ScalarValue::from(self.weights),
            ScalarValue::from(self.pairs),
            ScalarValue::from(self.not_finite),
        ])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let [_, _, pairs, not_finite] = states else { return Err(unreadable()) };
        let sum = |column: &Float64Array| column.iter().flatten().sum::<f64>();
        let total = |column: &ArrayRef| {
            let counts = column.as_primitive_opt::<Int64Type>().ok_or_else(unreadable)?;
            Ok::<_, DataFusionError>(counts.iter().flatten().sum::<i64>())
        };
        self.weighted += sum(numbers(states, 0)?);
        self.weights += sum(numbers(states, 1)?);
        self.pairs += total(pairs)?;
        self.not_finite += total(not_finite)?;
        Ok(())
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

fn numbers(columns: &[ArrayRef], position: usize) -> Result<&Float64Array> {
    let column = columns.get(position).ok_or_else(unreadable)?;
    column.as_primitive_opt::<Float64Type>().ok_or_else(unreadable)
}

fn unreadable() -> DataFusionError {
    internal_datafusion_err!("weighted_avg: its columns are not those it declared")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(pairs: &[(Option<f64>, Option<f64>)]) -> Vec<ArrayRef> {
        let values: Float64Array = pairs.iter().map(|pair| pair.0).collect();
        let weights: Float64Array = pairs.iter().map(|pair| pair.1).collect();
        vec![Arc::new(values), Arc::new(weights)]
    }

    fn average(of: &[(Option<f64>, Option<f64>)]) -> Option<f64> {
        let mut sums = Sums::default();
        sums.update_batch(&pairs(of)).unwrap();
        answer(&mut sums)
    }

    fn answer(sums: &mut Sums) -> Option<f64> {
        match sums.evaluate().unwrap() {
            ScalarValue::Float64(average) => average,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_value_counts_by_its_weight_and_null_pairs_not_at_all() {
        let rows =
            [(Some(1.0), Some(3.0)), (Some(5.0), Some(1.0)), (None, Some(9.0)), (Some(9.0), None)];
        assert_eq!(average(&rows), Some(2.0));
    }

    #[test]
    fn no_pairs_and_no_weight_give_null() {
        assert_eq!(average(&[]), None);
        assert_eq!(average(&[(None, Some(1.0))]), None);
        assert_eq!(average(&[(Some(1.0), Some(0.0))]), None);
        assert_eq!(average(&[(Some(1.0), Some(1.0)), (Some(2.0), Some(-1.0))]), None);
    }

    #[test]
    fn what_is_not_finite_makes_nan_until_it_leaves_the_window() {
        let odd = [(Some(f64::INFINITY), Some(1.0)), (Some(1.0), Some(f64::NAN))];
        let plain = [(Some(4.0), Some(2.0))];
        let mut sums = Sums::default();
        sums.update_batch(&pairs(&odd)).unwrap();
        sums.update_batch(&pairs(&plain)).unwrap();
        assert!(answer(&mut sums).is_some_and(f64::is_nan));
        sums.retract_batch(&pairs(&odd)).unwrap();
        assert_eq!(answer(&mut sums), Some(4.0));
        sums.retract_batch(&pairs(&plain)).unwrap();
        assert_eq!(answer(&mut sums), None);
    }

    #[test]
    fn rounding_does_not_outlive_the_last_pair() {
        let (first, second) = ([(Some(0.1), Some(0.1))], [(Some(0.2), Some(0.2))]);
        let mut sums = Sums::default();
        sums.update_batch(&pairs(&first)).unwrap();
        sums.update_batch(&pairs(&second)).unwrap();
        sums.retract_batch(&pairs(&first)).unwrap();
        sums.retract_batch(&pairs(&second)).unwrap();
        assert_eq!((sums.weighted, sums.weights), (0.0, 0.0));
    }

    proptest! {
        #[test]
        fn merged_parts_answer_as_the_whole(
            rows in proptest::collection::vec(
                (proptest::option::of(-9_i8..9), proptest::option::of(-9_i8..9)), 0..30),
            cut in 0_usize..30,
        ) {
            let rows: Vec<_> =
                rows.iter().map(|(v, w)| (v.map(f64::from), w.map(f64::from))).collect();
            let (head, tail) = rows.split_at(cut.min(rows.len()));
            let mut whole = Sums::default();
            for part in [head, tail] {
                let mut sums = Sums::default();
                sums.update_batch(&pairs(part)).unwrap();
                let state = sums.state().unwrap();
                let state: Vec<ArrayRef> = state.iter().map(|s| s.to_array().unwrap()).collect();
                whole.merge_batch(&state).unwrap();
            }
            // Small integers: floating sums are exact, so parts and whole agree to the bit.
            prop_assert_eq!(answer(&mut whole), average(&rows));
        }
    }
}
