//! The threads on which queries call functions.
//!
//! A function cannot be stopped from outside: one that loops keeps its thread. On the threads of whoever
//! embeds the engine, a query over as many partitions as there are threads would bring everything to a
//! halt, its own deadline first. So queries that call functions run on threads of their own, and each
//! thread that is held up for long is replaced by a spare one. A spare one stays: to keep a thread of a runtime
//! back again is to block it, and tasks that yielded on it would wait there where nobody can take them.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, available_parallelism};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::calling::running::longer_than;

/// Most threads that are replaced.
const SPARES: usize = 16;

/// A call that takes longer holds its thread up. Slices of what is stored take some 20 ms.
const HELD_UP: Duration = Duration::from_millis(500);

/// How often calls are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often the runtime is nudged while it starts.
const NUDGE_EVERY: Duration = Duration::from_micros(100);

/// Started when the first query needs it; ends with the process.
static STARTED: Mutex<Option<Runtime>> = Mutex::new(None);

/// The runtime on which queries of this process call functions: a thread for each core, and spare ones.
///
/// # Errors
/// If the system has no threads to give.
pub fn call_threads() -> io::Result<Handle> {
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = match started.as_ref() {
        Some(runtime) => runtime,
        None => started.insert(start()?),
    };
    Ok(runtime.handle().clone())
}

fn start() -> io::Result<Runtime> {
    let (runtime, spares) = runtime()?;
    let handle = runtime.handle().clone();
    let watcher = thread::Builder::new().name("foreshard-watch".to_owned());
    watcher.spawn(move || {
        loop {
            let held_up = longer_than(HELD_UP);
            spares.lend(held_up);
            // Whoever is woken without need may be put on the core of another, and be late for the next query.
            if held_up > 0 {
                nudge(&handle);
            }
            thread::sleep(LOOK_EVERY);
        }
    })?;
    Ok(runtime)
}

/// A runtime of which all spare threads sleep.
fn runtime() -> io::Result<(Runtime, Arc<Spares>)> {
    let cores = available_parallelism().map_or(1, usize::from);
    let runtime = Builder::new_multi_thread()
        .worker_threads(cores + SPARES)
        .thread_name("foreshard-call")
        // Who comes from another thread waits in a queue that all share. Left to itself, a thread looks there once in
        // dozens of turns, and a turn takes milliseconds here.
        .global_queue_interval(1)
        .enable_all()
        .build()?;
    let spares = Arc::new(Spares::default());
    for number in 0..SPARES {
        // Ends when it is lent, or with the runtime.
        drop(runtime.spawn(Arc::clone(&spares).keep_back(number)));
        while spares.kept_back.load(Ordering::Acquire) <= number {
            nudge(runtime.handle());
            thread::park_timeout(NUDGE_EVERY);
        }
    }
    Ok((runtime, spares))
}

/// Wakes a thread that looks for work: a task may wait behind another one that blocks its thread, and
/// nobody was told.
fn nudge(runtime: &Handle) {
    drop(runtime.spawn(std::future::ready(())));
}

/// Threads of a runtime that do nothing until they are lent to it, for good.
#[derive(Debug, Default)]
struct Spares {
    lent: Mutex<usize>,
    more: Condvar,
    /// How many have been kept back, while the runtime starts.
    kept_back: AtomicUsize,
}

impl Spares {
    fn lent(&self) -> MutexGuard<'_, usize> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the runtime have at least so many of them, or all.
    fn lend(&self, lent: usize) {
        let mut before = self.lent();
        if *before < lent.min(SPARES) {
            *before = lent.min(SPARES);
            self.more.notify_all();
        }
    }

    /// Blocks a thread of the runtime, any of them, until more than `number` are lent. No other task may have
    /// run on it yet: one that yielded there would wait as long.
    async fn keep_back(self: Arc<Self>, number: usize) {
        self.kept_back.fetch_add(1, Ordering::AcqRel);
        let kept = self.more.wait_while(self.lent(), |lent| *lent <= number);
        drop(kept.unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn a_thread_that_is_held_up_is_replaced() {
        let (runtime, spares) = runtime().unwrap();
        let cores = available_parallelism().map_or(1, usize::from);
        let (sender, receiver) = sync_channel::<()>(0);
        let receiver = Arc::new(Mutex::new(receiver));
        let (busy, is_busy) = sync_channel(cores);
        for _ in 0..cores {
            let (receiver, busy) = (Arc::clone(&receiver), busy.clone());
            drop(runtime.spawn(async move {
                busy.send(()).unwrap();
                receiver.lock().unwrap().recv().is_ok()
            }));
        }
        (0..cores).for_each(|_| is_busy.recv().unwrap());
        let (answer, answered) = sync_channel(1);
        drop(runtime.spawn(async move { answer.send(()).is_ok() }));
        assert!(answered.recv_timeout(LOOK_EVERY).is_err(), "all threads are held up");
        spares.lend(1);
        let is_answered = (0..100).any(|_| {
            nudge(runtime.handle());
            answered.recv_timeout(LOOK_EVERY).is_ok()
        });
        drop(sender);
        spares.lend(SPARES);
        runtime.shutdown_background();
        assert!(is_answered, "a spare thread was lent");
    }

    #[test]
    fn a_task_that_yielded_goes_on_after_calls_that_held_up_threads_have_ended() {
        let (runtime, spares) = runtime().unwrap();
        let mut late = None;
        for turn in 0..100 {
            // Threads are lent while calls hold others up, and those have ended when the watcher looks again.
            spares.lend(SPARES / 2 + turn % 2);
            nudge(runtime.handle());
            let (answer, answered) = sync_channel(SPARES);
            for _ in 0..SPARES {
                let answer = answer.clone();
                drop(runtime.spawn(async move {
                    tokio::task::yield_now().await;
                    answer.send(()).is_ok()
                }));
            }
            spares.lend(0);
            let ran = (0..SPARES).take_while(|_| answered.recv_timeout(20 * HELD_UP).is_ok());
            let ran = ran.count();
            if ran < SPARES {
                late = Some((turn, ran));
                break;
            }
        }
        // A thread that is kept back would keep the runtime from ending.
        spares.lend(SPARES);
        runtime.shutdown_background();
        assert_eq!(late, None, "the turn, and how many of {SPARES} tasks ran in it");
    }
}
