//! Tests of the search for seasons.

use super::*;

/// Uniform numbers in -1..1 that are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 11) as f64 / (1u64 << 53) as f64) * 2.0 - 1.0
    }

    /// About normal.
    fn normal(&mut self) -> f64 {
        (0..6).map(|_| self.roll()).sum::<f64>() / 1.414
    }
}

fn series(seed: u64, ticks: usize, mut next: impl FnMut(usize, &mut Dice) -> f64) -> Vec<f64> {
    let mut dice = Dice(seed * 7_919 + 1);
    (0..ticks).map(|tick| next(tick, &mut dice).max(0.0)).collect()
}

#[test]
fn a_noisy_day_is_found_to_the_tick() {
    for seed in 0..10 {
        let day = series(seed, 24 * 10, |tick, dice| {
            let phase = tick as f64 / 24.0 * std::f64::consts::TAU;
            50.0 + 40.0 * phase.sin() + 8.0 * dice.normal()
        });
        assert_eq!(find_season(&day), Some(24), "seed {seed}");
    }
}

#[test]
fn a_slow_rhythm_under_noise_is_found_nearly_to_the_tick() {
    let day = series(1, 288 * 6, |tick, dice| {
        let phase = tick as f64 / 288.0 * std::f64::consts::TAU;
        50.0 + 30.0 * phase.sin() + 12.0 * dice.normal()
    });
    let found = find_season(&day).unwrap();
    assert!(found.abs_diff(288) <= 6, "{found}");
}

#[test]
fn a_morning_rush_is_found() {
    let rush = series(
        2,
        40 * 4,
        |tick, dice| {
            if tick % 40 < 3 { 30.0 + 5.0 * dice.normal() } else { 0.0 }
        },
    );
    assert_eq!(find_season(&rush), Some(40));
}

#[test]
fn noise_of_any_colour_has_no_season() {
    let mut alarms = Vec::new();
    for seed in 0..30 {
        for ticks in [60, 300, 900] {
            let white = series(seed, ticks, |_, dice| 20.0 + 10.0 * dice.roll());
            let mut level = 0.0;
            let red = series(seed, ticks, |_, dice| {
                level = 0.9 * level + 5.0 * dice.normal();
                60.0 + level
            });
            let mut level = 500.0;
            let walk = series(seed, ticks, |_, dice| {
                level += 5.0 * dice.normal();
                level
            });
            let spikes = series(seed, ticks, |_, dice| if dice.roll() > 0.97 { 50.0 } else { 0.0 });
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
