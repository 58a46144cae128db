//! What the LSTM member promises: it learns, it repeats itself, and it never makes numbers up.

use foreshard_policy::ids::Tick;

use super::*;

const SEASON: usize = 12;

fn config() -> LstmConfig {
    LstmConfig { hidden: 12, window: 16, horizon: 4, batch: 16, ..LstmConfig::default() }
}

/// Two series with the same rhythm and other levels, and a ripple so that no two seasons are equal.
fn season(ticks: usize) -> Window {
    let wave = |level: f64, t: usize| {
        let phase = std::f64::consts::TAU * (t % SEASON) as f64 / SEASON as f64;
        (level * (1.1 + phase.sin()) * (1.0 + 0.05 * ((t * 7 % 5) as f64 - 2.0))).round()
    };
    let series = [40.0, 300.0].map(|level| (0..ticks).map(|t| wave(level, t)).collect());
    Window { at: Tick(ticks as u64 - 1), season_ticks: Some(SEASON), series: series.into() }
}

/// What was known at tick `at`.
fn until(window: &Window, at: usize) -> Window {
    let series = window.series.iter().map(|s| s[..=at].to_vec()).collect();
    Window { at: Tick(at as u64), season_ticks: window.season_ticks, series }
}

fn error_of(window: &Window, from: usize, forecast: impl Fn(&Window) -> Vec<Vec<f64>>) -> f64 {
    let mut error = 0.0;
    for at in from..window.series[0].len() - 4 {
        for (series, calls) in window.series.iter().zip(forecast(&until(window, at))) {
            for (ahead, call) in calls.into_iter().enumerate() {
                error += (series[at + 1 + ahead].ln_1p() - call.ln_1p()).abs();
            }
        }
    }
    error
}

#[test]
fn it_learns_a_season_and_beats_the_last_value() {
    let window = season(SEASON * 20);
    let train = until(&window, SEASON * 16);
    let mut member = Lstm::new(config()).unwrap();
    let report = member.fit(&train, 120).unwrap();
    assert_eq!((report.steps, member.steps()), (120, 120));
    assert!(report.loss_last < 0.5 * report.loss_first, "{report:?}");

    let learned = error_of(&window, SEASON * 16, |known| {
        let forecast = member.forecast(known, 4).unwrap();
        forecast.iter().map(|calls| calls.iter().map(|q| q.q50).collect()).collect()
    });
    let last = error_of(&window, SEASON * 16, |known| {
        known.series.iter().map(|s| vec![*s.last().unwrap(); 4]).collect()
    });
    assert!(learned < 0.4 * last, "learned {learned}, last value {last}");
}

#[test]
fn it_learns_without_a_known_season_too() {
    let window = Window { season_ticks: None, ..season(SEASON * 16) };
    let mut member = Lstm::new(config()).unwrap();
    let report = member.fit(&window, 150).unwrap();
    assert!(report.loss_last < 0.5 * report.loss_first, "{report:?}");
}

#[test]
fn what_was_saved_forecasts_the_same_to_the_last_bit() {
    let window = season(SEASON * 6);
    let mut member = Lstm::new(config()).unwrap();
    member.fit(&window, 10).unwrap();
    let bytes = member.save().unwrap();
    let mut other = Lstm::new(LstmConfig { seed: 99, ..config() }).unwrap();
    assert_ne!(other.forecast(&window, 11).unwrap(), member.forecast(&window, 11).unwrap());
    other.load(&bytes).unwrap();
    assert_eq!(other.forecast(&window, 11).unwrap(), member.forecast(&window, 11).unwrap());
    assert_eq!(other.steps(), 10);

    let mut wider = Lstm::new(LstmConfig { hidden: 13, ..config() }).unwrap();
    let error = wider.load(&bytes).unwrap_err().to_string();
    assert!(error.ends_with("is (12, 16, 4); the settings ask for (13, 16, 4)"), "{error}");
}

#[test]
fn a_long_forecast_goes_on_from_its_own_median_in_the_right_phase() {
    let window = season(SEASON * 6);
    let mut member = Lstm::new(config()).unwrap();
    member.fit(&window, 20).unwrap();
    let long = member.forecast(&window, 8).unwrap();
    let mut later = window.clone();
    later.at.0 += 4;
    for (series, calls) in later.series.iter_mut().zip(&long) {
        series.extend(calls[..4].iter().map(|q| q.q50));
    }
    let rest = member.forecast(&later, 4).unwrap();
    assert_eq!(rest, long.iter().map(|calls| calls[4..].to_vec()).collect::<Vec<_>>());
}

