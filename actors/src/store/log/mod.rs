//! Our commit log over Delta's: Delta is the format, the rules are ours.
//!
//! The conflict checker of `deltalake-core` doubles rows when two rewrites of one file race and
//! loses a delete that races with a compaction. Here a commit is a compare-and-set on the next log
//! entry, and before each try it is judged against the newest view: the metadata is that of opening,
//! each removed segment is still active, the partitions that rows are added to are there, its application
//! transaction is newer. Each entry carries the id of its attempt, so that after a lost answer or a
//! time-out we read back whether it landed.

pub(crate) mod entry;
pub(crate) mod load;
pub(crate) mod view;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use deltalake_core::kernel::transaction::TransactionError;
use deltalake_core::kernel::{Action, Add};
use deltalake_core::logstore::CommitOrBytes;
use foreshard_policy::ids::SegmentId;
use uuid::Uuid;

use self::entry::{Entry, path_of};
use self::load::Place;
use self::view::View;
use super::error::{ConflictReason, StoreError, WRITE};
use super::rules::{self, Places};
use crate::layout::Layout;
use crate::ports::SharedClock;
use crate::segment::Segment;
use crate::table::{NewLayout, Operation};

/// Longest wait for one answer of the store about the log.
const LOG_TIME_MAX: Duration = Duration::from_secs(30);
/// Tries that end without an answer before a commit is given up.
const UNANSWERED_MAX: u32 = 4;
/// Pause after the first of them; it doubles.
const PAUSE: Duration = Duration::from_millis(10);

/// A change whose files are written, waiting to get into the log.
#[derive(Clone, Debug)]
pub(crate) struct Proposal {
    pub(crate) operation: Operation,
    pub(crate) removed: Vec<SegmentId>,
    pub(crate) added: Vec<(Arc<Segment>, Add)>,
    pub(crate) layout: Option<NewLayout>,
    pub(crate) transaction: Option<(String, i64)>,
}

/// What became of a proposal.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// It is in the log.
    Committed,
    /// Its transaction was in the log before.
    Already,
    /// It is not in the log and never will be.
    Refused(StoreError),
    /// It failed; [`StoreError::InDoubt`] says that it may be in the log.
    Failed(StoreError),
}

/// What one try to write an entry came to.
enum Attempt {
    /// Our entry is there.
    Landed,
    /// Another entry has the version.
    Taken,
    /// No entry is there, and the error is all we know. `settled` if it cannot appear any more.
    Unanswered { error: StoreError, settled: bool },
}

/// What the proposals of one entry do that were accepted so far.
struct Accepted {
    layout: Arc<Layout>,
    /// Partitions that get rows.
    written: HashSet<u32>,
    removed: HashSet<SegmentId>,
    sequences: HashMap<String, i64>,
}

impl Accepted {
    fn new(view: &View) -> Self {
        Self {
            layout: Arc::clone(&view.layout),
            written: HashSet::new(),
            removed: HashSet::new(),
            sequences: HashMap::new(),
        }
    }

    fn take(&mut self, proposal: &Proposal) {
        self.removed.extend(proposal.removed.iter().copied());
        self.written.extend(proposal.added.iter().map(|(segment, _)| segment.partition));
        self.sequences.extend(proposal.transaction.clone());
        if let Some(new) = &proposal.layout {
            self.layout = Arc::clone(&new.to);
        }
    }
}

/// The log of one table.
#[derive(Debug)]
pub(crate) struct Log {
    table: String,
    place: Place,
    clock: SharedClock,
    /// A put that has answered with an error on this store has not happened and will not.
    puts_settle: bool,
    /// What the metadata declared when the table was opened.
    declared: Arc<serde_json::Value>,
    view: View,
}

impl Log {
    pub(crate) fn new(
        table: &str,
        place: Place,
        view: View,
        clock: SharedClock,
        puts_settle: bool,
    ) -> Self {
        let declared = Arc::clone(&view.declared);
        Self { table: table.to_owned(), place, clock, puts_settle, declared, view }
    }

    /// The newest version known.
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// Takes in what other writers committed: `O(changes)`, two requests when there is nothing new.
    pub(crate) async fn refresh(&mut self) -> Result<(), StoreError> {
        while let Some(entry) = self.entry(self.view.version + 1).await? {
            self.view.apply(self.view.version + 1, &entry)?;
        }
        // Entries before a checkpoint may have been cleaned away, then the next one never comes.
        let hint = self.timed("read", "_last_checkpoint", self.place.last_checkpoint()).await?;
        if hint.is_some_and(|version| version > self.view.version) {
            self.reload().await?;
        }
        Ok(())
    }

