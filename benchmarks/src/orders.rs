//! Every order in which predicates can be evaluated, and SQL that keeps plain DataFusion to one.

/// All orders of the numbers below `count`, in the order of a dictionary.
#[must_use]
pub fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![vec![]];
    }
    let shorter = orders(count - 1);
    let with_first = |first: usize| {
        // The rest are the other numbers: those from `first` on are one higher.
        let rest = |rest: &Vec<usize>| {
            let others = rest.iter().map(|other| other + usize::from(*other >= first));
            std::iter::once(first).chain(others).collect()
        };
        shorter.iter().map(rest).collect::<Vec<_>>()
    };
    (0..count).flat_map(with_first).collect()
}

/// The predicates as a user writes them.
#[must_use]
pub fn conjunction(predicates: &[&str]) -> String {
    predicates.join(" AND ")
}

/// The predicates as one that plain DataFusion evaluates in this order, each only on the rows that all
/// before it left.
///
/// DataFusion merges stacked filters and nested subqueries into one AND, and evaluates both sides of an
/// AND on all rows unless the left side leaves few. The branch of a CASE is evaluated on just the rows
/// that come to it. The branches are numbers, since a CASE of truth values is rewritten to AND and OR.
#[must_use]
pub fn nested(predicates: &[&str], order: &[usize]) -> String {
    let inner = order.iter().rev().fold("1".to_owned(), |inner, position| {
        format!("CASE WHEN {} THEN {inner} ELSE 0 END", predicates[*position])
    });
    format!("{inner} = 1")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;
    use datafusion::catalog::MemTable;
    use datafusion::prelude::{SessionConfig, SessionContext};
    use foreshard_udfs::{Functions, registered};

    use super::*;
    use crate::counted::RowCounter;
    use crate::posts::{Column, Posts};

    #[test]
    fn there_are_as_many_orders_as_the_factorial_and_each_is_another() {
        for (count, factorial) in [(0, 1), (1, 1), (2, 2), (3, 6), (5, 120)] {
            let all = orders(count);
            assert_eq!(all.iter().collect::<HashSet<_>>().len(), factorial);
            for order in all {
                assert_eq!(order.iter().copied().collect::<HashSet<_>>(), (0..count).collect());
            }
        }
        assert_eq!(orders(3)[..3], [vec![0, 1, 2], vec![0, 2, 1], vec![1, 0, 2]]);
    }

    #[test]
    fn the_first_of_an_order_stands_outermost() {
        assert_eq!(
            nested(&["a", "b"], &[1, 0]),
            "CASE WHEN b THEN CASE WHEN a THEN 1 ELSE 0 END ELSE 0 END = 1"
        );
        assert_eq!(conjunction(&["a", "b"]), "a AND b");
    }

    #[tokio::test]
    async fn plain_datafusion_evaluates_a_nested_predicate_only_on_the_rows_left() {
        let columns = vec![Column::Id, Column::Code, Column::Body];
        let posts = Posts { seed: 1, words: 12, rows_a_day: 1, columns };
        let context =
            SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        let table = MemTable::try_new(posts.schema(), vec![posts.batches(0..1_000).unwrap()]);
        context.register_table("posts", Arc::new(table.unwrap())).unwrap();
        let library = Functions::library();
        let counter = RowCounter::default();
        for udf in library.scalars() {
            let inner = registered(&udf).unwrap().inner();
            context.register_udf(match inner.name() {
                "language" => counter.count(inner),
                _ => inner.as_ref().clone(),
            });
        }
        let number = async |sql: String| {
            let answer = context.sql(&sql).await.unwrap().collect().await.unwrap();
            answer[0].column(0).as_primitive::<Int64Type>().value(0) as u64
        };
        // Half of the rows: plain AND would evaluate the right side on all of them.
        let half = "regex_extract(code, 'order ([0-9]+)', 1) < '5'";
        let german = "language(body) = 'deu'";
        let left = number(format!("SELECT count(*) FROM posts WHERE {half}")).await;
        let both = nested(&[german, half], &[1, 0]);
        let found = number(format!("SELECT count(*) FROM posts WHERE {both}")).await;
        assert_eq!(counter.rows(), left);
        let written = conjunction(&[half, german]);
        assert_eq!(number(format!("SELECT count(*) FROM posts WHERE {written}")).await, found);
        assert!((300..700).contains(&left) && found > 0, "{left} and {found}");
    }
}
