//! `PartitionScanExec`: the leaf that reads segments from the replicas of their partitions.
//!
//! It can filter and compute function expressions itself, using stored outputs where there are any;
//! [`crate::query::push_functions`] puts that work into it. A leaf without function work hands the
//! batches of its segments on as they are.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{ColumnStatistics, Result, Statistics, internal_err};
use datafusion::config::ConfigOptions;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    Boundedness, EmissionType, SchedulingType, apply_expression_roots,
};
use datafusion::physical_plan::filter_pushdown::{
    ChildPushdownResult, FilterPushdownPhase, FilterPushdownPropagation,
};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, StatisticsArgs,
};
use foreshard_actors::layout::Layout;
use foreshard_actors::segment::Segment;
use foreshard_policy::ids::NodeId;

use crate::query::context::QueryContext;
use crate::query::dynamic;
use crate::query::functions::{compose, contains_storable};
use crate::query::partial::Tap;
use crate::query::stream;

/// One segment, and the node it is to be read on.
#[derive(Clone, Debug)]
pub struct ScanSegment {
    /// The segment.
    pub segment: Arc<Segment>,
    /// The node whose replica was chosen.
    pub node: NodeId,
    /// Number of the segment within the scan, on all nodes together.
    pub number: u32,
}

/// What is scanned.
#[derive(Clone, Debug)]
pub struct ScanTable {
    /// Name of the table.
    pub name: Arc<str>,
    /// All columns of the table.
    pub schema: SchemaRef,
    /// Version of the snapshot that is read.
    pub version: u64,
    /// Statistics of the snapshot, one entry per column; `None` on a worker.
    pub statistics: Option<Arc<Statistics>>,
    /// Where its rows are; `None` on a worker.
    pub placed: Option<Placed>,
}

/// Where the rows of a scanned table are.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Which partition holds which keys.
    pub layout: Arc<Layout>,
    /// The query that scans it, with the nodes of its placement.
    pub query: Arc<QueryContext>,
}

/// Reads segments, filters rows and computes output columns.
#[derive(Clone, Debug)]
pub struct PartitionScanExec {
    /// The table.
    pub table: Arc<ScanTable>,
    /// Segments by output partition.
    pub groups: Vec<Vec<ScanSegment>>,
    /// Predicates over the table's columns; a row passes if all are true.
    pub filters: Vec<Arc<dyn PhysicalExpr>>,
    /// Output columns over the table's columns.
    pub outputs: Vec<ProjectionExpr>,
    /// Most rows of each output partition.
    pub fetch: Option<usize>,
    /// Filters over the table's columns that a node above tightens while the query runs. It drops the rows
    /// that they are not true of in any case.
    pub(crate) dynamic: Vec<Arc<dyn PhysicalExpr>>,
    /// Filters that may become dynamic ones: [`dynamic::settle`] decides.
    pub(crate) offered: Vec<Arc<dyn PhysicalExpr>>,
    /// Whether output partition `i` has all rows of some ranges of the keys, of one node: then it stays number
    /// `i` on that node.
    pub(crate) is_colocated: bool,
    /// Who else wants to know of the calls that are made.
    pub(crate) tap: Option<Tap>,
    pub(crate) metrics: ExecutionPlanMetricsSet,
    properties: Arc<PlanProperties>,
}

