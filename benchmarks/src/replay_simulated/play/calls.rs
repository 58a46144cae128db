//! Calls: planned, sent to the less busy holder, read segment by segment, computed in slices.

use std::collections::VecDeque;

use foreshard_policy::calls::CallRecord;
use foreshard_policy::ids::NodeId;

use super::{Theatre, Then};
use crate::replay_simulated::cores::Pool;
use crate::replay_simulated::node::Whom;
use crate::replay_simulated::query::Query;
use crate::replay_simulated::scene::Pair;

/// Wall time that a slice of a call takes, and one ahead of calls.
const SLICE_NS: u64 = 20_000_000;
const SLICE_NS_BEHIND: u64 = 2_000_000;

impl Theatre<'_> {
    pub(super) fn begin(&mut self, number: usize) {
        self.traffic.under_way += 1;
        self.traffic.begun += 1;
        self.cores.start(Pool::Clients, self.costs.plan_ns, Then::Planned(number));
    }

    /// The less busy of the holders gets the call.
    pub(super) fn on_planned(&mut self, number: usize) {
        let Pair { partition, .. } = self.scene.pairs[self.scene.calls[number].pair];
        let holders = self.table.holders(partition);
        let node = holders.min_by_key(|node| self.nodes[node.0 as usize].in_flight);
        let node = node.unwrap_or_default();
        self.nodes[node.0 as usize].in_flight += 1;
        self.queries[number].node = node;
        let ns = match node {
            NodeId(0) => self.costs.scan_ns,
            _ => self.costs.scan_elsewhere_ns,
        };
        self.cores.start(Pool::Calls, ns, Then::Scanned(number));
    }

    /// The scan is open: it reads its segments.
    pub(super) fn on_scanned(&mut self, number: usize) {
        let call = self.scene.calls[number];
        let Pair { partition, .. } = self.scene.pairs[call.pair];
        let segments = self.table.segments(partition, call.minute as i64 + 1);
        let query = &mut self.queries[number];
        query.segments = segments.into();
        self.nodes[query.node.0 as usize].task_begins();
        self.go_on(number, true);
    }

    /// Goes on to the next segment that is not stored, or ends the query.
    ///
    /// * `has_thread`: whether it runs, or was woken and waits for a thread.
    pub(super) fn go_on(&mut self, number: usize, has_thread: bool) {
        let Pair { function, partition, .. } = self.scene.pairs[self.scene.calls[number].pair];
        let node = self.queries[number].node;
        while let Some(segment) = self.queries[number].segments.pop_front() {
            let found = self.table.look((partition, node), segment, function);
            let query = &mut self.queries[number];
            query.opens(found.rows, found.is_fresh);
            if found.is_stored {
                query.finds(self.row_ns[function]);
                continue;
            }
            query.segment = segment;
            if self.stores() {
                let flight = (node, self.scene.calls[number].pair, segment);
                if let Some(waiting) = self.flights.get_mut(&flight) {
                    return waiting.push_back(number);
                }
                self.flights.insert(flight, VecDeque::new());
            }
            return self.ask(Whom::User(number), node, has_thread);
        }
        self.end_query(number);
    }

    /// The rows of a segment are computed: they are stored, and who waited for them finds them there.
    pub(super) fn on_segment(&mut self, number: usize) {
        let pair = self.scene.calls[number].pair;
        let Pair { function, partition, .. } = self.scene.pairs[pair];
        let Query { node, segment, .. } = self.queries[number];
        if self.stores() {
            self.table.store((partition, node), segment, function);
            let waiting = self.flights.remove(&(node, pair, segment)).unwrap_or_default();
            for other in waiting {
                self.queries[other].finds(self.row_ns[function]);
                self.go_on(other, false);
            }
        }
        self.go_on(number, true);
    }

    pub(super) fn end_query(&mut self, number: usize) {
        let (now_ns, call) = (self.cores.now_ns(), self.scene.calls[number]);
        let query = &mut self.queries[number];
        query.ns_answered = now_ns - query.due_ns;
        let record = CallRecord {
            at_ms: now_ns / 1_000_000,
            node: query.node,
            ..query.record(self.scene.series(call.pair), number as u64)
        };
        let node = query.node;
        self.the_loop.record(&record);
        let (began_ns, first) = self.turn;
        let minute = (now_ns - began_ns) / self.scene.tick.as_nanos().max(1) as u64;
        let last = (first + self.scene.turn.max(1)).min(self.scene.minutes) - 1;
        self.played.minutes[(first + minute as usize).min(last)].count(&record);
        self.traffic.under_way -= 1;
        let here = &mut self.nodes[node.0 as usize];
        here.in_flight -= 1;
        here.task_ends();
        self.hand_out(node, None);
    }

    /// Asks for a permit; who has a thread keeps it if there is one at once.
    pub(super) fn ask(&mut self, whom: Whom, node: NodeId, has_thread: bool) {
        self.nodes[node.0 as usize].ask(whom);
        self.hand_out(node, has_thread.then_some(whom));
    }

    /// Hands out what permits a node has: who gets one computes a slice.
    fn hand_out(&mut self, node: NodeId, with_thread: Option<Whom>) {
        while let Some(whom) = self.nodes[node.0 as usize].next() {
            let (pair, rows_left, slice_ns) = match whom {
                Whom::User(number) => {
                    (self.scene.calls[number].pair, self.queries[number].rows_left, SLICE_NS)
                }
                Whom::Background(work) => {
                    (self.ahead[work].pair, self.ahead[work].rows_left, SLICE_NS_BEHIND)
                }
            };
            let Pair { function, row_ns, .. } = self.scene.pairs[pair];
            let rows = (slice_ns / self.row_ns[function].max(1)).max(1).min(rows_left);
            let then = Then::Sliced(whom, node, rows);
            match with_thread == Some(whom) {
                true => self.cores.go_on(Pool::Calls, rows as f64 * row_ns, then),
                false => self.cores.start(Pool::Calls, rows as f64 * row_ns, then),
            }
        }
    }

    pub(super) fn on_sliced(&mut self, whom: Whom, node: NodeId, rows: u64, ns: u64) {
        self.nodes[node.0 as usize].give_back();
        self.hand_out(node, None);
        let (pair, left) = match whom {
            Whom::User(number) => {
                (self.scene.calls[number].pair, self.queries[number].computed(rows, ns))
            }
            Whom::Background(work) => (self.ahead[work].pair, self.ahead[work].computed(rows, ns)),
        };
        let function = self.scene.pairs[pair].function;
        self.row_ns[function] = measured(self.row_ns[function], rows, ns);
        match whom {
            // Between two slices a task lets others go first.
            _ if left > 0 => self.ask(whom, node, false),
            Whom::User(number) => self.on_segment(number),
            Whom::Background(work) => self.on_segment_ahead(work),
        }
    }
}

/// A quarter of what was measured last if that were many rows or took long, less otherwise: as expressions
/// keep what a row costs.
fn measured(before: u64, rows: u64, ns: u64) -> u64 {
    const FULL: u64 = 256;
    let weight = rows.max(ns / 4_000).min(FULL);
    let mean = before * (4 * FULL - weight) + ns / rows.max(1) * weight;
    (mean / (4 * FULL)).max(1)
}
