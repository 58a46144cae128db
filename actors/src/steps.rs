//! Steps under way: a bounded number of tasks, each with a deadline, that their actor owns.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use foreshard_policy::cluster::Step;
use foreshard_policy::ids::Epoch;
use foreshard_policy::reshape::Planned;
use futures::FutureExt;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{Instrument, Span};

use crate::board::{Board, Role, recorded};
use crate::ports::Outcome;
use crate::trace::follow;

/// Steps that are carried out at the same time; more wait for their turn.
pub const AT_ONCE_MAX: usize = 8;

/// Calls that the span of a decision is linked to, the newest ones.
const CAUSES_MAX: usize = 16;

/// Code of a step that was not answered in time.
pub const CODE_LATE: &str = "FS-STEP-1";
/// Code of a step whose way out panicked.
pub const CODE_PANIC: &str = "FS-STEP-2";
/// Code of a step whose actor was started again before it ended.
pub const CODE_FORGOTTEN: &str = "FS-STEP-3";

/// Code of a step that its actor has no way out for.
pub const CODE_UNKNOWN: &str = "FS-STEP-4";

/// The steps that an actor sent and that have not ended. Dropping it cancels them.
#[derive(Debug)]
pub(crate) struct Steps {
    tasks: JoinSet<()>,
    open: BTreeMap<u64, OpenStep>,
    permits: Arc<Semaphore>,
    time_max: Duration,
}

/// One step under way.
#[derive(Debug)]
pub(crate) struct OpenStep {
    /// Plan it belongs to.
    pub(crate) epoch: Epoch,
    /// The step.
    pub(crate) step: Step,
    task: AbortHandle,
}

impl Steps {
    /// None yet; each may take `time_max` once it is its turn.
    pub(crate) fn new(time_max: Duration) -> Self {
        let permits = Arc::new(Semaphore::new(AT_ONCE_MAX));
        Self { tasks: JoinSet::new(), open: BTreeMap::new(), permits, time_max }
    }

    /// Starts `work` within `span` and tells its outcome to `done`, whatever happens to the work.
    pub(crate) fn start(
        &mut self,
        (id, epoch, step): (u64, Epoch, Step),
        span: Span,
        work: impl Future<Output = Outcome> + Send + 'static,
        done: impl FnOnce(Box<Outcome>) + Send + 'static,
    ) {
        while self.tasks.try_join_next().is_some() {} // Forget tasks that are over.
        let (permits, time_max) = (self.permits.clone(), self.time_max);
        let work = async move {
            let _permit = permits.acquire_owned().await;
            done(Box::new(bounded(work, time_max).await));
        };
        let task = self.tasks.spawn(work.instrument(span));
        self.open.insert(id, OpenStep { epoch, step, task });
    }

    /// Takes a step off the list, if it is on it and of this epoch.
    pub(crate) fn end(&mut self, epoch: Epoch, id: u64) -> Option<OpenStep> {
        if self.open.get(&id)?.epoch != epoch {
            return None;
        }
        self.open.remove(&id)
    }

    /// Cancels the steps up to number `last` that have not ended, and answers their numbers.
    pub(crate) fn expire(&mut self, last: u64) -> Vec<u64> {
        let younger = self.open.split_off(&last.saturating_add(1));
        let expired = std::mem::replace(&mut self.open, younger);
        expired.values().for_each(|open| open.task.abort());
        expired.into_keys().collect()
    }

    /// The steps under way, in the order in which they were sent.
    pub(crate) fn in_flight(&self) -> Vec<Step> {
        self.open.values().map(|open| open.step.clone()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }
}

/// The span of a decision: no part of a query, but linked to the calls that caused it.
pub(crate) fn decision_span(board: &Board, id: u64, epoch: Epoch, planned: &Planned) -> Span {
    let Planned { step, reason, .. } = planned;
    let span = tracing::info_span!(
        parent: None,
        "decision",
        id,
        epoch = epoch.0,
        kind = step.kind(),
        %step,
        %reason,
    );
    if !span.is_disabled() {
        let causes = board.recent.traces(CAUSES_MAX, |call| step.concerns(call));
        causes.iter().for_each(|cause| follow(&span, cause));
    }
    span
}

/// The outcome of `work`; silence and panic are outcomes too.
async fn bounded(work: impl Future<Output = Outcome>, time_max: Duration) -> Outcome {
    match tokio::time::timeout(time_max, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<&str>().map(ToString::to_string);
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            let reason = format!("it panicked: {}", text.unwrap_or_default());
            Outcome::Failed { code: CODE_PANIC, reason }
        }
        Err(_) => late(time_max),
    }
}

