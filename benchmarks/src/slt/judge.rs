//! What a record asks for, and whether rows are the ones that it expects.

use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{Query, SetExpr, Statement as Sql};
use sqllogictest::{Normalizer, QueryExpect, Record, StatementExpect};

use super::values::Letter;

/// Stands in an expected result for anything.
const ANYTHING: &str = "<slt:ignore>";

/// What a record is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To prepare the next records: it must only succeed.
    SetUp,
    /// To compare rows.
    Rows,
    /// To see a statement fail.
    Error,
    /// To compare the text of a plan, which differs between engines: not run.
    Plan,
}

/// The SQL of a record and what it is there for; `None` if it has none.
pub(super) fn purpose(record: &Record<Letter>) -> Option<(&str, u32, Purpose)> {
    let (sql, loc, purpose) = match record {
        Record::Statement { sql, loc, expected, .. } => match expected {
            StatementExpect::Error(_) => (sql, loc, Purpose::Error),
            StatementExpect::Ok | StatementExpect::Count(_) => (sql, loc, Purpose::SetUp),
        },
        Record::Query { sql, loc, expected, .. } => match expected {
            QueryExpect::Error(_) => (sql, loc, Purpose::Error),
            QueryExpect::Results { .. } => (sql, loc, Purpose::Rows),
        },
        _ => return None,
    };
    let explains = matches!(parsed(sql), Some(Statement::Explain(_))) || starts_with_explain(sql);
    Some((sql, loc.line(), if explains { Purpose::Plan } else { purpose }))
}

fn starts_with_explain(sql: &str) -> bool {
    let mut lines = sql.lines().map(str::trim).filter(|line| !line.starts_with("--"));
    let first = lines.find(|line| !line.is_empty()).unwrap_or_default();
    first.get(..7).is_some_and(|word| word.eq_ignore_ascii_case("explain"))
}

/// How a statement may be put, and its rows be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Manner {
    /// Its rows have an order.
    pub(super) ordered: bool,
    /// Putting it twice changes nothing.
    pub(super) repeatable: bool,
}

/// A query without ORDER BY at its outermost promises no order; what is not a query changes things.
pub(super) fn manner(sql: &str) -> Manner {
    let Some(Statement::Statement(statement)) = parsed(sql) else {
        return Manner { ordered: true, repeatable: false };
    };
    let Sql::Query(query) = *statement else {
        return Manner { ordered: true, repeatable: false };
    };
    let ordered = query.order_by.is_some() || !query.pipe_operators.is_empty();
    Manner { ordered, repeatable: only_reads(&query) }
}

fn only_reads(query: &Query) -> bool {
    match query.body.as_ref() {
        SetExpr::Select(select) => select.into.is_none(),
        SetExpr::Query(query) => only_reads(query),
        SetExpr::SetOperation { .. } | SetExpr::Values(_) | SetExpr::Table(_) => true,
        _ => false,
    }
}

fn parsed(sql: &str) -> Option<Statement> {
    let mut statements = DFParserBuilder::new(sql).build().ok()?.parse_statements().ok()?;
    statements.pop_front().filter(|_| statements.is_empty())
}

/// What a statement makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Made {
    /// Name of the table or view, as written.
    pub(super) name: String,
    /// Whether its rows are in files.
    pub(super) external: bool,
}

