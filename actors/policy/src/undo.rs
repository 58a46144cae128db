//! What takes a step back: the inverse of one that was carried out, as the cluster now is.

use std::sync::Arc;

use crate::cluster::{
    ClusterView, MergeAlike, PartitionView, RowsView, SplitAlike, Step, TableView,
};
use crate::control::{ControlError, Controls};
use crate::decision::{DecisionRow, Outcome};
use crate::ids::{NodeId, PartitionId};
use crate::reshape::cut::Even;
use crate::reshape::{COPY_NS_PER_BYTE, Planned, Reason, Worth};

/// The step that takes `row`'s step back, with `reason`. Copies are dropped and what was dropped is copied
/// again; outputs that were computed are dropped, and those that were dropped are computed again; rows that
/// were read are let go, and those that were let go are read again.
///
/// A partition never loses its last live replica by it, and no node gets a second one. Nodes that came or
/// went are not taken back: the next plan would ask for them again.
///
/// # Errors
/// [`ControlError`] if the step was not carried out, the cluster is another one by now, replicas of the
/// partition are changing (`in_flight`), or its table is frozen.
pub fn undo(
    row: &DecisionRow,
    view: &ClusterView,
    in_flight: &[Step],
    controls: &Controls,
    reason: Reason,
) -> Result<Planned, ControlError> {
    let id = row.id;
    let not_done = || ControlError::NotDone { id, standing: row.standing() };
    let step = row.step.as_ref().filter(|_| matches!(row.outcome, Some(Outcome::Done { .. })));
    let step = step.ok_or_else(not_done)?;
    let frozen = step.partition().filter(|partition| controls.is_frozen(&partition.table));
    if let Some(partition) = frozen {
        return Err(ControlError::Frozen { table: partition.table.clone() });
    }
    let inverse = inverse(step, view);
    let undone = step;
    let mut step = inverse.map_err(|reason| ControlError::Irreversible { id, reason })?;
    let mut left = left_as_it_is(undone, view);
    left.extend(leave_frozen(&mut step, controls));
    let ended = step.partitions_ended();
    let is_open = |partition: &PartitionId| {
        let touches = |open: &Step| {
            open.partition() == Some(partition) || open.partitions_ended().contains(partition)
        };
        in_flight.iter().any(touches)
    };
    if undone.partition().into_iter().chain(&ended).any(is_open) {
        return Err(ControlError::Busy { id });
    }
    let touched = step.partition_moved().into_iter().chain(&ended);
    let held = touched.filter_map(|partition| view.partitions.get(partition));
    let bytes = held.map(|partition| partition.bytes as f64).sum::<f64>();
    let copies = matches!(step, Step::Copy { .. } | Step::Move { .. }) || !ended.is_empty();
    let cost_ns = if copies { bytes * COPY_NS_PER_BYTE } else { 0.0 };
    let of_rows = |partition: &PartitionId, node: &NodeId| {
        view.rows.get(&(partition.clone(), *node)).copied().unwrap_or_default()
    };
    let bytes = match &step {
        Step::Drop { .. } => -bytes,
        Step::Copy { .. } => bytes,
        Step::Prefetch { partition, node } => of_rows(partition, node).bytes_missing as f64,
        Step::Release { partition, node } => -(of_rows(partition, node).bytes as f64),
        _ => 0.0,
    };
    Ok(Planned {
        inputs: inputs(&step, view),
        step,
        reason,
        worth: Worth { bytes, cost_ns, ..Worth::default() },
        forecast: row.forecast.clone(),
        alternatives: std::iter::once(format!("leave decision {id} as it is: {}", row.reason))
            .chain(left)
            .collect(),
    })
}

