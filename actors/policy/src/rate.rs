//! How fast bytes may be moved: a bucket of tokens, kept as the time at which it will be full again. And whose
//! turn it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::fair::FairLine;

/// Bytes of so many nanoseconds may be moved at once after a rest.
const BURST_NS: u64 = 1_000_000_000;

/// Longest wait for a turn, in nanoseconds: who would wait for longer is refused.
pub const WAIT_NS_MAX: u64 = 60_000_000_000;

/// What was moved to one place, against what may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// When all that was granted will have been moved at the rate that is allowed.
    moved_at_ns: u64,
}

impl Rate {
    /// How long to wait, in nanoseconds, until more may be moved.
    #[must_use]
    pub fn wait(&self, now_ns: u64) -> u64 {
        self.moved_at_ns.saturating_sub(now_ns).saturating_sub(BURST_NS)
    }

    /// How long to wait, in nanoseconds, until `bytes` more may be moved at `bytes_per_s` (0: as fast as one
    /// likes); they count from now on. The clock is any that does not go back.
    ///
    /// After a rest the bytes of one second may go at once, and the last of them may be as many as one likes: a
    /// partition is moved as a whole, and those after it wait for longer.
    ///
    /// # Errors
    /// The wait, if it is above [`WAIT_NS_MAX`]: then nothing counts.
    pub fn take(&mut self, bytes: u64, bytes_per_s: u64, now_ns: u64) -> Result<u64, u64> {
        if bytes_per_s == 0 {
            return Ok(0);
        }
        let begun = self.moved_at_ns.max(now_ns);
        let wait = self.wait(now_ns);
        if wait > WAIT_NS_MAX {
            return Err(wait);
        }
        let ns = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_s);
        self.moved_at_ns = begun.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX));
        Ok(wait)
    }
}

/// Who moves bytes to one place next, where several tables want to. Those of one table come in their order.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    rate: Rate,
    line: FairLine,
    /// Table and bytes of those who wait, by ticket.
    waiting: BTreeMap<u64, (Arc<str>, u64)>,
}

impl Turns {
    /// Somebody wants to move `bytes` for a table that has `part` of the rate while others wait, 0 to 1.
    /// Answers the ticket.
    ///
    /// # Errors
    /// The wait in nanoseconds, if it would be above [`WAIT_NS_MAX`].
    pub fn join(
        &mut self,
        (table, part): (&Arc<str>, f64),
        bytes: u64,
        (bytes_per_s, now_ns): (u64, u64),
    ) -> Result<u64, u64> {
        if bytes_per_s > 0 {
            let ns = |bytes: u64| bytes as f64 / bytes_per_s as f64 * 1e9;
            let all = ns(self.waiting.values().map(|(_, bytes)| bytes).sum());
            let own = self.waiting.values().filter(|(of, _)| of == table);
            let own = ns(own.map(|(_, bytes)| bytes).sum()) / part.max(0.001);
            let wait = self.rate.wait(now_ns).saturating_add(own.min(all) as u64);
            if wait > WAIT_NS_MAX {
                return Err(wait);
            }
        }
        let ticket = self.line.join(table, part);
        self.waiting.insert(ticket, (Arc::clone(table), bytes));
        Ok(ticket)
    }

    /// Whether it is the turn of a ticket, which is then gone; else the nanoseconds after which it may be.
    ///
    /// # Errors
    /// Those nanoseconds: of a ticket that is not next, when that one may go.
    pub fn go(&mut self, ticket: u64, (bytes_per_s, now_ns): (u64, u64)) -> Result<(), u64> {
        if bytes_per_s == 0 {
            self.leave(ticket);
            return Ok(());
        }
        let wait = self.rate.wait(now_ns);
        if wait > 0 || self.line.next().map(|(next, _)| next) != Some(ticket) {
            return Err(wait);
        }
        if let Some((_, bytes)) = self.waiting.remove(&ticket) {
            self.line.serve(bytes as f64);
            // Its wait is over, so it is not refused.
            let _no_wait = self.rate.take(bytes, bytes_per_s, now_ns);
        }
        Ok(())
    }

