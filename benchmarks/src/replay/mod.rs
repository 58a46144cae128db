//! Is it the forecast that helps? A real load, compressed in time, on the real engine, against every simpler
//! way to be ready.
//!
//! Three nodes with one permit each compute real functions of 20 us to 2 ms a row. Rows come each
//! (compressed) minute, calls when the trace says so, whether or not those before were answered: what is
//! measured is waiting for a permit. To keep everything fresh takes more than the background may use, so all
//! arms must choose, with the same budget and the same planner; they differ only in what they expect (see
//! `outlooks`). The days that are learned from are told as counts of calls, not played; all arms begin
//! with what one loop learned of them.
//!
//! A gain is what an arm saves of the mean time of calls where things are stored at first use, as a share of
//! what one saves who knows the coming calls. A run in which the inverted forecast gains, or in which demand
//! or use of the permits are not as wanted, is void: its bounds are missed, whatever else it shows.

pub(crate) mod arm;
pub(crate) mod functions;
pub(crate) mod load;
pub(crate) mod outlooks;
pub(crate) mod player;
pub mod safe;
pub(crate) mod score;
pub(crate) mod stage;
mod turn_clock;
pub(crate) mod world;

use std::sync::Arc;

use anyhow::{Context, Result};
use foreshard_actors::ports::SharedClock;

use self::arm::{Arm, Played};
use self::player::Player;
use self::score::{Judged, figures, row};
use self::stage::{Size, TURN};
use self::turn_clock::TurnClock;
use self::world::World;
use crate::arms::order;
use crate::forecast::{Trace, families};
use crate::loads;
use crate::program::{Found, Options};

/// The trace that is played if none is named and it is there.
const TRACE: &str = "nab_nyc_taxi";

/// Runs the benchmark.
///
/// # Errors
/// A file that is no load, or what an engine says.
pub async fn run(options: Options) -> Result<Found> {
    let trace = trace(&options)?;
    let (scarce, ample) = (Size::SCARCE, Size::AMPLE);
    let scarce = regime(&trace, scarce.or_quick(options.quick), &Arm::ALL, TURN, &options).await?;
    let ample = Size { calls: Some(scarce.calls_a_minute), ..ample.or_quick(options.quick) };
    let ample = regime(&trace, ample, &Arm::EASY, TURN, &options).await?;
    let rows = ["scarce", "ample"].into_iter().zip([&scarce, &ample]);
    let rows = rows.flat_map(|(name, all)| all.arms.iter().map(move |arm| row(name, all, arm)));
    Ok((rows.collect(), figures(&scarce, &ample)))
}

pub(crate) fn trace(options: &Options) -> Result<Trace> {
    if let Some(file) = options.traces.first() {
        return Trace::read(file);
    }
    let is_it = |file: &&std::path::PathBuf| file.to_string_lossy().contains(TRACE);
    if !options.quick
        && let Some(file) = loads::beside().iter().find(is_it)
    {
        return Trace::read(file);
    }
    let mut made_up = families::all(options.seed, options.quick).into_iter();
    made_up.find(|trace| trace.name == "season").context("there is a load with a season")
}

/// Plays all arms in turns, each with an engine of its own.
async fn regime(
    trace: &Trace,
    size: Size,
    arms: &[Arm],
    turn: usize,
    options: &Options,
) -> Result<Judged> {
    let clock: &SharedClock = &options.clock;
    let world = World::new(trace, size, options.seed, clock)?;
    eprintln!(
        "{}: refreshing everything takes {:.2} of the budget; {} calls on {} pairs",
        trace.name,
        world.stage.demand,
        world.stage.calls.len(),
        size.shape.pairs()
    );
    let learned = tempfile::tempdir()?;
    let started = clock.monotonic_ns();
    world.learn(learned.path(), clock).await?;
    let learned_ns = clock.monotonic_ns();
    let seconds = learned_ns.saturating_sub(started) as f64 / 1e9;
    eprintln!("{} days learned in {seconds:.0} s", size.shape.days.0);
    let mut players = Vec::with_capacity(arms.len());
    for arm in arms {
        let clock = Arc::new(TurnClock::standing_since(Arc::clone(clock), learned_ns));
        players.push(Player::start(&world, *arm, learned.path(), clock).await?);
    }
    let minutes = world.stage.load.played();
    for (round, first) in (0..minutes).step_by(turn).enumerate() {
        for position in order(round, players.len()) {
            let player = &mut players[position];
            let last = minutes.min(first + turn);
            eprintln!("minutes {first} to {last} of {minutes}, {}", player.arm.name());
            player.play(&world, first..last).await?;
        }
    }
    let mut played: Vec<(Arm, Played)> = Vec::with_capacity(players.len());
    for player in players {
        played.push((player.arm, player.end().await?));
    }
    Ok(Judged::new(&world.stage, played))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use foreshard_actors::ports::SystemClock;

    use super::load::Shape;
    use super::*;

    #[test]
    fn all_arms_play_in_miniature_and_give_the_same_answers() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_stack_size(32 << 20)
            .build()
            .unwrap();
        let options = Options {
            seed: 3,
            quick: true,
            traces: vec![],
            simulation: Default::default(),
            queries: None,
            clock: Arc::new(SystemClock),
        };
        let run = async {
            let trace = trace(&options).unwrap();
            let shape = Shape {
                days: (1, 1),
                warm_up: 2,
                minutes: 8,
                functions: 3,
                partitions: 3,
                window: 3,
            };
            let tick = Duration::from_millis(60);
            let size = Size { shape, tick, demand: 2.0, calls: Some(3.0) };
            regime(&trace, size, &Arm::ALL, 5, &options).await.unwrap()
        };
        let judged = runtime.block_on(run);
        assert_eq!(judged.arms.len(), 7);
        let (_, off) = &judged.arms[0];
        assert_eq!((off.answers.len(), off.minutes.len()), (judged.calls, 8));
        assert!(!off.answers.is_empty());
        let stored: u64 = off.minutes.iter().map(|minute| minute.rows_stored).sum();
        assert_eq!((stored, off.background_ns), (0, 0));
        assert_eq!(judged.answers_different(), 0);
        let (_, oracle) = &judged.arms[6];
        assert!(oracle.background_ns > 0, "it computed nothing ahead");
    }
}
