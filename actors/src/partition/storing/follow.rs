//! Values of rows that a commit kept follow them into the segments that it made.
//!
//! ```text
//! commit -> what is stored of its removed segments -> in memory: laid out anew -> offered
//!                                                  -> on disk: read beside -> Followed -> offered
//! ```
//!
//! Where a partition was split or merged, the removed segments are those of other replicas of the node, which
//! are closed only afterwards.
//!
//! They come like any offer, charged and only where there is room, but as no call: the new output goes on
//! with the worth of the old ones. What a query stored of a removed segment too late stays behind.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::buffer::BooleanBuffer;
use foreshard_policy::ids::{ExpressionId, SegmentId};

use crate::expressions::FunctionExpression;
use crate::node::NodeState;
use crate::partition::actor::{Offer, PartitionMessage, PartitionState};
use crate::partition::load::SegmentLoad;
use crate::partition::output::OutputValues;
use crate::partition::storing::Coming;
use crate::partition::view::{Held, ReplicaView, StoredOutput};
use crate::partition::worth::Stored;
use crate::spill::SpillFile;
use crate::table::Rewritten;

/// A new segment, and the counts of the removed ones that it has rows of.
pub(in crate::partition) type LoadsKept = (SegmentId, Vec<(SegmentLoad, BooleanBuffer)>);

/// What is stored of one expression over rows that were kept.
#[derive(Debug)]
pub(in crate::partition) struct Follower {
    /// The new segment.
    segment: SegmentId,
    expression: Arc<FunctionExpression>,
    parts: Vec<Part>,
    /// Whether a query asked for it on a removed segment.
    was_asked: bool,
}

/// What is stored over one removed segment.
#[derive(Debug)]
struct Part {
    segment: SegmentId,
    kept: BooleanBuffer,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Nowhere,
    /// With its charge, until it is copied.
    Memory(StoredOutput),
    Disk(Arc<SpillFile>),
}

impl Place {
    fn of(held: Option<&Held>, expression: ExpressionId) -> Self {
        let Some(held) = held else { return Self::Nowhere };
        match (held.outputs.get(&expression), held.on_disk(expression)) {
            (Some(output), _) => Self::Memory(output.clone()),
            (None, Some(file)) => Self::Disk(Arc::clone(file)),
            (None, None) => Self::Nowhere,
        }
    }
}

impl Follower {
    fn is_on_disk(&self) -> bool {
        self.parts.iter().any(|part| matches!(part.place, Place::Disk(_)))
    }

    /// What is known of the `rows` rows of the new segment.
    async fn offer(self, node: &NodeState, rows: usize) -> Option<Offer> {
        let mut read = vec![];
        for part in &self.parts {
            read.push(match (&part.place, &node.spill) {
                (Place::Disk(file), Some(spill)) => spill.read(file).await,
                _ => None,
            });
        }
        self.lay_out(&read, rows)
    }

    /// The same, if nothing must be read but what `read` has for each part.
    fn lay_out(self, read: &[Option<OutputValues>], rows: usize) -> Option<Offer> {
        let mut parts: Vec<(&BooleanBuffer, Option<&OutputValues>)> = vec![];
        for (at, part) in self.parts.iter().enumerate() {
            let values = match &part.place {
                Place::Memory(output) => Some(&output.values),
                Place::Disk(_) => read.get(at).and_then(Option::as_ref),
                Place::Nowhere => None,
            };
            parts.push((&part.kept, values));
        }
        let values = OutputValues::laid_out(&parts, rows)
            .inspect_err(|error| tracing::debug!(%error, "output does not follow its rows"))
            .ok()??;
        Some(Offer { segment: self.segment, expression: self.expression, values, flight: None })
    }
}

impl PartitionState {
    /// What is stored of the rows that a commit kept; nothing is copied.
    pub(in crate::partition) fn kept(&self, rewritten: &[Rewritten]) -> Vec<Follower> {
        let node = &self.args.node;
        let mut kept = vec![];
        if !node.store_policy().enabled {
            return kept;
        }
        let views = self.views_of(rewritten);
        let find = |segment: &SegmentId| views.iter().find_map(|view| view.segments.get(segment));
        for Rewritten { segment, kept: from } in rewritten {
            let held = || from.iter().filter_map(|(from, _)| find(from));
            let in_memory = held().flat_map(|held| held.outputs.keys().copied());
            let on_disk = held().flat_map(|held| held.only_on_disk().map(|(id, _)| id));
            let stored: BTreeSet<ExpressionId> = in_memory.chain(on_disk).collect();
            // What is not known any more was redefined.
            for expression in stored.into_iter().filter_map(|id| node.expressions.get(id)) {
                let part = |(from, kept): &(SegmentId, BooleanBuffer)| Part {
                    segment: *from,
                    kept: kept.clone(),
                    place: Place::of(find(from), expression.id),
                };
                let parts = from.iter().map(part).collect();
                let was_asked = held().any(|held| held.was_asked(expression.id));
                kept.push(Follower { segment: *segment, expression, parts, was_asked });
            }
        }
        kept
    }

