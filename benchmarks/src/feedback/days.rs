//! What was predicted of steps against what they brought, by day.

use std::collections::BTreeMap;

use foreshard_policy::decision::{DecisionRow, Ledger};

/// Steps that a day must have for its total to be judged.
pub(crate) const STEPS_MIN: usize = 200;

/// How near the total of a day must be to what was predicted.
const NEAR: f64 = 0.3;

/// Days that are only learned from.
pub(crate) const LEARNED: usize = 2;

/// One step.
#[derive(Clone, Copy, Debug)]
struct Step {
    predicted_ns: f64,
    measured_ns: f64,
    is_within: bool,
}

/// Steps by the day in which they were taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Days {
    steps: BTreeMap<usize, Vec<Step>>,
    /// Decisions that are not measured yet.
    open: Vec<u64>,
}

impl Days {
    /// A step was taken.
    pub(crate) fn taken(&mut self, id: u64) {
        self.open.push(id);
    }

    /// Notes the steps that `is_judged` by now.
    pub(crate) fn judge(
        &mut self,
        ledger: &Ledger,
        day_ticks: usize,
        is_judged: impl Fn(&DecisionRow) -> bool,
    ) {
        self.open.retain(|id| {
            let Ok(row) = ledger.get(*id) else { return false };
            if !is_judged(row) {
                return true;
            }
            if let Some(predicted) = row.predicted {
                let measured_ns = row.measured.unwrap_or(0.0);
                let step = Step {
                    predicted_ns: predicted.mean_ns,
                    measured_ns,
                    is_within: (predicted.low_ns..=predicted.high_ns).contains(&measured_ns),
                };
                self.steps.entry(row.tick.0 as usize / day_ticks).or_default().push(step);
            }
            false
        });
    }

    /// Days that count: learned from before, and with steps enough.
    fn counted(&self) -> impl Iterator<Item = &Vec<Step>> {
        let steps = self.steps.iter().filter(|(day, _)| **day >= LEARNED);
        steps.map(|(_, steps)| steps).filter(|steps| steps.len() >= STEPS_MIN)
    }

    pub(crate) fn count(&self) -> usize {
        self.counted().count()
    }

    pub(crate) fn steps(&self) -> usize {
        self.steps.values().map(Vec::len).sum()
    }

    /// Predicted and measured nanoseconds of each day that counts.
    pub(crate) fn totals(&self) -> Vec<(f64, f64)> {
        let total = |steps: &Vec<Step>| {
            steps
                .iter()
                .fold((0.0, 0.0), |sum, step| (sum.0 + step.predicted_ns, sum.1 + step.measured_ns))
        };
        self.counted().map(total).collect()
    }

    /// Share of days on which the total is near what was predicted; none has none.
    pub(crate) fn near(&self) -> f64 {
        let totals = self.totals();
        let near = totals.iter().filter(|(said, came)| (came - said).abs() <= NEAR * said.abs());
        near.count() as f64 / totals.len().max(1) as f64
    }

    /// Share of steps that are within their 80 % interval.
    pub(crate) fn coverage(&self) -> f64 {
        let (mut within, mut all) = (0, 0);
        for step in self.counted().flatten() {
            within += usize::from(step.is_within);
            all += 1;
        }
        f64::from(within as u32) / f64::from(all.max(1))
    }
}
