//! How many tasks of a node compute functions at the same time.
//!
//! A permit is held while a slice of some 20 ms is computed. A function that loops never gives its permit
//! back, so whoever waits in vain takes back what was lent too long ago: the node then computes more than
//! it should, but nobody waits for ever.
//!
//! Background work is behind: it takes a permit only if no user task waits for one.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::ports::SharedClock;

/// A permit that was lent so long ago is lent to somebody else, too.
const OVERDUE: Duration = Duration::from_millis(500);

/// How often somebody who waits looks for such permits.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Permits of one node.
#[derive(Debug)]
pub struct Permits {
    free: Arc<Semaphore>,
    max: Mutex<u32>,
    lent: Mutex<Lent>,
    /// User tasks that wait for a permit.
    waiting: watch::Sender<usize>,
}

/// Counts a user task for as long as it waits.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn at(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting = waiting.saturating_sub(1));
    }
}

#[derive(Debug, Default)]
struct Lent {
    next: u64,
    /// Since when, in nanoseconds.
    permits: BTreeMap<u64, (u64, OwnedSemaphorePermit)>,
}

/// The right to compute, until it is dropped.
#[derive(Debug)]
pub struct Permit<'a> {
    permits: &'a Permits,
    number: u64,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.permits.lent().permits.remove(&self.number);
    }
}

impl Permits {
    pub(super) fn new(max: u32) -> Self {
        let free = Arc::new(Semaphore::new(max as usize));
        Self { free, max: Mutex::new(max), lent: Mutex::default(), waiting: watch::Sender::new(0) }
    }

    fn lent(&self) -> MutexGuard<'_, Lent> {
        // Every change is one insert or one removal.
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub(super) fn max(&self) -> u32 {
        *self.max.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how many there are. Fewer take effect as they are given back.
    pub(super) fn set_max(&self, wanted: u32) {
        let mut now = self.max.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted > *now {
            self.free.add_permits((wanted - *now) as usize);
            *now = wanted;
        } else {
            let taken = self.free.forget_permits((*now - wanted) as usize);
            *now -= u32::try_from(taken).unwrap_or(0);
        }
    }

    /// Waits for a permit, for a user task.
    pub async fn acquire(&self, clock: &SharedClock) -> Permit<'_> {
        let _waiting = Waiting::at(&self.waiting);
        self.take(clock).await
    }

    /// Waits for a permit that no user task waits for, for background work.
    pub async fn acquire_behind(&self, clock: &SharedClock) -> Permit<'_> {
        let mut waiting = self.waiting.subscribe();
        loop {
            // The sender lives in self.
            drop(waiting.wait_for(|waiting| *waiting == 0).await);
            let permit = self.take(clock).await;
            if *self.waiting.borrow() == 0 {
                return permit;
            }
            // Somebody came while this one waited: given back, it goes to whoever is next.
        }
    }

    async fn take(&self, clock: &SharedClock) -> Permit<'_> {
        let mut free = pin!(Arc::clone(&self.free).acquire_owned());
        loop {
            // The semaphore is never closed.
            if let Ok(Ok(permit)) = tokio::time::timeout(LOOK_EVERY, &mut free).await {
                let mut lent = self.lent();
                let number = lent.next;
                lent.next += 1;
                lent.permits.insert(number, (clock.monotonic_ns(), permit));
                return Permit { permits: self, number };
            }
            self.take_back(clock.monotonic_ns());
        }
    }

    /// Takes back what was lent too long ago.
    fn take_back(&self, now: u64) {
        let overdue = u64::try_from(OVERDUE.as_nanos()).unwrap_or(u64::MAX);
        self.lent().permits.retain(|_, (since, _)| now.saturating_sub(*since) < overdue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Clock;

    /// Goes as tokio's own.
    #[derive(Debug)]
    struct Tokio(tokio::time::Instant);

    impl Clock for Tokio {
        fn now_ms(&self) -> u64 {
            0
        }

        fn monotonic_ns(&self) -> u64 {
            self.0.elapsed().as_nanos() as u64
        }
    }

    #[tokio::test(start_paused = true)]
    async fn background_work_takes_a_permit_only_when_no_user_task_waits_for_one() {
        let permits = Permits::new(1);
        let clock: SharedClock = Arc::new(Tokio(tokio::time::Instant::now()));
        let first = permits.acquire(&clock).await;
        let mut behind = pin!(permits.acquire_behind(&clock));
        assert!(futures::poll!(&mut behind).is_pending());
        let mut user = pin!(permits.acquire(&clock));
        assert!(futures::poll!(&mut user).is_pending());
        drop(first);
        assert!(futures::poll!(&mut behind).is_pending(), "it waited first, but a user task waits");
        let std::task::Poll::Ready(second) = futures::poll!(&mut user) else {
            panic!("the user task has to wait for background work")
        };
        assert!(futures::poll!(&mut behind).is_pending());
        drop(second);
        assert!(futures::poll!(&mut behind).is_ready(), "nobody waits any more");
        assert_eq!(permits.free.available_permits(), 1, "and it was given back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_that_does_not_come_back_is_lent_again() {
        let permits = Permits::new(1);
        let clock: SharedClock = Arc::new(Tokio(tokio::time::Instant::now()));
        let first = permits.acquire(&clock).await;
        permits.take_back(clock.monotonic_ns());
        assert_eq!(permits.free.available_permits(), 0, "it is not overdue yet");
        let second = permits.acquire(&clock).await;
        assert!(clock.monotonic_ns() >= OVERDUE.as_nanos() as u64);
        assert_eq!(permits.lent().permits.len(), 1);
        drop(first);
        assert_eq!(permits.free.available_permits(), 0, "it was given back before");
        drop(second);
        assert_eq!(permits.free.available_permits(), 1);
    }
}
