//! What the rows come down to, with bounds.

use super::Walked;
use super::evaluate::Scored;
use super::families::RANDOM_WALK;
use crate::report::{Bound, Figure};

/// Ticks up to which a horizon is near, and up to which it is not far.
const NEAR: usize = 6;
const MIDDLE: usize = 60;

/// Time up to which the mix must be clearly better than the last season: ticks of minutes go as far as an
/// hour, which is within it, since their farthest horizon besides a day is 60 ticks.
const SOON_MS: u64 = 6 * 3_600_000;

/// Fewest forecasts whose coverage is judged.
const COUNT_MIN: usize = 500;

/// Days of the test from which the coverage a day ahead is judged.
const DAYS_MIN: f64 = 20.0;

/// One row with its trace.
struct Line<'a> {
    trace: &'a str,
    scored: &'a Scored,
    /// Length of the test in horizons.
    spans: f64,
    /// Time until what is forecast.
    ahead_ms: u64,
}

impl Line<'_> {
    /// Loss of the mix over that of the best member in hindsight.
    fn over_best(&self) -> f64 {
        let best = self.scored.members.values().copied().fold(f64::INFINITY, f64::min);
        self.scored.ensemble / best.max(1e-9)
    }

    fn is_near(&self) -> bool {
        self.scored.horizon <= NEAR && !self.scored.is_day
    }

    fn is_middle(&self) -> bool {
        !self.scored.is_day && (NEAR + 1..=MIDDLE).contains(&self.scored.horizon)
    }

    /// Up to 60 minutes or 6 hours, of a load that repeats itself.
    fn is_soon_and_structured(&self) -> bool {
        self.is_short() && self.ahead_ms <= SOON_MS && self.scored.has_season
    }

    /// Up to 60 ticks.
    fn is_short(&self) -> bool {
        self.is_near() || self.is_middle()
    }
}

/// All figures.
pub(super) fn all(walked: &[Walked]) -> Vec<Figure> {
    let lines: Vec<Line<'_>> = walked
        .iter()
        .flat_map(|walked| {
            let ticks = walked.trace.ticks() as f64 * 0.2;
            walked.scored.iter().map(move |scored| Line {
                trace: &walked.trace.name,
                scored,
                spans: ticks / scored.horizon.max(1) as f64,
                ahead_ms: scored.horizon as u64 * walked.trace.tick_ms,
            })
        })
        // The series of a trace are in the rows; a trace is judged by their sum.
        .filter(|line| line.scored.series.is_empty() || line.scored.series == "all")
        .collect();
    let mut figures = Vec::new();
    let mut worst = |name: &str, bound: f64, values: Vec<f64>| {
        if let Some(worst) = values.into_iter().reduce(f64::max) {
            figures.push(Figure::bounded(name, worst, "ratio", Bound::AtMost(bound)));
        }
    };
    let over = |of: &dyn Fn(&Line<'_>) -> bool| -> Vec<f64> {
        lines.iter().filter(|line| of(line)).map(|line| line.over_best()).collect()
    };
    worst("mix over best member, up to 6 ticks, worst", 1.02, over(&|line| line.is_near()));
    worst("mix over best member, up to 60 ticks, worst", 1.05, over(&|line| line.is_middle()));
    worst("mix over best member, a day, worst", 1.10, over(&|line| line.scored.is_day));
    let all = over(&|line| line.is_short());
    let mean = all.iter().sum::<f64>() / all.len().max(1) as f64;
    worst("mix over best member, up to 60 ticks, mean", 1.02, vec![mean]);
    let against = |of: &dyn Fn(&Line<'_>) -> bool| -> Vec<f64> {
        lines.iter().filter(|line| of(line)).map(|line| line.scored.ensemble).collect()
    };
    let structured = |line: &Line<'_>| line.is_soon_and_structured();
    worst("mix over seasonal naive, up to 6 hours, worst", 0.90, against(&structured));
    worst("mix over seasonal naive, a day, worst", 1.05, against(&|line| line.scored.is_day));
    let walk = |line: &Line<'_>| line.trace == RANDOM_WALK;
    worst("mix over naive on a random walk, worst", 1.01, against(&walk));
    let open = lines.iter().filter(|line| walk(line)).map(|line| line.scored.open);
    worst("gate open on a random walk, share", 0.05, open.collect());
    figures.extend(coverage(&lines));
    let both = |line: &Line<'_>| {
        let of = |name: &str| line.scored.members.get(name).copied();
        Some((of("lstm")?, of("ridge")?))
    };
    let pairs: Vec<(f64, f64)> = lines.iter().filter_map(both).collect();
    if !pairs.is_empty() {
        let better = pairs.iter().filter(|(lstm, ridge)| lstm < ridge).count();
        let share = better as f64 / pairs.len() as f64;
        let name = "LSTM better than ridge, share of traces and horizons";
        figures.push(Figure::bounded(name, share, "", Bound::AtLeast(0.5)));
    }
    figures
}

fn coverage(lines: &[Line<'_>]) -> Vec<Figure> {
    let of = |of: &dyn Fn(&Line<'_>) -> bool| -> Vec<(f64, f64)> {
        let judged = lines.iter().filter(|line| of(line) && line.scored.count >= COUNT_MIN);
        judged.map(|line| (line.scored.coverage, line.scored.strict)).collect()
    };
    let short = of(&|line| line.is_short());
    let day = of(&|line| line.scored.is_day && line.spans >= DAYS_MIN);
    let settled = lines.iter().filter(|line| line.is_short() && !line.scored.settled.is_nan());
    let settled = settled.map(|line| (line.scored.settled, line.scored.settled)).collect();
    let mut figures = Vec::new();
    for (name, values, low, high) in [
        ("up to 60 ticks", short, 0.76, 0.84),
        ("a day ahead", day, 0.70, 0.90),
        ("some time after a level shift", settled, 0.76, 0.84),
    ] {
        // What lies at an end is within when asked for the least, and outside when asked for the most.
        let least = values.iter().map(|(with_ends, _)| *with_ends).reduce(f64::min);
        let most = values.iter().map(|(_, without)| *without).reduce(f64::max);
        if let (Some(least), Some(most)) = (least, most) {
            let named = |end: &str| format!("coverage {name}, {end}");
            figures.push(Figure::bounded(&named("least"), least, "", Bound::AtLeast(low)));
            figures.push(Figure::bounded(&named("most"), most, "", Bound::AtMost(high)));
        }
    }
    figures
}
