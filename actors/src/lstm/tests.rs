//! What the LSTM member promises: it learns, it repeats itself, and it never makes numbers up.

use foreshard_policy::forecast::Past;
use foreshard_policy::ids::Tick;

use super::*;

const SEASON: usize = 12;
const SEASONS: [usize; 1] = [SEASON];
const HORIZONS: [usize; 3] = [1, 4, 12];

fn config() -> LstmConfig {
    LstmConfig { hidden: 8, window: 16, batch: 12, asked: 2, ..LstmConfig::default() }
}

/// Two series with the same rhythm and other levels, and a ripple so that no two seasons are equal.
fn pasts(ticks: usize) -> Vec<Past> {
    let wave = |level: f64, t: usize| {
        let phase = std::f64::consts::TAU * (t % SEASON) as f64 / SEASON as f64;
        (level * (1.1 + phase.sin()) * (1.0 + 0.05 * ((t * 7 % 5) as f64 - 2.0))).round()
    };
    [40.0, 300.0].map(|level| Past::new((0..ticks).map(|t| wave(level, t)))).into()
}

/// Calls that follow from the last ones, but not along a line: the logistic map.
fn bent(ticks: usize) -> Past {
    let mut x = 0.3_f64;
    Past::new((0..ticks).map(|_| {
        x = 3.9 * x * (1.0 - x);
        100.0 * x
    }))
}

