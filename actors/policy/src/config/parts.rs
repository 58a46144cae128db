//! The sections of the loop's settings.

use super::Provider;
use super::section::{Bound, ConfigError, fits_always, section};

section! {
    /// What the monitor keeps.
    MonitorConfig (
        RawMonitorConfig = "RawMonitorConfig", prefix "monitor.", fits coarser_is_kept_longer
    ) {
        /// Ticks after which a tick counts half in rolling means and deviations of frequency.
        "half-life-ticks" half_life_ticks with_half_life_ticks: f64 = 300.0,
            "ticks", Bound::Above(0.0);
        /// Calls after which a call counts half in rolling means and deviations of duration.
        "half-life-calls" half_life_calls with_half_life_calls: f64 = 50.0,
            "calls", Bound::Above(0.0);
        /// Ticks with calls that are kept over all series; beyond it the oldest ticks are
        /// forgotten.
        "buckets-max" buckets_max with_buckets_max: usize = 2_000_000,
            "buckets of 32 bytes", Bound::Within(1_000.0, 1e9);
        /// Pairs of expressions on partitions whose co-execution is counted.
        "pairs-max" pairs_max with_pairs_max: usize = 10_000,
            "pairs", Bound::Within(0.0, 1e7);
        /// Ticks over which the load that reactive rules go by is averaged.
        "current-ticks" current_ticks with_current_ticks: usize = 3,
            "ticks", Bound::Within(1.0, 1e3);
        /// Cells in each of the four rows of the sketches that count series beyond series-max.
        "tail-cells" tail_cells with_tail_cells: usize = 16_384,
            "cells of 16 bytes", Bound::Within(16.0, 1e7);
        /// How long what was called is kept on disk by the second.
        "seconds-kept" seconds_kept with_seconds_kept: u64 = 48,
            "h", Bound::Within(1.0, 1e5);
        /// How long it is then kept by the minute.
        "minutes-kept" minutes_kept with_minutes_kept: u64 = 30,
            "days", Bound::Within(1.0, 1e5);
        /// How long it is kept by the hour. At least minutes-kept.
        "hours-kept" hours_kept with_hours_kept: u64 = 730,
            "days", Bound::Within(1.0, 1e5);
        /// Disk for all of it. Beyond it the oldest seconds become minutes, and the oldest minutes
        /// hours, before anything is lost.
        "disk-bytes" disk_bytes with_disk_bytes: u64 = 1 << 30,
            "bytes", Bound::Within(1_048_576.0, 1e15);
    }
    sections {}
}

fn coarser_is_kept_longer(config: &MonitorConfig) -> Result<(), ConfigError> {
    const HOURS_A_DAY: u64 = 24;
    if config.minutes_kept > config.hours_kept {
        return Err(ConfigError::Limit {
            key: "monitor.minutes-kept",
            value: config.minutes_kept as f64,
            limit: config.hours_kept as f64,
            because: "monitor.hours-kept",
        });
    }
    if config.seconds_kept > config.minutes_kept * HOURS_A_DAY {
        return Err(ConfigError::Limit {
            key: "monitor.seconds-kept",
            value: config.seconds_kept as f64,
            limit: (config.minutes_kept * HOURS_A_DAY) as f64,
            because: "monitor.minutes-kept, in hours",
        });
    }
    Ok(())
}

section! {
    /// The neural member of the ensemble.
    LstmConfig (RawLstmConfig = "RawLstmConfig", prefix "lstm.", fits fits_always) {
        /// Whether the LSTM takes part in the ensemble.
        "enabled" enabled with_enabled: bool = true,
            "", Bound::Any;
        /// Size of the hidden state.
        "hidden" hidden with_hidden: usize = 24,
            "units", Bound::Within(1.0, 127.0);
        /// Training steps per tick; zero stops learning.
        "steps-per-tick" steps_per_tick with_steps_per_tick: u32 = 4,
            "steps", Bound::Within(0.0, 1e4);
        /// Ticks that the network looks back.
        "window" window with_window: usize = 48,
            "ticks", Bound::Within(2.0, 2048.0);
        /// Share of the time that learning, also that of other members, takes while queries run; without
        /// them it takes what it needs.
        "busy-share" busy_share with_busy_share: f64 = 0.05,
            "of the time", Bound::Within(0.001, 1.0);
    }
    sections {}
}

