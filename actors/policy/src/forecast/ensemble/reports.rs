//! What the members of an ensemble say of themselves, and what they were worth to it.

use super::{Ensemble, NAIVE};
use crate::forecast::MemberReport;

/// Smallest loss that others are divided by, in calls.
const LOSS_FLOOR: f64 = 0.01;

/// One member of an ensemble.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemberStanding {
    /// Its name.
    pub member: &'static str,
    /// What it says of itself.
    pub report: MemberReport,
    /// Its mean pinball loss over all scored series, as a multiple of the naive member's; none if it was
    /// never scored.
    pub scaled_loss: Option<f64>,
}

impl Ensemble {
    /// All members, in the order in which they are asked.
    #[must_use]
    pub fn standings(&self) -> Vec<MemberStanding> {
        let members = self.members.iter().enumerate();
        let standings = members.map(|(place, member)| MemberStanding {
            member: member.name(),
            report: member.report(),
            scaled_loss: self.scaled_loss(place),
        });
        standings.collect()
    }

    /// Mean over the horizons that the member was scored at.
    fn scaled_loss(&self, member: usize) -> Option<f64> {
        let scaled = self.learned.all.iter().filter_map(|track| {
            let loss = |place: usize| track.losses.get(place).filter(|loss| loss.count > 0);
            Some(loss(member)?.mean / loss(NAIVE)?.mean.max(LOSS_FLOOR))
        });
        let (sum, count) = scaled.fold((0.0, 0), |(sum, count), loss| (sum + loss, count + 1));
        (count > 0).then(|| sum / f64::from(count))
    }
}
