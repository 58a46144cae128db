//! Values that several queries need at the same time are computed once.
//!
//! Whoever computes a call on a segment first takes a *turn*; others who need the same batch wait for it
//! and find the values there. They wait no longer than computing would take: a query that is not read on
//! may hold its turn for ever.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use foreshard_policy::ids::{ExpressionId, SegmentId};
use tokio::sync::{Mutex as Turns, MutexGuard};

use crate::partition::output::OutputValues;

/// Beyond so many entries those of ended queries are cleared away.
const CLEARED_FROM: usize = 256;

/// All calls that queries compute on one node at present.
#[derive(Default)]
pub struct Flights {
    open: Mutex<HashMap<(SegmentId, ExpressionId), Weak<Flight>>>,
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flights({})", self.open.lock().map_or(0, |open| open.len()))
    }
}

impl Flights {
    /// The flight of `expression` over `segment`; it ends when the last who joined it lets go.
    #[must_use]
    pub fn join(&self, segment: SegmentId, expression: ExpressionId) -> Arc<Flight> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= CLEARED_FROM {
            open.retain(|_, flight| flight.strong_count() > 0);
        }
        let entry = open.entry((segment, expression)).or_default();
        entry.upgrade().unwrap_or_else(|| {
            let flight = Arc::new(Flight::default());
            *entry = Arc::downgrade(&flight);
            flight
        })
    }
}

/// One call over one segment while queries compute it.
#[derive(Default)]
pub struct Flight(Turns<HashMap<usize, OutputValues>>);

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").finish_non_exhaustive()
    }
}

impl Flight {
    /// Waits for the turn to compute; `None` if another one does not end its turn for `longest`.
    pub async fn turn(&self, longest: Duration) -> Option<Turn<'_>> {
        tokio::time::timeout(longest, self.0.lock()).await.ok().map(Turn)
    }
}

/// The turn to compute.
pub struct Turn<'a>(MutexGuard<'a, HashMap<usize, OutputValues>>);

impl fmt::Debug for Turn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Turn({} batches)", self.0.len())
    }
}

impl Turn<'_> {
    /// What others computed of the batch of `rows` rows from `start` on. Batches that others cut
    /// elsewhere are not found.
    #[must_use]
    pub fn known(&self, start: usize, rows: usize) -> Option<&OutputValues> {
        self.0.get(&start).filter(|values| values.rows() == rows)
    }

    /// Tells the others what is known of the batch from `start` on.
    pub fn tell(&mut self, start: usize, values: OutputValues) {
        self.0.insert(start, values);
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn values(values: Vec<i64>) -> OutputValues {
        OutputValues::whole(Arc::new(Int64Array::from(values)) as ArrayRef)
    }

    #[tokio::test]
    async fn who_comes_second_waits_and_finds_the_values() {
        let flights = Flights::default();
        let first = flights.join(SegmentId(1), ExpressionId(1));
        let second = flights.join(SegmentId(1), ExpressionId(1));
        let mut turn = first.turn(LONG).await.unwrap();
        assert!(turn.known(0, 2).is_none());
        assert!(second.turn(Duration::ZERO).await.is_none(), "it is the first one's turn");
        turn.tell(0, values(vec![7, 8]));
        drop(turn);
        let turn = second.turn(LONG).await.unwrap();
        assert_eq!(turn.known(0, 2).map(OutputValues::rows_known), Some(2));
        assert!(turn.known(0, 3).is_none() && turn.known(1, 2).is_none(), "another batch");
    }

    #[tokio::test]
    async fn a_flight_ends_with_the_last_who_joined_it() {
        let flights = Flights::default();
        let other = flights.join(SegmentId(2), ExpressionId(1));
        for round in 0..2 {
            let flight = flights.join(SegmentId(1), ExpressionId(1));
            let mut turn = flight.turn(LONG).await.unwrap();
            assert!(turn.known(0, 1).is_none(), "round {round}");
            turn.tell(0, values(vec![7]));
        }
        for segment in 3..1_000 {
            drop(flights.join(SegmentId(segment), ExpressionId(1)));
        }
        let open = flights.open.lock().unwrap().len();
        assert!(open <= CLEARED_FROM, "{open} entries");
        assert!(Arc::ptr_eq(&other, &flights.join(SegmentId(2), ExpressionId(1))));
    }
}
