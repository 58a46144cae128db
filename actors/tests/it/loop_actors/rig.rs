//! A cluster and a node provider that exist on paper only, and a loop around them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use foreshard_actors::loop_handle::{LoopArgs, LoopHandle, Ticks};
use foreshard_actors::ports::{Clock, Cluster, NodeProvider, Outcome};
use foreshard_actors::state_file::MemoryFile;
use foreshard_policy::calls::CallRecord;
use foreshard_policy::cluster::{ClusterView, NodeView, OutputView, PartitionView, Step};
use foreshard_policy::config::LoopConfig;
use foreshard_policy::ids::{Epoch, ExpressionId, NodeId, PartitionId};

const GIB: u64 = 1 << 30;
const ROWS: u64 = 1_000;

/// How the cluster answers a step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Answer {
    /// Carried out at once.
    #[default]
    Done,
    /// Like a node that has just died.
    Never,
    /// With an error.
    Fails,
}

#[derive(Debug, Default)]
pub(crate) struct PaperCluster {
    view: Mutex<ClusterView>,
    sent: Mutex<Vec<(Epoch, Step)>>,
    answer: Mutex<Answer>,
    under_way: AtomicUsize,
    step_ns: AtomicU64,
    budgets: Mutex<BTreeMap<NodeId, (u32, u64)>>,
    budgets_set: AtomicUsize,
}

const FAILURE: Outcome = Outcome::Failed { code: "FS-TEST-1", reason: String::new() };

impl PaperCluster {
    /// Three nodes, and partition `n` of table `t` on node `n`.
    fn new() -> Self {
        let cluster = Self::default();
        {
            let mut view = cluster.view.lock().unwrap();
            view.epoch = Epoch(1);
            for node in 0..3 {
                view.nodes.insert(NodeId(node), node_view());
                let partition =
                    PartitionView { holders: [NodeId(node)].into(), rows: ROWS, bytes: 64 * ROWS };
                view.partitions.insert(PartitionId::new("t", node), partition);
            }
        }
        cluster
    }

    pub(crate) fn sent(&self) -> Vec<(Epoch, Step)> {
        self.sent.lock().unwrap().clone()
    }

    pub(crate) fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// How long a step takes by its own account.
    pub(crate) fn takes(&self, ns: u64) {
        self.step_ns.store(ns, Ordering::SeqCst);
    }

    pub(crate) fn budgets_set(&self) -> usize {
        self.budgets_set.load(Ordering::SeqCst)
    }

    pub(crate) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::SeqCst)
    }

    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.view.lock().unwrap().nodes.keys().copied().collect()
    }

    pub(crate) fn budgets(&self) -> BTreeMap<NodeId, (u32, u64)> {
        self.budgets.lock().unwrap().clone()
    }

    pub(crate) fn holders(&self, partition: u32) -> usize {
        self.view.lock().unwrap().partitions[&PartitionId::new("t", partition)].holders.len()
    }

    /// Takes the last replica away, as if its node had died.
    pub(crate) fn lose(&self, partition: u32) {
        let mut view = self.view.lock().unwrap();
        let lost = view.partitions.get_mut(&PartitionId::new("t", partition)).unwrap();
        lost.holders.clear();
        view.nodes.remove(&NodeId(partition));
    }

    /// New rows in partition 0: the outputs of these expressions are missing.
    pub(crate) fn append(&self, expressions: &[u32]) {
        let mut view = self.view.lock().unwrap();
        for number in expressions {
            let target = (expression(*number), PartitionId::new("t", 0));
            let (function, rows_missing) = ("f".into(), ROWS);
            let output = OutputView {
                function,
                rows_stored: 0,
                rows_missing,
                bytes: 0,
                is_state: false,
                pinned: false,
            };
            view.outputs.insert(target, output);
        }
    }
}

fn node_view() -> NodeView {
    NodeView {
        memory_bytes_max: GIB,
        memory_bytes: GIB / 8,
        cpu_permits: 2,
        draining: false,
        joined: false,
        leaves: 0,
    }
}

struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Cluster for PaperCluster {
    fn view(&self) -> ClusterView {
        self.view.lock().unwrap().clone()
    }

    async fn carry_out(&self, epoch: Epoch, step: Step) -> Outcome {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let _under_way = UnderWay(&self.under_way);
        self.sent.lock().unwrap().push((epoch, step.clone()));
        let answer = *self.answer.lock().unwrap();
        match answer {
            Answer::Done => {}
            Answer::Never => std::future::pending().await,
            Answer::Fails => return FAILURE,
        }
        let mut view = self.view.lock().unwrap();
        if epoch < view.epoch {
            return Outcome::Failed { code: "FS-MOVE-1", reason: "old epoch".into() };
        }
        view.epoch = epoch;
        view.apply(&step);
        Outcome::Done { rows: ROWS, bytes: 8 * ROWS, ns: self.step_ns.load(Ordering::SeqCst) }
    }
}

#[async_trait]
impl NodeProvider for PaperCluster {
    fn nodes(&self) -> Vec<NodeId> {
        self.nodes()
    }

