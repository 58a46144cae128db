//! Splits and merges partitions of several tables with the same keys, one after the other: what fails of the
//! others stays as it is, and no answer changes by that. And what is known of who asks for which keys.

use std::sync::{Arc, PoisonError};

use foreshard_actors::layout::KeyUse;
use foreshard_actors::ports::Outcome;
use foreshard_actors::store::Reshape;
use foreshard_policy::cluster::{MergeAlike, SplitAlike};
use foreshard_policy::ids::PartitionId;
use foreshard_policy::key_ranges::KeyRange;
use foreshard_policy::reshape::cut::Even;

use super::{MemberError, Members, Reshaped};

/// What was done to one table and to others.
#[derive(Debug)]
pub struct ReshapedAlike {
    /// To the table that it was about.
    pub first: Reshaped,
    /// How many others were split or merged alike.
    pub alike: u64,
    /// How many stayed as they are, because that failed.
    pub failed: u64,
}

impl Members {
    /// As [`split`](Self::split), and then splits these partitions of other tables at the same place.
    ///
    /// # Errors
    /// As [`split`](Self::split). What fails of the others is counted and logged.
    pub async fn split_alike(
        &self,
        partition: &PartitionId,
        at: Option<&str>,
        twins: &[PartitionId],
    ) -> Result<ReshapedAlike, MemberError> {
        let first = self.split(partition, at).await?;
        let (mut alike, mut failed) = (0, 0);
        for twin in twins {
            let Some((cut, _)) = &first.cut else { continue };
            let reshape = Reshape::SplitAt { ordinal: twin.ordinal, cut };
            match self.reshape(&twin.table, reshape, None).await {
                Ok(_) => alike += 1,
                Err(error) => {
                    tracing::warn!(%twin, code = error.code(), %error, "not split alike");
                    failed += 1;
                }
            }
        }
        Ok(ReshapedAlike { first, alike, failed })
    }

    /// As [`merge`](Self::merge), and then merges these neighbours in other tables.
    ///
    /// # Errors
    /// As [`merge`](Self::merge). What fails of the others is counted and logged.
    pub async fn merge_alike(
        &self,
        table: &Arc<str>,
        pair: (u32, u32),
        twins: &[(PartitionId, u32)],
    ) -> Result<ReshapedAlike, MemberError> {
        let first = self.merge(table, pair).await?;
        let (mut alike, mut failed) = (0, 0);
        for (twin, other) in twins {
            match self.merge(&twin.table, (twin.ordinal, *other)).await {
                Ok(_) => alike += 1,
                Err(error) => {
                    tracing::warn!(%twin, code = error.code(), %error, "not merged alike");
                    failed += 1;
                }
            }
        }
        Ok(ReshapedAlike { first, alike, failed })
    }

    /// Carries out a split that was planned, and tells where it cut and why there.
    pub(super) async fn split_as_planned(
        &self,
        partition: &PartitionId,
        into: [u32; 2],
        even: Even,
        alike: &[SplitAlike],
    ) -> Result<Outcome, MemberError> {
        let (used, uncounted) = self.key_use(partition, even);
        let reshape = Reshape::SplitByUse { ordinal: partition.ordinal, used: &used };
        let done = self.reshape_as_planned(&partition.table, reshape, &into).await?;
        let mut told = Told::of(&done, uncounted);
        if let Some((cut, _)) = &done.cut {
            for SplitAlike { partition, into } in alike {
                let reshape = Reshape::SplitAt { ordinal: partition.ordinal, cut };
                let done = self.reshape_as_planned(&partition.table, reshape, into).await;
                told.add(partition, done);
            }
        }
        Ok(told.outcome())
    }

    /// Carries out a merge that was planned.
    pub(super) async fn merge_as_planned(
        &self,
        partition: &PartitionId,
        (other, into): (u32, u32),
        alike: &[MergeAlike],
    ) -> Result<Outcome, MemberError> {
        let merge = Reshape::Merge { one: partition.ordinal, other };
        let done = self.reshape_as_planned(&partition.table, merge, &[into]).await?;
        let mut told = Told::of(&done, None);
        for MergeAlike { partition, other, into } in alike {
            let merge = Reshape::Merge { one: partition.ordinal, other: *other };
            let done = self.reshape_as_planned(&partition.table, merge, &[*into]).await;
            told.add(partition, done);
        }
        Ok(told.outcome())
    }

    /// Notes the ranges of keys that a query asks for.
    pub(crate) fn asked_for(&self, ranges: Vec<(Arc<str>, KeyRange)>) {
        if ranges.is_empty() {
            return;
        }
        let now_ns = self.clock.monotonic_ns();
        let mut of_table = self.key_ranges.lock().unwrap_or_else(PoisonError::into_inner);
        for (table, range) in ranges {
            of_table.entry(table).or_default().record(now_ns, range);
        }
    }

    /// Forgets which keys of a table queries asked for.
    pub(super) fn forget_ranges(&self, table: &str) {
        self.key_ranges.lock().unwrap_or_else(PoisonError::into_inner).remove(table);
    }

    /// What is known of who asks for which keys of a partition; with what is not known of its load.
    fn key_use(&self, partition: &PartitionId, even: Even) -> (KeyUse, Option<String>) {
        let now_ns = self.clock.monotonic_ns();
        let ranges = self.key_ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let ranges = ranges.get(&partition.table).map(|ranges| ranges.now(now_ns));
        let mut used = KeyUse { even, ranges: ranges.unwrap_or_default(), ..KeyUse::default() };
        if even == Even::Rows {
            return (used, None);
        }
        let mut uncounted = vec![];
        let holders = self.placement().holders.get(partition).cloned().unwrap_or_default();
        for node in holders {
            let replica = self.member(node).ok().and_then(|it| it.place.replica(partition));
            let Some(view) = replica else {
                uncounted.push(node.to_string());
                continue;
            };
            for (segment, held) in &view.segments {
                used.loads.entry(*segment).or_default().add(held.load.now(now_ns));
            }
        }
        let uncounted = (!uncounted.is_empty())
            .then(|| format!("calls on {} are not counted here", uncounted.join(", ")));
        (used, uncounted)
    }
}

/// What is told of a split or a merge.
struct Told {
    bytes: u64,
    how: Vec<String>,
}

impl Told {
    fn of(done: &Reshaped, uncounted: Option<String>) -> Self {
        let cut = done.cut.as_ref().map(|(cut, why)| format!("cut at {cut}: {why}"));
        Self { bytes: done.bytes, how: cut.into_iter().chain(uncounted).collect() }
    }

    fn add(&mut self, partition: &PartitionId, done: Result<Reshaped, MemberError>) {
        self.how.push(match done {
            Ok(done) => {
                self.bytes += done.bytes;
                format!("{partition} alike")
            }
            Err(error) => {
                tracing::warn!(%partition, code = error.code(), %error, "not changed alike");
                format!("{partition} stays as it is: {error} ({})", error.code())
            }
        });
    }

    fn outcome(self) -> Outcome {
        Outcome::Reshaped { bytes: self.bytes, how: self.how.join("; ") }
    }
}
