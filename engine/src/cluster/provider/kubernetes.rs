//! Nodes that are pods of a StatefulSet: its number of replicas is changed, and its pods join by their names.
//!
//! A pod is ours by its name, `<set>-<number>`, whoever wanted it: so a server that is started again takes the
//! pods up that are there. A StatefulSet removes the pod with the highest number first, so pods leave in that
//! order (`NodeView::leaves`). A pod that was drained may not join again while it waits for its end.

mod access;
mod api;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use foreshard_actors::ports::{NodeProvider, Outcome};
use foreshard_policy::allocate::pods::{next_pod, replicas_for, replicas_with};
use foreshard_policy::ids::NodeId;

use self::access::Access;
use self::api::Api;
use super::error::{ProviderError, outcome};
use crate::cluster::Members;
use crate::config::Config;

/// How often the number of replicas is read again because somebody else changed it.
const TRIES_MAX: u32 = 3;

/// Starts and ends pods.
#[derive(Debug)]
pub(super) struct Kubernetes {
    members: Arc<Members>,
    api: Api,
    set: String,
    start_seconds: u64,
    /// Held while the number of replicas is changed.
    change: tokio::sync::Mutex<()>,
}

impl Kubernetes {
    /// # Errors
    /// [`ProviderError::NoAccess`] if it is not known where the API is.
    pub(super) fn new(config: &Config, members: Arc<Members>) -> Result<Self, ProviderError> {
        let provider = config.provider();
        let access = Access::find(provider.kubeconfig())?;
        let set = provider.stateful_set().to_owned();
        let timeout = Duration::from_secs(provider.api_seconds());
        let api = Api::new(access, (provider.namespace(), &set), timeout)?;
        let ours = set.clone();
        members.arrivals().recognise(move |name| Some(pod_of(&ours, name)?.saturating_add(1)));
        let start_seconds = provider.start_seconds();
        Ok(Self { members, api, set, start_seconds, change: tokio::sync::Mutex::default() })
    }

    fn name_of(&self, pod: u32) -> String {
        format!("{}-{pod}", self.set)
    }

    /// The pods that are nodes or are waited for.
    fn taken(&self) -> BTreeSet<u32> {
        let names = self.members.arrivals().names();
        let is_taken = |node: Option<NodeId>| node.is_none_or(|it| self.members.place(it).is_ok());
        let taken = names.into_iter().filter(|(_, node)| is_taken(*node));
        taken.filter_map(|(name, _)| pod_of(&self.set, &name)).collect()
    }

    /// Makes the number of replicas what it should be, given what it is.
    async fn want(&self, wanted: impl Fn(u32) -> u32) -> Result<(), ProviderError> {
        let mut tries = 0;
        loop {
            let scale = self.api.scale().await?;
            let replicas = wanted(scale.replicas);
            if replicas == scale.replicas {
                return Ok(());
            }
            tries += 1;
            match self.api.set(replicas, &scale.version).await {
                Err(ProviderError::Conflict { .. }) if tries < TRIES_MAX => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    let (set, before) = (&self.set, scale.replicas);
                    tracing::info!(set, before, replicas, "StatefulSet scaled");
                    return Ok(());
                }
            }
        }
    }

    /// Waits until one more pod is a node of the cluster. If this future is dropped before, the pod becomes
    /// one when it joins.
    async fn start(&self, node: NodeId) -> Result<(), ProviderError> {
        let arrivals = self.members.arrivals();
        arrivals.address().ok_or(ProviderError::Closed)?;
        let changing = self.change.lock().await;
        let pod = next_pod(&self.taken());
        let name = self.name_of(pod);
        let _expected = arrivals.expect(&name, node, pod.saturating_add(1));
        self.want(|replicas| replicas_with(replicas, pod)).await?;
        drop(changing);
        let seconds = self.start_seconds;
        tokio::select! {
            node = arrivals.arrived(&name) => {
                tracing::info!(%node, pod = name, "pod joined");
                Ok(())
            }
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {
                let what = format!("pod {name} in namespace {}", self.api.namespace());
                Err(ProviderError::Late { what, seconds })
            }
        }
    }

    /// Drains a node and, as soon as no pod with a higher number is needed, ends its pod.
    async fn end(&self, node: NodeId) -> Result<(), ProviderError> {
        let arrivals = self.members.arrivals();
        let name = arrivals.name_of(node).filter(|name| pod_of(&self.set, name).is_some());
        let Some(name) = name else { return Ok(self.members.remove(node).await?) };
        arrivals.leaves(&name);
        let ended = async {
            self.members.drain(node).await?;
            arrivals.forget(&name);
            let _changing = self.change.lock().await;
            let needed = self.taken();
            self.want(|replicas| replicas_for(replicas, &needed)).await
        };
        let ended = ended.await;
        if ended.is_err() {
            // It lives on, and is of use again.
            arrivals.may_join(&name);
        }
        ended
    }
}

/// The number of a pod of the StatefulSet `set`.
fn pod_of(set: &str, name: &str) -> Option<u32> {
    let number = name.strip_prefix(set)?.strip_prefix('-')?;
    let is_number = number == "0" || !number.starts_with(['0', '+']);
    number.parse().ok().filter(|_| is_number)
}

#[async_trait]
impl NodeProvider for Kubernetes {
    fn nodes(&self) -> Vec<NodeId> {
        self.members.nodes()
    }

    async fn add(&self, node: NodeId) -> Outcome {
        outcome(self.start(node).await)
    }

    async fn remove(&self, node: NodeId) -> Outcome {
        outcome(self.end(node).await)
    }

    fn set_budget(&self, node: NodeId, cpu_permits: u32, memory_bytes_max: u64) {
        self.members.set_budget(node, cpu_permits, memory_bytes_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_one_of_the_set_by_its_name_and_number_alone() {
        assert_eq!(pod_of("node", "node-0"), Some(0));
        assert_eq!(pod_of("node", "node-12"), Some(12));
        for other in ["node", "node-", "node-01", "node-+1", "node-x", "anode-1", "node-1-2"] {
            assert_eq!(pod_of("node", other), None, "{other}");
        }
    }
}
