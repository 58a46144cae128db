//! One function call on one segment: the values that are known, those a scan computes, and what it took.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, ArrayRef, BooleanBufferBuilder};
use arrow::buffer::BooleanBuffer;
use arrow::compute::concat;
use arrow::datatypes::DataType;
use datafusion::common::Result;
use foreshard_actors::expressions::FunctionExpression;
use foreshard_actors::partition::{
    Flight, Held, OutputValues, SegmentLoad, Selected, StoredOutput, Turn,
};

/// What costs less than so many times the bound is kept when it is asked for again, not at once: keeping
/// costs something too, and much is asked for once.
const KEPT_AT_ONCE: u64 = 4;

/// A call that a query asks for on one segment.
pub(super) struct Asked {
    pub(super) expression: Arc<FunctionExpression>,
    pub(super) data_type: DataType,
    /// Whether the query reads stored values.
    pub(super) is_stored: bool,
    /// Where queries that compute it meet; `None` if what is computed is not stored.
    pub(super) flight: Option<Arc<Flight>>,
}

impl Asked {
    /// The call on a segment of which `held` is what a replica holds; `from_disk` was read for it.
    pub(super) fn on(
        self,
        held: Option<&Held>,
        from_disk: Option<StoredOutput>,
    ) -> Arc<SegmentCall> {
        let id = self.expression.id;
        let stored = held.filter(|_| self.is_stored).and_then(|held| held.outputs.get(&id));
        if let Some(stored) = stored {
            stored.uses.fetch_add(1, Ordering::Relaxed);
        }
        let is_fresh = held.is_some_and(|held| held.is_first_ask(id));
        let is_from_disk = stored.is_none() && from_disk.is_some();
        let call = SegmentCall::new(self, stored.cloned().or(from_disk), is_fresh);
        Arc::new(SegmentCall { is_from_disk, load: held.map(|held| held.load.clone()), ..call })
    }
}

/// A call on one segment.
pub(super) struct SegmentCall {
    pub(super) expression: Arc<FunctionExpression>,
    pub(super) stored: Option<StoredOutput>,
    pub(super) is_fresh: bool,
    pub(super) flight: Option<Arc<Flight>>,
    data_type: DataType,
    /// Whether what is stored is on disk, where nothing is added to it.
    is_from_disk: bool,
    /// Where it is counted what it costs by block of rows.
    load: Option<SegmentLoad>,
    state: Mutex<State>,
}

/// What changes while the segment is read.
#[derive(Default)]
struct State {
    /// First row of the current batch within the segment.
    start: usize,
    /// Rows of the current batch.
    rows: usize,
    /// What is known of the current batch; `None` if nothing is.
    here: Option<OutputValues>,
    /// Rows of the current batch that were asked for.
    asked: Option<BooleanBuffer>,
    /// Whether values of the current batch were computed.
    has_new: bool,
    /// What was computed, if it is to be offered.
    collected: Option<Collected>,
    used: Used,
}

/// Values computed so far, batch after batch.
#[derive(Default)]
struct Collected {
    known: Option<BooleanBufferBuilder>,
    pieces: Vec<ArrayRef>,
}

/// What a call was asked for and what that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    /// Rows asked for.
    pub(super) rows: u64,
    /// Of these, rows whose value was stored.
    pub(super) rows_stored: u64,
    /// Of these, rows whose value another query computed at the same time.
    pub(super) rows_waited: u64,
    /// Nanoseconds spent computing the others.
    pub(super) ns: u64,
    /// Nanoseconds for which that waited for CPUs.
    pub(super) waited_ns: u64,
    /// Bytes of what was computed.
    pub(super) bytes: u64,
}

impl SegmentCall {
    /// The call on a segment of which `stored` is known.
    pub(super) fn new(asked: Asked, stored: Option<StoredOutput>, is_fresh: bool) -> Self {
        let Asked { expression, data_type, flight, .. } = asked;
        let is_whole = stored.as_ref().is_some_and(|stored| stored.values.is_whole());
        let flight = flight.filter(|_| !is_whole);
        let collected = flight.is_some().then(Collected::default);
        let state = Mutex::new(State { collected, ..State::default() });
        let (is_from_disk, load) = (false, None);
        Self { expression, stored, is_fresh, flight, data_type, is_from_disk, load, state }
    }

