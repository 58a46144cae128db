//! How many tasks of a node compute functions at the same time, and who is next.
//!
//! A permit is held while a slice of some 20 ms is computed. A function that loops never gives its permit
//! back, so whoever waits in vain takes back what was lent too long ago: the node then computes more than
//! it should, but nobody waits for ever.
//!
//! Where user tasks of several tables wait, each table gets its part of the time; those of one table come in
//! the order in which they came. Background work is behind: it gets a permit only if no user task waits.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use foreshard_policy::budgets::Shares;
use foreshard_policy::fair::FairLine;
use tokio::sync::oneshot;

use crate::ports::SharedClock;

/// A permit that was lent so long ago is lent to somebody else, too.
const OVERDUE: Duration = Duration::from_millis(500);

/// How often somebody who waits looks for such permits.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a table is charged with when it gets a permit, in nanoseconds: about a slice. What it took is known
/// when the permit comes back.
const SLICE_NS: f64 = 20e6;

/// Permits of one node.
#[derive(Debug)]
pub struct Permits {
    lent: Mutex<Lent>,
    shares: ArcSwap<Shares>,
}

#[derive(Debug, Default)]
struct Lent {
    max: usize,
    next: u64,
    permits: BTreeMap<u64, Loan>,
    users: FairLine,
    /// Who waits in that line, by ticket.
    user: HashMap<u64, oneshot::Sender<u64>>,
    background: VecDeque<oneshot::Sender<u64>>,
}

/// One permit that was lent.
#[derive(Debug)]
struct Loan {
    /// For which table; background work is for none.
    table: Option<Arc<str>>,
    /// Since when, in nanoseconds.
    since: u64,
    /// Nanoseconds that the table was charged with already.
    charged: f64,
}

impl Lent {
    /// Lends a permit that nobody waits for.
    fn at_once(&mut self, table: Option<&Arc<str>>, now: u64) -> Option<u64> {
        let is_free = self.permits.len() < self.max;
        let table = table.cloned();
        (is_free && self.users.is_empty() && self.background.is_empty())
            .then(|| self.note(Loan { table, since: now, charged: 0.0 }))
    }

    fn note(&mut self, loan: Loan) -> u64 {
        let number = self.next;
        self.next += 1;
        self.permits.insert(number, loan);
        number
    }

    /// Lends what is free to those who are next.
    fn lend(&mut self, now: u64) {
        while self.permits.len() < self.max {
            let (table, waiting) = match self.users.serve(SLICE_NS) {
                Some((ticket, table)) => (Some(table), self.user.remove(&ticket)),
                None => match self.background.pop_front() {
                    Some(waiting) => (None, Some(waiting)),
                    None => return,
                },
            };
            let number = self.note(Loan { table, since: now, charged: SLICE_NS });
            // Who does not wait any more takes none.
            if waiting.is_none_or(|waiting| waiting.send(number).is_err()) {
                self.back(number, now);
            }
        }
    }

    /// Takes a permit back, if it is lent still.
    fn back(&mut self, number: u64, now: u64) {
        let loan = self.permits.remove(&number);
        if let Some(Loan { table: Some(table), since, charged }) = loan {
            self.users.charge(&table, now.saturating_sub(since) as f64 - charged);
        }
    }
}

/// The right to compute, until it is dropped.
#[derive(Debug)]
pub struct Permit<'a> {
    permits: &'a Permits,
    number: u64,
    clock: SharedClock,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let now = self.clock.monotonic_ns();
        let mut lent = self.permits.lent();
        lent.back(self.number, now);
        lent.lend(now);
    }
}

/// Somebody who waits. Who gives up leaves the line, and gives back what came at the same moment.
struct Waiter<'a> {
    permits: &'a Permits,
    clock: &'a SharedClock,
    /// None for background work.
    ticket: Option<u64>,
    coming: oneshot::Receiver<u64>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let now = self.clock.monotonic_ns();
        let mut lent = self.permits.lent();
        if let Some(ticket) = self.ticket
            && lent.user.remove(&ticket).is_some()
        {
            lent.users.leave(ticket);
        }
        self.coming.close();
        if let Ok(number) = self.coming.try_recv() {
            lent.back(number, now);
            lent.lend(now);
        }
    }
}

impl Permits {
    pub(super) fn new(max: u32) -> Self {
        let lent = Lent { max: max as usize, ..Lent::default() };
        Self { lent: Mutex::new(lent), shares: ArcSwap::default() }
    }

