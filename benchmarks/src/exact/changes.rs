//! Random changes of rows, each as a statement for the engine and as the query by which plain DataFusion
//! computes the rows that the table must then have.

use rand::Rng;
use rand::rngs::StdRng;

use crate::exact::questions::pick;

/// Tables whose rows change, with their columns and what these are cast to.
const TABLES: [(&str, &[(&str, &str)]); 3] = [
    (
        "fact",
        &[
            ("id", "BIGINT"),
            ("k", "INT"),
            ("n", "BIGINT"),
            ("f", "DOUBLE"),
            ("t", "VARCHAR"),
            ("d", "DATE"),
            ("ts", "TIMESTAMP"),
            ("b", "BOOLEAN"),
            ("m", "DECIMAL(12, 2)"),
        ],
    ),
    (
        "note",
        &[
            ("id", "BIGINT"),
            ("fact_id", "BIGINT"),
            ("w", "INT"),
            ("body", "VARCHAR"),
            ("score", "DOUBLE"),
        ],
    ),
    (
        "twin",
        &[
            ("id", "BIGINT"),
            ("\"K\"", "BIGINT"),
            ("n", "BIGINT"),
            ("f", "DOUBLE"),
            ("t", "VARCHAR"),
            ("ts", "TIMESTAMP"),
        ],
    ),
];

/// Fewer rows than this are not deleted from.
const ROWS_MIN: usize = 120;

/// More rows than this are not inserted to.
const ROWS_MAX: usize = 2_600;

/// A change of the rows of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The table.
    pub table: &'static str,
    /// What the engine is told.
    pub statement: String,
    /// All rows of the table afterwards, asked before the change.
    pub rows_after: String,
}

/// A table whose rows may be changed, at random.
#[must_use]
pub fn table(rng: &mut StdRng) -> &'static str {
    TABLES[rng.random_range(0..TABLES.len())].0
}

/// A random change of `table`, which has `rows` rows.
#[must_use]
pub fn change(rng: &mut StdRng, table: &'static str, rows: usize) -> Change {
    match rng.random_range(0..100) {
        _ if rows < ROWS_MIN => insert(rng, table),
        0..35 if rows < ROWS_MAX => insert(rng, table),
        0..70 => update(rng, table),
        70..73 if table == "twin" => Change {
            table,
            statement: format!("TRUNCATE TABLE {table}"),
            rows_after: format!("SELECT * FROM {table} WHERE false"),
        },
        _ => delete(rng, table),
    }
}

fn columns(table: &str) -> &'static [(&'static str, &'static str)] {
    TABLES.iter().find(|(name, _)| *name == table).map_or(&[], |(_, columns)| columns)
}

/// Some rows of a table, as a condition.
fn some_rows(rng: &mut StdRng, table: &str) -> String {
    let (number, text, float) = match table {
        "note" => ("w", "body", "score"),
        _ => ("n", "t", "f"),
    };
    let divisor = rng.random_range(3..9);
    match rng.random_range(0..7) {
        0 => format!("id % {divisor} = {}", rng.random_range(0..divisor)),
        1 => format!("{number} > {}", rng.random_range(0..30)),
        2 => format!("{text} LIKE '{}%'", pick(rng, &["a", "s", "t", "S", "o"])),
        3 => format!("{float} > {}.0", rng.random_range(-500..900)),
        4 => format!("twice({number}) BETWEEN 0 AND {}", rng.random_range(4..40)),
        5 => format!("say({text}) < '{}'", pick(rng, &["d", "m", "a"])),
        _ => format!("{number} IS NULL OR id % 11 = 3"),
    }
}

fn insert(rng: &mut StdRng, table: &'static str) -> Change {
    let columns = columns(table);
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let values: Vec<String> = columns
        .iter()
        .map(|(name, of)| {
            let value = match *name {
                "id" => "(SELECT coalesce(max(id), 0) + 1 FROM {table}) + id",
                "f" => pick(rng, &["f", "f", "-f", "-0.0", "0.0", "CAST('NaN' AS DOUBLE)"]),
                "n" => pick(rng, &["n", "n", "-n", "3", "NULL"]),
                "\"K\"" => "k",
                "t" => pick(rng, &["t", "t", "upper(t)", "'a'", "NULL"]),
                name => name,
            };
            format!("CAST({value} AS {of}) AS {name}")
        })
        .collect();
    // Rows of another table fill one that may be empty.
    let from = if table == "twin" { "fact" } else { table };
    let values = values.join(", ").replace("{table}", table);
    let parts = rng.random_range(5..25);
    let part = rng.random_range(0..parts);
    let rows = format!("SELECT {values} FROM {from} WHERE id % {parts} = {part}");
    let names = names.join(", ");
    Change {
        table,
        statement: format!("INSERT INTO {table} ({names}) {rows}"),
        rows_after: format!("SELECT {names} FROM {table} UNION ALL {rows}"),
    }
}

