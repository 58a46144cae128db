//! How much background compute each node may still use.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::budgets::Spent;
use crate::config::LoopConfig;
use crate::ids::NodeId;

/// Background nanoseconds per node: refilled each tick, charged by steps.
///
/// A step may start while a node's account is above zero and may overdraw it, so that a step longer
/// than one tick's share can run at all; nothing more starts until the debt is paid, so over time
/// the share holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BackgroundBudget {
    free_ns: BTreeMap<NodeId, i64>,
    spent: Spent,
}

impl BackgroundBudget {
    /// Adds one tick's share to every live node, up to the share of `precompute.lead-ticks` ticks;
    /// forgets nodes that are gone.
    pub fn refill(&mut self, nodes: impl IntoIterator<Item = NodeId>, config: &LoopConfig) {
        let share = config.precompute().budget_share() * config.tick_ns();
        let most = share * config.precompute().lead_ticks() as f64;
        self.free_ns = nodes
            .into_iter()
            .map(|node| {
                let held = self.free_ns.get(&node).copied().unwrap_or(0);
                (node, (held.saturating_add(share as i64)).min(most as i64))
            })
            .collect();
        // What was spent counts for about as many ticks as what is not spent can be saved up.
        let keep = 1.0 - 1.0 / config.precompute().lead_ticks() as f64;
        self.spent.retain(|node, _| self.free_ns.contains_key(node));
        for of_node in self.spent.values_mut() {
            of_node.values_mut().for_each(|spent| *spent *= keep);
            of_node.retain(|_, spent| *spent >= 1.0);
        }
    }

    /// Takes `ns` from a node for a table; a negative amount gives back what was charged too much.
    pub fn charge(&mut self, node: NodeId, table: &Arc<str>, ns: f64) {
        if let Some(free) = self.free_ns.get_mut(&node) {
            *free = free.saturating_sub(ns as i64);
            let spent = self.spent.entry(node).or_default().entry(Arc::clone(table)).or_default();
            *spent = (*spent + ns).max(0.0);
        }
    }

    /// What was spent of late on each node for each table: all of this tick, less of those before.
    #[must_use]
    pub fn spent(&self) -> &Spent {
        &self.spent
    }

    /// What each node may still use.
    #[must_use]
    pub fn free_ns(&self) -> &BTreeMap<NodeId, i64> {
        &self.free_ns
    }
}
