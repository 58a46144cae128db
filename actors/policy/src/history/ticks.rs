//! Decides how many ticks are over when a timer goes off, whatever the clock did meanwhile.

use super::timeline::Irregular;

/// Follows the clock from one tick to the next.
#[derive(Clone, Debug)]
pub struct TickClock {
    tick_ms: u64,
    ticks_max: u64,
    last_ms: Option<u64>,
    irregular: Irregular,
}

impl TickClock {
    /// For ticks of `tick_ms`. A jump ahead by more than `ticks_max` ticks is not followed: it would
    /// push out everything that is remembered.
    #[must_use]
    pub fn new(tick_ms: u64, ticks_max: u64) -> Self {
        Self { tick_ms: tick_ms.max(1), ticks_max, last_ms: None, irregular: Irregular::default() }
    }

    /// Ticks that are over now that the timer went off: one, as a rule. None if it went off twice;
    /// more if the process or the machine stood still, or the clock was set ahead; one if it was set
    /// back or very far ahead, for the timer knows better.
    pub fn due(&mut self, now_ms: u64) -> u64 {
        let Some(last_ms) = self.last_ms.replace(now_ms) else { return 1 };
        let Some(passed_ms) = now_ms.checked_sub(last_ms) else {
            self.irregular.clock_back += 1;
            return 1;
        };
        let ticks = passed_ms.saturating_add(self.tick_ms / 2) / self.tick_ms;
        if ticks == 0 {
            self.irregular.ticks_duplicate += 1;
            self.last_ms = Some(last_ms);
            return 0;
        }
        if ticks > self.ticks_max {
            self.irregular.clock_ahead += 1;
            return 1;
        }
        self.irregular.ticks_missing += ticks - 1;
        ticks
    }

    /// What was wrong with ticks so far.
    #[must_use]
    pub fn irregular(&self) -> Irregular {
        self.irregular
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    #[test]
    fn a_timer_that_is_a_little_early_or_late_ends_one_tick() {
        let mut clock = TickClock::new(1_000, 4_096);
        let ticks: Vec<u64> = [0, 1_000, 1_900, 3_300].map(|ms| clock.due(NOW + ms)).into();
        assert_eq!(ticks, [1; 4]);
        assert_eq!(clock.irregular(), Irregular::default());
    }

    #[test]
    fn ticks_that_nobody_closed_are_made_up_for_and_one_that_comes_twice_is_left_out() {
        let mut clock = TickClock::new(1_000, 4_096);
        // Two timers that waited together, after a stall.
        let ticks: Vec<u64> = [0, 7_200, 7_201, 7_203, 8_200].map(|ms| clock.due(NOW + ms)).into();
        assert_eq!(ticks, [1, 7, 0, 0, 1]);
        let irregular = clock.irregular();
        assert_eq!((irregular.ticks_missing, irregular.ticks_duplicate), (6, 2));
    }

    #[test]
    fn the_clock_may_go_back_or_years_ahead_and_the_ticks_go_on() {
        let mut clock = TickClock::new(1_000, 4_096);
        let hours = 3_600_000;
        let times = [NOW, NOW - 5 * hours, NOW - 5 * hours + 1_000, u64::MAX, NOW];
        assert_eq!(times.map(|now_ms| clock.due(now_ms)), [1; 5]);
        let irregular = clock.irregular();
        assert_eq!((irregular.clock_back, irregular.clock_ahead), (2, 1));
    }

    #[test]
    fn an_hour_ahead_is_an_hour_of_ticks_without_calls() {
        let mut clock = TickClock::new(1_000, 4_096);
        clock.due(NOW);
        assert_eq!(clock.due(NOW + 3_600_000), 3_600);
    }
}
