//! What would be planned if something were otherwise: the plans of today on a changed picture. Nothing is
//! carried out, and nothing of the picture changes.

use std::sync::Arc;

use crate::allocate::{self, AllocateState};
use crate::cluster::{ClusterView, NodeView};
use crate::config::{AllocateConfig, ConfigError, LoopConfig, Mode, PrecomputeConfig};
use crate::decision::By;
use crate::forecast::Forecast;
use crate::forecast::ensemble::invert;
use crate::ids::{NodeId, Tick};
use crate::reshape::{self, PlanState, Planned};

/// Least and most nodes that can be supposed.
const NODES: (f64, f64) = (1.0, 1e5);

/// Least and most that coming calls can be multiplied with.
const FACTOR: (f64, f64) = (0.001, 1_000.0);

/// What is supposed to be otherwise; what is none stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WhatIf {
    /// Nodes that stay. Fewer than there are: the newest are draining. More: the others are new and empty.
    pub nodes: Option<u32>,
    /// Bytes that each node may hold.
    pub memory_bytes: Option<u64>,
    /// Share of a tick that background compute may use on each node, from accounts that are even.
    pub budget_share: Option<f64>,
    /// Factor on the calls of all coming ticks, as if it were announced.
    pub factor: Option<f64>,
    /// Only calls of this function are multiplied.
    pub function: Option<Arc<str>>,
}

/// What plans are made from.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    /// The cluster.
    pub view: &'a ClusterView,
    /// What is expected, not inverted.
    pub forecast: Option<&'a Forecast>,
    /// What the manager knows besides.
    pub reshape: &'a PlanState,
    /// What the allocator remembers.
    pub allocate: &'a AllocateState,
    /// Settings.
    pub config: &'a LoopConfig,
    /// The last tick that is known.
    pub now: Tick,
}

impl WhatIf {
    /// The steps that would be planned next: those on partitions and outputs, then those on nodes, each with
    /// who would have it carried out.
    ///
    /// # Errors
    /// [`ConfigError`] if what is supposed is out of bounds.
    pub fn steps(&self, picture: Picture<'_>) -> Result<Vec<(By, Planned)>, ConfigError> {
        let config = self.config(picture.config)?;
        let view = self.view(picture.view, &config)?;
        let forecast = picture.forecast.map(|forecast| self.forecast(forecast, &config));
        let forecast = forecast.transpose()?;
        let mut state = picture.reshape.clone();
        if self.budget_share.is_some() {
            state.background_ns.clear();
        }
        let reshaped = reshape::plan(&view, forecast.as_ref(), &state, &config, picture.now);
        let nodes =
            allocate::plan(&view, forecast.as_ref(), picture.allocate, &config, picture.now);
        let by = |by: By, steps: Vec<Planned>| steps.into_iter().map(move |step| (by, step));
        let steps = by(By::Loop, reshaped.steps)
            .chain(by(By::Suggestion, reshaped.suggested))
            .chain(by(By::Limit, reshaped.waiting))
            .chain(by(By::Holdback, reshaped.held_back))
            .chain(by(By::Loop, nodes.steps))
            .chain(by(By::Suggestion, nodes.suggested))
            .chain(by(By::Limit, nodes.waiting));
        Ok(steps.collect())
    }

    fn config(&self, config: &LoopConfig) -> Result<LoopConfig, ConfigError> {
        let mut config = config.clone();
        if let Some(bytes) = self.memory_bytes {
            let allocate = AllocateConfig::clone(config.allocate()).with_memory_bytes(bytes)?;
            config = config.with_allocate(allocate)?;
        }
        if let Some(share) = self.budget_share {
            let precompute =
                PrecomputeConfig::clone(config.precompute()).with_budget_share(share)?;
            config = config.with_precompute(precompute)?;
        }
        Ok(config)
    }

