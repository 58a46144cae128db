//! Plain DataFusion over the rows as the engine holds them, with the engine's own settings.
//!
//! An answer of the engine that differs from plain's may be DataFusion's own: some of its plans answer by
//! where rows lie, how many partitions there are, or how joins are told to be done. It is told from a
//! fault of the engine by asking plain DataFusion alone, over the same rows in partitions and batches as
//! the engine has them, after the same `SET`s, with as little memory.
//!
//! An order is told by asking in two steps: what the query gives without its ORDER BY is made a table, and
//! that one is ordered. DataFusion then cannot take a key for constant that is not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider,
};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::prelude::SessionContext;
use foreshard::Engine;

use crate::exact::oracle::{Answer, Rows, Verdict, answer_of, compare};
use crate::exact::setups::ask_in;

/// Rows of a batch of the engine are not cut while they are read out.
const BATCH_ROWS: usize = 1 << 20;

/// Partitions that the engine works on at once unless it is told otherwise.
const OWN_PARALLEL: usize = 2;

/// Bytes of memory to try with where the engine has little: it takes some for itself.
const MEMORY_BYTES: &[usize] =
    &[3_000_000, 2_000_000, 1_000_000, 600_000, 300_000, 200_000, 100_000];

/// Filters that a join makes for its other side: they belong to one of the two.
const FILTERS_OF_JOINS: &str = "datafusion.optimizer.enable_join_dynamic_filter_pushdown";

/// Whether scalar sub-queries are evaluated beside the plan. The engine makes joins of them, which memory
/// may not suffice for.
const SUBQUERIES: &str = "datafusion.optimizer.enable_physical_uncorrelated_scalar_subquery";

/// How the engine holds its rows, and how its session is set.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Nodes of the engine.
    pub nodes: usize,
    /// Queries of the engine have little memory.
    pub is_short_of_memory: bool,
    /// What was SET in the session of settings of DataFusion that change no result.
    pub settings: BTreeMap<String, String>,
    /// The segments of each table, as batches.
    pub tables: BTreeMap<String, (SchemaRef, Vec<RecordBatch>)>,
}

impl Held {
    /// Reads the tables `names` of `engine`, segment by segment.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn read(
        engine: &Engine,
        names: Vec<&'static str>,
        settings: &BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let session = engine.session();
        ask_in(&session, "SET datafusion.execution.target_partitions = 1").await?;
        let whole = format!("SET datafusion.execution.batch_size = {BATCH_ROWS}");
        ask_in(&session, &whole).await?;
        let mut tables = BTreeMap::new();
        for name in names {
            let rows = ask_in(&session, &format!("SELECT * FROM {name}")).await?;
            tables.insert(name.to_owned(), (rows.schema, rows.batches));
        }
        let nodes = engine.placement().nodes.len();
        Ok(Self { nodes, is_short_of_memory: false, settings: settings.clone(), tables })
    }

    /// Plain DataFusion with the options and functions of `like`, over these rows in so many partitions.
    async fn plain(
        &self,
        like: &SessionContext,
        layout: Layout,
    ) -> Result<SessionContext, DataFusionError> {
        let mut memory = RuntimeEnvBuilder::new();
        if let Some(bytes) = layout.memory_bytes {
            memory = memory.with_memory_limit(bytes, 1.0);
        }
        let mut context = fresh(like, Some(memory.build_arc()?))?;
        if layout.has_other_sides {
            let state = SessionStateBuilder::new_from_existing(context.state());
            let state = state.with_physical_optimizer_rule(Arc::new(OtherSides)).build();
            context = SessionContext::new_with_state(state);
        }
        let own = [
            ("datafusion.execution.target_partitions", layout.parallel.to_string()),
            (SUBQUERIES, layout.memory_bytes.is_none().to_string()),
        ];
        let own = own.iter().map(|(key, value)| (*key, value.as_str()));
        let own = own.chain(layout.has_other_sides.then_some((FILTERS_OF_JOINS, "false")));
        let set = self.settings.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        for (key, value) in set.chain(own) {
            context.sql(&format!("SET {key} = {value}")).await?.collect().await?;
        }
        for (name, (schema, segments)) in &self.tables {
            let rows = MemTable::try_new(Arc::clone(schema), dealt(segments, layout.partitions))?;
            context.register_table(name.as_str(), Arc::new(rows))?;
        }
        Ok(context)
    }

    /// Whether plain DataFusion gives `ours` over these rows, the same table or the same error: then says
    /// in which layout.
    pub async fn excuse(
        &self,
        like: &SessionContext,
        sql: &str,
        ordered: bool,
        ours: &Answer,
    ) -> Option<String> {
        if let Ok(ours) = ours
            && ordered
            && is_in_order(like, sql, ours).await
        {
            return Some("its rows, ordered by a statement of its own".to_owned());
        }
        let other_sides = Layout { has_other_sides: true, ..Layout::of_one() };
        let other_sides = ours.is_err().then_some(other_sides);
        for layout in self.layouts().into_iter().chain(other_sides) {
            let Ok(context) = self.plain(like, layout).await else { continue };
            if is_same(&answer_of(&context, sql).await, ours, ordered) {
                return Some(format!("{layout:?}"));
            }
        }
        None
    }

    /// Layouts that a user could have, the engine's own first.
    fn layouts(&self) -> Vec<Layout> {
        let set = self.settings.get("datafusion.execution.target_partitions");
        let own: usize = set.and_then(|text| text.parse().ok()).unwrap_or(OWN_PARALLEL);
        let memory = if self.is_short_of_memory { MEMORY_BYTES } else { &[] };
        let mut layouts = vec![];
        for memory_bytes in std::iter::once(None).chain(memory.iter().copied().map(Some)) {
            for parallel in BTreeSet::from([own, own * self.nodes, 1]) {
                for partitions in BTreeSet::from([1, 2, 3, own, own * self.nodes, 7]) {
                    layouts.push(Layout { partitions, parallel, memory_bytes, ..Layout::of_one() });
                }
            }
        }
        layouts
    }
}

