//! A node is lost while a partition is copied to it or from it, and questions go on: none fails, no answer is
//! wrong, and every partition has a node again.
//!
//! The nodes are in this process and are taken off the list at once, as one that is found dead is; nodes that
//! are killed are in the tests of the engine.

use std::sync::Arc;

use anyhow::Result;
use foreshard_policy::ids::{NodeId, PartitionId};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use super::expected::Expected;
use super::town::{CITIES, Town};
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};

const NODES: u32 = 3;

/// Losses, and questions during each.
const LOSSES: usize = 60;
const LOSSES_QUICK: usize = 3;
const ASKED: i64 = 12;

pub(super) async fn play(options: &Options) -> Result<Found> {
    let losses = if options.quick { LOSSES_QUICK } else { LOSSES };
    let settings = [
        ("nodes", NODES.to_string()),
        ("loop.mode", "reactive".to_owned()),
        ("loop.allocate.nodes-min", "1".to_owned()),
        ("loop.allocate.nodes-max", "16".to_owned()),
    ];
    let town = Arc::new(Town::start(20, &settings).await?);
    let mut rng = StdRng::seed_from_u64(options.seed);
    let (mut failed, mut wrong, mut homeless) = (0_u64, 0, 0_u64);
    for loss in 0..losses {
        let mut asked = JoinSet::new();
        for question in 0..ASKED {
            let town = Arc::clone(&town);
            let (city, more) = (question % CITIES, loss as i64);
            asked.spawn(async move { town.ask(Some(city), more, 0).await });
        }
        lose_one(&town, &mut rng).await?;
        while let Some(answered) = asked.join_next().await {
            match answered? {
                Ok(differ) => wrong += differ,
                Err(error) => {
                    eprintln!("loss {loss}: {error:#}");
                    failed += 1;
                }
            }
        }
        let placement = town.engine.placement();
        let is_lost = |partition: &PartitionId| placement.partitions[partition].holders.is_empty();
        homeless +=
            placement.partitions.keys().filter(|partition| is_lost(partition)).count() as u64;
    }
    let row = Row::default()
        .with("story", "lost node")
        .with("arm", "reactive")
        .with("found", format!("{losses} losses, {} questions", losses as i64 * ASKED))
        .with("value", failed as f64);
    let steps = town.engine.decisions().len() as f64;
    let (expected, plan) = Expected::of("lost node")
        .with("anything waits for a plan to be there again", steps, Bound::Exactly(0.0))
        .told("lost_node_plan_missed");
    let none = |name: &str, count: u64, unit: &'static str| {
        Figure::bounded(name, count as f64, unit, Bound::Exactly(0.0))
    };
    let figures = vec![
        plan,
        none("lost_node_failed", failed, "questions"),
        none("lost_node_wrong", wrong, "answers"),
        none("lost_node_homeless", homeless, "partitions"),
    ];
    Ok((std::iter::once(row).chain(expected).collect(), figures))
}

/// Copies a partition, loses one of the two nodes meanwhile, and starts another one.
async fn lose_one(town: &Arc<Town>, rng: &mut StdRng) -> Result<()> {
    let members = Arc::clone(town.engine.members());
    let view = town.engine.placement();
    let nodes: Vec<NodeId> = view.nodes.keys().copied().collect();
    let partitions: Vec<&PartitionId> = view.partitions.keys().collect();
    let (Some(partition), Some(to)) = (partitions.choose(rng), nodes.choose(rng)) else {
        anyhow::bail!("there is no partition or no node");
    };
    let from = view.partitions[*partition].holders.first().copied().unwrap_or(*to);
    let lost = if rng.random_bool(0.5) { from } else { *to };
    let (partition, to, copying) = ((*partition).clone(), *to, Arc::clone(&members));
    let mut copies = JoinSet::new();
    copies.spawn(async move { copying.copy(&partition, to).await });
    for _ in 0..rng.random_range(0..4) {
        tokio::task::yield_now().await;
    }
    members.forget(lost).await;
    // Whether the copy came in time is its own affair.
    while let Some(copied) = copies.join_next().await {
        drop(copied?);
    }
    members.add_local(members.next_id()).await?;
    Ok(())
}
