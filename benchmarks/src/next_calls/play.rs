//! Plays single calls in their order, and scores what was expected of the next call and the next hour.
//!
//! Nothing is looked at before it happened: each rule names keys by the hours and calls before.

use std::collections::BTreeMap;

use foreshard_actors::lstm::NextKeys;
use foreshard_policy::forecast::{Effort, ForecastError};
use foreshard_policy::next::{Blend, HotKeys, Sequence};

/// Keys that each rule names for the next hour.
const NAMED: usize = 10;

/// Hours at the begin that only train.
const HOURS_WARM: i64 = 24;

const SECONDS_PER_HOUR: i64 = 3_600;
const HOURS_PER_DAY: usize = 24;

/// Hours without any call after which the rest of a gap is not played.
const GAP_HOURS_MAX: i64 = 24 * 7;

/// One call: when, in seconds, and of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Call {
    /// Seconds since any fixed time.
    pub(super) second: i64,
    /// Number of the key.
    pub(super) key: u32,
}

/// What a rule for the next hour came to, over all hours with calls.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct HourScore {
    /// Name of the rule.
    pub(super) rule: &'static str,
    /// Keys that were named and called, per place: a place that is left empty is a miss, since naming
    /// fewer keys is no merit where there is room for [`NAMED`].
    pub(super) precision: f64,
    /// Keys that were named and called, per key named.
    pub(super) precision_of_named: f64,
    /// Keys among the most called ones of the hour, as many as were called but at most [`NAMED`], that
    /// were named.
    pub(super) recall: f64,
    /// Calls of keys that were named, per call.
    pub(super) recall_of_calls: f64,
}

/// What a rule for the next call came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct CallScore {
    /// Name of the rule.
    pub(super) rule: &'static str,
    /// Share of calls that were the first one named.
    pub(super) first: f64,
    /// Share of calls that were among the first three named.
    pub(super) three: f64,
}

/// Scores of all rules on one trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Played {
    /// Hours that were scored.
    pub(super) hours: usize,
    /// Calls that were scored.
    pub(super) calls: usize,
    /// Rules for the next hour.
    pub(super) by_hour: Vec<HourScore>,
    /// Rules for the next call.
    pub(super) by_call: Vec<CallScore>,
}

/// Rules for the next hour: ours, and what it is compared with.
const HOUR_RULES: [&str; 3] = ["learned", "last-hour", "popularity"];

/// Rules for the next call.
const CALL_RULES: [&str; 5] = ["mixed", "last-key", "most-popular", "markov", "lstm"];

/// Calls after which the network learns, as often as the loop lets it.
const LESSON_CALLS: usize = 16;

/// Seed of the network.
const SEED: u64 = 23;

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    hits: usize,
    named: usize,
    wanted: usize,
    hits_of_wanted: usize,
    calls_hit: usize,
}

/// Plays calls, sorted by time.
///
/// # Errors
/// The network fails.
pub(super) fn play(calls: &[Call]) -> Result<Played, ForecastError> {
    let (hours, sums) = play_hours(calls);
    let called: usize = hours.iter().map(|hour| hour.values().sum::<usize>()).sum();
    let share = |part: usize, all: usize| part as f64 / all.max(1) as f64;
    let by_hour = HOUR_RULES.iter().zip(sums).map(|(rule, sum)| HourScore {
        rule,
        precision: share(sum.hits, hours.len() * NAMED),
        precision_of_named: share(sum.hits, sum.named),
        recall: share(sum.hits_of_wanted, sum.wanted),
        recall_of_calls: share(sum.calls_hit, called),
    });
    let by_hour = by_hour.collect();
    let by_call = play_calls(calls)?;
    Ok(Played { hours: hours.len(), calls: calls.len(), by_hour, by_call })
}

/// Calls by key of each hour that is scored, and the sums of each rule.
fn play_hours(calls: &[Call]) -> (Vec<BTreeMap<u32, usize>>, [Sums; HOUR_RULES.len()]) {
    let hour_of = |call: &Call| call.second.div_euclid(SECONDS_PER_HOUR);
    let mut sums = [Sums::default(); HOUR_RULES.len()];
    let (mut scored, mut learned) = (vec![], HotKeys::new(HOURS_PER_DAY));
    let (mut last, mut all) = (BTreeMap::new(), BTreeMap::<u32, usize>::new());
    let Some(first) = calls.first().map(hour_of) else { return (scored, sums) };
    let mut at = first;
    for chunk in calls.chunk_by(|a, b| hour_of(a) == hour_of(b)) {
        let hour = hour_of(&chunk[0]);
        for _ in 0..(hour - at).clamp(0, GAP_HOURS_MAX) {
            learned.end_hour();
            last.clear();
        }
        let mut called = BTreeMap::<u32, usize>::new();
        chunk.iter().for_each(|call| *called.entry(call.key).or_default() += 1);
        if hour >= first + HOURS_WARM {
            let ours = learned.hottest(NAMED).into_iter().map(|(key, _)| key).collect();
            let named: [Vec<u32>; HOUR_RULES.len()] = [ours, top(&last), top(&all)];
            sums.iter_mut().zip(&named).for_each(|(sums, named)| score(sums, named, &called));
            scored.push(called.clone());
        }
        for (key, calls) in &called {
            learned.observe(*key, *calls as f64);
            *all.entry(*key).or_default() += calls;
        }
        learned.end_hour();
        (last, at) = (called, hour + 1);
    }
    (scored, sums)
}

