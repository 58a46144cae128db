//! What people announced is acted on.

use super::*;

#[test]
fn what_was_announced_is_made_ready_though_the_forecast_is_not_trusted() {
    let mut scene = Scene::new(2).with(0, &[0], 300.0).output(0, 5_000.0, 1_000, &[3.0; 8]);
    scene.forecast.trusted = false;
    scene.forecast.series.iter_mut().for_each(|series| series.calls_now = 0.0);
    assert_eq!(scene.plan().steps, []);
    scene.forecast.series.iter_mut().for_each(|series| series.announced = true);
    let steps = scene.plan().steps;
    assert!(matches!(steps[0].step, Step::Precompute { .. }), "{steps:?}");
    assert_eq!(scene.mode(Mode::Reactive).plan().steps, []);
}