    /// What was counted of the rows that a commit kept, by new segment.
    pub(in crate::partition) fn loads_kept(&self, rewritten: &[Rewritten]) -> Vec<LoadsKept> {
        let views = self.views_of(rewritten);
        let find = |segment: &SegmentId| views.iter().find_map(|view| view.segments.get(segment));
        let load = |(from, kept): &(SegmentId, BooleanBuffer)| {
            Some((find(from)?.load.clone(), kept.clone()))
        };
        // Rows behind some of which nothing is known would be taken for others.
        let of = |it: &Rewritten| {
            Some((it.segment, it.kept.iter().map(load).collect::<Option<Vec<_>>>()?))
        };
        rewritten.iter().filter_map(of).collect()
    }

    /// Counts of the segments that are there now go on with those of their rows.
    pub(in crate::partition) fn follow_loads(&self, loads: &[LoadsKept]) {
        let (view, now_ns) = (self.args.replica.view(), self.args.node.clock.monotonic_ns());
        for (segment, from) in loads {
            if let Some(held) = view.segments.get(segment) {
                held.load.follow(now_ns, from);
            }
        }
    }

    /// The replicas on this node that hold removed segments: this one, or those of partitions that were split
    /// or merged.
    fn views_of(&self, rewritten: &[Rewritten]) -> Vec<Arc<ReplicaView>> {
        let own = self.args.replica.view();
        let removed = || rewritten.iter().flat_map(|it| &it.kept).map(|(segment, _)| segment);
        if removed().all(|segment| own.segments.contains_key(segment)) {
            return vec![own];
        }
        let table = &self.args.partition.table;
        let replicas = self.args.node.replicas();
        let others = replicas.iter().filter(|(id, _)| id.table == *table);
        let others = others.map(|(_, handle)| handle.replica.view());
        let holds = |view: &Arc<ReplicaView>| removed().any(|it| view.segments.contains_key(it));
        others.filter(holds).collect()
    }

    /// Offers what was kept for the segments that are there now.
    pub(in crate::partition) fn follow(&mut self, kept: Vec<Follower>) {
        let mut on_disk = vec![];
        for follower in kept {
            let Some(rows) = self.begin(&follower) else { continue };
            if !self.args.reference.take_place() {
                self.args.node.offers_dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            if follower.is_on_disk() {
                self.storing.tickets += 1;
                let ticket = self.storing.tickets;
                self.storing.following.insert(ticket, follower.expression.id);
                on_disk.push((ticket, follower, rows));
            } else {
                self.take_followed(follower.lay_out(&[], rows));
            }
        }
        if !on_disk.is_empty() {
            self.follow_from_disk(on_disk);
        }
    }

    /// Begins with what was known of the old segments, and returns the rows of the new one; `None` if it is
    /// not there.
    fn begin(&mut self, follower: &Follower) -> Option<usize> {
        let view = self.args.replica.view();
        let held = view.segments.get(&follower.segment)?;
        let id = follower.expression.id;
        if follower.was_asked {
            let _is_first = held.is_first_ask(id);
        }
        let to = (follower.segment, Stored::Output(id));
        for part in &follower.parts {
            let (ns, bytes, uses) = match &part.place {
                Place::Nowhere => continue,
                Place::Memory(output) => {
                    let rows = output.values.rows_known() as u64;
                    let ns = follower.expression.ns_per_row().saturating_mul(rows);
                    (ns, output.bytes, &output.uses)
                }
                Place::Disk(file) => (file.ns(), file.bytes(), file.uses()),
            };
            let from = (part.segment, Stored::Output(id));
            let uses = uses.load(Ordering::Relaxed);
            let ns = self.terms().ns_without_memory(ns, bytes);
            self.worth.followed(&view, (from, uses), (ns, bytes), to);
        }
        usize::try_from(held.segment.rows).ok()
    }

    /// Reads what is on disk, one after the other; each keeps its place in the queue until then.
    fn follow_from_disk(&mut self, all: Vec<(u64, Follower, usize)>) {
        let (node, myself) = (Arc::clone(&self.args.node), self.storing.myself.clone());
        self.storing.tasks.spawn(async move {
            for (ticket, follower, rows) in all {
                let offer = follower.offer(&node, rows).await.map(Box::new);
                drop(myself.cast(PartitionMessage::Followed(ticket, offer)));
            }
        });
    }

    pub(in crate::partition) fn on_followed(&mut self, ticket: u64, offer: Option<Box<Offer>>) {
        // What was thrown away meanwhile has no ticket any more.
        let is_wanted = self.storing.following.remove(&ticket).is_some();
        self.take_followed(offer.filter(|_| is_wanted).map(|offer| *offer));
    }

    fn take_followed(&mut self, offer: Option<Offer>) {
        match offer.filter(|offer| self.is_welcome(&offer.expression)) {
            Some(offer) => self.take(Coming::Followed(offer), 0),
            None => self.args.reference.free(),
        }
    }
}
