//! How many nodes should there be, minute by minute? Plays traces of load in virtual time, with the planner
//! of the loop and its forecasts, and with the rules that others go by.
//!
//! A slot is a minute. Nodes are so large that the peak takes twenty. A move between two numbers of nodes
//! takes time, during which the cluster carries less than it will or did ([`Migration`]); a slot whose load is
//! more than can be carried is *violated*. A tick of a trace that is longer than a minute is held flat, with
//! calls at random: nothing of the next tick is in it. The cost is nodes times slots and twenty for each
//! violated slot.
//!
//! What is tuned is tuned by the cost of the first half, and scored on the second; only the autoscaler's best
//! setting is chosen in hindsight, among those that take no more nodes than we do. The bounds are for moves
//! of which that from ten to eleven nodes takes fifteen minutes. A forecast that is turned upside down must
//! not pass them.

mod foreseen;
mod interval;
mod policies;
mod world;

use std::ops::Range;

use anyhow::Result;
use foreshard_policy::allocate::{Migration, NodePlanner};
use foreshard_policy::random::SplitMix64;

use crate::forecast::{Trace, families};
use crate::loads;
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};
use crate::threads::each;
use foreseen::{Foreseen, Inverted};
use interval::interval;
use policies::{Flat, Foresight, Hpa, Oracle, Planned, Reactive, Static, fallback};
use world::{Outcome, Policy, play};

const SLOT_MS: u64 = 60_000;
const DAY: usize = 1_440;

/// Nodes that the peak takes, and bounds of their number.
const PEAK: f64 = 20.0;
const BOUNDS: (u32, u32) = (2, 30);

/// What a violated slot costs, in nodes that run for a slot.
const VIOLATED: f64 = 20.0;

/// Slots that a move from ten nodes to eleven takes.
const STEPS: [f64; 4] = [1.0, 5.0, 15.0, 30.0];
const STEPS_QUICK: [f64; 1] = [5.0];
/// The one that bounds are for.
const STEP_JUDGED: f64 = 15.0;

/// Slots that are played at most, the newest.
const SLOTS_MAX: usize = 28 * DAY;
const SLOTS_QUICK: usize = 2 * DAY;

/// Share of a trace that is only learned from.
const LEARNED: f64 = 0.25;

/// Middle calls of a tick without which a load needs no cluster, and least days.
const CALLS_MIN: f64 = 100.0;
const DAYS_MIN: u64 = 10;

/// Settings that are tried.
const WIDTHS: [f64; 4] = [0.8, 1.2, 1.7, 2.4];
const HPA_MARGINS: [f64; 10] = [1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5, 1.6];
const HPA_SLOTS: [usize; 4] = [1, 5, 15, 45];

/// Training steps of a fit.
const FIT_STEPS: u32 = 300;
const FIT_STEPS_QUICK: u32 = 10;

const THREADS: usize = 2;

/// Runs the benchmark.
///
/// # Errors
/// A file that is no load, or a member that fails.
pub async fn run(options: Options) -> Result<Found> {
    let traces = traces(&options)?;
    let (seed, quick) = (options.seed, options.quick);
    let played = tokio::task::spawn_blocking(move || {
        each(traces, THREADS, |trace| simulate(trace, seed, quick))
    })
    .await??;
    let rows = played.iter().flat_map(|played| played.steps.iter().flat_map(|s| rows(played, s)));
    Ok((rows.collect(), figures(&played)))
}

/// The traces of loads that need a cluster, and two that nothing can be foreseen of.
fn traces(options: &Options) -> Result<Vec<Trace>> {
    let named = options.traces.iter().map(|file| Trace::read(file));
    let mut all = named.collect::<Result<Vec<_>>>()?;
    if all.is_empty() && !options.quick {
        for file in loads::beside() {
            all.extend(Trace::read(&file).ok().filter(needs_nodes));
        }
    }
    let unforeseen = families::all(options.seed, options.quick).into_iter();
    all.extend(unforeseen.filter(|trace| UNFORESEEN.contains(&trace.name.as_str())));
    Ok(all)
}

