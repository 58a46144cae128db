//! Tests of the booster as its callers see it.

use proptest::prelude::*;

use super::*;

/// Rows of uniform numbers in 0..1, and the target that `of` makes of each, with noise.
fn data(
    seed: u64,
    rows: usize,
    features: usize,
    of: impl Fn(&[f32], &mut SplitMix64) -> f64,
) -> (Matrix, Vec<f64>) {
    let mut random = SplitMix64::new(seed);
    let mut matrix = Matrix::with_capacity(features, rows);
    let mut targets = vec![];
    for _ in 0..rows {
        let row: Vec<f32> = (0..features).map(|_| random.uniform() as f32).collect();
        targets.push(of(&row, &mut random));
        matrix.push(&row).unwrap();
    }
    (matrix, targets)
}

fn quick() -> BoosterConfig {
    BoosterConfig { trees: 100, learning_rate: 0.1, leaves: 15, ..BoosterConfig::default() }
}

fn squared_error(booster: &Booster, matrix: &Matrix, targets: &[f64]) -> f64 {
    let errors = booster.predict_all(matrix).into_iter().zip(targets).map(|(a, b)| (a - b).powi(2));
    errors.sum::<f64>() / targets.len() as f64
}

fn variance(targets: &[f64]) -> f64 {
    let mean = targets.iter().sum::<f64>() / targets.len() as f64;
    targets.iter().map(|target| (target - mean).powi(2)).sum::<f64>() / targets.len() as f64
}

#[test]
fn curves_and_interactions_of_features_are_learned_and_hold_on_new_rows() {
    let of = |row: &[f32], random: &mut SplitMix64| {
        let row: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
        let friedman = 10.0 * (std::f64::consts::PI * row[0] * row[1]).sin()
            + 20.0 * (row[2] - 0.5).powi(2)
            + 10.0 * row[3]
            + 5.0 * row[4];
        friedman + 0.5 * random.normal()
    };
    let (matrix, targets) = data(1, 2_000, 10, of);
    let booster = Booster::fit(&matrix, &targets, &quick()).unwrap();
    let (matrix, targets) = data(2, 2_000, 10, of);
    let explained = 1.0 - squared_error(&booster, &matrix, &targets) / variance(&targets);
    assert!(explained > 0.93, "{explained}");
}

#[test]
fn a_quantile_is_what_its_share_of_the_targets_stays_below() {
    let of = |row: &[f32], random: &mut SplitMix64| {
        f64::from(row[0]) + (0.2 + f64::from(row[1])) * random.normal()
    };
    let (train, targets) = data(3, 4_000, 3, of);
    let (test, outcomes) = data(4, 4_000, 3, of);
    for (level, deviations) in [(0.1, -1.2816), (0.5, 0.0), (0.9, 1.2816)] {
        let config = BoosterConfig {
            loss: Loss::Pinball { level },
            leaves: 7,
            leaf_rows_min: 100,
            ..quick()
        };
        let booster = Booster::fit(&train, &targets, &config).unwrap();
        let below = booster.predict_all(&test).into_iter().zip(&outcomes).filter(|(q, y)| y <= &q);
        let below = below.count() as f64 / outcomes.len() as f64;
        assert!((below - level).abs() < 0.03, "{level}: {below}");
        for wide in [0.1_f32, 0.9] {
            let truth = 0.5 + (0.2 + f64::from(wide)) * deviations;
            let predicted = booster.predict(&[0.5, wide, 0.5]);
            assert!((predicted - truth).abs() < 0.25, "{level} {wide}: {predicted} for {truth}");
        }
    }
}

#[test]
fn missing_values_go_to_the_side_where_they_fit() {
    for missing_is_high in [false, true] {
        let mut random = SplitMix64::new(5);
        let mut matrix = Matrix::new(2);
        let mut targets = vec![];
        for _ in 0..2_000 {
            let value = random.uniform() as f32;
            let is_missing = random.uniform() < 0.3;
            let is_high = if is_missing { missing_is_high } else { value > 0.5 };
            matrix.push(&[if is_missing { f32::NAN } else { value }, 0.0]).unwrap();
            targets.push(if is_high { 1.0 } else { -1.0 });
        }
        let booster = Booster::fit(&matrix, &targets, &quick()).unwrap();
        let missing = if missing_is_high { 1.0 } else { -1.0 };
        for (value, truth) in [(0.2, -1.0), (0.8, 1.0), (f32::NAN, missing)] {
            let predicted = booster.predict(&[value, 0.0]);
            assert!((predicted - truth).abs() < 0.1, "{value}: {predicted} for {truth}");
        }
        assert_eq!(booster.predict(&[]), booster.predict(&[f32::NAN, f32::NAN]));
        assert_eq!(booster.predict(&[f32::INFINITY, 0.0]), booster.predict(&[f32::NAN, 0.0]));
    }
}