/// Shows `learn` what was known of `pasts` after `ticks` ticks.
fn shown<T>(pasts: &[Past], ticks: usize, learn: impl FnOnce(&Window<'_>) -> T) -> T {
    let series: Vec<Series<'_>> =
        (10..).zip(pasts).map(|(id, past)| past.series(ticks, id, &SEASONS)).collect();
    let at = Tick(ticks as u64 - 1);
    learn(&Window { at, tick_ms: 60_000, epoch_ms: 0, series: &series })
}

fn fit(member: &mut Lstm, pasts: &[Past], ticks: usize, steps: u32) -> FitReport {
    shown(pasts, ticks, |window| member.fit(window, &HORIZONS, Effort::steps(steps)).unwrap())
}

fn forecast(member: &mut Lstm, pasts: &[Past], ticks: usize) -> Vec<Vec<Quantiles>> {
    shown(pasts, ticks, |window| member.forecast(window, &HORIZONS).unwrap())
}

fn fitted(pasts: &[Past], ticks: usize, steps: u32) -> Lstm {
    let mut member = Lstm::new(config()).unwrap();
    fit(&mut member, pasts, ticks, steps);
    member
}

#[test]
fn it_learns_a_season_and_beats_the_last_value() {
    let pasts = pasts(SEASON * 24);
    let mut member = fitted(&pasts, SEASON * 20, 40);
    let losses = &member.progress().unwrap().losses;
    assert!(losses[..2].iter().all(|loss| *loss < 0.5), "{losses:?}");
    let (mut learned, mut last) = (0.0, 0.0);
    for ticks in SEASON * 20..SEASON * 24 - 4 {
        let answers = forecast(&mut member, &pasts, ticks);
        for (past, answer) in pasts.iter().zip(answers) {
            let [now, then] = [ticks, ticks + 4].map(|ticks| past.series(ticks, 0, &[]).last());
            learned += answer[1].pinball(then);
            last += Quantiles::exactly(now).pinball(then);
        }
    }
    assert!(learned < 0.4 * last, "learned {learned}, last value {last}");
}

#[test]
fn steps_of_training_lessen_the_loss_where_a_line_does_not_do() {
    let pasts = [bent(400)];
    let mut member = Lstm::new(LstmConfig { learning_rate: 0.02, ..config() }).unwrap();
    let report = fit(&mut member, &pasts, 400, 100);
    assert_eq!((report.steps, member.steps()), (100, 100));
    assert!(report.loss_last < report.loss_first, "{report:?}");
}

#[test]
fn what_was_saved_forecasts_the_same_to_the_last_bit() {
    let pasts = pasts(SEASON * 8);
    let mut member = fitted(&pasts, SEASON * 7, 20);
    let mut other = Lstm::new(LstmConfig { seed: 99, ..config() }).unwrap();
    other.load(&member.save().unwrap()).unwrap();
    assert_eq!(other.progress(), member.progress());
    for ticks in SEASON * 7..SEASON * 8 {
        // The states of one were carried to here, those of the other begin at the first of them.
        let carried = forecast(&mut member, &pasts, ticks);
        if ticks % 5 == 0 {
            assert_eq!(forecast(&mut other, &pasts, ticks), carried);
        }
    }

    let mut wider = Lstm::new(LstmConfig { hidden: 13, ..config() }).unwrap();
    let error = wider.load(&member.save().unwrap()).unwrap_err().to_string();
    assert!(error.ends_with("is (8, 16); the settings ask for (13, 16)"), "{error}");
}

#[test]
fn learning_that_was_interrupted_goes_on_as_if_it_had_not_been() {
    let pasts = pasts(SEASON * 9);
    let mut whole = fitted(&pasts, SEASON * 8, 30);
    let mut member = Lstm::new(config()).unwrap();
    member.load(&fitted(&pasts, SEASON * 8, 30).save().unwrap()).unwrap();
    for member in [&mut whole, &mut member] {
        fit(member, &pasts, SEASON * 9, 25);
    }
    assert_eq!(whole.save().unwrap(), member.save().unwrap());
    assert_eq!(whole.steps(), 55);
}

#[test]
fn equal_seeds_learn_the_same_weights_and_others_do_not() {
    let pasts = pasts(SEASON * 6);
    let saved = |seed| {
        let mut member = Lstm::new(LstmConfig { seed, ..config() }).unwrap();
        fit(&mut member, &pasts, SEASON * 6, 6);
        fit(&mut member, &pasts, SEASON * 6, 4);
        member.save().unwrap()
    };
    assert_eq!(saved(1), saved(1));
    let weights = |bytes: Vec<u8>| bytes[bytes.len() - 4_096..].to_vec();
    assert_ne!(weights(saved(1)), weights(saved(2)));
}

#[test]
fn who_has_learned_nothing_or_sees_too_little_says_nothing() {
    let mut pasts = pasts(SEASON * 6);
    let mut member = Lstm::new(config()).unwrap();
    assert_eq!(forecast(&mut member, &pasts, SEASON * 6), [vec![], vec![]]);
    pasts.push(Past::new(vec![5.0; TICKS_MIN - 1]));
    pasts.push(Past::default());
    fit(&mut member, &pasts, SEASON * 6, 2);
    let lengths: Vec<usize> =
        forecast(&mut member, &pasts, SEASON * 6).iter().map(Vec::len).collect();
    assert_eq!(lengths, [3, 3, 0, 0]);
}

#[test]
fn constant_empty_huge_and_broken_series_give_finite_ordered_quantiles() {
    let mut spike = vec![0.0; 60];
    spike[59] = 1e9;
    let mut broken = vec![f64::NAN; 60];
    broken[30] = f64::INFINITY;
    broken[40] = -5.0;
    let all = [vec![0.0; 60], vec![1e12; 60], vec![3.0; 60], spike, broken];
    let pasts: Vec<Past> = all.into_iter().map(Past::new).collect();
    let mut member = Lstm::new(config()).unwrap();
    let report = fit(&mut member, &pasts, 60, 25);
    assert!(report.loss_last.is_finite() && report.steps == 25);
    for answer in forecast(&mut member, &pasts, 60) {
        assert_eq!(answer.len(), HORIZONS.len());
        for q in answer {
            assert!(0.0 <= q.q10 && q.q10 <= q.q50 && q.q50 <= q.q90, "{q:?}");
            assert!(q.q90.is_finite(), "{q:?}");
        }
    }
}

#[test]
fn learning_that_gets_worse_is_taken_back_and_rests() {
    let pasts = pasts(SEASON * 30);
    let mut member = Lstm::new(LstmConfig { learning_rate: 1.0, ..config() }).unwrap();
    let report = fit(&mut member, &pasts, SEASON * 20, 400);
    let progress = member.progress().unwrap().clone();
    assert_eq!((progress.frozen_since, progress.reverts), (Some(Tick(239)), 1), "{progress:?}");
    assert!(report.steps < 400);
    assert!(progress.losses.iter().all(|loss| *loss < 1.0), "{progress:?}");

    assert_eq!(fit(&mut member, &pasts, SEASON * 20 + 10, 400).steps, 0);
    assert!(fit(&mut member, &pasts, SEASON * 20 + 15, 400).steps > 0, "there is more to learn");
}

#[test]
fn when_the_past_has_doubled_a_fresh_network_is_tried() {
    let pasts = pasts(SEASON * 20);
    let mut member = fitted(&pasts, SEASON * 5, 3);
    let started = |member: &Lstm| member.progress().unwrap().started_ticks as usize;
    fit(&mut member, &pasts, SEASON * 10 - 1, 1);
    assert_eq!(started(&member), SEASON * 5);
    fit(&mut member, &pasts, SEASON * 10, 1);
    assert_eq!(started(&member), SEASON * 10);
    assert_eq!(member.steps(), 5);
}

#[test]
fn a_horizon_between_two_heads_is_answered_by_both() {
    let pasts = pasts(SEASON * 8);
    let mut member = fitted(&pasts, SEASON * 8, 5);
    shown(&pasts, SEASON * 8, |window| {
        let view = View::new(window, &window.series[0], 0);
        let net = &member.training.as_ref().unwrap().best;
        let shown = vec![0.1; 8];
        let by = |losses: &[f32], horizon| ahead(net, losses, &[view], &shown, horizon).unwrap()[0];
        let rows = |horizon| by(&[0.5, 1.0, 0.9], horizon);
        let worse = by(&[2.0, 1.0, 0.9], 1);
        for (worse, row) in worse.iter().zip(rows(1)) {
            assert!((worse - row / 16.0).abs() < 1e-6, "a head that is worse than none");
        }
        assert_eq!(by(&[f32::NAN, 1.0, 0.9], 1), [0.0; 3]);
        let mut inputs = Vec::new();
        view.ahead(2, &mut inputs);
        let by_head = |head| net.quantiles(head, &shown, &mut inputs.clone()).unwrap()[0];
        let (lower, upper, between) = (by_head(0), by_head(1), rows(2));
        for q in 0..3 {
            assert!((between[q] - (lower[q] + upper[q]) / 2.0).abs() < 1e-5, "2 is half way to 4");
        }
        view.ahead(40, &mut inputs);
        assert_eq!(rows(40).len(), 3, "beyond the last head, that head answers");
    });
    let all = shown(&pasts, SEASON * 8, |window| member.forecast(window, &[1, 2, 4, 40]).unwrap());
    assert_eq!(all[0].len(), 4);
}

#[test]
fn many_horizons_share_few_heads() {
    assert_eq!(heads(&[1, 6, 60]), [1, 6, 60]);
    assert_eq!(heads(&(1..=32).collect::<Vec<_>>()), [1, 2, 4, 8, 16, 32]);
    assert!(heads(&[]).is_empty());
}

#[test]
fn of_very_many_series_the_busiest_get_the_network() {
    let (quiet, busy) = (Past::new(vec![1.0; 40]), Past::new(vec![9.0; 40]));
    let mut series: Vec<_> = (0..SERIES_MAX as u64).map(|id| quiet.series(40, id, &[])).collect();
    series.insert(3, busy.series(40, 1 << 40, &[]));
    let window = Window { at: Tick(39), tick_ms: 1_000, epoch_ms: 0, series: &series };
    let places = busiest(&window);
    assert_eq!(places.len(), SERIES_MAX);
    assert!(places.is_sorted() && places.contains(&3) && !places.contains(&SERIES_MAX));
}

#[test]
fn nothing_to_learn_from_is_no_error() {
    let mut member = Lstm::new(config()).unwrap();
    assert_eq!(fit(&mut member, &[Past::new([1.0]), Past::default()], 1, 5), FitReport::default());
    assert_eq!(fit(&mut member, &pasts(60), 60, 0), FitReport::default());
    assert_eq!(member.steps(), 0);
    let mut other = Lstm::new(config()).unwrap();
    other.load(&member.save().unwrap()).unwrap();
    assert!(other.progress().is_none());
}

#[test]
fn wrong_bytes_are_refused_and_leave_the_member_as_it_was() {
    let pasts = pasts(SEASON * 5);
    let mut member = fitted(&pasts, SEASON * 5, 2);
    let good = member.save().unwrap();
    let at = good.windows(6).position(|bytes| bytes == br#""lstm\"#).unwrap();
    let mut foreign = good.clone();
    foreign[at + 1..at + 5].copy_from_slice(b"tree");
    let mut broken = good.clone();
    let end = broken.len();
    broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let cases: [(&[u8], &str); 7] = [
        (b"", "too few"),
        (&foreign, "it belongs to member tree"),
        (&broken, "holds a value that is no number"),
        (b"not safetensors at all", "the most is"),
        (&good[..40], "too few"),
        (&good[..good.len() - 4], "state of member lstm is unusable"),
        (b"\x02\0\0\0\0\0\0\0{}", "no foreshard metadata"),
    ];
    for (bytes, says) in cases {
        let error = member.load(bytes).unwrap_err();
        assert_eq!(error.code(), "FS-FORECAST-1");
        assert!(error.to_string().contains(says), "{error}");
    }
    assert_eq!(member.save().unwrap(), good);
}
