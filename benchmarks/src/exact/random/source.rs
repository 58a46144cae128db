//! What stands in FROM: tables, joins, derived tables, short lists of values.

use super::{Column, Kind, Scope, Writer};

/// Joins of more row pairs than this are not written.
const PAIRS_MAX: usize = 40_000;

const FACT: &[(&str, Kind)] = &[
    ("id", Kind::Int),
    ("k", Kind::Int),
    ("n", Kind::Int),
    ("f", Kind::Float),
    ("t", Kind::Text),
    ("d", Kind::Date),
    ("ts", Kind::Time),
    ("b", Kind::Bool),
    ("m", Kind::Decimal),
];
const DIM: &[(&str, Kind)] = &[
    ("k", Kind::Int),
    ("name", Kind::Text),
    ("lat", Kind::Float),
    ("lon", Kind::Float),
    ("flag", Kind::Bool),
];
const NOTE: &[(&str, Kind)] = &[
    ("id", Kind::Int),
    ("fact_id", Kind::Int),
    ("w", Kind::Int),
    ("body", Kind::Text),
    ("score", Kind::Float),
];
const VOID: &[(&str, Kind)] = &[("id", Kind::Int), ("t", Kind::Text), ("f", Kind::Float)];

impl Writer<'_> {
    /// The scope of `table` under the name `alias`.
    pub(super) fn table(&mut self, table: &str, alias: &str) -> Scope {
        let (columns, unique, rows) = match table {
            "fact" => (FACT, "id", 2_000),
            "dim" => (DIM, "k", 48),
            "note" => (NOTE, "id", 600),
            _ => (VOID, "id", 0),
        };
        Scope {
            columns: columns
                .iter()
                .map(|(name, kind)| Column { sql: format!("{alias}.{name}"), kind: *kind })
                .collect(),
            unique: vec![format!("{alias}.{unique}")],
            rows,
            lucky: None,
        }
    }

    /// What stands after FROM, and what it makes visible.
    pub(super) fn source(&mut self, depth: u32) -> (String, Scope) {
        match self.below(100) {
            0..48 => self.relation(depth),
            48..94 => {
                let left = self.relation(depth);
                let joined = self.join(left, depth);
                if self.chance(22) { self.join(joined, depth) } else { joined }
            }
            _ => {
                let (left, mut scope) = self.relation(depth);
                self.uses("cross join");
                let name = self.alias("v");
                scope.columns.push(Column { sql: format!("{name}.x"), kind: Kind::Int });
                scope.columns.push(Column { sql: format!("{name}.y"), kind: Kind::Text });
                scope.unique.clear();
                scope.rows *= 3;
                let sql = format!(
                    "{left} CROSS JOIN (VALUES (1, 'a'), (NULL, 'smith'), (13, NULL)) {name}(x, y)"
                );
                (sql, scope)
            }
        }
    }

    /// One table or derived table.
    fn relation(&mut self, depth: u32) -> (String, Scope) {
        match self.below(100) {
            0..18 if depth > 0 => self.derived(depth - 1),
            18..62 => self.named("fact"),
            62..76 => self.named("dim"),
            76..96 => self.named("note"),
            96..99 => {
                self.uses("empty table");
                self.named("void")
            }
            _ => self.named("fact"),
        }
    }

    fn named(&mut self, table: &str) -> (String, Scope) {
        let alias = self.alias(&table[..1]);
        let scope = self.table(table, &alias);
        (format!("{table} {alias}"), scope)
    }

    fn derived(&mut self, depth: u32) -> (String, Scope) {
        self.uses("derived table");
        let alias = self.alias("s");
        let select = self.select(depth, None);
        let limit = if self.chance(15) {
            self.uses("limit in a derived table");
            format!(" {} LIMIT {}", self.total_order(select.kinds.len()), self.below(200) + 1)
        } else {
            String::new()
        };
        let scope = Scope {
            columns: output_columns(&alias, &select.kinds),
            unique: Vec::new(),
            rows: select.rows,
            lucky: None,
        };
        (format!("({}{limit}) {alias}", select.sql), scope)
    }

    fn join(&mut self, left: (String, Scope), depth: u32) -> (String, Scope) {
        let (right_sql, right) = self.relation(depth.saturating_sub(1));
        let Some((on, pairs)) = self.join_condition(&left.1, &right) else { return left };
        if pairs > PAIRS_MAX {
            return left;
        }
        let (kind, feature) = *self.pick(&[
            &("JOIN", "inner join"),
            &("JOIN", "inner join"),
            &("LEFT JOIN", "left join"),
            &("RIGHT JOIN", "right join"),
            &("FULL JOIN", "full join"),
            &("LEFT SEMI JOIN", "semi join"),
            &("LEFT ANTI JOIN", "anti join"),
        ]);
        self.uses(feature);
        let sql = format!("{} {kind} {right_sql} ON {on}", left.0);
        let mut scope = left.1;
        if kind.ends_with("SEMI JOIN") || kind.ends_with("ANTI JOIN") {
            return (sql, scope);
        }
        scope.columns.extend(right.columns);
        if scope.unique.is_empty() || right.unique.is_empty() {
            scope.unique.clear();
        } else {
            scope.unique.extend(right.unique);
        }
        scope.rows = pairs.max(scope.rows).max(right.rows);
        (sql, scope)
    }

    /// An equality of two columns or of two calls, maybe with a condition beside it, and about how
    /// many pairs meet it.
    fn join_condition(&mut self, left: &Scope, right: &Scope) -> Option<(String, usize)> {
        let (equality, fan_out) = match self.below(100) {
            0..14 => {
                self.uses("function in join key");
                let (function, kind) = *self.pick(&[
                    &("soundex", Kind::Text),
                    &("blake3_hex", Kind::Text),
                    &("language", Kind::Text),
                    &("counted", Kind::Int),
                ]);
                let function = if self.functions.iter().any(|known| known.name == function) {
                    function
                } else {
                    "upper"
                };
                let kind = if function == "upper" { Kind::Text } else { kind };
                let (mine, other) = (self.column(left, kind)?, self.column(right, kind)?);
                let groups = if function == "language" { 4 } else { 20 };
                (format!("{function}({mine}) = {function}({other})"), groups)
            }
            14..20 => {
                let (mine, other) =
                    (self.column(left, Kind::Text)?, self.column(right, Kind::Text)?);
                (format!("{mine} = {other}"), 25)
            }
            _ => {
                let (mine, other) = (self.column(left, Kind::Int)?, self.column(right, Kind::Int)?);
                let distinct = if mine.ends_with("id") || other.ends_with("id") { 600 } else { 45 };
                (format!("{mine} = {other}"), distinct)
            }
        };
        let pairs = left.rows * right.rows / fan_out;
        if self.chance(30) {
            let mut both = left.clone();
            both.columns.extend(right.columns.iter().cloned());
            let beside = self.simple_condition(&both);
            return Some((format!("{equality} AND {beside}"), pairs));
        }
        Some((equality, pairs))
    }

    /// A condition without subqueries, for ON.
    pub(super) fn simple_condition(&mut self, scope: &Scope) -> String {
        let held_back = std::mem::take(&mut self.subqueries_left);
        let condition = self.predicate(scope, 1);
        self.subqueries_left = held_back;
        condition
    }
}

/// Columns `c0`, `c1` .. of a derived table.
pub(super) fn output_columns(alias: &str, kinds: &[Kind]) -> Vec<Column> {
    kinds
        .iter()
        .enumerate()
        .map(|(index, kind)| Column { sql: format!("{alias}.c{index}"), kind: *kind })
        .collect()
}