    async fn reload(&mut self) -> Result<(), StoreError> {
        let view = Box::pin(self.place.load()).await?;
        if *view.shape != *self.view.shape {
            return Err(StoreError::Conflict {
                table: self.table.clone(),
                reason: ConflictReason::MetadataChanged { version: view.version },
            });
        }
        self.view = view;
        Ok(())
    }

    async fn entry(&self, version: u64) -> Result<Option<Entry>, StoreError> {
        self.timed("read", &path_of(version), self.place.entry(version)).await
    }

    async fn timed<T>(
        &self,
        action: &'static str,
        path: &str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        tokio::time::timeout(LOG_TIME_MAX, work).await.unwrap_or_else(|_elapsed| {
            let limit_ms = u64::try_from(LOG_TIME_MAX.as_millis()).unwrap_or(u64::MAX);
            Err(StoreError::Timeout { action, path: path.to_owned(), limit_ms })
        })
    }

    /// Writes one entry with all proposals that the rules allow, and says what became of each.
    pub(crate) async fn commit(&mut self, proposals: &[Proposal]) -> Vec<Verdict> {
        let commit = Uuid::new_v4();
        let mut verdicts = self.judge(proposals);
        loop {
            match self.try_commit(commit, proposals, &verdicts).await {
                Ok(true) => return verdicts,
                // Somebody else was first: judge again on top of that.
                Ok(false) => verdicts = self.judge(proposals),
                Err(error) => {
                    let failed = |verdict| match verdict {
                        Verdict::Committed => Verdict::Failed(error.clone()),
                        verdict => verdict,
                    };
                    return verdicts.into_iter().map(failed).collect();
                }
            }
        }
    }

    /// What the rules say of each proposal, in order, the accepted ones on top of each other.
    fn judge(&self, proposals: &[Proposal]) -> Vec<Verdict> {
        let mut accepted = Accepted::new(&self.view);
        let mut judged = Vec::with_capacity(proposals.len());
        for proposal in proposals {
            let verdict = self.judge_one(proposal, &accepted);
            if matches!(verdict, Verdict::Committed) {
                accepted.take(proposal);
            }
            judged.push(verdict);
        }
        judged
    }

    fn judge_one(&self, proposal: &Proposal, accepted: &Accepted) -> Verdict {
        let conflict =
            |reason| Verdict::Refused(StoreError::Conflict { table: self.table.clone(), reason });
        if let Some((application, sequence)) = &proposal.transaction {
            let known = accepted.sequences.get(application);
            let newest = known.or_else(|| self.view.transactions.get(application)).copied();
            if newest == Some(*sequence) {
                return Verdict::Already;
            }
            if let Some(newest) = newest.filter(|newest| newest > sequence) {
                return Verdict::Refused(StoreError::Fenced {
                    table: self.table.clone(),
                    application: application.clone(),
                    sequence: *sequence,
                    newest,
                });
            }
        }
        if self.view.declared != self.declared {
            let version = self.view.metadata_version;
            return conflict(ConflictReason::MetadataChanged { version });
        }
        let is_gone = |id: &&SegmentId| !self.view.has(**id) || accepted.removed.contains(*id);
        if let Some(segment) = proposal.removed.iter().find(is_gone) {
            return conflict(ConflictReason::SegmentGone { segment: *segment });
        }
        let places =
            Places { layout: &accepted.layout, partitions: self.view.partitions.as_slice() };
        let added_to = proposal.added.iter().map(|(segment, _)| segment.partition);
        // Sorted by the writer of its files.
        let is_removed = |id| proposal.removed.binary_search(&id).is_ok();
        if let Err(reason) = places.judge(added_to, is_removed, proposal.layout.as_ref()) {
            return conflict(reason);
        }
        let mut gone = proposal.layout.iter().flat_map(rules::gone);
        match gone.find(|ordinal| accepted.written.contains(ordinal)) {
            Some(ordinal) => conflict(ConflictReason::PartitionWritten { ordinal }),
            None => Verdict::Committed,
        }
    }

