//! `foreshard.toml`, environment and flags as one checked value.
//!
//! Later sources win: defaults, the file, `FORESHARD_*` (`FORESHARD_SERVE__HTTP_ADDRESS` is
//! `serve.http-address`), flags. An unknown key is an error that names the nearest one.

mod load;
mod section;

use std::path::{Path, PathBuf};

pub use self::load::Loaded;
pub use self::section::Address;
use self::section::{Bound, section};
use foreshard_policy::config::{Entry, LoopConfig};

/// A setting, or the place it comes from, is wrong. The text names the key, the value and the bound.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value is outside its bound.
    #[error("{key} is {value}; it must be {bound}")]
    Bound {
        /// The setting, with its section.
        key: String,
        /// The value given.
        value: String,
        /// What it must be.
        bound: String,
    },
    /// A setting of the loop is outside its bound, or two do not fit each other.
    #[error("loop.{0}")]
    Loop(#[from] foreshard_policy::config::ConfigError),
    /// A key that does not exist.
    #[error("unknown setting {key} in {source_name}{}", nearest.as_ref().map_or_else(String::new, |key| format!("; did you mean {key}?")))]
    UnknownKey {
        /// The key, with its section.
        key: String,
        /// Where it stands: a file, the environment or a flag.
        source_name: String,
        /// The most similar key that exists.
        nearest: Option<String>,
    },
    /// A value that cannot be read as what the setting is.
    #[error("{key} in {source_name}: {reason}")]
    Value {
        /// The setting, with its section.
        key: String,
        /// Where it stands: a file, the environment or a flag.
        source_name: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A settings file that cannot be read or is no TOML.
    #[error("settings file {path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A flag that does not have the form `key=value`.
    #[error("--set {text:?} must have the form key=value")]
    Flag {
        /// The flag's value.
        text: String,
    },
}

impl ConfigError {
    /// Stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Bound { .. } => "FS-CONFIG-1",
            Self::Loop(error) => error.code(),
            Self::UnknownKey { .. } => "FS-CONFIG-3",
            Self::Value { .. } => "FS-CONFIG-4",
            Self::File { .. } => "FS-CONFIG-5",
            Self::Flag { .. } => "FS-CONFIG-6",
        }
    }
}

section! {
    /// What the engine listens on. Nothing asks for a password yet: keep to loopback addresses.
    ServeConfig (prefix "serve.") {
        /// Address of HTTP, `host:port` or `off`; port 0 takes any free port.
        "http-address" http_address with_http_address: Address => Option<&str> = address("127.0.0.1:8080"), "", Bound::Any;
        /// Address of Arrow Flight SQL, `host:port` or `off`; port 0 takes any free port.
        "flight-address" flight_address with_flight_address: Address => Option<&str> = address("127.0.0.1:50051"), "", Bound::Any;
        /// Address where other nodes join, `host:port` or `off`; port 0 takes any free port.
        "control-address" control_address with_control_address: Address => Option<&str> = Address::OFF, "", Bound::Any;
        /// Address where KEDA asks how many nodes are needed, `host:port` or `off`; port 0 takes any free port.
        "scaler-address" scaler_address with_scaler_address: Address => Option<&str> = Address::OFF, "", Bound::Any;
        /// Time that running queries get when the server is asked to stop.
        "drain-seconds" drain_seconds with_drain_seconds: u64 => u64 = 10, "s", Bound::Within(0, 3_600);
    }
    sections {}
}

