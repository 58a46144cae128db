//! What there is to learn from a window: rows before its newest ticks, and rows in them to check by.
//!
//! The newest share of each series is never learned from, only checked by; as the series grows, what
//! was checked by becomes what is learned from.

use foreshard_policy::forecast::{Effort, Series, Window};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::inputs::{PER_TICK, View};
use super::net::{Batch, Rows};
use super::{LstmConfig, TICKS_MIN};

/// One in so many ticks of a series is kept to check by.
const CHECKED_SHARE: usize = 10;

/// Batches that a check takes, and rows that a start is fitted on, at most.
const CHECKED_BATCHES: u64 = 6;
const STARTED_ROWS_MAX: usize = 12_000;

/// Rows that are made between two pauses: some milliseconds.
const ROWS_AT_ONCE: usize = 256;

/// Which rows of a window.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Learned,
    Checked,
    Both,
}

impl Part {
    /// Whether a target may be seen that is one of the `newest` or not.
    fn shows(self, newest: bool) -> bool {
        match self {
            Self::Learned => !newest,
            Self::Checked => newest,
            Self::Both => true,
        }
    }
}

/// Rows of a window, for some horizons.
pub(super) struct Lessons<'a> {
    window: &'a Window<'a>,
    places: Vec<usize>,
    config: &'a LstmConfig,
    horizons: &'a [usize],
}

impl<'a> Lessons<'a> {
    /// Of the series at `places`; none if no series is long enough for one row of each part.
    pub(super) fn new(
        window: &'a Window<'a>,
        mut places: Vec<usize>,
        config: &'a LstmConfig,
        horizons: &'a [usize],
    ) -> Option<Self> {
        let nearest = horizons.first().copied()?;
        places.retain(|place| {
            let series = &window.series[*place];
            series.len() > TICKS_MIN + nearest + checked_ticks(series)
        });
        (!places.is_empty()).then_some(Self { window, places, config, horizons })
    }

    /// Ticks ahead of which there are rows.
    pub(super) fn horizons(&self) -> &[usize] {
        self.horizons
    }

    /// Series that are learned from.
    pub(super) fn series(&self) -> usize {
        self.places.len()
    }

    /// Most ticks that are known of a series.
    pub(super) fn ticks(&self) -> usize {
        self.places.iter().map(|place| self.window.series[*place].len()).max().unwrap_or(0)
    }

    /// The batch of training step `step`: the same for the same seed.
    pub(super) fn batch(&self, step: u64) -> Batch {
        let mut rng = StdRng::seed_from_u64(self.config.seed ^ (step + 1).rotate_left(32));
        self.sampled(&mut rng, Part::Learned)
    }

    /// Batches to check by, always the same ones of a window.
    pub(super) fn checks(&self) -> impl Iterator<Item = Batch> + '_ {
        (0..CHECKED_BATCHES).map(|check| {
            let mut rng = StdRng::seed_from_u64(self.config.seed ^ !check);
            self.sampled(&mut rng, Part::Checked)
        })
    }

    /// Rows without recurrent inputs, learned and checked, to start the linear parts.
    pub(super) fn linear(&self, effort: Effort<'_>) -> (Vec<Rows>, Vec<Rows>) {
        (self.rows(Part::Learned, 1, effort), self.rows(Part::Checked, 4, effort))
    }

    /// The same without keeping any to check by.
    pub(super) fn linear_whole(&self, effort: Effort<'_>) -> Vec<Rows> {
        self.rows(Part::Both, 1, effort)
    }

    /// Rows that have a target; fewer with a larger `share`.
    fn rows(&self, part: Part, share: usize, effort: Effort<'_>) -> Vec<Rows> {
        let ticks: usize = self.places.iter().map(|place| self.window.series[*place].len()).sum();
        let mut rng = StdRng::seed_from_u64(self.config.seed);
        let mut heads = vec![Rows::default(); self.horizons.len()];
        for row in 0..ticks.min(STARTED_ROWS_MAX) / share {
            if row.is_multiple_of(ROWS_AT_ONCE) {
                effort.pause();
            }
            let (series, back) = self.drawn(&mut rng, part);
            self.push_row(series, back, part, &mut heads);
        }
        heads.into_iter().map(seen).collect()
    }

    fn sampled(&self, rng: &mut StdRng, part: Part) -> Batch {
        let LstmConfig { window: width, batch: rows, asked, .. } = *self.config;
        let drawn: Vec<_> = (0..rows).map(|_| self.drawn(rng, part)).collect();
        let first = width / 2;
        let mut positions: Vec<usize> =
            (1..asked).map(|_| rng.random_range(first..width - 1)).chain([width - 1]).collect();
        positions.sort_unstable();
        positions.dedup();
        let mut batch =
            Batch { ticks: vec![Vec::with_capacity(rows * PER_TICK); width], ..Batch::default() };
        for (position, ticks) in batch.ticks.iter_mut().enumerate() {
            for (series, back) in &drawn {
                push_tick(self.window, series, back + width - 1 - position, ticks);
            }
        }
        batch.heads = vec![Rows::default(); self.horizons.len()];
        for position in &positions {
            for (series, back) in &drawn {
                self.push_row(series, back + width - 1 - position, part, &mut batch.heads);
            }
        }
        batch.asked = positions;
        batch
    }

    /// A series, and ticks back from its end.
    fn drawn(&self, rng: &mut StdRng, part: Part) -> (&'a Series<'a>, usize) {
        let series = &self.window.series[self.places[rng.random_range(0..self.places.len())]];
        let (len, checked) = (series.len(), checked_ticks(series));
        let nearest = self.horizons.first().copied().unwrap_or(1);
        let farthest = self.horizons.last().copied().unwrap_or(1);
        let oldest = len - TICKS_MIN;
        let back = match part {
            Part::Checked => rng.random_range(nearest..(checked + farthest).min(oldest)),
            Part::Learned | Part::Both => {
                // Rows that know two of the longest season tell more, if there are enough of them.
                let longest = series.season_known(4).map_or(0, |season| 2 * season);
                let kept = if part == Part::Both { 0 } else { checked };
                let newest = kept + nearest;
                rng.random_range(newest..(len - longest.max(TICKS_MIN)).max(newest + 1))
            }
        };
        (series, back)
    }

    fn push_row(&self, series: &Series<'_>, back: usize, part: Part, heads: &mut [Rows]) {
        let checked = checked_ticks(series);
        let view = (back < series.len()).then(|| View::new(self.window, series, back));
        for (rows, horizon) in heads.iter_mut().zip(self.horizons) {
            let target = view.as_ref().zip(back.checked_sub(*horizon));
            let (target, weight) = match target {
                Some((view, left)) if part.shows(left < checked) => {
                    (view.target(&series.before(left)), 1.0)
                }
                _ => (0.0, 0.0),
            };
            match &view {
                Some(view) => view.ahead(*horizon, &mut rows.inputs),
                None => rows.inputs.extend([0.0; super::inputs::PER_HORIZON]),
            }
            rows.targets.push(target);
            rows.weights.push(weight);
        }
    }
}

