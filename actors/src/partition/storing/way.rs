//! Lets outputs go for those of another table, which has less than its part of the node's memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use foreshard_policy::budgets::gives_way;

use crate::node::ReplicaHandle;
use crate::partition::actor::{PartitionMessage, PartitionState};
use crate::partition::storing::taken::Taken;
use crate::partition::worth::{Stored, Terms};

impl PartitionState {
    /// An offer found no room: asks the table that has most above its part for the bytes, if this one has
    /// less than its own. The offer is gone by then; the next one finds the room, which is kept for it.
    pub(super) fn ask_others(&self, bytes: u64) {
        let node = &self.args.node;
        let shares = node.shares();
        if shares.is_of_one() || !node.may_ask() {
            return;
        }
        let replicas = node.replicas();
        let mut held: BTreeMap<Arc<str>, f64> = BTreeMap::new();
        let mut largest: BTreeMap<Arc<str>, (u64, &ReplicaHandle)> = BTreeMap::new();
        for (partition, handle) in replicas.iter() {
            let stored = handle.replica.view().bytes_stored();
            *held.entry(Arc::clone(&partition.table)).or_default() += stored as f64;
            let most = largest.entry(Arc::clone(&partition.table)).or_insert((stored, handle));
            if stored > most.0 {
                *most = (stored, handle);
            }
        }
        let others = node.memory_bytes() as f64 - held.values().sum::<f64>();
        let room = node.memory_bytes_max() as f64 - others;
        let own = (&self.args.partition.table, bytes as f64);
        let Some((table, excess)) = gives_way(&shares, room, &held, own) else { return };
        if let Some((stored, handle)) = largest.get(&table)
            && let Some(actor) = handle.actor.actor()
        {
            node.keep_room(own.0, bytes);
            let bytes = bytes.min(excess as u64).min(*stored);
            // If it is gone, so is what it holds.
            drop(actor.cast(PartitionMessage::GiveWay(bytes)));
        }
    }

    /// Lets so many bytes of what is worth least go. What is worth a file is written, and goes the next time.
    pub(in crate::partition) fn on_give_way(&mut self, bytes: u64) {
        let node = Arc::clone(&self.args.node);
        let disk = node.spill.as_ref().map(|spill| spill.read_cost());
        let terms = Terms { expressions: &node.expressions, disk };
        let view = self.args.replica.view();
        let victims = self.worth.make_room(&view, terms, f64::INFINITY, bytes);
        let Some(victims) = victims.filter(|_| !self.storing.is_round_on()) else { return };
        let written: Vec<_> =
            victims.iter().filter_map(|key| self.worth_a_file(&view, terms, *key)).collect();
        drop(view);
        if !written.is_empty() {
            for (output, charge) in written {
                self.write(output, Some(charge));
            }
            return;
        }
        let mut view = self.view();
        let taken: Vec<Taken> =
            victims.iter().filter_map(|key| Taken::out_of(&mut view, *key)).collect();
        self.args.replica.publish(view);
        // What a query has just begun to read stays.
        let mut view = self.view();
        for taken in taken.into_iter().filter(|taken| !taken.is_ours()) {
            taken.put_back(&mut view);
        }
        for (segment, stored) in &victims {
            if let (Some(held), Stored::Output(id)) = (view.segments.get(segment), stored)
                && let Some(file) = held.on_disk(*id)
            {
                file.set_in_memory(held.outputs.contains_key(id));
            }
        }
        self.args.replica.publish(view);
    }
}
