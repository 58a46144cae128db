//! TPC-H: the eight tables, generated in memory, and the 22 queries with their validation parameters.
//!
//! The text of a query is that of the specification; only what DataFusion writes otherwise differs:
//! the first-N-rows rule is a `LIMIT`, and the view of query 15 is a `WITH`.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator,
    PartSuppGenerator, RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow,
    RecordBatchIterator, RegionArrow, SupplierArrow,
};

/// The queries, the first one at index 0.
#[must_use]
pub fn queries() -> [&'static str; 22] {
    [
        include_str!("tpch/q1.sql"),
        include_str!("tpch/q2.sql"),
        include_str!("tpch/q3.sql"),
        include_str!("tpch/q4.sql"),
        include_str!("tpch/q5.sql"),
        include_str!("tpch/q6.sql"),
        include_str!("tpch/q7.sql"),
        include_str!("tpch/q8.sql"),
        include_str!("tpch/q9.sql"),
        include_str!("tpch/q10.sql"),
        include_str!("tpch/q11.sql"),
        include_str!("tpch/q12.sql"),
        include_str!("tpch/q13.sql"),
        include_str!("tpch/q14.sql"),
        include_str!("tpch/q15.sql"),
        include_str!("tpch/q16.sql"),
        include_str!("tpch/q17.sql"),
        include_str!("tpch/q18.sql"),
        include_str!("tpch/q19.sql"),
        include_str!("tpch/q20.sql"),
        include_str!("tpch/q21.sql"),
        include_str!("tpch/q22.sql"),
    ]
}

/// Generates the eight tables: name, schema and rows, in batches of 8,000 rows.
///
/// # Shape and units
/// * `scale_factor`: gigabytes of text that the specification's own generator would write; at 1.0
///   `lineitem` has 6 million rows, at 0.01 it has 60,000.
///
/// # Cost
/// About half a second and 1.2 GB of memory per unit of scale factor in a release build.
#[must_use]
pub fn tables(scale_factor: f64) -> Vec<(&'static str, SchemaRef, Vec<RecordBatch>)> {
    let sf = scale_factor;
    vec![
        collected("nation", NationArrow::new(NationGenerator::new(sf, 1, 1))),
        collected("region", RegionArrow::new(RegionGenerator::new(sf, 1, 1))),
        collected("part", PartArrow::new(PartGenerator::new(sf, 1, 1))),
        collected("supplier", SupplierArrow::new(SupplierGenerator::new(sf, 1, 1))),
        collected("partsupp", PartSuppArrow::new(PartSuppGenerator::new(sf, 1, 1))),
        collected("customer", CustomerArrow::new(CustomerGenerator::new(sf, 1, 1))),
        collected("orders", OrderArrow::new(OrderGenerator::new(sf, 1, 1))),
        collected("lineitem", LineItemArrow::new(LineItemGenerator::new(sf, 1, 1))),
    ]
}

/// The column to partition a table by: the one that its largest joins use, so that `lineitem` and
/// `orders`, and `part` and `partsupp`, meet in the same partition. `None` for an unknown table.
#[must_use]
pub fn partition_key(table: &str) -> Option<&'static str> {
    Some(match table {
        "nation" => "n_nationkey",
        "region" => "r_regionkey",
        "part" => "p_partkey",
        "supplier" => "s_suppkey",
        "partsupp" => "ps_partkey",
        "customer" => "c_custkey",
        "orders" => "o_orderkey",
        "lineitem" => "l_orderkey",
        _ => return None,
    })
}

fn collected(
    name: &'static str,
    rows: impl RecordBatchIterator,
) -> (&'static str, SchemaRef, Vec<RecordBatch>) {
    let schema = rows.schema().clone();
    (name, schema, rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_have_the_rows_of_the_specification_and_their_partition_key() {
        let rows: Vec<(&str, usize)> = tables(0.01)
            .iter()
            .map(|(name, schema, batches)| {
                let key = partition_key(name).unwrap();
                assert!(schema.index_of(key).is_ok(), "{name} has no column {key}");
                (*name, batches.iter().map(RecordBatch::num_rows).sum())
            })
            .collect();
        assert_eq!(
            rows,
            [
                ("nation", 25),
                ("region", 5),
                ("part", 2_000),
                ("supplier", 100),
                ("partsupp", 8_000),
                ("customer", 1_500),
                ("orders", 15_000),
                ("lineitem", 60_175),
            ]
        );
    }

    #[test]
    fn each_query_is_one_statement_without_open_parameters() {
        for (index, query) in queries().iter().enumerate() {
            let number = index + 1;
            assert!(!query.contains([':', ';']), "query {number} is not ready to run");
            assert!(queries()[..index].iter().all(|other| other != query), "query {number} twice");
        }
    }
}
