//! How many nodes there should be when, so that being ready costs least: a dynamic program.

use std::sync::LazyLock;

use super::migration::Migration;

/// Steps per node in which chances are tabled.
const GRID: usize = 8;

/// Most nodes that one move adds, and takes away. More come in several moves.
const ADD_MAX: u32 = 8;
const REMOVE_MAX: u32 = 4;

/// Slots of a move that are looked at; each stands for those up to the next.
const LOOKS_MAX: usize = 8;

/// Distance of the 90 % quantile from the median in deviations of a normal distribution.
pub const Z_90: f64 = 1.281_551_565_545;

/// Least deviation of a logarithm: nothing is known exactly.
const DEVIATION_MIN: f64 = 1e-3;

/// The load of one coming slot, in nodes that carry it: a log-normal distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    log: f64,
    deviation: f64,
}

impl Load {
    /// A load with this median and 90 % quantile, in nodes; what is not a number counts as none.
    #[must_use]
    pub fn new(q50: f64, q90: f64) -> Self {
        let log = |load: f64| if load > 0.0 { load.max(1e-9).ln() } else { 1e-9_f64.ln() };
        let log = (log(q50), log(q90));
        Self { log: log.0, deviation: ((log.1 - log.0) / Z_90).max(DEVIATION_MIN) }
    }

    /// A load that is known.
    #[must_use]
    pub fn exactly(load: f64) -> Self {
        Self::new(load, load)
    }

    /// The chance that it is more than so many nodes can carry, of which the logarithm is given.
    fn above(&self, log_nodes: f64) -> f64 {
        let z = (log_nodes - self.log) / self.deviation;
        let place = ((z + Z_MAX) * Z_STEPS).clamp(0.0, (TAIL.len() - 1) as f64);
        let (below, share) = (place as usize, place.fract());
        let above = (below + 1).min(TAIL.len() - 1);
        TAIL[below] + share * (TAIL[above] - TAIL[below])
    }
}

/// Deviations up to which the tail is tabled, and steps per deviation: straight lines between them are
/// within 2e-6.
const Z_MAX: f64 = 6.0;
const Z_STEPS: f64 = 256.0;

/// The chance that a normal number is above -6, .., 6.
static TAIL: LazyLock<Vec<f64>> = LazyLock::new(|| {
    let z = |step: usize| step as f64 / Z_STEPS - Z_MAX;
    let tail = |z: f64| 0.5 * erfc(z / std::f64::consts::SQRT_2);
    (0..=(2.0 * Z_MAX * Z_STEPS) as usize).map(|step| tail(z(step))).collect()
});

/// Complementary error function, within 1.2e-7.
///
/// # Source
/// Press and others, *Numerical Recipes*, section 6.2: Chebyshev fitting by Schonfelder's form.
fn erfc(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.5 * x.abs());
    let terms = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_87,
        -1.135_203_98,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_68,
        -1.265_512_23,
    ];
    let polynomial = terms.into_iter().fold(0.0, |sum, term| sum * t + term);
    let tail = t * (polynomial - x * x).exp();
    if x >= 0.0 { tail } else { 2.0 - tail }
}

/// What is weighed against each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NodePlanner {
    /// How nodes come and go.
    pub moves: Migration,
    /// Fewest and most nodes.
    pub bounds: (u32, u32),
    /// What a slot with more load than capacity costs, in nodes that run for a slot.
    pub violated: f64,
}

/// Costs of all that may be so far, for one slot and one number of nodes.
#[derive(Clone, Copy, Debug)]
struct Best {
    cost: f64,
    /// The number of nodes that is gone to first, and after how many slots.
    first: (u32, usize),
}

impl NodePlanner {
    /// The number of nodes to go to now, from `nodes`: the beginning of the course with the least expected
    /// cost over the slots of `loads`, nearest first. It is `nodes` itself if nothing is to be begun now.
    ///
    /// A course may stay, or be in one move at a time; a move that would not be over within the slots is
    /// not begun. So there should be more slots than the longest move takes.
    ///
    /// # Cost
    /// `O(slots * nodes)`, with some 12 moves from each number of nodes and eight looks at each.
    #[must_use]
    pub fn next(&self, loads: &[Load], nodes: u32) -> u32 {
        let (least, most) = self.bounds;
        let (least, most) = (least.max(1), most.max(least.max(1)));
        let nodes = nodes.clamp(least, most);
        let chances = Chances::new(loads, most, self.violated);
        let width = (most - least + 1) as usize;
        let unknown = Best { cost: f64::INFINITY, first: (nodes, 0) };
        let mut best = vec![vec![unknown; width]; loads.len() + 1];
        best[0][(nodes - least) as usize].cost = 0.0;
        for slot in 0..loads.len() {
            for from in least..=most {
                let here = best[slot][(from - least) as usize];
                if here.cost.is_infinite() {
                    continue;
                }
                let low = from.saturating_sub(REMOVE_MAX).max(least);
                for to in low..=(from + ADD_MAX).min(most) {
                    let slots = self.moves.slots(from, to).max(1);
                    let Some(end) = best.get_mut(slot + slots) else { continue };
                    let cost = here.cost + self.cost(&chances, slot, (from, to), slots);
                    let end = &mut end[(to - least) as usize];
                    if cost < end.cost {
                        let begins = here.first.0 == nodes && from != to;
                        let first = if begins { (to, slot) } else { here.first };
                        *end = Best { cost, first };
                    }
                }
            }
        }
        let last = best.last().into_iter().flatten();
        let course = last.min_by(|a, b| a.cost.total_cmp(&b.cost));
        course.filter(|best| best.first.1 == 0).map_or(nodes, |best| best.first.0)
    }

