//! The engine: tables, functions, nodes and the loop, shared by all sessions.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use foreshard_actors::layout::deal_out_all;
use foreshard_actors::loop_handle::LoopHandle;
use foreshard_actors::node::StorePolicy;
use foreshard_actors::partitioning::Partitioning;
use foreshard_actors::ports::{Cluster, NodeProvider};
use foreshard_actors::store::{ManagedTable, MemoryTable, ParquetTable, StoreError};
use foreshard_actors::table::{Change, Committed, Operation, TableKind, TableStore};
use foreshard_policy::calls::CallRecord;
use foreshard_policy::cluster::ClusterView;
use foreshard_policy::config::Mode;
use foreshard_policy::decision::DecisionRow;
use foreshard_policy::forecast::Forecast;
use foreshard_udfs::Functions;
use tokio::sync::Semaphore;
use url::Url;

use crate::builder::EngineBuilder;
use crate::catalog::{Catalog, Definition, Definitions, SCHEMA};
use crate::cluster::Members;
use crate::config::Config;
use crate::error::EngineError;
use crate::metrics::Metrics;
use crate::query::context::Queries;
use crate::query::groups::{KeptAnswer, KeptGroups};
use crate::session::Session;

/// How often a change of rows or partitions starts again because another commit was faster.
pub(crate) const ATTEMPTS_MAX: usize = 20;

/// What all sessions of an engine share.
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) functions: Arc<Functions>,
    pub(crate) groups: Arc<KeptGroups>,
    pub(crate) members: Arc<Members>,
    /// Starts and stops nodes for the loop.
    pub(crate) provider: Arc<dyn NodeProvider>,
    pub(crate) queries: Arc<Queries>,
    pub(crate) the_loop: LoopHandle,
    pub(crate) definitions: Definitions,
    pub(crate) metrics: Metrics,
    pub(crate) running: Arc<Semaphore>,
    pub(crate) stopping: AtomicBool,
    pub(crate) planning: crate::query::planning::Template,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

/// A running engine. Cheap to clone; all clones are the same engine.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

impl Engine {
    /// Starts to describe an engine.
    #[must_use]
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    /// The settings it was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// A session for one client, with its own `SET` values.
    #[must_use]
    pub fn session(&self) -> Session {
        Session::new(Arc::clone(&self.inner))
    }

    /// Runs one statement in a session of its own and collects its rows.
    ///
    /// # Errors
    /// [`EngineError`], with a code.
    pub async fn sql(&self, sql: &str) -> Result<Vec<RecordBatch>, EngineError> {
        self.session().sql(sql).await?.collect().await
    }

    /// Makes a table whose rows live in memory, and appends `batches` to it.
    ///
    /// # Errors
    /// [`EngineError::TableExists`], or what the partitioning or the rows do wrong.
    pub async fn create_memory_table(
        &self,
        name: &str,
        schema: SchemaRef,
        partitioning: Partitioning,
        batches: Vec<RecordBatch>,
    ) -> Result<(), EngineError> {
        let table = MemoryTable::create(name, schema, partitioning)?;
        if batches.iter().any(|batch| batch.num_rows() > 0) {
            let added =
                deal_out_all(&table.snapshot().layout, &batches).map_err(StoreError::from)?;
            table
                .commit(Change {
                    operation: Operation::Insert,
                    removed: vec![],
                    added,
                    layout: None,
                    transaction: None,
                })
                .await?;
        }
        self.inner.add_table(Arc::new(table)).await
    }

    /// Makes a durable table: a Delta Lake table at `url`, or in the data folder if `url` is empty.
    ///
    /// # Errors
    /// [`EngineError::TableExists`], or what the store says.
    pub async fn create_managed_table(
        &self,
        name: &str,
        url: &str,
        schema: SchemaRef,
        partitioning: Partitioning,
    ) -> Result<(), EngineError> {
        self.inner.create_managed(name, url, schema, partitioning).await
    }