impl PartitionScanExec {
    /// A leaf with the given work.
    ///
    /// # Errors
    /// If an output expression does not fit the table.
    pub fn try_new(
        table: Arc<ScanTable>,
        groups: Vec<Vec<ScanSegment>>,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        outputs: Vec<ProjectionExpr>,
        fetch: Option<usize>,
    ) -> Result<Self> {
        let fields: Vec<Field> = outputs
            .iter()
            .map(|output| {
                let field = output.expr.return_field(&table.schema)?;
                Ok(field.as_ref().clone().with_name(&output.alias))
            })
            .collect::<Result<_>>()?;
        let schema = Arc::new(Schema::new_with_metadata(fields, table.schema.metadata().clone()));
        // Hash partitioning is declared by `colocated` only: the other side of a join might be hashed by
        // DataFusion, and rows would be lost without an error.
        let properties = PlanProperties::new(
            equivalences(schema, &outputs)?,
            Partitioning::UnknownPartitioning(groups.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        let metrics = ExecutionPlanMetricsSet::new();
        let properties = Arc::new(properties);
        let (dynamic, offered, is_colocated, tap) = (vec![], vec![], false, None);
        Ok(Self {
            table,
            groups,
            filters,
            outputs,
            fetch,
            dynamic,
            offered,
            is_colocated,
            tap,
            metrics,
            properties,
        })
    }

    /// The same leaf over other segments.
    ///
    /// # Errors
    /// As [`try_new`](Self::try_new).
    pub fn with_groups(&self, groups: Vec<Vec<ScanSegment>>) -> Result<Self> {
        let (filters, outputs) = (self.filters.clone(), self.outputs.clone());
        let new = Self::try_new(Arc::clone(&self.table), groups, filters, outputs, self.fetch)?;
        Ok(new.with_dynamic_of(self))
    }

    /// The same leaf over groups of whole ranges of keys that are joined where they are. It declares that rows in
    /// which the outputs `keys` are equal are in one group, for a join that asks for it: only for one whose
    /// other side has the same ranges in the same groups.
    ///
    /// # Errors
    /// As [`try_new`](Self::try_new).
    pub(crate) fn colocated(&self, groups: Vec<Vec<ScanSegment>>, keys: &[usize]) -> Result<Self> {
        let key = |at: &usize| -> Arc<dyn PhysicalExpr> {
            let name = self.outputs.get(*at).map_or("", |output| &output.alias);
            Arc::new(Column::new(name, *at))
        };
        let by_key = Partitioning::Hash(keys.iter().map(key).collect(), groups.len());
        let new = self.with_groups(groups)?;
        let properties = new.properties.as_ref().clone().with_partitioning(by_key);
        Ok(Self { is_colocated: true, properties: Arc::new(properties), ..new })
    }

    /// The same leaf over those of its groups of which `is_kept` says so; the others are empty.
    ///
    /// # Errors
    /// As [`try_new`](Self::try_new).
    pub(crate) fn keeping(&self, is_kept: impl Fn(&[ScanSegment]) -> bool) -> Result<Self> {
        let kept = |group: &Vec<ScanSegment>| if is_kept(group) { group.clone() } else { vec![] };
        let new = self.with_groups(self.groups.iter().map(kept).collect())?;
        let (is_colocated, properties) = (self.is_colocated, Arc::clone(&self.properties));
        Ok(Self { is_colocated, properties, ..new })
    }

    /// The same leaf, counting for another one.
    pub(crate) fn sharing_metrics_of(mut self, other: &Self) -> Self {
        self.metrics = other.metrics.clone();
        self
    }

    /// The same leaf with other output columns.
    ///
    /// # Errors
    /// As [`try_new`](Self::try_new).
    pub fn with_outputs(&self, outputs: Vec<ProjectionExpr>) -> Result<Self> {
        let (groups, filters) = (self.groups.clone(), self.filters.clone());
        let new = Self::try_new(Arc::clone(&self.table), groups, filters, outputs, self.fetch)?;
        Ok(new.with_dynamic_of(self))
    }

    /// The same leaf with more predicates, given over its *output* columns.
    ///
    /// # Errors
    /// As [`try_new`](Self::try_new), or if the leaf has a fetch: filtering after it is not the same.
    pub fn with_filters_on_outputs(&self, more: &[Arc<dyn PhysicalExpr>]) -> Result<Self> {
        if self.fetch.is_some() {
            return internal_err!("a scan with fetch takes no filter");
        }
        let mut filters = self.filters.clone();
        for filter in more {
            filters.push(compose(filter, &self.outputs)?);
        }
        // Cheap ones first, so that calls see the rows that are left.
        let (dear, cheap): (Vec<_>, Vec<_>) = filters.into_iter().partition(contains_storable);
        let filters = [cheap, dear].concat();
        let (groups, outputs) = (self.groups.clone(), self.outputs.clone());
        let new = Self::try_new(Arc::clone(&self.table), groups, filters, outputs, None)?;
        Ok(new.with_dynamic_of(self))
    }

    /// This leaf with the dynamic filters of another one over the same table.
    fn with_dynamic_of(self, other: &Self) -> Self {
        Self { dynamic: other.dynamic.clone(), offered: other.offered.clone(), ..self }
    }

    /// The same leaf without what nodes above tell it while the query runs.
    pub(crate) fn without_dynamic(&self) -> Self {
        Self { dynamic: vec![], offered: vec![], ..self.clone() }
    }

    /// The same leaf without the dynamic filters of one node above.
    pub(crate) fn without_dynamic_of(mut self, node: &dyn ExecutionPlan) -> Self {
        let made = node.dynamic_expressions_produced();
        let made: Vec<_> = made.iter().filter_map(|filter| filter.expression_id()).collect();
        let is_other = |filter: &Arc<dyn PhysicalExpr>| {
            filter.expression_id().is_none_or(|id| !made.contains(&id))
        };
        self.dynamic.retain(is_other);
        self
    }

    /// The same leaf with those of the filters offered to it that `is_used` names as dynamic ones.
    pub(crate) fn using_offered(&self, is_used: impl Fn(&Arc<dyn PhysicalExpr>) -> bool) -> Self {
        let offered = self.offered.iter().filter(|filter| is_used(filter));
        let dynamic = self.dynamic.iter().chain(offered).cloned().collect();
        Self { dynamic, offered: vec![], ..self.clone() }
    }

    /// The same leaf with more filters on offer; `None` if it can use none of `filters`, which are given
    /// over its *output* columns.
    fn with_offered<'a>(
        &self,
        filters: impl Iterator<Item = &'a Arc<dyn PhysicalExpr>>,
    ) -> Result<Option<Self>> {
        if self.fetch.is_some() {
            return Ok(None);
        }
        let mut offered = self.offered.clone();
        for filter in filters {
            let filter = dynamic::on_table(filter, &self.outputs, &self.table.schema)?;
            offered.extend(filter.filter(|filter| !offered.contains(filter)));
        }
        let has_more = offered.len() > self.offered.len();
        Ok(has_more.then(|| Self { offered, ..self.clone() }))
    }

    /// Rows in all segments.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.groups.iter().flatten().map(|scan| scan.segment.rows).sum()
    }

