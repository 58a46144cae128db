//! The 22 TPC-H queries give the answers of plain DataFusion, on engines of all shapes, while a random
//! controller copies, moves, drops and precomputes.

use arrow::compute::concat_batches;
use foreshard::workload::tpch;

use crate::support::data::Sample;
use crate::support::runtime;
use crate::support::setups::SHAPES;
use crate::support::trial::{self, Statement};

const SCALE_FACTOR: f64 = 0.01;

/// Segments of one table, at most.
const SEGMENTS_MAX: usize = 4;

fn tables() -> Vec<Sample> {
    tpch::tables(SCALE_FACTOR)
        .into_iter()
        .map(|(name, schema, batches)| {
            let batches_each = batches.len().div_ceil(SEGMENTS_MAX);
            let segments = batches
                .chunks(batches_each)
                .map(|chunk| concat_batches(&schema, chunk).unwrap())
                .collect();
            Sample { name, key: tpch::partition_key(name).unwrap(), schema, segments }
        })
        .collect()
}

#[test]
fn the_tpch_queries_give_the_answers_of_plain_datafusion() {
    runtime::run(async {
        let statements: Vec<Statement> = tpch::queries()
            .iter()
            .enumerate()
            .map(|(index, sql)| Statement {
                label: format!("TPC-H query {}", index + 1),
                sql: (*sql).to_owned(),
                ordered: sql.contains("order by"),
            })
            .collect();
        let report = trial::run(&tables(), statements, 22).await.unwrap();
        report.expect_no_mismatch();
        assert_eq!(report.valid_on_plain, 22);
        assert_eq!(report.verdicts.get("same answer"), Some(&(22 * SHAPES.len())));
    });
}