    /// Opens existing Parquet files as a read-only table: a file, a folder, or an object-store URL.
    ///
    /// # Errors
    /// [`EngineError::TableExists`], or what is wrong with a file.
    pub async fn open_parquet_table(
        &self,
        name: &str,
        url: &str,
        partitions: u32,
    ) -> Result<(), EngineError> {
        self.inner.open_parquet(name, url, partitions).await
    }

    /// Appends rows to a table in one commit and returns how many. Durable when it returns, if the
    /// table is managed.
    ///
    /// # Errors
    /// [`EngineError::UnknownTable`], [`EngineError::ReadOnly`], or what the store says.
    pub async fn append(&self, table: &str, batches: Vec<RecordBatch>) -> Result<u64, EngineError> {
        let store = self.inner.writable(table)?;
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        self.inner.append(&store, batches).await?;
        Ok(rows)
    }

    /// Nodes, partitions, replicas and stored outputs as they are now.
    #[must_use]
    pub fn placement(&self) -> ClusterView {
        self.inner.members.view()
    }

    /// What is expected of every series, as of the last tick.
    #[must_use]
    pub fn forecast(&self) -> Arc<Forecast> {
        self.inner.the_loop.forecast()
    }

    /// What was decided, why, and what came of it.
    #[must_use]
    pub fn decisions(&self) -> Vec<DecisionRow> {
        self.inner.the_loop.decisions()
    }

    /// The newest calls, oldest first.
    #[must_use]
    pub fn calls(&self) -> Vec<CallRecord> {
        self.inner.the_loop.recent_calls()
    }

    /// One whole turn of the loop, for engines that were built with manual ticks: returns when the tick
    /// is counted, forecast and planned, and its steps are done.
    pub async fn tick(&self) {
        if let Err(error) = self.inner.the_loop.tick().await {
            tracing::warn!(code = error.code(), %error, "tick skipped");
        }
        self.inner.the_loop.settled().await;
    }

    /// Changes what the loop may do.
    ///
    /// # Errors
    /// If the other settings do not allow it.
    pub fn set_mode(&self, mode: Mode) -> Result<(), EngineError> {
        self.inner.set_mode(mode)
    }

    /// Answers whose groups are kept, also as `system.groups`.
    #[must_use]
    pub fn kept_groups(&self) -> Vec<KeptAnswer> {
        self.inner.groups.list()
    }

    /// The cluster, to change it by hand: copy, move and drop replicas, precompute, add nodes.
    #[must_use]
    pub fn members(&self) -> &Arc<Members> {
        &self.inner.members
    }

    /// Lets other processes join as nodes at `address` (host:port; port 0 takes any free one).
    ///
    /// # Errors
    /// [`EngineError::PortInUse`] or [`EngineError::Address`].
    pub async fn serve_control(
        &self,
        address: &str,
    ) -> Result<crate::serve::control::ControlServer, EngineError> {
        let listener = crate::serve::listen(address)?;
        crate::serve::control::ControlServer::start(self.clone(), listener).await
    }

    /// The loop, to look into it or to kill one of its actors.
    #[must_use]
    pub fn control_loop(&self) -> &LoopHandle {
        &self.inner.the_loop
    }

    /// The registered functions.
    #[must_use]
    pub fn functions(&self) -> &Arc<Functions> {
        &self.inner.functions
    }

    /// Counters and gauges as Prometheus text.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.inner.metrics_text()
    }

    /// Stops the loop and all nodes. Running queries end with an error.
    ///
    /// # Errors
    /// If the loop does not stop in time.
    pub async fn shutdown(self) -> Result<(), EngineError> {
        self.inner.stopping.store(true, Ordering::Relaxed);
        let stopped = self.inner.the_loop.shutdown().await;
        self.inner.provider.stop().await;
        self.inner.members.stop().await;
        Ok(stopped?)
    }
}

impl Inner {
    /// When nodes store outputs in this mode.
    pub(crate) fn store_policy(config: &Config, mode: Mode) -> StorePolicy {
        let ns_per_row_min = config.loop_config().precompute().min_ns_per_row();
        StorePolicy { enabled: mode.stores_outputs(), ns_per_row_min: ns_per_row_min as u64 }
    }

