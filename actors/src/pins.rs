//! What people want kept: outputs that do not give way as long as they are pinned.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use foreshard_policy::ids::ExpressionId;

/// Everything that is pinned, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// Tables of which every output and every state is pinned.
    pub tables: BTreeSet<Arc<str>>,
    /// Expressions whose outputs are pinned.
    pub expressions: BTreeSet<ExpressionId>,
}

/// The pins of one process. Reading them never waits.
#[derive(Default)]
pub struct Pins(ArcSwap<Pinned>);

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.load().fmt(f)
    }
}

impl Pins {
    /// Whether everything of a table is pinned.
    #[must_use]
    pub fn has_table(&self, table: &str) -> bool {
        self.0.load().tables.contains(table)
    }

    /// Whether the outputs of an expression over a table are pinned.
    #[must_use]
    pub fn has_output(&self, table: &str, expression: ExpressionId) -> bool {
        let pinned = self.0.load();
        pinned.expressions.contains(&expression) || pinned.tables.contains(table)
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Arc<Pinned> {
        self.0.load_full()
    }

    /// Changes them.
    pub fn change(&self, change: impl Fn(&mut Pinned)) {
        self.0.rcu(|pinned| {
            let mut pinned = Pinned::clone(pinned);
            change(&mut pinned);
            pinned
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_pinned_by_its_expression_or_by_its_table() {
        let pins = Pins::default();
        pins.change(|pinned| pinned.expressions.extend([ExpressionId(1)]));
        pins.change(|pinned| pinned.tables.extend(["t".into()]));
        assert!(pins.has_output("u", ExpressionId(1)) && !pins.has_output("u", ExpressionId(2)));
        assert!(pins.has_output("t", ExpressionId(2)));
        assert!(pins.has_table("t") && !pins.has_table("u"));
        pins.change(|pinned| *pinned = Pinned::default());
        assert!(!pins.has_output("t", ExpressionId(1)));
    }
}
