//! Calls that have begun and not ended, of all functions of the process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use arrow::datatypes::FieldRef;

use crate::calling::Caller;
use crate::conduct::Conduct;
use crate::error::{Call, FunctionError};
use crate::meter::now;

/// Calls of one function that nobody waits for any more. If there are so many, it is not called again
/// until one of them ends: each holds a thread.
const GIVEN_UP_MAX: usize = 4;

/// Nobody waits for a call that is made for nobody in particular after this time.
const UNATTENDED_MAX: Duration = Duration::from_secs(60);

/// The same for a call of which nobody knows for whom it is made: hardly a query may take as long.
const UNKNOWN_MAX: Duration = Duration::from_secs(600);

static RUNNING: Mutex<Running> = Mutex::new(Running { next: 0, begun: BTreeMap::new() });

#[derive(Debug)]
struct Running {
    next: u64,
    /// In the order in which they began.
    begun: BTreeMap<u64, Begun>,
}

#[derive(Debug)]
struct Begun {
    /// What all calls of one definition of a function have in common.
    function: Arc<Conduct>,
    arguments: Arc<[FieldRef]>,
    rows: usize,
    asker: Asker,
    at: Instant,
}

/// Who waits for the answer of a call.
#[derive(Debug)]
pub(crate) enum Asker {
    /// This one.
    Caller(Weak<dyn Caller>),
    /// Nobody in particular: it is made ahead.
    Nobody,
    /// DataFusion, which does not say for which query.
    Unknown,
}

impl Begun {
    fn call(&self) -> Call {
        Call::new(self.function.name(), &self.arguments, self.rows)
    }

    fn is_given_up(&self) -> bool {
        match &self.asker {
            Asker::Caller(caller) => caller.upgrade().is_none_or(|caller| caller.is_gone()),
            Asker::Nobody => self.at.elapsed() > UNATTENDED_MAX,
            Asker::Unknown => self.at.elapsed() > UNKNOWN_MAX,
        }
    }
}

/// A call; it has ended when this is dropped.
#[derive(Debug)]
pub(crate) struct InProgress(u64);

impl Drop for InProgress {
    fn drop(&mut self) {
        let ended = running().begun.remove(&self.0);
        // Not while others wait for the list.
        drop(ended);
    }
}

fn running() -> MutexGuard<'static, Running> {
    // Every change is one insert or one removal.
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call of `function` begins.
///
/// # Errors
/// [`FunctionError::Stuck`] if too many calls of the same definition have not ended.
pub(crate) fn begin(
    function: &Arc<Conduct>,
    arguments: Arc<[FieldRef]>,
    rows: usize,
    asker: Asker,
) -> Result<InProgress, FunctionError> {
    let new = Begun { function: Arc::clone(function), arguments, rows, asker, at: now() };
    let mut running = running();
    let is_stuck =
        |begun: &&Begun| Arc::ptr_eq(&begun.function, &new.function) && begun.is_given_up();
    let stuck = running.begun.values().filter(is_stuck).count();
    if stuck >= GIVEN_UP_MAX {
        return Err(FunctionError::Stuck { call: Box::new(new.call()), stuck });
    }
    let number = running.next;
    running.next += 1;
    running.begun.insert(number, new);
    Ok(InProgress(number))
}

/// The longest of the calls in this process that `caller` waits for, and how long it has run. If there is
/// none, the longest that began within `time` for nobody knows whom.
#[must_use]
pub fn longest_call(
    caller: &Arc<impl Caller + 'static>,
    time: Duration,
) -> Option<(Call, Duration)> {
    let wanted = Arc::as_ptr(caller).cast::<()>();
    let running = running();
    let is_his = |begun: &&Begun| match &begun.asker {
        Asker::Caller(caller) => Weak::as_ptr(caller).cast::<()>() == wanted,
        Asker::Nobody | Asker::Unknown => false,
    };
    let may_be_his =
        |begun: &&Begun| matches!(begun.asker, Asker::Unknown) && begun.at.elapsed() <= time;
    let begun = || running.begun.values();
    let longest = begun().find(is_his).or_else(|| begun().find(may_be_his))?;
    Some((longest.call(), longest.at.elapsed()))
}

/// How many calls have run for longer than `time`.
pub(super) fn longer_than(time: Duration) -> usize {
    running().begun.values().filter(|begun| begun.at.elapsed() > time).count()
}