    fn view(&self, view: &ClusterView, config: &LoopConfig) -> Result<ClusterView, ConfigError> {
        let mut view = view.clone();
        if let Some(nodes) = self.nodes {
            within("nodes", f64::from(nodes), NODES)?;
            let staying = view.nodes.iter().filter(|(_, node)| !node.draining);
            let staying: Vec<NodeId> = staying.map(|(id, _)| *id).collect();
            for id in staying.iter().skip(nodes as usize) {
                view.nodes.entry(*id).and_modify(|node| node.draining = true);
            }
            let next = view.nodes.keys().next_back().map_or(0, |last| last.0.saturating_add(1));
            let more = nodes.saturating_sub(staying.len() as u32);
            let node = NodeView {
                memory_bytes_max: config.allocate().memory_bytes(),
                cpu_permits: config.allocate().cpu_permits(),
                ..NodeView::default()
            };
            view.nodes.extend((next..next + more).map(|id| (NodeId(id), node.clone())));
        }
        if let Some(bytes) = self.memory_bytes {
            view.nodes.values_mut().for_each(|node| node.memory_bytes_max = bytes);
        }
        Ok(view)
    }

    fn forecast(&self, forecast: &Forecast, config: &LoopConfig) -> Result<Forecast, ConfigError> {
        let mut forecast = forecast.clone();
        if let Some(factor) = self.factor {
            within("factor", factor, FACTOR)?;
            let all = self.function.is_none();
            let is_meant = |name: &Arc<str>| all || self.function.as_ref() == Some(name);
            for series in &mut forecast.series {
                if is_meant(&series.key.function) {
                    series.calls.iter_mut().for_each(|calls| *calls = calls.times(factor));
                    series.calls_season *= factor;
                    series.announced = true;
                }
            }
        }
        Ok(if config.mode() == Mode::Inverted { invert(&forecast) } else { forecast })
    }
}

