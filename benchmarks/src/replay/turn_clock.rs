//! The clock of an engine that plays by turns: it stands still while others play, from the moment at which
//! what it learned was kept. Otherwise its loop would take the time in between for ticks without calls.

use std::sync::{Mutex, MutexGuard, PoisonError};

use foreshard_actors::ports::{Clock, SharedClock};

/// The clock; it stands until it is told to go on.
#[derive(Debug)]
pub(super) struct TurnClock {
    clock: SharedClock,
    stood: Mutex<Stood>,
}

#[derive(Clone, Copy, Debug)]
struct Stood {
    /// Nanoseconds that it stood still, without the present time.
    before_ns: u64,
    /// Since when it stands, if it does.
    since_ns: Option<u64>,
}

impl TurnClock {
    /// A clock that stands since `since_ns`, on `clock`.
    pub(super) fn standing_since(clock: SharedClock, since_ns: u64) -> Self {
        let stood = Mutex::new(Stood { before_ns: 0, since_ns: Some(since_ns) });
        Self { clock, stood }
    }

    pub(super) fn go_on(&self) {
        let mut stood = self.stood();
        if let Some(since_ns) = stood.since_ns.take() {
            stood.before_ns += self.clock.monotonic_ns().saturating_sub(since_ns);
        }
    }

    pub(super) fn stand(&self) {
        let now_ns = self.clock.monotonic_ns();
        self.stood().since_ns.get_or_insert(now_ns);
    }

    fn stood(&self) -> MutexGuard<'_, Stood> {
        self.stood.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stood_ns(&self) -> u64 {
        let Stood { before_ns, since_ns } = *self.stood();
        let now_ns = self.clock.monotonic_ns();
        before_ns + since_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns))
    }
}

impl Clock for TurnClock {
    fn now_ms(&self) -> u64 {
        self.clock.now_ms().saturating_sub(self.stood_ns() / 1_000_000)
    }

    fn monotonic_ns(&self) -> u64 {
        self.clock.monotonic_ns().saturating_sub(self.stood_ns())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Debug)]
    struct Told(AtomicU64);

    impl Clock for Told {
        fn now_ms(&self) -> u64 {
            self.monotonic_ns() / 1_000_000
        }

        fn monotonic_ns(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn it_goes_on_where_it_stood() {
        let told = Arc::new(Told(AtomicU64::new(9_000_000_000)));
        let clock = TurnClock::standing_since(told.clone(), 5_000_000_000);
        let later = |seconds: u64| {
            told.0.fetch_add(seconds * 1_000_000_000, Ordering::Relaxed);
            (clock.now_ms(), clock.monotonic_ns() / 1_000_000)
        };
        assert_eq!(later(7), (5_000, 5_000));
        clock.go_on();
        assert_eq!(later(2), (7_000, 7_000));
        clock.stand();
        clock.stand();
        assert_eq!(later(96), (7_000, 7_000));
        clock.go_on();
        clock.go_on();
        assert_eq!(later(1), (8_000, 8_000));
    }
}
