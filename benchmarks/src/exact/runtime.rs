//! Runs a future on threads with a stack that debug builds of DataFusion's planner fit in.

use std::future::Future;
use std::panic::resume_unwind;

/// Bytes of stack a thread gets: plans nest, and debug frames are large.
const STACK_BYTES: usize = 64 << 20;

/// Runs `work` to its end on a runtime of two threads.
///
/// # Panics
/// If `work` does, or if the system has no threads to give.
pub fn run<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_stack_size(STACK_BYTES)
                .enable_all()
                .build()
                .unwrap_or_else(|error| resume_unwind(Box::new(error)))
                .block_on(work)
        })
        .unwrap_or_else(|error| resume_unwind(Box::new(error)))
        .join()
        .unwrap_or_else(|panic| resume_unwind(panic))
}