section! {
    /// When partitions gain and lose replicas.
    ReshapeConfig (RawReshapeConfig = "RawReshapeConfig", prefix "reshape.", fits no_flapping) {
        /// Load per replica above which a replica is added.
        "copy-above" copy_above with_copy_above: f64 = 600.0,
            "busy ms per s", Bound::Above(0.0);
        /// Load per replica below which one is dropped, if it stays below without it. At most 0.6
        /// of copy-above.
        "drop-below" drop_below with_drop_below: f64 = 250.0,
            "busy ms per s", Bound::Within(0.0, f64::MAX);
        /// Most replicas of one partition.
        "copies-max" copies_max with_copies_max: u32 = 4,
            "replicas", Bound::Within(1.0, 64.0);
        /// Load per replica above which a partition is split that has copies-max replicas, if a node has none.
        "split-above" split_above with_split_above: f64 = 900.0,
            "busy ms per s", Bound::Above(0.0);
        /// Bytes above which a partition is split, so that it can be moved and computed in parts.
        "split-bytes" split_bytes with_split_bytes: u64 = 1 << 30,
            "bytes", Bound::Within(1.0, 1e18);
        /// Share of split-above and of split-bytes that two neighbours together stay below to be merged, if
        /// their table has more partitions than it was made with.
        "merge-below" merge_below with_merge_below: f64 = 0.4,
            "of the limits of a split", Bound::Within(0.0, 0.5);
        /// Ticks in which no other partition of a table is split or merged after one was.
        "split-dwell-ticks" split_dwell_ticks with_split_dwell_ticks: u64 = 30,
            "ticks", Bound::Within(0.0, 1e6);
        /// Ticks a partition rests after its replicas changed. It gets another copy only if what is called, at what
        /// that cost before, is still a tenth more than copy-above.
        "dwell-ticks" dwell_ticks with_dwell_ticks: u64 = 10,
            "ticks", Bound::Within(0.0, 1e6);
        /// Ticks in which a step that people undid, or that did harm, is not taken again.
        "undone-ticks" undone_ticks with_undone_ticks: u64 = 300,
            "ticks", Bound::Within(0.0, 1e9);
        /// Bytes that replicas may be copied within an hour. Copies for the sake of load wait beyond it;
        /// repairs and drains count and do not wait.
        "moved-bytes-per-hour-max" moved_bytes_per_hour_max with_moved_bytes_per_hour_max: u64 = 64 << 30,
            "bytes", Bound::Within(0.0, 1e18);
        /// Load per CPU of the busiest node above which load is taken off it.
        "balance-above" balance_above with_balance_above: f64 = 1.35,
            "of the mean load per CPU", Bound::Within(1.0, 1e3);
        /// Load per CPU of the busiest node at which that ends. At most balance-above.
        "balance-until" balance_until with_balance_until: f64 = 1.25,
            "of the mean load per CPU", Bound::Within(1.0, 1e3);
        /// Load per CPU up to which a node is calm, however little others carry.
        "balance-load-min" balance_load_min with_balance_load_min: f64 = 300.0,
            "busy ms per s", Bound::Within(0.0, 1e3);
        /// Ticks within which a move spares more waiting than its copying takes, or it is not made.
        "payback-ticks" payback_ticks with_payback_ticks: u64 = 300,
            "ticks", Bound::Within(1.0, 1e6);
        /// Whether partitions that queries join by their keys come to one node, where joining them takes no
        /// exchange.
        "colocate" colocate with_colocate: bool = true,
            "", Bound::Any;
        /// Ticks a node rests after it gave or took a replica in a move.
        "blackout-ticks" blackout_ticks with_blackout_ticks: u64 = 3,
            "ticks", Bound::Within(0.0, 1e6);
        /// Steps that may be under way at the same time.
        "steps-in-flight-max" steps_in_flight_max with_steps_in_flight_max: usize = 16,
            "steps", Bound::Within(1.0, 1e4);
    }
    sections {}
}

fn no_flapping(config: &ReshapeConfig) -> Result<(), ConfigError> {
    if config.balance_until > config.balance_above {
        return Err(ConfigError::Limit {
            key: "reshape.balance-until",
            value: config.balance_until,
            limit: config.balance_above,
            because: "reshape.balance-above",
        });
    }
    let limit = 0.6 * config.copy_above;
    if config.drop_below <= limit {
        return Ok(());
    }
    Err(ConfigError::Limit {
        key: "reshape.drop-below",
        value: config.drop_below,
        limit,
        because: "0.6 of reshape.copy-above, or replicas would flap",
    })
}