    /// Who does not want to any more.
    pub fn leave(&mut self, ticket: u64) {
        if self.waiting.remove(&ticket).is_some() {
            self.line.leave(ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_second_goes_at_once_and_what_follows_waits_for_its_turn() {
        let mut rate = Rate::default();
        let mut take = |bytes, at| rate.take(bytes, 100, at * SECOND);
        assert_eq!(take(60, 5), Ok(0));
        assert_eq!(take(500, 5), Ok(0), "within the first second");
        assert_eq!(take(1, 5), Ok(4_600_000_000));
        assert_eq!(take(1, 20), Ok(0), "all of it is over");
    }

    #[test]
    fn who_would_wait_for_too_long_is_refused_and_does_not_count() {
        let mut rate = Rate::default();
        assert_eq!(rate.take(6_300, 100, 0), Ok(0));
        assert_eq!(rate.take(1, 100, 0), Err(62 * SECOND));
        assert_eq!(rate.take(1, 100, 2 * SECOND), Ok(60 * SECOND));
        assert_eq!(rate.take(u64::MAX, 0, 0), Ok(0), "no bound");
        assert_eq!(rate.take(u64::MAX, 1, 90 * SECOND), Ok(0));
        assert!(rate.take(1, 1, 91 * SECOND).is_err());
    }

    fn table(name: &str) -> Arc<str> {
        name.into()
    }

    /// Moves what waits at 100 bytes a second, looking when it is told to; answers when each went, in s.
    fn moved(turns: &mut Turns, mut tickets: Vec<(u64, &'static str)>) -> Vec<(&'static str, u64)> {
        let (mut now, mut went) = (0, vec![]);
        while !tickets.is_empty() {
            let before = tickets.len();
            let mut soonest = SECOND;
            tickets.retain(|(ticket, name)| match turns.go(*ticket, (100, now)) {
                Ok(()) => {
                    went.push((*name, now / SECOND));
                    false
                }
                Err(wait) => {
                    soonest = soonest.min(wait.max(1));
                    true
                }
            });
            if tickets.len() == before {
                now += soonest;
            }
        }
        went
    }

    #[test]
    fn a_table_with_many_copies_does_not_hold_up_the_copy_of_another() {
        let mut turns = Turns::default();
        let mut tickets = vec![];
        for _ in 0..12 {
            tickets.push((turns.join((&table("many"), 0.5), 400, (100, 0)).unwrap(), "many"));
        }
        tickets.push((turns.join((&table("one"), 0.5), 400, (100, 0)).unwrap(), "one"));
        let went = moved(&mut turns, tickets);
        let one = went.iter().position(|(name, _)| *name == "one").unwrap();
        assert!(one <= 2, "it was number {one}: {went:?}");
        let last = went.last().unwrap().1;
        assert_eq!(last, 12 * 4 - 1, "and no more is moved than the rate allows");
        assert!(turns.waiting.is_empty() && turns.line.is_empty());
    }

    #[test]
    fn copies_of_one_table_wait_as_if_there_were_no_others_and_too_many_are_refused() {
        let (mut turns, mut rate) = (Turns::default(), Rate::default());
        let mut waits = vec![];
        let mut tickets = vec![];
        for _ in 0..20 {
            match turns.join((&table("t"), 0.4), 400, (100, 0)) {
                Ok(ticket) => tickets.push((ticket, "t")),
                Err(wait) => assert!(wait > WAIT_NS_MAX),
            }
            waits.extend(rate.take(400, 100, 0));
        }
        assert!(
            turns.join((&table("other"), 0.4), 400, (100, 0)).is_ok(),
            "it does not wait behind"
        );
        // One burst more or less: what waits has not begun.
        assert!(waits.len().abs_diff(tickets.len()) <= 1, "{} and {}", waits.len(), tickets.len());
        let mut plain = Turns::default();
        let few: Vec<_> =
            (0..9).map(|_| (plain.join((&table("t"), 1.0), 400, (100, 0)).unwrap(), "t")).collect();
        let went: Vec<u64> = moved(&mut plain, few).into_iter().map(|(_, at)| at).collect();
        let before: Vec<u64> = waits.iter().take(9).map(|wait| wait / SECOND).collect();
        assert_eq!(went, before);
    }

    #[test]
    fn who_leaves_holds_nobody_up_and_without_a_rate_nobody_waits() {
        let mut turns = Turns::default();
        let first = turns.join((&table("t"), 1.0), 900, (100, 0)).unwrap();
        let second = turns.join((&table("t"), 1.0), 1, (100, 0)).unwrap();
        assert_eq!(turns.go(second, (100, 0)), Err(0), "it is not next");
        turns.leave(first);
        assert_eq!(turns.go(second, (100, 0)), Ok(()));
        let third = turns.join((&table("t"), 1.0), u64::MAX, (0, 0)).unwrap();
        assert_eq!(turns.go(third, (0, 0)), Ok(()));
    }

    proptest! {
        #[test]
        fn in_no_span_of_time_is_more_moved_than_the_rate_a_second_and_one_piece_allow(
            pieces in prop::collection::vec((0_u64..3 * SECOND, 1_u64..500), 1..60),
        ) {
            let (mut rate, mut now, mut moved) = (Rate::default(), 0, Vec::new());
            for (pause, bytes) in pieces {
                now += pause;
                if let Ok(wait) = rate.take(bytes, 100, now) {
                    // In turn, as those who wait go on.
                    moved.push((now + wait, bytes));
                }
            }
            for (first, (start, _)) in moved.iter().enumerate() {
                let mut bytes = 0;
                for (at, more) in &moved[first..] {
                    let seconds = at.saturating_sub(*start) as f64 / SECOND as f64;
                    // What came before this piece, which may be as large as it likes.
                    prop_assert!(bytes as f64 <= 100.0 * (seconds + 1.0) + 500.0 + 1e-3);
                    bytes += more;
                }
            }
        }
    }
}
