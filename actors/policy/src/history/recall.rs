//! Puts calls of former times into the past of a history, where the clock says that they belong: a day that
//! was imported, or what files still have when the history itself was lost.
//!
//! Rows of buckets that are longer than a tick are spread evenly over their ticks. Calls of the open tick
//! and of the future are left out, as are those from before what a history remembers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::series::{HalfLives, Series};
use super::{History, Resolution, Row, Summary};
use crate::ids::{SeriesKey, Tick};

const DAY_MS: u64 = 86_400_000;

/// Calls of former times, tick by tick.
#[derive(Clone, Debug)]
pub struct Recalled {
    tick_ms: u64,
    /// The first tick that is remembered and the open one; ticks are counted from 1970 here.
    within: (u64, u64),
    later_ms: u64,
    series: BTreeMap<SeriesKey, BTreeMap<u64, Summary>>,
}

impl Recalled {
    /// Nothing yet.
    ///
    /// * `tick_ms`, `ticks_max`: length of a tick, and ticks that the history remembers.
    /// * `now_ms`: the time, since the Unix epoch.
    #[must_use]
    pub fn new(tick_ms: u64, ticks_max: u64, now_ms: u64) -> Self {
        let tick_ms = tick_ms.max(1);
        let open = now_ms / tick_ms;
        let within = (open.saturating_sub(ticks_max), open);
        Self { tick_ms, within, later_ms: 0, series: BTreeMap::new() }
    }

    /// The same for rows that ended at `until_ms` and are to count as if they had ended within the last
    /// day: all are moved by so many whole days, so that each hour of the day stays what it is.
    #[must_use]
    pub fn moved_to_the_last_day(self, until_ms: u64, now_ms: u64) -> Self {
        let days = now_ms.saturating_sub(until_ms) / DAY_MS;
        Self { later_ms: days * DAY_MS, ..self }
    }

    /// Adds a row.
    pub fn add(&mut self, resolution: Resolution, row: Row) {
        let start_ms = row.start_ms.saturating_add(self.later_ms);
        let first = start_ms / self.tick_ms;
        let end = start_ms.saturating_add(resolution.ms()).div_ceil(self.tick_ms);
        let ticks = end - first;
        if row.summary.calls == 0 || end <= self.within.0 || first >= self.within.1 {
            return;
        }
        let series = self.series.entry(row.key).or_default();
        for (place, part) in spread(row.summary, ticks) {
            let tick = first + place;
            if (self.within.0..self.within.1).contains(&tick) {
                series.entry(tick).or_default().merge(&part);
            }
        }
    }

    /// Ticks in which something was called.
    #[must_use]
    pub fn ticks(&self) -> usize {
        let all = self.series.values().flat_map(BTreeMap::keys);
        all.collect::<std::collections::BTreeSet<_>>().len()
    }

    /// The first tick that was called in.
    fn first(&self) -> Option<u64> {
        self.series.values().filter_map(|ticks| ticks.keys().next().copied()).min()
    }
}

/// The calls of a summary, evenly over so many ticks: those with calls, by their place. What calls came to
/// goes with them.
fn spread(of: Summary, ticks: u64) -> impl Iterator<Item = (u64, Summary)> {
    let ticks = ticks.max(1);
    let share = |total: u64, part: u64, parts: u64| -> u64 {
        let share = u128::from(total) * u128::from(part) / u128::from(parts.max(1));
        // A part of a u64 is one, too.
        u64::try_from(share).unwrap_or(u64::MAX)
    };
    let mut durations = Some(of.durations.clone());
    (0..ticks).filter_map(move |place| {
        let (from, to) = (share(of.calls, place, ticks), share(of.calls, place + 1, ticks));
        if from == to {
            return None;
        }
        let part = |total: u64| share(total, to, of.calls) - share(total, from, of.calls);
        let summary = Summary {
            calls: to - from,
            rows: part(of.rows),
            rows_stored: part(of.rows_stored),
            rows_fresh: part(of.rows_fresh),
            rows_fresh_stored: part(of.rows_fresh_stored),
            ns: part(of.ns),
            would_be_ns: part(of.would_be_ns),
            bytes: part(of.bytes),
            would_be_ns_squares: 0.0,
            in_flight_max: of.in_flight_max,
            // Which durations were whose is not known; all are told once.
            durations: durations.take().unwrap_or_default(),
        };
        Some((place, summary))
    })
}