    async fn add(&self, node: NodeId) -> Outcome {
        if let Answer::Fails = *self.answer.lock().unwrap() {
            return FAILURE;
        }
        self.view.lock().unwrap().nodes.insert(node, node_view());
        Outcome::Done { rows: 0, bytes: 0, ns: 1 }
    }

    async fn remove(&self, node: NodeId) -> Outcome {
        self.view.lock().unwrap().apply(&Step::RemoveNode { node });
        Outcome::Done { rows: 0, bytes: 0, ns: 1 }
    }

    fn set_budget(&self, node: NodeId, cpu_permits: u32, memory_bytes_max: u64) {
        self.budgets_set.fetch_add(1, Ordering::SeqCst);
        self.budgets.lock().unwrap().insert(node, (cpu_permits, memory_bytes_max));
    }
}

pub(crate) fn expression(number: u32) -> ExpressionId {
    ExpressionId(u128::from(number) + 1)
}

fn records(partition: u32, number: u32, count: usize, ns: u64) -> Vec<CallRecord> {
    static QUERY: AtomicU64 = AtomicU64::new(0);
    let one = || CallRecord {
        at_ms: 0,
        query: QUERY.fetch_add(1, Ordering::Relaxed),
        function: "f".into(),
        expression: expression(number),
        partition: PartitionId::new("t", partition),
        node: NodeId(partition),
        rows: ROWS,
        rows_stored: 0,
        rows_fresh: 0,
        rows_fresh_stored: 0,
        ns,
        waited_ns: 0,
        would_be_ns: ns,
        bytes: 8 * ROWS,
        traceparent: None,
    };
    std::iter::repeat_with(one).take(count).collect()
}

/// `count` calls of an expression on partition 0, each 1 ms of work: little load.
pub(crate) fn calls(number: u32, count: usize) -> Vec<CallRecord> {
    records(0, number, count, 1_000_000)
}

/// `count` calls on a partition, each 150 ms of work.
pub(crate) fn hot_calls(partition: u32, count: usize) -> Vec<CallRecord> {
    records(partition, 0, count, 150_000_000)
}

/// The same calls on rows that are new to them, answered from stored outputs.
pub(crate) fn stored_calls(number: u32, count: usize) -> Vec<CallRecord> {
    let mut calls = calls(number, count);
    for call in &mut calls {
        (call.rows_stored, call.rows_fresh, call.rows_fresh_stored) = (ROWS, ROWS, ROWS);
        (call.ns, call.bytes) = (0, 0);
    }
    calls
}

/// The defaults, without the LSTM.
pub(crate) fn config() -> LoopConfig {
    let config = LoopConfig::default();
    let lstm = config.lstm().clone().with_enabled(false).unwrap();
    config.with_lstm(lstm).unwrap()
}

/// The time of the paused clock, which somebody may set.
#[derive(Debug)]
pub(crate) struct PaperClock {
    start: tokio::time::Instant,
    now_ms: AtomicI64,
}

impl PaperClock {
    fn new() -> Self {
        Self { start: tokio::time::Instant::now(), now_ms: AtomicI64::new(1_700_000_000_000) }
    }

    pub(crate) fn jump_ms(&self, ms: i64) {
        self.now_ms.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for PaperClock {
    fn now_ms(&self) -> u64 {
        let passed = self.start.elapsed().as_millis() as i64;
        (self.now_ms.load(Ordering::SeqCst) + passed) as u64
    }

    fn monotonic_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

pub(crate) struct Rig {
    pub(crate) handle: LoopHandle,
    pub(crate) clock: Arc<PaperClock>,
    pub(crate) cluster: Arc<PaperCluster>,
    pub(crate) checkpoint: Arc<MemoryFile>,
}

impl Rig {
    /// Ticks by hand, and a cluster that nobody keeps.
    pub(crate) fn args() -> LoopArgs {
        let cluster = Arc::new(PaperCluster::new());
        LoopArgs { ticks: Ticks::ByHand, ..LoopArgs::new(config(), cluster.clone(), cluster) }
    }

    pub(crate) async fn start(change: impl FnOnce(&mut LoopArgs)) -> Self {
        let cluster = Arc::new(PaperCluster::new());
        let checkpoint = Arc::new(MemoryFile::default());
        let clock = Arc::new(PaperClock::new());
        let mut args = LoopArgs {
            clock: clock.clone(),
            cluster: cluster.clone(),
            provider: cluster.clone(),
            checkpoint_file: checkpoint.clone(),
            ..Self::args()
        };
        change(&mut args);
        let handle = LoopHandle::start(args, None).await.unwrap();
        Self { handle, clock, cluster, checkpoint }
    }

    /// Waits on the paused clock; a minute of it is for ever.
    pub(crate) async fn until(&self, holds: impl Fn(&LoopHandle) -> bool) {
        let wait = async {
            while !holds(&self.handle) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
    }

    /// Ticks with 8 calls of 150 ms each: more than a replica may carry.
    pub(crate) async fn tick_hot(&self, partition: u32, ticks: usize) {
        for _ in 0..ticks {
            self.handle.calls().offer(hot_calls(partition, 8));
            self.handle.tick().await.unwrap();
        }
    }
}
