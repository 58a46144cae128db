//! What every session plans with: the settings, and the rules in the order in which they follow each other.

use std::fmt;
use std::sync::Arc;

use datafusion::catalog::CatalogProviderList;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::prelude::SessionConfig;
use datafusion_distributed::{DistributedExt, SessionStateBuilderExt};
use foreshard_udfs::Functions;

use crate::catalog::{CATALOG, SCHEMA};
use crate::config::Config;
use crate::query::channel::Channels;
use crate::query::codec::ScanCodec;
use crate::query::groups::{KeepGroups, KeptGroups};
use crate::query::in_place::JoinInPlace;
use crate::query::late::CallLate;
use crate::query::mend::Mend;
use crate::query::one_node::OneNodeIfNeeded;
use crate::query::options::SessionOptions;
use crate::query::partial::StorePartials;
use crate::query::push_functions::PushFunctionsIntoScan;
use crate::query::route::{PlacementResolver, Routing};
use crate::query::single_row::ScalarSubqueriesGiveOneRow;
use crate::query::{
    any_order, filter_columns, float_keys, merge_order, one_partition, window_order,
};

/// What every session starts from.
#[derive(Clone)]
pub(crate) struct Template(SessionState);

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Template")
    }
}

impl Template {
    pub(crate) fn new(
        config: &Config,
        runtime: &Arc<RuntimeEnv>,
        schemas: &Arc<dyn CatalogProviderList>,
        channels: &Channels,
        functions: &Arc<Functions>,
        groups: &Arc<KeptGroups>,
    ) -> Self {
        let settings = SessionConfig::new()
            .with_target_partitions(config.partitions())
            .with_information_schema(true)
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_create_default_catalog_and_schema(false);
        // Before anything counts on the order that a join gives.
        let mut rules = filter_columns::mended(PhysicalOptimizer::new().rules);
        rules.insert(0, Mend::new("hash_float_keys", float_keys::mended));
        let mut builder = SessionStateBuilder::new()
            .with_config(settings)
            .with_runtime_env(Arc::clone(runtime))
            .with_catalog_list(Arc::clone(schemas))
            .with_default_features()
            .with_analyzer_rule(Arc::new(ScalarSubqueriesGiveOneRow))
            .with_physical_optimizer_rules(rules)
            .with_physical_optimizer_rule(Mend::new("collect_into_one", one_partition::mended))
            .with_physical_optimizer_rule(Mend::new("sort_as_merged", merge_order::mended))
            .with_physical_optimizer_rule(Mend::new(
                "grouping_sets_in_any_order",
                any_order::mended,
            ))
            .with_physical_optimizer_rule(Mend::new("filters_take_null", filter_columns::nullable))
            .with_physical_optimizer_rule(Arc::new(PushFunctionsIntoScan))
            .with_physical_optimizer_rule(Arc::new(CallLate))
            .with_physical_optimizer_rule(Mend::new(
                "sort_as_windows_partition",
                window_order::mended,
            ))
            .with_physical_optimizer_rule(Arc::new(StorePartials::new(Arc::clone(functions))))
            .with_physical_optimizer_rule(Arc::new(KeepGroups::new(
                Arc::clone(functions),
                Arc::clone(groups),
            )))
            .with_physical_optimizer_rule(Arc::new(JoinInPlace))
            .with_distributed_option_extension(SessionOptions::default())
            .with_distributed_worker_resolver(PlacementResolver(Arc::default()))
            .with_distributed_planner()
            .with_distributed_user_codec(ScanCodec::new(Arc::clone(functions), None))
            .with_distributed_channel_resolver(channels.clone())
            .with_distributed_desired_task_count_handler(Routing)
            .with_distributed_scale_up_leaf_node_handler(Routing)
            .with_distributed_route_tasks_handler(Routing);
        let planner = builder.query_planner().take().map(OneNodeIfNeeded::in_front_of);
        Self(match planner {
            Some(planner) => builder.with_query_planner(Arc::new(planner)).build(),
            None => builder.build(),
        })
    }

    /// The state of a new session.
    pub(crate) fn state(&self) -> SessionState {
        self.0.clone()
    }
}