/// Families of which nothing can be foreseen.
const UNFORESEEN: [&str; 2] = ["random_walk", "anti_periodic"];

fn needs_nodes(trace: &Trace) -> bool {
    let mut calls = trace.series[0].1.clone();
    calls.sort_by(f64::total_cmp);
    let days = trace.ticks() as u64 * trace.tick_ms / (DAY as u64 * SLOT_MS);
    calls[calls.len() / 2] >= CALLS_MIN && days >= DAYS_MIN
}

/// What came of one trace.
struct Played {
    trace: String,
    /// Whether nothing can be foreseen of it.
    unforeseen: bool,
    steps: Vec<Step>,
}

/// What came of moves of one duration.
struct Step {
    minutes: f64,
    /// Slots that are scored.
    scored: Range<usize>,
    arms: Vec<Arm>,
    /// Share of slots with the gate open.
    open: f64,
    /// Slots with the gate shut in which we did something else than our fallback would have done.
    strayed: f64,
}

struct Arm {
    name: &'static str,
    setting: String,
    course: Outcome,
}

impl Step {
    fn arm(&self, name: &str) -> &Outcome {
        let found = self.arms.iter().find(|arm| arm.name == name);
        found.map_or(&self.arms[0].course, |arm| &arm.course)
    }

    fn violations(&self, name: &str) -> f64 {
        self.arm(name).violations(&self.scored)
    }

    fn nodes(&self, name: &str) -> f64 {
        self.arm(name).nodes(&self.scored)
    }

    fn cost(&self, name: &str) -> f64 {
        self.arm(name).cost(&self.scored, VIOLATED)
    }
}

fn simulate(mut trace: Trace, seed: u64, quick: bool) -> Result<Played> {
    trace.series.truncate(1);
    let tick_slots = (trace.tick_ms / SLOT_MS).max(1) as usize;
    let slots_max = if quick { SLOTS_QUICK } else { SLOTS_MAX };
    let ticks = trace.ticks();
    let first =
        ((ticks as f64 * LEARNED) as usize).max(ticks.saturating_sub(slots_max / tick_slots));
    let calls = &trace.series[0].1;
    let mut dice = SplitMix64::new(seed);
    let calls: Vec<f64> =
        calls.iter().flat_map(|calls| spread(*calls, tick_slots, &mut dice)).collect();
    let played = first * tick_slots..calls.len();
    let peak = calls[played.clone()].iter().copied().fold(1e-9, f64::max);
    let calls_per_node = peak / PEAK;
    let loads: Vec<f64> = calls.iter().map(|calls| calls / calls_per_node).collect();
    let minutes: &[f64] = if quick { &STEPS_QUICK } else { &STEPS };
    let ahead = |moves: Migration| moves.slots(BOUNDS.0, BOUNDS.0 + 1) + 15;
    let most = minutes.iter().map(|step| ahead(Migration::of_step(*step))).max().unwrap_or(15);
    let steps = if quick { FIT_STEPS_QUICK } else { FIT_STEPS };
    let mut foreseen = Foreseen::walk(&trace, first, (tick_slots, most), calls_per_node, steps)?;
    let mut all = Vec::new();
    for minutes in minutes {
        let moves = Migration::of_step(*minutes);
        foreseen.look_ahead(ahead(moves));
        all.push(step(&loads, &played, *minutes, moves, &foreseen));
        eprintln!("{}: moves of {minutes} minutes are played", trace.name);
    }
    let unforeseen = UNFORESEEN.contains(&trace.name.as_str());
    Ok(Played { trace: trace.name, unforeseen, steps: all })
}

/// Calls of the slots of a tick: equal, with what calls at random add.
fn spread(calls: f64, slots: usize, dice: &mut SplitMix64) -> Vec<f64> {
    let mean = calls / slots as f64;
    if slots == 1 {
        return vec![calls];
    }
    (0..slots).map(|_| (mean + mean.sqrt() * dice.normal()).max(0.0)).collect()
}

