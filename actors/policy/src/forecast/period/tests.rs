//! Tests of the search for seasons.

use super::*;
use crate::random::SplitMix64;

/// A load per tick, never negative.
fn series(
    seed: u64,
    ticks: usize,
    mut next: impl FnMut(usize, &mut SplitMix64) -> f64,
) -> Vec<f64> {
    let mut random = SplitMix64::new(seed);
    (0..ticks).map(|tick| next(tick, &mut random).max(0.0)).collect()
}

/// A wave of some period, in -1..1.
fn wave(tick: usize, period: f64) -> f64 {
    (tick as f64 / period * std::f64::consts::TAU).sin()
}

/// What was found, in ticks, in ascending order.
fn found(series: &[f64]) -> Vec<usize> {
    let mut ticks: Vec<usize> = find_periods(series, 4).iter().map(|it| it.ticks).collect();
    ticks.sort_unstable();
    ticks
}

#[test]
fn a_noisy_day_is_found_to_the_tick() {
    for seed in 0..10 {
        let day = series(seed, 24 * 10, |tick, random| {
            let phase = tick as f64 / 24.0 * std::f64::consts::TAU;
            50.0 + 40.0 * phase.sin() + 8.0 * random.normal()
        });
        assert_eq!(find_season(&day), Some(24), "seed {seed}");
    }
}

#[test]
fn a_slow_rhythm_under_noise_is_found_nearly_to_the_tick() {
    let day = series(1, 288 * 6, |tick, random| {
        let phase = tick as f64 / 288.0 * std::f64::consts::TAU;
        50.0 + 30.0 * phase.sin() + 12.0 * random.normal()
    });
    let found = find_season(&day).unwrap();
    assert!(found.abs_diff(288) <= 6, "{found}");
}

#[test]
fn a_morning_rush_is_found() {
    let rush = series(
        2,
        40 * 4,
        |tick, random| {
            if tick % 40 < 3 { 30.0 + 5.0 * random.normal() } else { 0.0 }
        },
    );
    assert_eq!(find_season(&rush), Some(40));
}

#[test]
fn noise_of_any_colour_has_no_season() {
    let mut alarms = Vec::new();
    for seed in 0..30 {
        for ticks in [60, 300, 900] {
            let white = series(seed, ticks, |_, random| 20.0 + 10.0 * random.normal());
            let mut level = 0.0;
            let red = series(seed, ticks, |_, random| {
                level = 0.9 * level + 5.0 * random.normal();
                60.0 + level
            });
            let mut level = 500.0;
            let walk = series(seed, ticks, |_, random| {
                level += 5.0 * random.normal();
                level
            });
            let spikes =
                series(seed, ticks, |_, random| if random.uniform() > 0.985 { 50.0 } else { 0.0 });
            for (name, noise) in
                [("white", white), ("red", red), ("walk", walk), ("spikes", spikes)]
            {
                alarms.extend(find_season(&noise).map(|lag| (name, ticks, seed, lag)));
            }
        }
    }
    assert!(alarms.len() <= 2, "of 360: {alarms:?}");
}

#[test]
fn constant_short_and_broken_series_have_no_season() {
    assert_eq!(find_season(&[5.0; 500]), None);
    assert_eq!(find_season(&[0.0; 500]), None);
    assert_eq!(find_season(&[1.0, 2.0, 1.0, 2.0, 1.0, 2.0]), None);
    assert_eq!(find_season(&[]), None);
    assert_eq!(find_season(&[f64::NAN; 100]), None);
}

#[test]
fn two_outliers_make_no_season() {
    let mut calls = vec![1.0; 300];
    calls[100] = 500.0;
    calls[180] = 500.0;
    assert_eq!(find_season(&calls), None);
}

#[test]
fn a_day_and_a_week_are_both_found_though_the_level_shifts_and_grows() {
    for seed in 0..5 {
        for (shift, growth) in [(0.0, 0.0), (60.0, 0.0), (0.0, 0.05)] {
            let load = series(seed, 24 * 7 * 8, |tick, random| {
                let level = if tick > 900 { shift } else { growth * tick as f64 };
                let season = 20.0 * wave(tick, 24.0) + 15.0 * wave(tick, 168.0);
                100.0 + level + season + 5.0 * random.normal()
            });
            assert_eq!(found(&load), [24, 168], "seed {seed}, shift {shift}, growth {growth}");
        }
    }
}

#[test]
fn seasons_of_which_none_contains_the_other_are_told_apart() {
    for seed in 0..5 {
        let load = series(seed, 2_000, |tick, random| {
            100.0 + 20.0 * wave(tick, 50.0) + 15.0 * wave(tick, 170.0) + 6.0 * random.normal()
        });
        assert_eq!(found(&load), [50, 170], "seed {seed}");
    }
}

#[test]
fn harmonics_are_no_seasons_of_their_own() {
    for seed in 0..5 {
        let double = series(seed, 48 * 20, |tick, random| {
            let season = 10.0 * wave(tick, 48.0) + 18.0 * wave(tick, 24.0) + 6.0 * wave(tick, 16.0);
            100.0 + season + 5.0 * random.normal()
        });
        assert_eq!(found(&double), [48], "seed {seed}");
    }
}

#[test]
fn a_day_in_minutes_is_found_within_a_hundredth() {
    let load = series(3, 1_440 * 10, |tick, random| {
        let level = 6.0 + 0.5 * wave(tick, 1_440.0) + 0.2 * wave(tick, 720.0);
        (level + 0.2 * random.normal()).exp()
    });
    let ticks = found(&load);
    assert!(matches!(ticks[..], [ticks] if ticks.abs_diff(1_440) <= 14), "{ticks:?}");
}

#[test]
fn the_clearer_season_is_the_stronger_one_and_less_likely_by_chance() {
    let load = |noise: f64| {
        series(4, 24 * 30, |tick, random| 100.0 + 20.0 * wave(tick, 24.0) + noise * random.normal())
    };
    let (clear, faint) = (find_periods(&load(5.0), 1)[0], find_periods(&load(40.0), 1)[0]);
    assert!(clear.strength > 0.8 && faint.strength < 0.3, "{clear:?} {faint:?}");
    assert!(clear.p_value <= faint.p_value && faint.p_value < FALSE_ALARM, "{clear:?} {faint:?}");
}

#[test]
fn a_season_that_ended_no_longer_holds() {
    let load = |until: usize| {
        series(5, 24 * 20, |tick, random| {
            let season = if tick < until { 20.0 * wave(tick, 24.0) } else { 0.0 };
            100.0 + season + 8.0 * random.normal()
        })
    };
    let (holds, ended) = (load(1_000), load(24 * 10));
    let newest = 24 * 10;
    assert_eq!(still_holds(&holds[newest..], 24), Some(true));
    assert_eq!(still_holds(&ended[newest..], 24), Some(false));
    assert_eq!(still_holds(&holds[newest..], 31), Some(false), "another period");
    assert_eq!(still_holds(&holds[..60], 24), None, "too few ticks to say");
    assert_eq!(still_holds(&[f64::NAN; 100], 24), None);
}

#[test]
fn an_outage_does_not_hide_the_season() {
    let load = series(6, 24 * 14, |tick, random| {
        let load = 100.0 + 20.0 * wave(tick, 24.0) + 5.0 * random.normal();
        if (150..156).contains(&tick) { 0.0 } else { load }
    });
    assert_eq!(found(&load), [24]);
}
