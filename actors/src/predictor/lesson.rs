//! What learns apart from the forecasts: copies of the members, and the predictor of the next calls.

use std::sync::Arc;
use std::time::Duration;

use foreshard_policy::config::LoopConfig;
use foreshard_policy::forecast::ensemble::{Learnt, Lesson, MemberStanding};
use foreshard_policy::forecast::{Effort, FitReport, ForecastError, Moments};

use super::{LEARN_SHARE_MAX, PredictorArgs};
use crate::background::{behind_others, pauses};
use crate::board::MemberFit;
use crate::next_calls::{Called, NextPredictor};

/// What a lesson is given besides the members.
#[derive(Debug)]
pub(super) struct Pupils {
    next_calls: NextPredictor,
    /// Training steps that the next lesson may make.
    steps_max: u32,
}

/// A lesson that is over.
#[derive(Debug)]
pub struct Taught {
    pub(super) lesson: Lesson,
    pub(super) pupils: Box<Pupils>,
    pub(super) reports: Learnt,
}

impl Pupils {
    pub(super) fn new(config: &LoopConfig) -> Result<Self, ForecastError> {
        let next_calls = NextPredictor::new(config.lstm().enabled())?;
        Ok(Self { next_calls, steps_max: config.lstm().steps_per_tick() })
    }

    /// Learns from what was `called` since the last lesson, and lets the members learn.
    pub(super) fn learn(
        mut self: Box<Self>,
        mut lesson: Lesson,
        called: &[Called],
        moments: Moments,
        args: &PredictorArgs,
    ) -> Taught {
        let (board, config) = (&args.board, args.board.config.load_full());
        if let Err(error) = self.next_calls.observe(called) {
            tracing::warn!(code = error.code(), %error, "next calls are expected without the network");
        }
        let expected = self.next_calls.expected(moments.closed_ms);
        board.next_calls.store(Arc::new(expected));
        let started_ns = args.clock.monotonic_ns();
        let (share, gauge) = (config.lstm().busy_share(), &*board.traffic);
        let (clock, steps_max) = (&*args.clock, self.steps_max);
        let next_calls = &mut self.next_calls;
        let (reports, learned) = behind_others(|| {
            let pause = pauses(share, gauge, clock, std::thread::sleep);
            let effort = Effort::steps(steps_max).with_pauses(&pause);
            (lesson.learn(effort), next_calls.learn(effort))
        });
        if let Err(error) = learned {
            tracing::warn!(code = error.code(), %error, "the next calls were not learned from");
        }
        for (member, report) in &reports {
            if let Err(error) = report {
                tracing::warn!(member, code = error.code(), %error, "member did not learn");
            }
        }
        if args.timed {
            let took = Duration::from_nanos(args.clock.monotonic_ns() - started_ns);
            let share = took.as_secs_f64() * 1e3 / config.tick_ms() as f64;
            self.steps_max = steps_within(self.steps_max, share, config.lstm().steps_per_tick());
        }
        Taught { lesson, pupils: self, reports }
    }
}

/// What is known of each member after it learned once more.
pub(super) fn fits(
    before: &[MemberFit],
    standings: Vec<MemberStanding>,
    reports: Vec<(&'static str, Result<FitReport, ForecastError>)>,
) -> Vec<MemberFit> {
    let fit = |standing: MemberStanding| {
        let is_its = |name: &str| name == standing.member;
        let known = before.iter().find(|fit| is_its(fit.standing.member));
        let known = known.map(|fit| fit.last).unwrap_or_default();
        match reports.iter().find(|(member, _)| is_its(member)) {
            // One that had nothing to do says so with zeros.
            Some((_, Ok(last))) if *last != FitReport::default() => {
                MemberFit { standing, last: *last, error: None }
            }
            Some((_, Err(error))) => {
                MemberFit { standing, last: known, error: Some(error.to_string()) }
            }
            _ => MemberFit { standing, last: known, error: None },
        }
    };
    standings.into_iter().map(fit).collect()
}

/// Training steps for the next round, after `steps` took `share` of a tick: fewer at once, more slowly.
fn steps_within(steps: u32, share: f64, steps_max: u32) -> u32 {
    if share > LEARN_SHARE_MAX {
        return ((f64::from(steps) * LEARN_SHARE_MAX / share) as u32)
            .clamp(1.min(steps_max), steps_max);
    }
    (steps + 1).min(steps_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_that_takes_too_much_of_a_tick_is_cut_at_once_and_grows_back_slowly() {
        assert_eq!(steps_within(100, 0.5, 100), 50);
        assert_eq!(steps_within(50, 0.1, 100), 51);
        assert_eq!(steps_within(100, 0.1, 100), 100);
        assert_eq!(steps_within(2, 90.0, 100), 1);
        assert_eq!(steps_within(0, 90.0, 0), 0);
    }
}
