//! Which partitions of several tables hold rows with the same keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::cluster::{ClusterView, TableView};
use crate::control::Controls;
use crate::history::Joined;
use crate::ids::PartitionId;

/// Partitions of all of `tables`, in the order of their keys: all partitions of one set together hold all
/// rows of one range of keys. Empty if the tables are not laid out by comparable keys.
///
/// # Cost
/// `O(p log p)` of the partitions of all tables.
#[must_use]
pub fn sets(view: &ClusterView, tables: &BTreeSet<Arc<str>>) -> Vec<Vec<PartitionId>> {
    let known: Vec<(&Arc<str>, &TableView)> =
        tables.iter().filter_map(|name| Some((name, view.tables.get(name)?))).collect();
    let Some((_, first)) = known.first() else { return Vec::new() };
    let is_comparable =
        first.key.is_some() && known.iter().all(|(_, table)| table.key == first.key);
    if !is_comparable || known.len() < 2 {
        return Vec::new();
    }
    let mut shared: BTreeSet<u64> = first.cuts.iter().copied().collect();
    for (_, table) in &known {
        let cuts: BTreeSet<u64> = table.cuts.iter().copied().collect();
        shared.retain(|cut| cuts.contains(cut));
    }
    let mut sets: Vec<Vec<PartitionId>> = vec![Vec::new(); shared.len() + 1];
    for (name, table) in known {
        let mut at = 0;
        for (ordinal, cut) in table.order.iter().zip(table.cuts.iter().map(Some).chain([None])) {
            if let Some(set) = sets.get_mut(at) {
                set.push(PartitionId::new(Arc::clone(name), *ordinal));
            }
            at += usize::from(cut.is_some_and(|cut| shared.contains(cut)));
        }
    }
    sets
}

/// Partitions of other tables that are to be split and merged like this one: of the tables that people
/// declared to belong together, and of those that queries join with it in place, where they have the very
/// same range of keys.
#[must_use]
pub fn twins(
    view: &ClusterView,
    controls: &Controls,
    joined: &[Joined],
    partition: &PartitionId,
) -> Vec<PartitionId> {
    let mut tables: BTreeMap<Arc<str>, bool> = BTreeMap::new();
    for table in controls.group_of(&partition.table).into_iter().flatten() {
        tables.insert(Arc::clone(table), true);
    }
    for Joined { a, b, .. } in joined {
        let other = match (a == partition, b == partition) {
            (true, false) => b,
            (false, true) => a,
            _ => continue,
        };
        if is_together(view, partition, other) {
            tables.entry(Arc::clone(&other.table)).or_insert(false);
        }
    }
    tables.remove(&partition.table);
    tables.keys().filter_map(|table| twin(view, partition, table)).collect()
}

/// Whether one node holds both.
fn is_together(view: &ClusterView, one: &PartitionId, other: &PartitionId) -> bool {
    let holders = |id: &PartitionId| Some(&view.partitions.get(id)?.holders);
    match (holders(one), holders(other)) {
        (Some(one), Some(other)) => !one.is_disjoint(other),
        _ => false,
    }
}

/// The partition of a table that has the same range of keys as this one.
#[must_use]
pub fn twin(view: &ClusterView, partition: &PartitionId, table: &str) -> Option<PartitionId> {
    let (own, name) = (view.tables.get(&partition.table)?, view.tables.get_key_value(table)?);
    let (name, other) = name;
    if own.key.is_none() || own.key != other.key {
        return None;
    }
    let (from, to) = own.ends(partition.ordinal)?;
    let cut = |at: Option<usize>| at.and_then(|at| other.cuts.get(at)).copied();
    let is_same = |at: &usize| cut(at.checked_sub(1)) == from && cut(Some(*at)) == to;
    let at = (0..other.order.len()).find(is_same)?;
    Some(PartitionId::new(Arc::clone(name), other.order[at]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::PartitionView;
    use crate::ids::NodeId;

    /// Two tables that were made alike, of which the second one was split.
    fn view() -> ClusterView {
        let table = |order: &[u32], cuts: &[u64]| TableView {
            order: order.to_vec(),
            next: 9,
            made: 1,
            key: Some(1),
            cuts: cuts.to_vec(),
        };
        let mut view = ClusterView::default();
        view.tables.insert("lines".into(), table(&[0, 1, 2], &[10, 20]));
        view.tables.insert("orders".into(), table(&[0, 3, 4, 2], &[10, 15, 20]));
        view.tables.insert("other".into(), TableView { key: Some(2), ..table(&[0], &[]) });
        for (table, ordinal) in [("lines", 0), ("orders", 0), ("lines", 1), ("orders", 3)] {
            let holders = [NodeId(ordinal / 3)].into();
            let one = PartitionView { holders, rows: 1, bytes: 1 };
            view.partitions.insert(PartitionId::new(table, ordinal), one);
        }
        view
    }

    fn names(tables: &[&str]) -> BTreeSet<Arc<str>> {
        tables.iter().map(|table| Arc::from(*table)).collect()
    }

    fn text(ids: &[PartitionId]) -> String {
        ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_set_has_all_rows_of_a_range_also_where_one_table_is_split_further() {
        let sets_of = |tables: &[&str]| -> Vec<String> {
            sets(&view(), &names(tables)).iter().map(|set| text(set)).collect()
        };
        assert_eq!(
            sets_of(&["lines", "orders"]),
            ["lines/0 orders/0", "lines/1 orders/3 orders/4", "lines/2 orders/2"]
        );
        assert_eq!(sets_of(&["lines", "other"]), [] as [&str; 0], "other keys");
        assert_eq!(sets_of(&["lines", "gone"]), [] as [&str; 0]);
    }

    #[test]
    fn a_twin_has_the_same_range_and_is_declared_or_joined_where_it_is() {
        let (view, mut controls) = (view(), Controls::default());
        let line = |ordinal| PartitionId::new("lines", ordinal);
        let order = |ordinal| PartitionId::new("orders", ordinal);
        let joined = |a, b| Joined { a, b, queries: 1.0 };
        let joins = [joined(line(0), order(0)), joined(line(1), order(3))];
        let twins_of =
            |controls: &Controls, joins: &[Joined], of| text(&twins(&view, controls, joins, &of));
        assert_eq!(twins_of(&controls, &[], line(0)), "");
        assert_eq!(twins_of(&controls, &joins, line(0)), "orders/0");
        assert_eq!(twins_of(&controls, &joins, order(0)), "lines/0");
        assert_eq!(twins_of(&controls, &joins, line(1)), "", "another range, on another node");
        controls.colocate(&["lines".into(), "orders".into()]);
        assert_eq!(twins_of(&controls, &[], line(0)), "orders/0");
        assert_eq!(twins_of(&controls, &[], line(1)), "", "it is split already");
        assert_eq!(twins_of(&controls, &[], line(2)), "orders/2");
    }
}
