//! What was decided, why, and what came of it: the rows of `system.decisions`.

mod ledger;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cluster::Step;
use crate::config::Mode;
use crate::ids::{Epoch, Tick};
use crate::trust::{Expected, Predicted};
pub use ledger::Ledger;

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was carried out.
    Done {
        /// Rows that were computed or copied.
        rows: u64,
        /// Bytes that were stored or copied.
        bytes: u64,
        /// Nanoseconds that it took.
        ns: u64,
    },
    /// It was not carried out.
    Failed {
        /// Stable code of the error.
        code: String,
        /// What happened.
        reason: String,
    },
    /// It was not begun, and is not going to be.
    Left {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { rows, bytes, ns } => {
                write!(f, "done: {rows} rows, {bytes} bytes, {:.1} ms", *ns as f64 / 1e6)
            }
            Self::Failed { code, reason } => write!(f, "failed: {code} {reason}"),
            Self::Left { reason } => write!(f, "left: {reason}"),
        }
    }
}

/// Who has a step carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum By {
    /// The loop, by itself.
    #[default]
    Loop,
    /// Nobody yet: the loop suggests it.
    Suggestion,
    /// Nobody yet: it waits until a limit allows it.
    Limit,
    /// Nobody: it is left out to measure what steps like it are worth.
    Holdback,
    /// Somebody who approved a suggestion.
    Approval {
        /// The suggestion.
        of: u64,
    },
    /// Somebody who undid another decision.
    Undo {
        /// The other decision.
        of: u64,
    },
    /// The loop, because another decision did harm.
    Revert {
        /// The other decision.
        of: u64,
    },
}

impl By {
    /// The earlier decision that this one follows.
    #[must_use]
    pub fn follows(self) -> Option<u64> {
        match self {
            Self::Loop | Self::Suggestion | Self::Limit | Self::Holdback => None,
            Self::Approval { of } | Self::Undo { of } | Self::Revert { of } => Some(of),
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loop => "loop",
            Self::Suggestion => "suggestion",
            Self::Limit => "limit",
            Self::Holdback => "holdback",
            Self::Approval { .. } => "approval",
            Self::Undo { .. } => "undo",
            Self::Revert { .. } => "revert",
        })
    }
}

/// When a decision was taken, and under what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stamp {
    /// Epoch of the plan it belongs to.
    pub epoch: Epoch,
    /// Mode of the loop.
    pub mode: Mode,
    /// The last tick that was known.
    pub tick: Tick,
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// One decision, before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionRow {
    /// Number of the decision, growing.
    pub id: u64,
    /// Tick in which it was taken.
    pub tick: Tick,
    /// When it was taken, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Epoch of the plan it belongs to.
    pub epoch: Epoch,
    /// Kind of step.
    pub kind: String,
    /// The step in words.
    pub target: String,
    /// The step; none for what was found and done at once.
    #[serde(default)]
    pub step: Option<Step>,
    /// Who had it carried out.
    #[serde(default)]
    pub by: By,
    /// Mode of the loop.
    pub mode: Mode,
    /// Why.
    pub reason: String,
    /// What was known.
    pub inputs: String,
    /// What was expected.
    pub forecast: String,
    /// What else was considered.
    pub alternatives: Vec<String>,
    /// Nanoseconds of waiting that queries shall be spared.
    pub expected_benefit_ns: f64,
    /// Nanoseconds of background work it shall take.
    pub expected_cost_ns: f64,
    /// What of the benefit is expected to be measured, if any can be.
    #[serde(default)]
    pub expected: Option<Expected>,
    /// What that is predicted to be, by what earlier steps of the kind brought.
    #[serde(default)]
    pub predicted: Option<Predicted>,
    /// How it ended; none while it is under way.
    pub outcome: Option<Outcome>,
    /// Nanoseconds of waiting that queries were spared so far; none where it is not measured.
    pub measured: Option<f64>,
    /// How it was carried out, where the step does not say it: where a partition was cut, and why there.
    #[serde(default)]
    pub note: Option<String>,
}

impl DecisionRow {
    /// Its kind, what is expected of it and what is predicted, if any of it can be measured.
    pub(crate) fn judged(&self) -> Option<(&'static str, Expected, Predicted)> {
        Some((self.step.as_ref()?.kind(), self.expected?, self.predicted?))
    }

    /// How it stands, in words.
    #[must_use]
    pub fn standing(&self) -> String {
        match (&self.outcome, self.by) {
            (Some(outcome), _) => match &self.note {
                Some(note) if !note.is_empty() => format!("{outcome}; {note}"),
                _ => outcome.to_string(),
            },
            (None, By::Suggestion) => "suggested".to_owned(),
            (None, By::Limit) => "waiting".to_owned(),
            (None, By::Holdback) => "held back".to_owned(),
            (None, _) => "under way".to_owned(),
        }
    }
}
