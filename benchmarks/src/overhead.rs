//! What does it cost if nothing can be gained? The 22 TPC-H queries call no function, so all that the
//! engine adds to plain DataFusion is overhead.
//!
//! Both read the very same Arrow buffers, in the same batches and the same number of partitions, in
//! one process, with the same number of threads. They take turns, query by query.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::catalog::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use foreshard::workload::tpch;
use foreshard::{Config, Engine};
use foreshard_actors::partitioning::Partitioning;

use crate::arms::{Ratio, Rounds, Samples, geometric_mean, interleave};
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};

/// Relative difference of two floating-point answers that is due to the order of summing.
const TOLERANCE: f64 = 1e-9;

/// Runs the benchmark.
///
/// # Errors
/// The first error of either side, or an answer that differs.
pub async fn run(options: Options) -> Result<Found> {
    let scale_factor = if options.quick { 0.1 } else { 1.0 };
    let runs = if options.quick { 3 } else { 5 };
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let folder = tempfile::tempdir()?;
    eprintln!("generating TPC-H at scale factor {scale_factor}");
    let (engine, plain) = both(scale_factor, cores, &folder.path().to_string_lossy()).await?;
    let mut rows = Vec::new();
    let mut ratios = Vec::new();
    for (number, query) in (1_u64..).zip(tpch::queries()) {
        let ours = engine.sql(query).await.with_context(|| format!("query {number}"))?;
        let theirs = answer(&plain, query).await?;
        same(&ours, &theirs).with_context(|| format!("the answers to query {number} differ"))?;
        let answers = ours.iter().map(RecordBatch::num_rows).sum::<usize>() as u64;
        drop((ours, theirs));
        let rounds = Rounds { warm_up: 1, counted: runs };
        let [ours, theirs] = interleave(&*options.clock, rounds, async |arm| {
            match arm {
                0 => drop(engine.sql(query).await?),
                _ => drop(answer(&plain, query).await?),
            }
            Ok(())
        })
        .await?;
        let ratio = Ratio::of(&ours, &theirs);
        eprintln!("query {number:>2}: {:.3}", ratio.median);
        ratios.push(ratio.median);
        rows.push(row(number, answers, (&ours, &theirs), ratio));
    }
    engine.shutdown().await?;
    Ok((rows, figures(&ratios)))
}

fn row(number: u64, answers: u64, (ours, theirs): (&Samples, &Samples), ratio: Ratio) -> Row {
    Row::default()
        .with("query", format!("q{number}"))
        .with("rows", answers)
        .with("foreshard_ms", ours.median() / 1e6)
        .with("datafusion_ms", theirs.median() / 1e6)
        .with("ratio", ratio.median)
        .with("ratio_min", ratio.min)
        .with("ratio_max", ratio.max)
        .with("foreshard_spread", ours.spread())
        .with("datafusion_spread", theirs.spread())
        .with("runs", ours.ns().len() as u64)
}

fn figures(ratios: &[f64]) -> Vec<Figure> {
    let worst = ratios.iter().copied().fold(f64::NAN, f64::max);
    vec![
        Figure::bounded("geomean_ratio", geometric_mean(ratios), "ratio", Bound::AtMost(1.1)),
        Figure::reported("worst_ratio", worst, "ratio"),
    ]
}

/// The engine with everything on, and plain DataFusion, over the same buffers.
async fn both(scale_factor: f64, cores: u32, folder: &str) -> Result<(Engine, SessionContext)> {
    let mut config = Config::default();
    for (key, value) in [
        ("data-dir", folder.to_owned()),
        ("nodes", "1".to_owned()),
        ("partitions", cores.to_string()),
        ("loop.mode", "forecast".to_owned()),
    ] {
        config = config.set(key, &value)?;
    }
    let engine = Engine::builder().config(config).start().await?;
    let session = SessionConfig::new().with_target_partitions(cores as usize);
    let plain = SessionContext::new_with_config(session);
    for (name, schema, batches) in tpch::tables(scale_factor) {
        let key = tpch::partition_key(name).context("every table has a key")?;
        let partitioning = Partitioning::Hash { columns: vec![key.to_owned()], partitions: cores };
        engine.create_memory_table(name, schema.clone(), partitioning.clone(), batches).await?;
        // What the engine holds now, without a copy: its scan hands out the buffers themselves.
        let held = engine.sql(&format!("SELECT * FROM {name}")).await?;
        let mut partitions = vec![vec![]; cores as usize];
        for batch in held {
            let schema = batch.schema();
            ensure!(schema.fields().len() == batch.num_columns(), "{name} lost columns");
            let first = partitioning.split(&batch.slice(0, batch.num_rows().min(1)))?;
            if let Some((ordinal, _)) = first.first() {
                let batch = RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec())?;
                partitions[*ordinal as usize].push(batch);
            }
        }
        plain.register_table(name, Arc::new(MemTable::try_new(schema, partitions)?))?;
    }
    Ok((engine, plain))
}

async fn answer(plain: &SessionContext, query: &str) -> Result<Vec<RecordBatch>> {
    Ok(plain.sql(query).await?.collect().await?)
}

/// Checks that both hold the same rows in any order; floats as near as another order of summing.
fn same(ours: &[RecordBatch], theirs: &[RecordBatch]) -> Result<()> {
    let (ours, theirs) = (sorted(ours)?, sorted(theirs)?);
    ensure!(ours.len() == theirs.len(), "{} rows instead of {}", ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let equal = ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| near(a, b));
        if !equal {
            bail!("{ours:?} instead of {theirs:?}");
        }
    }
    Ok(())
}

fn near(a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(x), Ok(y)) => (x - y).abs() <= TOLERANCE * x.abs().max(y.abs()),
        _ => false,
    }
}

fn sorted(batches: &[RecordBatch]) -> Result<Vec<Vec<String>>> {
    let options = FormatOptions::default().with_null("NULL");
    let mut rows = Vec::new();
    for batch in batches {
        let columns =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options));
        let columns: Vec<_> = columns.collect::<Result<_, _>>()?;
        for row in 0..batch.num_rows() {
            rows.push(columns.iter().map(|column| column.value(row).to_string()).collect());
        }
    }
    rows.sort_unstable();
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, Int64Array};

    use super::*;

    fn rows(keys: &[i64], sums: &[f64]) -> RecordBatch {
        RecordBatch::try_from_iter([
            ("k", Arc::new(Int64Array::from(keys.to_vec())) as arrow::array::ArrayRef),
            ("s", Arc::new(Float64Array::from(sums.to_vec()))),
        ])
        .unwrap()
    }

    #[test]
    fn answers_may_differ_in_order_and_in_the_last_digits_and_in_nothing_else() {
        let plain = rows(&[1, 2], &[0.3, 7.0]);
        assert!(
            same(&[rows(&[2], &[7.0]), rows(&[1], &[0.1 + 0.2])], std::slice::from_ref(&plain))
                .is_ok()
        );
        assert!(same(&[rows(&[1, 2], &[0.3, 7.01])], std::slice::from_ref(&plain)).is_err());
        assert!(same(&[rows(&[1, 3], &[0.3, 7.0])], std::slice::from_ref(&plain)).is_err());
        assert!(same(&[rows(&[1], &[0.3])], &[plain]).is_err());
    }

    #[test]
    fn a_geometric_mean_above_the_bound_is_missed_and_the_worst_query_is_named() {
        let figures = figures(&[1.0, 1.3, 1.2]);
        assert!(!figures[0].holds);
        assert_eq!(figures[1].value, 1.3);
        assert!(!super::figures(&[])[0].holds);
    }
}