    fn lent(&self) -> MutexGuard<'_, Lent> {
        // Every change leaves the lists whole.
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub(super) fn max(&self) -> u32 {
        u32::try_from(self.lent().max).unwrap_or(u32::MAX)
    }

    /// Sets how many there are. Fewer take effect as they are given back.
    pub(super) fn set_max(&self, wanted: u32, clock: &SharedClock) {
        let mut lent = self.lent();
        lent.max = wanted as usize;
        lent.lend(clock.monotonic_ns());
    }

    /// Sets what part of the time each table gets while several wait.
    pub(super) fn set_shares(&self, shares: Arc<Shares>) {
        self.shares.store(shares);
    }

    /// What part each table gets.
    pub(super) fn shares(&self) -> Arc<Shares> {
        self.shares.load_full()
    }

    /// Waits for a permit, for a user task on a table.
    pub async fn acquire(&self, table: &Arc<str>, clock: &SharedClock) -> Permit<'_> {
        let (told, coming) = oneshot::channel();
        let ticket = {
            let mut lent = self.lent();
            if let Some(number) = lent.at_once(Some(table), clock.monotonic_ns()) {
                return Permit { permits: self, number, clock: Arc::clone(clock) };
            }
            let ticket = lent.users.join(table, self.shares.load().of(table).part);
            lent.user.insert(ticket, told);
            lent.lend(clock.monotonic_ns());
            ticket
        };
        self.wait(Waiter { permits: self, clock, ticket: Some(ticket), coming }).await
    }

    /// Waits for a permit that no user task waits for, for background work.
    pub async fn acquire_behind(&self, clock: &SharedClock) -> Permit<'_> {
        let (told, coming) = oneshot::channel();
        {
            let mut lent = self.lent();
            if let Some(number) = lent.at_once(None, clock.monotonic_ns()) {
                return Permit { permits: self, number, clock: Arc::clone(clock) };
            }
            lent.background.push_back(told);
            lent.lend(clock.monotonic_ns());
        }
        self.wait(Waiter { permits: self, clock, ticket: None, coming }).await
    }

    async fn wait(&self, mut waiter: Waiter<'_>) -> Permit<'_> {
        loop {
            let coming = tokio::time::timeout(LOOK_EVERY, &mut waiter.coming).await;
            // The other end is kept until it was told, so there is a number or no time left.
            if let Ok(Ok(number)) = coming {
                return Permit { permits: self, number, clock: Arc::clone(waiter.clock) };
            }
            self.take_back(waiter.clock.monotonic_ns());
        }
    }

    /// Takes back what was lent too long ago.
    fn take_back(&self, now: u64) {
        let overdue = u64::try_from(OVERDUE.as_nanos()).unwrap_or(u64::MAX);
        let mut lent = self.lent();
        let is_overdue = |since: u64| now.saturating_sub(since) >= overdue;
        let late = lent.permits.iter().filter(|(_, loan)| is_overdue(loan.since));
        let late: Vec<u64> = late.map(|(number, _)| *number).collect();
        late.into_iter().for_each(|number| lent.back(number, now));
        lent.lend(now);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use foreshard_policy::cluster::{ClusterView, PartitionView};
    use foreshard_policy::config::LoopConfig;
    use foreshard_policy::control::Controls;
    use foreshard_policy::ids::PartitionId;

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

    fn clock() -> SharedClock {
        Arc::new(Tokio(tokio::time::Instant::now()))
    }

    fn free(permits: &Permits) -> usize {
        let lent = permits.lent();
        lent.max.saturating_sub(lent.permits.len())
    }

    #[tokio::test(start_paused = true)]
    async fn background_work_takes_a_permit_only_when_no_user_task_waits_for_one() {
        let (permits, table) = (Permits::new(1), Arc::from("t"));
        let clock = clock();
        let first = permits.acquire(&table, &clock).await;
        let mut behind = pin!(permits.acquire_behind(&clock));
        assert!(futures::poll!(&mut behind).is_pending());
        let mut user = pin!(permits.acquire(&table, &clock));
        assert!(futures::poll!(&mut user).is_pending());
        drop(first);
        assert!(futures::poll!(&mut behind).is_pending(), "it waited first, but a user task waits");
        let Poll::Ready(second) = futures::poll!(&mut user) else {
            panic!("the user task has to wait for background work")
        };
        assert!(futures::poll!(&mut behind).is_pending());
        drop(second);
        assert!(futures::poll!(&mut behind).is_ready(), "nobody waits any more");
        assert_eq!(free(&permits), 1, "and it was given back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_that_does_not_come_back_is_lent_again() {
        let (permits, table) = (Permits::new(1), Arc::from("t"));
        let clock = clock();
        let first = permits.acquire(&table, &clock).await;
        permits.take_back(clock.monotonic_ns());
        assert_eq!(free(&permits), 0, "it is not overdue yet");
        let second = permits.acquire(&table, &clock).await;
        assert!(clock.monotonic_ns() >= OVERDUE.as_nanos() as u64);
        drop(first);
        assert_eq!(free(&permits), 0, "it was given back before");
        drop(second);
        assert_eq!(free(&permits), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_leaves_the_line_and_takes_no_permit_along() {
        let (permits, table) = (Permits::new(1), Arc::from("t"));
        let clock = clock();
        let first = permits.acquire(&table, &clock).await;
        let mut gone = Box::pin(permits.acquire(&table, &clock));
        let mut behind = Box::pin(permits.acquire_behind(&clock));
        let mut told = Box::pin(permits.acquire(&table, &clock));
        for waits in [&mut gone, &mut told] {
            assert!(futures::poll!(waits).is_pending());
        }
        assert!(futures::poll!(&mut behind).is_pending());
        drop(gone);
        drop(first);
        drop(told); // It was told already, and never looked.
        let Poll::Ready(_held) = futures::poll!(&mut behind) else {
            panic!("the permit is gone with who did not look")
        };
        assert_eq!(free(&permits), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn fewer_permits_take_effect_as_they_come_back_and_more_at_once() {
        let (permits, table) = (Permits::new(2), Arc::from("t"));
        let clock = clock();
        let held = [permits.acquire(&table, &clock).await, permits.acquire(&table, &clock).await];
        permits.set_max(1, &clock);
        let mut third = pin!(permits.acquire(&table, &clock));
        let [one, two] = held;
        drop(one);
        assert!(futures::poll!(&mut third).is_pending(), "one is lent, and there is one");
        permits.set_max(2, &clock);
        assert!(futures::poll!(&mut third).is_ready());
        drop(two);
    }

    /// Which tables compute, in order, where each has so many tasks that wait and one permit goes round.
    async fn order(permits: &Permits, tables: &[(&str, usize)]) -> Vec<String> {
        let clock = clock();
        let blocker = permits.acquire(&"blocker".into(), &clock).await;
        let done = Mutex::new(Vec::new());
        let tasks =
            tables.iter().flat_map(|(table, count)| (0..*count).map(move |at| (*table, at)));
        let work = |(table, at): (&str, usize)| {
            let (table, text): (Arc<str>, _) = (table.into(), format!("{table}{at}"));
            let (clock, done) = (&clock, &done);
            async move {
                let _permit = permits.acquire(&table, clock).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                done.lock().unwrap().push(text);
            }
        };
        let all = futures::future::join_all(tasks.map(work));
        let start = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            drop(blocker);
        };
        futures::join!(all, start);
        done.into_inner().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_on_one_table_does_not_hold_up_another_and_one_table_comes_in_its_order() {
        let permits = Permits::new(1);
        let both = order(&permits, &[("flood", 40), ("quiet", 3)]).await;
        let last = both.iter().position(|task| task == "quiet2").unwrap();
        assert!(last <= 6, "the last of three was number {last}");
        let of = |table: &str| both.iter().filter(|it| it.starts_with(table)).cloned().collect();
        let flood: Vec<String> = of("flood");
        let arrived: Vec<String> = (0..40).map(|at| format!("flood{at}")).collect();
        assert_eq!(flood, arrived);
        assert_eq!(order(&permits, &[("flood", 40)]).await, arrived);
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_gets_the_part_of_the_time_that_it_is_given() {
        let permits = Permits::new(1);
        let part = |table: &str| (PartitionId::new(table, 0), PartitionView::default());
        let partitions = ["a", "b"].into_iter().map(part).collect();
        let view = ClusterView { partitions, ..ClusterView::default() };
        let mut controls = Controls::default();
        let three = foreshard_policy::budgets::TableBudget::default().with_weight(3.0).unwrap();
        controls.set_budget("a", three);
        permits.set_shares(Arc::new(Shares::new(&view, None, &controls, &LoopConfig::default())));
        let both = order(&permits, &[("b", 40), ("a", 40)]).await;
        let of_a = both[..40].iter().filter(|task| task.starts_with('a')).count();
        assert!((29..=31).contains(&of_a), "{of_a} of 40");
    }
}
