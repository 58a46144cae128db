//! What people let the loop do to each table: all by itself, after a yes, or nothing. And what they give it of
//! what nodes have.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::budgets::TableBudget;

/// What the loop may do to a table by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// It plans and carries out.
    #[default]
    Auto,
    /// It plans, and people say yes to each step.
    Suggest,
    /// It measures only.
    Observe,
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Suggest => "suggest",
            Self::Observe => "observe",
        })
    }
}

impl FromStr for Control {
    type Err = ControlError;

    fn from_str(text: &str) -> Result<Self, ControlError> {
        match text {
            "auto" => Ok(Self::Auto),
            "suggest" => Ok(Self::Suggest),
            "observe" => Ok(Self::Observe),
            _ => Err(ControlError::NoControl { text: text.to_owned() }),
        }
    }
}

/// What people asked for cannot be done to the plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// There is no such way to control a table.
    #[error("{text:?} is no control; it must be auto, suggest, observe, or default")]
    NoControl {
        /// What was given.
        text: String,
    },
    /// No decision of this number is kept.
    #[error("there is no decision {id}, or it is forgotten already")]
    Unknown {
        /// The number given.
        id: u64,
    },
    /// The decision does not wait for anybody.
    #[error("decision {id} does not wait for approval: it is {standing}")]
    NotSuggested {
        /// The decision.
        id: u64,
        /// How it stands.
        standing: String,
    },
    /// Nothing was done that could be undone.
    #[error("decision {id} cannot be undone: it is {standing}")]
    NotDone {
        /// The decision.
        id: u64,
        /// How it stands.
        standing: String,
    },
    /// The cluster is another one by now, or the step has no inverse.
    #[error("decision {id} cannot be undone: {reason}")]
    Irreversible {
        /// The decision.
        id: u64,
        /// What is in the way.
        reason: String,
    },
    /// Replicas of the partition are changing.
    #[error("decision {id} must wait: another step changes the same partition")]
    Busy {
        /// The decision.
        id: u64,
    },
    /// The loop may not change the table by itself.
    #[error("{table} is not left to the loop (system.controls); CALL undo does it")]
    NotAuto {
        /// The table.
        table: Arc<str>,
    },
    /// Partitions of the tables cannot hold the same keys.
    #[error("{table} and {other} cannot be kept on one node: {why}")]
    NotAlike {
        /// One table.
        table: Arc<str>,
        /// The other one.
        other: Arc<str>,
        /// What is in the way.
        why: String,
    },
    /// Nothing of the table changes.
    #[error("{table} is frozen; CALL unfreeze('{table}') first")]
    Frozen {
        /// The table.
        table: Arc<str>,
    },
}

impl ControlError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoControl { .. } => "FS-CONTROL-1",
            Self::Unknown { .. } => "FS-CONTROL-2",
            Self::NotSuggested { .. } => "FS-CONTROL-3",
            Self::NotDone { .. } => "FS-CONTROL-4",
            Self::Irreversible { .. } => "FS-CONTROL-5",
            Self::Busy { .. } => "FS-CONTROL-6",
            Self::Frozen { .. } => "FS-CONTROL-7",
            Self::NotAuto { .. } => "FS-CONTROL-8",
            Self::NotAlike { .. } => "FS-CONTROL-9",
        }
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }
}

/// The tables for which people said something of their own. All others go by the setting `control`.
///
/// What a node that died or leaves makes necessary is done to every table all the same: a partition
/// that no live node holds is loaded, and one that a draining node holds is copied.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Controls {
    tables: BTreeMap<Arc<str>, Control>,
    frozen: BTreeSet<Arc<str>>,
    /// Tables whose partitions with the same keys belong on one node; each table is in one group at most.
    groups: BTreeSet<BTreeSet<Arc<str>>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    budgets: BTreeMap<Arc<str>, TableBudget>,
}

impl Controls {
    /// Controls a table in its own way; without one, by the setting again. Answers whether that is new.
    pub fn set(&mut self, table: &str, control: Option<Control>) -> bool {
        let before = match control {
            Some(control) => self.tables.insert(table.into(), control),
            None => self.tables.remove(table),
        };
        before != control
    }

    /// Nothing of the table changes from now on. Answers whether that is new.
    pub fn freeze(&mut self, table: &str) -> bool {
        self.frozen.insert(table.into())
    }

    /// The table may change again. Answers whether that is new.
    pub fn unfreeze(&mut self, table: &str) -> bool {
        self.frozen.remove(table)
    }

    /// Partitions of these tables with the same keys belong on one node from now on; groups that they were in
    /// become one. Answers whether that is new.
    pub fn colocate(&mut self, tables: &[Arc<str>]) -> bool {
        let mut group: BTreeSet<Arc<str>> = tables.iter().cloned().collect();
        if group.len() < 2 || self.groups.iter().any(|known| known.is_superset(&group)) {
            return false;
        }
        self.groups.retain(|known| {
            let is_apart = known.is_disjoint(&group);
            if !is_apart {
                group.extend(known.iter().cloned());
            }
            is_apart
        });
        self.groups.insert(group)
    }