fn inverse(step: &Step, view: &ClusterView) -> Result<Step, String> {
    match step {
        Step::Copy { partition, to, .. } => {
            let held = live(view, partition)?;
            if !held.contains(to) {
                return Err(format!("{to} holds no replica of {partition} any more"));
            }
            if held.len() < 2 {
                return Err(format!("{to} holds the only replica of {partition}"));
            }
            Ok(Step::Drop { partition: partition.clone(), from: *to })
        }
        Step::Drop { partition, from } => {
            let held = live(view, partition)?;
            let stays = view.nodes.get(from).is_some_and(|node| !node.draining);
            if !stays {
                return Err(format!("{from} is gone or going"));
            }
            if held.contains(from) {
                return Err(format!("{from} holds a replica of {partition} again"));
            }
            let source = held.first().copied().unwrap_or(*from);
            Ok(Step::Copy { partition: partition.clone(), from: source, to: *from })
        }
        Step::Move { partition, from, to } => {
            let held = live(view, partition)?;
            if !held.contains(to) {
                return Err(format!("{to} holds no replica of {partition} any more"));
            }
            if view.nodes.get(from).is_none_or(|node| node.draining) {
                return Err(format!("{from} is gone or going"));
            }
            if held.contains(from) {
                return Err(format!("{from} holds a replica of {partition} again"));
            }
            Ok(Step::Move { partition: partition.clone(), from: *to, to: *from })
        }
        Step::Precompute { function, expression, partition } => {
            let output = view.outputs.get(&(*expression, partition.clone()));
            match output {
                Some(output) if output.pinned => {
                    Err(format!("{function} on {partition} is pinned"))
                }
                Some(output) if output.bytes > 0 => Ok(Step::DropOutput {
                    function: function.clone(),
                    expression: *expression,
                    partition: partition.clone(),
                }),
                _ => Err(format!("nothing of {function} on {partition} is stored any more")),
            }
        }
        Step::DropOutput { function, expression, partition } => {
            let output = view.outputs.get(&(*expression, partition.clone()));
            if output.is_none_or(|output| output.rows_missing == 0) {
                return Err(format!("nothing of {function} on {partition} is missing"));
            }
            Ok(Step::Precompute {
                function: function.clone(),
                expression: *expression,
                partition: partition.clone(),
            })
        }
        Step::Prefetch { partition, node } => {
            let (partition, node) = (partition.clone(), *node);
            match rows(view, &partition, node)?.bytes {
                0 => Err(format!("{node} has no rows of {partition} in memory any more")),
                _ => Ok(Step::Release { partition, node }),
            }
        }
        Step::Release { partition, node } => {
            let (partition, node) = (partition.clone(), *node);
            match rows(view, &partition, node)?.bytes_missing {
                0 => Err(format!("{node} has all rows of {partition} in memory again")),
                _ => Ok(Step::Prefetch { partition, node }),
            }
        }
        Step::Split { partition, into, alike, .. } => {
            let Merged { partition, other, into } = merged(view, partition, *into)?;
            let twins = alike.iter().filter_map(|twin| {
                let merged = merged(view, &twin.partition, twin.into).ok()?;
                let Merged { partition, other, into } = merged;
                Some(MergeAlike { partition, other, into })
            });
            Ok(Step::Merge { partition, other, into, alike: twins.collect() })
        }
        Step::Merge { partition, into, alike, .. } => {
            let (partition, into) = split(view, &partition.table, *into)?;
            let twins = alike.iter().filter_map(|twin| {
                let (partition, into) = split(view, &twin.partition.table, twin.into).ok()?;
                Some(SplitAlike { partition, into })
            });
            Ok(Step::Split { partition, into, even: Even::Rows, alike: twins.collect() })
        }
        Step::AddNode { .. } | Step::RemoveNode { .. } => {
            Err("nodes follow the load; set loop.allocate.nodes-min and nodes-max, or loop.control"
                .to_owned())
        }
    }
}

/// A merge of one table.
struct Merged {
    partition: PartitionId,
    other: u32,
    into: u32,
}

/// What makes one partition again of the parts of one that was split.
fn merged(
    view: &ClusterView,
    partition: &PartitionId,
    [left, right]: [u32; 2],
) -> Result<Merged, String> {
    let table = reshapable(view, partition)?;
    let at = table.order.iter().position(|ordinal| *ordinal == left);
    let follows = at.and_then(|at| table.order.get(at + 1)) == Some(&right);
    let left = PartitionId::new(partition.table.clone(), left);
    match follows {
        true => Ok(Merged { partition: left, other: right, into: table.next }),
        false => Err(format!("{left} and {right} are not neighbours any more")),
    }
}

