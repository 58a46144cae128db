//! What can go wrong when nodes are started and stopped outside this process.

use foreshard_actors::ports::Outcome;
use foreshard_policy::ids::NodeId;

use crate::cluster::MemberError;

/// A node was not added or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// Nothing listens where nodes could join.
    #[error("nodes of other processes cannot join: serve.control-address is off")]
    Closed,
    /// The program is not there or may not be run.
    #[error("{program} cannot be started as a node (provider.program): {source}")]
    NotStarted {
        /// Its path.
        program: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A process ended before its node was part of the cluster.
    #[error("the process of {node} ended before it joined ({status}); it said {said:?}")]
    Ended {
        /// The node that it should have become.
        node: NodeId,
        /// How it ended.
        status: String,
        /// Its last line on stderr.
        said: String,
    },
    /// A node did not come in time.
    #[error("{what} did not join within {seconds} s (provider.start-seconds)")]
    Late {
        /// The process or pod.
        what: String,
        /// The bound.
        seconds: u64,
    },
    /// The settings cannot be handed on to a process.
    #[error("the settings cannot be written down for another process: {reason}")]
    Settings {
        /// Why not.
        reason: String,
    },
    /// It is not known where the API of Kubernetes is, or who we are.
    #[error("no way to Kubernetes: {reason}")]
    NoAccess {
        /// What is missing.
        reason: String,
    },
    /// Kubernetes does not know who asks.
    #[error("{server} does not know who asks: the token or certificate is not valid ({message})")]
    Unknown {
        /// The API.
        server: String,
        /// What it says.
        message: String,
    },
    /// Kubernetes knows who asks, and refuses.
    #[error(
        "Kubernetes forbids to {verb} the scale of StatefulSet {set} in namespace {namespace}: the role needs the verb {verb} on statefulsets/scale of apps ({message})"
    )]
    Forbidden {
        /// What was wanted.
        verb: &'static str,
        /// The StatefulSet.
        set: String,
        /// Its namespace.
        namespace: String,
        /// What Kubernetes says.
        message: String,
    },
    /// There is no such StatefulSet.
    #[error(
        "there is no StatefulSet {set} in namespace {namespace} (provider.stateful-set, provider.namespace)"
    )]
    NoSet {
        /// The StatefulSet.
        set: String,
        /// The namespace.
        namespace: String,
    },
    /// Somebody else changes the number of replicas, too.
    #[error(
        "the scale of StatefulSet {set} in namespace {namespace} is changed by somebody else again and again; is there an autoscaler for it?"
    )]
    Conflict {
        /// The StatefulSet.
        set: String,
        /// Its namespace.
        namespace: String,
    },
    /// Kubernetes does not answer in time.
    #[error("{server} did not answer within {ms} ms (provider.api-seconds)")]
    Silent {
        /// The API.
        server: String,
        /// The bound.
        ms: u64,
    },
    /// Kubernetes cannot be reached.
    #[error("{server} cannot be reached: {reason}")]
    Unreachable {
        /// The API.
        server: String,
        /// Why not.
        reason: String,
    },
    /// Kubernetes answers with another error, or with something else than was asked for.
    #[error("Kubernetes answers with status {status}: {message}")]
    Failed {
        /// Of HTTP.
        status: u16,
        /// What it says.
        message: String,
    },
    /// The cluster was not changed.
    #[error(transparent)]
    Member(#[from] MemberError),
}

impl ProviderError {
    /// Stable code for logs, `system.decisions` and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Closed => "FS-PROVIDER-1",
            Self::NotStarted { .. } => "FS-PROVIDER-2",
            Self::Ended { .. } => "FS-PROVIDER-3",
            Self::Late { .. } => "FS-PROVIDER-4",
            Self::Settings { .. } => "FS-PROVIDER-5",
            Self::NoAccess { .. } => "FS-PROVIDER-6",
            Self::Unknown { .. } => "FS-PROVIDER-7",
            Self::Forbidden { .. } => "FS-PROVIDER-8",
            Self::NoSet { .. } => "FS-PROVIDER-9",
            Self::Conflict { .. } => "FS-PROVIDER-10",
            Self::Silent { .. } => "FS-PROVIDER-11",
            Self::Unreachable { .. } => "FS-PROVIDER-12",
            Self::Failed { .. } => "FS-PROVIDER-13",
            Self::Member(error) => error.code(),
        }
    }
}

/// How a step ended that has no figures of its own.
pub(super) fn outcome(done: Result<(), ProviderError>) -> Outcome {
    match done {
        Ok(()) => Outcome::Done { rows: 0, bytes: 0, ns: 0 },
        Err(error) => Outcome::Failed { code: error.code(), reason: error.to_string() },
    }
}