section! {
    /// What one client or one query may use.
    LimitsConfig (prefix "limits.") {
        /// Time that one query may take.
        "query-seconds" query_seconds with_query_seconds: u64 => u64 = 300, "s", Bound::Within(1, 86_400);
        /// Share of `memory-bytes` that one query may take on a node.
        "query-memory-percent" query_memory_percent with_query_memory_percent: u32 => u32 = 100, "%", Bound::Within(1, 100);
        /// Rows of one answer.
        "answer-rows-max" answer_rows_max with_answer_rows_max: u64 => u64 = 1 << 40, "rows", Bound::Within(1, 1 << 40);
        /// Size of one answer in memory, summed up over its batches.
        "answer-bytes-max" answer_bytes_max with_answer_bytes_max: u64 => u64 = 1 << 40, "bytes", Bound::Within(1, 1 << 40);
        /// Disk for stored outputs of all nodes of one process; 0 for none.
        "spill-bytes" spill_bytes with_spill_bytes: u64 => u64 = 4 << 30, "bytes", Bound::Within(0, 1 << 50);
        /// Terms of the longest chain of operators in one statement.
        "statement-terms-max" statement_terms_max with_statement_terms_max: usize => usize = 1_000, "terms", Bound::Within(10, 3_000);
        /// Queries that run at the same time; more are refused and may be tried again.
        "queries-max" queries_max with_queries_max: usize => usize = 64, "queries", Bound::Within(1, 10_000);
        /// Size of one request.
        "request-bytes" request_bytes with_request_bytes: usize => usize = 16 << 20, "bytes", Bound::Within(1_024, 1 << 30);
        /// Prepared statements that may be open over Flight SQL at the same time.
        "open-statements" open_statements with_open_statements: usize => usize = 1_000, "statements", Bound::Within(1, 100_000);
        /// Time after which a prepared statement that nobody uses is closed.
        "statement-idle-seconds" statement_idle_seconds with_statement_idle_seconds: u64 => u64 = 1_800, "s", Bound::Within(1, 86_400);
    }
    sections {}
}

section! {
    /// How new nodes are started that are no parts of this process (`loop.allocate.provider`).
    ProviderConfig (prefix "provider.") {
        /// Program that is started as a node if the provider is `process`; empty for this one.
        "program" program with_program: PathBuf => &Path = PathBuf::new(), "", Bound::Any;
        /// StatefulSet whose pods are nodes if the provider is `kubernetes`.
        "stateful-set" stateful_set with_stateful_set: String => &str = "foreshard-node".to_owned(), "", Bound::NotEmpty;
        /// Namespace of the StatefulSet; empty for that of the pod, or of the current context of the kubeconfig file.
        "namespace" namespace with_namespace: String => &str = String::new(), "", Bound::Any;
        /// Kubeconfig file that says how Kubernetes is reached; empty for the service account of the pod.
        "kubeconfig" kubeconfig with_kubeconfig: PathBuf => &Path = PathBuf::new(), "", Bound::Any;
        /// Time that Kubernetes may take to answer.
        "api-seconds" api_seconds with_api_seconds: u64 => u64 = 10, "s", Bound::Within(1, 60);
        /// Time that a new node may take until it has joined.
        "start-seconds" start_seconds with_start_seconds: u64 => u64 = 120, "s", Bound::Within(1, 280);
    }
    sections {}
}

section! {
    /// Where logs and traces go.
    TelemetryConfig (prefix "telemetry.") {
        /// OTLP gRPC endpoint that traces are sent to, for example `http://127.0.0.1:4317`; empty for none.
        "otlp-endpoint" otlp_endpoint with_otlp_endpoint: String => &str = String::new(), "", Bound::Any;
        /// Name of the service in traces.
        "service-name" service_name with_service_name: String => &str = "foreshard".to_owned(), "", Bound::NotEmpty;
        /// Which log lines are written to stderr: levels and targets as in `RUST_LOG`, which wins.
        "log" log with_log: String => &str = "warn,foreshard=info".to_owned(), "", Bound::NotEmpty;
        /// Form of log lines.
        "log-format" log_format with_log_format: String => &str = "human".to_owned(), "", Bound::OneOf(&["human", "json"]);
    }
    sections {}
}

