//! Work that must not be felt by queries.

/// Runs `work` on a thread of its own that lets all others go first, and waits for what comes of it.
///
/// On Linux it is a thread of the idle class: any other thread takes its core at once, and where all cores
/// are busy it gets next to nothing. A thread cannot leave that class without rights that a service seldom
/// has, so it is not one of a pool. Where the system refuses, `work` runs like all else. If `work` panics,
/// so does the caller.
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
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle)
}

#[cfg(not(target_os = "linux"))]
fn step_back() -> Result<(), thread_priority::Error> {
    thread_priority::set_current_thread_priority(thread_priority::ThreadPriority::Min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn work_behind_others_is_idle_and_the_caller_stays_as_it_was() {
        let class = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // What follows the name, which may have blanks: state is the third field, the class the 41st.
            let fields = stat.rsplit_once(')').unwrap().1.to_owned();
            fields.split_whitespace().nth(38).unwrap().parse::<u32>().unwrap()
        };
        let before = class();
        assert_eq!(behind_others(class), 5, "SCHED_IDLE");
        assert_eq!(class(), before);
    }

    #[test]
    #[should_panic(expected = "of the work")]
    fn a_panic_of_the_work_is_one_of_the_caller() {
        behind_others(|| panic!("of the work"));
    }
}
