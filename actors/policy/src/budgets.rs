//! What each table may use of what a node has: background time, memory for outputs, bytes that come to it, and
//! permits.
//!
//! A budget is dealt out by weight, and what a table does not want is left to others. The weight is the load
//! that is expected of the table, times what people say.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cluster::{ClusterView, PartitionView};
use crate::config::{ConfigError, LoopConfig};
use crate::control::Controls;
use crate::forecast::Forecast;
use crate::ids::{NodeId, PartitionId};

/// Part of each budget that is dealt out evenly, whatever is expected: no table goes without.
const EVEN_PART: f64 = 0.2;

/// Least and most weight that people can give a table.
const WEIGHT: (f64, f64) = (0.01, 100.0);

/// Least and most part of a budget that people can limit a table to.
const LIMIT: (f64, f64) = (0.0, 1.0);

/// What people gave a table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawTableBudget", into = "RawTableBudget")]
pub struct TableBudget {
    weight: f64,
    limit: f64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawTableBudget {
    weight: f64,
    limit: f64,
}

impl Default for RawTableBudget {
    fn default() -> Self {
        Self { weight: 1.0, limit: 1.0 }
    }
}

impl From<TableBudget> for RawTableBudget {
    fn from(TableBudget { weight, limit }: TableBudget) -> Self {
        Self { weight, limit }
    }
}

impl TryFrom<RawTableBudget> for TableBudget {
    type Error = ConfigError;

    fn try_from(RawTableBudget { weight, limit }: RawTableBudget) -> Result<Self, ConfigError> {
        Self::default().with_weight(weight)?.with_limit(limit)
    }
}

impl Default for TableBudget {
    fn default() -> Self {
        Self { weight: 1.0, limit: 1.0 }
    }
}

impl TableBudget {
    /// What its expected load is multiplied with.
    #[must_use]
    pub fn weight(self) -> f64 {
        self.weight
    }

    /// The part of each budget that it never gets more than.
    #[must_use]
    pub fn limit(self) -> f64 {
        self.limit
    }

    /// The same with another weight.
    ///
    /// # Errors
    /// [`ConfigError::Bound`] if it is not within 0.01 to 100.
    pub fn with_weight(self, weight: f64) -> Result<Self, ConfigError> {
        within("weight", weight, WEIGHT).map(|weight| Self { weight, ..self })
    }

    /// The same with another limit.
    ///
    /// # Errors
    /// [`ConfigError::Bound`] if it is not within 0 to 1.
    pub fn with_limit(self, limit: f64) -> Result<Self, ConfigError> {
        within("limit", limit, LIMIT).map(|limit| Self { limit, ..self })
    }
}

fn within(key: &str, value: f64, (low, high): (f64, f64)) -> Result<f64, ConfigError> {
    if (low..=high).contains(&value) {
        return Ok(value);
    }
    let (key, value, bound) =
        (format!("budget {key}"), value.to_string(), format!("{low} to {high}"));
    Err(ConfigError::Bound { key, value, bound })
}

/// Who wants how much of a budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    /// Part of the budget, compared with other claims; above zero.
    pub weight: f64,
    /// How much of the whole budget it may get at most, 0 to 1.
    pub limit: f64,
    /// How much is wanted.
    pub wants: f64,
}

/// Deals `total` out: each gets what it wants, or its part by weight of what those leave who want less.
///
/// Nothing is left while somebody wants more and may have it, and nobody gets more than it wants or may have.
///
/// # Cost
/// `O(n log n)` for `n` claims.
///
/// # Source
/// Weighted max-min fairness (Bertsekas and Gallager, Data Networks, 1992, section 6.5.2).
#[must_use]
pub fn deal(total: f64, claims: &[Claim]) -> Vec<f64> {
    let total = total.max(0.0);
    let most = |claim: &Claim| claim.wants.min(claim.limit * total).max(0.0);
    let weight = |claim: &Claim| claim.weight.max(f64::MIN_POSITIVE);
    let mut order: Vec<usize> = (0..claims.len()).collect();
    order.sort_by(|a, b| {
        let level = |at: &usize| most(&claims[*at]) / weight(&claims[*at]);
        level(a).total_cmp(&level(b)).then(a.cmp(b))
    });
    let (mut left, mut weights) = (total, claims.iter().map(weight).sum::<f64>());
    let mut dealt = vec![0.0; claims.len()];
    for at in order {
        let claim = &claims[at];
        let part = if weights > 0.0 { left * (weight(claim) / weights).min(1.0) } else { left };
        dealt[at] = most(claim).min(part);
        left -= dealt[at];
        weights -= weight(claim);
    }
    dealt
}