/// What makes two partitions again of those that were merged.
fn split(
    view: &ClusterView,
    table: &Arc<str>,
    whole: u32,
) -> Result<(PartitionId, [u32; 2]), String> {
    let whole = PartitionId::new(Arc::clone(table), whole);
    let table = reshapable(view, &whole)?;
    match table.order.contains(&whole.ordinal) {
        true => Ok((whole, [table.next, table.next + 1])),
        false => Err(format!("{whole} is gone")),
    }
}

/// What of a split or merge is not taken back, and why.
fn left_as_it_is(step: &Step, view: &ClusterView) -> Vec<String> {
    let stays = |partition: &PartitionId, error: Option<String>| {
        error.map(|why| format!("{partition} is not taken back: {why}"))
    };
    match step {
        Step::Split { alike, .. } => alike
            .iter()
            .filter_map(|it| stays(&it.partition, merged(view, &it.partition, it.into).err()))
            .collect(),
        Step::Merge { alike, .. } => alike
            .iter()
            .filter_map(|it| stays(&it.partition, split(view, &it.partition.table, it.into).err()))
            .collect(),
        _ => vec![],
    }
}

/// Takes partitions of frozen tables out of what is split or merged alike, and names them.
fn leave_frozen(step: &mut Step, controls: &Controls) -> Vec<String> {
    let mut left = vec![];
    let mut stays = |partition: &PartitionId| {
        let is_frozen = controls.is_frozen(&partition.table);
        if is_frozen {
            left.push(format!("{partition} is not taken back: its table is frozen"));
        }
        is_frozen
    };
    match step {
        Step::Split { alike, .. } => alike.retain(|twin| !stays(&twin.partition)),
        Step::Merge { alike, .. } => alike.retain(|twin| !stays(&twin.partition)),
        _ => {}
    }
    left
}

fn reshapable<'a>(view: &'a ClusterView, partition: &PartitionId) -> Result<&'a TableView, String> {
    let table = view.tables.get(&partition.table);
    table
        .ok_or_else(|| format!("{} has no partitions that can be split or merged", partition.table))
}

/// Rows of a replica that its node still holds.
fn rows(view: &ClusterView, partition: &PartitionId, node: NodeId) -> Result<RowsView, String> {
    let rows = view.rows.get(&(partition.clone(), node)).copied();
    rows.filter(|_| live(view, partition).is_ok_and(|held| held.contains(&node)))
        .ok_or_else(|| format!("{node} holds no replica of {partition} any more"))
}

fn live(view: &ClusterView, partition: &PartitionId) -> Result<Vec<NodeId>, String> {
    let known = view.partitions.get(partition);
    let known: &PartitionView = known.ok_or_else(|| format!("{partition} is gone"))?;
    Ok(known.holders.iter().copied().filter(|node| view.nodes.contains_key(node)).collect())
}

