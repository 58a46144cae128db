//! Keeps the calls that a node measured until its next report: bounded, never blocking.
//!
//! ```text
//! query tasks --offer--> CallSink --Calls--> forwarder --push--> CallBuffer <--take-- report
//! ```
//!
//! The forwarder stands where the monitor stands in the coordinator's process. If it dies, the sink drops
//! and counts what comes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use foreshard_actors::calls::CallSink;
use foreshard_actors::monitor::MonitorMessage;
use foreshard_policy::calls::CallRecord;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::Notify;

/// Records that wait for a report; more are dropped and counted.
pub(super) const RECORDS_MAX: usize = 65_536;

/// Calls that wait for the next report.
#[derive(Debug, Default)]
pub(super) struct CallBuffer {
    records: Mutex<Vec<CallRecord>>,
    dropped: AtomicU64,
    /// Notified when there is something to report.
    pub(super) is_new: Notify,
}

impl CallBuffer {
    fn push(&self, more: &[CallRecord]) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let room = RECORDS_MAX.saturating_sub(records.len()).min(more.len());
        records.extend_from_slice(&more[..room]);
        self.dropped.fetch_add((more.len() - room) as u64, Ordering::Relaxed);
        self.is_new.notify_one();
    }

    /// What was measured since this was asked last.
    pub(super) fn take(&self) -> Vec<CallRecord> {
        std::mem::take(&mut *self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts records whose report did not arrive for sure: counted twice would be worse than not.
    pub(super) fn lost(&self, records: usize) {
        self.dropped.fetch_add(records as u64, Ordering::Relaxed);
    }

    /// Records that were lost so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Takes the monitor's place on a node.
struct Forwarder;

impl Actor for Forwarder {
    type Msg = MonitorMessage;
    type State = Arc<CallBuffer>;
    type Arguments = Arc<CallBuffer>;

    async fn pre_start(
        &self,
        _myself: ActorRef<MonitorMessage>,
        buffer: Arc<CallBuffer>,
    ) -> Result<Arc<CallBuffer>, ActorProcessingErr> {
        Ok(buffer)
    }

    async fn handle(
        &self,
        _myself: ActorRef<MonitorMessage>,
        message: MonitorMessage,
        buffer: &mut Arc<CallBuffer>,
    ) -> Result<(), ActorProcessingErr> {
        if let MonitorMessage::Calls(batch) = message {
            buffer.push(&batch.records);
        }
        Ok(())
    }
}

/// The running forwarder; it ends with this.
#[derive(Debug)]
pub(super) struct Forwarding {
    /// What it keeps.
    pub(super) buffer: Arc<CallBuffer>,
    actor: ActorRef<MonitorMessage>,
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.actor.stop(Some("the node ends".to_owned()));
    }
}

/// Sends what `sink` is offered into a buffer.
///
/// # Errors
/// If the actor cannot be started.
pub(super) async fn forward(sink: &CallSink) -> Result<Forwarding, ractor::SpawnErr> {
    let buffer = Arc::<CallBuffer>::default();
    let (actor, _) = Actor::spawn(None, Forwarder, Arc::clone(&buffer)).await?;
    sink.connect(actor.clone());
    Ok(Forwarding { buffer, actor })
}

#[cfg(test)]
mod tests {
    use foreshard_policy::ids::{ExpressionId, NodeId, PartitionId};

    use super::*;

    fn calls(count: usize) -> Vec<CallRecord> {
        let call = CallRecord {
            at_ms: 0,
            query: 1,
            function: "f".into(),
            expression: ExpressionId(1),
            partition: PartitionId::new("t", 0),
            node: NodeId(3),
            rows: 1,
            rows_stored: 0,
            rows_fresh: 0,
            rows_fresh_stored: 0,
            ns: 1,
            waited_ns: 0,
            would_be_ns: 1,
            bytes: 8,
            traceparent: None,
        };
        vec![call; count]
    }

    #[test]
    fn a_full_buffer_drops_and_counts() {
        let buffer = CallBuffer::default();
        buffer.push(&calls(RECORDS_MAX - 1));
        buffer.push(&calls(3));
        assert_eq!(buffer.dropped(), 2);
        assert_eq!(buffer.take().len(), RECORDS_MAX);
        assert!(buffer.take().is_empty());
    }
}
