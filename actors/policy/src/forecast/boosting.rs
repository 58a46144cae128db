//! Boosted trees on the rows that all regressions see.

use serde::{Deserialize, Serialize};

use super::Effort;
use super::direct::{Direct, Regression};
use super::features::WIDTH;
use super::trees::{Booster, BoosterConfig, Loss, Matrix};

/// Gradient-boosted trees, each of half the rows and half the numbers.
pub type TreesMember = Direct<Forest<false>>;

/// The same, of the newest quarter of the past only and for the median: soon at home after a change.
pub type NewTreesMember = Direct<Forest<true>>;

/// Trees of one booster.
const TREES: usize = 300;

/// The regression.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Forest<const NEW: bool> {
    booster: Option<Booster>,
    reach: f64,
}

impl<const NEW: bool> Regression for Forest<NEW> {
    const NAME: &'static str = if NEW { "trees_new" } else { "trees" };
    const ROWS_MIN: usize = 400;
    const ROWS_MAX: usize = if NEW { 8_000 } else { 16_000 };
    const OWN_MAX: usize = 8;
    const NEWEST: f64 = if NEW { 0.25 } else { 1.0 };

    fn learn(rows: &[f32], targets: &[f64], effort: Effort<'_>) -> Self {
        let mut matrix = Matrix::with_capacity(WIDTH, targets.len());
        let fits = rows.chunks_exact(WIDTH).all(|row| matrix.push(row).is_ok());
        let loss = if NEW { Loss::Pinball { level: 0.5 } } else { Loss::Squared };
        let config = BoosterConfig { trees: TREES, loss, ..BoosterConfig::default() };
        let booster = Booster::fit_within(&matrix, targets, &config, effort).ok().filter(|_| fits);
        let reach = targets.iter().fold(0.0_f64, |reach, target| reach.max(target.abs()));
        Self { booster, reach }
    }

    fn answer(&self, row: &[f32]) -> f64 {
        let answer = self.booster.as_ref().map_or(0.0, |booster| booster.predict(row));
        answer.clamp(-self.reach, self.reach)
    }
}