#[test]
fn equal_seeds_learn_the_same_weights_and_others_do_not() {
    let window = season(SEASON * 6);
    let fitted = |seed| {
        let mut member = Lstm::new(LstmConfig { seed, ..config() }).unwrap();
        member.fit(&window, 6).unwrap();
        member.fit(&window, 4).unwrap();
        member.save().unwrap()
    };
    assert_eq!(fitted(1), fitted(1));
    assert_ne!(fitted(1), fitted(2));
}

#[test]
fn who_has_learned_nothing_or_sees_too_little_answers_with_the_last_value() {
    let mut window = season(SEASON * 4);
    window.series.push(vec![5.0; TICKS_MIN - 1]);
    window.series.push(vec![]);
    let mut member = Lstm::new(config()).unwrap();
    let flat = |value| vec![Quantiles { q10: value, q50: value, q90: value }; 3];
    let fresh = member.forecast(&window, 3).unwrap();
    assert_eq!(fresh[0], flat(*window.series[0].last().unwrap()));

    member.fit(&window, 2).unwrap();
    let fitted = member.forecast(&window, 3).unwrap();
    assert_ne!(fitted[0], fresh[0]);
    assert_eq!(fitted[2..], [flat(5.0), flat(0.0)]);
}

#[test]
fn constant_empty_and_huge_series_give_finite_ordered_quantiles() {
    let series = vec![vec![0.0; 60], vec![1e12; 60], vec![3.0; 60], {
        let mut spike = vec![0.0; 60];
        spike[59] = 1e9;
        spike
    }];
    let window = Window { at: Tick(59), season_ticks: Some(7), series };
    let mut member = Lstm::new(config()).unwrap();
    let report = member.fit(&window, 8).unwrap();
    assert!(report.loss_last.is_finite());
    for calls in member.forecast(&window, 9).unwrap() {
        assert_eq!(calls.len(), 9);
        for q in calls {
            assert!(0.0 <= q.q10 && q.q10 <= q.q50 && q.q50 <= q.q90, "{q:?}");
            assert!(q.q90.is_finite(), "{q:?}");
        }
    }
}

#[test]
fn of_very_many_series_the_busiest_get_the_network() {
    let mut window = season(SEASON * 4);
    window.series.truncate(1);
    let quiet = |i: usize| (0..40).map(|t| ((t + i) % 2) as f64).collect::<Vec<f64>>();
    window.series.extend((0..SERIES_MAX).map(quiet));
    let places = busiest(&window, TICKS_MIN);
    assert_eq!((places.len(), places[0]), (SERIES_MAX, 0));
    assert!(places.is_sorted() && !places.contains(&SERIES_MAX));
}

#[test]
fn nothing_to_learn_from_is_no_error() {
    let window = Window { at: Tick(0), season_ticks: None, series: vec![vec![1.0], vec![]] };
    let mut member = Lstm::new(config()).unwrap();
    assert_eq!(member.fit(&window, 5).unwrap(), FitReport::default());
    assert_eq!(member.fit(&season(60), 0).unwrap(), FitReport::default());
    assert_eq!(member.steps(), 0);
}

#[test]
fn wrong_bytes_are_refused_and_leave_the_member_as_it_was() {
    let window = season(SEASON * 4);
    let mut member = Lstm::new(config()).unwrap();
    member.fit(&window, 2).unwrap();
    let good = member.save().unwrap();
    let at = good.windows(6).position(|bytes| bytes == br#""lstm\"#).unwrap();
    let mut foreign = good.clone();
    foreign[at + 1..at + 5].copy_from_slice(b"tree");
    let cases: [(&[u8], &str); 6] = [
        (b"", "too few"),
        (&foreign, "it belongs to member tree"),
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

#[test]
fn a_setting_out_of_bounds_is_named_and_big_tensors_are_refused() {
    let error = Lstm::new(LstmConfig { window: 1, ..config() }).unwrap_err();
    assert_eq!(error.to_string(), "lstm.window is 1; it must be 2 to 2048");
    let error = Lstm::new(LstmConfig { learning_rate: f64::NAN, ..config() }).unwrap_err();
    assert!(error.to_string().starts_with("lstm.learning-rate is NaN"), "{error}");
    let wide = LstmConfig { hidden: 100, batch: 256, ..config() };
    assert!(Lstm::new(wide).unwrap_err().to_string().contains("more than one thread"));
    let widest = policy::LstmConfig::default().with_hidden(127).unwrap();
    let config = LstmConfig::for_settings(&widest, 4_096);
    assert_eq!((config.batch, config.horizon), (9, 16));
    Lstm::new(config).unwrap();
}
