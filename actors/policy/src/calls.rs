//! What one task reports about the functions it called.

use serde::{Deserialize, Serialize};

use crate::ids::{ExpressionId, NodeId, PartitionId, SeriesKey};
use std::sync::Arc;

/// All evaluations of one function expression over one partition within one task of one query.
///
/// Load is measured nanoseconds, not queries: [`would_be_ns`](Self::would_be_ns) counts stored rows at
/// what computing them would have cost, or a cache would hide the load that it serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallRecord {
    /// When the task finished, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Query that asked, unique within the cluster; calls of one query are co-executed.
    pub query: u64,
    /// Name of the outermost function of the expression.
    pub function: Arc<str>,
    /// The expression that was evaluated.
    pub expression: ExpressionId,
    /// The partition whose rows it was evaluated on.
    pub partition: PartitionId,
    /// The node that did it.
    pub node: NodeId,
    /// Rows the query needed.
    pub rows: u64,
    /// Of these, rows answered from a stored output.
    pub rows_stored: u64,
    /// Of [`rows`](Self::rows), rows in segments that this expression was never asked for before.
    pub rows_fresh: u64,
    /// Of these fresh rows, rows answered from a stored output.
    pub rows_fresh_stored: u64,
    /// Nanoseconds spent computing the rows that were not stored.
    pub ns: u64,
    /// Nanoseconds for which it waited for CPUs of the node to compute them.
    #[serde(default)]
    pub waited_ns: u64,
    /// Nanoseconds the whole call would have cost without stored outputs.
    pub would_be_ns: u64,
    /// Bytes of the output for the rows that were computed.
    pub bytes: u64,
    /// W3C trace context of the scan that called, if it was traced: decisions link to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Arc<str>>,
}

impl CallRecord {
    /// A record of no evaluation yet: whoever evaluates adds to it.
    #[must_use]
    pub fn empty(
        series: SeriesKey,
        query: u64,
        node: NodeId,
        traceparent: Option<Arc<str>>,
    ) -> Self {
        let SeriesKey { function, expression, partition } = series;
        Self {
            at_ms: 0,
            query,
            function,
            expression,
            partition,
            node,
            rows: 0,
            rows_stored: 0,
            rows_fresh: 0,
            rows_fresh_stored: 0,
            ns: 0,
            waited_ns: 0,
            would_be_ns: 0,
            bytes: 0,
            traceparent,
        }
    }

    /// The series this record belongs to.
    #[must_use]
    pub fn series(&self) -> SeriesKey {
        SeriesKey {
            function: self.function.clone(),
            expression: self.expression,
            partition: self.partition.clone(),
        }
    }
}
