//! What is stored, each with what is expected of it.

use std::collections::BTreeMap;

use super::skip_while;
use crate::cluster::{ClusterView, OutputView, Step};
use crate::forecast::{Forecast, SeriesForecast};
use crate::ids::{ExpressionId, PartitionId};

type Target = (ExpressionId, PartitionId);

/// Forecasts of outputs that may be acted on, and outputs as if the steps in flight were done.
pub(in crate::reshape) struct Ahead<'a> {
    outputs: &'a BTreeMap<Target, OutputView>,
    /// Outputs that steps in flight change, as they will be.
    after: BTreeMap<&'a Target, OutputView>,
    forecast: Option<&'a Forecast>,
    /// Series of one expression of one function, sorted by partition; sorted by expression.
    runs: Vec<(ExpressionId, &'a [SeriesForecast])>,
}

/// An output with what is expected of it.
pub(in crate::reshape) type Known<'s> = (&'s Target, &'s OutputView, &'s SeriesForecast);

impl<'a> Ahead<'a> {
    pub(super) fn new(
        view: &'a ClusterView,
        forecast: Option<&'a Forecast>,
        in_flight: &[Step],
    ) -> Self {
        let outputs = &view.outputs;
        let mut after: BTreeMap<&Target, OutputView> = BTreeMap::new();
        for step in in_flight {
            let (Step::Precompute { expression, partition, .. }
            | Step::DropOutput { expression, partition, .. }) = step
            else {
                continue;
            };
            if let Some((target, output)) = outputs.get_key_value(&(*expression, partition.clone()))
            {
                step.change_output(after.entry(target).or_insert_with(|| output.clone()));
            }
        }
        let forecast = forecast
            .filter(|forecast| forecast.series.iter().any(|series| forecast.may_act_on(series)));
        let series = forecast.map_or(&[][..], |forecast| &forecast.series);
        let same = |a: &SeriesForecast, b: &SeriesForecast| {
            a.key.expression == b.key.expression && a.key.function == b.key.function
        };
        let mut runs: Vec<_> =
            series.chunk_by(same).map(|run| (run[0].key.expression, run)).collect();
        runs.sort_by_key(|(expression, _)| *expression);
        Self { outputs, after, forecast, runs }
    }

    /// Whether there is nothing that may be acted on ahead.
    pub(in crate::reshape) fn is_empty(&self) -> bool {
        self.forecast.is_none()
    }

    /// Series that may be acted on ahead, each of a partition and a function.
    pub(in crate::reshape) fn series(&self) -> impl Iterator<Item = &'a SeriesForecast> {
        let forecast = self.forecast;
        let all = forecast.into_iter().flat_map(|forecast| &forecast.series);
        all.filter(move |series| forecast.is_some_and(|it| it.may_act_on(series)))
    }

    /// Outputs that are `wanted` and of which something is expected, sorted by target.
    pub(in crate::reshape) fn known<'s>(
        &'s self,
        wanted: impl Fn(&OutputView) -> bool + 's,
    ) -> impl Iterator<Item = Known<'s>> + 's {
        let mut after = self.after.iter().peekable();
        let mut runs = self.runs.as_slice();
        let mut here: Vec<&'s [SeriesForecast]> = Vec::new();
        let mut expression = None;
        self.outputs.iter().filter_map(move |(target, output)| {
            let output = after.next_if(|(next, _)| **next == target).map_or(output, |(_, it)| it);
            if !wanted(output) {
                return None;
            }
            if expression != Some(target.0) {
                expression = Some(target.0);
                runs = &runs[skip_while(runs, |(of, _)| *of < target.0)..];
                let same = runs.iter().take_while(|(of, _)| *of == target.0);
                here.clear();
                here.extend(same.map(|(_, run)| *run));
            }
            let found = here.iter_mut().filter_map(|run| {
                *run = &run[skip_while(run, |series| series.key.partition < target.1)..];
                let found = run.first().filter(|series| series.key.partition == target.1)?;
                self.forecast.is_some_and(|it| it.may_act_on(found)).then_some(found)
            });
            Some((target, output, found.last()?))
        })
    }
}
