//! Recurrent states carried from tick to tick, so that a tick costs about two steps per series.
//!
//! A state is a function of the series: it always begins between half a window and a window ago, at a
//! tick that its identity decides. What is kept here only saves the way from there: dropping it, or
//! a restart, changes no forecast. Half a window of steps is due when the beginning moves on, for
//! another part of the series at each tick.

use std::collections::HashMap;

use candle_core::Result;
use foreshard_policy::forecast::{Series, Window};

use super::cell::{State, Weights};
use super::inputs::PER_TICK;
use super::lessons::push_tick;

/// The state of one series.
#[derive(Clone, Debug)]
struct Kept {
    /// First tick that it has seen, and the last one.
    start: u64,
    at: u64,
    seasons: Vec<usize>,
    state: State,
}

/// States of as many series as forecasts are made for.
#[derive(Clone, Debug, Default)]
pub(super) struct Carried {
    kept: HashMap<u64, Kept>,
}

impl Carried {
    /// Forgets all states: the weights are others now.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
    }

    /// Forgets the series that are not among `ids`, sorted.
    pub(super) fn retain(&mut self, ids: &[u64]) {
        if self.kept.len() > ids.len() {
            self.kept.retain(|id, _| ids.binary_search(id).is_ok());
        }
    }

    /// What the cell shows at the end of `window` for each of `places`, row by row.
    pub(super) fn shown(
        &mut self,
        cell: &Weights,
        window: &Window<'_>,
        places: &[usize],
        width: usize,
    ) -> Result<Vec<f32>> {
        let hidden = cell.hidden();
        let mut shown = vec![0.0; places.len() * hidden];
        for (gap, rows) in self.gaps(window, places, width) {
            let mut state = State::zero(rows.len(), hidden);
            for (part, row) in rows.iter().enumerate() {
                let series = &window.series[places[*row]];
                let age = age(window.at.0, series.id, width);
                if let Some(kept) = self.kept.get(&series.id).filter(|_| gap < age) {
                    state.set_row(part, &kept.state);
                }
            }
            for back in (0..gap).rev() {
                let mut ticks = Vec::with_capacity(rows.len() * PER_TICK);
                for row in &rows {
                    push_tick(window, &window.series[places[*row]], back, &mut ticks);
                }
                cell.advance(&ticks, &mut state)?;
            }
            for (part, row) in rows.iter().enumerate() {
                let state = state.row(part, hidden);
                shown[row * hidden..(row + 1) * hidden].copy_from_slice(&state.shown);
                let series = &window.series[places[*row]];
                self.keep(window.at.0, series, width, state);
            }
        }
        Ok(shown)
    }

    /// Rows of `places` by the ticks that their states lack, fewest first.
    fn gaps(
        &self,
        window: &Window<'_>,
        places: &[usize],
        width: usize,
    ) -> Vec<(usize, Vec<usize>)> {
        let mut gaps = std::collections::BTreeMap::<usize, Vec<usize>>::new();
        for (row, place) in places.iter().enumerate() {
            let series = &window.series[*place];
            let gap = self.gap(window.at.0, series, width);
            gaps.entry(gap).or_default().push(row);
        }
        gaps.into_iter().collect()
    }

    fn gap(&self, at: u64, series: &Series<'_>, width: usize) -> usize {
        let age = age(at, series.id, width);
        match self.kept.get(&series.id) {
            Some(kept)
                if kept.start == start(at, age)
                    && kept.at <= at
                    && kept.seasons == series.seasons =>
            {
                (at - kept.at) as usize
            }
            _ => age,
        }
    }

    fn keep(&mut self, at: u64, series: &Series<'_>, width: usize, state: State) {
        let start = start(at, age(at, series.id, width));
        let kept = self.kept.entry(series.id).or_insert_with(|| Kept {
            start,
            at,
            seasons: Vec::new(),
            state: State::zero(0, 0),
        });
        (kept.start, kept.at, kept.state) = (start, at, state);
        if kept.seasons != series.seasons {
            kept.seasons = series.seasons.to_vec();
        }
    }
}

/// Ticks that the state of a series has seen at tick `at`: more than half of `width`, at most all.
fn age(at: u64, id: u64, width: usize) -> usize {
    let half = (width / 2).max(1) as u64;
    (half + 1 + (at % half + id % half) % half) as usize
}

/// The first of them. Before tick zero the number wraps, which does no harm: it is only compared.
fn start(at: u64, age: usize) -> u64 {
    at.wrapping_add(1).wrapping_sub(age as u64)
}

#[cfg(test)]
mod tests {
    use foreshard_policy::forecast::Past;
    use foreshard_policy::ids::Tick;

    use super::*;
    use crate::lstm::LstmConfig;
    use crate::lstm::net::Net;

    const WIDTH: usize = 12;

    fn shown(carried: &mut Carried, ticks: usize, ids: &[u64]) -> Vec<f32> {
        let past = Past::new((0..200).map(|t| f64::from(t * t % 11)));
        let series: Vec<_> = ids.iter().map(|id| past.series(ticks, *id, &[])).collect();
        let at = Tick(ticks as u64 - 1);
        let window = Window { at, tick_ms: 1_000, epoch_ms: 0, series: &series };
        let net = Net::new(&LstmConfig { hidden: 5, ..LstmConfig::default() }, &[1]).unwrap();
        let places: Vec<usize> = (0..ids.len()).collect();
        carried.shown(&net.cell().unwrap(), &window, &places, WIDTH).unwrap()
    }

    #[test]
    fn a_state_that_was_carried_is_the_one_that_is_computed_afresh() {
        let mut carried = Carried::default();
        let mut ticks = 1;
        // One by one, the same tick again, and with gaps, from the very first tick on.
        for gap in [0, 1, 1, 1, 0, 3, 1, 2, 9, 1, 1, 1, 1, 1, 1, 1, 1, 40, 1] {
            ticks += gap;
            let fresh = shown(&mut Carried::default(), ticks, &[3, 4, 9]);
            assert_eq!(shown(&mut carried, ticks, &[3, 4, 9]), fresh, "after {ticks} ticks");
        }
    }

    #[test]
    fn states_follow_their_series_and_not_their_places() {
        let mut carried = Carried::default();
        shown(&mut carried, 50, &[3, 4, 9]);
        let turned = shown(&mut carried, 51, &[9, 3]);
        assert_eq!(turned, shown(&mut Carried::default(), 51, &[9, 3]));
    }

    #[test]
    fn a_tick_costs_one_step_and_now_and_then_half_a_window() {
        let mut carried = Carried::default();
        let past = Past::new((0..200).map(f64::from));
        let mut steps = Vec::new();
        for ticks in 100..124 {
            let series = past.series(ticks, 5, &[]);
            steps.push(carried.gap(ticks as u64 - 1, &series, WIDTH));
            shown(&mut carried, ticks, &[5]);
        }
        assert!(steps[6..].iter().all(|steps| [1, WIDTH / 2 + 1].contains(steps)), "{steps:?}");
        assert_eq!(steps[6..18].iter().filter(|steps| **steps == 1).count(), 10);
    }

    #[test]
    fn states_of_series_that_are_gone_are_dropped() {
        let mut carried = Carried::default();
        shown(&mut carried, 50, &[3, 4, 9]);
        carried.retain(&[3, 9]);
        assert_eq!(carried.kept.len(), 2);
    }
}
