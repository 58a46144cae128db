//! What the members of an ensemble say of themselves, and what they were worth to it.

use super::Ensemble;
use super::track::Track;
use crate::forecast::MemberReport;

/// Name of the member that the others are measured by.
const YARDSTICK: &str = "naive";

/// Smallest loss that others are divided by, in logarithms of calls.
const LOSS_FLOOR: f64 = 1e-9;

/// One member of an ensemble.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemberStanding {
    /// Its name.
    pub member: &'static str,
    /// What it says of itself.
    pub report: MemberReport,
    /// Its mean pinball loss over all scored series and horizons, as a multiple of the naive member's;
    /// none if it was never scored.
    pub scaled_loss: Option<f64>,
}

impl Ensemble {
    /// All members, in the order in which they are asked.
    #[must_use]
    pub fn standings(&self) -> Vec<MemberStanding> {
        let yardstick = self.mixer.members().position(|member| member.name() == YARDSTICK);
        let members = self.mixer.members().enumerate();
        let standings = members.map(|(place, member)| MemberStanding {
            member: member.name(),
            report: member.report(),
            scaled_loss: yardstick.and_then(|naive| self.scaled_loss(place, naive)),
        });
        standings.collect()
    }

    fn scaled_loss(&self, member: usize, yardstick: usize) -> Option<f64> {
        let scaled = |track: &Track| {
            let loss = |place: usize| {
                let loss = track.members.get(place)?.loss;
                (loss.count > 0.0).then(|| loss.mean().max(LOSS_FLOOR))
            };
            Some(loss(member)? / loss(yardstick)?)
        };
        let (sum, count) = (self.mixer.pool.iter().filter_map(scaled))
            .fold((0.0, 0), |(sum, count), loss| (sum + loss, count + 1));
        (count > 0).then(|| sum / f64::from(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::CallRecord;
    use crate::config::LoopConfig;
    use crate::forecast::{FitReport, ForecastError, Member, Quantiles, Window};
    use crate::history::History;
    use crate::ids::{ExpressionId, NodeId, PartitionId, Tick};

    /// Expects six calls, whatever comes, and has made seven steps.
    struct Off;

    const REPORT: MemberReport =
        MemberReport { steps: 7, ticks: Some(3), at: Some(Tick(3)), frozen_since: None };

    impl Member for Off {
        fn name(&self) -> &'static str {
            "off"
        }
        fn fit(&mut self, _: &Window<'_>, _: &[usize], _: u32) -> Result<FitReport, ForecastError> {
            Ok(FitReport::default())
        }
        fn forecast(
            &mut self,
            window: &Window<'_>,
            horizons: &[usize],
        ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
            Ok(vec![vec![Quantiles::exactly(6.0); horizons.len()]; window.series.len()])
        }
        fn report(&self) -> MemberReport {
            REPORT
        }
        fn save(&self) -> Result<Vec<u8>, ForecastError> {
            Ok(vec![])
        }
        fn load(&mut self, _: &[u8]) -> Result<(), ForecastError> {
            Ok(())
        }
    }

    #[test]
    fn a_member_is_measured_by_the_naive_one_once_it_was_scored() {
        let config = LoopConfig::default();
        let call = CallRecord {
            at_ms: 0,
            query: 1,
            function: "f".into(),
            expression: ExpressionId(1),
            partition: PartitionId::new("t", 0),
            node: NodeId(0),
            rows: 1,
            rows_stored: 0,
            rows_fresh: 0,
            rows_fresh_stored: 0,
            ns: 1,
            would_be_ns: 1,
            bytes: 8,
            traceparent: None,
        };
        let (mut history, mut ensemble) =
            (History::new(&config), Ensemble::new(&config, vec![Box::new(Off)]));
        assert!(ensemble.standings().iter().all(|it| it.scaled_loss.is_none()));
        for tick in 0..40 {
            // Four and eight in turn: six is off by two, and repeating the last tick by four.
            (0..4 + 4 * (tick % 2)).for_each(|_| history.record(&call));
            history.close_tick();
            ensemble.observe(&history.view());
            ensemble.forecast(&history.view(), 1).unwrap();
        }
        let standings = ensemble.standings();
        let of = |member: &str| standings.iter().find(|it| it.member == member).unwrap();
        assert!((of("naive").scaled_loss.unwrap() - 1.0).abs() < 1e-9);
        let off = of("off");
        assert_eq!(off.report, REPORT);
        assert!(off.scaled_loss.is_some_and(|loss| loss > 0.0 && loss < 1.0), "{off:?}");
    }
}
