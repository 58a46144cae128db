//! Runs a test on threads with a stack that debug builds of DataFusion's planner fit in.

use std::future::Future;

/// Bytes of stack a thread gets: plans nest, and debug frames are large.
const STACK_BYTES: usize = 64 << 20;

/// Runs `test` to its end on a runtime of two threads.
pub(crate) fn run<T: Send + 'static>(test: impl Future<Output = T> + Send + 'static) -> T {
    std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_stack_size(STACK_BYTES)
                .enable_all()
                .build()
                .unwrap()
                .block_on(test)
        })
        .unwrap()
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