    pub(crate) fn set_mode(&self, mode: Mode) -> Result<(), EngineError> {
        self.the_loop.set_mode(mode).map_err(crate::config::ConfigError::from)?;
        self.members.set_store_policy(Self::store_policy(&self.config, mode));
        Ok(())
    }

    /// Puts a table into the catalog and its partitions onto nodes.
    pub(crate) async fn add_table(&self, store: Arc<dyn TableStore>) -> Result<(), EngineError> {
        let name = store.table().name.to_string();
        if !self.catalog.add(Arc::clone(&store)) {
            return Err(EngineError::TableExists { name });
        }
        if let Err(error) = self.members.table_created(store.as_ref()).await {
            self.catalog.remove(&name);
            return Err(error.into());
        }
        Ok(())
    }

    pub(crate) async fn create_managed(
        &self,
        name: &str,
        url: &str,
        schema: SchemaRef,
        partitioning: Partitioning,
    ) -> Result<(), EngineError> {
        self.check_free(name)?;
        let url = self.table_url(name, url)?;
        let partitions = partitioning.partitions();
        let table = ManagedTable::create(name, &url, None, schema, partitioning).await?;
        self.add_table(Arc::new(table)).await?;
        self.define(name, TableKind::Managed, &url, partitions)
    }

    pub(crate) async fn open_parquet(
        &self,
        name: &str,
        url: &str,
        partitions: u32,
    ) -> Result<(), EngineError> {
        let table = self.parquet_table(name, url, partitions).await?;
        self.add_parquet(name, table).await
    }

    /// Opens Parquet files without adding the table.
    pub(crate) async fn parquet_table(
        &self,
        name: &str,
        url: &str,
        partitions: u32,
    ) -> Result<ParquetTable, EngineError> {
        self.check_free(name)?;
        let url = self.table_url(name, url)?;
        Ok(ParquetTable::open(name, &url, None, partitions).await?)
    }

    pub(crate) async fn add_parquet(
        &self,
        name: &str,
        table: ParquetTable,
    ) -> Result<(), EngineError> {
        let meta = Arc::clone(table.table());
        self.add_table(Arc::new(table)).await?;
        let Some(url) = &meta.url else { return Ok(()) };
        self.define(name, TableKind::Parquet, url, meta.partitioning.partitions())
    }

    fn define(
        &self,
        name: &str,
        kind: TableKind,
        url: &Url,
        partitions: u32,
    ) -> Result<(), EngineError> {
        self.definitions.add(Definition {
            name: name.to_owned(),
            kind,
            url: url.to_string(),
            partitions,
            statement: None,
            locations: vec![],
            in_schema: self.catalog.split(name).0 != SCHEMA,
        })
    }

    /// Opens the tables of earlier runs again.
    pub(crate) async fn reopen(self: &Arc<Self>) -> Result<(), EngineError> {
        let session = Session::new(Arc::clone(self));
        for definition in self.definitions.read()? {
            if definition.in_schema
                && let Some((schema, _)) = definition.name.split_once('.')
            {
                self.catalog.add_schema(schema);
            }
            if let Some(sql) = &definition.statement {
                let state = session.context.state();
                crate::statements::files::reopen(&session, &state, &definition, sql).await?;
                continue;
            }
            let Definition { name, kind, url, partitions, .. } = definition;
            let url = self.table_url(&name, &url)?;
            let store: Arc<dyn TableStore> = match kind {
                TableKind::Managed => Arc::new(ManagedTable::open(&name, &url, None).await?),
                TableKind::Parquet => {
                    Arc::new(ParquetTable::open(&name, &url, None, partitions).await?)
                }
                TableKind::Memory => continue,
            };
            self.add_table(store).await?;
        }
        Ok(())
    }

    fn check_free(&self, name: &str) -> Result<(), EngineError> {
        if self.catalog.names().iter().any(|taken| taken == name) {
            return Err(EngineError::TableExists { name: name.to_owned() });
        }
        Ok(())
    }