    /// Whether the accepted proposals are in the log now; `false` if the next version went to
    /// somebody else, whose commit is in the view then.
    async fn try_commit(
        &mut self,
        commit: Uuid,
        proposals: &[Proposal],
        verdicts: &[Verdict],
    ) -> Result<bool, StoreError> {
        let accepted: Vec<&Proposal> = proposals
            .iter()
            .zip(verdicts)
            .filter(|(_, verdict)| matches!(verdict, Verdict::Committed))
            .map(|(proposal, _)| proposal)
            .collect();
        if accepted.is_empty() {
            return Ok(true);
        }
        let now_ms = i64::try_from(self.clock.now_ms()).unwrap_or(i64::MAX);
        let (operation, actions) = entry::actions_of(&accepted, &self.view, now_ms)?;
        let bytes = entry::to_bytes(commit, operation, now_ms, actions.clone())?;
        let version = self.view.version + 1;
        if !self.write(version, commit, &bytes).await? {
            self.refresh().await?;
            return Ok(false);
        }
        if !self.is_visible(version, &actions).await? {
            return Ok(false);
        }
        if self.view.version < version {
            let removed = accepted.iter().flat_map(|proposal| proposal.removed.iter().copied());
            let added = accepted.iter().flat_map(|proposal| &proposal.added);
            let added = added.map(|(segment, _)| Arc::clone(segment)).collect();
            let new = accepted.iter().rev().find_map(|proposal| proposal.layout.as_ref());
            if let Some(new) = new {
                self.view.metadata = Arc::new(self.view.metadata_with(&new.to)?);
                self.view.lay_out(Arc::clone(&new.to));
            }
            self.view.change(&removed.collect(), added);
            let transactions = accepted.iter().filter_map(|proposal| proposal.transaction.clone());
            self.view.transactions.extend(transactions);
            self.view.version = version;
        }
        Ok(true)
    }

    /// Whether our entry of `version` counts. Where the log was cleaned up to a checkpoint, an entry
    /// before it succeeds and nobody ever reads it: then the view is loaded anew.
    async fn is_visible(&mut self, version: u64, actions: &[Action]) -> Result<bool, StoreError> {
        let in_doubt = |error| self.in_doubt(version, error);
        let hint = self.timed("read", "_last_checkpoint", self.place.last_checkpoint()).await;
        if hint.map_err(in_doubt)?.is_none_or(|checkpoint| checkpoint < version) {
            return Ok(true);
        }
        let table = self.table.clone();
        let in_doubt = |source| StoreError::InDoubt {
            table: table.clone(),
            version,
            source: Arc::new(source),
        };
        self.reload().await.map_err(in_doubt)?;
        self.place.contains(&self.view, actions).await.map_err(in_doubt)
    }

    /// Writes the entry of `version` and finds out whether it is ours that is there. Keeps trying
    /// as long as nobody has the version: the same bytes, so it does not matter which try lands.
    async fn write(&self, version: u64, commit: Uuid, bytes: &Bytes) -> Result<bool, StoreError> {
        let mut settled_so_far = true;
        let mut unanswered = 0;
        loop {
            match self.attempt(version, commit, bytes).await {
                Attempt::Landed => return Ok(true),
                Attempt::Taken => return Ok(false),
                Attempt::Unanswered { error, settled } => {
                    settled_so_far &= settled;
                    unanswered += 1;
                    let refused = matches!(error, StoreError::NotWritable { .. });
                    if refused && settled_so_far {
                        return Err(error);
                    }
                    if unanswered == UNANSWERED_MAX {
                        let known = settled_so_far;
                        return Err(if known { error } else { self.in_doubt(version, error) });
                    }
                    tokio::time::sleep(PAUSE * (1 << unanswered)).await;
                }
            }
        }
    }

    fn in_doubt(&self, version: u64, source: StoreError) -> StoreError {
        StoreError::InDoubt { table: self.table.clone(), version, source: Arc::new(source) }
    }

    async fn attempt(&self, version: u64, commit: Uuid, bytes: &Bytes) -> Attempt {
        let path = path_of(version);
        let put = async {
            let bytes = CommitOrBytes::LogBytes(bytes.clone());
            Ok(self.place.log_store.write_commit_entry(version, bytes, Uuid::nil()).await)
        };
        let (error, settled) = match self.timed(WRITE, &path, put).await {
            Ok(Ok(())) => return Attempt::Landed,
            Ok(Err(TransactionError::VersionAlreadyExists(_))) => {
                let error = object_store::Error::AlreadyExists {
                    path: path.clone(),
                    source: "another log entry".into(),
                };
                (StoreError::io(WRITE, &path, error), false)
            }
            Ok(Err(TransactionError::ObjectStore { source })) => {
                (StoreError::io(WRITE, &path, source), self.puts_settle)
            }
            Ok(Err(error)) => (StoreError::delta("commit", &self.place.url, error.into()), false),
            Err(error) => (error, false),
        };
        // It may have been ours: the answer of an earlier try was lost, or of this one.
        match self.entry(version).await {
            Ok(Some(entry)) if entry.commit == Some(commit) => Attempt::Landed,
            Ok(Some(_)) => Attempt::Taken,
            Ok(None) => {
                // A store that refuses outright did not take it.
                let settled = settled || matches!(error, StoreError::NotWritable { .. });
                Attempt::Unanswered { error, settled }
            }
            Err(error) => Attempt::Unanswered { error, settled: false },
        }
    }
}
