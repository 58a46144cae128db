//! Steps that are planned and not begun, as the newest plan has them: somebody must approve them first, a
//! limit must allow them, or they are held back.

use std::collections::BTreeMap;

use foreshard_policy::cluster::{Aim, Step};
use foreshard_policy::control::ControlError;
use foreshard_policy::decision::{By, Ledger, Outcome, Stamp};
use foreshard_policy::reshape::Planned;

/// The postponed steps of one kind of one actor, by number of the decision.
#[derive(Debug)]
pub(crate) struct Postponed {
    /// What they wait for.
    by: By,
    open: BTreeMap<u64, Planned>,
}

/// What is the same step from plan to plan: the nodes of a copy may be others, those that come and go not.
fn same(step: &Step) -> (Aim, Option<Step>) {
    (step.aim(), step.partition().is_none().then(|| step.clone()))
}

impl Postponed {
    /// None yet; those that come wait for what `by` says.
    pub(crate) fn new(by: By) -> Self {
        Self { by, open: BTreeMap::new() }
    }

    /// Writes down what is new, and closes what is not planned any more. What stays keeps its number.
    pub(crate) fn renew(&mut self, planned: Vec<Planned>, ledger: &mut Ledger, stamp: Stamp) {
        let former = std::mem::take(&mut self.open);
        let mut by_step: BTreeMap<_, _> =
            former.iter().map(|(id, planned)| (same(&planned.step), *id)).collect();
        for planned in planned {
            let (id, planned) = match by_step.remove(&same(&planned.step)) {
                Some(id) => (id, former[&id].clone()),
                None => (ledger.decided(&planned, self.by, stamp), planned),
            };
            self.open.insert(id, planned);
        }
        for id in by_step.into_values() {
            let reason = match self.by {
                By::Holdback => "not held back any more",
                _ => "not planned any more",
            };
            ledger.ended(id, Outcome::Left { reason: reason.to_owned() });
        }
    }

    /// Takes a step that is approved off the list.
    ///
    /// # Errors
    /// [`ControlError`] if there is none of this number.
    pub(crate) fn approve(&mut self, id: u64, ledger: &Ledger) -> Result<Planned, ControlError> {
        if let Some(planned) = self.open.remove(&id) {
            return Ok(planned);
        }
        let standing = ledger.get(id)?.standing();
        Err(ControlError::NotSuggested { id, standing })
    }
}

#[cfg(test)]
mod tests {
    use foreshard_policy::config::Mode;
    use foreshard_policy::ids::{Epoch, NodeId, PartitionId, Tick};
    use foreshard_policy::reshape::{Reason, Worth};

    use super::*;

    fn add(node: u32) -> Planned {
        Planned {
            step: Step::AddNode { node: NodeId(node) },
            reason: Reason::Bounds { nodes: 1, need: 2 },
            worth: Worth::default(),
            inputs: String::new(),
            forecast: String::new(),
            alternatives: vec![],
        }
    }

    #[test]
    fn a_suggestion_is_written_down_once_and_closed_when_it_is_not_planned_any_more() {
        let (mut suggestions, mut ledger) = (Postponed::new(By::Suggestion), Ledger::new(10));
        let stamp = Stamp { epoch: Epoch(1), mode: Mode::Forecast, tick: Tick(1), at_ms: 1 };
        suggestions.renew(vec![add(1), add(2)], &mut ledger, stamp);
        suggestions.renew(vec![add(2), add(3)], &mut ledger, stamp);
        let standings: Vec<_> = ledger.rows().map(|row| (row.id, row.standing())).collect();
        let expected = ["left: not planned any more", "suggested", "suggested"];
        assert_eq!(standings, (1..).zip(expected.map(String::from)).collect::<Vec<_>>());
        assert_eq!(suggestions.approve(3, &ledger), Ok(add(3)));
        let error = suggestions.approve(1, &ledger).unwrap_err();
        assert_eq!(
            error.to_string(),
            "decision 1 does not wait for approval: it is left: not planned any more"
        );
        assert_eq!(suggestions.approve(9, &ledger), Err(ControlError::Unknown { id: 9 }));
    }

    #[test]
    fn a_copy_to_another_node_is_the_same_postponed_step() {
        let (mut waiting, mut ledger) = (Postponed::new(By::Limit), Ledger::new(10));
        let stamp = Stamp { epoch: Epoch(1), mode: Mode::Forecast, tick: Tick(1), at_ms: 1 };
        let copy = |to| Planned {
            step: Step::Copy {
                partition: PartitionId::new("t", 0),
                from: NodeId(0),
                to: NodeId(to),
            },
            ..add(1)
        };
        waiting.renew(vec![copy(1)], &mut ledger, stamp);
        waiting.renew(vec![copy(2)], &mut ledger, stamp);
        let standings: Vec<_> = ledger.rows().map(|row| row.standing()).collect();
        assert_eq!(standings, ["waiting"]);
    }
}
