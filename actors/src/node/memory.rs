//! The memory of one process: what its queries take and what its nodes keep, in one pool.
//!
//! A node keeps resident segments and stored outputs within a budget of its own, and the pool has as much
//! room as queries may take and the budgets of its nodes together. So what is kept takes nothing from
//! queries, a query may use room that nobody keeps anything in, and what is kept then finds none: the
//! process never holds more than both.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion::common::{Result, resources_datafusion_err};
use datafusion::execution::memory_pool::{
    MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation, human_readable_size,
};

/// The pool of a process. Consumers that can spill share what the others leave in equal parts, as in
/// DataFusion's `FairSpillPool`; other than there, the pool grows and shrinks with its nodes.
#[derive(Debug)]
pub struct ProcessMemory {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    size: usize,
    spillers: usize,
    spillable: usize,
    unspillable: usize,
}

impl State {
    /// Bytes that a consumer may grow to at most, if it has `held`.
    fn available(&self, can_spill: bool, held: usize) -> usize {
        let left = self.size.saturating_sub(self.unspillable);
        match can_spill {
            true => left / self.spillers.max(1),
            false => held.saturating_add(left.saturating_sub(self.spillable)),
        }
    }

    fn of(&mut self, can_spill: bool) -> &mut usize {
        if can_spill { &mut self.spillable } else { &mut self.unspillable }
    }
}

impl ProcessMemory {
    /// A pool in which queries may take `query_bytes`, and nodes nothing until they come.
    #[must_use]
    pub fn new(query_bytes: usize) -> Self {
        let state = State { size: query_bytes, spillers: 0, spillable: 0, unspillable: 0 };
        Self { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change leaves the numbers whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the whole pool.
    #[must_use]
    pub fn size(&self) -> usize {
        self.state().size
    }

    /// Replaces the part of one node, `before`, by `after`.
    fn resize(&self, before: u64, after: u64) {
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut state = self.state();
        state.size = state.size.saturating_sub(bytes(before)).saturating_add(bytes(after));
    }
}

impl fmt::Display for ProcessMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process memory of {}", human_readable_size(self.size()))
    }
}

impl MemoryPool for ProcessMemory {
    fn name(&self) -> &'static str {
        "process memory"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.state().spillers += usize::from(consumer.can_spill());
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        let mut state = self.state();
        state.spillers = state.spillers.saturating_sub(usize::from(consumer.can_spill()));
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        *self.state().of(reservation.consumer().can_spill()) += additional;
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        let mut state = self.state();
        let held = state.of(reservation.consumer().can_spill());
        *held = held.saturating_sub(shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let (can_spill, held) = (reservation.consumer().can_spill(), reservation.size());
        let mut state = self.state();
        let available = state.available(can_spill, held);
        if held.saturating_add(additional) > available {
            drop(state);
            return Err(resources_datafusion_err!(
                "{} needs {} more than the {} it has, and {} are available to it of the {} of this process",
                reservation.consumer().name(),
                human_readable_size(additional),
                human_readable_size(held),
                human_readable_size(available.saturating_sub(held)),
                human_readable_size(self.size())
            ));
        }
        *state.of(can_spill) += additional;
        Ok(())
    }

    fn reserved(&self) -> usize {
        let state = self.state();
        state.spillable + state.unspillable
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.size())
    }
}

/// What one node keeps of it.
#[derive(Debug)]
pub(super) struct NodeMemory {
    process: Arc<ProcessMemory>,
    used: AtomicUsize,
    max: AtomicU64,
    /// Held while it is decided whether something fits: two that race must not find the same room.
    charging: Mutex<()>,
}

impl NodeMemory {
    /// A part of `max` bytes, which the pool grows by as long as the node lives.
    pub(super) fn new(process: Arc<ProcessMemory>, max: u64) -> Arc<Self> {
        process.resize(0, max);
        let (used, max, charging) = (AtomicUsize::new(0), AtomicU64::new(max), Mutex::default());
        Arc::new(Self { process, used, max, charging })
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed) as u64
    }

    pub(super) fn max(&self) -> u64 {
        self.max.load(Ordering::Relaxed)
    }

    pub(super) fn set_max(&self, bytes: u64) {
        let before = self.max.swap(bytes, Ordering::Relaxed);
        self.process.resize(before, bytes);
    }

    /// Bytes that must go before `more` find room, if `leaving` go anyway.
    pub(super) fn lacking(&self, more: u64, leaving: u64) -> u64 {
        let of = |used: u64, max: u64| {
            used.saturating_add(more).saturating_sub(leaving).saturating_sub(max)
        };
        let process = of(self.process.reserved() as u64, self.process.size() as u64);
        of(self.used(), self.max()).max(process)
    }

    /// Charges `bytes` as soon as `make_room` has given others back, unless that says that it could not.
    pub(super) fn charge(
        self: &Arc<Self>,
        what: &str,
        bytes: u64,
        make_room: impl FnOnce() -> bool,
    ) -> Option<Arc<MemoryReservation>> {
        let _charging = self.charging.lock().unwrap_or_else(PoisonError::into_inner);
        if !make_room() || self.used().saturating_add(bytes) > self.max() {
            return None;
        }
        let pool: Arc<dyn MemoryPool> = Arc::clone(self) as Arc<dyn MemoryPool>;
        let reservation = MemoryConsumer::new(what).register(&pool);
        reservation.try_grow(usize::try_from(bytes).ok()?).ok()?;
        Some(Arc::new(reservation))
    }
}

