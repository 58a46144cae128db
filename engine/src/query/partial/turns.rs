//! The order in which partitions hand on their states, so that a repeated query merges them in the same one.
//!
//! Floats that are added in another order give another last digit. An exchange above takes batches as they
//! come: so each partition computes when it likes, and hands on what it has when the ones before it ended.

use tokio::sync::watch;

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Turns(watch::Sender<State>);

#[derive(Debug)]
struct State {
    ended: Vec<bool>,
    in_any_order: bool,
}

impl State {
    fn has_come(&self, partition: usize) -> bool {
        self.in_any_order || self.ended.iter().take(partition).all(|ended| *ended)
    }
}

impl Turns {
    pub(super) fn new(partitions: usize) -> Self {
        let state = State { ended: vec![false; partitions], in_any_order: false };
        Self(watch::Sender::new(state))
    }

    /// Whether `partition` may hand something on.
    pub(super) fn has_come(&self, partition: usize) -> bool {
        self.0.borrow().has_come(partition)
    }

    /// Waits until `partition` may.
    pub(super) async fn come(&self, partition: usize) {
        let mut state = self.0.subscribe();
        // Fails only once nobody is left to end.
        drop(state.wait_for(|state| state.has_come(partition)).await);
    }

    /// `partition` has nothing more to hand on.
    pub(super) fn end(&self, partition: usize) {
        self.0.send_modify(|state| {
            if let Some(ended) = state.ended.get_mut(partition) {
                *ended = true;
            }
        });
    }

    /// Nobody waits any more: what comes is not small.
    pub(super) fn in_any_order(&self) {
        self.0.send_modify(|state| state.in_any_order = true);
    }
}
