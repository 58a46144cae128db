//! Rows of segments that are in files: read into memory when a replica opens or ahead of queries, and let go.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use foreshard_policy::ids::SegmentId;
use foreshard_policy::reshape::ROWS_SHARE;
use foreshard_udfs::call_threads;
use futures::TryStreamExt;
use ractor::RpcReplyPort;
use tokio::runtime::Handle;

use crate::node::NodeState;
use crate::partition::actor::{PartitionMessage, PartitionRef, PartitionState};
use crate::partition::compute::ComputeError;
use crate::partition::view::{Held, Replica, Resident};
use crate::ports::Outcome;
use crate::segment::Segment;
use crate::table::Snapshot;

/// Share of a node's memory above which nothing is read ahead of queries.
const AHEAD_UNTIL: f64 = 0.9;

/// How long reading ahead waits for a moment without queries, for each segment.
const QUIET_WITHIN: Duration = Duration::from_secs(1);

/// Code of a step that read nothing because memory was full.
const CODE_FULL: &str = "FS-ROWS-1";

/// Code of a step that read nothing because the store failed.
const CODE_UNREAD: &str = "FS-ROWS-2";

impl PartitionState {
    /// Holds what a snapshot has. What was let go stays in files, until it is asked for ahead of queries.
    pub(super) async fn on_load(&mut self, snapshot: &Snapshot, reply: Option<RpcReplyPort<()>>) {
        self.catch_up(snapshot, &[]);
        if !self.is_released {
            let view = self.args.replica.view();
            let cold: Vec<Held> =
                view.segments.values().filter(|held| held.rows.is_none()).cloned().collect();
            for held in cold {
                if let Some(resident) = self.load(&held).await {
                    self.on_fetched(held.segment.id, resident);
                }
            }
        }
        if let Some(reply) = reply {
            drop(reply.send(()));
        }
    }

    /// Reads the rows of a cold segment if the budget allows; a failure leaves it on disk, where the
    /// query that needs it will meet the error.
    async fn load(&self, held: &Held) -> Option<Resident> {
        let node = &self.args.node;
        let used = (node.memory_bytes() + held.segment.bytes) as f64;
        if used > node.memory_bytes_max() as f64 * ROWS_SHARE {
            return None;
        }
        read(node, &self.args.partition.table, &held.segment).await.ok()
    }

    /// Reads the rows that are missing, in a task of its own: offers go on meanwhile.
    pub(super) fn on_prefetch(&mut self, reply: RpcReplyPort<Outcome>) {
        self.is_released = false;
        let node = Arc::clone(&self.args.node);
        let (replica, reference) = (Arc::clone(&self.args.replica), self.args.reference.clone());
        let work = async move {
            let outcome = read_ahead(&node, &replica, &reference, &reply).await;
            // Behind the rows in the queue: whoever asked finds them there.
            if let Some(actor) = reference.actor() {
                drop(actor.cast(PartitionMessage::Precomputed(outcome, reply)));
            }
        };
        // It ends with its reply port: it stops as soon as nobody waits for the outcome.
        drop(call_threads().unwrap_or_else(|_none| Handle::current()).spawn(work));
    }

    /// Takes rows up, if the segment is still there and has none.
    pub(super) fn on_fetched(&mut self, segment: SegmentId, resident: Resident) {
        let mut view = self.view();
        if let Some(held) = view.segments.get_mut(&segment)
            && held.rows.is_none()
        {
            held.rows = Some(resident);
            self.args.replica.touch(self.args.node.clock.monotonic_ns());
            self.args.replica.publish(view);
        }
    }

    /// Lets rows go that the store has too; queries that read them keep them as long. Answers their bytes.
    pub(super) fn on_release(&mut self) -> u64 {
        let mut view = self.view();
        let mut bytes = 0;
        for held in view.segments.values_mut() {
            if held.rows.as_ref().is_some_and(|resident| resident.charge.is_some()) {
                held.rows = None;
                bytes += held.segment.bytes;
            }
        }
        self.is_released = true;
        self.args.replica.publish(view);
        bytes
    }
}

/// Reads segment by segment, the smallest first, until memory is nearly full.
async fn read_ahead(
    node: &Arc<NodeState>,
    replica: &Replica,
    reference: &PartitionRef,
    reply: &RpcReplyPort<Outcome>,
) -> Outcome {
    let view = replica.view();
    let cold = view.segments.values().filter(|held| held.rows.is_none());
    let mut cold: Vec<Arc<Segment>> = cold.map(|held| Arc::clone(&held.segment)).collect();
    cold.sort_by_key(|segment| (segment.bytes, segment.id));
    let (since, missing) = (node.clock.monotonic_ns(), cold.len());
    let (mut rows, mut bytes, mut problem) = (0, 0, None);
    for segment in cold {
        // Reading costs a query that runs some time, and spares those to come more.
        drop(tokio::time::timeout(QUIET_WITHIN, node.idle()).await);
        if reply.is_closed() {
            break;
        }
        let most = node.memory_bytes_max() as f64 * AHEAD_UNTIL;
        if (node.memory_bytes() + segment.bytes) as f64 > most {
            let (used, needed) = (node.memory_bytes(), segment.bytes);
            let reason = format!("{used} bytes are taken, {needed} more would be over {most:.0}");
            problem = Some(Outcome::Failed { code: CODE_FULL, reason });
            break;
        }
        let resident = match read(node, &view.partition.table, &segment).await {
            Ok(resident) => resident,
            Err(reason) => {
                problem = Some(Outcome::Failed { code: CODE_UNREAD, reason });
                continue;
            }
        };
        let fetched = PartitionMessage::Fetched(segment.id, resident);
        if reference.actor().is_some_and(|actor| actor.cast(fetched).is_ok()) {
            rows += segment.rows;
            bytes += segment.bytes;
        }
    }
    let ns = node.clock.monotonic_ns().saturating_sub(since);
    match problem {
        Some(problem) if bytes == 0 && missing > 0 => problem,
        _ => Outcome::Done { rows, bytes, ns },
    }
}

/// The rows of a segment, with their charge; else why not, which is logged.
async fn read(node: &NodeState, table: &str, segment: &Segment) -> Result<Resident, String> {
    let charge = node.charge("resident segment", segment.bytes);
    let charge = charge.ok_or_else(|| format!("there is no room for {} bytes", segment.bytes))?;
    let store = node.tables.store(table).ok_or_else(|| format!("table {table} is gone"))?;
    let since = node.clock.monotonic_ns();
    let rows = async {
        let stream = store.read(segment, None).await.map_err(ComputeError::Store)?;
        stream.try_collect::<Vec<_>>().await.map_err(ComputeError::Evaluate)
    };
    let batches = rows.await.map_err(|error| {
        let (segment, code) = (segment.id, error.code());
        tracing::warn!(%segment, code, %error, "segment stays on disk");
        format!("{error} ({code})")
    })?;
    node.read_took(segment.bytes, node.clock.monotonic_ns().saturating_sub(since));
    node.rows_fetched.fetch_add(segment.bytes, Ordering::Relaxed);
    Ok(Resident { rows: batches.into(), charge: Some(charge) })
}