/// How plain DataFusion is asked.
#[derive(Clone, Copy, Debug)]
struct Layout {
    partitions: usize,
    parallel: usize,
    memory_bytes: Option<usize>,
    /// Hash joins begin with the side that they would read second: where the first one is empty the second
    /// is not read, and whatever cannot be evaluated there is no error. Which is which follows from
    /// statistics, of which the engine has others.
    has_other_sides: bool,
}

impl Layout {
    fn of_one() -> Self {
        Self { partitions: 1, parallel: 1, memory_bytes: None, has_other_sides: false }
    }
}

/// Gives hash joins their sides the other way round.
#[derive(Debug)]
struct OtherSides;

impl PhysicalOptimizerRule for OtherSides {
    fn name(&self) -> &str {
        "other_sides"
    }

    fn schema_check(&self) -> bool {
        true
    }

    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let swapped = plan.transform_up(|node| {
            let join = node.downcast_ref::<HashJoinExec>();
            let join = join.filter(|join| join.join_type().supports_swap() && !join.null_aware);
            Ok(match join {
                Some(join) => Transformed::yes(join.swap_inputs(*join.partition_mode())?),
                None => Transformed::no(node),
            })
        });
        swapped.data()
    }
}

/// A session with the options and functions of `like`, and no tables.
fn fresh(
    like: &SessionContext,
    runtime: Option<Arc<RuntimeEnv>>,
) -> Result<SessionContext, DataFusionError> {
    let mut builder = SessionStateBuilder::new_from_existing(like.state())
        .with_catalog_list(Arc::new(MemoryCatalogProviderList::new()));
    if let Some(runtime) = runtime {
        builder = builder.with_runtime_env(runtime);
    }
    let context = SessionContext::new_with_state(builder.build());
    let options = context.copied_config().options().catalog.clone();
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(&options.default_schema, Arc::new(MemorySchemaProvider::new()))?;
    context.register_catalog(options.default_catalog, Arc::new(catalog));
    Ok(context)
}

/// Whether `ours` is what plain DataFusion gives if it is asked for the rows first, and then to order them;
/// or, without a LIMIT, the same rows in the order asked for. (Which of two zeros stands for a group of
/// both depends on the layout, and where the row goes on the zero.)
async fn is_in_order(like: &SessionContext, sql: &str, ours: &Rows) -> bool {
    let Some((rows, order)) = without_order(sql) else { return false };
    let Ok(rows) = answer_of(like, rows).await else { return false };
    let is_ours = |answer: Answer| is_same(&answer, &Ok(ours.clone()), true);
    if is_ours(ordered_by(like, &rows, order).await) {
        return true;
    }
    !order.contains("LIMIT")
        && is_same(&Ok(rows), &Ok(ours.clone()), false)
        && is_ours(ordered_by(like, ours, order).await)
}

async fn ordered_by(like: &SessionContext, rows: &Rows, order: &str) -> Answer {
    let failed = |error: DataFusionError| error.to_string();
    let context = fresh(like, None).map_err(failed)?;
    let table = MemTable::try_new(Arc::clone(&rows.schema), vec![rows.batches.clone()]);
    context.register_table("answer", Arc::new(table.map_err(failed)?)).map_err(failed)?;
    answer_of(&context, &format!("SELECT * FROM answer{order}")).await
}

