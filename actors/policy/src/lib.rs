//! Everything that is decided: pure functions from what was seen to what is to be done.
//!
//! Nothing here awaits, sleeps, reads a clock, touches a disk or knows Arrow or DataFusion. The same
//! input gives the same plan, which is why every decision can be tested, replayed and explained.
//!
//! | module | question it answers |
//! |---|---|
//! | [`calls`], [`history`] | what was called, where, how often, how long |
//! | [`forecast`] | what will be called in the coming ticks |
//! | [`score`] | what a forecast or a step turned out to be worth |
//! | [`trust`], [`harm`] | whether steps brought what was expected of them, and which did harm |
//! | [`waits`], [`queueing`] | what steps that move load spared, and how long work waits on a busy node |
//! | [`reshape`] | which replicas and outputs to add or drop, and why |
//! | [`block_load`], [`key_ranges`] | which rows of a partition are called, and which keys queries ask for |
//! | [`alike`] | which partitions of several tables hold the same keys |
//! | [`next`] | which call follows, and which keys will be hot |
//! | [`courtesy`] | how long background work waits for queries |
//! | [`predicates`] | in which order a scan evaluates its predicates |
//! | [`admit`] | what gives way where a computed output finds no room |
//! | [`repeats`] | whether something new will be called again |
//! | [`disk`] | whether what finds no room in memory is worth its bytes on disk |
//! | [`caches`] | whether other rules would have spared more |
//! | [`allocate`] | how many nodes, and what each may use |
//! | [`budgets`], [`fair`] | what each table may use of it, and who is next |
//! | [`decision`] | what was decided, why, and what came of it |
//! | [`control`], [`undo`] | what people let the loop do, and what takes a step back |
//! | [`what_if`] | what would be planned if something were otherwise |
//! | [`config`] | what the operator wants |

pub mod admit;
pub mod alike;
pub mod allocate;
pub mod block_load;
pub mod budgets;
pub mod caches;
pub mod calls;
pub mod cluster;
pub mod config;
pub mod control;
pub mod courtesy;
pub mod decision;
pub mod disk;
pub mod fair;
pub mod forecast;
pub mod harm;
pub mod history;
pub mod ids;
pub mod invariant;
pub mod key_ranges;
pub mod next;
pub mod predicates;
pub mod queueing;
pub mod random;
pub mod rate;
pub mod repeats;
pub mod reshape;
pub mod score;
pub mod trust;
pub mod undo;
pub mod waits;
pub mod what_if;
