//! Which function is called next, and what will be called most within the hour.

use std::collections::VecDeque;
use std::sync::Arc;

use foreshard_policy::calls::CallRecord;
use foreshard_policy::forecast::{Effort, ForecastError};
use foreshard_policy::ids::PartitionId;
use foreshard_policy::next::{Blend, HotKeys, Sequence};

use crate::lstm::NextKeys;

/// A function on a table: what follows what. Which of a query's partitions is done first is chance.
pub type Target = (Arc<str>, Arc<str>);

/// A function on a partition.
pub type Place = (Arc<str>, PartitionId);

/// Calls of one tick that are looked at; more are passed over.
pub const CALLED_MAX: usize = 4_096;

/// Targets and places that are published.
const NAMED: usize = 10;

/// Names of the predictors of the next call, in the order of trust.
const PREDICTORS: [&str; 2] = ["markov", "lstm"];

/// Queries of which it is remembered what they called.
const QUERIES_MAX: usize = 64;

const HOUR_MS: u64 = 3_600_000;
const HOURS_PER_DAY: usize = 24;

/// Hours without calls after which the rest of a gap says nothing.
const GAP_HOURS_MAX: u64 = 24 * 7;

/// Seed of the network.
const SEED: u64 = 23;

/// New calls that are worth a step of learning, and steps at most at a time.
const CALLS_PER_STEP: u64 = 16;
const STEPS_MAX: u64 = 16;

/// A call that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    at_ms: u64,
    query: u64,
    function: Arc<str>,
    partition: PartitionId,
}

impl From<&CallRecord> for Called {
    fn from(call: &CallRecord) -> Self {
        let (function, partition) = (Arc::clone(&call.function), call.partition.clone());
        Self { at_ms: call.at_ms, query: call.query, function, partition }
    }
}

/// What is expected, the likeliest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NextCalls {
    /// The next function to be called on a table, with its chance.
    pub call: Vec<(Target, f64)>,
    /// Trust in each predictor of the next call, by name.
    pub trust: Vec<(&'static str, f64)>,
    /// What will be called most within the hour by the clock that is not over, with the chance that it is
    /// called at all. It goes by the hours that are over.
    pub hour: Vec<(Place, f64)>,
}

/// Learns from calls what comes next. Nothing of it outlives the process.
#[derive(Debug)]
pub struct NextPredictor {
    sequence: Sequence<Target>,
    /// None if the settings have no network.
    network: Option<NextKeys<Target>>,
    blend: Blend,
    hot: HotKeys<Place>,
    /// The hour by the clock that is not over; none before the first call.
    hour: Option<u64>,
    /// What the newest queries called.
    queries: VecDeque<(u64, Target)>,
    /// Calls that the network has not learned from.
    unlearned: u64,
}

impl NextPredictor {
    /// Knows nothing yet.
    ///
    /// # Errors
    /// [`ForecastError::Numeric`] if the network cannot be made.
    pub fn new(has_network: bool) -> Result<Self, ForecastError> {
        let network = has_network.then(|| NextKeys::new(SEED)).transpose()?;
        Ok(Self {
            sequence: Sequence::default(),
            blend: Blend::new(1 + usize::from(network.is_some())),
            network,
            hot: HotKeys::new(HOURS_PER_DAY),
            hour: None,
            queries: VecDeque::new(),
            unlearned: 0,
        })
    }

    /// Takes note of calls, in the order in which they ended.
    ///
    /// # Errors
    /// [`ForecastError::Numeric`] if the network fails; the rest has taken note all the same.
    pub fn observe(&mut self, calls: &[Called]) -> Result<(), ForecastError> {
        let mut failed = Ok(());
        for call in calls {
            self.hours_until(call.at_ms);
            self.hot.observe((Arc::clone(&call.function), call.partition.clone()), 1.0);
            let target = (Arc::clone(&call.function), Arc::clone(&call.partition.table));
            let known = (call.query, target.clone());
            if self.queries.contains(&known) {
                continue; // Another partition of the same query.
            }
            self.queries.push_back(known);
            if self.queries.len() > QUERIES_MAX {
                self.queries.pop_front();
            }
            let mut chances = vec![self.sequence.chance(&target)];
            chances.extend(self.network.as_ref().map(|network| network.chance(&target)));
            self.blend.score(&chances);
            self.sequence.observe(target.clone());
            if let Some(network) = &mut self.network {
                failed = failed.and(network.observe(target));
            }
            self.unlearned += 1;
        }
        failed
    }

