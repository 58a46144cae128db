//! The threads on which queries call functions.
//!
//! A function cannot be stopped from outside: one that loops keeps its thread. On the threads of whoever
//! embeds the engine, a query over as many partitions as there are threads would bring everything to a
//! halt, its own deadline first. So queries that call functions run on threads of their own, and each
//! thread that is held up for long is replaced by a spare one until it comes back.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, available_parallelism};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;

use crate::calling::running::longer_than;

/// Most threads that are replaced at a time.
const SPARES: usize = 16;

/// A call that takes longer holds its thread up. Slices of what is stored take some 20 ms.
const HELD_UP: Duration = Duration::from_millis(500);

/// How often calls are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// When they are looked at after threads were lent or have come back.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

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
        // Whoever is woken without need may be put on the core of another, and be late for the next query.
        let mut kept_back = SPARES;
        loop {
            let held_up = longer_than(HELD_UP).min(SPARES);
            let is_changing = spares.look(held_up, &mut kept_back);
            // Each time: a task that waits behind a thread that is kept back again may be told to nobody.
            nudge(&handle);
            thread::sleep(if is_changing { LOOK_AGAIN } else { LOOK_EVERY });
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
        .enable_all()
        .build()?;
    let spares = Arc::new(Spares::default());
    for number in 0..SPARES {
        // Ends with the runtime.
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

/// Threads of a runtime that do nothing until they are lent to it.
#[derive(Debug, Default)]
struct Spares {
    lent: Mutex<usize>,
    more: Condvar,
    fewer: watch::Sender<usize>,
    /// How often one has been: whoever is has tasks in its queue, maybe, that others can take only if they
    /// look for some.
    kept_back: AtomicUsize,
}

impl Spares {
    fn lent(&self) -> MutexGuard<'_, usize> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends a thread for each that is held up. Whether anything changed since `seen` was written: then
    /// tasks may wait behind a thread that is kept back again, and nobody was told.
    fn look(&self, held_up: usize, seen: &mut usize) -> bool {
        let kept_back = self.kept_back.load(Ordering::Acquire);
        let is_back = std::mem::replace(seen, kept_back) != kept_back;
        self.lend(held_up) || is_back
    }

    /// Lets the runtime have so many of them; whether it had another number before.
    fn lend(&self, lent: usize) -> bool {
        if std::mem::replace(&mut *self.lent(), lent) == lent {
            return false;
        }
        self.more.notify_all();
        self.fewer.send_replace(lent);
        true
    }

    /// Blocks a thread of the runtime, any of them, unless more than `number` are lent.
    async fn keep_back(self: Arc<Self>, number: usize) {
        let mut fewer = self.fewer.subscribe();
        loop {
            self.kept_back.fetch_add(1, Ordering::AcqRel);
            self.block(number);
            // The sender lives in self, so there is always an answer.
            drop(fewer.wait_for(|lent| *lent <= number).await);
        }
    }

    fn block(&self, number: usize) {
        let kept = self.more.wait_while(self.lent(), |lent| *lent <= number);
        drop(kept.unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn a_thread_is_replaced_as_long_as_it_is_held_up() {
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
        assert!(is_answered, "a spare thread was lent");
        drop(sender);
        spares.lend(SPARES);
        runtime.shutdown_background();
    }
}
