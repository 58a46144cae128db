//! Policies: what is there already, and ours.

use std::collections::VecDeque;

use foreshard_policy::allocate::{Load, NodePlanner};

use super::world::Policy;

/// The same number of nodes all the time.
pub(super) struct Static(pub u32);

impl Policy for Static {
    fn decide(&mut self, _: &[f64], _: u32) -> u32 {
        self.0
    }
}

/// P-Store's reactive rule (`REACTIVE_ONLY`): a node more when three slots in a row are above what the
/// nodes carry with a margin, one less when three are below what one node less does; a node goes three
/// slots later, and that is not called off.
#[derive(Debug, Default)]
pub(super) struct Reactive {
    waited: Option<usize>,
}

const REACTIVE_SLOTS: usize = 3;
const REACTIVE_MARGIN: f64 = 1.15;

impl Policy for Reactive {
    fn decide(&mut self, loads: &[f64], nodes: u32) -> u32 {
        if let Some(waited) = &mut self.waited {
            *waited += 1;
            if *waited < REACTIVE_SLOTS {
                return nodes;
            }
            self.waited = None;
            return nodes - 1;
        }
        let Some(newest) = loads.len().checked_sub(REACTIVE_SLOTS).map(|from| &loads[from..])
        else {
            return nodes;
        };
        let with_margin = || newest.iter().map(|load| load * REACTIVE_MARGIN);
        if with_margin().all(|load| load > f64::from(nodes)) {
            return nodes + 1;
        }
        if nodes > 1 && with_margin().all(|load| load < f64::from(nodes - 1)) {
            self.waited = Some(0);
        }
        nodes
    }
}

/// Kubernetes' horizontal autoscaler: as many nodes as the last slot takes with a margin, at once; fewer
/// only when no slot of the last few wanted more. Differences within a tenth are let pass.
#[derive(Debug)]
pub(super) struct Hpa {
    margin: f64,
    slots: usize,
    wanted: VecDeque<u32>,
}

const HPA_TOLERANCE: f64 = 0.1;

impl Hpa {
    pub(super) fn new(margin: f64, slots: usize) -> Self {
        Self { margin, slots, wanted: VecDeque::new() }
    }
}

impl Policy for Hpa {
    fn decide(&mut self, loads: &[f64], nodes: u32) -> u32 {
        let load = loads.last().copied().unwrap_or(0.0) * self.margin;
        let ratio = load / f64::from(nodes);
        let wanted = if (ratio - 1.0).abs() <= HPA_TOLERANCE { nodes } else { load.ceil() as u32 };
        self.wanted.push_back(wanted);
        if self.wanted.len() > self.slots.max(1) {
            self.wanted.pop_front();
        }
        let most = self.wanted.iter().copied().max().unwrap_or(nodes);
        if wanted > nodes { wanted } else { most.min(nodes) }
    }
}

/// What is known of the coming slots after a slot: medians and 90 % quantiles in nodes, and whether they
/// may be gone by.
pub(super) trait Foresight {
    fn coming(&self, slot: usize, loads: &[f64]) -> Option<Vec<(f64, f64)>>;
}

/// The planner of the loop, by what `foresight` says; by the fallback where that says nothing.
pub(super) struct Planned<'a> {
    pub course: NodePlanner,
    pub foresight: &'a dyn Foresight,
    /// What deviations are multiplied with.
    pub width: f64,
    /// Slots for which fewer nodes must have been wanted before some go.
    pub patience: usize,
    pub fallback: Hpa,
    lower: usize,
}

impl<'a> Planned<'a> {
    pub(super) fn new(
        course: NodePlanner,
        foresight: &'a dyn Foresight,
        width: f64,
        patience: usize,
    ) -> Self {
        Self { course, foresight, width, patience, fallback: fallback(), lower: 0 }
    }
}

/// What is done without a forecast that may be gone by.
pub(super) fn fallback() -> Hpa {
    Hpa::new(1.2, 15)
}

impl Policy for Planned<'_> {
    fn decide(&mut self, loads: &[f64], nodes: u32) -> u32 {
        let without = self.fallback.decide(loads, nodes);
        let Some(coming) = self.foresight.coming(loads.len(), loads) else { return without };
        let load = |(q50, q90): &(f64, f64)| {
            let q50 = q50.max(1e-9);
            Load::new(q50, q50 * (q90 / q50).max(1.0).powf(self.width))
        };
        let loads: Vec<Load> = coming.iter().map(load).collect();
        let next = self.course.next(&loads, nodes);
        if next >= nodes {
            self.lower = 0;
            return next;
        }
        self.lower += 1;
        if self.lower <= self.patience { nodes } else { next }
    }
}

/// Knows all of it.
pub(super) struct Oracle<'a> {
    pub loads: &'a [f64],
    pub slots: usize,
}

impl Foresight for Oracle<'_> {
    fn coming(&self, slot: usize, _: &[f64]) -> Option<Vec<(f64, f64)>> {
        let end = (slot + self.slots).min(self.loads.len());
        let mut coming: Vec<(f64, f64)> =
            self.loads[slot..end].iter().map(|load| (*load, *load)).collect();
        let last = coming.last().copied()?;
        coming.resize(self.slots, last);
        Some(coming)
    }
}

/// Knows only the last slot, and that it may be otherwise by a tenth.
pub(super) struct Flat {
    pub slots: usize,
}

impl Foresight for Flat {
    fn coming(&self, _: usize, loads: &[f64]) -> Option<Vec<(f64, f64)>> {
        let last = loads.last().copied()?;
        Some(vec![(last, last * 1.1); self.slots])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reactive_rule_waits_three_slots_each_way_and_does_not_call_off() {
        let mut reactive = Reactive::default();
        assert_eq!(reactive.decide(&[3.0, 3.0], 3), 3);
        assert_eq!(reactive.decide(&[3.0, 3.0, 3.0], 3), 4);
        assert_eq!(reactive.decide(&[1.0, 1.0, 1.0], 4), 4);
        assert_eq!(reactive.decide(&[1.0, 1.0, 9.0], 4), 4);
        assert_eq!(reactive.decide(&[1.0, 9.0, 9.0], 4), 4);
        assert_eq!(reactive.decide(&[9.0, 9.0, 9.0], 4), 3);
    }

    #[test]
    fn the_autoscaler_goes_up_at_once_and_down_when_nobody_wanted_more() {
        let mut hpa = Hpa::new(1.0, 3);
        assert_eq!(hpa.decide(&[8.0], 4), 8);
        assert_eq!(hpa.decide(&[7.5], 8), 8, "within a tenth");
        assert_eq!(hpa.decide(&[2.0], 8), 8);
        assert_eq!(hpa.decide(&[2.0], 8), 8);
        assert_eq!(hpa.decide(&[2.0], 8), 2);
    }

    #[test]
    fn without_foresight_the_planner_does_what_its_fallback_does() {
        struct None_;
        impl Foresight for None_ {
            fn coming(&self, _: usize, _: &[f64]) -> Option<Vec<(f64, f64)>> {
                None
            }
        }
        let moves = foreshard_policy::allocate::Migration::of_step(5.0);
        let course = NodePlanner { moves, bounds: (2, 20), violated: 20.0 };
        let mut planned = Planned::new(course, &None_, 1.0, 5);
        let mut fallback = fallback();
        let mut loads = Vec::new();
        for slot in 0..60 {
            loads.push(8.0 + 5.0 * (f64::from(slot) / 7.0).sin());
            assert_eq!(planned.decide(&loads, 9), fallback.decide(&loads, 9));
        }
    }
}
