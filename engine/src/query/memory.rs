//! How much of a node's memory one query may take.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::common::{Result, resources_datafusion_err};
use datafusion::execution::memory_pool::{
    MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation, human_readable_size,
};
use datafusion::execution::runtime_env::RuntimeEnv;

/// The part of a pool that one query may take; what it takes, the pool is charged with.
#[derive(Debug)]
struct QueryShare {
    pool: Arc<dyn MemoryPool>,
    used: AtomicUsize,
    max: usize,
}

impl fmt::Display for QueryShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", human_readable_size(self.max), self.pool)
    }
}

impl MemoryPool for QueryShare {
    fn name(&self) -> &'static str {
        "query share"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.pool.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.pool.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.used.fetch_add(additional, Ordering::Relaxed);
        self.pool.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.pool.shrink(reservation, shrink);
        self.used.fetch_sub(shrink, Ordering::Relaxed);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let used = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(additional).filter(|used| *used <= self.max)
        });
        used.map_err(|used| {
            resources_datafusion_err!(
                "the query would take {} more than the {} it has; it may take {} \
                 (limits.query-memory-percent)",
                human_readable_size(additional),
                human_readable_size(used),
                human_readable_size(self.max)
            )
        })?;
        self.pool.try_grow(reservation, additional).inspect_err(|_error| {
            self.used.fetch_sub(additional, Ordering::Relaxed);
        })
    }

    fn reserved(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.max)
    }
}

/// `runtime` for one query, which may take `bytes_max` of its memory.
#[must_use]
pub(super) fn share(runtime: &RuntimeEnv, bytes_max: usize) -> Arc<RuntimeEnv> {
    let pool = Arc::clone(&runtime.memory_pool);
    let memory_pool = Arc::new(QueryShare { pool, used: AtomicUsize::new(0), max: bytes_max });
    Arc::new(RuntimeEnv { memory_pool, ..runtime.clone() })
}

#[cfg(test)]
mod tests {
    use datafusion::execution::memory_pool::GreedyMemoryPool;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;

    use super::*;

    #[test]
    fn a_query_takes_its_share_and_all_queries_no_more_than_there_is() {
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(100));
        let node = RuntimeEnvBuilder::new().with_memory_pool(pool.clone()).build().unwrap();
        let (one, other) = (share(&node, 60), share(&node, 60));
        let of = |query: &Arc<RuntimeEnv>| MemoryConsumer::new("x").register(&query.memory_pool);
        let (first, second) = (of(&one), of(&other));
        first.try_grow(50).unwrap();
        let error = first.try_grow(20).unwrap_err().to_string();
        assert!(
            error.contains("20.0 B more than the 50.0 B") && error.contains("60.0 B"),
            "{error}"
        );
        assert!(second.try_grow(55).is_err(), "the node has no more");
        assert_eq!((pool.reserved(), other.memory_pool.reserved()), (50, 0));
        second.try_grow(45).unwrap();
        drop(first);
        assert_eq!((pool.reserved(), one.memory_pool.reserved()), (45, 0));
        second.try_grow(15).unwrap();
    }
}
