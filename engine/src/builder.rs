//! Builds an engine: the only place that knows how all parts fit together.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock, Weak};

use datafusion::catalog::CatalogProviderList;
use datafusion::catalog::MemoryCatalogProviderList;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::async_udf::AsyncScalarUDF;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use foreshard_actors::expressions::Expressions;
use foreshard_actors::loop_handle::{LoopArgs, LoopHandle, Ticks};
use foreshard_actors::node::ProcessMemory;
use foreshard_actors::ports::{Cluster, Outlook, SharedClock, SystemClock};
use foreshard_actors::spill::{Spill, is_url};
use foreshard_policy::ids::NodeId;
use foreshard_udfs::{AsyncOptions, Card, Functions};
use tokio::sync::Semaphore;

use crate::catalog::{CATALOG, Catalog, Definitions, Schemas, SystemSchema};
use crate::cluster::{Members, NodeBudget};
use crate::config::Config;
use crate::engine::{Engine, Inner};
use crate::error::EngineError;
use crate::metrics::Metrics;
use crate::query::channel::Channels;
use crate::query::context::Queries;
use crate::query::groups::KeptGroups;
use crate::query::planning::Template;
use crate::query::worker::WorkerParts;

/// Describes an engine before it is started.
#[derive(Default)]
pub struct EngineBuilder {
    config: Config,
    functions: Vec<(Card, ScalarUDF)>,
    async_functions: Vec<(Card, AsyncScalarUDF, AsyncOptions)>,
    aggregates: Vec<(Card, AggregateUDF)>,
    manual_ticks: bool,
    clock: Option<SharedClock>,
    outlook: Option<Arc<dyn Outlook>>,
    keep_state: bool,
}

impl fmt::Debug for EngineBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl EngineBuilder {
    /// Uses these settings instead of the defaults.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Registers a function besides the library's.
    #[must_use]
    pub fn function(mut self, card: Card, udf: ScalarUDF) -> Self {
        self.functions.push((card, udf));
        self
    }

    /// Registers an asynchronous function: see [`Engine::register_async_function`].
    #[must_use]
    pub fn async_function(
        mut self,
        card: Card,
        udf: AsyncScalarUDF,
        options: AsyncOptions,
    ) -> Self {
        self.async_functions.push((card, udf, options));
        self
    }

    /// Registers an aggregate function besides the library's.
    #[must_use]
    pub fn aggregate(mut self, card: Card, udf: AggregateUDF) -> Self {
        self.aggregates.push((card, udf));
        self
    }

    /// Lets the loop turn only when [`Engine::tick`] is called: for tests and simulations.
    #[must_use]
    pub fn manual_ticks(mut self, manual: bool) -> Self {
        self.manual_ticks = manual;
        self
    }

