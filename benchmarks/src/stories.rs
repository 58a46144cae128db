//! Days in the life that the other benchmarks do not play: a crowd that nobody foresaw, tables whose joins
//! drift, a function that gets another body, and a node that is lost while partitions move.
//!
//! Dashboards in the morning are `demo-day`, an analyst's session is `drill-down`, appends all day are
//! `dashboard`, day and night with pay per node are `simulate`.

mod drift;
mod flash_crowd;
mod lost_node;
mod redefined;
mod town;

use anyhow::Result;

use crate::program::{Found, Options};

/// Runs the benchmark.
///
/// # Errors
/// What an engine says where no story expects an error.
pub async fn run(options: Options) -> Result<Found> {
    let (mut rows, mut figures) = Box::pin(flash_crowd::play(&options)).await?;
    for (more, found) in [
        Box::pin(drift::play(&options)).await?,
        Box::pin(redefined::play(&options)).await?,
        Box::pin(lost_node::play(&options)).await?,
    ] {
        rows.extend(more);
        figures.extend(found);
    }
    Ok((rows, figures))
}