    /// The URL of a table: a URL as it is, a path made absolute, the data folder if nothing is given.
    fn table_url(&self, name: &str, given: &str) -> Result<Url, EngineError> {
        if given.contains("://") {
            return Url::parse(given).map_err(|error| EngineError::Invalid {
                message: format!("{given:?} is not a URL: {error}"),
            });
        }
        let path = match given {
            "" => self.config.data_dir().join("tables").join(name),
            path => std::path::PathBuf::from(path),
        };
        let absolute = std::path::absolute(&path)
            .map_err(|source| EngineError::Unwritable { path: path.clone(), source })?;
        let is_file = absolute.is_file();
        let url = if is_file {
            Url::from_file_path(&absolute)
        } else {
            Url::from_directory_path(&absolute)
        };
        url.map_err(|()| EngineError::Invalid {
            message: format!("{} cannot be written as a URL", absolute.display()),
        })
    }

    pub(crate) fn writable(&self, table: &str) -> Result<Arc<dyn TableStore>, EngineError> {
        use foreshard_actors::node::Tables;
        let Some(store) = self.catalog.store(table) else {
            let names = self.catalog.names();
            let nearest = crate::error::nearest(table, names.iter().map(String::as_str));
            let nearest = nearest.map(ToOwned::to_owned);
            return Err(EngineError::UnknownTable { name: table.to_owned(), nearest });
        };
        if store.table().kind == TableKind::Parquet {
            return Err(EngineError::ReadOnly { name: table.to_owned() });
        }
        Ok(store)
    }

    /// Appends rows in one commit.
    pub(crate) async fn append(
        &self,
        store: &Arc<dyn TableStore>,
        batches: Vec<RecordBatch>,
    ) -> Result<(), EngineError> {
        let mut snapshot = store.snapshot();
        for _ in 0..ATTEMPTS_MAX {
            let added = deal_out_all(&snapshot.layout, &batches).map_err(StoreError::from)?;
            if added.is_empty() {
                return Ok(());
            }
            let (operation, removed) = (Operation::Insert, vec![]);
            let change = Change { operation, removed, added, layout: None, transaction: None };
            match store.commit(change).await {
                Ok(committed) => {
                    self.publish(committed);
                    return Ok(());
                }
                // A partition was split or merged meanwhile: its rows are dealt out again.
                Err(error @ StoreError::Conflict { .. }) if error.is_retryable() => {
                    snapshot = store.refresh().await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(EngineError::TooMany { what: "conflicting commits", max: ATTEMPTS_MAX })
    }

    /// Adds one to a counter.
    pub(crate) fn count(&self, name: &'static str, help: &'static str) {
        self.metrics.counter(name, help, &[]).add(1);
    }

    fn metrics_text(&self) -> String {
        let gauge = |name, help, value| self.metrics.gauge(name, help, &[]).set(value);
        let view = self.members.view();
        let bytes: u64 = view.nodes.values().map(|node| node.memory_bytes).sum();
        let stored: u64 = view.outputs.values().map(|output| output.bytes).sum();
        gauge("foreshard_nodes", "Live nodes.", view.nodes.len() as f64);
        gauge("foreshard_partitions", "Partitions.", view.partitions.len() as f64);
        gauge("foreshard_memory_bytes", "Resident segments and what is stored.", bytes as f64);
        gauge("foreshard_output_bytes", "Stored outputs and partial states.", stored as f64);
        if let Some(spill) = self.members.spill() {
            gauge("foreshard_spilled_bytes", "Stored outputs on disk.", spill.bytes() as f64);
        }
        gauge("foreshard_queries_running", "Queries that run.", self.queries.count() as f64);
        let dropped = self.the_loop.calls().dropped();
        gauge("foreshard_call_batches_dropped", "Call reports lost.", dropped as f64);
        self.metrics.render()
    }

    /// Hands a commit to the replicas.
    pub(crate) fn publish(&self, committed: Committed) {
        self.members.committed(committed);
    }
}