fn inputs(step: &Step, view: &ClusterView) -> String {
    let Some(partition) = step.partition() else { return String::new() };
    let holders = view.partitions.get(partition).map(|view| &view.holders);
    let holders: Vec<_> = holders.into_iter().flatten().map(ToString::to_string).collect();
    format!("holders [{}]", holders.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{NodeView, OutputView};
    use crate::config::Mode;
    use crate::decision::{By, Ledger, Stamp};
    use crate::ids::{Epoch, ExpressionId, Tick};

    fn part() -> PartitionId {
        PartitionId::new("t", 0)
    }

    /// Three nodes, and a partition with a missing output that these of them hold.
    fn view(holders: &[u32]) -> ClusterView {
        let holders = holders.iter().copied().map(NodeId).collect();
        let output = OutputView {
            function: "f".into(),
            is_state: false,
            rows_stored: 0,
            rows_missing: 10,
            bytes: 0,
            pinned: false,
        };
        ClusterView {
            epoch: Epoch(1),
            nodes: (0..3).map(|id| (NodeId(id), NodeView::default())).collect(),
            partitions: [(part(), PartitionView { holders, rows: 10, bytes: 640 })].into(),
            outputs: [((ExpressionId(1), part()), output)].into(),
            rows: [((part(), NodeId(0)), RowsView { bytes_missing: 640, ..RowsView::default() })]
                .into(),
            tables: [(
                "t".into(),
                TableView { order: vec![0], next: 1, made: 1, ..TableView::default() },
            )]
            .into(),
        }
    }

    fn done(step: Step) -> DecisionRow {
        let planned = Planned {
            step,
            reason: Reason::Lost,
            worth: Worth::default(),
            inputs: String::new(),
            forecast: String::new(),
            alternatives: vec![],
        };
        let stamp = Stamp { epoch: Epoch(1), mode: Mode::Forecast, tick: Tick(1), at_ms: 1 };
        let mut ledger = Ledger::new(1);
        let id = ledger.decided(&planned, By::Loop, stamp);
        ledger.ended(id, Outcome::Done { rows: 0, bytes: 0, ns: 0 });
        ledger.get(id).unwrap().clone()
    }

    fn undone(step: Step, view: &ClusterView) -> Result<Step, ControlError> {
        let row = done(step);
        undo(&row, view, &[], &Controls::default(), Reason::Undone { id: row.id })
            .map(|planned| planned.step)
    }

    fn steps() -> [Step; 6] {
        let (function, expression) = ("f".into(), ExpressionId(1));
        [
            Step::Copy { partition: part(), from: NodeId(0), to: NodeId(2) },
            Step::Drop { partition: part(), from: NodeId(1) },
            Step::Precompute { function, expression, partition: part() },
            Step::DropOutput { function: "f".into(), expression, partition: part() },
            Step::Prefetch { partition: part(), node: NodeId(0) },
            Step::Release { partition: part(), node: NodeId(0) },
        ]
    }

    #[test]
    fn undoing_a_step_brings_back_what_was_before_it() {
        for step in steps() {
            let mut before = view(&[0, 1]);
            if let Step::DropOutput { .. } = step {
                let output = before.outputs.values_mut().next().unwrap();
                (output.rows_stored, output.rows_missing, output.bytes) = (10, 0, 80);
            }
            if let Step::Release { .. } = step {
                let rows = before.rows.values_mut().next().unwrap();
                (rows.bytes, rows.bytes_missing) = (640, 0);
            }
            let mut after = before.clone();
            after.apply(&step);
            assert_ne!(after, before, "{step}");
            if let Step::Precompute { .. } = step {
                after.outputs.values_mut().next().unwrap().bytes = 80;
            }
            let inverse = undone(step.clone(), &after).unwrap();
            after.apply(&inverse);
            after.outputs.values_mut().for_each(|output| output.bytes = 0);
            before.outputs.values_mut().for_each(|output| output.bytes = 0);
            assert_eq!(after, before, "{step}, then {inverse}");
        }
    }

    #[test]
    fn a_split_is_taken_back_by_a_merge_and_a_merge_by_a_split() {
        let split = split_of(vec![]);
        let mut after = view(&[0, 1]);
        after.apply(&split);
        let merge = undone(split.clone(), &after).unwrap();
        assert_eq!(merge.to_string(), "merge t/1, 2 -> 3");
        let open = [Step::Drop { partition: PartitionId::new("t", 2), from: NodeId(0) }];
        let row = done(split.clone());
        let busy = undo(&row, &after, &open, &Controls::default(), Reason::Undone { id: 1 });
        assert!(matches!(busy, Err(ControlError::Busy { .. })), "{busy:?}");
        after.apply(&merge);
        assert_eq!(after.partitions.keys().map(|id| id.ordinal).collect::<Vec<_>>(), [3]);
        assert_eq!(after.partitions[&PartitionId::new("t", 3)].rows, 10);
        let gone = undone(split, &after).unwrap_err().to_string();
        assert!(gone.ends_with("t/1 and 2 are not neighbours any more"), "{gone}");
        let again = undone(merge, &after).unwrap();
        assert_eq!(again.to_string(), "split t/3 -> 4, 5");
    }

    fn split_of(alike: Vec<SplitAlike>) -> Step {
        Step::Split { partition: part(), into: [1, 2], even: Even::Rows, alike }
    }

    #[test]
    fn what_was_split_alike_is_merged_alike_and_what_is_not_is_named() {
        let mut after = view(&[0, 1]);
        let twin = |table: &str| SplitAlike { partition: PartitionId::new(table, 0), into: [1, 2] };
        for table in ["u", "w"] {
            let whole = after.partitions[&part()].clone();
            after.partitions.insert(PartitionId::new(table, 0), whole);
            after.tables.insert(table.into(), after.tables["t"].clone());
        }
        let split = split_of(vec![twin("u"), twin("w")]);
        // Of one the split failed.
        after.apply(&split_of(vec![twin("u")]));
        let row = done(split);
        let reason = Reason::Undone { id: 1 };
        let planned = undo(&row, &after, &[], &Controls::default(), reason).unwrap();
        assert_eq!(planned.step.to_string(), "merge t/1, 2 -> 3; u/1, 2 -> 3");
        let named = planned.alternatives.last().unwrap();
        assert_eq!(named, "w/0 is not taken back: w/1 and 2 are not neighbours any more");
        let mut frozen = Controls::default();
        frozen.freeze("u");
        let alone = undo(&row, &after, &[], &frozen, reason).unwrap();
        assert_eq!(alone.step.to_string(), "merge t/1, 2 -> 3");
        let named = alone.alternatives.last().unwrap();
        assert_eq!(named, "u/1 is not taken back: its table is frozen");
        after.apply(&planned.step);
        let again = undone(planned.step, &after).unwrap();
        assert_eq!(again.to_string(), "split t/3 -> 4, 5; u/3 -> 4, 5");
    }

    #[test]
    fn what_cannot_be_taken_back_says_what_is_in_the_way() {
        let [copy, drop, compute, _, prefetch, release] = steps();
        let text =
            |step: &Step, view: &ClusterView| undone(step.clone(), view).unwrap_err().to_string();
        assert_eq!(
            text(&copy, &view(&[0])),
            "decision 1 cannot be undone: n2 holds no replica of t/0 any more"
        );
        assert!(text(&copy, &view(&[2])).ends_with("n2 holds the only replica of t/0"));
        assert!(text(&copy, &view(&[2, 9])).ends_with("the only replica of t/0"), "9 is dead");
        assert!(text(&drop, &view(&[0, 1])).ends_with("n1 holds a replica of t/0 again"));
        let mut draining = view(&[0]);
        draining.nodes.get_mut(&NodeId(1)).unwrap().draining = true;
        assert!(text(&drop, &draining).ends_with("n1 is gone or going"));
        assert!(text(&compute, &view(&[0])).ends_with("nothing of f on t/0 is stored any more"));
        let mut pinned = view(&[0]);
        pinned.outputs.values_mut().for_each(|output| (output.bytes, output.pinned) = (8, true));
        assert!(text(&compute, &pinned).ends_with("f on t/0 is pinned"));
        assert!(text(&Step::AddNode { node: NodeId(3) }, &view(&[0])).contains("nodes-min"));
        assert!(text(&drop, &ClusterView::default()).ends_with("t/0 is gone"));
        assert!(text(&prefetch, &view(&[0])).ends_with("n0 has no rows of t/0 in memory any more"));
        assert!(text(&prefetch, &view(&[1])).ends_with("n0 holds no replica of t/0 any more"));
        let mut whole = view(&[0]);
        whole.apply(&prefetch);
        assert!(text(&release, &whole).ends_with("n0 has all rows of t/0 in memory again"));
    }

    #[test]
    fn only_what_was_done_is_undone_and_not_while_the_partition_changes_or_is_frozen() {
        let [copy, drop, ..] = steps();
        let (row, view) = (done(copy), view(&[0, 2]));
        let mut controls = Controls::default();
        let undo = |row: &DecisionRow, in_flight: &[Step], controls: &Controls| {
            undo(row, &view, in_flight, controls, Reason::Undone { id: 1 }).unwrap_err()
        };
        for outcome in [None, Some(Outcome::Left { reason: "not planned any more".into() })] {
            let row = DecisionRow { outcome, ..row.clone() };
            assert_eq!(undo(&row, &[], &controls).code(), "FS-CONTROL-4");
        }
        let busy = undo(&row, &[drop], &controls);
        assert_eq!((busy.code(), busy.is_retryable()), ("FS-CONTROL-6", true));
        controls.freeze("t");
        let frozen = undo(&row, &[], &controls);
        assert_eq!(frozen.to_string(), "t is frozen; CALL unfreeze('t') first");
    }
}