    /// Whether the values of all rows are stored.
    pub(super) fn is_whole(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.values.is_whole())
    }

    /// Share of the segment's rows that must be computed when they are asked for.
    pub(super) fn share_missing(&self) -> f64 {
        self.stored.as_ref().map_or(1.0, |stored| {
            1.0 - stored.values.rows_known() as f64 / stored.values.rows().max(1) as f64
        })
    }

    /// Rows of the current batch.
    pub(super) fn batch_rows(&self) -> usize {
        self.state().rows
    }

    /// Goes on to the next batch.
    pub(super) fn begin(&self, start: usize, rows: usize) {
        let mut state = self.state();
        state.start = start;
        state.rows = rows;
        state.here = self.stored.as_ref().map(|stored| stored.values.slice(start, rows));
        state.asked = None;
        state.has_new = false;
    }

    /// Takes over what another query computed of the current batch.
    pub(super) fn learn(&self, turn: &Turn<'_>) -> Result<()> {
        let mut state = self.state();
        if let Some(there) = turn.known(state.start, state.rows) {
            state.here = Some(match state.here.take() {
                Some(here) => here.merge(there)?,
                None => there.clone(),
            });
        }
        Ok(())
    }

    /// Takes note that the values of so many rows came from another query that was waited for.
    pub(super) fn waited(&self, rows: usize) {
        self.state().used.rows_waited += rows as u64;
    }

    /// Takes note that computing waited so long for CPUs.
    pub(super) fn queued(&self, ns: u64) {
        self.state().used.waited_ns += ns;
    }

    /// Tells other queries what is known of the current batch.
    pub(super) fn tell(&self, turn: &mut Turn<'_>) {
        let state = self.state();
        if let Some(here) = &state.here {
            turn.tell(state.start, here.clone());
        }
    }

    /// What is known of the rows of the batch that are `wanted` (`None`: all).
    pub(super) fn look(&self, wanted: Option<&BooleanBuffer>) -> Result<Selected> {
        let state = self.state();
        let selected = match &state.here {
            Some(here) => here.select(wanted)?,
            None => {
                let rows = wanted.map_or(state.rows, BooleanBuffer::count_set_bits);
                OutputValues::nothing(rows, &self.data_type).select(None)?
            }
        };
        Ok(selected)
    }

    /// Takes note of an answer for the `wanted` rows, of which `missing` (rows of the batch) had to be
    /// computed, to `computed`, in `ns` nanoseconds.
    pub(super) fn answered(
        &self,
        wanted: Option<&BooleanBuffer>,
        computed: Option<(BooleanBuffer, &ArrayRef)>,
        ns: u64,
    ) -> Result<()> {
        let mut state = self.state();
        let rows_new = match (&state.asked, wanted) {
            (Some(asked), Some(wanted)) => (wanted & &!asked).count_set_bits(),
            (Some(asked), None) => state.rows - asked.count_set_bits(),
            (None, Some(wanted)) => wanted.count_set_bits(),
            (None, None) => state.rows,
        };
        state.asked = Some(match (&state.asked, wanted) {
            (Some(asked), Some(wanted)) => asked | wanted,
            (None, Some(wanted)) => wanted.clone(),
            (_, None) => BooleanBuffer::new_set(state.rows),
        });
        let rows_computed = computed.as_ref().map_or(0, |(missing, _)| missing.count_set_bits());
        state.used.rows += rows_new as u64;
        state.used.rows_stored += rows_new.saturating_sub(rows_computed) as u64;
        state.used.ns += ns;
        if let Some((missing, values)) = computed {
            state.used.bytes += values.get_array_memory_size() as u64;
            let new = OutputValues::of_rows(missing, Arc::clone(values));
            state.here = match (state.here.take(), new) {
                (Some(here), Some(new)) => Some(here.merge(&new)?),
                (here, new) => new.or(here),
            };
            state.has_new = true;
        }
        Ok(())
    }

    /// Counts what the batch cost or would have cost on the rows that were asked for, before it ends.
    pub(super) fn count(&self, now_ns: u64) {
        let state = self.state();
        let Used { rows, rows_stored, ns, .. } = state.used;
        if let (Some(load), Some(asked)) = (&self.load, &state.asked)
            && rows > 0
        {
            let would_be_ns = ns + rows_stored * self.expression.ns_per_row();
            load.count(now_ns, state.start, asked, would_be_ns as f64 / rows as f64);
        }
    }

    /// Ends the batch; returns what the call was asked for in it. What is cheaper than `ns_per_row_min`,
    /// or not much dearer and asked for the first time, is not collected any longer.
    pub(super) fn end(&self, ns_per_row_min: u64) -> Used {
        let mut guard = self.state();
        let state = &mut *guard;
        let bound = ns_per_row_min * if self.is_fresh { KEPT_AT_ONCE } else { 1 };
        if self.expression.is_measured() && self.expression.ns_per_row() < bound {
            state.collected = None;
        }
        if state.has_new
            && let (Some(collected), Some(here)) = (&mut state.collected, state.here.take())
            && let Ok(values) = here.values()
        {
            let known = collected.known.get_or_insert_with(|| BooleanBufferBuilder::new(0));
            known.append_n(state.start - known.len(), false);
            match here.known() {
                Some(bits) => known.append_buffer(bits),
                None => known.append_n(state.rows, true),
            }
            collected.pieces.push(values);
        }
        state.here = None;
        std::mem::take(&mut state.used)
    }

    /// What was computed for a segment of `rows` rows, if anything was; with what was read from disk, if
    /// anything was.
    pub(super) fn collected(&self, rows: usize) -> Option<OutputValues> {
        let Collected { known, pieces } = self.state().collected.take()?;
        let mut known = known?;
        known.append_n(rows.checked_sub(known.len())?, false);
        let pieces: Vec<&dyn Array> = pieces.iter().map(AsRef::as_ref).collect();
        let computed = OutputValues::of_rows(known.finish(), concat(&pieces).ok()?)?;
        match self.stored.as_ref().filter(|_| self.is_from_disk) {
            Some(stored) => computed.merge(&stored.values).ok(),
            None => Some(computed),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change leaves the state whole; after a panic of the function the batch is not used.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
