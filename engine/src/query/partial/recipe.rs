//! Computes states of a fragment when no query asks for them.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use datafusion::common::Result;
use datafusion::execution::TaskContext;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use foreshard_actors::node::NodeState;
use foreshard_actors::partition::{ComputeError, Fragment, PartialOffer, Recipe};
use foreshard_actors::segment::Segment;
use foreshard_udfs::CalledBy;

use crate::query::context::{Ahead, LocalNodes};
use crate::query::late::LateCallExec;
use crate::query::partial::fragment::{
    is_joined, on_its_own, scan_below, with_scan, without_segments,
};
use crate::query::partial::stream::{Collected, collect};
use crate::query::partial::{PartialReuseExec, Tap};
use crate::query::scan::ScanSegment;

/// How a query computes a fragment, for whoever does it again.
pub(super) struct PlanRecipe {
    fragment: Arc<Fragment>,
    /// The query that it is from, until it is stored.
    query: Mutex<Option<(PartialReuseExec, Arc<TaskContext>)>>,
    /// What is kept; `None` if it cannot be computed without a query.
    kept: OnceLock<Option<Kept>>,
    is_too_large: AtomicBool,
}

/// The plan over no segments, with all that it takes to run it.
struct Kept {
    plan: Arc<dyn ExecutionPlan>,
    config: SessionConfig,
    runtime: Arc<RuntimeEnv>,
}

impl fmt::Debug for PlanRecipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PlanRecipe({})", self.fragment.text)
    }
}

impl PlanRecipe {
    /// As `exec` does it in `context`.
    pub(super) fn new(exec: &PartialReuseExec, context: &Arc<TaskContext>) -> Self {
        Self {
            fragment: Arc::clone(&exec.fragment),
            query: Mutex::new(Some((exec.clone(), Arc::clone(context)))),
            kept: OnceLock::new(),
            is_too_large: AtomicBool::new(false),
        }
    }

    fn kept(&self) -> Option<&Kept> {
        let keep = || {
            let query = self.query.lock().unwrap_or_else(PoisonError::into_inner).take();
            let kept = query.and_then(|(exec, context)| Kept::of(&exec, &context).transpose())?;
            kept.inspect_err(|error| tracing::debug!(%error, "fragment has no recipe")).ok()
        };
        self.kept.get_or_init(keep).as_ref()
    }
}

impl Kept {
    /// With the settings of the query and within its share of the memory. `None` if there is more to it than
    /// one table.
    fn of(exec: &PartialReuseExec, context: &TaskContext) -> Result<Option<Self>> {
        let Some(scan) = scan_below(&exec.input) else { return Ok(None) };
        if is_joined(&exec.input) || is_late(&exec.input) {
            return Ok(None);
        }
        // Nothing of the query itself: it would keep rows of removed segments.
        let mut config = SessionConfig::from(context.session_config().options().as_ref().clone());
        config.options_mut().extensions.insert(CalledBy::default());
        let (plan, runtime) = (without_segments(&exec.input, scan)?, context.runtime_env());
        Ok(Some(Self { plan, config, runtime }))
    }

    /// The plan over one segment.
    fn over(
        &self,
        node: &NodeState,
        segment: &Arc<Segment>,
        calls: &Tap,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(scan) = scan_below(&self.plan) else { return Ok(None) };
        let one = ScanSegment { segment: Arc::clone(segment), node: node.id, number: 0 };
        let mut scan = scan.with_groups(vec![vec![one]])?;
        scan.tap = Some(Arc::clone(calls));
        with_scan(&self.plan, &scan).map(Some)
    }
}

/// Whether functions are called further up for rows of the scan.
fn is_late(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<LateCallExec>() || plan.children().into_iter().any(is_late)
}

#[async_trait]
impl Recipe for PlanRecipe {
    fn fits(&self) -> bool {
        !self.is_too_large.load(Ordering::Relaxed) && self.kept().is_some()
    }

    async fn compute(
        &self,
        node: &Arc<NodeState>,
        segment: &Arc<Segment>,
    ) -> Result<Option<PartialOffer>, ComputeError> {
        let calls = Tap::default();
        let Some(kept) = self.kept() else { return Ok(None) };
        let Some(plan) = kept.over(node, segment, &calls)? else { return Ok(None) };
        let nodes = HashMap::from([(node.id, Arc::clone(node))]);
        let nodes = LocalNodes { nodes, own: Arc::clone(node) };
        let config = kept.config.clone().with_extension(Arc::new(nodes));
        let context = TaskContext::new(
            None,
            String::new(),
            config.with_extension(Arc::new(Ahead)),
            HashMap::new(),
            HashMap::new(),
            HashMap::new(),
            HashMap::new(),
            Arc::clone(&kept.runtime),
        );
        let start = node.clock.monotonic_ns();
        let state = collect(on_its_own(&plan).execute(0, Arc::new(context))?, segment).await?;
        let Collected::State(batches) = state else {
            self.is_too_large.store(true, Ordering::Relaxed);
            return Ok(None);
        };
        Ok(Some(PartialOffer {
            segment: segment.id,
            fragment: Arc::clone(&self.fragment),
            batches,
            ns: node.clock.monotonic_ns().saturating_sub(start),
            calls: super::told(&calls, 0),
            recipe: None,
            is_ahead: true,
        }))
    }
}