    /// Whether the leaf computes functions.
    #[must_use]
    pub fn has_function_work(&self) -> bool {
        let outputs = self.outputs.iter().map(|output| &output.expr);
        self.filters.iter().chain(outputs).any(contains_storable)
    }
}

/// Two outputs of the same expression are equal: an order by one of them is one by the other.
fn equivalences(schema: SchemaRef, outputs: &[ProjectionExpr]) -> Result<EquivalenceProperties> {
    let mut equivalences = EquivalenceProperties::new(schema);
    let mut first: HashMap<&Arc<dyn PhysicalExpr>, Column> = HashMap::new();
    for (position, output) in outputs.iter().enumerate() {
        let column = Column::new(&output.alias, position);
        match first.get(&output.expr) {
            Some(same) => {
                equivalences.add_equal_conditions(Arc::new(same.clone()), Arc::new(column))?;
            }
            None => drop(first.insert(&output.expr, column)),
        }
    }
    Ok(equivalences)
}

impl DisplayAs for PartitionScanExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let segments: usize = self.groups.iter().map(Vec::len).sum();
        let name = &self.table.name;
        write!(f, "PartitionScanExec: table={name}, segments={segments}, rows={}", self.rows())?;
        let mut nodes: Vec<NodeId> = self.groups.iter().flatten().map(|scan| scan.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        write!(f, ", nodes=[{}], output=[", nodes.join(", "))?;
        for (position, output) in self.outputs.iter().enumerate() {
            let comma = if position == 0 { "" } else { ", " };
            match output.expr.downcast_ref::<Column>() {
                Some(column) if column.name() == output.alias => {
                    write!(f, "{comma}{}", column.name())?
                }
                _ => write!(f, "{comma}{} as {}", output.expr, output.alias)?,
            }
        }
        write!(f, "]")?;
        if !self.filters.is_empty() {
            let filters: Vec<String> = self.filters.iter().map(ToString::to_string).collect();
            write!(f, ", filters=[{}]", filters.join("; "))?;
        }
        if !self.dynamic.is_empty() {
            let dynamic: Vec<String> = self.dynamic.iter().map(ToString::to_string).collect();
            write!(f, ", dynamic=[{}]", dynamic.join("; "))?;
        }
        if self.is_colocated {
            write!(f, ", co-located groups={}", self.groups.len())?;
        }
        if let Some(fetch) = self.fetch {
            write!(f, ", fetch={fetch}")?;
        }
        Ok(())
    }
}

