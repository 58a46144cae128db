//! Decides how long background work waits between two of its pieces, so that queries do not feel it.

use std::time::Duration;

/// Without a query for so long, none is expected at once: between two of one client it is quieter for less.
const QUIET: Duration = Duration::from_millis(50);

/// Longest wait between two pieces: a piece that itself was held up says little about the next.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Longest time until the traffic is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Queries of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// That are under way.
    pub under_way: usize,
    /// That have begun so far.
    pub begun: u64,
}

/// Work in pieces that waits while there are queries, and all the same gets its share of the time.
#[derive(Clone, Copy, Debug)]
pub struct Courtesy {
    share: f64,
    /// When the piece under way began.
    began: Duration,
    /// When the next one begins at the latest, once the last one is over.
    latest: Option<Duration>,
    /// When it is quiet if no further query comes, and how many had begun by then.
    quiet: (Duration, u64),
}

impl Courtesy {
    /// Of work that begins at `now`, on any clock that only goes on. What was before is not known, so that
    /// counts as quiet if no query is under way.
    ///
    /// * `share`: of the time, in `(0, 1]`, that it gets however many queries there are.
    #[must_use]
    pub fn new(share: f64, now: Duration, traffic: Traffic) -> Self {
        Self { share, began: now, latest: None, quiet: (now, traffic.begun) }
    }

    /// How long to wait before this is asked again; `None` if the next piece may begin.
    ///
    /// A piece that took `t` is followed by the next one as soon as there was no query for 50 ms, and at
    /// the latest after `t * (1 - share) / share` or a second.
    pub fn wait(&mut self, now: Duration, traffic: Traffic) -> Option<Duration> {
        if traffic.under_way > 0 || traffic.begun != self.quiet.1 {
            self.quiet = (now + QUIET, traffic.begun);
        }
        let worked = now.saturating_sub(self.began);
        let owed = || worked.mul_f64((1.0 - self.share) / self.share).min(WAIT_MAX);
        let latest = *self.latest.get_or_insert_with(|| now + owed());
        let next = if traffic.under_way > 0 { latest } else { latest.min(self.quiet.0) };
        if now < next {
            return Some((next - now).min(LOOK_EVERY));
        }
        (self.began, self.latest) = (now, None);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: Duration = Duration::from_millis(10);

    /// Works for `time` in pieces of 10 ms with the traffic of each millisecond, and answers when each
    /// piece began, in ms.
    fn played(share: f64, ms: u64, traffic: impl Fn(u64) -> Traffic) -> Vec<u64> {
        let now = Duration::from_secs(1);
        let (mut now, mut courtesy) = (now, Courtesy::new(share, now, traffic(0)));
        let mut began = vec![0];
        let ms_of = |now: Duration| now.as_millis() as u64 - 1_000;
        while ms_of(now) < ms {
            now += PIECE;
            while let Some(wait) = courtesy.wait(now, traffic(ms_of(now))) {
                assert!(wait > Duration::ZERO && wait <= LOOK_EVERY);
                now += wait;
            }
            began.push(ms_of(now));
        }
        began
    }

    const ONE: Traffic = Traffic { under_way: 1, begun: 1 };

    #[test]
    fn work_goes_on_at_once_where_there_are_no_queries() {
        let began = played(0.05, 1_000, |_| Traffic::default());
        assert!(began.windows(2).all(|two| two[1] - two[0] == 10), "{began:?}");
    }

    #[test]
    fn work_waits_while_queries_run_and_gets_its_share_all_the_same() {
        let began = played(0.05, 10_000, |_| ONE);
        assert!(began[1..].windows(2).all(|two| two[1] - two[0] == 200), "{began:?}");
        let began = played(1.0, 1_000, |_| ONE);
        assert!(
            began.windows(2).all(|two| two[1] - two[0] == 10),
            "a share of all waits for nobody"
        );
    }

    #[test]
    fn work_does_not_begin_between_two_queries_of_a_client() {
        // 40 ms of each query, and 10 ms until the next.
        let client = |ms: u64| Traffic { under_way: usize::from(ms % 50 < 40), begun: 1 + ms / 50 };
        let began = played(0.05, 10_000, client);
        assert!(began[1..].windows(2).all(|two| two[1] - two[0] == 200), "{began:?}");
        // It is also seen that a query came and went between two looks.
        let short = |ms: u64| Traffic { under_way: 0, begun: 1 + ms / 20 };
        let began = played(0.05, 10_000, short);
        assert!(began[1..].windows(2).all(|two| two[1] - two[0] == 200), "{began:?}");
    }

    #[test]
    fn work_goes_on_soon_after_the_last_query() {
        let until = |ms: u64| if ms < 500 { ONE } else { Traffic { under_way: 0, begun: 1 } };
        let began = played(0.01, 1_000, until);
        let after: Vec<u64> = began.into_iter().filter(|ms| *ms >= 450).collect();
        assert!(after[0] <= 555, "{after:?}");
        assert!(after[1..].windows(2).all(|two| two[1] - two[0] == 10), "{after:?}");
    }

    #[test]
    fn a_piece_that_was_held_up_for_long_is_not_waited_for_as_long_again() {
        let mut courtesy = Courtesy::new(0.05, Duration::ZERO, ONE);
        let mut now = Duration::from_secs(100);
        while let Some(wait) = courtesy.wait(now, ONE) {
            now += wait;
        }
        assert_eq!(now, Duration::from_secs(101));
    }
}