/// The part of one table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Load that is expected, in busy ms per s.
    pub load_ms: f64,
    /// Part of each budget while every table wants more, 0 to 1. Of all tables together 1.
    pub part: f64,
    /// Part that it never gets more than.
    pub limit: f64,
}

/// The parts of all tables, which have numbers: their positions by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    tables: Vec<(Arc<str>, Share)>,
}

impl Shares {
    /// The parts by the load that is expected within `precompute.lead-ticks` where the forecast may be acted
    /// on, and elsewhere by that of the last ticks.
    #[must_use]
    pub fn new(
        view: &ClusterView,
        forecast: Option<&Forecast>,
        controls: &Controls,
        config: &LoopConfig,
    ) -> Self {
        let mut loads: BTreeMap<&Arc<str>, f64> = BTreeMap::new();
        for partition in view.partitions.keys() {
            if loads.last_key_value().is_none_or(|(last, _)| **last != partition.table) {
                loads.entry(&partition.table).or_default();
            }
        }
        let lead = config.precompute().lead_ticks();
        let span_ns = config.tick_ns() * lead as f64;
        let looks_ahead = config.mode().looks_ahead();
        let series = forecast.map(|it| it.series.as_slice()).unwrap_or_default();
        for run in series.chunk_by(|a, b| a.key.partition.table == b.key.partition.table) {
            let Some(load) = loads.get_mut(&run[0].key.partition.table) else { continue };
            for series in run {
                let ahead = looks_ahead && forecast.is_some_and(|it| it.may_act_on(series));
                let now = || series.calls_now * lead as f64;
                let calls = if ahead { series.expected_calls(lead) } else { now() };
                *load += calls * series.ns_per_call / span_ns * 1e3;
            }
        }
        let of = |(table, load): (&Arc<str>, f64)| (Arc::clone(table), load);
        Self::of_loads(loads.into_iter().map(of).collect(), controls)
    }

    /// The parts by loads in busy ms per s.
    fn of_loads(loads: BTreeMap<Arc<str>, f64>, controls: &Controls) -> Self {
        let (count, sum) = (loads.len() as f64, loads.values().sum::<f64>());
        let weight = |(table, load): (&Arc<str>, &f64)| {
            let by_load = if sum > 0.0 { load / sum } else { 1.0 / count };
            let part = EVEN_PART / count + (1.0 - EVEN_PART) * by_load;
            part * controls.budget(table).weight()
        };
        let weights: Vec<f64> = loads.iter().map(weight).collect();
        let all: f64 = weights.iter().sum();
        let share = |((table, load_ms), weight): ((Arc<str>, f64), f64)| {
            let limit = controls.budget(&table).limit();
            (table, Share { load_ms, part: weight / all, limit })
        };
        Self { tables: loads.into_iter().zip(weights).map(share).collect() }
    }

    /// The number of a table that it has partitions of.
    pub(crate) fn number(&self, table: &str) -> Option<usize> {
        self.tables.binary_search_by(|(name, _)| (**name).cmp(table)).ok()
    }

    /// Amounts of tables by number. Of those without partitions nothing is told.
    pub(crate) fn by_number(&self, amounts: &BTreeMap<Arc<str>, f64>) -> ByTable {
        let numbered = amounts.iter().filter_map(|(name, of)| Some((self.number(name)?, *of)));
        ByTable::sums(numbered.collect())
    }

    /// Whether all there is belongs to one table, without a limit: then nothing need be dealt out.
    #[must_use]
    pub fn is_of_one(&self) -> bool {
        self.tables.len() < 2 && self.tables.iter().all(|(_, share)| share.limit >= 1.0)
    }

