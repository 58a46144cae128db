//! How many bytes replicas may still be copied within the hour.

use std::collections::BTreeMap;

use super::Planned;
use super::replicate::COPY_NS_PER_BYTE;
use crate::cluster::Step;
use crate::config::LoopConfig;
use crate::ids::Tick;

const MINUTE_MS: u64 = 60_000;
const MINUTES_AN_HOUR: u64 = 60;

/// Bytes that copies moved, by minute, for as long as they count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MovedBytes {
    by_minute: BTreeMap<u64, u64>,
}

impl MovedBytes {
    /// Counts bytes that are copied at `now`, and forgets what is older than an hour.
    pub fn charge(&mut self, now: Tick, bytes: u64, config: &LoopConfig) {
        let minute = minute(now, config);
        self.by_minute.retain(|at, _| at.saturating_add(MINUTES_AN_HOUR) >= minute);
        let moved = self.by_minute.entry(minute).or_default();
        *moved = moved.saturating_add(bytes);
    }

    /// Bytes that may be copied at `now`, so that no hour has more than
    /// `reshape.moved-bytes-per-hour-max`. A minute counts until it is wholly more than an hour ago.
    #[must_use]
    pub fn left(&self, now: Tick, config: &LoopConfig) -> u64 {
        let minute = minute(now, config);
        let counts = self.by_minute.range(minute.saturating_sub(MINUTES_AN_HOUR)..);
        let moved = counts.fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
        config.reshape().moved_bytes_per_hour_max().saturating_sub(moved)
    }
}

/// Bytes that a step copies to another node, or writes anew; none if it does neither.
#[must_use]
pub fn bytes_copied(planned: &Planned) -> Option<f64> {
    let step = &planned.step;
    let copies = matches!(step, Step::Copy { .. } | Step::Move { .. });
    (copies || !step.partitions_ended().is_empty())
        .then_some(planned.worth.cost_ns / COPY_NS_PER_BYTE)
}

fn minute(now: Tick, config: &LoopConfig) -> u64 {
    now.0.saturating_mul(config.tick_ms()) / MINUTE_MS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::ReshapeConfig;

    fn config(bytes: u64) -> LoopConfig {
        let reshape = ReshapeConfig::default().with_moved_bytes_per_hour_max(bytes).unwrap();
        LoopConfig::default().with_reshape(reshape).unwrap()
    }

    #[test]
    fn what_was_moved_more_than_an_hour_ago_does_not_count_any_more() {
        let (mut moved, config) = (MovedBytes::default(), config(100));
        moved.charge(Tick(30), 70, &config);
        assert_eq!(moved.left(Tick(30), &config), 30);
        assert_eq!(moved.left(Tick(30 + 3_600), &config), 30);
        assert_eq!(moved.left(Tick(60 + 3_600), &config), 100);
        moved.charge(Tick(31), u64::MAX, &config);
        assert_eq!(moved.left(Tick(31), &config), 0);
    }

    proptest! {
        #[test]
        fn no_hour_moves_more_than_the_limit(wishes in prop::collection::vec((0u64..400, 1u64..60), 1..200)) {
            let (mut moved, config) = (MovedBytes::default(), config(100));
            let (mut now, mut taken) = (0, Vec::new());
            for (pause, bytes) in wishes {
                now += pause;
                if bytes <= moved.left(Tick(now), &config) {
                    moved.charge(Tick(now), bytes, &config);
                    taken.push((now, bytes));
                }
            }
            for (from, _) in &taken {
                let hour = taken.iter().filter(|(at, _)| (*from..=from + 3_600).contains(at));
                prop_assert!(hour.map(|(_, bytes)| bytes).sum::<u64>() <= 100);
            }
            prop_assert!(moved.by_minute.len() <= 61);
        }
    }
}
