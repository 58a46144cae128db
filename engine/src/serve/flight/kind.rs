//! Tells statements that give rows from statements that change something.
//!
//! Clients ask for the description of a statement first and fetch its rows afterwards, if at all: a
//! change must be made when it is asked for, not when somebody looks at its empty answer.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

/// First words of statements that give rows.
const ASKING: [&str; 9] =
    ["SELECT", "WITH", "VALUES", "TABLE", "FROM", "EXPLAIN", "DESCRIBE", "DESC", "SHOW"];

/// Whether `sql` changes something. A text that cannot be read changes nothing.
pub(super) fn changes(sql: &str) -> bool {
    let dialect = GenericDialect {};
    let Ok(tokens) = Tokenizer::new(&dialect, sql).tokenize() else { return false };
    let first = tokens.into_iter().find(|token| !matches!(token, Token::Whitespace(_)));
    match first {
        Some(Token::Word(word)) => !ASKING.contains(&word.value.to_uppercase().as_str()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::changes;

    #[test]
    fn the_first_word_tells_whether_a_statement_changes_something() {
        for sql in
            ["select 1", " -- insert\n WITH a AS (SELECT 1) SELECT * FROM a", "(SELECT 1)", "'"]
        {
            assert!(!changes(sql), "{sql}");
        }
        for sql in ["INSERT INTO t VALUES (1)", "/* select */ create table t (a int)", "SET a = 1"]
        {
            assert!(changes(sql), "{sql}");
        }
    }
}
