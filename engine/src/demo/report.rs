//! What came of the played days: answers, hours, decisions, and what they come down to.

use foreshard_policy::calls::CallRecord;
use foreshard_policy::decision::DecisionRow;
use foreshard_policy::forecast::Quantiles;

use super::day::Arm;
use super::measure::{quantile, share};
use super::schedule::Round;

/// One query as one arm answered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Position of the round.
    pub round: usize,
    /// How long it took until the last row was there.
    pub ns: u64,
    /// Fingerprint of the rows.
    pub checksum: u64,
}

/// What happened in one arm in one hour.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hour {
    /// Rows that functions were asked for.
    pub rows: u64,
    /// Of these, rows answered from stored outputs.
    pub rows_stored: u64,
    /// Rows asked for the first time since they were appended.
    pub rows_fresh: u64,
    /// Of these, rows answered from stored outputs.
    pub rows_fresh_stored: u64,
    /// Nanoseconds of function work that was asked for, stored or not.
    pub asked_ns: u64,
    /// Nanoseconds of function work while people waited.
    pub computed_ns: u64,
    /// Nanoseconds of background work in the idle moment before the hour.
    pub background_ns: u64,
    /// What the forecast expected of [`asked_ns`](Self::asked_ns): sums of quantiles; none before
    /// anything was learned.
    pub expected_ns: Option<Quantiles>,
    /// Length of the idle moment.
    pub idle_ns: u64,
}

impl Hour {
    /// Adds what one task reported. Rows of states of aggregates are no rows that functions were asked for:
    /// the calls behind a state have records of their own.
    pub fn count(&mut self, call: &CallRecord, is_state: bool) {
        if !is_state {
            self.rows += call.rows;
            self.rows_stored += call.rows_stored;
            self.rows_fresh += call.rows_fresh;
            self.rows_fresh_stored += call.rows_fresh_stored;
        }
        self.asked_ns += call.would_be_ns;
        self.computed_ns += call.ns;
    }
}

/// A decision and the round before whose queries it was taken.
#[derive(Clone, Debug)]
pub struct Decided {
    /// Position of the round.
    pub round: usize,
    /// The decision.
    pub row: DecisionRow,
}

/// Everything that one arm did.
#[derive(Clone, Debug)]
pub struct ArmReport {
    /// The arm.
    pub arm: Arm,
    /// Its answers, in the order of the queries.
    pub answers: Vec<Answer>,
    /// One entry per round.
    pub hours: Vec<Hour>,
    /// What its loop decided.
    pub decisions: Vec<Decided>,
}

/// One arm's peak hours of the second day.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Number of queries.
    pub queries: usize,
    /// Median of the query times in ms.
    pub p50_ms: f64,
    /// 95 % quantile of the query times in ms.
    pub p95_ms: f64,
    /// Share of all function rows that were answered from stored outputs.
    pub rows_stored: f64,
    /// Share of the freshly appended function rows that were answered from stored outputs.
    pub fresh_rows_stored: f64,
    /// Function rows answered from stored outputs.
    pub rows_stored_count: u64,
    /// Nanoseconds of background work before these hours.
    pub background_ns: u64,
}

/// What came of the days.
#[derive(Clone, Debug)]
pub struct DayReport {
    /// The hours that were played.
    pub rounds: Vec<Round>,
    /// One report per arm, in the order asked for.
    pub arms: Vec<ArmReport>,
}

impl DayReport {
    /// The arm's report, if it played.
    #[must_use]
    pub fn arm(&self, arm: Arm) -> Option<&ArmReport> {
        self.arms.iter().find(|report| report.arm == arm)
    }

    /// The peak hours of the last day as `report` went through them.
    #[must_use]
    pub fn peak(&self, report: &ArmReport) -> Peak {
        let last_day = self.rounds.last().map_or(0, |round| round.day);
        let counts = |at: usize| {
            self.rounds.get(at).is_some_and(|round| round.day == last_day && round.is_peak())
        };
        let mut sum = Hour::default();
        for (_, hour) in report.hours.iter().enumerate().filter(|(at, _)| counts(*at)) {
            sum.rows += hour.rows;
            sum.rows_stored += hour.rows_stored;
            sum.rows_fresh += hour.rows_fresh;
            sum.rows_fresh_stored += hour.rows_fresh_stored;
            sum.background_ns += hour.background_ns;
        }
        let answers = report.answers.iter().filter(|answer| counts(answer.round));
        let times: Vec<u64> = answers.map(|answer| answer.ns).collect();
        Peak {
            queries: times.len(),
            p50_ms: quantile(&times, 0.5) / 1e6,
            p95_ms: quantile(&times, 0.95) / 1e6,
            rows_stored: share(sum.rows_stored, sum.rows),
            fresh_rows_stored: share(sum.rows_fresh_stored, sum.rows_fresh),
            rows_stored_count: sum.rows_stored,
            background_ns: sum.background_ns,
        }
    }

    /// Answers of any arm that differ from the first arm's.
    #[must_use]
    pub fn answers_different(&self) -> usize {
        let Some((first, others)) = self.arms.split_first() else { return 0 };
        let differ = |other: &ArmReport| {
            let pairs = first.answers.iter().zip(&other.answers);
            pairs.filter(|(a, b)| a.checksum != b.checksum).count()
                + first.answers.len().abs_diff(other.answers.len())
        };
        others.iter().map(differ).sum()
    }
}