#[test]
fn that_a_value_is_missing_can_be_all_that_counts() {
    let (mut matrix, mut targets) = (Matrix::new(1), vec![]);
    for row in 0..500 {
        let is_missing = row % 3 == 0;
        matrix.push(&[if is_missing { f32::NAN } else { row as f32 }]).unwrap();
        targets.push(if is_missing { 3.0 } else { 1.0 });
    }
    let config = BoosterConfig { feature_share: 1.0, ..quick() };
    let booster = Booster::fit(&matrix, &targets, &config).unwrap();
    assert!((booster.predict(&[f32::NAN]) - 3.0).abs() < 0.1);
    assert!((booster.predict(&[123.0]) - 1.0).abs() < 0.1);
}

#[test]
fn sampling_rows_and_features_helps_where_there_is_little_to_see_in_much_noise() {
    let of = |row: &[f32], random: &mut SplitMix64| {
        row.iter().map(|value| f64::from(*value)).sum::<f64>() + 2.0 * random.normal()
    };
    let clean = |row: &[f32], _: &mut SplitMix64| row.iter().map(|value| f64::from(*value)).sum();
    let (train, targets) = data(6, 600, 20, of);
    let (test, outcomes) = data(7, 1_000, 20, clean);
    let error = |share: f64| {
        let config = BoosterConfig { row_share: share, feature_share: share, ..quick() };
        squared_error(&Booster::fit(&train, &targets, &config).unwrap(), &test, &outcomes)
    };
    assert!(error(0.5) < 0.95 * error(1.0), "{} {}", error(0.5), error(1.0));
}

#[test]
fn the_same_seed_gives_the_same_trees_and_another_seed_others() {
    let (matrix, targets) = data(8, 500, 5, |row, _| f64::from(row[0] * row[1]));
    let fit = |seed| Booster::fit(&matrix, &targets, &BoosterConfig { seed, ..quick() }).unwrap();
    assert_eq!(fit(1), fit(1));
    assert_ne!(fit(1), fit(2));
}

#[test]
fn a_constant_target_is_predicted_without_trees() {
    let (matrix, targets) = data(9, 100, 2, |_, _| 7.5);
    let booster = Booster::fit(&matrix, &targets, &quick()).unwrap();
    assert_eq!((booster.trees(), booster.predict(&[0.1, 0.2])), (0, 7.5));
    let one = Booster::fit(&data(9, 1, 2, |_, _| 0.1).0, &[0.5], &quick()).unwrap();
    assert_eq!(one.predict(&[0.3, 0.4]), 0.5, "one row");
}

#[test]
fn leaves_are_as_few_and_as_large_as_asked_for() {
    let (matrix, targets) = data(10, 400, 3, |row, random| f64::from(row[0]) + random.normal());
    let config = BoosterConfig { row_share: 1.0, leaf_rows_min: 30, trees: 10, ..quick() };
    let booster = Booster::fit(&matrix, &targets, &config).unwrap();
    for (tree, root) in booster.roots.iter().enumerate() {
        let mut rows = std::collections::BTreeMap::<u32, u32>::new();
        for row in matrix.iter() {
            let leaves = booster.leaves(std::iter::once((*root, row)));
            *rows.entry(leaves[0].to_bits()).or_default() += 1;
        }
        assert!(rows.len() <= config.leaves, "tree {tree} has {} leaves", rows.len());
        assert!(rows.values().all(|rows| *rows >= 30), "tree {tree}: {rows:?}");
    }
}

