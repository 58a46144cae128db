//! The past of every series and of the sums of functions on tables, as long as memory allows.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::hierarchy::{Family, families};
use super::{Seasons, seasons};
use crate::forecast::{Effort, Past, Series};
use crate::history::{HistoryView, SeriesView};
use crate::ids::Tick;

/// Busy series that are searched for seasons of their own, and as many sums.
const SEASON_SERIES: usize = 64;

/// Logarithms that are kept over all series; with more series each has a shorter past.
const CELLS_MAX: usize = 16_000_000;

/// Shortest past that is kept of a series.
const TICKS_MIN: usize = 64;

/// What was called in each tick, in logarithms. A copy shares all that has not changed since.
#[derive(Clone, Debug, Default)]
pub(super) struct Pasts {
    /// By the number of the series.
    series: BTreeMap<u64, Arc<Past>>,
    /// Numbers of the series, in the order of the view that was taken in last.
    order: Arc<[u64]>,
    families: Arc<[Family]>,
    /// By the number of the family.
    sums: BTreeMap<u64, Arc<Past>>,
    /// The last tick that was taken in.
    seen: Tick,
}

impl Pasts {
    /// Takes in the whole past again at the next call of [`take_in`](Self::take_in).
    pub(super) fn clear(&mut self) {
        self.series.clear();
        self.sums.clear();
    }

    /// Adds the ticks that closed since the last call.
    pub(super) fn take_in(&mut self, view: &HistoryView) {
        let ticks = (CELLS_MAX / view.series.len().max(1)).max(TICKS_MIN);
        if view.at == self.seen && self.series.len() == view.series.len() {
            return;
        }
        let goes_on = view.at >= self.seen;
        let mut before = std::mem::take(&mut self.series);
        let mut order = Vec::with_capacity(view.series.len());
        for series in &view.series {
            let id = series.key.id();
            order.push(id);
            let past = before.remove(&id).filter(|_| goes_on);
            let past = self.grown(past, view, ticks, &[series]);
            self.series.insert(id, past);
        }
        self.order = order.into();
        self.families = families(view).into();
        let mut before = std::mem::take(&mut self.sums);
        for family in self.families.iter() {
            let parts: Vec<&SeriesView> =
                family.parts.iter().map(|place| &view.series[*place]).collect();
            let past = before.remove(&family.id).filter(|_| goes_on);
            let past = self.grown(past, view, ticks, &parts);
            self.sums.insert(family.id, past);
        }
        self.seen = view.at;
    }

    /// The past of the sum of `parts`: `past` and the ticks that closed since, or all that is known.
    fn grown(
        &self,
        past: Option<Arc<Past>>,
        view: &HistoryView,
        ticks: usize,
        parts: &[&SeriesView],
    ) -> Arc<Past> {
        let Some(mut past) = past else {
            let mut all = parts.iter().map(|part| part.calls(view.at, ticks, view.oldest));
            let mut sum = all.next().unwrap_or_default();
            for part in all {
                sum.iter_mut().zip(part).for_each(|(sum, calls)| *sum += calls);
            }
            return Arc::new(Past::new(sum));
        };
        let own = Arc::make_mut(&mut past);
        for tick in self.seen.0 + 1..=view.at.0 {
            own.push(parts.iter().map(|part| part.calls_at(Tick(tick))).sum());
        }
        own.keep(ticks);
        past
    }

    /// Calls of a series in the newest tick; zero if it is not known.
    pub(super) fn last(&self, id: u64) -> f64 {
        self.series.get(&id).map_or(0.0, |past| past.last())
    }

    /// Ticks that are known of the series that is known for longest.
    pub(super) fn longest(&self) -> usize {
        self.series.values().map(|past| past.len()).max().unwrap_or(0)
    }

    /// The functions on tables that have a sum, in the order of [`series`](Self::series).
    pub(super) fn families(&self) -> &[Family] {
        &self.families
    }

    /// Numbers of the series of a family.
    pub(super) fn numbers(&self, family: &Family) -> Vec<u64> {
        family.parts.iter().map(|place| self.order[*place]).collect()
    }

    /// Logarithm of the calls of a family in a tick, if that is known.
    pub(super) fn sum_log(&self, id: u64, tick: u64) -> Option<f64> {
        let past = self.sums.get(&id)?;
        let back = usize::try_from(self.seen.0.checked_sub(tick)?).ok()?;
        (back < past.len()).then(|| past.series(past.len(), id, &[]).log(back))
    }

