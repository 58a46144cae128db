//! What a fit may take, and where in it others go first.

use std::fmt;

/// What a fit may take.
#[derive(Clone, Copy)]
pub struct Effort<'a> {
    /// Training steps, for members that learn in steps.
    pub steps_max: u32,
    pause: Option<&'a dyn Fn()>,
}

impl fmt::Debug for Effort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pauses = self.pause.is_some();
        f.debug_struct("Effort")
            .field("steps_max", &self.steps_max)
            .field("pauses", &pauses)
            .finish()
    }
}

impl<'a> Effort<'a> {
    /// So many training steps, without a pause.
    #[must_use]
    pub fn steps(steps_max: u32) -> Self {
        Self { steps_max, pause: None }
    }

    /// The same with `pause`, which may wait, between pieces of work of some milliseconds. What is
    /// learned does not depend on it.
    #[must_use]
    pub fn with_pauses(self, pause: &'a dyn Fn()) -> Self {
        Self { pause: Some(pause), ..self }
    }

    /// The same pauses with another number of steps.
    #[must_use]
    pub fn with_steps(self, steps_max: u32) -> Self {
        Self { steps_max, ..self }
    }

    /// Members call this between two pieces of work.
    pub fn pause(&self) {
        if let Some(pause) = self.pause {
            pause();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::forecast::ensemble::statistical_members;
    use crate::forecast::{Past, Window};
    use crate::ids::Tick;

    #[test]
    fn members_pause_between_pieces_and_learn_the_same() {
        let rhythm = |tick: usize| (tick as f64 / 24.0 * 6.3).sin().mul_add(20.0, 40.0);
        let noise = |tick: usize| (tick * 7_919 % 13) as f64;
        let past = Past::new((0..900).map(|tick| rhythm(tick) + noise(tick)));
        let series = [past.series(900, 1, &[24])];
        let window = Window { at: Tick(900), tick_ms: 60_000, epoch_ms: 0, series: &series };
        let pieces =
            [("ridge", 10), ("kernel", 5), ("trees", 300), ("trees_new", 300), ("mstl", 1)];
        for (alone, beside) in statistical_members().iter_mut().zip(&mut statistical_members()) {
            let pauses = Cell::new(0);
            let pause = || pauses.set(pauses.get() + 1);
            alone.fit(&window, &[1], Effort::steps(1)).unwrap();
            beside.fit(&window, &[1], Effort::steps(1).with_pauses(&pause)).unwrap();
            assert_eq!(alone.save().unwrap(), beside.save().unwrap(), "{}", alone.name());
            let least = pieces.iter().find(|(name, _)| *name == alone.name());
            let least = least.map_or(0, |(_, pauses)| *pauses);
            assert!(pauses.get() >= least, "{}: {}", alone.name(), pauses.get());
        }
    }
}