#[test]
fn a_stored_booster_predicts_the_same() {
    let (matrix, targets) = data(11, 500, 4, |row, random| f64::from(row[0]) + random.normal());
    let booster = Booster::fit(&matrix, &targets, &quick()).unwrap();
    let stored = serde_json::to_vec(&booster).unwrap();
    let read: Booster = serde_json::from_slice(&stored).unwrap();
    assert_eq!(read, booster);
    assert_eq!(read.predict_all(&matrix), booster.predict_all(&matrix));
}

type Change = fn(&mut serde_json::Value);

#[test]
fn a_stored_booster_that_was_changed_is_refused_with_a_reason() {
    let (matrix, targets) = data(12, 200, 2, |row, _| f64::from(row[0]));
    let config = BoosterConfig { trees: 2, ..quick() };
    let booster = Booster::fit(&matrix, &targets, &config).unwrap();
    let stored = serde_json::to_value(&booster).unwrap();
    let refusal = |change: Change| {
        let mut changed = stored.clone();
        change(&mut changed);
        serde_json::from_value::<Booster>(changed).unwrap_err().to_string()
    };
    let cases: [(Change, &str); 8] = [
        (|it| it["version"] = 9.into(), "of another version"),
        (|it| it["features"] = 0.into(), "number of features out of bounds"),
        (|it| it["features"] = 1.into(), "feature out of bounds"),
        (|it| it["lefts"][0] = 100_000.into(), "child out of bounds"),
        (|it| it["lefts"][3] = 1.into(), "child out of bounds"),
        (|it| it["roots"][1] = 100_000.into(), "root out of bounds"),
        (|it| it["thresholds"] = vec![0.5].into(), "columns differ in length"),
        (|it| it["base"] = 1e300.into(), "base is not finite"),
    ];
    for (change, reason) in cases {
        let said = refusal(change);
        assert!(said.contains(reason), "{said} for {reason}");
    }
}

#[test]
fn what_is_out_of_bounds_is_named() {
    let (matrix, targets) = data(13, 50, 2, |_, random| random.uniform());
    let said = |change: &dyn Fn(&mut BoosterConfig)| {
        let mut config = quick();
        change(&mut config);
        Booster::fit(&matrix, &targets, &config).unwrap_err().to_string()
    };
    assert_eq!(said(&|it| it.bins = 256), "bins is 256; it must be 2 to 255");
    assert_eq!(said(&|it| it.l2 = f64::NAN), "l2 is NaN; it must be finite and at least 0");
    assert_eq!(
        said(&|it| it.loss = Loss::Pinball { level: 1.0 }),
        "level is 1; it must be above 0, below 1"
    );
    let fit = |targets: &[f64]| Booster::fit(&matrix, targets, &quick()).unwrap_err();
    assert_eq!(fit(&[1.0]), BoosterError::Targets { targets: 1, rows: 50 });
    let mut broken = targets.clone();
    broken[7] = f64::INFINITY;
    assert_eq!(fit(&broken).code(), "FS-TREES-5");
    let empty = Booster::fit(&Matrix::new(2), &[], &quick()).unwrap_err();
    assert_eq!(empty, BoosterError::Shape { rows: 0, features: 2 });
    let row = Matrix::new(2).push(&[1.0]).unwrap_err();
    assert_eq!(row, BoosterError::Row { values: 1, features: 2 });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_numbers_give_finite_predictions_within_the_targets_reach(
        rows in prop::collection::vec((any::<f32>(), any::<f32>(), -1e6_f64..1e6), 1..120),
        row_share in 0.1_f64..1.0,
        leaf_rows_min in 1_usize..10,
        is_median in any::<bool>(),
    ) {
        let mut matrix = Matrix::new(2);
        rows.iter().for_each(|(a, b, _)| matrix.push(&[*a, *b]).unwrap());
        let targets: Vec<f64> = rows.iter().map(|(_, _, target)| *target).collect();
        let loss = if is_median { Loss::Pinball { level: 0.5 } } else { Loss::Squared };
        let config = BoosterConfig { trees: 20, row_share, leaf_rows_min, loss, ..quick() };
        let booster = Booster::fit(&matrix, &targets, &config).unwrap();
        let all = booster.predict_all(&matrix);
        for (predicted, row) in all.iter().zip(matrix.iter()) {
            prop_assert_eq!(*predicted, booster.predict(row));
            prop_assert!(predicted.abs() < 2e6, "{}", predicted);
        }
    }
}
