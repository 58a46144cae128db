//! What EXPLAIN says of what is stored: a line for each function call and each partial aggregate.
//!
//! ```text
//! stored | sentiment(body@1) of reviews: 8192 of 10000 rows are stored, 4096 of them on disk; spares 82 ms, 18 ms to compute
//!        | avg(price) of reviews by town: 2 of 3 states are stored; spares 4 ms
//! ```

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::config::ConfigOptions;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::explain::ExplainExec;
use foreshard_actors::partition::Held;
use foreshard_policy::ids::PartitionId;

use crate::error::EngineError;
use crate::query::context::LocalNodes;
use crate::query::functions::{all_calls, describe, is_storable};
use crate::query::groups::KeptGroupsExec;
use crate::query::partial::{PartialReuseExec, scan_below};
use crate::query::scan::{PartitionScanExec, ScanSegment};
use crate::session::Session;

/// Type of the plan in the first column of the answer.
const STORED: &str = "stored";

const NS_PER_MS: f64 = 1e6;

/// The query that an EXPLAIN is about.
pub(crate) fn explained(plan: &LogicalPlan) -> Option<LogicalPlan> {
    match plan {
        LogicalPlan::Explain(explain) => Some(explain.plan.as_ref().clone()),
        _ => None,
    }
}

/// The answer of EXPLAIN with one row more, that says what of the `explained` query is stored; the answer
/// as it is if nothing of it could be, or if it has a form of its own.
///
/// # Errors
/// What DataFusion says when a call is described.
pub(crate) async fn with_stored(
    session: &Session,
    state: &SessionState,
    answer: Arc<dyn ExecutionPlan>,
    explained: LogicalPlan,
) -> Result<Arc<dyn ExecutionPlan>, EngineError> {
    let Some(explain) = answer.downcast_ref::<ExplainExec>() else { return Ok(answer) };
    let Some(nodes) = state.config().get_extension::<LocalNodes>() else { return Ok(answer) };
    // What cannot be planned is in the answer already.
    let Ok(plan) = session.physical(state, explained).await else { return Ok(answer) };
    let settings = state.config_options();
    let lines = Looking { nodes: &nodes, settings, lines: vec![] }.look(&plan)?;
    if lines.is_empty() || explain.verbose() {
        return Ok(answer);
    }
    let plans = explain.stringified_plans().iter().filter(|plan| plan.should_display(false));
    let plans = plans.map(|plan| (plan.plan_type.to_string(), plan.plan.to_string()));
    let rows = plans.chain([(STORED.to_owned(), lines.join("\n"))]);
    let (kinds, texts): (Vec<String>, Vec<String>) = rows.unzip();
    let columns = [kinds, texts].map(|texts| Arc::new(StringArray::from(texts)) as ArrayRef);
    let batch = RecordBatch::try_new(explain.schema(), columns.to_vec())?;
    Ok(MemorySourceConfig::try_new_exec(&[vec![batch]], explain.schema(), None)?)
}

/// Walks over a plan.
struct Looking<'a> {
    nodes: &'a LocalNodes,
    settings: &'a Arc<ConfigOptions>,
    lines: Vec<String>,
}

impl Looking<'_> {
    fn look(mut self, plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<String>> {
        plan.apply(|node| {
            let kept = node.downcast_ref::<KeptGroupsExec>();
            self.lines.extend(kept.and_then(KeptGroupsExec::explained));
            if let Some(partial) = node.downcast_ref::<PartialReuseExec>()
                && let Some(scan) = scan_below(&partial.input)
            {
                let rest = self.states(partial, scan);
                self.calls(scan, &rest)?;
                return Ok(TreeNodeRecursion::Jump);
            }
            if let Some(scan) = node.downcast_ref::<PartitionScanExec>() {
                let segments: Vec<&ScanSegment> = scan.groups.iter().flatten().collect();
                self.calls(scan, &segments)?;
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(self.lines)
    }

    /// What `of_held` finds in the replica that a segment is read from; `None` if it lives in another process
    /// or holds nothing of it.
    fn held<T>(
        &self,
        scan: &PartitionScanExec,
        segment: &ScanSegment,
        of_held: impl FnOnce(&Held) -> T,
    ) -> Option<T> {
        let partition = PartitionId::new(Arc::clone(&scan.table.name), segment.segment.partition);
        let view = self.nodes.nodes.get(&segment.node)?.replica(&partition)?.view();
        view.segments.get(&segment.segment.id).map(of_held)
    }

    /// Says how many states of a partial aggregate are stored. Returns the segments of the others.
    fn states<'s>(
        &mut self,
        partial: &PartialReuseExec,
        scan: &'s PartitionScanExec,
    ) -> Vec<&'s ScanSegment> {
        let (mut ns, mut states, mut rest) = (0, 0, vec![]);
        for segment in scan.groups.iter().flatten() {
            states += 1;
            let of_held =
                |held: &Held| held.partials.get(&partial.fragment.id).map(|state| state.ns);
            match self.held(scan, segment, of_held).flatten() {
                Some(spared) => ns += spared,
                None => rest.push(segment),
            }
        }
        let (text, stored) = (&partial.fragment.text, states - rest.len());
        let spares = if stored > 0 { format!("; spares {}", time(ns)) } else { String::new() };
        self.lines.push(format!("{text}: {stored} of {states} states are stored{spares}"));
        rest
    }

    /// Says of each call on `segments` how many of its values are stored.
    fn calls(&mut self, scan: &PartitionScanExec, segments: &[&ScanSegment]) -> Result<()> {
        if segments.is_empty() {
            return Ok(());
        }
        let table = &scan.table.name;
        let outputs = scan.outputs.iter().map(|output| &output.expr);
        for call in all_calls(scan.filters.iter().chain(outputs))? {
            if !is_storable(&call) {
                continue;
            }
            let described = describe(&call, table, self.settings)?;
            let (mut rows, mut stored, mut on_disk, mut elsewhere) = (0, 0, 0, 0);
            for segment in segments {
                rows += segment.segment.rows;
                elsewhere += u64::from(!self.nodes.nodes.contains_key(&segment.node));
                let known = |held: &Held| match held.outputs.get(&described.id) {
                    Some(output) => (output.values.rows_known(), 0),
                    None => held.on_disk(described.id).map_or((0, 0), |file| {
                        let rows = file.rows_known();
                        (rows, rows)
                    }),
                };
                let (known, of_file) = self.held(scan, segment, known).unwrap_or_default();
                stored += known as u64;
                on_disk += of_file as u64;
            }
            let text = &described.text;
            let mut line = format!("{text} of {table}: {stored} of {rows} rows are stored");
            if on_disk > 0 {
                line += &format!(", {on_disk} of them on disk");
            }
            let known = self.nodes.own.expressions.get(described.id);
            if let Some(known) = known.filter(|known| known.is_measured()) {
                let ns = known.ns_per_row();
                let (spares, takes) = (time(ns * stored), time(ns * (rows - stored)));
                line += &format!("; spares {spares}, {takes} to compute");
            }
            if elsewhere > 0 {
                line += &format!("; {elsewhere} segments are read by other processes");
            }
            self.lines.push(line);
        }
        Ok(())
    }
}

fn time(ns: u64) -> String {
    format!("{:.1} ms", ns as f64 / NS_PER_MS)
}
