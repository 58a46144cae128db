//! Refuses statements whose expressions are so long that planning them would exhaust the stack.
//!
//! A flat chain such as `1+1+1+..` becomes a tree as deep as it is long, and DataFusion plans it
//! recursively in more than quadratic time. The count is made on the tokens, before anything is parsed.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

/// Plans with more nodes and expressions than this are worked on with a large stack.
const NODES_ON_ORDINARY_STACK: usize = 150;

/// Whether some chain in `plan` might not fit on an ordinary stack. The text of a statement does not
/// tell: a short one may read a view, or execute a prepared statement, that is long.
///
/// # Cost
/// It stops counting as soon as it knows.
#[must_use]
pub fn may_be_deep(plan: &LogicalPlan) -> bool {
    let mut nodes = 0;
    let mut count = || {
        nodes += 1;
        let enough = nodes > NODES_ON_ORDINARY_STACK;
        Ok(if enough { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    };
    // The closures never fail, so neither does the walk.
    drop(plan.apply_with_subqueries(|node| {
        let inside = node.apply_expressions(|expr| expr.apply(|_| count()))?;
        if inside == TreeNodeRecursion::Stop { Ok(inside) } else { count() }
    }));
    nodes > NODES_ON_ORDINARY_STACK
}

/// Terms in the longest chain of operators of `sql`; 0 if it cannot be read as tokens (the parser will
/// then say why).
///
/// # Cost
/// `O(length of sql)`.
#[must_use]
pub fn longest_chain(sql: &str) -> usize {
    let dialect = GenericDialect {};
    let Ok(tokens) = Tokenizer::new(&dialect, sql).tokenize() else { return 0 };
    let mut open = vec![0_usize];
    let mut longest = 0;
    for token in tokens {
        match token {
            Token::LParen | Token::LBracket => open.push(0),
            Token::RParen | Token::RBracket => {
                // What was in brackets is one term of the chain around it, but as deep as it was.
                let inner = open.pop().unwrap_or(0);
                longest = longest.max(inner);
            }
            Token::Comma | Token::SemiColon => restart(&mut open),
            Token::Word(word) => match word.keyword {
                Keyword::AND | Keyword::OR | Keyword::BETWEEN | Keyword::LIKE | Keyword::NOT => {
                    count(&mut open, &mut longest);
                }
                Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT => {
                    count(&mut open, &mut longest);
                }
                _ => {}
            },
            Token::Plus
            | Token::Minus
            | Token::Mul
            | Token::Div
            | Token::Mod
            | Token::StringConcat
            | Token::Eq
            | Token::DoubleEq
            | Token::Neq
            | Token::Lt
            | Token::Gt
            | Token::LtEq
            | Token::GtEq
            | Token::Pipe
            | Token::Caret
            | Token::Ampersand
            | Token::ShiftLeft
            | Token::ShiftRight
            | Token::DoubleColon => {
                count(&mut open, &mut longest);
            }
            _ => {}
        }
    }
    if longest == 0 { 0 } else { longest + 1 }
}

fn count(open: &mut [usize], longest: &mut usize) {
    if let Some(terms) = open.last_mut() {
        *terms += 1;
        *longest = (*longest).max(*terms);
    }
}

fn restart(open: &mut Vec<usize>) {
    if open.is_empty() {
        open.push(0);
    }
    if let Some(terms) = open.last_mut() {
        *terms = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_chain_counts_its_terms_and_a_list_does_not() {
        let chain = vec!["1"; 5_000].join("+");
        assert_eq!(longest_chain(&format!("SELECT {chain}")), 5_000);
        let ors = vec!["a = 1"; 100].join(" OR ");
        assert_eq!(longest_chain(&format!("SELECT a FROM t WHERE {ors}")), 200);
        let list = vec!["1"; 5_000].join(",");
        assert_eq!(longest_chain(&format!("SELECT a FROM t WHERE a IN ({list})")), 0);
        assert_eq!(longest_chain("SELECT 'a+b+c' -- + + +"), 0);
    }
}