    fn cost(&self, chances: &Chances, slot: usize, (from, to): (u32, u32), slots: usize) -> f64 {
        if from == to {
            return f64::from(from) + chances.of(slot, f64::from(from));
        }
        let looks = slots.min(LOOKS_MAX);
        let violated = (0..looks).map(|look| {
            // The first one and the last one are among them.
            let passed = look * (slots - 1) / (looks - 1).max(1);
            let done = passed as f64 / slots as f64;
            chances.of(slot + passed, Migration::effective(from, to, done))
        });
        let each = slots as f64 / looks as f64;
        self.moves.node_slots(from, to) + each * violated.sum::<f64>()
    }
}

/// What it costs to be overloaded in each slot, by the nodes' worth that can be carried.
struct Chances {
    costs: Vec<f64>,
    width: usize,
}

impl Chances {
    fn new(loads: &[Load], most: u32, violated: f64) -> Self {
        let width = most as usize * GRID + 1;
        // No nodes carry nothing: their logarithm is minus infinity.
        let logs: Vec<f64> = (0..width).map(|step| (step as f64 / GRID as f64).ln()).collect();
        let cost = |load: &Load, log: &f64| violated * load.above(*log);
        let costs = loads.iter().flat_map(|load| logs.iter().map(move |log| cost(load, log)));
        Self { costs: costs.collect(), width }
    }

    fn of(&self, slot: usize, nodes: f64) -> f64 {
        // Down, so that nothing is carried that cannot be.
        let step = ((nodes * GRID as f64 + 1e-9) as usize).min(self.width - 1);
        self.costs[slot * self.width + step]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each move takes one slot.
    fn quick() -> NodePlanner {
        NodePlanner { moves: Migration::new(0.0), bounds: (1, 12), violated: 20.0 }
    }

    fn known(loads: impl IntoIterator<Item = f64>) -> Vec<Load> {
        loads.into_iter().map(Load::exactly).collect()
    }

    #[test]
    fn a_steady_load_gets_the_fewest_nodes_that_carry_it() {
        let loads = known([3.4; 40]);
        assert_eq!(quick().next(&loads, 4), 4);
        assert_eq!(quick().next(&loads, 2), 4);
        assert_eq!(quick().next(&loads, 6), 4);
    }

    #[test]
    fn a_move_begins_so_early_that_it_is_over_when_the_load_comes() {
        let slow = NodePlanner { moves: Migration::of_step(3.0), ..quick() };
        let slots = slow.moves.slots(4, 6);
        let rise = |at: usize| known((0..60).map(|slot| if slot < at { 3.8 } else { 5.8 }));
        assert_eq!(slow.next(&rise(slots + 4), 4), 4, "there is time");
        assert_ne!(slow.next(&rise(slots), 4), 4, "now or too late");
    }

    #[test]
    fn what_is_uncertain_gets_more_nodes_and_what_is_cheap_to_miss_fewer() {
        let around = |q90: f64| vec![Load::new(4.5, q90); 40];
        let sure = quick().next(&around(4.6), 5);
        let unsure = quick().next(&around(6.5), 5);
        let careless = NodePlanner { violated: 0.5, ..quick() }.next(&around(6.5), 5);
        assert_eq!(sure, 5);
        assert!(unsure > 6 && careless < 5, "{unsure}, {careless}");
    }

    #[test]
    fn nothing_is_begun_for_a_dip_that_is_shorter_than_the_moves() {
        let slow = NodePlanner { moves: Migration::of_step(6.0), ..quick() };
        let dip = known((0..90).map(|slot| if (5..12).contains(&slot) { 2.5 } else { 7.5 }));
        assert_eq!(slow.next(&dip, 8), 8);
        let long = known((0..400).map(|slot| if (1..380).contains(&slot) { 2.5 } else { 7.5 }));
        assert!(slow.next(&long, 8) < 8);
    }

    #[test]
    fn bounds_and_broken_loads_are_kept() {
        let wild = [f64::NAN, f64::INFINITY, -3.0, 1e300].map(Load::exactly);
        for nodes in [0, 1, 7, 99] {
            assert!((1..=12).contains(&quick().next(&wild, nodes)));
        }
        assert_eq!(quick().next(&[], 5), 5);
    }

    #[test]
    fn the_tail_of_the_normal_distribution_is_what_tables_say() {
        let tail = |z: f64| 0.5 * erfc(z / std::f64::consts::SQRT_2);
        for (z, chance) in [(0.0, 0.5), (1.0, 0.158_655), (2.326_348, 0.01), (-1.0, 0.841_345)] {
            assert!((tail(z) - chance).abs() < 1e-6, "{z}: {}", tail(z));
        }
        assert!((Load::new(2.0, 3.0).above(3.0_f64.ln()) - 0.1).abs() < 1e-5);
        assert_eq!(Load::exactly(2.0).above(f64::NEG_INFINITY), 1.0 - TAIL[TAIL.len() - 1]);
    }
}
