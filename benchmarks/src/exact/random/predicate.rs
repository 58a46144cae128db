//! Conditions.

use rand::Rng;

use super::{Kind, Scope, Writer};

impl Writer<'_> {
    pub(super) fn predicate(&mut self, scope: &Scope, depth: u32) -> String {
        if depth == 0 {
            return self.comparison(scope, 0);
        }
        match self.below(100) {
            0..40 => self.comparison(scope, depth - 1),
            40..58 => {
                let (left, right) =
                    (self.predicate(scope, depth - 1), self.predicate(scope, depth - 1));
                format!("({left} AND {right})")
            }
            58..74 => {
                let (left, right) =
                    (self.predicate(scope, depth - 1), self.predicate(scope, depth - 1));
                format!("({left} OR {right})")
            }
            74..82 => format!("NOT ({})", self.predicate(scope, depth - 1)),
            82..87 => {
                let condition = self.predicate(scope, depth - 1);
                let suffix = self.pick(&["IS TRUE", "IS NOT TRUE", "IS FALSE", "IS UNKNOWN"]);
                format!("({condition}) {suffix}")
            }
            87..91 => {
                self.uses("case");
                let was_in_where = std::mem::take(&mut self.in_where);
                let (when, then) =
                    (self.predicate(scope, depth - 1), self.predicate(scope, depth - 1));
                let other = self.comparison(scope, 0);
                self.in_where = was_in_where;
                format!("CASE WHEN {when} THEN {then} ELSE {other} END")
            }
            _ => self.comparison(scope, depth),
        }
    }

    fn comparison(&mut self, scope: &Scope, depth: u32) -> String {
        let kind = self.kind_in(scope);
        match self.below(100) {
            0..42 => {
                let operator = self.pick(&["=", "<>", "<", "<=", ">", ">="]);
                let left = self.expression(scope, kind, depth);
                let right =
                    if self.chance(70) { self.literal(kind) } else { self.leaf(scope, kind) };
                format!("{left} {operator} {right}")
            }
            42..52 => {
                let value = self.expression(scope, kind, depth);
                let suffix = self.pick(&["IS NULL", "IS NOT NULL"]);
                format!("{value} {suffix}")
            }
            52..60 => {
                let kind = if kind == Kind::Bool { Kind::Int } else { kind };
                let value = self.expression(scope, kind, depth);
                let not = self.pick(&["", "", "NOT "]);
                let (low, high) = (self.literal(kind), self.literal(kind));
                format!("{value} {not}BETWEEN {low} AND {high}")
            }
            60..68 => self.in_list(scope, kind, depth),
            68..76 => self.like(scope, depth),
            76..80 => {
                let left = self.expression(scope, kind, depth);
                let not = self.pick(&["", "NOT "]);
                format!("({left} IS {not}DISTINCT FROM {})", self.leaf(scope, kind))
            }
            80..84 => self.column(scope, Kind::Bool).unwrap_or_else(|| "true".into()),
            _ => self.subquery_condition(scope),
        }
    }

    fn in_list(&mut self, scope: &Scope, kind: Kind, depth: u32) -> String {
        let value = self.expression(scope, kind, depth);
        let not = self.pick(&["", "", "NOT "]);
        let mut items: Vec<String> = (0..=self.below(5)).map(|_| self.literal(kind)).collect();
        if self.chance(15) {
            items.push("NULL".into());
        }
        format!("{value} {not}IN ({})", items.join(", "))
    }

    fn like(&mut self, scope: &Scope, depth: u32) -> String {
        let value = self.expression(scope, Kind::Text, depth);
        let operator = self.pick(&["LIKE", "LIKE", "NOT LIKE", "ILIKE", "~"]);
        let pattern = match operator {
            "~" => self.pick(&["^a", "[0-9]+", "é", "s.*h$", "^$"]),
            _ => self.pick(&["%a%", "S%", "%é%", "_____", "%", "", "order%", "%語%", "a\\_b"]),
        };
        format!("{value} {operator} '{pattern}'")
    }

    /// IN and EXISTS with a subquery: what plans as a semi or anti join.
    fn subquery_condition(&mut self, scope: &Scope) -> String {
        let own = scope.of(Kind::Int);
        if self.subqueries_left == 0 || own.is_empty() || !self.in_where {
            return format!("{} IS NOT NULL", self.leaf(scope, Kind::Int));
        }
        self.subqueries_left -= 1;
        let mine = self.pick(&own).sql.clone();
        let name = self.alias("q");
        let (table, key) = *self.pick(&[
            &("note", "fact_id"),
            &("note", "w"),
            &("dim", "k"),
            &("fact", "n"),
            &("void", "id"),
        ]);
        let inner = self.table(table, &name);
        let condition = self.simple_condition(&inner);
        match self.below(4) {
            0 => {
                self.uses("in subquery");
                format!("{mine} IN (SELECT {name}.{key} FROM {table} {name} WHERE {condition})")
            }
            1 => {
                self.uses("not in subquery");
                format!("{mine} NOT IN (SELECT {name}.{key} FROM {table} {name} WHERE {condition})")
            }
            choice => {
                let not = if choice == 2 { "" } else { "NOT " };
                self.uses(if choice == 2 { "exists" } else { "not exists" });
                format!(
                    "{not}EXISTS (SELECT 1 FROM {table} {name} \
                     WHERE {name}.{key} = {mine} AND {condition})"
                )
            }
        }
    }

    /// A predicate that is true of a good part of the rows, and the scope that it leaves.
    pub(super) fn filter(&mut self, scope: &Scope) -> (String, Scope) {
        let mut filtered = scope.clone();
        self.in_where = true;
        let mut condition = self.predicate(scope, 2);
        self.in_where = false;
        if self.chance(45) {
            let broad = self.broad(scope);
            condition = format!("({condition} OR {broad})");
        }
        if self.chance(30)
            && let Some(column) = self.column(scope, Kind::Int)
        {
            self.uses("guarded call");
            condition = format!("{column} <> 13 AND {condition}");
            if self.chance(12) {
                condition = format!("{condition} AND unlucky({column}) > -30");
            }
            filtered.lucky = Some(column);
        }
        (condition, filtered)
    }

    /// A condition that many rows meet.
    fn broad(&mut self, scope: &Scope) -> String {
        match self.column(scope, Kind::Int) {
            Some(column) => {
                let bound = self.rng.random_range(-5..30);
                let operator = self.pick(&["<", ">"]);
                format!("{column} {operator} {bound}")
            }
            None => "true".into(),
        }
    }
}