    /// Whether others are worth telling: tables came or went, or a part or a limit changed by a hundredth of
    /// the whole.
    #[must_use]
    pub fn differs(&self, other: &Self) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() < 0.01;
        let same = |a: &Share, b: &Share| near(a.part, b.part) && near(a.limit, b.limit);
        let mut pairs = self.tables.iter().zip(&other.tables);
        let all_same = pairs.all(|((table, a), (of, b))| table == of && same(a, b));
        self.tables.len() != other.tables.len() || !all_same
    }

    /// The part of a table; that of the least if it is not known.
    #[must_use]
    pub fn of(&self, table: &str) -> Share {
        let least = || self.tables.iter().map(|(_, share)| share.part).fold(1.0, f64::min);
        let unknown = || Share { load_ms: 0.0, part: least(), limit: 1.0 };
        self.number(table).map_or_else(unknown, |number| self.numbered(number))
    }

    /// The part of the table with this number.
    pub(crate) fn numbered(&self, number: usize) -> Share {
        self.tables[number].1
    }

    /// Deals a budget out by what each table wants of it.
    fn deal(&self, total: f64, wants: &BTreeMap<Arc<str>, f64>) -> BTreeMap<Arc<str>, f64> {
        let claims = wants.iter().map(|(table, wants)| claim(self.of(table), *wants));
        wants.keys().cloned().zip(deal(total, &claims.collect::<Vec<_>>())).collect()
    }

    /// The same, by number.
    pub(crate) fn deal_numbered(&self, total: f64, wants: &ByTable) -> ByTable {
        let claims = wants.0.iter().map(|(table, wants)| claim(self.numbered(*table), *wants));
        let dealt = deal(total, &claims.collect::<Vec<_>>());
        ByTable(wants.0.iter().zip(dealt).map(|((table, _), dealt)| (*table, dealt)).collect())
    }
}

fn claim(share: Share, wants: f64) -> Claim {
    Claim { weight: share.part, limit: share.limit, wants }
}

/// Amounts by the numbers of their tables in [`Shares`], in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ByTable(Vec<(usize, f64)>);

impl ByTable {
    /// Adds up amounts that come in any order.
    pub(crate) fn sums(mut amounts: Vec<(usize, f64)>) -> Self {
        amounts.sort_by_key(|(table, _)| *table); // Stable: sums are the same each time.
        amounts.dedup_by(|next, sum| {
            let is_same = next.0 == sum.0;
            if is_same {
                sum.1 += next.1;
            }
            is_same
        });
        Self(amounts)
    }

    /// The amount of a table; zero if it has none.
    pub(crate) fn get(&self, table: usize) -> f64 {
        self.place(table).map_or(0.0, |place| self.0[place].1)
    }

    /// Where the amount of a table is in [`amounts`](Self::amounts).
    pub(crate) fn place(&self, table: usize) -> Option<usize> {
        self.0.binary_search_by_key(&table, |(of, _)| *of).ok()
    }

    /// Tables and amounts.
    pub(crate) fn amounts(&self) -> &[(usize, f64)] {
        &self.0
    }
}

/// Which table lets bytes go for an offer of `bytes` on `table`, and how many at most: the one that has most
/// above its part, if the other has less than its own with what it is offered. `room` is what all tables may
/// have together, `held` what each has.
#[must_use]
pub fn gives_way(
    shares: &Shares,
    room: f64,
    held: &BTreeMap<Arc<str>, f64>,
    (table, bytes): (&Arc<str>, f64),
) -> Option<(Arc<str>, f64)> {
    let mut wants = held.clone();
    *wants.entry(Arc::clone(table)).or_default() += bytes;
    let parts = shares.deal(room, &wants);
    // What it would have then is within its part.
    if parts.get(table)? + 1.0 < *wants.get(table)? {
        return None;
    }
    let excess = held.iter().filter(|(other, _)| *other != table).map(|(other, held)| {
        let part = parts.get(other).copied().unwrap_or(0.0);
        (Arc::clone(other), held - part)
    });
    excess.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, excess)| *excess >= 1.0)
}

