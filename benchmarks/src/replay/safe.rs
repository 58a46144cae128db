//! Is it safe to be wrong? The load of the replay, with forecasts that are turned upside down or drawn by
//! chance, beside an engine that does nothing ahead.
//!
//! The engines take turns by windows of some minutes. Being wrong may cost waiting (work ahead of calls that
//! nobody makes), and must cost little; and as soon as it is seen that steps of a kind bring nothing, none
//! are taken any more.

use anyhow::Result;

use super::arm::{Arm, Played};
use super::score::Judged;
use super::stage::{Size, WINDOW};
use super::{regime, trace};
use crate::program::{Found, Options};
use crate::report::{Bound, Figure};

const ARMS: [Arm; 4] = [Arm::Off, Arm::Reactive, Arm::Inverted, Arm::Random];

/// Runs the benchmark.
///
/// # Errors
/// A file that is no load, or what an engine says.
pub async fn run(options: Options) -> Result<Found> {
    let size = Size::SCARCE.or_quick(options.quick);
    let judged = regime(&trace(&options)?, size, &ARMS, WINDOW, &options).await?;
    Ok((
        judged.arms.iter().map(|arm| super::score::row("wrong", &judged, arm)).collect(),
        figures(&judged),
    ))
}

fn figures(judged: &Judged) -> Vec<Figure> {
    let over = |arm, level| judged.time(arm, level) / judged.time(Arm::Reactive, level);
    let mut all = Vec::new();
    for arm in [Arm::Inverted, Arm::Random] {
        let name = |what: &str| format!("{what}_{}", arm.name());
        let frozen = judged.arm(arm).map_or(f64::NAN, |played| windows_until_frozen(played) as f64);
        let at_most = |name: &str, value, unit, bound| {
            Figure::bounded(name, value, unit, Bound::AtMost(bound))
        };
        all.push(at_most(&name("p50_over_static"), over(arm, 0.5), "ratio", 1.02));
        all.push(at_most(&name("p99_over_static"), over(arm, 0.99), "ratio", 1.1));
        all.push(at_most(&name("windows_until_frozen"), frozen, "windows", 3.0));
    }
    let different = judged.answers_different() as f64;
    all.push(Figure::bounded("answers_different", different, "answers", Bound::Exactly(0.0)));
    all
}

/// Windows until no step is taken ahead any more; all of them if that goes on to the end.
fn windows_until_frozen(played: &Played) -> usize {
    let last = played.ahead.iter().rposition(|steps| *steps > 0);
    last.map_or(0, |minute| minute / WINDOW + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_ahead_are_frozen_after_the_last_window_that_has_one() {
        let frozen = |ahead: &[usize]| {
            let mut played = Played { ahead: vec![0; 6 * WINDOW], ..Played::default() };
            ahead.iter().for_each(|minute| played.ahead[*minute] = 2);
            windows_until_frozen(&played)
        };
        assert_eq!(frozen(&[]), 0);
        assert_eq!(frozen(&[0, WINDOW - 1]), 1);
        assert_eq!(frozen(&[0, 2 * WINDOW]), 3);
        assert_eq!(frozen(&[6 * WINDOW - 1]), 6);
    }
}