/// The table or view that a statement makes.
pub(super) fn made(sql: &str) -> Option<Made> {
    let internal = |name: String| Some(Made { name, external: false });
    match parsed(sql)? {
        Statement::CreateExternalTable(create) => {
            Some(Made { name: create.name.to_string(), external: true })
        }
        Statement::Statement(statement) => match *statement {
            Sql::CreateTable(create) => internal(create.name.to_string()),
            Sql::CreateView(create) => internal(create.name.to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a statement has `name` as a word.
pub(super) fn mentions(sql: &str, name: &str) -> bool {
    let (sql, name) = (sql.to_lowercase(), name.to_lowercase());
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    sql.match_indices(&name).any(|(at, _)| {
        !sql[..at].ends_with(is_part) && !sql[at + name.len()..].starts_with(is_part)
    })
}

/// Blanks at the end of a line are not compared.
#[expect(clippy::ptr_arg, reason = "the runner's signature")]
pub(super) fn normal(line: &String) -> String {
    line.trim_end().to_owned()
}

/// Whether the rows are the expected ones in the expected order.
pub(super) fn in_order(normal: Normalizer, actual: &[Vec<String>], expected: &[String]) -> bool {
    let expected: Vec<String> = expected.iter().map(normal).collect();
    let actual = lines(actual);
    if expected.iter().any(|line| line.contains(ANYTHING)) {
        return matches(&actual.join("\n"), &expected.join("\n"));
    }
    actual == expected
}

/// Whether the rows are the expected ones in any order.
pub(super) fn in_any_order(
    normal: Normalizer,
    actual: &[Vec<String>],
    expected: &[String],
) -> bool {
    if expected.iter().any(|line| line.contains(ANYTHING)) {
        return in_order(normal, actual, expected);
    }
    let mut expected: Vec<String> = expected.iter().map(normal).collect();
    let mut actual = lines(actual);
    expected.sort_unstable();
    actual.sort_unstable();
    actual == expected
}

fn lines(rows: &[Vec<String>]) -> Vec<String> {
    rows.iter().map(|row| row.join(" ").trim_end().to_owned()).collect()
}

/// Whether the pieces between the [`ANYTHING`]s of `pattern` stand in `text`, in order, the first at its
/// start.
fn matches(text: &str, pattern: &str) -> bool {
    let mut rest = text;
    for (index, piece) in pattern.split(ANYTHING).enumerate() {
        match rest.find(piece) {
            Some(at) if index > 0 || at == 0 => rest = &rest[at + piece.len()..],
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(lines: &[&str]) -> Vec<Vec<String>> {
        lines.iter().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
    }

    #[test]
    fn only_the_order_that_a_query_asks_for_is_compared() {
        let expected = ["1 a".to_owned(), "2 b  ".to_owned()];
        assert!(in_order(normal, &rows(&["1 a", "2 b"]), &expected));
        assert!(!in_order(normal, &rows(&["2 b", "1 a"]), &expected));
        assert!(in_any_order(normal, &rows(&["2 b", "1 a"]), &expected));
        assert!(!in_any_order(normal, &rows(&["2 b", "2 b"]), &expected));
        assert!(!manner("SELECT * FROM (SELECT 1 AS a ORDER BY a)").ordered);
        assert!(manner("SELECT 1 AS a ORDER BY a").ordered);
        assert!(manner("SHOW TABLES").ordered);
    }

    #[test]
    fn what_changes_something_is_not_put_twice() {
        assert!(manner("WITH a AS (SELECT 1) SELECT * FROM a UNION ALL SELECT 2").repeatable);
        assert!(manner("VALUES (1)").repeatable);
        for sql in ["INSERT INTO t VALUES (1)", "SELECT 1 INTO t", "COPY t TO 'f'", "broken"] {
            assert!(!manner(sql).repeatable, "{sql}");
        }
    }

    #[test]
    fn what_a_statement_makes_and_mentions_is_known() {
        let external = made("CREATE EXTERNAL TABLE T STORED AS CSV LOCATION 'f'").unwrap();
        assert_eq!(external, Made { name: "T".to_owned(), external: true });
        assert!(!made("CREATE VIEW v AS SELECT 1").unwrap().external);
        assert!(made("SELECT 1").is_none());
        assert!(mentions("SELECT * FROM t, u", "T"));
        assert!(!mentions("SELECT * FROM t_1, at", "t"));
    }

    #[test]
    fn a_mark_stands_for_anything_but_the_start() {
        let expected = |line: &str| [line.to_owned()];
        assert!(in_order(normal, &rows(&["foo 17 baz"]), &expected("foo <slt:ignore> baz")));
        assert!(!in_order(normal, &rows(&["foo bar baz"]), &expected("bar <slt:ignore>")));
    }

    #[test]
    fn the_text_of_a_plan_is_not_compared() {
        let script = "query TT\nEXPLAIN SELECT 1\n----\na b\n\nquery I\nSELECT 1\n----\n1\n\n\
                      statement error\nSELECT\n\nstatement ok\nSELECT 1\n";
        let records = sqllogictest::parse::<Letter>(script).unwrap();
        let purposes: Vec<_> = records.iter().filter_map(purpose).map(|found| found.2).collect();
        assert_eq!(purposes, [Purpose::Plan, Purpose::Rows, Purpose::Error, Purpose::SetUp]);
    }
}