impl History {
    /// Puts the calls into the past, beside those that are there. If they were before the first tick, all
    /// ticks are counted from an earlier one: the open tick has a higher number then.
    ///
    /// * `now_ms`: the time in the open tick.
    pub fn recall(&mut self, recalled: Recalled, now_ms: u64) {
        let open = now_ms / recalled.tick_ms;
        let Some(first) = recalled.first() else { return };
        let back = open.saturating_sub(first).min(self.ticks_max);
        self.count_from_earlier((back + 1).saturating_sub(self.now.0));
        let (now, half) = (self.now, self.half);
        // The clock may have gone on, or back, since the calls were gathered.
        let tick =
            |index: u64| (index < open && open - index < now.0).then(|| now.0 - (open - index));
        for (key, ticks) in recalled.series {
            let known = ticks.into_iter().filter_map(|(index, of)| Some((Tick(tick(index)?), of)));
            let mut past = Series::replayed(known, half);
            if past.buckets.is_empty() {
                continue;
            }
            self.with_series(key.clone(), |series| {
                if series.stats.calls > 0 {
                    past.merge(series);
                }
                past.count_again(now, half);
                std::mem::swap(series, &mut past);
            });
            // What was there before is in `past` now.
            let held = self.series.get(&key).map_or(0, |series| series.buckets.len());
            self.buckets = self.buckets + held - past.buckets.len();
        }
        self.oldest = self.oldest.min(Tick(self.now.0.saturating_sub(back).max(1)));
        self.keep_bounds();
    }

    fn count_from_earlier(&mut self, ticks: u64) {
        if ticks == 0 {
            return;
        }
        let later = |tick: &mut Tick| tick.0 += ticks;
        later(&mut self.now);
        later(&mut self.oldest);
        for series in self.series.values_mut() {
            later(&mut series.stats.first_called);
            later(&mut series.stats.last_called);
            Arc::make_mut(&mut series.buckets)
                .iter_mut()
                .for_each(|bucket| later(&mut bucket.tick));
        }
    }
}

impl Series {
    /// A series that was called so, tick by tick, oldest first.
    fn replayed(ticks: impl Iterator<Item = (Tick, Summary)>, half: HalfLives) -> Self {
        let mut series = Self::default();
        for (tick, summary) in ticks {
            series.replay(&summary, tick, half);
            series.close(tick, half);
        }
        series
    }