/// Closes the rows of steps that the predecessor of this actor took with it.
pub(crate) fn start_afresh(board: &Board, role: Role) {
    let mut ledger = board.ledger();
    let open: Vec<u64> = ledger
        .rows()
        .filter(|row| row.outcome.is_none() && role_of(&row.kind) == role)
        .map(|row| row.id)
        .collect();
    for id in open {
        let reason = format!("the {role} was started again before the step ended");
        let outcome = Outcome::Failed { code: CODE_FORGOTTEN, reason };
        ledger.ended(id, recorded(&outcome));
    }
    drop(ledger);
    board.show_open_steps(role, 0);
}

/// Who carries steps of this kind out; kinds as in [`Step::kind`].
pub(crate) fn role_of(kind: &str) -> Role {
    if kind.ends_with(" node") { Role::Allocator } else { Role::Manager }
}

/// What is written down for a step that did not end in time.
pub(crate) fn late(time_max: Duration) -> Outcome {
    let reason = format!("no answer within {} ms", time_max.as_millis());
    Outcome::Failed { code: CODE_LATE, reason }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, PoisonError};

    use foreshard_policy::ids::NodeId;

    use super::*;

    const DONE: Outcome = Outcome::Done { rows: 1, bytes: 2, ns: 3 };

    fn step(id: u64) -> (u64, Epoch, Step) {
        (id, Epoch(1), Step::AddNode { node: NodeId(7) })
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_eight_steps_run_at_once_and_the_others_have_their_turn() {
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let ended = Arc::new(AtomicUsize::new(0));
        let mut steps = Steps::new(Duration::from_secs(9));
        for id in 0..20 {
            let (running, most, ended) = (running.clone(), most.clone(), ended.clone());
            let work = async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                DONE
            };
            steps.start(step(id), Span::none(), work, move |_| {
                ended.fetch_add(1, Ordering::SeqCst);
            });
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(ended.load(Ordering::SeqCst), 20);
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE_MAX);
    }

    #[test]
    fn every_kind_of_step_belongs_to_the_actor_that_sends_it() {
        let partition = foreshard_policy::ids::PartitionId::new("t", 0);
        let drop = Step::Drop { partition, from: NodeId(0) };
        assert_eq!(role_of(drop.kind()), Role::Manager);
        for step in [Step::AddNode { node: NodeId(1) }, Step::RemoveNode { node: NodeId(1) }] {
            assert_eq!(role_of(step.kind()), Role::Allocator);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_panic_are_outcomes_too() {
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        let mut steps = Steps::new(Duration::from_secs(9));
        let tell = |outcomes: &Arc<Mutex<Vec<Outcome>>>| {
            let outcomes = outcomes.clone();
            move |outcome: Box<Outcome>| {
                outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(*outcome);
            }
        };
        steps.start(step(1), Span::none(), async { panic!("boom") }, tell(&outcomes));
        steps.start(step(2), Span::none(), std::future::pending(), tell(&outcomes));
        tokio::time::sleep(Duration::from_secs(10)).await;
        let outcomes = outcomes.lock().unwrap();
        let codes: Vec<&str> = outcomes
            .iter()
            .map(|outcome| match outcome {
                Outcome::Failed { code, .. } => *code,
                Outcome::Done { .. } | Outcome::Reshaped { .. } => "done",
            })
            .collect();
        assert_eq!(codes, [CODE_PANIC, CODE_LATE]);
    }

    #[tokio::test]
    async fn a_step_ends_once_and_only_in_its_own_epoch() {
        let mut steps = Steps::new(Duration::from_secs(9));
        steps.start(step(1), Span::none(), std::future::pending(), |_| ());
        assert!(steps.end(Epoch(0), 1).is_none());
        assert!(steps.end(Epoch(1), 2).is_none());
        assert_eq!(steps.end(Epoch(1), 1).map(|open| open.step), Some(step(1).2));
        assert!(steps.end(Epoch(1), 1).is_none());
        assert_eq!(steps.len(), 0);
    }
}
