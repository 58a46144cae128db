//! Tells the distributed planner how many tasks a scan wants, which segments each task reads, and on
//! which node it runs.
//!
//! Task `i` always means node `i` of the query's placement, in every leaf of every stage: two leaves
//! that are joined in one stage must agree, and the planner asks about one leaf at a time.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use datafusion_distributed::{
    DesiredTaskCountEvent, DesiredTaskCountEventResponse, DesiredTaskCountHandler,
    DistributedLeafExec, NetworkBoundaryExt, RouteTasksEvent, RouteTasksEventResponse,
    RouteTasksHandler, ScaleUpLeafNodeEvent, ScaleUpLeafNodeEventResponse, ScaleUpLeafNodeHandler,
    WorkerResolver,
};
use url::Url;

use crate::cluster::Placement;
use crate::query::context::QueryContext;
use crate::query::scan::{PartitionScanExec, ScanSegment};

/// All three handlers; the placement comes with the query.
#[derive(Clone, Copy, Debug, Default)]
pub struct Routing;

/// The nodes of one query's placement.
#[derive(Clone, Debug)]
pub struct PlacementResolver(pub Arc<Placement>);

impl WorkerResolver for PlacementResolver {
    fn get_urls(&self) -> Result<Vec<Url>> {
        Ok(self.0.nodes.iter().map(|node| node.url.clone()).collect())
    }
}

fn placement(config: &SessionConfig) -> Result<Arc<Placement>> {
    match config.get_extension::<QueryContext>() {
        Some(query) => Ok(Arc::clone(&query.placement)),
        None => internal_err!("a scan is planned outside of a query"),
    }
}

/// Position of the task that a segment belongs to.
fn task_of(placement: &Placement, scan: &ScanSegment, tasks: usize) -> usize {
    placement.position(scan.node).unwrap_or(0) % tasks.max(1)
}

#[async_trait]
impl DesiredTaskCountHandler for Routing {
    async fn handle(
        &self,
        event: DesiredTaskCountEvent<'_>,
    ) -> Option<Result<DesiredTaskCountEventResponse>> {
        let scan = event.plan.downcast_ref::<PartitionScanExec>()?;
        let placement = match placement(event.session_config) {
            Ok(placement) => placement,
            Err(error) => return Some(Err(error)),
        };
        let mut nodes: Vec<_> = scan.groups.iter().flatten().map(|scan| scan.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let stays = match nodes.as_slice() {
            [] => true,
            [node] => placement.is_local(*node),
            _ => false,
        };
        let tasks = if stays { 1 } else { placement.nodes.len().max(1) };
        Some(Ok(DesiredTaskCountEventResponse::desired(tasks)))
    }
}

impl ScaleUpLeafNodeHandler for Routing {
    fn handle(&self, event: ScaleUpLeafNodeEvent) -> Option<Result<ScaleUpLeafNodeEventResponse>> {
        let scan = event.plan.downcast_ref::<PartitionScanExec>()?;
        Some(scale_up(event.plan, scan, event.task_count, event.session_config))
    }
}

fn scale_up(
    plan: &Arc<dyn ExecutionPlan>,
    scan: &PartitionScanExec,
    tasks: usize,
    config: &SessionConfig,
) -> Result<ScaleUpLeafNodeEventResponse> {
    let placement = placement(config)?;
    if scan.is_colocated {
        return colocated(plan, scan, tasks, &placement);
    }
    let mut groups_of: Vec<Vec<Vec<ScanSegment>>> = vec![vec![]; tasks];
    for group in &scan.groups {
        let mut pieces: Vec<Vec<ScanSegment>> = vec![vec![]; tasks];
        for segment in group {
            pieces[task_of(&placement, segment, tasks)].push(segment.clone());
        }
        for (task, piece) in pieces.into_iter().enumerate() {
            if !piece.is_empty() {
                groups_of[task].push(piece);
            }
        }
    }
    // Every task must have the same number of partitions; the rest is padded with empty ones.
    let width = groups_of.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let variants = groups_of
        .into_iter()
        .map(|mut groups| {
            groups.resize(width, vec![]);
            Ok(Arc::new(scan.with_groups(groups)?) as Arc<dyn ExecutionPlan>)
        })
        .collect::<Result<Vec<_>>>()?;
    let leaf = DistributedLeafExec::try_new(Arc::clone(plan), variants)?;
    Ok(ScaleUpLeafNodeEventResponse::new(Arc::new(leaf)))
}

/// Each task has all groups, and those of other nodes are empty: group `i` of one side of a join meets group
/// `i` of the other one.
fn colocated(
    plan: &Arc<dyn ExecutionPlan>,
    scan: &PartitionScanExec,
    tasks: usize,
    placement: &Placement,
) -> Result<ScaleUpLeafNodeEventResponse> {
    let variant = |task: usize| -> Result<Arc<dyn ExecutionPlan>> {
        let is_here = |it: &ScanSegment| task_of(placement, it, tasks) == task;
        Ok(Arc::new(scan.keeping(|group| group.first().is_some_and(is_here))?))
    };
    let variants = (0..tasks).map(variant).collect::<Result<Vec<_>>>()?;
    let leaf = DistributedLeafExec::try_new(Arc::clone(plan), variants)?;
    Ok(ScaleUpLeafNodeEventResponse::new(Arc::new(leaf)))
}

impl RouteTasksHandler for Routing {
    fn handle(&self, event: RouteTasksEvent) -> Option<Result<RouteTasksEventResponse>> {
        match route(&event) {
            Ok(None) => None,
            Ok(Some(urls)) => Some(Ok(RouteTasksEventResponse::new(urls))),
            Err(error) => Some(Err(error)),
        }
    }
}

/// One URL per task of a stage with scans in it; `None` if it has none.
fn route(event: &RouteTasksEvent) -> Result<Option<Vec<Url>>> {
    let placement = placement(event.task_ctx.session_config())?;
    let mut rows: Vec<Vec<u64>> = vec![vec![0; placement.nodes.len()]; event.task_count];
    let mut has_scan = false;
    event.plan.apply(|node| {
        if let Some(leaf) = node.downcast_ref::<DistributedLeafExec>() {
            for (task, variant) in leaf.variants().iter().enumerate() {
                let Some(scan) = variant.downcast_ref::<PartitionScanExec>() else { continue };
                has_scan = true;
                for segment in scan.groups.iter().flatten() {
                    let position = placement.position(segment.node);
                    if let (Some(position), Some(rows)) = (position, rows.get_mut(task)) {
                        rows[position] += segment.segment.rows;
                    }
                }
            }
        }
        let is_boundary = node.is_network_boundary();
        Ok(if is_boundary { TreeNodeRecursion::Jump } else { TreeNodeRecursion::Continue })
    })?;
    if !has_scan || placement.nodes.is_empty() {
        return Ok(None);
    }
    let url = |(task, rows): (usize, Vec<u64>)| {
        let most = rows.iter().enumerate().max_by_key(|(_, rows)| **rows);
        let position = match most {
            Some((position, rows)) if *rows > 0 => position,
            _ => task % placement.nodes.len(),
        };
        placement.nodes[position].url.clone()
    };
    Ok(Some(rows.into_iter().enumerate().map(url).collect()))
}