section! {
    /// All settings of an engine.
    Config (prefix "") {
        /// Folder of managed tables, learned weights and the prompt's history.
        "data-dir" data_dir with_data_dir: PathBuf => &Path = PathBuf::from("./foreshard-data"), "", Bound::NotEmpty;
        /// Folder, or URL of an object store (`s3://bucket/folder`), of stored outputs that find no room in memory, which are gone with the process; if it is empty, `spill` in the data folder of an engine that keeps its state, and none otherwise.
        "spill-dir" spill_dir with_spill_dir: PathBuf => &Path = PathBuf::new(), "", Bound::Any;
        /// In-process nodes at start.
        "nodes" nodes with_nodes: u32 => u32 = 1, "nodes", Bound::Within(1, 1_024);
        /// Partitions of a query's operators on each node.
        "partitions" partitions with_partitions: usize => usize = cores(), "partitions", Bound::Within(1, 1_024);
        /// Partitions of a table that CREATE TABLE makes, by the hash of its first column that has one.
        "table-partitions" table_partitions with_table_partitions: u32 => u32 = 1, "partitions", Bound::Within(1, 4_096);
        /// Memory of one process for running queries: sorts, joins, groups. They also use what its nodes leave free of `loop.allocate.memory-bytes`.
        "memory-bytes" memory_bytes with_memory_bytes: usize => usize = 1 << 30, "bytes", Bound::Within(1 << 20, 1 << 50);
    }
    sections {
        /// What the engine listens on.
        "serve" serve with_serve: ServeConfig;
        /// What one client or one query may use.
        "limits" limits with_limits: LimitsConfig;
        /// How new nodes are started.
        "provider" provider with_provider: ProviderConfig;
        /// Where logs and traces go.
        "telemetry" telemetry with_telemetry: TelemetryConfig;
        /// The loop that forecasts and acts.
        "loop" loop_config with_loop: LoopConfig;
    }
}

impl Config {
    /// Reads the settings: defaults, then the file, then the environment, then `overrides`
    /// (`key`, `value` in TOML or plain text).
    ///
    /// Without a `path`, `foreshard.toml` in the working folder is read if it is there.
    ///
    /// # Errors
    /// [`ConfigError`] names the key, the place, the value and the bound.
    pub fn load(path: Option<&Path>, overrides: &[(String, String)]) -> Result<Self, ConfigError> {
        Ok(Loaded::load(path, overrides)?.config)
    }

    /// Sets one setting by its key, as `SET` and flags do.
    ///
    /// # Errors
    /// [`ConfigError`] if the key does not exist or the value does not fit.
    pub fn set(&self, key: &str, value: &str) -> Result<Self, ConfigError> {
        load::set(self, key, value)
    }

    /// Every setting with its value, default, unit, bound and what it does, by section.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let in_loop = self.loop_config.entries().into_iter().map(|mut entry| {
            entry.key.insert_str(0, "loop.");
            entry
        });
        let mut entries = self.own_entries();
        entries.extend(self.serve.own_entries());
        entries.extend(self.limits.own_entries());
        entries.extend(self.provider.own_entries());
        entries.extend(self.telemetry.own_entries());
        entries.extend(in_loop);
        entries
    }

    /// Memory that one query may take on a node, in bytes.
    #[must_use]
    pub fn query_bytes_max(&self) -> usize {
        self.memory_bytes() / 100 * self.limits.query_memory_percent() as usize
    }

    /// Where stored outputs go that find no room in memory, for an engine that keeps its state or one that
    /// does not; `None` if they go for good.
    #[must_use]
    pub fn spill_place(&self, keeps_state: bool) -> Option<PathBuf> {
        let own = self.spill_dir();
        let folder = match own.as_os_str().is_empty() {
            false => own.to_owned(),
            true => keeps_state.then(|| self.data_dir().join("spill"))?,
        };
        (self.limits.spill_bytes() > 0).then_some(folder)
    }

    /// Checks this and every section; the loop's was checked when it was read.
    fn checked_whole(self) -> Result<Self, ConfigError> {
        let Self { serve, limits, provider, telemetry, .. } = self.clone();
        let (serve, limits) = (serve.checked()?, limits.checked()?);
        let (provider, telemetry) = (provider.checked()?, telemetry.checked()?);
        let checked = self.with_serve(serve).with_limits(limits);
        checked.with_provider(provider).with_telemetry(telemetry).checked()
    }
}

/// Processor cores that this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZeroUsize::get).min(1_024)
}

/// A default address; the texts are checked by a test.
fn address(text: &str) -> Address {
    text.parse().unwrap_or(Address::OFF)
}

#[cfg(test)]
mod tests;