    /// Takes the time from here.
    #[must_use]
    pub fn clock(mut self, clock: SharedClock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Tells the planners of the loop what `outlook` says instead of the forecast: for experiments.
    #[must_use]
    pub fn outlook(mut self, outlook: Arc<dyn Outlook>) -> Self {
        self.outlook = Some(outlook);
        self
    }

    /// Keeps tables, history and learned weights in the data folder and opens them again at the next
    /// start. Without it an embedded engine leaves nothing behind but the managed tables it made.
    #[must_use]
    pub fn keep_state(mut self, keep: bool) -> Self {
        self.keep_state = keep;
        self
    }

    /// Starts the engine: nodes, loop, and the tables of earlier runs.
    ///
    /// # Errors
    /// [`EngineError`] names the setting, folder, table or function that does not work.
    pub async fn start(self) -> Result<Engine, EngineError> {
        crate::telemetry::install_tls();
        let functions = Arc::new(Functions::library());
        for (card, udf) in self.functions {
            functions.register(card, udf)?;
        }
        for (card, udf, options) in self.async_functions {
            functions.register_async(card, udf, options)?;
        }
        for (card, aggregate) in self.aggregates {
            functions.register_aggregate(card, aggregate)?;
        }
        let clock = self.clock.unwrap_or_else(|| Arc::new(SystemClock));
        let catalog = Arc::new(Catalog::default());
        let expressions = Arc::new(Expressions::default());
        let channels = Channels::default();
        let budget = node_budget(&self.config);
        let memory = Arc::new(ProcessMemory::new(self.config.memory_bytes()));
        let spill = spill(&self.config, self.keep_state, &expressions, Arc::clone(&clock)).await?;
        let members = Arc::new(Members::new(
            Arc::clone(&catalog),
            expressions,
            channels.clone(),
            Arc::clone(&clock),
            (budget, Arc::clone(&memory)),
        ));
        if let Some(spill) = spill {
            members.spill_to(spill);
        }
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(memory).build_arc()?;
        let provider = crate::cluster::provider(&self.config, &members)?;
        let mut args = LoopArgs::new(
            self.config.loop_config().clone(),
            Arc::clone(&members) as Arc<dyn Cluster>,
            Arc::clone(&provider),
        );
        args.clock = clock;
        args.outlook = self.outlook;
        args.ticks = if self.manual_ticks { Ticks::ByHand } else { Ticks::ByClock };
        if self.keep_state {
            let folder = self.config.data_dir().join("loop");
            std::fs::create_dir_all(&folder)
                .map_err(|source| EngineError::Unwritable { path: folder.clone(), source })?;
            args = args.in_folder(&folder);
        }
        let the_loop = LoopHandle::start(args, None).await?;
        let queries = Arc::new(Queries::default());
        members.connect(
            the_loop.calls(),
            WorkerParts {
                functions: Arc::clone(&functions),
                queries: Arc::clone(&queries),
                channels: channels.clone(),
                runtime: Arc::clone(&runtime),
                query_bytes_max: self.config.query_bytes_max(),
                members: Arc::downgrade(&members),
            },
        );
        for node in 0..self.config.nodes() {
            members.add_local(NodeId(node)).await?;
        }
        let back: Arc<OnceLock<Weak<Inner>>> = Arc::default();
        let schemas = schemas(&catalog, &back);
        let running = Arc::new(Semaphore::new(self.config.limits().queries_max()));
        let groups = Arc::<KeptGroups>::default();
        let planning =
            Template::new(&self.config, &runtime, &schemas, &channels, &functions, &groups);
        let inner = Arc::new(Inner {
            definitions: Definitions::new(self.config.data_dir()),
            config: self.config,
            catalog,
            functions,
            groups,
            members,
            provider,
            queries,
            the_loop,
            metrics: Metrics::default(),
            running,
            stopping: AtomicBool::new(false),
            planning,
        });
        // Set once, right here.
        drop(back.set(Arc::downgrade(&inner)));
        if self.keep_state {
            inner.reopen().await?;
        }
        Ok(Engine { inner })
    }
}

fn node_budget(config: &Config) -> NodeBudget {
    let allocate = config.loop_config().allocate();
    NodeBudget {
        cpu_permits: allocate.cpu_permits(),
        memory_bytes_max: allocate.memory_bytes(),
        io_bytes_per_s: allocate.io_bytes_per_s(),
        store_policy: Inner::store_policy(config, config.loop_config().mode()),
    }
}

/// The disk, or the object store, for outputs that find no room in memory, if there is to be one.
pub(crate) async fn spill(
    config: &Config,
    keeps_state: bool,
    expressions: &Expressions,
    clock: SharedClock,
) -> Result<Option<Arc<Spill>>, EngineError> {
    let Some(place) = config.spill_place(keeps_state) else { return Ok(None) };
    let (pins, bytes_max) = (Arc::clone(&expressions.pins), config.limits().spill_bytes());
    let spill = match is_url(&place) {
        true => Spill::open_url(&place.to_string_lossy(), bytes_max, pins, clock).await?,
        false => Spill::open(&place, bytes_max, pins, clock)
            .map_err(|source| EngineError::Unwritable { path: place, source })?,
    };
    Ok(Some(Arc::new(spill)))
}

fn schemas(
    catalog: &Arc<Catalog>,
    back: &Arc<OnceLock<Weak<Inner>>>,
) -> Arc<dyn CatalogProviderList> {
    let system = SystemSchema::new(Arc::clone(back));
    let list = MemoryCatalogProviderList::new();
    let own = Schemas::new(Arc::clone(catalog), system);
    list.register_catalog(CATALOG.to_owned(), Arc::new(own));
    Arc::new(list)
}
