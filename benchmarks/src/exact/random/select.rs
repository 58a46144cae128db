//! SELECT and what is built of it: aggregates, windows, set operations, WITH, ORDER BY and LIMIT.

use super::source::output_columns;
use super::{Kind, Scope, Writer};

/// A SELECT whose columns are named `c0`, `c1` and so on.
pub(super) struct Select {
    pub(super) sql: String,
    pub(super) kinds: Vec<Kind>,
    /// About how many rows it has.
    pub(super) rows: usize,
}

impl Writer<'_> {
    /// A whole statement, and whether its rows have one possible order.
    pub(super) fn statement(&mut self) -> (String, bool) {
        let (with, select) = match self.below(100) {
            0..14 => self.with(),
            14..26 => (String::new(), self.set_operation()),
            _ => (String::new(), self.select(2, None)),
        };
        if !self.chance(40) {
            return (format!("{with}{}", select.sql), false);
        }
        let mut sql = format!("{with}{} {}", select.sql, self.total_order(select.kinds.len()));
        self.uses("order by");
        if self.chance(60) {
            self.uses("limit");
            sql.push_str(&format!(" LIMIT {}", [1, 3, 10, 57, 500][self.below(5)]));
            if self.chance(25) {
                self.uses("offset");
                sql.push_str(&format!(" OFFSET {}", self.below(30)));
            }
        }
        (sql, true)
    }

    /// ORDER BY all `columns`: equal rows cannot be told apart, so the order is total.
    pub(super) fn total_order(&mut self, columns: usize) -> String {
        let first = self.below(columns);
        let keys: Vec<String> = (0..columns)
            .map(|index| {
                let direction = self.pick(&["", " DESC", " ASC NULLS FIRST", " DESC NULLS LAST"]);
                format!("{}{direction}", (first + index) % columns + 1)
            })
            .collect();
        format!("ORDER BY {}", keys.join(", "))
    }

    fn with(&mut self) -> (String, Select) {
        self.uses("with");
        let inner = self.select(1, None);
        let columns = output_columns("cte", &inner.kinds);
        let mut scope = Scope { columns, unique: Vec::new(), rows: inner.rows, ..Scope::default() };
        let mut from = String::from("cte");
        if self.chance(40) && inner.rows < 300 {
            self.uses("with used twice");
            from.push_str(" JOIN cte cte2 ON cte.c0 = cte2.c0");
            scope.columns.extend(output_columns("cte2", &inner.kinds));
            scope.rows *= 3;
        }
        let outer = if self.chance(40) {
            self.aggregate(&from, scope, None)
        } else {
            self.projection(&from, scope, None)
        };
        (format!("WITH cte AS ({}) ", inner.sql), outer)
    }

    fn set_operation(&mut self) -> Select {
        let kinds: Vec<Kind> = (0..=self.below(3)).map(|_| self.kind()).collect();
        let (left, right) = (self.select(1, Some(&kinds)), self.select(1, Some(&kinds)));
        let (operator, feature) = *self.pick(&[
            &("UNION ALL", "union all"),
            &("UNION", "union"),
            &("INTERSECT", "intersect"),
            &("EXCEPT", "except"),
        ]);
        self.uses(feature);
        let sql = format!("SELECT * FROM ({}) {operator} SELECT * FROM ({})", left.sql, right.sql);
        Select { sql, kinds, rows: left.rows + right.rows }
    }

    /// A SELECT, of the wanted kinds if there are any.
    pub(super) fn select(&mut self, depth: u32, wanted: Option<&[Kind]>) -> Select {
        let (from, scope) = self.source(depth.saturating_sub(1));
        match self.below(100) {
            0..36 => self.projection(&from, scope, wanted),
            36..70 => self.aggregate(&from, scope, wanted),
            70..82 => self.whole_aggregate(&from, scope, wanted),
            82..90 => self.distinct(&from, scope, wanted),
            _ => self.windows(&from, scope, wanted),
        }
    }

    fn wanted_or_random(&mut self, wanted: Option<&[Kind]>, count_max: usize) -> Vec<Kind> {
        match wanted {
            Some(kinds) => kinds.to_vec(),
            None => (0..=self.below(count_max)).map(|_| self.kind()).collect(),
        }
    }

    fn where_clause(&mut self, scope: Scope, percent: u32) -> (String, Scope) {
        if !self.chance(percent) {
            return (String::new(), scope);
        }
        self.uses("where");
        let (condition, scope) = self.filter(&scope);
        (format!(" WHERE {condition}"), scope)
    }

    fn projection(&mut self, from: &str, scope: Scope, wanted: Option<&[Kind]>) -> Select {
        let (filter, scope) = self.where_clause(scope, 70);
        let kinds = self.wanted_or_random(wanted, 4);
        let items: Vec<String> =
            kinds.iter().map(|kind| self.expression(&scope, *kind, 2)).collect();
        let sql = format!("SELECT {} FROM {from}{filter}", named(&items));
        Select { sql, kinds, rows: scope.rows }
    }

    fn distinct(&mut self, from: &str, scope: Scope, wanted: Option<&[Kind]>) -> Select {
        self.uses("distinct");
        let mut select = self.projection(from, scope, wanted);
        select.sql = select.sql.replacen("SELECT", "SELECT DISTINCT", 1);
        select
    }

    fn whole_aggregate(&mut self, from: &str, scope: Scope, wanted: Option<&[Kind]>) -> Select {
        self.uses("aggregate");
        let (filter, scope) = self.where_clause(scope, 70);
        let kinds = self.wanted_or_random(wanted, 4);
        let items: Vec<String> =
            kinds.iter().map(|kind| self.aggregate_call(&scope, *kind)).collect();
        Select { sql: format!("SELECT {} FROM {from}{filter}", named(&items)), kinds, rows: 1 }
    }

    fn aggregate(&mut self, from: &str, scope: Scope, wanted: Option<&[Kind]>) -> Select {
        self.uses("group by");
        let (filter, scope) = self.where_clause(scope, 60);
        let kinds = self.wanted_or_random(wanted, 4);
        let key_count = (self.below(2) + 1).min(kinds.len());
        let sets = self.below(10);
        let keys: Vec<String> = kinds[..key_count]
            .iter()
            .map(|kind| match self.column(&scope, *kind) {
                // DataFusion takes a key that it can fold for a constant, although a grouping set
                // makes NULL of it, and then orders rows wrongly.
                Some(column) if sets < 3 => column,
                _ => self.group_key(&scope, *kind),
            })
            .collect();
        let mut items = keys.clone();
        for kind in &kinds[key_count..] {
            items.push(self.aggregate_call(&scope, *kind));
        }
        let has_twins = keys.iter().enumerate().any(|(at, key)| keys[..at].contains(key));
        let group = match if has_twins { 9 } else { sets } {
            0 => {
                self.uses("rollup");
                format!("ROLLUP ({})", keys.join(", "))
            }
            1 => {
                self.uses("grouping sets");
                format!("GROUPING SETS (({}), ({}), ())", keys.join(", "), keys[0])
            }
            2 => {
                self.uses("cube");
                format!("CUBE ({})", keys.join(", "))
            }
            _ => keys.join(", "),
        };
        let mut sql = format!("SELECT {} FROM {from}{filter} GROUP BY {group}", named(&items));
        if self.chance(25) {
            self.uses("having");
            let call = self.aggregate_call(&scope, Kind::Int);
            sql.push_str(&format!(" HAVING {call} > {}", self.literal(Kind::Int)));
        }
        Select { sql, kinds, rows: scope.rows.min(100) }
    }

    /// Something to group by that is a column or computed from one.
    fn group_key(&mut self, scope: &Scope, kind: Kind) -> String {
        let held_back = std::mem::take(&mut self.subqueries_left);
        let depth = if self.chance(45) { 0 } else { 2 };
        let key = self.expression(scope, kind, depth);
        self.subqueries_left = held_back;
        // A literal would be read as the position of a column.
        if scope.columns.iter().any(|known| key.contains(&known.sql)) {
            return key;
        }
        match self.column(scope, kind) {
            Some(column) => column,
            None => {
                let flag = self.leaf_column(scope, Kind::Int);
                format!("CASE WHEN {flag} IS NULL THEN {} END", self.literal(kind))
            }
        }
    }

    /// An aggregate whose value is of `kind`.
    pub(super) fn aggregate_call(&mut self, scope: &Scope, kind: Kind) -> String {
        let held_back = std::mem::take(&mut self.subqueries_left);
        let call = self.plain_aggregate(scope, kind);
        let call = if self.chance(18) {
            self.uses("filter clause");
            format!("{call} FILTER (WHERE {})", self.predicate(scope, 1))
        } else {
            call
        };
        self.subqueries_left = held_back;
        call
    }

    fn plain_aggregate(&mut self, scope: &Scope, kind: Kind) -> String {
        let choice = self.below(8);
        match kind {
            Kind::Int => match choice {
                0 | 1 => "count(*)".into(),
                2 => {
                    let kind = self.kind();
                    format!("count({})", self.expression(scope, kind, 2))
                }
                3 | 4 => {
                    self.uses("count distinct");
                    let kind = self.kind();
                    format!("count(DISTINCT {})", self.expression(scope, kind, 1))
                }
                5 | 6 => format!("sum({})", self.expression(scope, Kind::Int, 2)),
                _ => format!("max({})", self.expression(scope, Kind::Int, 2)),
            },
            Kind::Float => {
                let value = self.expression(scope, Kind::Float, 2);
                match choice {
                    0..2 => format!("sum({value})"),
                    2..4 => format!("avg({value})"),
                    4 => format!("avg({})", self.expression(scope, Kind::Int, 1)),
                    5 => {
                        self.uses("stddev");
                        format!("stddev({value})")
                    }
                    6 => format!("max(nanvl({value}, 0.5))"),
                    _ => format!("min(nanvl({value}, 0.5))"),
                }
            }
            Kind::Bool => {
                let condition = self.predicate(scope, 1);
                let function = self.pick(&["bool_and", "bool_or"]);
                format!("{function}({condition})")
            }
            Kind::Decimal => {
                let value = self.expression(scope, Kind::Decimal, 1);
                let function = self.pick(&["sum", "min", "max", "avg"]);
                format!("{function}({value})")
            }
            Kind::Text if choice == 0 && !scope.unique.is_empty() => {
                self.uses("ordered aggregate");
                let value = self.expression(scope, Kind::Text, 1);
                format!("first_value({value} ORDER BY {})", scope.unique.join(", "))
            }
            Kind::Text | Kind::Date | Kind::Time => {
                let value = self.expression(scope, kind, 2);
                let function = self.pick(&["min", "max"]);
                format!("{function}({value})")
            }
        }
    }

    fn windows(&mut self, from: &str, scope: Scope, wanted: Option<&[Kind]>) -> Select {
        self.uses("window");
        let (filter, scope) = self.where_clause(scope, 40);
        let kinds = self.wanted_or_random(wanted, 3);
        let items: Vec<String> = kinds
            .iter()
            .map(|kind| match self.window_call(&scope, *kind) {
                Some(call) => call,
                None => self.expression(&scope, *kind, 1),
            })
            .collect();
        Select {
            sql: format!("SELECT {} FROM {from}{filter}", named(&items)),
            kinds,
            rows: scope.rows,
        }
    }

    fn window_call(&mut self, scope: &Scope, kind: Kind) -> Option<String> {
        let held_back = std::mem::take(&mut self.subqueries_left);
        let partition = if self.chance(60) {
            let kind = self.kind();
            format!("PARTITION BY {} ", self.expression(scope, kind, 1))
        } else {
            String::new()
        };
        let some_kind = self.kind();
        let peers = self.leaf_column(scope, some_kind);
        let total = format!("ORDER BY {}", scope.unique.join(", "));
        let is_total = !scope.unique.is_empty();
        let value = self.expression(scope, kind, 1);
        self.subqueries_left = held_back;
        let frame = self.pick(&["", " ROWS BETWEEN 3 PRECEDING AND CURRENT ROW"]);
        Some(match (kind, self.below(4)) {
            (Kind::Int, 0) if is_total => {
                format!("CAST(row_number() OVER ({partition}{total}) AS BIGINT)")
            }
            (Kind::Int, 1) => {
                format!("CAST(rank() OVER ({partition}ORDER BY {peers} DESC) AS BIGINT)")
            }
            (Kind::Int, 2) => {
                format!("CAST(dense_rank() OVER ({partition}ORDER BY {peers}) AS BIGINT)")
            }
            (Kind::Int | Kind::Float | Kind::Decimal, 3) if is_total => {
                format!("sum({value}) OVER ({partition}{total}{frame})")
            }
            (Kind::Int | Kind::Decimal, _) => format!("sum({value}) OVER ({partition})"),
            (_, 0 | 1) if is_total => format!("lag({value}) OVER ({partition}{total})"),
            (_, 2) if is_total => format!("first_value({value}) OVER ({partition}{total})"),
            (Kind::Text | Kind::Date, _) => format!("max({value}) OVER ({partition})"),
            _ => return None,
        })
    }

    fn leaf_column(&mut self, scope: &Scope, kind: Kind) -> String {
        match self.column(scope, kind) {
            Some(column) => column,
            None => scope.columns[self.below(scope.columns.len())].sql.clone(),
        }
    }
}

/// `items` as `c0`, `c1` and so on.
fn named(items: &[String]) -> String {
    let items: Vec<String> =
        items.iter().enumerate().map(|(index, item)| format!("{item} AS c{index}")).collect();
    items.join(", ")
}
