//! A loop that does the wildest things at random while queries run: none of it may be seen in answers.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use foreshard::Engine;
use foreshard_actors::board::Role;
use foreshard_policy::ids::{NodeId, PartitionId};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;

/// Turns the cluster of one engine upside down, one step for each nudge that it has time for.
#[derive(Debug)]
pub struct Controller {
    nudges: Sender<()>,
    task: JoinSet<BTreeMap<&'static str, u32>>,
}

impl Controller {
    /// Starts the controller of `engine`; the same `seed` gives the same steps.
    pub fn start(engine: Engine, seed: u64) -> Self {
        let (nudges, nudged) = channel(1);
        let mut task = JoinSet::new();
        task.spawn(turn(engine, seed, nudged));
        Self { nudges, task }
    }

    /// Lets it take another step, unless it is still busy with one.
    pub fn nudge(&self) {
        let _still_busy = self.nudges.try_send(());
    }

    /// Ends it, and says what it did.
    ///
    /// # Errors
    /// If it panicked.
    pub async fn stop(mut self) -> Result<BTreeMap<&'static str, u32>> {
        drop(self.nudges);
        match self.task.join_next().await {
            Some(done) => done.context("the controller broke off"),
            None => bail!("the controller is gone"),
        }
    }
}

async fn turn(engine: Engine, seed: u64, mut nudged: Receiver<()>) -> BTreeMap<&'static str, u32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut done = BTreeMap::new();
    while nudged.recv().await.is_some() {
        let step = step(&engine, &mut rng).await;
        *done.entry(step).or_default() += 1;
    }
    done
}

/// One random step; says which.
pub async fn step(engine: &Engine, rng: &mut StdRng) -> &'static str {
    let members = engine.members();
    let choice = rng.random_range(0..100);
    let Some((partition, from, to)) = some_partition(engine, rng) else { return "nothing" };
    match choice {
        0..24 => match members.copy(&partition, to).await {
            Ok(_bytes) => "copy",
            Err(_) => "copy refused",
        },
        24..40 => match members.drop_replica(&partition, from).await {
            Ok(()) => "drop",
            Err(_) => "drop refused",
        },
        40..52 => {
            if from == to || members.copy(&partition, to).await.is_err() {
                return "move refused";
            }
            match members.drop_replica(&partition, from).await {
                Ok(()) => "move",
                Err(_) => "move refused",
            }
        }
        52..59 => split(engine, &partition).await,
        59..66 => merge(engine, &partition).await,
        66..76 => {
            for (expression, partition) in engine.placement().outputs.keys() {
                let _done_or_gone = members.precompute(*expression, partition).await;
            }
            "precompute all"
        }
        76..86 => match members.drop_outputs(None, &partition).await {
            Ok(_count) => "drop outputs",
            Err(_) => "drop outputs refused",
        },
        86..90 => {
            engine.control_loop().kill(Role::ALL[rng.random_range(0..Role::ALL.len())]);
            "kill an actor of the loop"
        }
        _ => {
            engine.tick().await;
            "tick"
        }
    }
}

/// Partitions of one table; beyond it none is split any more.
const PARTITIONS_MAX: usize = 12;

/// Splits a partition in the middle of its rows, or of its hashes if it has none.
async fn split(engine: &Engine, partition: &PartitionId) -> &'static str {
    let view = engine.placement();
    let of_table = view.partitions.keys().filter(|id| id.table == partition.table).count();
    if of_table >= PARTITIONS_MAX {
        return "split refused";
    }
    match engine.members().split(partition, None).await {
        Ok(_parts) => "split",
        Err(_) => "split refused",
    }
}

/// Merges a partition with the next one in the order of keys.
async fn merge(engine: &Engine, partition: &PartitionId) -> &'static str {
    let Some(store) = engine.members().store(&partition.table) else { return "merge refused" };
    let snapshot = store.snapshot();
    let mut from_here = snapshot.layout.ordinals().iter().copied();
    let pair = (from_here.find(|ordinal| *ordinal == partition.ordinal), from_here.next());
    let (Some(one), Some(other)) = pair else { return "merge refused" };
    match engine.members().merge(&partition.table, (one, other)).await {
        Ok(_whole) => "merge",
        Err(_) => "merge refused",
    }
}

/// A partition, a node that holds it, and any node.
fn some_partition(engine: &Engine, rng: &mut StdRng) -> Option<(PartitionId, NodeId, NodeId)> {
    let view = engine.placement();
    let partitions: Vec<_> = view.partitions.iter().collect();
    let (partition, state) = partitions.choose(rng)?;
    let holders: Vec<NodeId> = state.holders.iter().copied().collect();
    let nodes: Vec<NodeId> = view.nodes.keys().copied().collect();
    Some(((*partition).clone(), *holders.choose(rng)?, *nodes.choose(rng)?))
}
