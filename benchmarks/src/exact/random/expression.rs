//! Expressions of a wanted kind over a scope.

use rand::Rng;

use super::{Kind, Scope, Writer};
use crate::exact::functions::{Argument, Function};

impl Writer<'_> {
    /// An expression of `kind`; `depth` bounds how deep it nests.
    pub(super) fn expression(&mut self, scope: &Scope, kind: Kind, depth: u32) -> String {
        let was_in_where = std::mem::take(&mut self.in_where);
        let expression = self.expression_inside(scope, kind, depth);
        self.in_where = was_in_where;
        expression
    }

    fn expression_inside(&mut self, scope: &Scope, kind: Kind, depth: u32) -> String {
        if depth == 0 {
            return self.leaf(scope, kind);
        }
        match self.below(100) {
            0..32 => self.leaf(scope, kind),
            32..56 => self.operation(scope, kind, depth - 1),
            56..80 => self.call(scope, kind, depth - 1),
            80..90 => self.case(scope, kind, depth - 1),
            90..96 => self.fallback(scope, kind, depth - 1),
            _ => self.scalar_subquery(scope, kind),
        }
    }

    /// A column, or now and then a literal.
    pub(super) fn leaf(&mut self, scope: &Scope, kind: Kind) -> String {
        let columns = scope.of(kind);
        if columns.is_empty() || self.chance(8) {
            return self.literal(kind);
        }
        self.pick(&columns).sql.clone()
    }

    pub(super) fn column(&mut self, scope: &Scope, kind: Kind) -> Option<String> {
        let columns = scope.of(kind);
        (!columns.is_empty()).then(|| self.pick(&columns).sql.clone())
    }

    pub(super) fn literal(&mut self, kind: Kind) -> String {
        match kind {
            Kind::Int => self.rng.random_range(-8..48).to_string(),
            Kind::Float => match self.below(12) {
                0 => "CAST('NaN' AS DOUBLE)".into(),
                1 => "-0.0".into(),
                2 => "0.0".into(),
                _ => format!("{:?}", f64::from(self.rng.random_range(-4_000..4_000)) / 8.0),
            },
            Kind::Text => {
                let text = self.pick(&[
                    "",
                    "a",
                    "smith",
                    "Smyth",
                    "naïve café",
                    "日本語",
                    "O''Hara",
                    "apple 7",
                    "x%_y",
                    "order 4711",
                    "robert",
                ]);
                format!("'{text}'")
            }
            Kind::Date => {
                format!("DATE '2024-{:02}-{:02}'", self.below(3) + 1, self.below(28) + 1)
            }
            Kind::Time => format!(
                "TIMESTAMP '2024-{:02}-{:02}T{:02}:30:00'",
                self.below(3) + 1,
                self.below(28) + 1,
                self.below(24)
            ),
            Kind::Bool => self.pick(&["true", "false"]).into(),
            Kind::Decimal => {
                let cents = self.rng.random_range(-50_000..500_000);
                format!("CAST('{}.{:02}' AS DECIMAL(12,2))", cents / 100, i32::abs(cents % 100))
            }
        }
    }

    fn operation(&mut self, scope: &Scope, kind: Kind, depth: u32) -> String {
        let choice = self.below(8);
        match kind {
            Kind::Int => self.int_operation(scope, choice, depth),
            Kind::Float => self.float_operation(scope, choice, depth),
            Kind::Text => self.text_operation(scope, choice, depth),
            Kind::Date => match choice {
                0..4 => {
                    let days = self.rng.random_range(-40..40);
                    let date = self.expression(scope, Kind::Date, depth);
                    format!("({date} + INTERVAL '{days} day')")
                }
                _ => format!("CAST({} AS DATE)", self.expression(scope, Kind::Time, depth)),
            },
            Kind::Time => {
                let unit = self.pick(&["hour", "day", "week", "month", "quarter", "year"]);
                let time = self.expression(scope, Kind::Time, depth);
                match choice {
                    0..4 => format!("date_trunc('{unit}', {time})"),
                    _ => format!("({time} - INTERVAL '{} hour')", self.below(50)),
                }
            }
            Kind::Bool => format!("({})", self.predicate(scope, depth)),
            Kind::Decimal => {
                let left = self.expression(scope, Kind::Decimal, 0);
                match choice {
                    0..3 => format!("({left} + {})", self.leaf(scope, Kind::Decimal)),
                    3..5 => format!("({left} - {})", self.leaf(scope, Kind::Decimal)),
                    5 => format!("abs({left})"),
                    6 => format!("({left} * {})", self.below(5)),
                    _ => {
                        format!("CAST({} AS DECIMAL(12,2))", self.leaf(scope, Kind::Int))
                    }
                }
            }
        }
    }

    fn int_operation(&mut self, scope: &Scope, choice: usize, depth: u32) -> String {
        match choice {
            0..3 => {
                let operator = self.pick(&["+", "-", "*"]);
                let left = self.expression(scope, Kind::Int, depth);
                let right = self.leaf(scope, Kind::Int);
                format!("({left} {operator} {right})")
            }
            3 => {
                let operator = self.pick(&["%", "/"]);
                let left = self.expression(scope, Kind::Int, depth);
                let right = self.leaf(scope, Kind::Int);
                format!("({left} {operator} nullif({right}, 0))")
            }
            4 => format!("length({})", self.expression(scope, Kind::Text, depth)),
            5 => format!("date_part('dow', {})", self.leaf(scope, Kind::Date)),
            6 => format!("abs({})", self.expression(scope, Kind::Int, depth)),
            _ => format!("strpos({}, 'a')", self.expression(scope, Kind::Text, depth)),
        }
    }

    fn float_operation(&mut self, scope: &Scope, choice: usize, depth: u32) -> String {
        match choice {
            0..3 => {
                let operator = self.pick(&["+", "-", "*"]);
                let left = self.expression(scope, Kind::Float, depth);
                let right = self.leaf(scope, Kind::Float);
                format!("({left} {operator} {right})")
            }
            3 => {
                let left = self.expression(scope, Kind::Float, depth);
                format!("({left} / nullif({}, 0))", self.leaf(scope, Kind::Int))
            }
            4 => format!("CAST({} AS DOUBLE)", self.expression(scope, Kind::Int, depth)),
            5 => format!("round({})", self.expression(scope, Kind::Float, depth)),
            6 => format!("nanvl({}, 1.5)", self.expression(scope, Kind::Float, depth)),
            _ => format!("sqrt(abs({}))", self.expression(scope, Kind::Float, depth)),
        }
    }

    fn text_operation(&mut self, scope: &Scope, choice: usize, depth: u32) -> String {
        let text = self.expression(scope, Kind::Text, depth);
        match choice {
            0 => format!("upper({text})"),
            1 => format!("lower({text})"),
            2 => format!("substr({text}, {}, {})", self.below(4) + 1, self.below(6) + 1),
            3 => format!("({text} || {})", self.leaf(scope, Kind::Text)),
            4 => format!("trim({text})"),
            5 => format!("replace({text}, 'a', '-')"),
            6 => format!("left({text}, {})", self.below(6)),
            _ => format!("CAST({} AS VARCHAR)", self.expression(scope, Kind::Int, depth)),
        }
    }

    /// A call of a registered function, or an operation if none has the wanted kind.
    fn call(&mut self, scope: &Scope, kind: Kind, depth: u32) -> String {
        let functions = self.functions;
        let fitting: Vec<&Function> =
            functions.iter().filter(|function| function.result == kind).collect();
        if fitting.is_empty() {
            return self.operation(scope, kind, depth);
        }
        let function = self.pick(&fitting);
        self.uses("function");
        self.uses(function.name);
        if function.name == "unlucky" {
            return self.unlucky(scope);
        }
        let arguments: Vec<String> = function
            .arguments
            .iter()
            .map(|argument| self.argument(scope, argument, depth))
            .collect();
        format!("{}({})", function.name, arguments.join(", "))
    }

    fn argument(&mut self, scope: &Scope, argument: &Argument, depth: u32) -> String {
        match argument {
            Argument::Of(kind) if self.chance(75) => self.leaf(scope, *kind),
            Argument::Of(kind) => self.expression(scope, *kind, depth.min(1)),
            Argument::Column(kind) => {
                self.column(scope, *kind).unwrap_or_else(|| self.literal(*kind))
            }
            Argument::Literal(texts) => self.pick(texts).into(),
            Argument::Degrees(ending) => match scope.column_named(ending) {
                Some(column) if self.chance(80) => column.sql.clone(),
                _ => match self.column(scope, Kind::Float) {
                    Some(column) => format!("(nanvl({column}, 1.0) / 16.0)"),
                    None => format!("{:?}", f64::from(self.rng.random_range(-300..300)) / 8.0),
                },
            },
        }
    }

    /// The function that fails on one value: mostly where that value cannot reach it.
    fn unlucky(&mut self, scope: &Scope) -> String {
        if let Some(column) = &scope.lucky {
            return format!("unlucky({column})");
        }
        let Some(column) = self.column(scope, Kind::Int) else { return "unlucky(7)".into() };
        self.uses("guarded call");
        match self.below(10) {
            0..5 => format!("CASE WHEN {column} = 13 THEN -1 ELSE unlucky({column}) END"),
            5..8 => format!("unlucky(nullif({column}, 13))"),
            8 => format!("coalesce(nullif({column}, {column}), unlucky({column} * 2))"),
            _ => format!("unlucky({column})"),
        }
    }

    fn case(&mut self, scope: &Scope, kind: Kind, depth: u32) -> String {
        self.uses("case");
        let mut sql = String::from("CASE");
        for _ in 0..=self.below(2) {
            let when = self.predicate(scope, depth.min(1));
            let then = self.expression(scope, kind, depth);
            sql.push_str(&format!(" WHEN {when} THEN {then}"));
        }
        if self.chance(70) {
            sql.push_str(&format!(" ELSE {}", self.expression(scope, kind, depth)));
        }
        sql + " END"
    }

    fn fallback(&mut self, scope: &Scope, kind: Kind, depth: u32) -> String {
        let first = self.expression(scope, kind, depth);
        match self.below(3) {
            0 => format!("nullif({first}, {})", self.leaf(scope, kind)),
            _ => format!("coalesce({first}, {})", self.expression(scope, kind, depth)),
        }
    }

    /// One value from another table, correlated with this row or not.
    fn scalar_subquery(&mut self, scope: &Scope, kind: Kind) -> String {
        if self.subqueries_left == 0 || !matches!(kind, Kind::Int | Kind::Float | Kind::Text) {
            return self.leaf(scope, kind);
        }
        self.subqueries_left -= 1;
        self.uses("scalar subquery");
        let name = self.alias("q");
        let inner = self.table("note", &name);
        let held_back = std::mem::take(&mut self.subqueries_left);
        let aggregate = match kind {
            Kind::Float => format!("avg({})", self.expression(&inner, Kind::Int, 1)),
            kind => {
                let function = self.pick(&["min", "max"]);
                format!("{function}({})", self.expression(&inner, kind, 1))
            }
        };
        let own = scope.of(Kind::Int);
        let condition = if own.is_empty() || self.chance(40) {
            self.simple_condition(&inner)
        } else {
            self.uses("correlated subquery");
            let key = self.pick(&["fact_id", "w"]);
            format!("{name}.{key} = {}", self.pick(&own).sql)
        };
        self.subqueries_left = held_back;
        format!("(SELECT {aggregate} FROM note {name} WHERE {condition})")
    }
}
