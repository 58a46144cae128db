//! Cores in virtual time: threads share them evenly, jobs wait for a thread of their pool in the order in
//! which they came, and keep it to their end.

use std::collections::VecDeque;

/// Work that is smaller than this is done: sums of fractions of a nanosecond are never exact.
const DONE_NS: f64 = 0.5;

/// What a thread of niceness 19 gets beside one of niceness 0, as Linux weighs them.
const BEHIND_OTHERS: f64 = 15.0 / 1_024.0;

/// Threads for the same kind of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    /// Clients: planning, appending rows.
    Clients,
    /// Scans, and functions that they call.
    Calls,
    /// Forecasts, and plans by them.
    Rounds,
    /// Learning: behind all others.
    Learning,
}

impl Pool {
    const ALL: [Self; 4] = [Self::Clients, Self::Calls, Self::Rounds, Self::Learning];

    fn threads(self, cores: usize) -> usize {
        match self {
            Self::Clients | Self::Calls => cores,
            Self::Rounds | Self::Learning => 1,
        }
    }

    fn weight(self) -> f64 {
        if self == Self::Learning { BEHIND_OTHERS } else { 1.0 }
    }
}

#[derive(Debug)]
struct Running<T> {
    pool: Pool,
    left_ns: f64,
    /// Share of a core.
    rate: f64,
    since_ns: u64,
    then: T,
}

/// The cores of one machine, and what runs on them.
#[derive(Debug)]
pub(super) struct Cores<T> {
    cores: usize,
    now_ns: u64,
    running: Vec<Running<T>>,
    waiting: [VecDeque<(f64, T)>; Pool::ALL.len()],
}

impl<T> Cores<T> {
    pub(super) fn new(cores: usize) -> Self {
        let waiting = std::array::from_fn(|_| VecDeque::new());
        Self { cores: cores.max(1), now_ns: 0, running: Vec::new(), waiting }
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Gives a pool a job of so many nanoseconds of one core.
    pub(super) fn start(&mut self, pool: Pool, work_ns: f64, then: T) {
        self.waiting[pool as usize].push_back((work_ns.max(0.0), then));
    }

    /// The same for a task that does not let others go first: it keeps the thread of its job that is done.
    pub(super) fn go_on(&mut self, pool: Pool, work_ns: f64, then: T) {
        self.waiting[pool as usize].push_front((work_ns.max(0.0), then));
    }

    /// Gives free threads to the jobs that wait longest.
    pub(super) fn settle(&mut self) {
        Pool::ALL.into_iter().for_each(|pool| self.fill(pool));
        self.share();
    }

    /// When the next job is done, if nothing else comes before.
    pub(super) fn next_ns(&self) -> Option<u64> {
        let left = self.running.iter().map(|job| job.left_ns / job.rate);
        let first = left.min_by(f64::total_cmp)?;
        Some(self.now_ns + first.max(0.0).ceil() as u64)
    }

    /// Lets time pass until `now_ns`, which is not after the end of the next job.
    pub(super) fn advance(&mut self, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.now_ns) as f64;
        self.running.iter_mut().for_each(|job| job.left_ns -= passed * job.rate);
        self.now_ns = self.now_ns.max(now_ns);
    }

    /// A job that is done, the first that began, and for how long it had a thread. Who waits for that gets it when all
    /// is [settled](Self::settle).
    pub(super) fn done(&mut self) -> Option<(T, u64)> {
        let at = self.running.iter().position(|job| job.left_ns <= DONE_NS)?;
        let job = self.running.remove(at);
        Some((job.then, self.now_ns - job.since_ns))
    }

    fn fill(&mut self, pool: Pool) {
        let busy = self.running.iter().filter(|job| job.pool == pool).count();
        for _ in busy..pool.threads(self.cores) {
            let Some((left_ns, then)) = self.waiting[pool as usize].pop_front() else { return };
            let since_ns = self.now_ns;
            self.running.push(Running { pool, left_ns, rate: 1.0, since_ns, then });
        }
    }

    /// Shares the cores by weight; nobody gets more than one.
    fn share(&mut self) {
        let mut cores = self.cores as f64;
        let mut rest: Vec<usize> = (0..self.running.len()).collect();
        loop {
            let weights: f64 = rest.iter().map(|at| self.running[*at].pool.weight()).sum();
            let each = cores / weights;
            let (whole, part): (Vec<usize>, Vec<usize>) =
                rest.iter().partition(|at| self.running[**at].pool.weight() * each >= 1.0);
            if whole.is_empty() {
                for at in part {
                    self.running[at].rate = self.running[at].pool.weight() * each;
                }
                return;
            }
            whole.iter().for_each(|at| self.running[*at].rate = 1.0);
            cores -= whole.len() as f64;
            rest = part;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of jobs with when each was done and for how long it had a thread.
    fn ends(mut cores: Cores<&'static str>) -> Vec<(&'static str, u64, u64)> {
        let mut all = Vec::new();
        cores.settle();
        while let Some(next) = cores.next_ns() {
            cores.advance(next);
            while let Some((name, ran_ns)) = cores.done() {
                all.push((name, cores.now_ns(), ran_ns));
            }
            cores.settle();
        }
        all
    }

    #[test]
    fn threads_of_different_pools_share_the_cores_and_jobs_of_one_wait_for_a_thread() {
        let mut cores = Cores::new(2);
        cores.start(Pool::Calls, 100.0, "a");
        cores.start(Pool::Calls, 100.0, "b");
        cores.start(Pool::Calls, 100.0, "c");
        cores.start(Pool::Clients, 100.0, "d");
        // Three threads on two cores until 150; then the third call alone with nobody.
        assert_eq!(
            ends(cores),
            [("d", 150, 150), ("a", 150, 150), ("b", 150, 150), ("c", 250, 100)]
        );
    }

    #[test]
    fn learning_gets_what_others_leave_and_next_to_nothing_beside_them() {
        let mut cores = Cores::new(1);
        cores.start(Pool::Learning, 100.0, "learned");
        cores.start(Pool::Calls, 1_024.0, "called");
        let ends = ends(cores);
        assert_eq!((ends[0].0, ends[0].1), ("called", 1_039));
        assert_eq!((ends[1].0, ends[1].1), ("learned", 1_124));
    }

    #[test]
    fn a_core_that_is_not_needed_helps_nobody() {
        let mut cores = Cores::new(4);
        cores.start(Pool::Rounds, 70.0, "a");
        cores.settle();
        cores.advance(30);
        cores.start(Pool::Clients, 10.0, "b");
        assert_eq!(ends(cores), [("b", 40, 10), ("a", 70, 70)]);
    }

    #[test]
    fn who_does_not_let_others_go_first_keeps_its_thread() {
        let mut cores = Cores::new(1);
        cores.start(Pool::Calls, 10.0, "first");
        cores.start(Pool::Calls, 10.0, "waits");
        cores.settle();
        cores.advance(10);
        assert_eq!(cores.done(), Some(("first", 10)));
        cores.go_on(Pool::Calls, 10.0, "goes on");
        assert_eq!(ends(cores), [("goes on", 20, 10), ("waits", 30, 10)]);
    }
}
