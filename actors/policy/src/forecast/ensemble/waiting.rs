//! Series that are too many to be forecast anew at every tick.
//!
//! The costliest are; of the others some at a time, those whose forecast is oldest. Meanwhile they go by what
//! was said last, tick by tick.

use std::collections::{BTreeMap, BTreeSet};

use super::gate::Standing;
use crate::forecast::Quantiles;
use crate::history::{HistoryView, SeriesView};
use crate::ids::Tick;

/// Series up to which all are forecast anew at every tick.
pub(super) const ALL_MAX: usize = 4_000;

/// Series besides the costliest that are forecast anew at one tick.
const RENEWED: usize = 600;

/// What was said last.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    at: Tick,
    calls: Vec<Quantiles>,
    pub standing: Standing,
}

/// The last forecasts of series that are not forecast anew at every tick.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    said: BTreeMap<u64, Kept>,
}

impl Waiting {
    /// Places of the series that are to be forecast now, ascending: all if they are few, or else `costliest`
    /// and those whose forecast is oldest.
    pub(super) fn due(&self, view: &HistoryView, costliest: &BTreeSet<usize>) -> Vec<usize> {
        let places = 0..view.series.len();
        if places.len() <= ALL_MAX {
            return places.collect();
        }
        let age = |place: usize| {
            let said = self.said.get(&view.series[place].key.id());
            said.map_or(0, |said| said.at.0)
        };
        let mut others: Vec<(u64, usize)> = places
            .filter(|place| !costliest.contains(place))
            .map(|place| (age(place), place))
            .collect();
        if others.len() > RENEWED {
            others.select_nth_unstable(RENEWED);
            others.truncate(RENEWED);
        }
        let others = others.into_iter().map(|(_, place)| place);
        let mut due: Vec<usize> = costliest.iter().copied().chain(others).collect();
        due.sort_unstable();
        due
    }

    /// Keeps what is said of a series at `at`.
    pub(super) fn keep(&mut self, id: u64, at: Tick, calls: Vec<Quantiles>, standing: Standing) {
        self.said.insert(id, Kept { at, calls, standing });
    }

    /// Forgets series that are not in `view`, now and then.
    pub(super) fn forget(&mut self, view: &HistoryView) {
        if view.series.len() <= ALL_MAX {
            self.said.clear();
        } else if self.said.len() > 2 * view.series.len() {
            let known: BTreeSet<u64> = view.series.iter().map(|series| series.key.id()).collect();
            self.said.retain(|id, _| known.contains(id));
        }
    }

    /// What is expected of a series that is not forecast now: what was said of these ticks last, or its
    /// calls of the last few ticks if nothing was.
    pub(super) fn calls(
        &self,
        series: &SeriesView,
        (at, ticks): (Tick, usize),
        horizon: usize,
    ) -> (Vec<Quantiles>, Standing) {
        let said = self.said.get(&series.key.id());
        let Some(last) = said.and_then(|said| said.calls.last()) else {
            let now = Quantiles::exactly(series.calls_now(at, ticks));
            return (vec![now; horizon], Standing::New);
        };
        let (passed, standing) = said.map_or((0, Standing::New), |said| {
            (at.0.saturating_sub(said.at.0) as usize, said.standing)
        });
        let mut calls: Vec<Quantiles> =
            said.into_iter().flat_map(|said| said.calls.iter().skip(passed)).copied().collect();
        calls.resize(horizon, *last);
        (calls, standing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::CallRecord;
    use crate::config::LoopConfig;
    use crate::history::History;
    use crate::ids::{ExpressionId, NodeId, PartitionId, SeriesKey};

    fn view(series: u32) -> HistoryView {
        let config = LoopConfig::default().with_series_max(100_000).unwrap();
        let mut history = History::new(&config);
        for ordinal in 0..series {
            let key = SeriesKey {
                function: "f".into(),
                expression: ExpressionId(1),
                partition: PartitionId::new("t", ordinal),
            };
            let call = CallRecord { rows: 1, ..CallRecord::empty(key, 1, NodeId(0), None) };
            history.record(&call);
        }
        history.close_tick();
        history.view()
    }

    #[test]
    fn few_series_are_all_due_and_of_many_each_has_its_turn() {
        assert_eq!(Waiting::default().due(&view(50), &BTreeSet::new()).len(), 50);
        let many = view(ALL_MAX as u32 + 2_000);
        let costliest: BTreeSet<usize> = (0..2_000).collect();
        let (mut waiting, mut renewed) = (Waiting::default(), BTreeSet::new());
        for tick in 1..=7 {
            let due = waiting.due(&many, &costliest);
            assert_eq!(due.len(), 2_000 + RENEWED);
            assert!(due.is_sorted() && costliest.iter().all(|place| due.contains(place)));
            for place in due.into_iter().filter(|place| !costliest.contains(place)) {
                renewed.insert(place);
                let id = many.series[place].key.id();
                waiting.keep(id, Tick(tick), vec![Quantiles::exactly(1.0)], Standing::Steady);
            }
        }
        assert_eq!(renewed.len(), ALL_MAX, "all others within seven ticks");
    }

    #[test]
    fn what_was_said_moves_on_with_the_ticks_and_ends_in_its_last_one() {
        let view = view(1);
        let series = &view.series[0];
        let mut waiting = Waiting::default();
        let (unknown, standing) = waiting.calls(series, (Tick(1), 4), 3);
        assert_eq!((unknown, standing), (vec![Quantiles::exactly(1.0); 3], Standing::New));
        let said = [4.0, 5.0, 6.0].map(Quantiles::exactly);
        waiting.keep(series.key.id(), Tick(10), said.to_vec(), Standing::Steady);
        let (later, standing) = waiting.calls(series, (Tick(11), 4), 3);
        assert_eq!(
            (later, standing),
            ([5.0, 6.0, 6.0].map(Quantiles::exactly).to_vec(), Standing::Steady)
        );
        let (much_later, _) = waiting.calls(series, (Tick(99), 4), 2);
        assert_eq!(much_later, [6.0, 6.0].map(Quantiles::exactly));
    }
}