fn score(sums: &mut Sums, named: &[u32], called: &BTreeMap<u32, usize>) {
    let wanted = top(called);
    sums.named += named.len();
    sums.wanted += wanted.len();
    sums.hits += named.iter().filter(|key| called.contains_key(key)).count();
    sums.hits_of_wanted += named.iter().filter(|key| wanted.contains(key)).count();
    sums.calls_hit += named.iter().filter_map(|key| called.get(key)).sum::<usize>();
}

/// The most called keys; of equals the one with the lower number.
fn top(called: &BTreeMap<u32, usize>) -> Vec<u32> {
    let mut keys: Vec<(u32, usize)> = called.iter().map(|(key, calls)| (*key, *calls)).collect();
    keys.sort_by_key(|(_, calls)| std::cmp::Reverse(*calls));
    keys.into_iter().take(NAMED).map(|(key, _)| key).collect()
}

fn play_calls(calls: &[Call]) -> Result<Vec<CallScore>, ForecastError> {
    let mut hits = [[0_usize; 2]; CALL_RULES.len()];
    let (mut sequence, mut all) = (Sequence::default(), BTreeMap::<u32, usize>::new());
    let (mut network, mut blend) = (NextKeys::new(SEED)?, Blend::new(2));
    let (mut recent, mut scored) = (Vec::<u32>::new(), 0);
    let warm = calls.first().map_or(0, |call| call.second + HOURS_WARM * SECONDS_PER_HOUR);
    for (number, call) in calls.iter().enumerate() {
        if call.second >= warm {
            let keys = |said: &[(u32, f64)]| -> Vec<u32> {
                said.iter().take(3).map(|(key, _)| *key).collect()
            };
            let said = [sequence.likeliest(usize::MAX), network.likeliest()];
            let mixed = blend.likeliest(&said, 3);
            let [markov, lstm] = &said;
            let named = [keys(&mixed), recent.clone(), top(&all), keys(markov), keys(lstm)];
            scored += 1;
            for (hits, named) in hits.iter_mut().zip(&named) {
                hits[0] += usize::from(named.first() == Some(&call.key));
                hits[1] += usize::from(named.iter().take(3).any(|key| *key == call.key));
            }
        }
        blend.score(&[sequence.chance(&call.key), network.chance(&call.key)]);
        sequence.observe(call.key);
        network.observe(call.key)?;
        if number % LESSON_CALLS == LESSON_CALLS - 1 {
            network.learn(Effort::steps(1))?;
        }
        *all.entry(call.key).or_default() += 1;
        recent.retain(|key| *key != call.key);
        recent.insert(0, call.key);
        recent.truncate(3);
    }
    let share = |hits: usize| hits as f64 / f64::from(scored.max(1));
    let score = |(rule, hits): (&&'static str, [usize; 2])| CallScore {
        rule,
        first: share(hits[0]),
        three: share(hits[1]),
    };
    Ok(CALL_RULES.iter().zip(hits).map(score).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One key every hour, another one every third hour.
    fn calls() -> Vec<Call> {
        let call = |hour: i64, key: u32| Call { second: hour * SECONDS_PER_HOUR, key };
        let rare = |hour: i64| (hour % 3 == 0).then(|| call(hour, 2));
        (0..48).flat_map(|hour| std::iter::once(call(hour, 1)).chain(rare(hour))).collect()
    }

    #[test]
    fn places_that_stay_empty_are_misses_and_recall_goes_by_what_was_called() {
        let played = play(&calls()).unwrap();
        assert_eq!(played.hours, 24);
        let of = |rule: &str| played.by_hour.iter().find(|it| it.rule == rule).copied().unwrap();
        // Of 24 hours with one key and a third of them with two, the last hour foretells each first one.
        let last = of("last-hour");
        assert_eq!((last.precision, last.recall), (24.0 / 240.0, 24.0 / 32.0));
        let popular = of("popularity");
        assert_eq!((popular.precision, popular.recall), (32.0 / 240.0, 1.0));
        assert_eq!(popular.precision_of_named, 32.0 / 48.0);
        assert_eq!(of("learned").recall, 1.0);
    }

    #[test]
    fn a_rule_knows_nothing_of_the_hour_that_it_is_scored_on() {
        let mut changed = calls();
        let last_hour = changed[changed.len() - 1].second;
        let before = play(&changed[..changed.len() - 1]).unwrap();
        changed.iter_mut().filter(|call| call.second == last_hour).for_each(|call| call.key = 99);
        let after = play(&changed).unwrap();
        assert!(after.by_hour[0].recall < before.by_hour[0].recall, "nobody can know 99");
    }
}