    /// The series of the newest view as members see them, in its order, and then the sums. One without a season of
    /// its own has that of its family, or else that of all series together.
    pub(super) fn series<'a>(
        &'a self,
        configured: &'a [usize],
        learned: &'a Seasons,
    ) -> Vec<Series<'a>> {
        let found = |id: u64| learned.of.get(&id);
        let mut of_family = vec![None; self.order.len()];
        for family in self.families.iter() {
            family.parts.iter().for_each(|place| of_family[*place] = found(family.id));
        }
        let seasons = |id: u64, family: Option<&'a Vec<usize>>| -> &'a [usize] {
            let found = || found(id).or(family).unwrap_or(&learned.all);
            if configured.is_empty() { found() } else { configured }
        };
        let one = |(id, family): (&u64, Option<&'a Vec<usize>>)| {
            let id = *id;
            let past = self.series.get(&id)?;
            Some(past.series(past.len(), id, seasons(id, family)))
        };
        let sum = |family: &Family| {
            let past = self.sums.get(&family.id)?;
            Some(past.series(past.len(), family.id, seasons(family.id, None)))
        };
        let series = self.order.iter().zip(of_family).filter_map(one);
        series.chain(self.families.iter().filter_map(sum)).collect()
    }

    /// The seasons of all series together, and those of the busiest series and sums.
    pub(super) fn seasons(&self, tick_ms: u64, effort: Effort<'_>) -> Seasons {
        let ticks = self.longest();
        let mut total = vec![0.0; ticks];
        for past in self.series.values() {
            let logs = past.series(past.len(), 0, &[]).logs;
            let newest = total.iter_mut().rev().zip(logs.iter().rev());
            newest.for_each(|(sum, log)| *sum += log.exp_m1());
        }
        let logs: Vec<f64> = total.iter().map(|calls: &f64| calls.max(0.0).ln_1p()).collect();
        let level = |past: &Past| past.series(past.len(), 0, &[]).mean(0, ticks);
        let busiest = |pasts: &BTreeMap<u64, Arc<Past>>| {
            let mut all: Vec<(f64, u64)> =
                pasts.iter().map(|(id, past)| (level(past), *id)).collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            all.into_iter().take(SEASON_SERIES).map(|(_, id)| id).collect::<Vec<_>>()
        };
        let own = |pasts: &BTreeMap<u64, Arc<Past>>, id: u64| {
            effort.pause();
            let past = pasts.get(&id)?;
            let found = seasons(past.series(past.len(), id, &[]).logs, tick_ms);
            (!found.is_empty()).then_some((id, found))
        };
        let series = busiest(&self.series).into_iter().filter_map(|id| own(&self.series, id));
        let sums = busiest(&self.sums).into_iter().filter_map(|id| own(&self.sums, id));
        Seasons { all: seasons(&logs, tick_ms), of: series.chain(sums).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::CallRecord;
    use crate::config::LoopConfig;
    use crate::history::History;
    use crate::ids::{ExpressionId, NodeId, PartitionId, SeriesKey};

    #[test]
    fn a_partition_without_a_season_of_its_own_has_that_of_its_sum_and_else_that_of_all() {
        let mut history = History::new(&LoopConfig::default());
        for (function, ordinal) in [("f", 0), ("f", 1), ("g", 0)] {
            let key = SeriesKey {
                function: function.into(),
                expression: ExpressionId(1),
                partition: PartitionId::new("t", ordinal),
            };
            history.record(&CallRecord { rows: 1, ..CallRecord::empty(key, 1, NodeId(0), None) });
        }
        history.close_tick();
        let (view, mut pasts) = (history.view(), Pasts::default());
        pasts.take_in(&view);
        let own = (view.series[1].key.id(), vec![7]);
        let of_sum = (pasts.families()[0].id, vec![24]);
        let seasons_of = BTreeMap::from([own, of_sum]);
        let learned = Seasons { all: vec![60], of: seasons_of };
        let seasons = |configured: &[usize]| -> Vec<Vec<usize>> {
            let series = pasts.series(configured, &learned);
            series.iter().map(|series| series.seasons.to_vec()).collect()
        };
        assert_eq!(seasons(&[]), [[24], [7], [60], [24]], "two of f, one of g, and the sum of f");
        assert_eq!(seasons(&[5]), [[5]; 4]);
    }
}
