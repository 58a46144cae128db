//! Work that must not be felt by queries.

use thread_priority::{ThreadPriority, ThreadPriorityValue, set_current_thread_priority};

/// Of 0 to 99. On Linux it is niceness 15: where all cores are busy such a thread gets about a thirtieth
/// of one, which is little for queries, and yet enough to come to an end some day.
const PRIORITY: u8 = 10;

/// Runs `work` on a thread of its own that lets all others go first, and waits for what comes of it.
///
/// A thread that was made less important cannot become more so again without rights that a service seldom
/// has, so it is not one of a pool. Where the system refuses, `work` runs like all else. If `work` panics,
/// so does the caller.
pub fn behind_others<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let work = || {
        let priority = ThreadPriorityValue::try_from(PRIORITY).map(ThreadPriority::Crossplatform);
        match priority.map(set_current_thread_priority) {
            Ok(Ok(())) => {}
            refused => tracing::debug!(?refused, "background work is as important as all else"),
        }
        work()
    };
    let ended = std::thread::scope(|scope| scope.spawn(work).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn work_behind_others_is_nice_and_the_caller_stays_as_it_was() {
        let niceness = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // What follows the name, which may have blanks: state is the third field, niceness the 19th.
            let fields = stat.rsplit_once(')').unwrap().1.to_owned();
            fields.split_whitespace().nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = niceness();
        assert_eq!(behind_others(niceness), 15);
        assert_eq!(niceness(), before);
    }

    #[test]
    #[should_panic(expected = "of the work")]
    fn a_panic_of_the_work_is_one_of_the_caller() {
        behind_others(|| panic!("of the work"));
    }
}
