//! A layout as text, for table properties and for other processes.
//!
//! As long as no partition was split or merged it is written as the [`Partitioning`] that the table was
//! made with, which older versions read as well. Afterwards it is written in a way that they refuse: they
//! would deal rows out wrongly.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Key, Layout};
use crate::partitioning::{Partitioning, PartitioningError};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "strategy", deny_unknown_fields)]
enum Stored {
    Hash { columns: Vec<String>, parts: Vec<Part<u64>>, next: u32, made: Option<u32> },
    Range { column: String, parts: Vec<Part<String>>, next: u32, made: Option<u32> },
}

/// One partition.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part<T> {
    ordinal: u32,
    /// Where it begins; the first one has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<T>,
}

fn parts<T: Clone>(ordinals: &[u32], cuts: &[T]) -> Vec<Part<T>> {
    let starts = std::iter::once(None).chain(cuts.iter().cloned().map(Some));
    ordinals.iter().zip(starts).map(|(ordinal, from)| Part { ordinal: *ordinal, from }).collect()
}

/// What was written before this was noted has as many as it then had.
fn made_with(made: Option<u32>, ordinals: &[u32]) -> u32 {
    made.unwrap_or_else(|| u32::try_from(ordinals.len()).unwrap_or(u32::MAX))
}

fn wrong(what: &str) -> PartitioningError {
    PartitioningError::Stored { what: what.to_owned() }
}

fn apart<T>(parts: Vec<Part<T>>) -> Result<(Vec<u32>, Vec<T>), PartitioningError> {
    let ordinals = parts.iter().map(|part| part.ordinal).collect();
    let mut starts = parts.into_iter().map(|part| part.from);
    if !matches!(starts.next(), Some(None)) {
        return Err(wrong("the first partition must be there and have no beginning"));
    }
    let cuts: Option<Vec<T>> = starts.collect();
    Ok((ordinals, cuts.ok_or_else(|| wrong("a partition has no beginning"))?))
}

impl Layout {
    /// The layout as JSON.
    ///
    /// # Errors
    /// If it cannot be written, which would be a mistake here.
    pub fn to_text(&self) -> Result<String, PartitioningError> {
        let partitioning = self.partitioning();
        let text = if *self == Self::new(&partitioning) {
            serde_json::to_string(&partitioning)
        } else {
            let (next, made) = (self.next, Some(self.made));
            match &self.key {
                Key::Hash { columns, cuts } => serde_json::to_string(&Stored::Hash {
                    columns: columns.clone(),
                    parts: parts(&self.ordinals, cuts),
                    next,
                    made,
                }),
                Key::Range { column, bounds } => serde_json::to_string(&Stored::Range {
                    column: column.clone(),
                    parts: parts(&self.ordinals, bounds),
                    next,
                    made,
                }),
                Key::Files => return Err(PartitioningError::NoKey),
            }
        };
        text.map_err(|error| wrong(&error.to_string()))
    }

    /// Reads what [`to_text`](Self::to_text) wrote, or a [`Partitioning`].
    ///
    /// # Errors
    /// [`PartitioningError::Stored`] if it is neither, or contradicts itself.
    pub fn from_text(text: &str) -> Result<Self, PartitioningError> {
        if let Ok(partitioning) = serde_json::from_str::<Partitioning>(text) {
            return Ok(Self::new(&partitioning));
        }
        let stored: Stored =
            serde_json::from_str(text).map_err(|error| wrong(&error.to_string()))?;
        let layout = match stored {
            Stored::Hash { columns, parts, next, made } => {
                let (ordinals, cuts) = apart(parts)?;
                let ascend = cuts.first().is_none_or(|first| *first > 0)
                    && cuts.is_sorted_by(|one, other| one < other);
                if !ascend {
                    return Err(wrong("its hashes do not ascend"));
                }
                let made = made_with(made, &ordinals);
                Self { key: Key::Hash { columns, cuts }, ordinals, next, made }
            }
            Stored::Range { column, parts, next, made } => {
                let (ordinals, bounds) = apart(parts)?;
                let made = made_with(made, &ordinals);
                Self { key: Key::Range { column, bounds }, ordinals, next, made }
            }
        };
        let distinct: BTreeSet<u32> = layout.ordinals.iter().copied().collect();
        if distinct.len() != layout.ordinals.len() {
            return Err(wrong("a partition is there twice"));
        }
        if distinct.last().is_some_and(|last| *last >= layout.next) {
            return Err(wrong("the next ordinal is taken"));
        }
        layout.within_bounds()?;
        Ok(layout)
    }
}