/// The inputs of the cell `back` ticks ago; zeros before the series began.
pub(super) fn push_tick(window: &Window<'_>, series: &Series<'_>, back: usize, out: &mut Vec<f32>) {
    if back < series.len() {
        View::new(window, series, back).tick(out);
    } else {
        out.extend([0.0; PER_TICK]);
    }
}

/// Newest ticks that are only checked by.
fn checked_ticks(series: &Series<'_>) -> usize {
    series.len() / CHECKED_SHARE
}

/// Without the rows whose target is not to be seen.
fn seen(rows: Rows) -> Rows {
    let mut kept = Rows::default();
    let inputs = rows.inputs.chunks(super::inputs::PER_HORIZON);
    for ((inputs, target), weight) in inputs.zip(rows.targets).zip(rows.weights) {
        if weight > 0.0 {
            kept.inputs.extend_from_slice(inputs);
            kept.targets.push(target);
            kept.weights.push(weight);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use foreshard_policy::forecast::Past;
    use foreshard_policy::ids::Tick;

    use super::*;

    /// Lessons of a series whose every tick tells its number, and of a short one.
    fn with_lessons(ticks: usize, see: impl FnOnce(&Lessons<'_>)) {
        let pasts = [Past::new((0..ticks).map(|t| (t as f64).exp_m1())), Past::new([1.0; 9])];
        let series = [pasts[0].series(ticks, 1, &[7]), pasts[1].series(9, 2, &[])];
        let at = Tick(ticks as u64 - 1);
        let window = Window { at, tick_ms: 1_000, epoch_ms: 0, series: &series };
        let config = LstmConfig { window: 10, batch: 40, ..LstmConfig::default() };
        see(&Lessons::new(&window, vec![0, 1], &config, &[1, 5]).unwrap());
    }

    #[test]
    fn what_is_checked_by_is_never_learned_from() {
        with_lessons(300, |lessons| {
            assert_eq!(lessons.places, [0], "the other one is too short");
            let series = lessons.window.series[0];
            for (part, newest) in [(Part::Learned, 270), (Part::Checked, 300)] {
                let mut rows = vec![Rows::default(); 2];
                for back in 0..290 {
                    lessons.push_row(&series, back, part, &mut rows);
                }
                for (rows, horizon) in rows.iter().zip([1, 5]) {
                    let seen = (0..290).filter(|back| rows.weights[*back] > 0.0);
                    let targets: Vec<usize> = seen.map(|back| 299 - back + horizon).collect();
                    let newest_seen = targets.iter().max().copied();
                    assert_eq!(newest_seen, Some(newest - 1));
                    let oldest = targets.iter().min().copied().unwrap();
                    assert!((oldest >= 270) == (part == Part::Checked), "{oldest}");
                }
            }
        });
    }

    #[test]
    fn rows_lie_by_time_asked_and_then_by_window() {
        with_lessons(300, |lessons| {
            let batch = lessons.batch(3);
            assert_eq!(batch.ticks.len(), 10);
            assert!(batch.ticks.iter().all(|ticks| ticks.len() == 40 * PER_TICK));
            assert_eq!(batch.asked.last(), Some(&9));
            assert!(batch.asked.iter().all(|position| *position >= 5));
            for rows in &batch.heads {
                assert_eq!(rows.targets.len(), 40 * batch.asked.len());
                assert_eq!(rows.weights.len(), rows.targets.len());
            }
            assert_eq!(batch.heads[0].inputs, lessons.batch(3).heads[0].inputs);
            assert_ne!(batch.heads[0].inputs, lessons.batch(4).heads[0].inputs);
        });
    }

    #[test]
    fn the_linear_parts_get_only_rows_with_a_target() {
        with_lessons(120, |lessons| {
            let (learned, checked) = lessons.linear(Effort::steps(0));
            for rows in learned.iter().chain(&checked) {
                assert!(!rows.targets.is_empty());
                assert!(rows.weights.iter().all(|weight| *weight > 0.0));
                let inputs = rows.targets.len() * crate::lstm::inputs::PER_HORIZON;
                assert_eq!(rows.inputs.len(), inputs);
            }
        });
    }
}
