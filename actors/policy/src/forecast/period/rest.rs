//! Parts of a series: what is slower or faster, a season, a shift of level.

/// A series without what is slower than `ticks` and without what is faster than `short` ticks.
pub(super) fn band(series: &[f64], ticks: f64, short: usize) -> Vec<f64> {
    let sums = prefix_sums(series);
    let fast = moving_mean(&sums, short.max(1));
    let slow = moving_mean(&sums, (ticks.round() as usize).max(2));
    fast.into_iter().zip(slow).map(|(fast, slow)| fast - slow).collect()
}

/// Correlation of a series with itself `lag` ticks ago; zero if nothing varies.
pub(super) fn correlation(series: &[f64], lag: usize) -> f64 {
    let Some(later) = series.get(lag..) else { return 0.0 };
    let (mut both, mut first, mut second) = (0.0, 0.0, 0.0);
    for (a, b) in series.iter().zip(later) {
        both += a * b;
        first += a * a;
        second += b * b;
    }
    let power = (first * second).sqrt();
    if power > 1e-12 { both / power } else { 0.0 }
}

/// What is left of a series when a season is taken off: the mean of each phase, times a gain that may
/// grow or shrink with time.
pub(super) fn without_season(series: &[f64], ticks: f64) -> Vec<f64> {
    let fast = band(series, ticks, 1);
    let phases = (ticks.round() as usize).max(1);
    let phase = |tick: usize| {
        let turns = tick as f64 / ticks;
        (((turns - turns.floor()) * phases as f64) as usize).min(phases - 1)
    };
    let mut means = vec![(0.0, 0_u32); phases];
    for (tick, value) in fast.iter().enumerate() {
        let (sum, count) = &mut means[phase(tick)];
        *sum += value;
        *count += 1;
    }
    let profile = |tick: usize| {
        let (sum, count) = means[phase(tick)];
        sum / f64::from(count.max(1))
    };
    let middle = series.len() as f64 / 2.0;
    let (mut even, mut odd, mut both, mut of_even, mut of_odd) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (tick, value) in fast.iter().enumerate() {
        let (steady, growing) = (profile(tick), profile(tick) * (tick as f64 / middle - 1.0));
        even += steady * steady;
        both += steady * growing;
        odd += growing * growing;
        of_even += steady * value;
        of_odd += growing * value;
    }
    let determinant = even * odd - both * both;
    let (steady, growing) = if determinant > 1e-9 * even * odd {
        (
            (of_even * odd - of_odd * both) / determinant,
            (of_odd * even - of_even * both) / determinant,
        )
    } else {
        (1.0, 0.0)
    };
    let gain = |tick: usize| steady + growing * (tick as f64 / middle - 1.0);
    series.iter().enumerate().map(|(tick, value)| value - gain(tick) * profile(tick)).collect()
}

/// A series without its abrupt shifts of level, if they are few.
///
/// The mean of the next few ticks less that of the last ones must be far from what it mostly is, and the
/// level must stay. What shifts more than `shifts_max` times is left as it is: it may be a season that
/// jumps.
pub(super) fn without_shifts(series: &[f64], width: usize, shifts_max: usize) -> Vec<f64> {
    let mut rest = series.to_vec();
    let mut seen = vec![];
    while let Some((tick, height)) = shift(&rest, width, &seen) {
        if seen.len() == shifts_max {
            return series.to_vec();
        }
        rest[tick..].iter_mut().for_each(|value| *value -= height);
        seen.push(tick);
    }
    rest
}

/// Multiple of the usual difference between neighbouring ticks that makes a shift.
const UNUSUAL: f64 = 6.0;

/// Where the most unusual shift begins, and how high it is by the means of `width` ticks on both sides.
fn shift(series: &[f64], width: usize, seen: &[usize]) -> Option<(usize, f64)> {
    if series.len() < 4 * width || width < 2 {
        return None;
    }
    let sums = prefix_sums(series);
    let rise = |tick: usize, width: usize| {
        let (from, to) = (tick.saturating_sub(width), (tick + width).min(series.len()));
        let before = (sums[tick] - sums[from]) / (tick - from) as f64;
        (sums[to] - sums[tick]) / (to - tick) as f64 - before
    };
    let near = (width / 8).clamp(2, 4);
    let ticks = width..=series.len() - width;
    let mut sizes: Vec<f64> = ticks.clone().map(|tick| rise(tick, near).abs()).collect();
    let middle = sizes.len() / 2;
    let usual = *sizes.select_nth_unstable_by(middle, f64::total_cmp).1 / 0.6745;
    let is_new = |tick: &usize| seen.iter().all(|seen| seen.abs_diff(*tick) > width / 2);
    let tick = ticks
        .filter(is_new)
        .max_by(|a, b| rise(*a, near).abs().total_cmp(&rise(*b, near).abs()))?;
    let (sudden, height) = (rise(tick, near), rise(tick, width));
    let is_unusual = sudden.abs() > UNUSUAL * usual;
    // An outage is over soon; a shift is not.
    let stays = |rise: f64| rise * sudden.signum() >= 0.5 * sudden.abs();
    (is_unusual && stays(height) && stays(rise(tick, 4 * width))).then_some((tick, height))
}

/// A series whose values farther from its median than `deviations` are drawn in to there: an outage says
/// nothing about seasons.
pub(super) fn without_outliers(series: &mut [f64], deviations: f64) {
    let Some(median) = median(series.to_vec()) else { return };
    let away: Vec<f64> = series.iter().map(|value| (value - median).abs()).collect();
    let mean = away.iter().sum::<f64>() / away.len() as f64;
    let deviation = self::median(away).map_or(0.0, |median| median / 0.6745).max(mean);
    let (low, high) = (median - deviations * deviation, median + deviations * deviation);
    series.iter_mut().for_each(|value| *value = value.max(low).min(high));
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    let middle = values.len().checked_sub(1)? / 2;
    Some(*values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

fn prefix_sums(series: &[f64]) -> Vec<f64> {
    let mut sum = 0.0;
    let sums = series.iter().map(|value| {
        sum += value;
        sum
    });
    std::iter::once(0.0).chain(sums).collect()
}

/// Means of `width` values around each; at the ends of the nearest such.
fn moving_mean(sums: &[f64], width: usize) -> Vec<f64> {
    let ticks = sums.len() - 1;
    let width = width.min(ticks);
    (0..ticks)
        .map(|tick| {
            let from = tick.saturating_sub(width / 2).min(ticks - width);
            (sums[from + width] - sums[from]) / width as f64
        })
        .collect()
}
