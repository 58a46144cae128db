//! The card of a function: its name, version, volatility and cost, what it does, and an example.

use std::fmt;

use datafusion::logical_expr::Volatility;

/// How long one row takes, roughly: the guess of planners until calls have been measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CostClass {
    /// Below 1 us a row: never worth storing.
    Free,
    /// Below 10 us a row.
    Cheap,
    /// Below 100 us a row.
    Dear,
    /// 100 us a row and more: a model, or a search in a list.
    Costly,
}

impl CostClass {
    /// The class of a measured cost, in ns per row.
    #[must_use]
    pub fn of_ns_per_row(ns: u64) -> Self {
        match ns {
            0..1_000 => Self::Free,
            1_000..10_000 => Self::Cheap,
            10_000..100_000 => Self::Dear,
            _ => Self::Costly,
        }
    }

    /// A typical cost of the class, in ns per row: the middle of its decade.
    #[must_use]
    pub fn typical_ns_per_row(self) -> u64 {
        match self {
            Self::Free => 300,
            Self::Cheap => 3_000,
            Self::Dear => 30_000,
            Self::Costly => 300_000,
        }
    }
}

impl fmt::Display for CostClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Free => "free",
            Self::Cheap => "cheap",
            Self::Dear => "dear",
            Self::Costly => "costly",
        })
    }
}

/// What a function says about itself. It is shown to users and goes into the function's version.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Card {
    /// The name in SQL; the same as the name of the function it describes.
    pub name: String,
    /// Changes whenever the same arguments may give another answer: a number, or a content hash.
    pub version: String,
    /// Only immutable functions are stored or computed ahead.
    pub volatility: Volatility,
    /// The cost of a row, by class.
    pub cost: CostClass,
    /// What it answers, in one or two sentences, with its NULL rule.
    pub summary: String,
    /// One call in SQL.
    pub example: String,
}

impl Card {
    /// The card of an immutable function.
    #[must_use]
    pub fn immutable(
        name: impl Into<String>,
        version: impl Into<String>,
        cost: CostClass,
        summary: impl Into<String>,
        example: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            volatility: Volatility::Immutable,
            cost,
            summary: summary.into(),
            example: example.into(),
        }
    }

    /// The same card with another volatility.
    #[must_use]
    pub fn with_volatility(mut self, volatility: Volatility) -> Self {
        self.volatility = volatility;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_typical_cost_of_a_class_belongs_to_the_class() {
        for class in [CostClass::Free, CostClass::Cheap, CostClass::Dear, CostClass::Costly] {
            assert_eq!(CostClass::of_ns_per_row(class.typical_ns_per_row()), class);
        }
    }

    #[test]
    fn a_class_begins_at_its_bound() {
        let classes = [999, 1_000, 9_999, 10_000, 99_999, 100_000].map(CostClass::of_ns_per_row);
        let names = classes.map(|class| class.to_string());
        assert_eq!(names, ["free", "cheap", "cheap", "dear", "dear", "costly"]);
    }
}
