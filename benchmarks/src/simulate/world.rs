//! Nodes that carry a load, slot by slot, while their number changes.

use foreshard_policy::allocate::Migration;

/// A policy: after each slot in which nothing moves it says how many nodes there should be.
pub(super) trait Policy {
    /// The number of nodes to go to, from `nodes`. `loads` has what is over, in nodes, newest last.
    fn decide(&mut self, loads: &[f64], nodes: u32) -> u32;
}

/// What came of each slot.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    /// Nodes that ran.
    pub nodes: Vec<f64>,
    /// Whether the load was more than could be carried.
    pub violated: Vec<bool>,
    /// What the policy said, where it was asked.
    pub asked: Vec<Option<u32>>,
}

impl Outcome {
    pub(super) fn nodes(&self, slots: &std::ops::Range<usize>) -> f64 {
        self.nodes[slots.clone()].iter().sum()
    }

    pub(super) fn violations(&self, slots: &std::ops::Range<usize>) -> f64 {
        self.violated[slots.clone()].iter().filter(|violated| **violated).count() as f64
    }

    /// Nodes times slots, and so much for each violated slot.
    pub(super) fn cost(&self, slots: &std::ops::Range<usize>, violated: f64) -> f64 {
        self.nodes(slots) + violated * self.violations(slots)
    }
}

/// A move that is under way.
#[derive(Clone, Copy, Debug)]
struct Moving {
    from: u32,
    to: u32,
    slots: usize,
    passed: usize,
}

/// Plays `policy` over `loads` (nodes that carry each slot), from slot `start` on with so many nodes as
/// that slot takes.
pub(super) fn play(
    loads: &[f64],
    start: usize,
    bounds: (u32, u32),
    moves: Migration,
    policy: &mut dyn Policy,
) -> Outcome {
    let mut course = Outcome::default();
    let need = |load: f64| (load.ceil() as u32).clamp(bounds.0, bounds.1);
    let mut nodes = loads.get(start).map_or(bounds.0, |load| need(*load));
    let mut moving: Option<Moving> = None;
    for (slot, load) in loads.iter().enumerate() {
        if slot < start {
            course.nodes.push(0.0);
            course.violated.push(false);
            course.asked.push(None);
            continue;
        }
        let asked = if moving.is_none() && slot > start {
            let to = policy.decide(&loads[..slot], nodes).clamp(bounds.0, bounds.1);
            if to != nodes {
                moving = Some(Moving { from: nodes, to, slots: moves.slots(nodes, to), passed: 0 });
            }
            Some(to)
        } else {
            None
        };
        let (capacity, running) = match &mut moving {
            Some(Moving { from, to, slots, passed }) => {
                let done = *passed as f64 / *slots as f64;
                *passed += 1;
                let running = moves.node_slots(*from, *to) / *slots as f64;
                (Migration::effective(*from, *to, done), running)
            }
            None => (f64::from(nodes), f64::from(nodes)),
        };
        if let Some(over) = moving.filter(|moving| moving.passed >= moving.slots) {
            (nodes, moving) = (over.to, None);
        }
        course.nodes.push(running);
        course.violated.push(*load > capacity + 1e-9);
        course.asked.push(asked);
    }
    course
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Always(u32);

    impl Policy for Always {
        fn decide(&mut self, _: &[f64], _: u32) -> u32 {
            self.0
        }
    }

    #[test]
    fn a_load_above_what_is_there_is_violated_until_the_move_is_over() {
        let loads = [vec![2.0; 5], vec![4.0; 20]].concat();
        let moves = Migration::of_step(1.0);
        let course = play(&loads, 0, (2, 9), moves, &mut Always(2));
        assert_eq!(course.violations(&(0..25)), 20.0);
        assert_eq!(course.nodes(&(0..25)), 50.0);
        let course = play(&loads, 0, (2, 9), moves, &mut Always(4));
        let slots = moves.slots(2, 4);
        assert_eq!(course.violations(&(0..25)), (1 + slots).saturating_sub(5) as f64);
        assert_eq!(course.nodes[24], 4.0);
        assert!((course.cost(&(0..25), 20.0) - course.nodes(&(0..25))).abs() < 1e-9);
    }

    #[test]
    fn nothing_before_the_start_counts_and_nobody_is_asked_during_a_move() {
        let course = play(&[9.0; 30], 10, (2, 9), Migration::of_step(2.0), &mut Always(5));
        assert_eq!(course.nodes(&(0..10)), 0.0);
        let asked = course.asked.iter().flatten().count();
        assert_eq!(asked, 30 - 11 - (Migration::of_step(2.0).slots(9, 5) - 1));
    }
}
