//! Steps: what is computed ahead of calls, copied, moved and dropped.

use foreshard_policy::cluster::Step;
use foreshard_policy::decision::Outcome;
use foreshard_policy::ids::PartitionId;

use super::{Due, Theatre};
use crate::replay_simulated::ahead::Ahead;
use crate::replay_simulated::node::Whom;
use crate::replay_simulated::scene::{BYTES_PER_ROW, Pair};

/// Steps that are carried out at the same time.
const STEPS_AT_ONCE: usize = 8;

impl Theatre<'_> {
    pub(super) fn carry_out(&mut self, steps: Vec<(u64, Step)>) {
        for (id, step) in steps {
            match &step {
                Step::Precompute { expression, partition, .. } => {
                    let pair = self.scene.function(*expression).zip(self.place(partition));
                    let pair = pair.and_then(|pair| self.pair_of.get(&pair).copied());
                    match pair {
                        Some(pair) => {
                            self.steps_waiting.push_back(self.ahead.len());
                            self.ahead.push(Ahead::new(id, pair));
                        }
                        // Nobody ever calls it.
                        None => self.the_loop.ended(id, done(0, 0, 0)),
                    }
                }
                Step::DropOutput { expression, partition, .. } => {
                    if let (Some(function), Some(place)) =
                        (self.scene.function(*expression), self.place(partition))
                    {
                        self.table.forget(place, function);
                    }
                    self.the_loop.ended(id, done(0, 0, 0));
                }
                Step::Copy { partition, .. } | Step::Move { partition, .. } => {
                    let bytes = self.place(partition).map_or(0, |place| self.table.bytes(place));
                    let ns = bytes as f64 * self.costs.copy_ns_per_byte;
                    self.put(self.cores.now_ns() + ns as u64, Due::Copied(id));
                    self.copies.insert(id, step);
                }
                _ => {
                    self.copies.insert(id, step);
                    self.on_copied(id);
                }
            }
        }
        self.begin_steps();
    }

    pub(super) fn place(&self, partition: &PartitionId) -> Option<usize> {
        self.scene.parts.iter().position(|part| part.id == *partition)
    }

    pub(super) fn on_copied(&mut self, id: u64) {
        let Some(step) = self.copies.remove(&id) else { return };
        let place = step.partition().and_then(|partition| self.place(partition));
        let Some(place) = place else { return self.the_loop.ended(id, done(0, 0, 0)) };
        match step {
            Step::Copy { to, .. } => self.table.copy(place, to),
            Step::Move { from, to, .. } => {
                self.table.copy(place, to);
                self.table.drop(place, from);
            }
            Step::Drop { from, .. } => self.table.drop(place, from),
            _ => {}
        }
        self.the_loop.ended(id, done(0, self.table.bytes(place), 0));
    }

    pub(super) fn begin_steps(&mut self) {
        while self.steps_at_once < STEPS_AT_ONCE
            && let Some(work) = self.steps_waiting.pop_front()
        {
            self.steps_at_once += 1;
            let partition = self.scene.pairs[self.ahead[work].pair].partition;
            self.ahead[work].nodes = self.table.holders(partition).collect();
            self.next_segment(work, false);
        }
    }

    /// Goes on to the next segment, of the next holder where one has all, or ends the step.
    fn next_segment(&mut self, work: usize, has_thread: bool) {
        let Pair { function, partition, .. } = self.scene.pairs[self.ahead[work].pair];
        loop {
            if let Some(node) = self.ahead[work].next_segment() {
                return self.ask(Whom::Background(work), node, has_thread);
            }
            let Some(node) = self.ahead[work].nodes.pop_front() else { break };
            let mut segments = self.table.missing((partition, node), function);
            for place in (1..segments.len()).rev() {
                segments.swap(place, (self.dice.uniform() * (place + 1) as f64) as usize);
            }
            self.ahead[work].goes_to(node, segments);
        }
        let Ahead { id, rows, ns, .. } = self.ahead[work];
        self.the_loop.ended(id, done(rows, rows * BYTES_PER_ROW, ns));
        self.steps_at_once -= 1;
        self.begin_steps();
    }

    pub(super) fn on_segment_ahead(&mut self, work: usize) {
        let Ahead { pair, node, segment, .. } = self.ahead[work];
        let Pair { function, partition, .. } = self.scene.pairs[pair];
        self.table.store((partition, node), segment, function);
        self.next_segment(work, true);
    }
}

fn done(rows: u64, bytes: u64, ns: u64) -> Outcome {
    Outcome::Done { rows, bytes, ns }
}
