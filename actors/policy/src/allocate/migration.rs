//! How long it takes to change the number of nodes, and what the cluster can carry meanwhile.

/// Data that moves while users go on asking.
///
/// Data lies evenly on all nodes. Each node sends or takes in one stream at a time, so a move between two
/// numbers of nodes has as many streams as the smaller of the nodes that are there before and after and of
/// those that come or go. While a node is filled it carries as much load as it has data.
///
/// # Source
/// Taft and others, *P-Store: An Elastic Database System with Predictive Provisioning*, SIGMOD 2018,
/// section 4.4: time, effective capacity and cost of a move. Where nodes come in rounds of unequal size
/// the cost is that of equal rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Migration {
    whole_slots: f64,
}

impl Migration {
    /// Migration of data that one stream carries over in `whole_slots` slots; what is not a number above zero
    /// is taken for no time at all.
    #[must_use]
    pub fn new(whole_slots: f64) -> Self {
        Self { whole_slots: if whole_slots > 0.0 { whole_slots } else { 0.0 } }
    }

    /// Migration of which that from ten nodes to eleven takes `slots`.
    #[must_use]
    pub fn of_step(slots: f64) -> Self {
        Self::new(11.0 * slots)
    }

    /// Slots that it takes to go from one number of nodes to another; at least one unless they are equal.
    #[must_use]
    pub fn slots(&self, from: u32, to: u32) -> usize {
        if from == to {
            return 0;
        }
        let (least, most) = (from.min(to).max(1), from.max(to));
        let streams = least.min(from.abs_diff(to));
        let share = 1.0 - f64::from(least) / f64::from(most);
        // A hair less, so that a move of exactly so many slots does not take one more.
        ((self.whole_slots * share / f64::from(streams) - 1e-9).ceil() as usize).max(1)
    }

    /// Nodes' worth of load that can be carried when `done` (0 to 1) of the data that moves has moved.
    #[must_use]
    pub fn effective(from: u32, to: u32, done: f64) -> f64 {
        let (from, to) = (1.0 / f64::from(from.max(1)), 1.0 / f64::from(to.max(1)));
        // The node with most data carries the same load as data.
        1.0 / (from + done.clamp(0.0, 1.0) * (to - from))
    }

    /// Nodes times slots of a move: new nodes start when their turn comes, old ones go when they are empty.
    #[must_use]
    pub fn node_slots(&self, from: u32, to: u32) -> f64 {
        let (least, most) = (f64::from(from.min(to)), f64::from(from.max(to)));
        let slots = self.slots(from, to) as f64;
        if most - least <= least { slots * most } else { slots * (2.0 * least + most) / 2.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_what_was_said_and_more_streams_less_time() {
        let moves = Migration::of_step(15.0);
        assert_eq!(moves.slots(10, 11), 15);
        assert_eq!(moves.slots(11, 10), 15);
        assert_eq!(moves.slots(10, 10), 0);
        // Half of the data over ten streams.
        assert_eq!(moves.slots(10, 20), (165.0_f64 / 2.0 / 10.0).ceil() as usize);
        assert_eq!(moves.slots(1, 2), 83);
        assert_eq!(Migration::new(f64::NAN).slots(3, 9), 1);
    }

    #[test]
    fn capacity_goes_from_that_before_to_that_after_and_never_beyond() {
        for (from, to) in [(3, 9), (9, 3), (1, 2)] {
            let at = |done: f64| Migration::effective(from, to, done);
            assert!((at(0.0) - f64::from(from)).abs() < 1e-9, "{from} to {to}");
            assert!((at(1.0) - f64::from(to)).abs() < 1e-9, "{from} to {to}");
            let middle = at(0.5);
            assert!((f64::from(from.min(to))..=f64::from(from.max(to))).contains(&middle));
            // Far from the mean: most load stays where most data is.
            assert!(middle < f64::from(from + to) / 2.0);
        }
    }

    #[test]
    fn all_nodes_of_a_small_move_are_there_at_once_and_those_of_a_large_one_come_in_rounds() {
        let moves = Migration::of_step(10.0);
        assert!((moves.node_slots(10, 12) - 12.0 * moves.slots(10, 12) as f64).abs() < 1e-9);
        let large = moves.node_slots(2, 8) / moves.slots(2, 8) as f64;
        assert!((large - 6.0).abs() < 1e-9, "4, 6 and 8 in turn: {large}");
    }
}
