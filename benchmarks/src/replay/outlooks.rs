//! What planners are told instead of a forecast: the truth, an order by chance, or what was used lately.
//!
//! All of them plan with the policy's own planner; they differ in nothing but what they expect.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use foreshard_actors::ports::Outlook;
use foreshard_policy::cluster::{ClusterView, OutputView};
use foreshard_policy::forecast::{Forecast, Quantiles, SeriesForecast};
use foreshard_policy::history::HistoryView;
use foreshard_policy::ids::{ExpressionId, PartitionId, SeriesKey};
use foreshard_policy::random::SplitMix64;

/// The first tick that is closed while calls are played; until it is known there is nothing to
/// tell.
pub(crate) type First = Arc<OnceLock<u64>>;

/// Calls of each minute, by function and partition.
pub(crate) type Coming = BTreeMap<(Arc<str>, PartitionId), BTreeMap<usize, f64>>;

/// Expects the calls that come, and no other.
#[derive(Debug)]
pub(crate) struct Oracle {
    coming: Coming,
    first: First,
}

impl Oracle {
    pub(crate) fn new(coming: Coming, first: First) -> Self {
        Self { coming, first }
    }
}

impl Outlook for Oracle {
    fn told(&self, forecast: &Arc<Forecast>, _: &HistoryView) -> Arc<Forecast> {
        let Some(minute) = self.first.get().and_then(|first| forecast.at.0.checked_sub(*first))
        else {
            return told(forecast, |_, _| 0.0);
        };
        told(forecast, |series, ahead| {
            let coming = self.coming.get(&(Arc::clone(&series.function), series.partition.clone()));
            let calls = coming.and_then(|minutes| minutes.get(&(minute as usize + ahead)));
            calls.copied().unwrap_or(0.0)
        })
    }
}

/// Expects a call of everything now, in an order by chance.
#[derive(Debug)]
pub(crate) struct ByChance {
    pub(crate) seed: u64,
}

impl Outlook for ByChance {
    fn told(&self, forecast: &Arc<Forecast>, _: &HistoryView) -> Arc<Forecast> {
        let mut dice = SplitMix64::new(self.seed ^ forecast.at.0);
        let weights: BTreeMap<&SeriesKey, f64> =
            forecast.series.iter().map(|series| (&series.key, dice.uniform())).collect();
        now(forecast, |series| weights.get(series).copied())
    }
}

/// Looks at the cluster.
pub(crate) type Look = Box<dyn Fn() -> ClusterView + Send + Sync>;

/// Expects a call of everything that was used in the last day, what waits longest first: refresh on append,
/// first in, first out.
pub(crate) struct UsedLately {
    ticks: usize,
    /// Where it sees what is missing; taken away at the end, or engine and outlook would hold each other.
    look: Mutex<Option<Look>>,
    queue: Mutex<VecDeque<SeriesKey>>,
}

impl fmt::Debug for UsedLately {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsedLately").field("ticks", &self.ticks).finish_non_exhaustive()
    }
}

impl UsedLately {
    pub(crate) fn new(ticks: usize) -> Self {
        Self { ticks, look: Mutex::default(), queue: Mutex::default() }
    }

    /// Tells how it sees its cluster, or that it has none any more.
    pub(super) fn set_look(&self, look: Option<Look>) {
        *self.look.lock().unwrap_or_else(PoisonError::into_inner) = look;
    }

    /// What the planners are told of a cluster with these outputs.
    pub(crate) fn told_of(
        &self,
        forecast: &Arc<Forecast>,
        seen: &HistoryView,
        outputs: &BTreeMap<(ExpressionId, PartitionId), OutputView>,
    ) -> Arc<Forecast> {
        let is_missing = |key: &SeriesKey| {
            let output = outputs.get(&(key.expression, key.partition.clone()));
            output.is_some_and(|output| output.rows_missing > 0)
        };
        let used =
            seen.series.iter().filter(|series| series.calls_until(seen.at, self.ticks) > 0.0);
        let wanted: BTreeSet<&SeriesKey> =
            used.map(|series| &series.key).filter(|key| is_missing(key)).collect();
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.retain(|key| wanted.contains(key));
        let waiting: BTreeSet<SeriesKey> = queue.iter().cloned().collect();
        queue.extend(wanted.into_iter().filter(|key| !waiting.contains(*key)).cloned());
        let length = queue.len() as f64;
        let order: BTreeMap<&SeriesKey, f64> = queue
            .iter()
            .enumerate()
            .map(|(place, key)| (key, 1.0 - place as f64 / length))
            .collect();
        now(forecast, |series| order.get(series).copied())
    }
}

