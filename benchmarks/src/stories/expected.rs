//! What the loop is expected to do in a story: told in words, and counted in its decisions.

use foreshard_policy::decision::{DecisionRow, Outcome};

use crate::report::{Bound, Figure, Row};

/// The plan that a story expects of the loop.
#[derive(Debug)]
pub(super) struct Expected {
    story: &'static str,
    rows: Vec<Row>,
    missed: usize,
}

impl Expected {
    /// Nothing is expected yet.
    pub(super) fn of(story: &'static str) -> Self {
        Self { story, rows: Vec::new(), missed: 0 }
    }

    /// Expects `count` to keep a bound: what `words` say of so many steps, or of a share of something.
    #[must_use]
    pub(super) fn with(mut self, words: &str, count: f64, bound: Bound) -> Self {
        self.missed += usize::from(!bound.admits(count));
        let row = Row::default()
            .with("story", self.story)
            .with("arm", "expected")
            .with("found", format!("{words}: {bound}"))
            .with("value", count);
        self.rows.push(row);
        self
    }

    /// What was expected, and in `name` how much of it did not come.
    pub(super) fn told(self, name: &str) -> (Vec<Row>, Figure) {
        let missed = self.missed as f64;
        (self.rows, Figure::bounded(name, missed, "expectations", Bound::Exactly(0.0)))
    }
}

/// Decisions that were carried out, of those after number `after`.
pub(super) fn done(
    decisions: &[DecisionRow],
    after: Option<u64>,
) -> impl Iterator<Item = &DecisionRow> {
    let is_done = |row: &&DecisionRow| matches!(row.outcome, Some(Outcome::Done { .. }));
    decisions.iter().filter(move |row| Some(row.id) > after).filter(is_done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_come_as_expected_is_counted() {
        let expected = Expected::of("x").with("copies", 3.0, Bound::AtLeast(3.0)).with(
            "drops",
            1.0,
            Bound::Exactly(0.0),
        );
        let (rows, missed) = expected.told("x_plan");
        assert_eq!((rows.len(), missed.value, missed.holds), (2, 1.0, false));
        assert!(Expected::of("x").told("x_plan").1.holds);
    }
}