fn step(
    loads: &[f64],
    played: &Range<usize>,
    minutes: f64,
    moves: Migration,
    foreseen: &Foreseen,
) -> Step {
    let middle = (played.start + played.end) / 2;
    let (tuned, scored) = (played.start..middle, middle..played.end);
    let run = |policy: &mut dyn Policy| play(loads, played.start, BOUNDS, moves, policy);
    let planner = NodePlanner { moves, bounds: BOUNDS, violated: VIOLATED };
    let patience = (minutes as usize).max(3);
    let oracle = Oracle { loads, slots: foreseen.slots() };
    let flat = Flat { slots: foreseen.slots() };
    let inverted = Inverted(foreseen);
    let planned = |foresight: &dyn Foresight| {
        let widths = WIDTHS.iter().map(|width| {
            let mut policy = Planned::new(planner, foresight, *width, patience);
            (format!("width {width}"), run(&mut policy))
        });
        best(widths, &tuned)
    };
    let arm = |name, (setting, course): (String, Outcome)| Arm { name, setting, course };
    let alone = |course| (String::new(), course);
    let ours = planned(foreseen);
    let hpa = || {
        HPA_MARGINS
            .iter()
            .flat_map(|margin| HPA_SLOTS.iter().map(move |slots| (*margin, *slots)))
            .map(|(margin, slots)| {
                let setting = format!("x{margin}, {slots} slots");
                (setting, run(&mut Hpa::new(margin, slots)))
            })
    };
    let nodes_max = ours.1.nodes(&scored);
    let affordable = hpa().filter(|(_, course)| course.nodes(&scored) <= nodes_max);
    let least = |a: &(String, Outcome), b: &(String, Outcome)| {
        a.1.violations(&scored).total_cmp(&b.1.violations(&scored))
    };
    let hindsight = affordable.min_by(least);
    let mut by_fallback = fallback();
    let shut = (played.start..played.end).filter(|slot| !foreseen.is_open(*slot)).count();
    let strayed = if shut == played.len() {
        let plain = run(&mut by_fallback);
        let differs = plain.asked.iter().zip(&ours.1.asked).filter(|(a, b)| a != b);
        differs.count() as f64
    } else {
        f64::NAN
    };
    let mean = loads[scored.clone()].iter().sum::<f64>() / scored.len().max(1) as f64;
    let arms = vec![
        arm("oracle", alone(run(&mut Planned::new(planner, &oracle, 1.0, 0)))),
        arm("static mean", alone(run(&mut Static(mean.ceil() as u32)))),
        arm("static peak", alone(run(&mut Static(PEAK as u32)))),
        arm("reactive", alone(run(&mut Reactive::default()))),
        arm("hpa tuned", best(hpa(), &tuned)),
        arm("hpa in hindsight", hindsight.unwrap_or_else(|| best(hpa(), &scored))),
        arm("flat", planned(&flat)),
        arm("forecast", ours),
        arm("inverted", planned(&inverted)),
    ];
    let open = 1.0 - shut as f64 / played.len().max(1) as f64;
    Step { minutes, scored, arms, open, strayed }
}

/// The cheapest over `slots`.
fn best(
    courses: impl Iterator<Item = (String, Outcome)>,
    slots: &Range<usize>,
) -> (String, Outcome) {
    let cost = |course: &Outcome| course.cost(slots, VIOLATED);
    courses.min_by(|a, b| cost(&a.1).total_cmp(&cost(&b.1))).unwrap_or_default()
}

fn rows<'a>(played: &'a Played, step: &'a Step) -> impl Iterator<Item = Row> + 'a {
    let hours = |nodes: f64| nodes * SLOT_MS as f64 / 3.6e6;
    step.arms.iter().map(move |arm| {
        let days = |course: &Outcome| by_day(course, &step.scored);
        let (low, high) = interval(&days(&arm.course), &days(step.arm("reactive")));
        Row::default()
            .with("trace", played.trace.as_str())
            .with("move_minutes", step.minutes)
            .with("arm", arm.name)
            .with("setting", arm.setting.as_str())
            .with("violations", arm.course.violations(&step.scored))
            .with("node_hours", hours(arm.course.nodes(&step.scored)))
            .with("node_hours_vs_oracle", arm.course.nodes(&step.scored) / step.nodes("oracle"))
            .with("cost_regret", step_regret(step, arm.name))
            .with("violations_vs_reactive", step.violations(arm.name) / step.violations("reactive"))
            .with("low", low)
            .with("high", high)
            .with("gate_open", step.open)
    })
}

