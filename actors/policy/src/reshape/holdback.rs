//! When copies and moves that even loads out are held back, so that what they spare can be compared with what
//! happens without them.
//!
//! A node that is not relieved by one step is by the next one: so all of them are held back for a while, on
//! all nodes, in windows that are twice as long as what a step is worth is looked at. Which windows those are
//! depends on their number only. Repairs, drains, copies of what is hotter than a replica may be and what
//! people ask for are never held back, nor is anything before so many steps were judged that it tells something.

use super::situation::Situation;
use super::{Planned, Reason, balance};
use crate::config::LoopConfig;
use crate::control::Control;
use crate::ids::Tick;
use crate::random::SplitMix64;

/// How many times the horizon a window has.
const HORIZONS: u64 = 2;

/// The last tick of the window in which steps are held back at `now`; none if they are taken.
fn window(now: Tick, config: &LoopConfig) -> Option<Tick> {
    let ticks = HORIZONS * config.horizon_ticks() as u64;
    let number = now.0 / ticks;
    let is_held_back = SplitMix64::new(number).uniform() < config.feedback().holdback_share();
    is_held_back.then(|| Tick((number + 1) * ticks - 1))
}

/// The tick until which steps are held back now; none if they are taken.
pub(super) fn until(situation: &Situation<'_>) -> Option<Tick> {
    let known = &situation.state.known;
    let is_told = known.contains("copy") || known.contains("move");
    let is_ours = situation.planning_for == Control::Auto;
    window(situation.now, situation.config).filter(|_| is_told && is_ours)
}

/// Notes what would be taken were it not held back until `until`, at most `most` steps.
pub(super) fn steps(situation: &mut Situation<'_>, most: usize, until: Tick) {
    let (ticks, share) =
        (situation.config.horizon_ticks() as u64, situation.config.feedback().holdback_share());
    let mut steps = Vec::new();
    balance::steps(situation, most, &mut steps);
    let held_back = steps.into_iter().filter_map(|planned| {
        let expected = planned.reason.expected()?;
        let inputs = format!("{}; {}", planned.inputs, planned.reason);
        let reason = Reason::HeldBack { until, ticks, share, expected };
        Some(Planned { reason, inputs, ..planned })
    });
    situation.held_back = held_back.collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_large_a_share_of_the_windows_is_held_back_and_each_as_a_whole() {
        for share in [0.0, 0.02, 0.5] {
            let feedback = LoopConfig::default().feedback().clone();
            let feedback = feedback.with_holdback_share(share).unwrap();
            let config = LoopConfig::default().with_feedback(feedback).unwrap();
            let windows: Vec<bool> =
                (0..20_000).map(|at| window(Tick(at * 24), &config).is_some()).collect();
            let held = windows.iter().filter(|is_held| **is_held).count() as f64 / 20_000.0;
            assert!((held - share).abs() < 0.01, "{held}");
            for (at, is_held) in windows.iter().enumerate().take(100) {
                let first = at as u64 * 24;
                let last = is_held.then_some(Tick(first + 23));
                assert!((first..first + 24).all(|tick| window(Tick(tick), &config) == last));
            }
        }
    }
}
