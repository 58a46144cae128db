//! What a partition does with what it is offered.
//!
//! ```text
//! offer -> room in memory? -> stored
//!          less worthy there? -> written to disk first if they are worth it -> stored in their place
//!          none -> written to disk, if it is worth that
//! ```
//!
//! What must be written before it gives way stays readable meanwhile, and the offer waits: the writes of
//! one round end, then all offers that waited are looked at again. What gives way and what comes are
//! exchanged in one go, so nothing goes unless what it goes for finds room.

mod again;
mod follow;
mod taken;
mod way;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datafusion::execution::memory_pool::MemoryReservation;
use foreshard_policy::ids::{ExpressionId, SegmentId};
use ractor::ActorRef;
use tokio::task::JoinSet;

use crate::expressions::FunctionExpression;
use crate::partition::actor::{Offer, PartialOffer, PartitionMessage, PartitionState};
use crate::partition::output::OutputValues;
use crate::partition::storing::taken::Taken;
use crate::partition::view::{ReplicaView, StoredOutput, StoredPartial};
use crate::partition::worth::{Key, Kind, Stored, Terms};
use crate::spill::{SpillFile, ToSpill};

/// Rounds that an offer waits for others to be written; then they go without.
const ROUNDS_MAX: u32 = 3;

/// What is under way.
#[derive(Debug)]
pub(super) struct Storing {
    myself: ActorRef<PartitionMessage>,
    waiting: Vec<Waiting>,
    writing: HashMap<u64, Ticket>,
    /// Outputs that are read from disk for new segments.
    following: HashMap<u64, ExpressionId>,
    tickets: u64,
    /// What the disk did not take in this round.
    refused: HashSet<Key>,
    tasks: JoinSet<()>,
}