fn by_day(course: &Outcome, slots: &Range<usize>) -> Vec<f64> {
    let days = course.violated[slots.clone()].chunks(DAY);
    days.map(|day| day.iter().filter(|violated| **violated).count() as f64).collect()
}

fn step_regret(step: &Step, arm: &str) -> f64 {
    step.cost(arm) / step.cost("oracle") - 1.0
}

/// The worst of all traces that can be foreseen.
fn figures(played: &[Played]) -> Vec<Figure> {
    let judged = |minutes: f64| {
        let seen = played.iter().filter(|played| !played.unforeseen);
        seen.flat_map(|played| &played.steps).filter(move |step| step.minutes == minutes)
    };
    let worst =
        |of: &dyn Fn(&Step) -> f64, minutes: f64| judged(minutes).map(of).fold(f64::NAN, f64::max);
    let at_most = |name: &str, bound: f64, of: &dyn Fn(&Step) -> f64, minutes: f64| {
        Figure::bounded(name, worst(of, minutes), "ratio", Bound::AtMost(bound))
    };
    let over = |rival: &'static str| {
        move |step: &Step| step.violations("forecast") / step.violations(rival).max(1.0)
    };
    let mut figures = Vec::new();
    if judged(STEP_JUDGED).next().is_some() {
        let nodes =
            |rival: &'static str| move |step: &Step| step.nodes("forecast") / step.nodes(rival);
        let inverted =
            |step: &Step| step.violations("inverted") / step.violations("reactive").max(1.0);
        let least = judged(STEP_JUDGED).map(inverted).fold(f64::NAN, f64::min);
        figures.extend([
            at_most("violations_vs_reactive", 0.28, &over("reactive"), STEP_JUDGED),
            at_most("node_hours_vs_reactive", 1.1, &nodes("reactive"), STEP_JUDGED),
            at_most("violations_vs_hpa", 0.5, &over("hpa in hindsight"), STEP_JUDGED),
            at_most("node_hours_vs_oracle", 1.12, &nodes("oracle"), STEP_JUDGED),
            at_most("cost_regret", 0.18, &|step| step_regret(step, "forecast"), STEP_JUDGED),
            Figure::bounded("inverted_vs_reactive_least", least, "ratio", Bound::AtLeast(0.28)),
        ]);
        let cost = |step: &Step| step.cost("forecast") / step.cost("hpa tuned");
        figures.push(at_most("cost_vs_hpa_moves_of_a_minute", 1.0, &cost, 1.0));
    }
    let strayed = played.iter().flat_map(|played| &played.steps).map(|step| step.strayed);
    let strayed = strayed.filter(|strayed| !strayed.is_nan()).reduce(f64::max);
    if let Some(strayed) = strayed {
        let name = "slots_unlike_fallback_with_gate_shut";
        figures.push(Figure::bounded(name, strayed, "slots", Bound::AtMost(0.0)));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_and_night_that_is_foreseen_costs_less_than_one_that_is_not() {
        let trace =
            families::all(1, true).into_iter().find(|trace| trace.name == "season").unwrap();
        let played = simulate(trace, 1, true).unwrap();
        let step = &played.steps[0];
        assert!(step.open > 0.5, "the gate was open in {}", step.open);
        assert!(step.cost("oracle") < step.cost("reactive"));
        assert!(step.cost("forecast") < step.cost("inverted"));
        assert!(step.cost("forecast") < step.cost("static peak"));
        assert_eq!(rows(&played, step).count(), 9);
    }

    #[test]
    fn a_tick_is_spread_over_its_minutes_with_nothing_of_the_next_one() {
        let mut dice = SplitMix64::new(3);
        let slots = spread(3_000.0, 30, &mut dice);
        assert_eq!(slots.len(), 30);
        assert!(slots.iter().all(|calls| (40.0..160.0).contains(calls)), "{slots:?}");
        assert_eq!(spread(7.0, 1, &mut dice), [7.0]);
    }
}
