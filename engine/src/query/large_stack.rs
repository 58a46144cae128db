//! Runs the planning of deep statements on a thread of its own, with a stack that they fit on.

use crate::error::EngineError;

/// Stack of the thread in bytes; 1,000 terms need some 20 MB in a debug build.
const PLANNING_STACK: usize = 256 << 20;

/// Runs a future on a thread of its own with a stack that deep plans fit on.
pub(crate) async fn on_large_stack<T, F>(
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<T, EngineError>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let runtime = tokio::runtime::Handle::current();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("planning".to_owned()).stack_size(PLANNING_STACK);
    let spawned = thread.spawn(move || {
        // Nobody waits any more if the query was cancelled meanwhile.
        drop(sender.send(runtime.block_on(work())));
    });
    spawned
        .map_err(|error| EngineError::Io { message: format!("no thread to plan on: {error}") })?;
    receiver.await.map_err(|_panicked| EngineError::Cancelled)
}
