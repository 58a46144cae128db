//! Random queries give the answers of plain DataFusion, on engines of all shapes, while a random
//! controller copies, moves, drops and precomputes.

use std::collections::BTreeMap;

use crate::exact::data::samples;
use crate::exact::functions::FUNCTIONS;
use crate::exact::random::{self, Generated};
use crate::exact::runtime;
use crate::exact::trial::{self, Statement};

/// Seed of the tables.
const DATA_SEED: u64 = 7;

/// Queries that are put; the environment may ask for more.
const QUERIES: u64 = 2_000;

/// Seed of the first query; the environment may name another one, to repeat a single query.
const FIRST_SEED: u64 = 1;

fn from_environment(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn queries() -> Vec<Generated> {
    let first = from_environment("FORESHARD_TEST_SEED", FIRST_SEED);
    let count = from_environment("FORESHARD_TEST_QUERIES", QUERIES);
    (first..first + count).map(|seed| random::query(seed, FUNCTIONS)).collect()
}

#[test]
fn random_queries_give_the_answers_of_plain_datafusion_whatever_the_loop_does() {
    runtime::run(async {
        let generated = queries();
        let count = generated.len();
        let mut features: BTreeMap<&str, u32> = BTreeMap::new();
        for feature in generated.iter().flat_map(|query| &query.features) {
            *features.entry(feature).or_default() += 1;
        }
        println!("{count} queries, of which with: {features:?}");
        let statements = generated
            .into_iter()
            .map(|query| Statement {
                label: format!("FORESHARD_TEST_SEED={} FORESHARD_TEST_QUERIES=1", query.seed),
                sql: query.sql,
                ordered: query.ordered,
            })
            .collect();
        let report = trial::run(&samples(DATA_SEED).unwrap(), statements, DATA_SEED).await.unwrap();
        println!("{} % valid on plain", report.valid_on_plain * 100 / count);
        report.expect_no_mismatch();
        if count < QUERIES as usize {
            return;
        }
        assert!(report.valid_on_plain * 10 >= count * 9, "too many queries that plain refuses");
        for (setup, queries) in &report.queries_by_setup {
            assert_eq!(*queries, count, "all queries are put to {setup}");
        }
        let varies = report.verdicts.get("plain varies with its layout").copied().unwrap_or(0);
        assert!(varies * 100 <= count, "{varies} answers excused because plain varies");
    });
}

#[test]
fn a_seed_always_gives_the_same_query() {
    for seed in 0..200 {
        assert_eq!(random::query(seed, FUNCTIONS).sql, random::query(seed, FUNCTIONS).sql);
    }
    assert_ne!(random::query(1, FUNCTIONS).sql, random::query(2, FUNCTIONS).sql);
}

#[test]
fn every_part_of_the_language_and_every_function_occurs() {
    let mut features: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in 0..QUERIES {
        for feature in random::query(seed, FUNCTIONS).features {
            *features.entry(feature).or_default() += 1;
        }
    }
    let wanted = [
        "where",
        "case",
        "inner join",
        "left join",
        "right join",
        "full join",
        "semi join",
        "anti join",
        "cross join",
        "function in join key",
        "in subquery",
        "not in subquery",
        "exists",
        "not exists",
        "scalar subquery",
        "correlated subquery",
        "group by",
        "aggregate",
        "having",
        "filter clause",
        "count distinct",
        "stddev",
        "rollup",
        "cube",
        "grouping sets",
        "window",
        "distinct",
        "union",
        "union all",
        "intersect",
        "except",
        "with",
        "derived table",
        "limit",
        "offset",
        "order by",
        "guarded call",
        "empty table",
        "ordered aggregate",
    ];
    for feature in wanted.into_iter().chain(FUNCTIONS.iter().map(|function| function.name)) {
        let count = features.get(feature).copied().unwrap_or(0);
        assert!(count >= 8, "{feature} occurs in {count} of {QUERIES} queries");
    }
}
