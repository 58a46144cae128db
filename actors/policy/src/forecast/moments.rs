//! Where ticks lie on the clock.

use serde::{Deserialize, Serialize};

use crate::ids::Tick;

/// The moment at which one tick ended, from which those of all others follow.
///
/// Ticks are counted, not timed: after the clock was set, or when ticks are closed by hand, moments are
/// those that the newest tick has if all others lasted as long as they should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moments {
    /// A tick that is over.
    pub at: Tick,
    /// When it ended, in milliseconds since the Unix epoch.
    pub closed_ms: u64,
    /// Length of a tick in milliseconds.
    pub tick_ms: u64,
}

impl Moments {
    /// When a tick begins, in milliseconds since the Unix epoch; 0 for what would be before it.
    #[must_use]
    pub fn start_ms(&self, tick: Tick) -> u64 {
        let span_ms = |ticks: u64| ticks.saturating_mul(self.tick_ms);
        match tick.0.checked_sub(self.at.0 + 1) {
            Some(later) => self.closed_ms.saturating_add(span_ms(later)),
            None => self.closed_ms.saturating_sub(span_ms(self.at.0 + 1 - tick.0)),
        }
    }

    /// The first tick that ends after `ms`; never one before tick 0.
    #[must_use]
    pub fn tick_at(&self, ms: u64) -> Tick {
        let ticks = |span_ms: u64| span_ms / self.tick_ms.max(1);
        match ms.checked_sub(self.closed_ms) {
            Some(later_ms) => Tick((self.at.0 + 1).saturating_add(ticks(later_ms))),
            None => Tick((self.at.0 + 1).saturating_sub(ticks(self.closed_ms - ms - 1) + 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENTS: Moments = Moments { at: Tick(10), closed_ms: 50_000, tick_ms: 1_000 };

    #[test]
    fn the_tick_after_the_newest_one_begins_when_that_ended() {
        let starts = [9, 10, 11, 13].map(|tick| MOMENTS.start_ms(Tick(tick)));
        assert_eq!(starts, [48_000, 49_000, 50_000, 52_000]);
        let young = Moments { closed_ms: 500, ..MOMENTS };
        assert_eq!(young.start_ms(Tick(2)), 0);
    }

    #[test]
    fn every_moment_lies_in_the_tick_that_it_is_told_to_lie_in() {
        for ms in [41_000, 48_000, 48_999, 49_999, 50_000, 50_001, 51_999, 52_000] {
            let tick = MOMENTS.tick_at(ms);
            let (start, end) = (MOMENTS.start_ms(tick), MOMENTS.start_ms(tick.next()));
            assert!((start..end).contains(&ms), "{ms}: {tick:?} from {start} to {end}");
        }
        assert_eq!(MOMENTS.tick_at(0), Tick(0));
        assert_eq!(Moments::default().tick_at(0), Tick(1));
    }
}
