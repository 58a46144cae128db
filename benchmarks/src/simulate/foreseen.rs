//! What the mix of forecasts said at each tick of a trace, slot by slot.

use anyhow::Result;
use foreshard_policy::allocate::Z_90;
use foreshard_policy::forecast::ensemble::{Mixer, interpolated};

use super::policies::Foresight;
use crate::forecast::evaluate::walk;
use crate::forecast::{Trace, members};

/// Horizons that are learned for, in ticks.
const LEARNED: [usize; 3] = [1, 6, 60];

/// Ticks ahead that are asked for; between them logarithms go straight.
const ASKED: [usize; 13] = [1, 2, 3, 5, 6, 10, 15, 22, 30, 45, 60, 90, 150];

/// Parts of what is played after which members learn anew.
const FITS: usize = 10;

/// Forecasts of the ticks of a trace.
pub(super) struct Foreseen {
    /// By the last tick that is known.
    said: Vec<Option<Path>>,
    /// Slots of a tick.
    tick_slots: usize,
    /// Slots that are looked ahead.
    slots: usize,
    /// One over the calls of a slot that one node carries: what calls at random add to a tick's deviation.
    calls_per_node: f64,
}

/// What was said at one tick.
struct Path {
    /// Medians and 90 % quantiles of the next ticks, in nodes.
    path: Vec<(f64, f64)>,
    /// Whether they may be gone by.
    open: bool,
}

impl Foreseen {
    /// Walks `trace` from tick `first` on. A node carries `calls_per_node` calls of a slot.
    pub(super) fn walk(
        trace: &Trace,
        first: usize,
        (tick_slots, slots): (usize, usize),
        calls_per_node: f64,
        steps: u32,
    ) -> Result<Self> {
        let ticks = trace.ticks();
        let ahead = (slots / tick_slots + 1).min(ASKED[ASKED.len() - 1]);
        let mut asked: Vec<usize> = ASKED.into_iter().filter(|asked| *asked <= ahead).collect();
        if asked.last() != Some(&ahead) {
            asked.push(ahead);
        }
        let learned: Vec<usize> = LEARNED.into_iter().filter(|learned| *learned <= ahead).collect();
        let begin = first as f64 / ticks as f64;
        let fits: Vec<f64> =
            (0..FITS).map(|part| begin + (1.0 - begin) * part as f64 / FITS as f64).collect();
        let mut mixer = Mixer::new(members()?, learned);
        let mut said: Vec<Option<Path>> = (0..ticks).map(|_| None).collect();
        let nodes = calls_per_node * tick_slots as f64;
        walk(trace, &mut mixer, &asked, (&fits, steps), |origin, _, outlooks| {
            let proven = outlooks.iter().filter(|outlook| outlook.standing.is_proven()).count();
            let path = interpolated(&asked, outlooks, ahead).into_iter();
            let path = path.map(|said| (said.q50 / nodes, said.q90 / nodes)).collect();
            said[origin] = Some(Path { path, open: 2 * proven > outlooks.len() });
        })?;
        Ok(Self { said, tick_slots, slots, calls_per_node })
    }

    /// Slots that are looked ahead.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// Looks so many slots ahead from now on, at most as many as were walked for.
    pub(super) fn look_ahead(&mut self, slots: usize) {
        self.slots = slots;
    }

    /// Whether forecasts may be gone by at some slot.
    pub(super) fn is_open(&self, slot: usize) -> bool {
        let origin = (slot / self.tick_slots).checked_sub(1);
        origin.and_then(|origin| self.said[origin].as_ref()).is_some_and(|said| said.open)
    }

    fn path(&self, slot: usize) -> Option<Vec<(f64, f64)>> {
        let origin = (slot / self.tick_slots).checked_sub(1)?;
        let path = &self.said.get(origin)?.as_ref()?.path;
        let one = |ahead: usize| {
            let tick = (slot + ahead) / self.tick_slots;
            let (q50, q90) = path[(tick - origin - 1).min(path.len() - 1)];
            if self.tick_slots == 1 {
                return (q50, q90);
            }
            // Calls of a slot are spread at random within the tick.
            let q50 = q50.max(1e-9);
            let wide = (q90 / q50).max(1.0).ln() / Z_90;
            let random = 1.0 / (q50 * self.calls_per_node).max(1.0);
            (q50, q50 * (Z_90 * (wide * wide + random).sqrt()).exp())
        };
        Some((0..self.slots).map(one).collect())
    }
}

impl Foresight for Foreseen {
    fn coming(&self, slot: usize, _: &[f64]) -> Option<Vec<(f64, f64)>> {
        self.is_open(slot).then(|| self.path(slot)).flatten()
    }
}

/// The same upside down: what was high in the last day is low.
pub(super) struct Inverted<'a>(pub &'a Foreseen);

/// Slots of a day.
const DAY: usize = 1_440;

impl Foresight for Inverted<'_> {
    fn coming(&self, slot: usize, loads: &[f64]) -> Option<Vec<(f64, f64)>> {
        let said = self.0.coming(slot, loads)?;
        let day = &loads[loads.len().saturating_sub(DAY)..];
        let (low, high) = day
            .iter()
            .fold((f64::INFINITY, 0.0_f64), |(low, high), load| (low.min(*load), high.max(*load)));
        let turn = |(q50, q90): (f64, f64)| {
            let turned = (low + high - q50).max(0.05);
            (turned, turned * (q90 / q50.max(1e-9)).max(1.0))
        };
        Some(said.into_iter().map(turn).collect())
    }
}
