//! Steps that were taken against steps that were held back: what a kind brings whatever is accounted for.

/// Steps of which there must be as many, held back and taken, before they say anything.
const STEPS_MIN: f64 = 30.0;

/// What is within so many standard errors is not ruled out.
const ERRORS: f64 = 3.0;

/// Steps after which an earlier one counts a third.
const MEMORY: f64 = 1_000.0;

/// By how much less calls waited since, against what was expected of steps: sums of both and their products.
#[derive(Clone, Copy, Debug, Default)]
struct Arm {
    steps: f64,
    expected: f64,
    less: f64,
    expected_squares: f64,
    less_squares: f64,
    products: f64,
}

impl Arm {
    fn add(&mut self, expected: f64, less: f64) {
        let keep = 1.0 - 1.0 / MEMORY;
        self.steps = keep * self.steps + 1.0;
        self.expected = keep * self.expected + expected;
        self.less = keep * self.less + less;
        self.expected_squares = keep * self.expected_squares + expected * expected;
        self.less_squares = keep * self.less_squares + less * less;
        self.products = keep * self.products + expected * less;
    }

    /// What comes for each nanosecond expected, and the variance of that.
    ///
    /// # Source
    /// The ratio estimator, Cochran, *Sampling Techniques* (1977), section 6.4.
    fn ratio(&self) -> Option<(f64, f64)> {
        if self.expected <= 0.0 || self.steps < 2.0 {
            return None;
        }
        let ratio = self.less / self.expected;
        let misses =
            self.less_squares - 2.0 * ratio * self.products + ratio * ratio * self.expected_squares;
        Some((ratio, misses.max(0.0) / (self.expected * self.expected)))
    }
}

/// The trial of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trial {
    taken: Arm,
    held: Arm,
    held_back: u64,
}

impl Trial {
    pub(super) fn add(&mut self, expected: f64, is_held_back: bool, less: f64) {
        self.held_back += u64::from(is_held_back);
        let arm = if is_held_back { &mut self.held } else { &mut self.taken };
        arm.add(expected, less);
    }

    /// Steps that were held back so far.
    pub(super) fn held_back(&self) -> u64 {
        self.held_back
    }

    /// What steps that are taken spare more than those that are not, for each nanosecond expected, and the
    /// standard error of that.
    pub(super) fn effect(&self) -> Option<(f64, f64)> {
        let ((taken, error), (held, held_error)) = (self.taken.ratio()?, self.held.ratio()?);
        Some((taken - held, (error + held_error).sqrt()))
    }

    /// What the trial does not rule out; none before there were enough steps.
    pub(super) fn bounds(&self) -> Option<(f64, f64)> {
        let is_enough = self.held.steps >= STEPS_MIN && self.taken.steps >= STEPS_MIN;
        let (effect, error) = self.effect().filter(|_| is_enough)?;
        Some((effect - ERRORS * error, effect + ERRORS * error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    /// Steps of one in ten is held back; waiting falls by itself by half of what is expected, and by `effect` of
    /// it if the step is taken.
    fn trial(effect: f64, noise: f64) -> Trial {
        let (mut trial, mut random) = (Trial::default(), SplitMix64::new(5));
        for step in 0..2_000 {
            let (is_held_back, expected) = (step % 10 == 0, 0.5 + random.uniform());
            let taken = if is_held_back { 0.0 } else { effect };
            trial.add(expected, is_held_back, expected * (0.5 + taken) + noise * random.normal());
        }
        trial
    }

    #[test]
    fn what_would_have_fallen_by_itself_is_not_taken_for_what_steps_spare() {
        for effect in [0.0, 0.4, 1.0] {
            let trial = trial(effect, 0.5);
            let (found, error) = trial.effect().unwrap();
            assert!((found - effect).abs() < 3.0 * error && error < 0.1, "{found} +- {error}");
            let (low, high) = trial.bounds().unwrap();
            assert!(low < effect && effect < high, "{low} to {high}");
        }
    }

    #[test]
    fn a_few_steps_rule_nothing_out() {
        let mut trial = Trial::default();
        for step in 0..29 {
            trial.add(1.0, step % 2 == 0, 0.0);
        }
        assert_eq!(trial.bounds(), None);
        assert_eq!(trial.held_back(), 15);
    }
}