impl Outlook for UsedLately {
    fn told(&self, forecast: &Arc<Forecast>, seen: &HistoryView) -> Arc<Forecast> {
        let view = match &*self.look.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(look) => look(),
            None => return now(forecast, |_| None),
        };
        self.told_of(forecast, seen, &view.outputs)
    }
}

/// One call now of what has a weight of 0 to 1, the heavier before the lighter.
fn now(forecast: &Arc<Forecast>, weight: impl Fn(&SeriesKey) -> Option<f64>) -> Arc<Forecast> {
    told(forecast, |series, ahead| match (ahead, weight(series)) {
        (0, Some(weight)) => 1.0 + weight,
        _ => 0.0,
    })
}

/// The forecast with other calls, by series and ticks ahead from zero, to be acted on.
fn told(forecast: &Arc<Forecast>, calls: impl Fn(&SeriesKey, usize) -> f64) -> Arc<Forecast> {
    let series = forecast.series.iter().map(|series| {
        let ticks = 0..series.calls.len();
        let calls: Vec<Quantiles> =
            ticks.map(|ahead| Quantiles::exactly(calls(&series.key, ahead))).collect();
        let calls_season = calls.iter().map(Quantiles::mean).sum();
        SeriesForecast { calls, calls_season, ..series.clone() }
    });
    let series = series.collect();
    Arc::new(Forecast { series, totals: Vec::new(), trusted: true, ..Forecast::clone(forecast) })
}

#[cfg(test)]
mod tests {
    use foreshard_policy::forecast::ensemble::Standing;
    use foreshard_policy::ids::Tick;

    use super::*;

    fn forecast(at: u64) -> Arc<Forecast> {
        let series = |function: &str, partition: u32| SeriesForecast {
            key: SeriesKey {
                function: function.into(),
                expression: ExpressionId(1),
                partition: PartitionId::new("events", partition),
            },
            calls: vec![Quantiles::exactly(7.0); 3],
            ns_per_call: 1e6,
            ns_per_row: 1e3,
            bytes_per_row: 8.0,
            weights: vec![],
            calls_now: 1.0,
            calls_season: 5.0,
            standing: Standing::New,
            announced: false,
        };
        let series = vec![series("similar_0", 0), series("similar_1", 1)];
        Arc::new(Forecast { at: Tick(at), series, ..Forecast::default() })
    }

    fn calls(forecast: &Forecast, series: usize) -> Vec<f64> {
        forecast.series[series].calls.iter().map(|calls| calls.q50).collect()
    }

    #[test]
    fn the_oracle_names_the_calls_of_each_coming_minute_and_no_other() {
        let first = First::default();
        let pair =
            |function: &str, partition| (function.into(), PartitionId::new("events", partition));
        let coming = [
            (pair("similar_1", 1), [(0, 1.0), (2, 2.0)].into()),
            (pair("similar_0", 0), [(3, 1.0)].into()),
        ];
        let oracle = Oracle::new(coming.into(), first.clone());
        let before = oracle.told(&forecast(9), &HistoryView::default());
        assert_eq!(calls(&before, 1), [0.0; 3], "it does not know yet when play begins");
        first.set(10).unwrap();
        let told = oracle.told(&forecast(10), &HistoryView::default());
        assert_eq!((calls(&told, 1), calls(&told, 0)), (vec![1.0, 0.0, 2.0], vec![0.0; 3]));
        assert!(told.trusted);
        let told = oracle.told(&forecast(12), &HistoryView::default());
        assert_eq!((calls(&told, 1), calls(&told, 0)), (vec![2.0, 0.0, 0.0], vec![0.0, 1.0, 0.0]));
    }

    #[test]
    fn chance_wants_everything_now_and_in_another_order_each_time() {
        let chance = ByChance { seed: 3 };
        let first = |at| {
            let told = chance.told(&forecast(at), &HistoryView::default());
            assert!(told.series.iter().all(|series| series.calls[0].q50 >= 1.0));
            assert!(told.series.iter().all(|series| series.calls[1].q50 == 0.0));
            calls(&told, 0)[0] > calls(&told, 1)[0]
        };
        let firsts: BTreeSet<bool> = (0..20).map(first).collect();
        assert_eq!(firsts.len(), 2);
    }
}
