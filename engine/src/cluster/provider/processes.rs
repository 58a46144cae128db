//! Nodes that are processes of this machine: the same program, started as `foreshard node --join ..`.
//!
//! They are ours: they count within `loop.allocate.nodes-min` and `nodes-max`, leave before the nodes within
//! this process do, and end with it. They have the settings that this process has, but only the functions of
//! the library.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use foreshard_actors::ports::{NodeProvider, Outcome};
use foreshard_policy::ids::NodeId;
use tokio::process::Command;

use super::child::Child;
use super::error::{ProviderError, outcome};
use crate::cluster::{MemberError, Members};
use crate::config::Config;

/// Any of them may leave, but before the nodes within this process.
const LEAVES: u32 = 1;

/// How long a process may take to end once it is not needed any more, before it is killed.
const END_MAX: Duration = Duration::from_secs(10);

/// Starts and stops processes.
#[derive(Debug)]
pub(super) struct Processes {
    members: Arc<Members>,
    config: Config,
    children: Mutex<BTreeMap<String, Arc<Child>>>,
}

impl Processes {
    pub(super) fn new(config: &Config, members: Arc<Members>) -> Self {
        Self { members, config: config.clone(), children: Mutex::default() }
    }

    fn children(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Child>>> {
        // Every change is one insert or one removal.
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn program(&self) -> std::io::Result<PathBuf> {
        let own = self.config.provider().program();
        if own.as_os_str().is_empty() { std::env::current_exe() } else { Ok(own.to_owned()) }
    }

    /// Starts a process and waits until its node is part of the cluster. If this future is dropped before,
    /// the process is killed.
    async fn start(&self, node: NodeId) -> Result<(), ProviderError> {
        let arrivals = self.members.arrivals();
        let address = arrivals.address().ok_or(ProviderError::Closed)?;
        if self.members.place(node).is_ok() {
            return Err(MemberError::Taken { node }.into());
        }
        self.children().retain(|_, child| !child.is_over());
        let not_started = |program: String| |source| ProviderError::NotStarted { program, source };
        let program = self.program().map_err(not_started("this program".to_owned()))?;
        let name = uuid::Uuid::new_v4().simple().to_string();
        let mut command = Command::new(&program);
        command.args(["node", "--join", &address.to_string(), "--name", &name]);
        command.arg("--until-stdin-closes").args(settings(&self.config, address.ip())?);
        let _expected = arrivals.expect(&name, node, LEAVES);
        let (members, leaver) = (Arc::clone(&self.members), name.clone());
        let child = Child::start(command, move || async move {
            if let Some(node) = members.arrivals().forget(&leaver)
                && members.place(node).is_ok()
            {
                tracing::warn!(%node, "its process has ended");
                members.forget(node).await;
            }
        });
        let child = child.map_err(not_started(program.display().to_string()))?;
        let seconds = self.config.provider().start_seconds();
        tokio::select! {
            node = arrivals.arrived(&name) => {
                tracing::info!(%node, "process started");
                self.children().insert(name.clone(), Arc::new(child));
                Ok(())
            }
            ended = child.ended() => {
                Err(ProviderError::Ended { node, status: ended.status, said: ended.said })
            }
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {
                child.end(Duration::ZERO).await;
                Err(ProviderError::Late { what: format!("the process of {node}"), seconds })
            }
        }
    }

    /// Drains a node, and ends its process if it has one.
    async fn end(&self, node: NodeId) -> Result<(), ProviderError> {
        let name = self.members.arrivals().name_of(node);
        self.members.remove(node).await?;
        let child = name.and_then(|name| self.children().remove(&name));
        if let Some(child) = child {
            child.end(END_MAX).await;
            tracing::info!(%node, "process ended");
        }
        Ok(())
    }
}

/// All settings of this process as flags for another one, so that it has them whatever stands in its folder
/// and its environment.
fn settings(config: &Config, host: std::net::IpAddr) -> Result<Vec<String>, ProviderError> {
    let settings = |error: toml::ser::Error| ProviderError::Settings { reason: error.to_string() };
    let mut flags = vec![];
    flatten("", &toml::Table::try_from(config).map_err(settings)?, &mut flags);
    let own = std::net::SocketAddr::new(host, 0);
    flags.push(format!("serve.control-address=\"{own}\""));
    Ok(flags.into_iter().flat_map(|flag| ["--set".to_owned(), flag]).collect())
}

fn flatten(prefix: &str, table: &toml::Table, flags: &mut Vec<String>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => flatten(&format!("{prefix}{key}."), inner, flags),
            value => flags.push(format!("{prefix}{key}={value}")),
        }
    }
}

#[async_trait]
impl NodeProvider for Processes {
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

    async fn stop(&self) {
        let children = std::mem::take(&mut *self.children());
        // Nobody needs to look after what they held.
        for name in children.keys() {
            self.members.arrivals().forget(name);
        }
        let ending = children.values().map(|child| child.end(END_MAX));
        futures::future::join_all(ending).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_gets_all_settings_as_they_are() {
        let config = Config::default()
            .set("telemetry.service-name", "12")
            .and_then(|config| config.set("loop.allocate.provider", "process"))
            .and_then(|config| config.set("loop.allocate.target-utilisation", "0.25"))
            .and_then(|config| config.set("spill-dir", "a folder/\"b\" = 1"))
            .unwrap();
        let flags = settings(&config, [127, 0, 0, 1].into()).unwrap();
        let overrides: Vec<_> = flags
            .chunks(2)
            .map(|flag| flag[1].split_once('=').unwrap())
            .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("foreshard.toml");
        std::fs::write(&file, "nodes = 7\n[loop]\nmode = 'off'\n").unwrap();
        let read = Config::load(Some(&file), &overrides).unwrap();
        let expected = config.set("serve.control-address", "127.0.0.1:0").unwrap();
        assert_eq!(read, expected);
    }
}