    /// A table belongs to no group from now on; nor does the last one of its group. Answers whether that is new.
    pub fn colocate_end(&mut self, table: &str) -> bool {
        let Some(mut group) = self.group_of(table).cloned() else { return false };
        self.groups.remove(&group);
        group.remove(table);
        if group.len() > 1 {
            self.groups.insert(group);
        }
        true
    }

    /// Groups of tables whose partitions with the same keys belong on one node.
    #[must_use]
    pub fn groups(&self) -> &BTreeSet<BTreeSet<Arc<str>>> {
        &self.groups
    }

    /// The group that a table is in, with it.
    #[must_use]
    pub fn group_of(&self, table: &str) -> Option<&BTreeSet<Arc<str>>> {
        self.groups.iter().find(|group| group.contains(table))
    }

    /// Forgets a table that is gone. Answers whether anything was said of it.
    pub fn forget(&mut self, table: &str) -> bool {
        self.tables.remove(table).is_some()
            | self.frozen.remove(table)
            | self.budgets.remove(table).is_some()
            | self.colocate_end(table)
    }

    /// Gives a table a budget. Answers whether that is new.
    pub fn set_budget(&mut self, table: &str, budget: TableBudget) -> bool {
        let before = self.budget(table);
        match budget == TableBudget::default() {
            true => drop(self.budgets.remove(table)),
            false => drop(self.budgets.insert(table.into(), budget)),
        }
        before != budget
    }

    /// What people gave a table of what nodes have.
    #[must_use]
    pub fn budget(&self, table: &str) -> TableBudget {
        self.budgets.get(table).copied().unwrap_or_default()
    }

    /// The way of its own in which a table is controlled.
    #[must_use]
    pub fn own(&self, table: &str) -> Option<Control> {
        self.tables.get(table).copied()
    }

    /// Whether a table is frozen.
    #[must_use]
    pub fn is_frozen(&self, table: &str) -> bool {
        self.frozen.contains(table)
    }

    /// What the loop may do to a table, where `usual` is the setting.
    #[must_use]
    pub fn of(&self, table: &str, usual: Control) -> Control {
        if self.is_frozen(table) { Control::Observe } else { self.own(table).unwrap_or(usual) }
    }

    /// Whether there may be a table of which steps are suggested only.
    #[must_use]
    pub fn suggests(&self, usual: Control) -> bool {
        usual == Control::Suggest || self.tables.values().any(|own| *own == Control::Suggest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_goes_by_the_setting_until_somebody_says_otherwise() {
        let mut controls = Controls::default();
        assert_eq!(controls.of("t", Control::Suggest), Control::Suggest);
        assert!(controls.set("t", Some(Control::Observe)));
        assert!(!controls.set("t", Some(Control::Observe)), "it is nothing new");
        assert_eq!(controls.of("t", Control::Auto), Control::Observe);
        assert_eq!(controls.of("u", Control::Auto), Control::Auto);
        assert!(controls.set("t", None) && !controls.set("t", None));
        assert_eq!(controls.of("t", Control::Auto), Control::Auto);
    }

    #[test]
    fn a_frozen_table_is_observed_and_has_its_own_control_back_afterwards() {
        let mut controls = Controls::default();
        controls.set("t", Some(Control::Suggest));
        assert!(controls.freeze("t") && !controls.freeze("t"));
        assert_eq!(controls.of("t", Control::Auto), Control::Observe);
        assert!(controls.unfreeze("t") && !controls.unfreeze("t"));
        assert_eq!(controls.of("t", Control::Auto), Control::Suggest);
        assert!(controls.forget("t") && !controls.forget("t"));
        assert_eq!(controls, Controls::default());
    }

    #[test]
    fn a_table_is_in_one_group_until_it_or_all_others_of_it_are_gone() {
        let mut controls = Controls::default();
        let names = |text: &str| text.split(' ').map(Arc::from).collect::<Vec<Arc<str>>>();
        let groups = |controls: &Controls| -> Vec<String> {
            let group =
                |group: &BTreeSet<Arc<str>>| Vec::from_iter(group.iter().cloned()).join(" ");
            controls.groups().iter().map(group).collect()
        };
        assert!(controls.colocate(&names("a b")) && controls.colocate(&names("c d")));
        assert!(!controls.colocate(&names("b a")) && !controls.colocate(&names("e e")));
        assert_eq!(groups(&controls), ["a b", "c d"]);
        assert!(controls.colocate(&names("b c")));
        assert_eq!(groups(&controls), ["a b c d"]);
        assert!(controls.colocate_end("a") && !controls.colocate_end("a"));
        assert!(controls.forget("b"));
        assert_eq!(groups(&controls), ["c d"]);
        assert!(controls.colocate_end("d") && !controls.colocate_end("c"));
        assert_eq!(controls, Controls::default());
    }

    #[test]
    fn what_is_written_is_read_and_what_is_no_control_names_those_that_are() {
        for control in [Control::Auto, Control::Suggest, Control::Observe] {
            assert_eq!(control.to_string().parse(), Ok(control));
        }
        let error = "manual".parse::<Control>().unwrap_err();
        assert_eq!((error.code(), error.is_retryable()), ("FS-CONTROL-1", false));
        assert_eq!(
            error.to_string(),
            "\"manual\" is no control; it must be auto, suggest, observe, or default"
        );
    }
}
