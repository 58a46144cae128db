//! Random SQL over the tables of [`crate::exact::data`], the same text for the same seed.
//!
//! Answers are a function of the rows: no LIMIT without a total order, no aggregate that depends on
//! the order of its input, no approximate function. Floats are multiples of 1/8, so that their sums
//! are exact; what functions return is not, so nothing is cut off by such a sum.

mod expression;
mod predicate;
mod select;
mod source;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::exact::functions::Function;

/// What kind of value an expression has, as far as the grammar cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number.
    Int,
    /// A float.
    Float,
    /// A text.
    Text,
    /// A date.
    Date,
    /// A timestamp.
    Time,
    /// A truth value.
    Bool,
    /// A decimal number.
    Decimal,
}

/// One random statement.
#[derive(Clone, Debug)]
pub struct Generated {
    /// What it was made from.
    pub seed: u64,
    /// The statement.
    pub sql: String,
    /// The rows have one possible order.
    pub ordered: bool,
    /// Parts of the language that occur in it.
    pub features: BTreeSet<&'static str>,
}

/// Writes the statement of `seed`, with calls of `functions`.
pub fn query(seed: u64, functions: &[Function]) -> Generated {
    let mut writer = Writer {
        rng: StdRng::seed_from_u64(seed),
        functions,
        names: 0,
        subqueries_left: 2,
        in_where: false,
        features: BTreeSet::new(),
    };
    let (sql, ordered) = writer.statement();
    Generated { seed, sql, ordered, features: writer.features }
}

/// A column that an expression may name.
#[derive(Clone, Debug)]
struct Column {
    sql: String,
    kind: Kind,
}

/// What an expression may name, and what is known of the rows it is evaluated on.
#[derive(Clone, Debug, Default)]
struct Scope {
    columns: Vec<Column>,
    /// Columns that together name a row; empty if there are none.
    unique: Vec<String>,
    /// About how many rows there are.
    rows: usize,
    /// A column without the value that `unlucky` fails on.
    lucky: Option<String>,
}

impl Scope {
    fn of(&self, kind: Kind) -> Vec<&Column> {
        self.columns.iter().filter(|column| column.kind == kind).collect()
    }

    fn column_named(&self, ending: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.sql.ends_with(ending))
    }
}

struct Writer<'a> {
    rng: StdRng,
    functions: &'a [Function],
    /// Aliases given so far.
    names: u32,
    /// Subqueries that may still be written.
    subqueries_left: u32,
    /// Where DataFusion can plan IN and EXISTS with a subquery: in WHERE, outside of CASE.
    in_where: bool,
    features: BTreeSet<&'static str>,
}

impl Writer<'_> {
    /// True in `percent` of cases.
    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    fn below(&mut self, bound: usize) -> usize {
        self.rng.random_range(0..bound)
    }

    fn pick<'b, T: ?Sized>(&mut self, from: &[&'b T]) -> &'b T {
        from[self.below(from.len())]
    }

    fn kind(&mut self) -> Kind {
        let kinds = [
            Kind::Int,
            Kind::Int,
            Kind::Int,
            Kind::Float,
            Kind::Float,
            Kind::Text,
            Kind::Text,
            Kind::Text,
            Kind::Date,
            Kind::Time,
            Kind::Bool,
            Kind::Decimal,
        ];
        kinds[self.below(kinds.len())]
    }

    /// A kind of which the scope has a column.
    fn kind_in(&mut self, scope: &Scope) -> Kind {
        for _ in 0..4 {
            let kind = self.kind();
            if scope.columns.iter().any(|column| column.kind == kind) {
                return kind;
            }
        }
        scope.columns[self.below(scope.columns.len())].kind
    }

    fn alias(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}{}", self.names)
    }

    fn uses(&mut self, feature: &'static str) {
        self.features.insert(feature);
    }
}
