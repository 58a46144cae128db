//! Work that must not be felt by queries: it runs behind all other threads, and waits while queries run.
//!
//! The first alone is not enough: queries on all cores took a quarter longer beside a thread that lets all
//! others go first and never rests (decision 0017).

use std::cell::Cell;
use std::time::Duration;

use foreshard_policy::courtesy::Courtesy;

use crate::ports::Clock;
use crate::traffic::TrafficGauge;

/// What is to be called between two pieces of background work of some milliseconds: it waits while there are
/// queries, but no longer than leaves `share` of the time to the work.
///
/// * `sleep`: waits as long as it is told; [`std::thread::sleep`] but in tests.
pub fn pauses<'a>(
    share: f64,
    gauge: &'a TrafficGauge,
    clock: &'a dyn Clock,
    sleep: impl Fn(Duration) + 'a,
) -> impl Fn() + 'a {
    let now = || Duration::from_nanos(clock.monotonic_ns());
    let courtesy = Cell::new(Courtesy::new(share, now(), gauge.traffic()));
    move || {
        let mut own = courtesy.get();
        while let Some(wait) = own.wait(now(), gauge.traffic()) {
            sleep(wait);
        }
        courtesy.set(own);
    }
}

/// Runs `work` on a thread of its own that lets all others go first, and waits for what comes of it.
///
/// On Linux it is a thread of niceness 19: where all cores are busy it gets one or two hundredths of one. Not
/// the idle class, in which it would get nothing as long as they are, and forecasts would stand still. A
/// thread cannot get nicer to itself again without rights that a service seldom has, so it is not one of a
/// pool. Where the system refuses, `work` runs like all else. If `work` panics, so does the caller.
pub fn behind_others<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let work = || {
        if let Err(error) = step_back() {
            tracing::debug!(?error, "background work is as important as all else");
        }
        work()
    };
    let ended = std::thread::scope(|scope| scope.spawn(work).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(target_os = "linux")]
fn step_back() -> Result<(), thread_priority::Error> {
    use thread_priority::{
        NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
        set_thread_priority_and_policy, thread_native_id,
    };
    let plain = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, plain)
}

#[cfg(not(target_os = "linux"))]
fn step_back() -> Result<(), thread_priority::Error> {
    thread_priority::set_current_thread_priority(thread_priority::ThreadPriority::Min)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use foreshard_policy::forecast::{Effort, Member, Past, Window};
    use foreshard_policy::ids::Tick;

    use super::*;
    use crate::lstm::{Lstm, LstmConfig};

    /// Goes on by what is slept, and a millisecond whenever it is asked for.
    #[derive(Debug, Default)]
    struct Paper(AtomicU64);

    impl Clock for Paper {
        fn now_ms(&self) -> u64 {
            0
        }

        fn monotonic_ns(&self) -> u64 {
            self.0.fetch_add(1_000_000, Ordering::Relaxed)
        }
    }

    /// Trains a network, and answers its state and for how long it slept.
    fn trained(gauge: &TrafficGauge) -> (Vec<u8>, Duration) {
        let (clock, slept) = (Paper::default(), Cell::new(Duration::ZERO));
        let sleep = |wait: Duration| {
            clock.0.fetch_add(wait.as_nanos() as u64, Ordering::Relaxed);
            slept.set(slept.get() + wait);
        };
        let pause = pauses(0.05, gauge, &clock, sleep);
        let past = Past::new((0..200).map(|tick| f64::from(tick % 7)));
        let series = [past.series(200, 1, &[7])];
        let window = Window { at: Tick(200), tick_ms: 1_000, epoch_ms: 0, series: &series };
        let mut network = Lstm::new(LstmConfig { hidden: 4, ..LstmConfig::default() }).unwrap();
        network.fit(&window, &[1], Effort::steps(5).with_pauses(&pause)).unwrap();
        assert_eq!(network.steps(), 5);
        (network.save().unwrap(), slept.get())
    }

    #[test]
    fn training_waits_while_queries_run_and_ends_all_the_same_with_the_same_network() {
        let gauge = Arc::<TrafficGauge>::default();
        let (alone, waited) = trained(&gauge);
        assert_eq!(waited, Duration::ZERO);
        let query = gauge.begin();
        let (beside, waited) = trained(&gauge);
        // At least a pause per step, of 19 times the millisecond that the step took by this clock.
        assert!(waited >= 5 * Duration::from_millis(19), "{waited:?}");
        assert!(waited < Duration::from_secs(60), "{waited:?}");
        assert!(alone == beside, "pauses change nothing");
        drop(query);
        assert_eq!(trained(&gauge).1, Duration::ZERO);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn work_behind_others_has_the_least_priority_and_the_caller_stays_as_it_was() {
        let niceness = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // What follows the name, which may have blanks: state is the third field, niceness the 19th.
            let fields = stat.rsplit_once(')').unwrap().1.to_owned();
            fields.split_whitespace().nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = niceness();
        assert_eq!(behind_others(niceness), 19);
        assert_eq!(niceness(), before);
    }

    #[test]
    #[should_panic(expected = "of the work")]
    fn a_panic_of_the_work_is_one_of_the_caller() {
        behind_others(|| panic!("of the work"));
    }
}