/// A query and its own ORDER BY with all that follows.
fn without_order(sql: &str) -> Option<(&str, &str)> {
    let (mut depth, mut is_text, mut found) = (0_u32, false, None);
    for (position, letter) in sql.char_indices() {
        match letter {
            '\'' => is_text = !is_text,
            '(' if !is_text => depth += 1,
            ')' if !is_text => depth = depth.saturating_sub(1),
            ' ' if !is_text && depth == 0 && sql[position..].starts_with(" ORDER BY ") => {
                found = Some(position);
            }
            _ => {}
        }
    }
    found.map(|position| sql.split_at(position))
}

fn is_same(plain: &Answer, ours: &Answer, ordered: bool) -> bool {
    match (plain, ours) {
        (Err(plain), Err(ours)) => is_same_fault(plain, ours),
        _ => compare(plain, ours, ordered) == Ok(Verdict::Same),
    }
}

/// Deals segments out as a scan of the engine does: each to the partition with the fewest rows.
fn dealt(segments: &[RecordBatch], partitions: usize) -> Vec<Vec<RecordBatch>> {
    let mut dealt = vec![(0, vec![]); partitions.max(1)];
    for segment in segments {
        if let Some((rows, batches)) = dealt.iter_mut().min_by_key(|(rows, _)| *rows) {
            *rows += segment.num_rows();
            batches.push(segment.clone());
        }
    }
    dealt.into_iter().map(|(_, batches)| batches).collect()
}

/// Whether two errors say the same, but for what is around it and for numbers of tasks.
fn is_same_fault(plain: &str, ours: &str) -> bool {
    let said = |text: &str| -> String {
        let words: Vec<&str> = text.split_whitespace().collect();
        let text = words.join(" ").to_lowercase();
        text.chars().filter(|letter| !letter.is_ascii_digit()).collect()
    };
    let (plain, ours) = (said(plain), said(ours));
    let ours = ours.split_once(": ").map_or(ours.as_str(), |(_code, text)| text);
    let ours = ours.strip_prefix("a defect of the engine: ").unwrap_or(ours);
    !ours.is_empty() && plain.contains(ours)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Float64Array};

    use super::*;

    #[test]
    fn the_last_order_of_all_is_that_of_the_query() {
        let sql = "SELECT ')' FROM (SELECT 1 ORDER BY 1) ORDER BY 2, 1 LIMIT 9";
        assert_eq!(
            without_order(sql),
            Some(("SELECT ')' FROM (SELECT 1 ORDER BY 1)", " ORDER BY 2, 1 LIMIT 9"))
        );
        assert_eq!(without_order("SELECT max(a) OVER (PARTITION BY b ORDER BY c) FROM t"), None);
    }

    #[test]
    fn faults_are_the_same_if_they_say_the_same() {
        let plain = "Join Error\ncaused by\nExternal error: task 12 panicked";
        assert!(is_same_fault(
            "Arrow error: Invalid argument error: no",
            "FS-RUN-4: invalid argument error: no"
        ));
        assert!(is_same_fault(
            plain,
            "FS-RUN-4: join Error caused by External error: task 9 panicked"
        ));
        assert!(is_same_fault(
            "Internal error: Assertion failed: a",
            "FS-RUN-5: a defect of the engine: assertion failed: a"
        ));
        assert!(!is_same_fault(plain, "FS-RUN-4: not enough memory"));
        assert!(!is_same_fault(plain, "FS-RUN-4: "));
    }

    #[tokio::test]
    async fn what_fails_on_a_side_that_plain_does_not_read_is_excused_if_it_would_fail_there() {
        let like = SessionContext::new();
        let x: ArrayRef = Arc::new(Float64Array::from(vec![1.0, f64::NAN]));
        let batch = RecordBatch::try_from_iter([("x", x)]).unwrap();
        let tables = BTreeMap::from([("t".to_owned(), (batch.schema(), vec![batch]))]);
        let held = Held { nodes: 1, tables, ..Held::default() };
        let decimal = "CAST(x AS DECIMAL(30, 15))";
        let sql = format!("SELECT {decimal} FROM t WHERE x < 0.0 EXCEPT SELECT {decimal} FROM t");
        let layout = held.layouts()[0];
        let answer = answer_of(&held.plain(&like, layout).await.unwrap(), &sql).await;
        assert_eq!(answer.unwrap().batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
        let fault = |text: &str| Err(format!("FS-SQL-15: {text}"));
        let ours = fault("cannot cast to Decimal128(30, 15). Overflowing on NaN");
        let excuse = held.excuse(&like, &sql, false, &ours).await;
        assert!(excuse.unwrap().contains("has_other_sides: true"));
        assert_eq!(held.excuse(&like, &sql, false, &fault("something else")).await, None);
    }
}
