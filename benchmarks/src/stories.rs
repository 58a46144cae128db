//! Days in the life: dashboards in the morning, an analyst who drills down, appends all day, a crowd that nobody
//! foresaw, day and night with pay per node, tables whose joins drift, a function that gets another body, and a
//! node that is lost while partitions move.
//!
//! Each tells what the loop is expected to do, counts that in its decisions, and measures what came of it.

mod analyst;
mod appends;
mod day_night;
mod drift;
mod expected;
mod flash_crowd;
mod fresh;
mod lost_node;
mod morning;
mod redefined;
mod town;

use anyhow::Result;

use crate::program::{Found, Options};

/// Runs the benchmark.
///
/// # Errors
/// What an engine says where no story expects an error.
pub async fn run(options: Options) -> Result<Found> {
    let (mut rows, mut figures) = Box::pin(morning::play(&options)).await?;
    for (more, found) in [
        Box::pin(analyst::play(&options)).await?,
        Box::pin(appends::play(&options)).await?,
        Box::pin(flash_crowd::play(&options)).await?,
        Box::pin(day_night::play(&options)).await?,
        Box::pin(drift::play(&options)).await?,
        Box::pin(redefined::play(&options)).await?,
        Box::pin(lost_node::play(&options)).await?,
    ] {
        rows.extend(more);
        figures.extend(found);
    }
    Ok((rows, figures))
}
