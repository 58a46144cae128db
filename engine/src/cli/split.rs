//! Cuts a text into statements at the semicolons that are neither in quotes nor in comments.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};

use crate::error::{EngineError, Position};

/// One statement of a text, without its semicolon.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Statement<'a> {
    /// The statement.
    pub(super) sql: &'a str,
    /// Where its first word stands in the text.
    pub(super) start: Position,
    /// Whether a semicolon follows.
    pub(super) ended: bool,
}

/// The statements of `text`; empty ones are left out.
///
/// # Errors
/// [`EngineError::Syntax`] if a quote or comment is not closed.
pub(super) fn statements(text: &str) -> Result<Vec<Statement<'_>>, EngineError> {
    let dialect = GenericDialect {};
    let tokens = Tokenizer::new(&dialect, text).tokenize_with_location();
    let tokens = tokens.map_err(|error| EngineError::Syntax {
        message: error.message.to_lowercase(),
        position: Some(position(error.location)),
    })?;
    let offsets = Offsets::new(text);
    let mut statements = Vec::new();
    let mut start: Option<(usize, Position)> = None;
    for token in tokens {
        match token.token {
            Token::Whitespace(_) => {}
            Token::SemiColon => {
                if let Some((from, start)) = start.take() {
                    let sql = text[from..offsets.of(token.span.start)].trim_end();
                    statements.push(Statement { sql, start, ended: true });
                }
            }
            _ if start.is_none() => {
                let at = token.span.start;
                start = Some((offsets.of(at), position(at)));
            }
            _ => {}
        }
    }
    if let Some((from, start)) = start {
        statements.push(Statement { sql: text[from..].trim_end(), start, ended: false });
    }
    Ok(statements)
}

fn position(location: Location) -> Position {
    Position { line: location.line, column: location.column }
}

/// Byte offsets of lines and columns.
struct Offsets<'a> {
    text: &'a str,
    lines: Vec<usize>,
}

impl<'a> Offsets<'a> {
    fn new(text: &'a str) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { text, lines: std::iter::once(0).chain(ends).collect() }
    }

    /// The byte at `location`, or the end of the text.
    fn of(&self, location: Location) -> usize {
        let line = usize::try_from(location.line).unwrap_or(usize::MAX).saturating_sub(1);
        let column = usize::try_from(location.column).unwrap_or(usize::MAX).saturating_sub(1);
        let Some(start) = self.lines.get(line).copied() else { return self.text.len() };
        let within = self.text[start..].char_indices().nth(column);
        within.map_or(self.text.len(), |(at, _)| start + at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        statements(text).unwrap().into_iter().map(|statement| statement.sql).collect()
    }

    #[test]
    fn semicolons_in_quotes_and_comments_end_nothing() {
        let text = "SELECT 'a;b', \"c;d\" -- e;f\n ; /* ;\n; */ SELECT $$x;y$$;\n;; SELECT 'ä;'";
        assert_eq!(texts(text), ["SELECT 'a;b', \"c;d\" -- e;f", "SELECT $$x;y$$", "SELECT 'ä;'"]);
    }

    #[test]
    fn a_statement_knows_where_it_starts_and_whether_it_ended() {
        let found = statements("SELECT 1;\n  SELECT 2").unwrap();
        assert!(found[0].ended && !found[1].ended);
        assert_eq!(found[1].start, Position { line: 2, column: 3 });
        assert_eq!(texts(" -- nothing\n ; "), [""; 0]);
    }

    #[test]
    fn an_open_quote_is_an_error_with_its_place() {
        let error = statements("SELECT 1;\nSELECT 'open").unwrap_err();
        let EngineError::Syntax { position, .. } = error else { panic!("{error}") };
        assert_eq!(position, Some(Position { line: 2, column: 8 }));
    }
}