impl Storing {
    pub(super) fn new(myself: ActorRef<PartitionMessage>) -> Self {
        Self {
            myself,
            waiting: vec![],
            writing: HashMap::new(),
            following: HashMap::new(),
            tickets: 0,
            refused: HashSet::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Whether something is written that will give way.
    fn is_round_on(&self) -> bool {
        self.writing.values().any(|ticket| ticket.gives_way.is_some())
    }
}

/// An offer that waits for room.
#[derive(Debug)]
struct Waiting {
    coming: Coming,
    bytes: u64,
    rounds: u32,
}

/// One write under way.
#[derive(Debug)]
struct Ticket {
    key: (SegmentId, ExpressionId),
    /// Bytes of memory that it frees; `None` for an offer that found no room, which keeps its place in the
    /// queue as long.
    gives_way: Option<u64>,
}

/// Something that may be stored.
#[derive(Debug)]
enum Coming {
    Output(Offer),
    /// From the segments that its rows were in before.
    Followed(Offer),
    Partial(PartialOffer),
    ReadBack(Offer),
}

impl Coming {
    /// What its calls are counted by.
    fn series(&self) -> ExpressionId {
        match self {
            Self::Output(offer) | Self::Followed(offer) | Self::ReadBack(offer) => {
                offer.expression.id
            }
            Self::Partial(offer) => offer.fragment.shape.series(),
        }
    }
}

/// What would be stored of it.
struct New {
    key: Key,
    what: &'static str,
    bytes: u64,
    ns: u64,
    worth: f64,
    /// Only of outputs.
    values: Option<OutputValues>,
    uses: Arc<AtomicU64>,
}

/// What was found for something new.
enum Room {
    Charged(Arc<MemoryReservation>),
    Later,
    None,
}

impl PartitionState {
    /// Stores an output if it is dear enough, known (its function was not redefined) and finds room.
    pub(super) fn on_store(&mut self, offer: Offer) {
        match self.is_welcome(&offer.expression) {
            true => self.take(Coming::Output(offer), 0),
            false => self.args.reference.free(),
        }
    }

    fn is_welcome(&self, expression: &FunctionExpression) -> bool {
        let node = &self.args.node;
        let policy = node.store_policy();
        let is_dear = expression.ns_per_row() >= policy.ns_per_row_min;
        policy.enabled && is_dear && node.expressions.get(expression.id).is_some()
    }

    pub(super) fn on_store_partial(&mut self, offer: PartialOffer) {
        match self.args.node.store_policy().enabled {
            true => self.take(Coming::Partial(offer), 0),
            false => self.args.reference.free(),
        }
    }

    pub(super) fn on_read_back(&mut self, offer: Offer) {
        match self.args.node.store_policy().enabled {
            true => self.take(Coming::ReadBack(offer), 0),
            false => self.args.reference.free(),
        }
    }

    /// Stores what came, lets it wait, or gives it to the disk.
    fn take(&mut self, coming: Coming, rounds: u32) {
        let Some(new) = self.look_at(&coming, rounds == 0) else {
            return self.args.reference.free();
        };
        let room = match self.charge(&new) {
            Some(charge) => Room::Charged(charge),
            None if rounds == 0 && self.storing.is_round_on() => Room::Later,
            None => self.make_room(&new, rounds),
        };
        match room {
            Room::Charged(charge) => {
                self.put(coming, new, charge);
                self.args.reference.free();
            }
            Room::Later => {
                self.storing.waiting.push(Waiting { coming, bytes: new.bytes, rounds });
            }
            // What is pinned gives way to nothing but what queries read at the moment.
            Room::None if new.worth.is_infinite() && rounds < ROUNDS_MAX => {
                self.storing.waiting.push(Waiting { coming, bytes: new.bytes, rounds });
                self.wait_a_moment();
            }
            Room::None => {
                self.ask_others(new.bytes);
                self.give_to_disk(&coming, new);
            }
        }
    }

    /// Charges what comes, if there is room that is not kept for another table.
    fn charge(&self, new: &New) -> Option<Arc<MemoryReservation>> {
        let (node, table) = (&self.args.node, &self.args.partition.table);
        let kept = node.kept_from(table);
        if kept > 0 && node.bytes_lacking(new.bytes.saturating_add(kept), 0) > 0 {
            return None;
        }
        let charge = node.charge(new.what, new.bytes)?;
        node.took_room(table);
        Some(charge)
    }

    fn terms(&self) -> Terms<'_> {
        let node = &self.args.node;
        let disk = node.spill.as_ref().map(|spill| spill.read_cost());
        Terms { expressions: &node.expressions, disk }
    }

    /// What would be stored, and what it is worth; `None` if that is nothing new. A call counts at first
    /// sight only.
    fn look_at(&mut self, coming: &Coming, is_first: bool) -> Option<New> {
        let view = self.args.replica.view();
        let new = match coming {
            Coming::Output(offer) => self.look_at_output(&view, offer, is_first),
            Coming::Followed(offer) => self.look_at_output(&view, offer, false),
            Coming::Partial(offer) => self.look_at_partial(&view, offer, is_first),
            Coming::ReadBack(offer) => self.look_at_file(&view, offer, is_first),
        }?;
        let (table, pins) = (&self.args.partition.table, &self.args.node.expressions.pins);
        let is_pinned = match new.key.1 {
            Stored::Output(id) => pins.has_output(table, id),
            Stored::Partial(_) => pins.has_table(table),
        };
        Some(if is_pinned { New { worth: f64::INFINITY, ..new } } else { new })
    }

    fn look_at_output(&mut self, view: &ReplicaView, offer: &Offer, is_first: bool) -> Option<New> {
        let held = view.segments.get(&offer.segment)?;
        if offer.values.rows() as u64 != held.segment.rows {
            return None;
        }
        let id = offer.expression.id;
        let (before, on_disk) = (held.outputs.get(&id), held.on_disk(id));
        let known = match (before, on_disk) {
            (Some(before), _) => before.values.rows_known(),
            (None, Some(file)) => file.rows_known(),
            (None, None) => 0,
        };
        let merged = before.map(|before| before.values.merge(&offer.values));
        let values = merged.unwrap_or_else(|| Ok(offer.values.clone())).ok()?;
        if values.rows_known() <= known {
            return None;
        }
        let values = values.packed();
        let (bytes, rows) = (values.bytes(), values.rows_known() as u64);
        let ns = offer.expression.ns_per_row().saturating_mul(rows);
        // Reading what is stored of it was counted already.
        let calls = u64::from(before.is_none() && on_disk.is_none());
        let uses = before.map(|before| &before.uses).or(on_disk.map(|file| file.uses()));
        let uses = uses.cloned().unwrap_or_default();
        let key = (offer.segment, Stored::Output(id));
        let without_memory = self.terms().ns_without_memory(ns, bytes);
        let worth = match is_first {
            true => self.worth.called(view, (key, Kind::Output(id)), calls, without_memory, bytes),
            false => self.worth.of(key),
        };
        let what = "stored output";
        Some(New { key, what, bytes, ns, worth, values: Some(values), uses })
    }

    fn look_at_partial(
        &mut self,
        view: &ReplicaView,
        offer: &PartialOffer,
        is_first: bool,
    ) -> Option<New> {
        let held = view.segments.get(&offer.segment)?;
        if held.partials.contains_key(&offer.fragment.id) {
            return None;
        }
        let bytes = offer.bytes();
        let (key, ns) = ((offer.segment, Stored::Partial(offer.fragment.id)), offer.ns);
        let kind = Kind::Partial(offer.fragment.shape);
        let worth = match is_first {
            true => self.worth.called(view, (key, kind), 1, ns, bytes),
            false => self.worth.of(key),
        };
        let (what, uses) = ("stored partial", Arc::default());
        Some(New { key, what, bytes, ns, worth, values: None, uses })
    }

    fn look_at_file(&mut self, view: &ReplicaView, offer: &Offer, is_first: bool) -> Option<New> {
        let held = view.segments.get(&offer.segment)?;
        let id = offer.expression.id;
        let file = held.on_disk(id).filter(|_| !held.outputs.contains_key(&id))?;
        if file.rows_known() != offer.values.rows_known() {
            return None;
        }
        let (bytes, ns, uses) = (file.bytes(), file.ns(), Arc::clone(file.uses()));
        let key = (offer.segment, Stored::Output(id));
        let without_memory = self.terms().ns_without_memory(ns, bytes);
        let worth = match is_first {
            true => {
                let calls = self.worth.new_calls(key, uses.load(Ordering::Relaxed));
                self.worth.called(view, (key, Kind::Output(id)), calls, without_memory, bytes)
            }
            false => self.worth.of(key),
        };
        let (what, values) = ("stored output", Some(offer.values.clone()));
        Some(New { key, what, bytes, ns, worth, values, uses })
    }

    /// Lets what is worth less go for it, the least first; what is worth a file is written before.
    fn make_room(&mut self, new: &New, rounds: u32) -> Room {
        let node = Arc::clone(&self.args.node);
        let view = self.args.replica.view();
        let disk = self.terms().disk;
        let ahead: u64 = self.storing.waiting.iter().map(|waiting| waiting.bytes).sum();
        let leaving: u64 =
            self.storing.writing.values().filter_map(|ticket| ticket.gives_way).sum();
        let kept = node.kept_from(&self.args.partition.table);
        let more = ahead.saturating_add(new.bytes).saturating_add(kept);
        let lacking = node.bytes_lacking(more, leaving);
        let terms = Terms { expressions: &node.expressions, disk };
        let Some(victims) = self.worth.make_room(&view, terms, new.worth, lacking) else {
            return Room::None;
        };
        let written: Vec<_> = match rounds < ROUNDS_MAX {
            true => {
                victims.iter().filter_map(|key| self.worth_a_file(&view, terms, *key)).collect()
            }
            false => vec![],
        };
        drop(view);
        if written.is_empty() && ahead == 0 {
            return self.exchange(&victims, new).map_or(Room::None, Room::Charged);
        }
        for (output, charge) in written {
            self.write(output, Some(charge));
        }
        Room::Later
    }

    /// What must be written before it goes: what is worth it and not on disk yet.
    fn worth_a_file(
        &self,
        view: &ReplicaView,
        terms: Terms<'_>,
        key: Key,
    ) -> Option<(ToSpill, Arc<MemoryReservation>)> {
        let (segment, Stored::Output(expression)) = key else { return None };
        let held = view.segments.get(&segment)?;
        let output = held.outputs.get(&expression)?;
        let ns_per_row = terms.expressions.get(expression)?.ns_per_row();
        let ns = ns_per_row.saturating_mul(output.values.rows_known() as u64);
        let is_worth_it = terms.disk?.is_worth_it(ns, output.bytes);
        if !is_worth_it || held.on_disk(expression).is_some() || self.storing.refused.contains(&key)
        {
            return None;
        }
        let (table, uses) = (Arc::clone(&view.partition.table), Arc::clone(&output.uses));
        let values = output.values.clone();
        let charge = Arc::clone(&output.charge);
        Some((ToSpill { segment, expression, table, values, ns, uses }, charge))
    }

    /// Takes `victims` out of the view and charges what comes, or leaves all as it is.
    fn exchange(&self, victims: &[Key], new: &New) -> Option<Arc<MemoryReservation>> {
        let replica = &self.args.replica;
        self.args.node.charge_after(new.what, new.bytes, || {
            let mut view = self.view();
            let taken: Vec<Taken> =
                victims.iter().filter_map(|key| Taken::out_of(&mut view, *key)).collect();
            replica.publish(view);
            if !taken.iter().all(Taken::is_ours) {
                // A query has just begun to read one: its bytes stay in memory.
                let mut view = self.view();
                taken.into_iter().for_each(|taken| taken.put_back(&mut view));
                replica.publish(view);
                return false;
            }
            let view = replica.view();
            for (segment, stored) in victims {
                let held = view.segments.get(segment);
                if let (Some(held), Stored::Output(id)) = (held, stored)
                    && let Some(file) = held.on_disk(*id)
                {
                    file.set_in_memory(false);
                }
            }
            true
        })
    }

    /// Puts what came into the view.
    fn put(&self, coming: Coming, new: New, charge: Arc<MemoryReservation>) {
        let mut view = self.view();
        let Some(held) = view.segments.get_mut(&new.key.0) else { return };
        let New { bytes, uses, values, .. } = new;
        match (coming, values) {
            (Coming::Output(offer) | Coming::Followed(offer), Some(values)) => {
                let id = offer.expression.id;
                held.outputs.insert(id, StoredOutput { values, bytes, uses, charge });
                // It knows less.
                held.spilled.remove(&id);
                self.args.replica.publish(view);
            }
            (Coming::ReadBack(offer), Some(values)) => {
                let id = offer.expression.id;
                held.outputs.insert(id, StoredOutput { values, bytes, uses, charge });
                if let Some(file) = held.on_disk(id) {
                    file.set_in_memory(true);
                }
                self.args.replica.publish(view);
            }
            (Coming::Partial(offer), _) => {
                let partial = offer.stored(bytes, uses, charge);
                held.partials.insert(partial.fragment.id, partial);
                self.args.replica.publish(view);
            }
            (_, None) => {}
        }
    }

    /// Gives what found no room in memory to the disk, if it is worth that.
    fn give_to_disk(&mut self, coming: &Coming, new: New) {
        let is_worth_it = self.terms().disk.is_some_and(|disk| disk.is_worth_it(new.ns, new.bytes));
        match (coming, new.values) {
            (Coming::Output(offer) | Coming::Followed(offer), Some(values)) if is_worth_it => {
                let (segment, expression) = (offer.segment, offer.expression.id);
                let table = Arc::clone(&self.args.partition.table);
                let (ns, uses) = (new.ns, new.uses);
                self.write(ToSpill { segment, expression, table, values, ns, uses }, None);
            }
            _ => self.args.reference.free(),
        }
    }

    /// Has an output written. What has a `charge` gives way afterwards; what has none keeps its place in
    /// the queue until then.
    fn write(&mut self, output: ToSpill, charge: Option<Arc<MemoryReservation>>) {
        let Some(spill) = self.args.node.spill.clone() else { return };
        let storing = &mut self.storing;
        while storing.tasks.try_join_next().is_some() {} // Forget tasks that are over.
        storing.tickets += 1;
        let (number, myself) = (storing.tickets, storing.myself.clone());
        let key = (output.segment, output.expression);
        let gives_way = charge.as_ref().map(|charge| charge.size() as u64);
        storing.writing.insert(number, Ticket { key, gives_way });
        storing.tasks.spawn(async move {
            let file = spill.write(output).await;
            drop(charge);
            // If the actor is gone, the file goes with the message.
            drop(myself.cast(PartitionMessage::Written(number, file)));
        });
    }

    pub(super) fn on_written(&mut self, number: u64, file: Option<Arc<SpillFile>>) {
        // What was thrown away meanwhile has no ticket any more, and its file goes.
        let Some(ticket) = self.storing.writing.remove(&number) else { return };
        let (segment, expression) = ticket.key;
        match file {
            Some(file) => self.put_file(segment, expression, file),
            None => drop(self.storing.refused.insert((segment, Stored::Output(expression)))),
        }
        self.ended(&ticket);
    }

    fn put_file(&self, segment: SegmentId, expression: ExpressionId, file: Arc<SpillFile>) {
        let mut view = self.view();
        let Some(held) = view.segments.get_mut(&segment) else { return };
        let rows = file.rows_known();
        let on_disk = held.on_disk(expression).map(|there| there.rows_known());
        let in_memory = held.outputs.get(&expression).map(|output| output.values.rows_known());
        if on_disk.is_some_and(|there| there > rows) || in_memory.is_some_and(|here| here > rows) {
            return;
        }
        if in_memory.is_some_and(|here| here < rows) {
            held.outputs.remove(&expression);
        }
        file.set_in_memory(in_memory == Some(rows));
        held.spilled.retain(|_, there| !there.is_gone());
        held.spilled.insert(expression, file);
        self.args.replica.publish(view);
    }

    /// Throws the outputs of one expression away, or everything; also what is on its way.
    pub(super) fn drop_outputs(&mut self, which: Option<ExpressionId>) -> u64 {
        let is_meant = |id: ExpressionId| which.is_none_or(|which| which == id);
        let before = self.storing.waiting.len();
        self.storing.waiting.retain(|waiting| !is_meant(waiting.coming.series()));
        (self.storing.waiting.len()..before).for_each(|_| self.args.reference.free());
        self.storing.following.retain(|_, id| !is_meant(*id));
        let meant = self.storing.writing.extract_if(|_, ticket| is_meant(ticket.key.1));
        let meant: Vec<Ticket> = meant.map(|(_, ticket)| ticket).collect();
        let mut view = self.view();
        let mut dropped = 0;
        for held in view.segments.values_mut() {
            let before = held.outputs.len() + held.only_on_disk().count();
            held.outputs.retain(|id, _| !is_meant(*id));
            held.spilled.retain(|id, file| !file.is_gone() && !is_meant(*id));
            dropped += (before - held.outputs.len() - held.only_on_disk().count()) as u64;
            let series = |partial: &StoredPartial| partial.fragment.shape.series();
            let gone = held.partials.extract_if(|_, partial| is_meant(series(partial)));
            dropped += gone.count() as u64;
        }
        self.args.replica.publish(view);
        meant.iter().for_each(|ticket| self.ended(ticket));
        dropped
    }
}
