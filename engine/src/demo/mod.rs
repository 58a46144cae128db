//! The demo: a compressed day, played twice (learn, then act) in three ways, and what came of it.
//!
//! | part | what it does |
//! |---|---|
//! | [`world`] | the rows, and the functions that are called on them |
//! | [`schedule`] | who asks what when |
//! | [`day`] | plays it with one engine per way; benchmarks use it too |
//! | [`report`], [`measure`] | what came of it, in numbers |
//! | [`show`], [`plot`], [`decisions`] | words, picture, and the file of all decisions |

pub mod day;
pub mod decisions;
pub mod error;
pub mod measure;
pub mod plot;
pub mod report;
pub mod schedule;
pub mod show;
pub mod world;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use foreshard_actors::ports::{SharedClock, SystemClock};

pub use day::{Arm, DayReport, Workload, play};
pub use error::DemoError;

/// Name of the picture.
const PLOT_FILE: &str = "foreshard-demo.svg";
/// Name of the file with every decision.
const DECISIONS_FILE: &str = "foreshard-demo-decisions.csv";
/// The ways that the demo compares.
const ARMS: [Arm; 3] = [Arm::Off, Arm::Reactive, Arm::Forecast];

/// How the demo is called.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Any Parquet file, or a folder of them, to play on instead of generated data.
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Folder for the picture and the list of decisions.
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub out: PathBuf,
    /// Seed of everything random; the same seed plays the same day.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Play on few rows: to see that it works, not how well.
    #[arg(long)]
    pub quick: bool,
}

/// Plays the demo and prints what it shows.
///
/// # Errors
/// [`DemoError`] if the data cannot be read, nothing can be written to `out`, or the engine fails.
pub async fn run(args: DemoArgs) -> Result<(), DemoError> {
    let plot_file = args.out.join(PLOT_FILE);
    let decisions_file = args.out.join(DECISIONS_FILE);
    writable(&args.out, &plot_file)?;
    let clock: SharedClock = Arc::new(SystemClock);
    let start = clock.monotonic_ns();
    show::opening();
    let world = match &args.data {
        Some(path) => world::World::parquet(path).await?,
        None => world::World::tpch()?,
    };
    let size = if args.quick { day::Size::QUICK } else { day::Size::FULL };
    let workload = Workload::new(world, size, args.seed, &clock).await?;
    show::plan(&workload, &ARMS);
    let mut progress = show::ProgressLine::new(&workload);
    let report = play(&workload, &ARMS, &clock, |now| progress.show(now)).await?;
    progress.end();
    show::outcome(&report);
    show::decided(&report);
    decisions::write(&report, &decisions_file)
        .map_err(|error| unwritten(&decisions_file, &error))?;
    plot::draw(&show::picture(&workload, &report), &plot_file)
        .map_err(|error| unwritten(&plot_file, &error))?;
    let seconds = clock.monotonic_ns().saturating_sub(start) as f64 / 1e9;
    show::closing(&plot_file, &decisions_file, seconds);
    Ok(())
}

fn unwritten(path: &Path, error: &dyn std::fmt::Display) -> DemoError {
    DemoError::Write { path: path.to_owned(), reason: error.to_string() }
}

/// Finds out before the long play whether its end can be written.
fn writable(folder: &Path, file: &Path) -> Result<(), DemoError> {
    std::fs::create_dir_all(folder).map_err(|error| unwritten(folder, &error))?;
    let existed = file.exists();
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(file);
    opened.map_err(|error| unwritten(file, &error))?;
    if !existed {
        std::fs::remove_file(file).map_err(|error| unwritten(file, &error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_cannot_be_written_is_found_before_the_play() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = writable(&file, &file.join(PLOT_FILE)).unwrap_err();
        assert_eq!(error.code(), "FS-DEMO-3");
        assert!(error.to_string().contains("file"), "{error}");
    }

    #[test]
    fn trying_a_folder_leaves_nothing_behind_and_keeps_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/plot.svg");
        writable(file.parent().unwrap(), &file).unwrap();
        assert!(!file.exists());
        std::fs::write(&file, "kept").unwrap();
        writable(file.parent().unwrap(), &file).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
    }
}