    /// Counts the frequency again, from the first tick that is remembered.
    fn count_again(&mut self, now: Tick, half: HalfLives) {
        let mut frequency = super::Rolling::default();
        let mut next = self.stats.first_called.0;
        for bucket in self.buckets.iter() {
            frequency.add_repeated(0.0, bucket.tick.0.saturating_sub(next), half.ticks);
            frequency.add(f64::from(bucket.calls), half.ticks);
            next = bucket.tick.0 + 1;
        }
        frequency.add_repeated(0.0, now.0.saturating_sub(next), half.ticks);
        self.stats.calls_per_tick = frequency;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::CallRecord;
    use crate::config::LoopConfig;
    use crate::ids::{ExpressionId, NodeId, PartitionId};

    const TICK_MS: u64 = 60_000;
    /// Noon of some day.
    const NOON_MS: u64 = 19_700 * DAY_MS + DAY_MS / 2;

    fn config() -> LoopConfig {
        LoopConfig::default().with_tick_ms(TICK_MS).unwrap()
    }

    fn key(function: &str) -> SeriesKey {
        SeriesKey {
            function: function.into(),
            expression: ExpressionId(1),
            partition: PartitionId::new("t", 0),
        }
    }

    fn row(start_ms: u64, calls: u64) -> Row {
        let summary = Summary { calls, rows: 7 * calls, ns: 9 * calls, ..Summary::default() };
        Row { key: key("f"), start_ms, summary }
    }

    fn recalled(rows: impl IntoIterator<Item = (Resolution, Row)>) -> Recalled {
        let config = config();
        let ticks = config.history_ticks_max() as u64;
        let mut recalled = Recalled::new(TICK_MS, ticks, NOON_MS);
        rows.into_iter().for_each(|(resolution, row)| recalled.add(resolution, row));
        recalled
    }

    fn ticks(history: &History) -> Vec<(u64, u32)> {
        let now = history.now().0;
        let buckets = history.series[&key("f")].buckets.iter();
        buckets.map(|bucket| (now - bucket.tick.0, bucket.calls)).collect()
    }

    #[test]
    fn former_calls_stand_as_many_ticks_back_as_the_clock_says() {
        let mut history = History::new(&config());
        let seconds = [(10, 2), (10, 1), (3, 4), (1, 8)];
        let rows = seconds.map(|(back, calls)| {
            (Resolution::Second, row(NOON_MS - back * TICK_MS + 5_000, calls))
        });
        let open_or_later = [0, TICK_MS].map(|ms| (Resolution::Second, row(NOON_MS + ms, 16)));
        let recalled = recalled(rows.into_iter().chain(open_or_later));
        assert_eq!(recalled.ticks(), 3);
        history.recall(recalled, NOON_MS + 1_000);
        assert_eq!(ticks(&history), [(10, 3), (3, 4), (1, 8)]);
        let stats = history.stats(&key("f")).unwrap();
        assert_eq!((stats.calls, stats.rows, stats.ns), (15, 105, 135));
        assert_eq!((stats.first_called.0, stats.last_called.0), (1, 10));
        let mean = stats.calls_per_tick;
        assert_eq!(mean.count, 10);
        assert!((mean.mean - 1.5).abs() < 1e-9, "{mean:?}");
        assert_eq!(history.view().calls(history.view().at)[0].len(), 10);
    }

    #[test]
    fn calls_that_are_there_stay_where_they_are_and_add_up_with_those_of_the_same_tick() {
        let mut history = History::new(&config());
        let call = CallRecord { rows: 1, ..CallRecord::empty(key("f"), 1, NodeId(0), None) };
        history.record(&call);
        history.close_tick();
        history.record(&call);
        let back = |back: u64, calls| (Resolution::Second, row(NOON_MS - back * TICK_MS, calls));
        history.recall(recalled([back(1, 2), back(200, 1)]), NOON_MS);
        assert_eq!(ticks(&history), [(200, 1), (1, 3)]);
        history.close_tick();
        assert_eq!(ticks(&history), [(201, 1), (2, 3), (1, 1)]);
        assert_eq!(history.buckets, 3);
    }

    #[test]
    fn buckets_longer_than_a_tick_are_spread_and_no_call_is_lost() {
        let hour = (Resolution::Hour, row(NOON_MS - 60 * TICK_MS, 90));
        let mut history = History::new(&config());
        history.recall(recalled([hour]), NOON_MS);
        let ticks = ticks(&history);
        assert_eq!(ticks.len(), 60);
        assert_eq!(ticks.iter().map(|(_, calls)| calls).sum::<u32>(), 90);
        assert!(ticks.iter().all(|(_, calls)| (1..=2).contains(calls)), "{ticks:?}");
        let stats = history.stats(&key("f")).unwrap();
        assert_eq!((stats.rows, stats.ns), (7 * 90, 9 * 90));
    }

    #[test]
    fn an_old_day_counts_as_if_it_had_ended_within_the_last_at_the_same_hours() {
        let config = config();
        // A day that ended at midnight, three years ago.
        let end_ms = NOON_MS - DAY_MS / 2 - 1_000 * DAY_MS;
        let ticks_max = config.history_ticks_max() as u64;
        let day = Recalled::new(TICK_MS, ticks_max, NOON_MS);
        let mut day = day.moved_to_the_last_day(end_ms, NOON_MS);
        for minute in 0..24 * 60 {
            let start_ms = end_ms - DAY_MS + minute * TICK_MS;
            day.add(Resolution::Minute, row(start_ms, 1 + minute / 60));
        }
        assert_eq!(day.ticks(), 24 * 60);
        let mut history = History::new(&config);
        history.recall(day, NOON_MS);
        let ticks = ticks(&history);
        assert_eq!((ticks[0], ticks[24 * 60 - 1]), ((36 * 60, 1), (12 * 60 + 1, 24)));
    }

    #[test]
    fn what_a_history_does_not_remember_is_left_out() {
        let config = config().with_history_ticks_max(100).unwrap();
        let mut history = History::new(&config);
        let mut recalled = Recalled::new(TICK_MS, 100, NOON_MS);
        for back in 1..=1_000 {
            recalled.add(Resolution::Second, row(NOON_MS - back * TICK_MS, 1));
        }
        assert_eq!(recalled.ticks(), 100);
        history.recall(recalled, NOON_MS);
        assert_eq!(ticks(&history).len(), 100);
        // Gathered, and then the clock was set: what is in the future now is left out.
        let late = recalled_at(NOON_MS);
        history.recall(late, NOON_MS - 50 * TICK_MS);
        assert_eq!(ticks(&history).iter().map(|(_, calls)| calls).sum::<u32>(), 100 + 50);
    }

    fn recalled_at(now_ms: u64) -> Recalled {
        let mut recalled = Recalled::new(TICK_MS, 100, now_ms);
        for back in 1..=100 {
            recalled.add(Resolution::Second, row(now_ms - back * TICK_MS, 1));
        }
        recalled
    }
}