/// What one table has and may have on one node, for reading.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetRow {
    /// The node.
    pub node: NodeId,
    /// The table.
    pub table: Arc<str>,
    /// What people gave it.
    pub budget: TableBudget,
    /// Its part.
    pub share: Share,
    /// Bytes of its stored outputs and states on the node, if all holders of a partition have the same.
    pub output_bytes: f64,
    /// Bytes that it may have while every table wants more.
    pub output_bytes_share: f64,
    /// Background nanoseconds that were spent for it of late: about those of the last lead.
    pub background_ns: f64,
    /// Background nanoseconds of as many ticks while every table wants more.
    pub background_ns_share: f64,
}

/// Background nanoseconds that were spent of late, by node and table.
pub type Spent = BTreeMap<NodeId, BTreeMap<Arc<str>, f64>>;

/// What each table has and may have, node by node.
#[must_use]
pub fn rows(
    view: &ClusterView,
    shares: &Shares,
    (controls, spent): (&Controls, &Spent),
    config: &LoopConfig,
) -> Vec<BudgetRow> {
    let held = held(view);
    let lead = config.precompute().lead_ticks() as f64;
    let background_ns = config.precompute().budget_share() * config.tick_ns() * lead;
    let row = |node: NodeId, memory_bytes_max: u64, (table, share): &(Arc<str>, Share)| {
        let part = share.part.min(share.limit);
        let of = |all: Option<&BTreeMap<Arc<str>, f64>>| {
            all.and_then(|of_node| of_node.get(table)).copied().unwrap_or(0.0)
        };
        BudgetRow {
            node,
            table: Arc::clone(table),
            budget: controls.budget(table),
            share: *share,
            output_bytes: of(held.get(&node)),
            output_bytes_share: part * memory_bytes_max as f64,
            background_ns: of(spent.get(&node)),
            background_ns_share: part * background_ns,
        }
    };
    let of_node = |(node, max): (NodeId, u64)| {
        shares.tables.iter().map(move |of_table| row(node, max, of_table))
    };
    view.nodes.iter().map(|(node, view)| (*node, view.memory_bytes_max)).flat_map(of_node).collect()
}

/// Bytes of stored outputs and states on each node, by table: a partition's evenly on its holders.
fn held(view: &ClusterView) -> BTreeMap<NodeId, BTreeMap<Arc<str>, f64>> {
    let mut names: Vec<&Arc<str>> = view.partitions.keys().map(|id| &id.table).collect();
    names.dedup();
    let named = |by_table: ByTable| {
        by_table.0.into_iter().map(|(table, bytes)| (Arc::clone(names[table]), bytes)).collect()
    };
    held_by_number(view).into_iter().map(|(node, by_table)| (node, named(by_table))).collect()
}

/// The same by the numbers that tables have in [`Shares`] of the view.
pub(crate) fn held_by_number(view: &ClusterView) -> BTreeMap<NodeId, ByTable> {
    let parts: Vec<(&PartitionId, &PartitionView)> = view.partitions.iter().collect();
    let mut bytes = vec![0.0; parts.len()];
    let mut next = 0;
    for ((_, partition), output) in view.outputs.iter().filter(|(_, output)| output.bytes > 0) {
        // There may be a million: mostly one is of the partition after that of the one before.
        let is_next = parts.get(next).is_some_and(|(id, _)| *id == partition);
        let place =
            if is_next { Ok(next) } else { parts.binary_search_by(|(id, _)| (*id).cmp(partition)) };
        let Ok(place) = place else { continue };
        bytes[place] += output.bytes as f64;
        next = place + 1;
    }
    let mut all: BTreeMap<NodeId, Vec<(usize, f64)>> = BTreeMap::new();
    let tables = parts.chunk_by(|(a, _), (b, _)| a.table == b.table).enumerate();
    let mut bytes = bytes.into_iter();
    for (table, parts) in tables {
        for ((_, part), bytes) in parts.iter().zip(bytes.by_ref()).filter(|(_, bytes)| *bytes > 0.0)
        {
            let each = bytes / part.holders.len() as f64;
            for node in &part.holders {
                all.entry(*node).or_default().push((table, each));
            }
        }
    }
    all.into_iter().map(|(node, amounts)| (node, ByTable::sums(amounts))).collect()
}

#[cfg(test)]
mod tests;
