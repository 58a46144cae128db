//! What the members of an ensemble say of themselves, and what they were worth to it.

use super::Ensemble;
use crate::forecast::MemberReport;

/// Smallest loss that others are divided by, in logarithms of calls.
const LOSS_FLOOR: f64 = 1e-4;

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
        let naive = self.mixer.members().position(|member| member.name() == "naive");
        let members = self.mixer.members().enumerate();
        let standings = members.map(|(place, member)| MemberStanding {
            member: member.name(),
            report: member.report(),
            scaled_loss: naive.and_then(|naive| self.scaled_loss(place, naive)),
        });
        standings.collect()
    }

    /// Mean over the horizons that the member was scored at, its quantiles corrected by its past misses.
    fn scaled_loss(&self, member: usize, naive: usize) -> Option<f64> {
        let scaled = self.mixer.pool.iter().filter_map(|track| {
            let source = |place: usize| track.members.get(place);
            let loss = |place| Some(source(place)?.loss).filter(|loss| loss.count > 0.0);
            Some(loss(member)?.mean() / loss(naive)?.mean().max(LOSS_FLOOR))
        });
        let (sum, count) = scaled.fold((0.0, 0), |(sum, count), loss| (sum + loss, count + 1));
        (count > 0).then(|| sum / f64::from(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::CallRecord;
    use crate::config::LoopConfig;
    use crate::forecast::{Effort, FitReport, ForecastError, Member, Quantiles, Window};
    use crate::history::History;
    use crate::ids::{ExpressionId, NodeId, PartitionId, Tick};

    /// Knows that four and eight calls come in turn, and has made seven steps.
    #[derive(Clone, Copy)]
    struct Right;

    const REPORT: MemberReport =
        MemberReport { steps: 7, ticks: Some(3), at: Some(Tick(3)), frozen_since: None };

    impl Member for Right {
        fn name(&self) -> &'static str {
            "right"
        }
        fn fit(
            &mut self,
            _: &Window<'_>,
            _: &[usize],
            _: Effort<'_>,
        ) -> Result<FitReport, ForecastError> {
            Ok(FitReport::default())
        }
        fn forecast(
            &mut self,
            window: &Window<'_>,
            horizons: &[usize],
        ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
            let calls = |ahead: &usize| 4.0 + 4.0 * ((window.at.0 + *ahead as u64 - 1) % 2) as f64;
            let all = horizons.iter().map(|ahead| Quantiles::exactly(calls(ahead))).collect();
            Ok(vec![all; window.series.len()])
        }
        fn report(&self) -> MemberReport {
            REPORT
        }
        fn copy(&self) -> Result<Box<dyn Member>, ForecastError> {
            Ok(Box::new(*self))
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
            waited_ns: 0,
            would_be_ns: 1,
            bytes: 8,
            traceparent: None,
        };
        let (mut history, mut ensemble) =
            (History::new(&config), Ensemble::new(&config, vec![Box::new(Right)]));
        assert!(ensemble.standings().iter().all(|it| it.scaled_loss.is_none()));
        for tick in 0..60 {
            // Repeating the last tick is off by four each time.
            (0..4 + 4 * (tick % 2)).for_each(|_| history.record(&call));
            history.close_tick();
            ensemble.observe(&history.view());
            ensemble.forecast(&history.view(), 1).unwrap();
        }
        let standings = ensemble.standings();
        let of = |member: &str| standings.iter().find(|it| it.member == member).unwrap();
        assert!((of("naive").scaled_loss.unwrap() - 1.0).abs() < 1e-9);
        let right = of("right");
        assert_eq!(right.report, REPORT);
        assert!((0.0..0.2).contains(&right.scaled_loss.unwrap()), "{right:?}");
    }
}