impl ExecutionPlan for PartitionScanExec {
    fn name(&self) -> &str {
        "PartitionScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let outputs = self.outputs.iter().map(|output| &output.expr);
        apply_expression_roots(self.filters.iter().chain(outputs).chain(&self.dynamic), f)
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        stream::open(self, partition, &context)
    }

    fn statistics_from_inputs(
        &self,
        _inputs: &[Arc<Statistics>],
        args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        let rows: u64 = match args.partition() {
            Some(partition) => self.groups[partition].iter().map(|scan| scan.segment.rows).sum(),
            None => self.rows(),
        };
        let rows = usize::try_from(rows).unwrap_or(usize::MAX);
        let is_exact = self.filters.is_empty() && self.fetch.is_none() && self.dynamic.is_empty();
        let mut statistics = Statistics::new_unknown(&self.schema());
        statistics.num_rows = match (is_exact, self.filters.is_empty()) {
            (true, _) => Precision::Exact(rows),
            (false, true) => Precision::Inexact(rows.min(self.fetch.unwrap_or(rows))),
            // A fifth is what DataFusion assumes of a filter that it knows nothing of.
            (false, false) => Precision::Inexact(rows / 5),
        };
        if let (Some(table), None) = (&self.table.statistics, args.partition()) {
            let of_column = |output: &ProjectionExpr| match output.expr.downcast_ref::<Column>() {
                Some(column) if is_exact => table.column_statistics[column.index()].clone(),
                Some(column) => table.column_statistics[column.index()].clone().to_inexact(),
                None => ColumnStatistics::new_unknown(),
            };
            statistics.column_statistics = self.outputs.iter().map(of_column).collect();
            if is_exact {
                statistics.calculate_total_byte_size(&self.schema());
            }
        }
        Ok(Arc::new(statistics))
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        // The rows that a limit counts must not depend on what is above it.
        let new = if limit.is_some() { self.without_dynamic() } else { self.clone() };
        Some(Arc::new(Self { fetch: limit, ..new }))
    }

    fn fetch(&self) -> Option<usize> {
        self.fetch
    }

    fn try_swapping_with_projection(
        &self,
        projection: &ProjectionExec,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        // Columns only: function calls come in through the rule, which knows what lies between.
        if !projection.expr().iter().all(|projected| projected.expr.is::<Column>()) {
            return Ok(None);
        }
        let outputs = projection
            .expr()
            .iter()
            .map(|projected| {
                let expr = compose(&projected.expr, &self.outputs)?;
                Ok(ProjectionExpr { expr, alias: projected.alias.clone() })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Some(Arc::new(self.with_outputs(outputs)?)))
    }

    fn handle_child_pushdown_result(
        &self,
        phase: FilterPushdownPhase,
        result: ChildPushdownResult,
        _config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        let filters = result.parent_filters.iter().map(|parent| &parent.filter);
        let new = match phase {
            FilterPushdownPhase::Pre => None,
            FilterPushdownPhase::Post => self.with_offered(filters)?,
        };
        // Filters stay above as well.
        let stays = FilterPushdownPropagation::if_all(result);
        Ok(match new {
            Some(new) => stays.with_updated_node(Arc::new(new)),
            None => stays,
        })
    }
}