fn within(key: &str, value: f64, (low, high): (f64, f64)) -> Result<(), ConfigError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    let bound = format!("{low} to {high}");
    Err(ConfigError::Bound { key: key.to_owned(), value: value.to_string(), bound })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{OutputView, PartitionView};
    use crate::control::Control;
    use crate::forecast::ensemble::Standing;
    use crate::forecast::{Quantiles, SeriesForecast};
    use crate::ids::{Epoch, ExpressionId, PartitionId, SeriesKey};

    const MIB: u64 = 1 << 20;

    /// Three nodes with a partition each; on the first two, outputs of 1 ms a row are half missing, and each
    /// keeps a CPU busy for 300 ms a second.
    struct World {
        view: ClusterView,
        forecast: Forecast,
        config: LoopConfig,
    }

    impl World {
        fn new() -> Self {
            let node = NodeView {
                memory_bytes_max: 100 * MIB,
                memory_bytes: 50 * MIB,
                cpu_permits: 2,
                ..NodeView::default()
            };
            let mut view = ClusterView {
                epoch: Epoch(1),
                nodes: (0..3).map(|id| (NodeId(id), node.clone())).collect(),
                ..ClusterView::default()
            };
            let mut forecast = Forecast { trusted: true, tick_ms: 1_000, ..Forecast::default() };
            for (ordinal, function) in [(0, "f"), (1, "g"), (2, "h")] {
                let partition = PartitionId::new("t", ordinal);
                let (function, expression) = (Arc::from(function), ExpressionId(ordinal.into()));
                let holders = [NodeId(ordinal)].into();
                let size = PartitionView { holders, rows: 100, bytes: MIB };
                view.partitions.insert(partition.clone(), size);
                let calls = if ordinal < 2 { 3.0 } else { 0.0 };
                let output = OutputView {
                    function: Arc::clone(&function),
                    is_state: false,
                    rows_stored: 50,
                    rows_missing: 50,
                    bytes: 30 * MIB,
                    pinned: false,
                };
                view.outputs.insert((expression, partition.clone()), output);
                forecast.series.push(SeriesForecast {
                    key: SeriesKey { function, expression, partition },
                    calls: vec![Quantiles::exactly(calls); 12],
                    ns_per_call: 1e8,
                    ns_per_row: 1e6,
                    bytes_per_row: 8.0,
                    weights: Vec::new(),
                    calls_now: calls,
                    calls_season: calls * 12.0,
                    standing: Standing::New,
                    announced: false,
                });
            }
            Self { view, forecast, config: LoopConfig::default() }
        }

        fn steps(&self, what_if: &WhatIf) -> Result<Vec<(By, Planned)>, ConfigError> {
            what_if.steps(Picture {
                view: &self.view,
                forecast: Some(&self.forecast),
                reshape: &PlanState::default(),
                allocate: &AllocateState::default(),
                config: &self.config,
                now: Tick(100),
            })
        }

        fn text(&self, what_if: &WhatIf) -> Vec<String> {
            let steps = self.steps(what_if).unwrap();
            steps.iter().map(|(_, planned)| planned.step.to_string()).collect()
        }
    }

    #[test]
    fn if_nothing_is_supposed_it_is_the_plan_itself() {
        let world = World::new();
        let steps = world.steps(&WhatIf::default()).unwrap();
        let state = PlanState::default();
        let plan =
            reshape::plan(&world.view, Some(&world.forecast), &state, &world.config, Tick(100));
        let planned: Vec<_> = steps.into_iter().map(|(_, planned)| planned).collect();
        assert_eq!(planned, plan.steps);
        assert_eq!(planned.len(), 2);
    }

    #[test]
    fn with_fewer_nodes_what_the_newest_hold_moves_and_with_more_it_spreads() {
        let mut world = World::new();
        let two = world.text(&WhatIf { nodes: Some(2), ..WhatIf::default() });
        assert!(two.contains(&"copy t/2 n2 -> n0".to_owned()), "{two:?}");
        world.config = world.config.with_control(Control::Suggest).unwrap();
        let suggested = world.steps(&WhatIf { nodes: Some(4), ..WhatIf::default() }).unwrap();
        assert!(suggested.iter().all(|(by, _)| *by == By::Suggestion) && !suggested.is_empty());
    }

    #[test]
    fn with_less_memory_what_nobody_uses_is_dropped_and_without_a_budget_nothing_is_computed() {
        let world = World::new();
        let small = world.text(&WhatIf { memory_bytes: Some(40 * MIB), ..WhatIf::default() });
        assert_eq!(small, ["drop output h on t/2"]);
        let idle = world.text(&WhatIf { budget_share: Some(0.0), ..WhatIf::default() });
        assert_eq!(idle, Vec::<String>::new());
    }

    #[test]
    fn more_calls_of_all_functions_or_of_one_ask_for_copies_and_nodes_though_not_trusted() {
        let mut world = World::new();
        world.forecast.trusted = false;
        assert_eq!(world.text(&WhatIf::default()), Vec::<String>::new());
        let copies = |what_if: &WhatIf| {
            let steps = world.text(what_if).into_iter();
            steps.filter(|step| step.starts_with("copy") || step.starts_with("add")).collect()
        };
        let of_g = WhatIf { factor: Some(3.0), function: Some("g".into()), ..WhatIf::default() };
        let copied: Vec<String> = copies(&of_g);
        assert_eq!(copied, ["copy t/1 n1 -> n2"]);
        let of_all = WhatIf { factor: Some(9.0), ..WhatIf::default() };
        let copied: Vec<String> = copies(&of_all);
        assert_eq!(copied.len(), 3, "{copied:?}");
        assert_eq!(copied[2], "add node n3");
    }

    #[test]
    fn what_cannot_be_supposed_is_refused_with_its_bound() {
        let error = |what_if: WhatIf| World::new().steps(&what_if).unwrap_err().to_string();
        let none = WhatIf::default();
        assert_eq!(
            error(WhatIf { nodes: Some(0), ..none.clone() }),
            "nodes is 0; it must be 1 to 100000"
        );
        assert_eq!(
            error(WhatIf { factor: Some(f64::NAN), ..none.clone() }),
            "factor is NaN; it must be 0.001 to 1000"
        );
        assert!(error(WhatIf { memory_bytes: Some(1), ..none.clone() }).contains("memory-bytes"));
        assert!(error(WhatIf { budget_share: Some(2.0), ..none }).contains("budget-share"));
    }
}