    fn hours_until(&mut self, at_ms: u64) {
        let hour = at_ms / HOUR_MS;
        let before = *self.hour.get_or_insert(hour);
        for _ in 0..hour.saturating_sub(before).min(GAP_HOURS_MAX) {
            self.hot.end_hour();
        }
        self.hour = Some(hour.max(before));
    }

    /// Lets the network learn from what came since the last time, with the pauses of `effort`; how many
    /// steps it makes follows from what there is to learn.
    ///
    /// # Errors
    /// [`ForecastError::Numeric`] if it fails.
    pub fn learn(&mut self, effort: Effort<'_>) -> Result<(), ForecastError> {
        let steps = (self.unlearned / CALLS_PER_STEP).min(STEPS_MAX) as u32;
        let Some(network) = &mut self.network else { return Ok(()) };
        if steps == 0 {
            return Ok(());
        }
        self.unlearned = 0;
        network.learn(effort.with_steps(steps))
    }

    /// What is expected at `now_ms` by the clock.
    pub fn expected(&mut self, now_ms: u64) -> NextCalls {
        if self.hour.is_some() {
            self.hours_until(now_ms);
        }
        let mut said = vec![self.sequence.likeliest(usize::MAX)];
        said.extend(self.network.as_ref().map(NextKeys::likeliest));
        let trust = PREDICTORS.into_iter().zip(self.blend.weights().iter().copied());
        NextCalls {
            call: self.blend.likeliest(&said, NAMED),
            trust: trust.collect(),
            hour: self.hot.hottest(NAMED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(query: u64, function: &str, partition: u32) -> Called {
        let partition = PartitionId::new("t", partition);
        Called { at_ms: query * 60_000, query, function: function.into(), partition }
    }

    /// Each query calls on two partitions; they come as they are done.
    fn queries(functions: impl IntoIterator<Item = &'static str>) -> Vec<Called> {
        let both = |(query, function): (u64, &'static str)| {
            let first = (query % 2) as u32;
            [called(query, function, first), called(query, function, 1 - first)]
        };
        (1..).zip(functions).flat_map(both).collect()
    }

    fn name(calls: &NextCalls) -> &str {
        &calls.call[0].0.0
    }

    #[test]
    fn what_follows_is_told_by_function_whichever_partition_is_done_first() {
        let mut next = NextPredictor::new(true).unwrap();
        for calls in queries(["f", "g", "f", "h"].into_iter().cycle().take(201)).chunks(16) {
            next.observe(calls).unwrap();
            next.learn(Effort::steps(0)).unwrap();
        }
        // The last one was f, and the one before it h.
        let expected = next.expected(202 * 60_000);
        assert_eq!(name(&expected), "g", "{expected:?}");
        assert!(expected.call[0].1 > 0.7, "{expected:?}");
        assert_eq!(expected.trust.iter().map(|(name, _)| *name).collect::<Vec<_>>(), PREDICTORS);
        let places: Vec<(&str, u32)> =
            expected.hour.iter().map(|((f, partition), _)| (&**f, partition.ordinal)).collect();
        assert_eq!(places.len(), 6, "{places:?}");
        assert_eq!(places[0].0, "f", "called twice as often: {places:?}");
    }

    #[test]
    fn without_a_network_the_chain_alone_is_trusted() {
        let mut next = NextPredictor::new(false).unwrap();
        assert_eq!(next.expected(0).call, []);
        next.observe(&queries(["f", "g"].into_iter().cycle().take(41))).unwrap();
        next.learn(Effort::steps(0)).unwrap();
        let expected = next.expected(0);
        assert_eq!((name(&expected), &*expected.trust), ("g", &[("markov", 1.0)][..]));
    }

    #[test]
    fn a_clock_that_was_set_back_or_far_ahead_ends_no_hour_twice_and_not_for_ever() {
        let mut next = NextPredictor::new(false).unwrap();
        next.observe(&queries(["f"; 5])).unwrap();
        next.expected(u64::MAX);
        next.observe(&queries(["f"; 5])).unwrap();
        assert_eq!(next.expected(0).hour.len(), 2);
    }
}