fn update(rng: &mut StdRng, table: &'static str) -> Change {
    let (column, value) = match table {
        "note" => *[
            ("w", "w + 1"),
            ("fact_id", "fact_id + 7"),
            ("body", "upper(body)"),
            ("score", "-score"),
            ("score", "-0.0"),
        ]
        .get(rng.random_range(0..5_usize))
        .unwrap_or(&("w", "w")),
        _ => *[
            ("n", "n + 1"),
            ("n", "twice(n) % 50"),
            ("n", "NULL"),
            ("f", "-f"),
            ("f", "0.0"),
            ("f", "-0.0"),
            ("f", "CAST('NaN' AS DOUBLE)"),
            ("t", "upper(t)"),
            ("t", "left(say(t), 9)"),
            ("ts", "ts + INTERVAL '1 hour'"),
        ]
        .get(rng.random_range(0..10_usize))
        .unwrap_or(&("n", "n")),
    };
    let rows = some_rows(rng, table);
    let values: Vec<String> = columns(table)
        .iter()
        .map(|(name, of)| match *name == column {
            true => {
                format!("CASE WHEN {rows} THEN CAST({value} AS {of}) ELSE {name} END AS {name}")
            }
            false => (*name).to_owned(),
        })
        .collect();
    Change {
        table,
        statement: format!("UPDATE {table} SET {column} = {value} WHERE {rows}"),
        rows_after: format!("SELECT {} FROM {table}", values.join(", ")),
    }
}

fn delete(rng: &mut StdRng, table: &'static str) -> Change {
    // A part of the part, so that something is left.
    let rows = format!("({}) AND id % 4 = {}", some_rows(rng, table), rng.random_range(0..4));
    Change {
        table,
        statement: format!("DELETE FROM {table} WHERE {rows}"),
        rows_after: format!("SELECT * FROM {table} WHERE ({rows}) IS NOT TRUE"),
    }
}

/// A setting that changes results, for both sides.
#[must_use]
pub fn setting_of_both(rng: &mut StdRng) -> String {
    let zones =
        ["'+00:00'", "'+05:00'", "'-08:00'", "'+05:00'", "'Europe/Zurich'", "'America/New_York'"];
    match rng.random_range(0..10) {
        0..5 => format!("SET datafusion.execution.time_zone = {}", pick(rng, &zones)),
        5 | 6 => format!(
            "SET datafusion.sql_parser.parse_float_as_decimal = {}",
            pick(rng, &["true", "false"])
        ),
        7 => format!(
            "SET datafusion.sql_parser.default_null_ordering = '{}'",
            pick(rng, &["nulls_max", "nulls_min", "nulls_first", "nulls_last"])
        ),
        _ => {
            format!("SET datafusion.execution.enable_ansi_mode = {}", pick(rng, &["true", "false"]))
        }
    }
}

/// A setting that changes how the engine comes to its results, and no result.
#[must_use]
pub fn setting_of_ours(rng: &mut StdRng) -> String {
    let (key, values): (_, &[&str]) = match rng.random_range(0..12) {
        0 => ("foreshard.use_partials", &["true", "false", "true"]),
        1 => ("foreshard.use_outputs", &["true", "true", "true", "false"]),
        2 => ("foreshard.check_every", &["0", "1", "7", "1000"]),
        3 | 4 => ("datafusion.execution.batch_size", &["17", "128", "1000", "8192"]),
        5 | 6 => ("datafusion.execution.target_partitions", &["1", "2", "3", "5"]),
        7 => ("datafusion.optimizer.prefer_hash_join", &["true", "false"]),
        8 => ("foreshard.colocated_joins", &["true", "true", "false"]),
        9 => ("datafusion.optimizer.hash_join_single_partition_threshold", &["0", "0", "1048576"]),
        10 => (
            "datafusion.optimizer.hash_join_single_partition_threshold_rows",
            &["0", "0", "131072"],
        ),
        _ => ("datafusion.optimizer.repartition_aggregations", &["true", "false"]),
    };
    format!("SET {key} = {}", pick(rng, values))
}