impl Drop for NodeMemory {
    fn drop(&mut self) {
        self.process.resize(self.max(), 0);
    }
}

impl fmt::Display for NodeMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a node's part of {}", self.process)
    }
}

impl MemoryPool for NodeMemory {
    fn name(&self) -> &'static str {
        "node memory"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.process.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.process.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.used.fetch_add(additional, Ordering::Relaxed);
        self.process.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.process.shrink(reservation, shrink);
        self.used.fetch_sub(shrink, Ordering::Relaxed);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        self.process.try_grow(reservation, additional)?;
        self.used.fetch_add(additional, Ordering::Relaxed);
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(memory: &Arc<ProcessMemory>, can_spill: bool) -> MemoryReservation {
        let pool: Arc<dyn MemoryPool> = Arc::clone(memory) as Arc<dyn MemoryPool>;
        MemoryConsumer::new("query").with_can_spill(can_spill).register(&pool)
    }

    #[test]
    fn a_query_may_use_room_that_nobody_keeps_anything_in_and_what_is_kept_then_waits() {
        let process = Arc::new(ProcessMemory::new(100));
        let node = NodeMemory::new(Arc::clone(&process), 50);
        let sort = query(&process, false);
        sort.try_grow(120).unwrap();
        assert!(node.charge("stored output", 31, || true).is_none(), "the query has it");
        assert_eq!(node.lacking(31, 0), 1);
        let kept = node.charge("stored output", 30, || true).unwrap();
        assert_eq!((node.used(), process.reserved()), (30, 150));
        let error = sort.try_grow(1).unwrap_err().to_string();
        assert!(error.contains("query needs 1.0 B more than the 120.0 B it has"), "{error}");
        drop(sort);
        assert!(node.charge("stored output", 21, || true).is_none(), "beyond the node's budget");
        assert_eq!(node.lacking(21, 0), 1);
        drop(kept);
        assert_eq!((node.used(), process.reserved()), (0, 0));
    }

    #[test]
    fn what_is_kept_takes_nothing_from_queries() {
        let process = Arc::new(ProcessMemory::new(100));
        let node = NodeMemory::new(Arc::clone(&process), 50);
        let kept = node.charge("stored output", 50, || true).unwrap();
        let (one, other) = (query(&process, true), query(&process, true));
        one.try_grow(50).unwrap();
        other.try_grow(50).unwrap();
        assert!(one.try_grow(1).is_err(), "two that can spill have half of the rest each");
        drop(other);
        one.try_grow(50).unwrap();
        drop(kept);
        one.try_grow(50).unwrap();
    }

    #[test]
    fn the_pool_grows_and_shrinks_with_its_nodes() {
        let process = Arc::new(ProcessMemory::new(100));
        let (one, other) =
            (NodeMemory::new(Arc::clone(&process), 50), NodeMemory::new(process.clone(), 7));
        assert_eq!(process.size(), 157);
        one.set_max(10);
        drop(other);
        assert_eq!(process.size(), 110);
        assert!(one.charge("stored output", 11, || true).is_none());
        assert!(one.charge("stored output", 10, || false).is_none(), "no room could be made");
    }

    proptest! {
        #[test]
        fn no_sequence_of_charges_goes_beyond_either_bound(
            steps in prop::collection::vec((0_usize..4, 1_usize..80), 1..60),
        ) {
            let process = Arc::new(ProcessMemory::new(100));
            let node = NodeMemory::new(Arc::clone(&process), 50);
            let queries = [query(&process, false), query(&process, true), query(&process, true)];
            let mut kept = vec![];
            for (who, bytes) in steps {
                match queries.get(who) {
                    Some(query) if query.try_grow(bytes).is_err() => drop(query.free()),
                    Some(_) => {}
                    None => match node.charge("stored output", bytes as u64, || true) {
                        Some(charge) => kept.push(charge),
                        None => kept.clear(),
                    },
                }
                prop_assert!(node.used() <= 50);
                let of_queries: usize = queries.iter().map(MemoryReservation::size).sum();
                prop_assert_eq!(process.reserved(), of_queries + node.used() as usize);
                // As in DataFusion, whose spilling consumers are not held to room that others take later.
                prop_assert!(queries[0].size() + node.used() as usize <= process.size());
            }
        }
    }
}