section! {
    /// Which outputs are computed before they are asked for.
    PrecomputeConfig (
        RawPrecomputeConfig = "RawPrecomputeConfig", prefix "precompute.", fits fits_always
    ) {
        /// Share of a tick's wall time that background compute may use on each node; zero stops it.
        "budget-share" budget_share with_budget_share: f64 = 0.5,
            "of a tick", Bound::Within(0.0, 1.0);
        /// How far ahead outputs are made ready, and rows read into memory. At most horizon-ticks.
        "lead-ticks" lead_ticks with_lead_ticks: usize = 8,
            "ticks", Bound::Within(1.0, 4096.0);
        /// Functions cheaper than this are never stored: looking an output up costs as much.
        "min-ns-per-row" min_ns_per_row with_min_ns_per_row: f64 = 300.0,
            "ns per row", Bound::Within(0.0, 1e12);
        /// Expected saving per cost below which an output is not computed, nor rows read, ahead.
        "min-worth" min_worth with_min_worth: f64 = 0.1,
            "ns saved per ns spent", Bound::Within(0.0, 1e6);
        /// Share of a node's memory above which rows and outputs that nobody is expected to use are dropped, and
        /// nothing is read ahead.
        "drop-above" drop_above with_drop_above: f64 = 0.9,
            "of memory-bytes", Bound::Within(0.0, 1.0);
    }
    sections {}
}

section! {
    /// How steps are judged by what they brought.
    FeedbackConfig (
        RawFeedbackConfig = "RawFeedbackConfig", prefix "feedback.", fits fits_always
    ) {
        /// Ticks after which steps count half as much for the trust in their kind, and a kind that is stopped
        /// may try again.
        "window-ticks" window_ticks with_window_ticks: u64 = 300,
            "ticks", Bound::Within(1.0, 1e9);
        /// Ticks in which a partition whose replicas changed is watched for harm; zero watches none.
        "watch-ticks" watch_ticks with_watch_ticks: u64 = 120,
            "ticks", Bound::Within(0.0, 1e9);
        /// Share of the time in which copies and moves that even loads out are held back, to measure what others
        /// spare; zero holds nothing back. Repairs, drains, copies of what is hotter than copy-above and what
        /// people ask for are never held back.
        "holdback-share" holdback_share with_holdback_share: f64 = 0.02,
            "of the time", Bound::Within(0.0, 0.5);
    }
    sections {}
}

section! {
    /// How many nodes there are and what each may use.
    AllocateConfig (
        RawAllocateConfig = "RawAllocateConfig", prefix "allocate.", fits minimum_below_maximum
    ) {
        /// Where new nodes live: in-process, process (more processes of this program on this machine) or
        /// kubernetes (pods of a StatefulSet).
        "provider" provider with_provider: Provider = Provider::InProcess,
            "", Bound::Any;
        /// Fewest nodes. At most nodes-max.
        "nodes-min" nodes_min with_nodes_min: u32 = 1,
            "nodes", Bound::Within(1.0, 1e5);
        /// Most nodes.
        "nodes-max" nodes_max with_nodes_max: u32 = 8,
            "nodes", Bound::Within(1.0, 1e5);
        /// Node-hours of a day, from midnight in UTC, that nodes which can be started here may run for; 0 is no
        /// limit. Never fewer than nodes-min run. What ran before a restart is not counted.
        "node-hours-max" node_hours_max with_node_hours_max: f64 = 0.0,
            "node-hours per day", Bound::Within(0.0, 2.4e6);
        /// Share of a node's CPU permits that the load may keep busy.
        "target-utilisation" target_utilisation with_target_utilisation: f64 = 0.7,
            "of cpu-permits", Bound::Within(0.05, 1.0);
        /// Ticks that fewer nodes must have been enough before one is removed.
        "scale-in-ticks" scale_in_ticks with_scale_in_ticks: u64 = 300,
            "ticks", Bound::Within(1.0, 1e9);
        /// Ticks from ten nodes to eleven until these carry the load. If it is not 0, nodes come and go so
        /// early that moves are over in time; the horizon should then be longer than the longest move.
        "move-ticks" move_ticks with_move_ticks: usize = 0,
            "ticks", Bound::Within(0.0, 4096.0);
        /// Tasks that may compute at the same time on one node.
        "cpu-permits" cpu_permits with_cpu_permits: u32 = 2,
            "tasks", Bound::Within(1.0, 4096.0);
        /// How fast copies of partitions, and rows that are read ahead, may come to one node; 0 for as fast as
        /// they can.
        "io-bytes-per-s" io_bytes_per_s with_io_bytes_per_s: u64 = 0,
            "bytes per s", Bound::Within(0.0, 1e15);
        /// Memory of one node for resident segments and stored outputs.
        "memory-bytes" memory_bytes with_memory_bytes: u64 = 1 << 30,
            "bytes", Bound::Within(1_048_576.0, 1e15);
    }
    sections {}
}

fn minimum_below_maximum(config: &AllocateConfig) -> Result<(), ConfigError> {
    if config.nodes_min <= config.nodes_max {
        return Ok(());
    }
    Err(ConfigError::Limit {
        key: "allocate.nodes-min",
        value: f64::from(config.nodes_min),
        limit: f64::from(config.nodes_max),
        because: "allocate.nodes-max",
    })
}
