//! What rows cost before the replicas of their partition changed.
//!
//! A change of replicas may make calls slower, for example where nodes share a machine. Were that taken for
//! more load, a partition would be copied on and on. So while a partition rests after a change, its demand is
//! what is called now at the costs that were known before the change.

use std::collections::BTreeMap;

use super::Planned;
use crate::forecast::{Forecast, SeriesForecast};
use crate::ids::{PartitionId, SeriesKey};

/// Nanoseconds that a row cost, by series of one partition.
type Costs = BTreeMap<SeriesKey, f64>;

/// Costs of the partitions that rest, or will once a step that is under way is done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KnownCosts {
    of: BTreeMap<PartitionId, Costs>,
}

impl KnownCosts {
    /// Notes what rows cost on the partitions whose replicas these steps change. Where costs are noted already,
    /// they stay: what was measured since then is not from before the first change.
    pub fn note(&mut self, steps: &[Planned], forecast: &Forecast) {
        let moved = steps.iter().filter_map(|planned| planned.step.partition_moved());
        let moved = moved.filter(|partition| !self.of.contains_key(partition));
        let mut new: BTreeMap<PartitionId, Costs> =
            moved.map(|partition| (partition.clone(), Costs::new())).collect();
        if new.is_empty() {
            return;
        }
        for SeriesForecast { key, ns_per_row, .. } in &forecast.series {
            if let Some(costs) = new.get_mut(&key.partition) {
                costs.insert(key.clone(), *ns_per_row);
            }
        }
        self.of.append(&mut new);
    }

    /// Forgets the costs of all partitions but those that rest or are changing.
    pub fn keep(&mut self, rests: impl Fn(&PartitionId) -> bool) {
        self.of.retain(|partition, _| rests(partition));
    }

    pub(super) fn of(&self, partition: &PartitionId) -> Option<&Costs> {
        self.of.get(partition)
    }
}

/// The part of the measured cost of a series that was known before: 1 if rows are not slower since then, and
/// nothing if the series is new, for then nobody knows.
pub(super) fn share_known(costs: &Costs, series: &SeriesForecast) -> f64 {
    let before = costs.get(&series.key).copied().unwrap_or(0.0);
    if before >= series.ns_per_row { 1.0 } else { before / series.ns_per_row }
}
