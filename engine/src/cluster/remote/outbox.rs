//! News for a node of another process that waits to be carried over.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tonic::transport::Channel;
use url::Url;

use super::{lock, tell};
use crate::query::worker::process_id;
use crate::serve::control::NodeClient;
use crate::serve::control::messages::{CommitMessage, News, PinsMessage, Settings, SharesMessage};

/// Pause before news that did not arrive is sent again.
const TELL_AGAIN: Duration = Duration::from_millis(500);

/// Ended queries that wait to be told; beyond it the oldest go untold and end by themselves.
const ENDED_MAX: usize = 4_096;

/// Commits of one table that wait to be told to a node.
const COMMITS_MAX: usize = 8;

/// News that waits. Of each table the newest snapshot, and before it those whose rows come from others: what
/// is stored follows from one to the next, and what waits for too long stays behind.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    is_new: Notify,
}

#[derive(Default)]
struct Waiting {
    commits: BTreeMap<Arc<str>, BTreeMap<u64, CommitMessage>>,
    ended: VecDeque<u64>,
    settings: Option<Settings>,
    pins: Option<PinsMessage>,
    shares: Option<SharesMessage>,
}

impl Outbox {
    fn put(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut lock(&self.waiting));
        self.is_new.notify_one();
    }

    /// What a node may use and how it behaves.
    pub(super) fn settings(&self, settings: Settings) {
        self.put(|waiting| waiting.settings = Some(settings));
    }

    /// What is pinned.
    pub(super) fn pins(&self, pins: PinsMessage) {
        self.put(|waiting| waiting.pins = Some(pins));
    }

    /// Which part of what it has each table gets.
    pub(super) fn shares(&self, shares: SharesMessage) {
        self.put(|waiting| waiting.shares = Some(shares));
    }

    /// A query is over.
    pub(super) fn ended(&self, query: u64) {
        self.put(|waiting| {
            if waiting.ended.len() >= ENDED_MAX {
                waiting.ended.pop_front();
            }
            waiting.ended.push_back(query);
        });
    }

    /// Nothing of a table is told any more.
    pub(super) fn forget(&self, table: &str) {
        self.put(|waiting| drop(waiting.commits.remove(table)));
    }

    /// A commit changed a table.
    pub(super) fn commit(&self, table: Arc<str>, version: u64, commit: CommitMessage) {
        self.put(|waiting| {
            let of_table = waiting.commits.entry(table).or_default();
            of_table.insert(version, commit);
            let newest = of_table.last_key_value().map_or(version, |(newest, _)| *newest);
            of_table.retain(|version, commit| *version == newest || !commit.rewritten.is_empty());
            while of_table.len() > COMMITS_MAX {
                of_table.pop_first();
            }
        });
    }

    /// Sends what comes, for as long as the node lives.
    pub(super) async fn send(&self, client: NodeClient<Channel>, url: Url) {
        loop {
            self.is_new.notified().await;
            let waiting = std::mem::take(&mut *lock(&self.waiting));
            let news = News {
                coordinator: process_id().to_owned(),
                commits: waiting.commits.values().flat_map(BTreeMap::values).cloned().collect(),
                ended: waiting.ended.into(),
                settings: waiting.settings,
                is_dismissed: false,
                pins: waiting.pins.clone(),
                shares: waiting.shares.clone(),
            };
            let Err(error) = tell(client.clone(), &url, news).await else { continue };
            tracing::debug!(%url, code = error.code(), %error, "news not taken");
            tokio::time::sleep(TELL_AGAIN).await;
            for (table, commits) in waiting.commits {
                for (version, commit) in commits {
                    self.commit(Arc::clone(&table), version, commit);
                }
            }
            self.put(|newer| {
                newer.settings = newer.settings.or(waiting.settings);
                newer.pins = newer.pins.take().or(waiting.pins);
                newer.shares = newer.shares.take().or(waiting.shares);
            });
        }
    }
}
