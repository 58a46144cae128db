//! What found no room is looked at again: when a round of writes ends, or, if it is pinned, a moment later.

use std::time::Duration;

use crate::partition::actor::{PartitionMessage, PartitionState};
use crate::partition::storing::{Ticket, Waiting};

/// How long something pinned waits for queries to let go of what would make room for it.
const MOMENT: Duration = Duration::from_millis(20);

impl PartitionState {
    /// A write is over: one more place in the queue, or one step nearer to the end of the round.
    pub(super) fn ended(&mut self, ticket: &Ticket) {
        if ticket.gives_way.is_none() {
            self.args.reference.free();
        }
        self.look_again();
    }

    /// Has what waits looked at in a moment, though nothing is written.
    pub(super) fn wait_a_moment(&mut self) {
        let myself = self.storing.myself.clone();
        self.storing.tasks.spawn(async move {
            tokio::time::sleep(MOMENT).await;
            drop(myself.cast(PartitionMessage::LookAgain));
        });
    }

    /// Offers what waited again, unless a round of writes is under way, which ends with the same.
    pub(in crate::partition) fn look_again(&mut self) {
        if self.storing.is_round_on() {
            return;
        }
        for Waiting { coming, rounds, .. } in std::mem::take(&mut self.storing.waiting) {
            self.take(coming, rounds + 1);
        }
        if self.storing.waiting.is_empty() {
            self.storing.refused.clear();
        }
    }
}
