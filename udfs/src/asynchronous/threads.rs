//! The threads on which asynchronous functions are awaited.
//!
//! They are the functions' own: a query may run on a runtime of one thread, on a runtime whose threads
//! all wait for an answer, or on one that ends before the next query comes. Connections that a function
//! keeps open live on.

use std::io;
use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Threads that await answers. What they do is waiting, not computing.
const THREADS: usize = 2;

/// A runtime that is started when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Threads(Mutex<Option<Runtime>>);

impl Threads {
    /// Runs `work` there.
    ///
    /// # Errors
    /// If the system has no threads to give.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let mut runtime = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = match runtime.as_ref() {
            Some(runtime) => runtime,
            None => runtime.insert(
                Builder::new_multi_thread()
                    .worker_threads(THREADS)
                    .thread_name("foreshard-await")
                    .enable_all()
                    .build()?,
            ),
        };
        Ok(runtime.spawn(work))
    }
}

impl Drop for Threads {
    /// Without waiting for what runs: an engine may be dropped on a thread of another runtime.
    fn drop(&mut self) {
        let runtime = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn threads_end_without_a_word_on_a_thread_of_another_runtime() {
        let threads = Threads::default();
        let name = threads.spawn(async { std::thread::current().name().map(str::to_owned) });
        assert_eq!(name.unwrap().await.unwrap().as_deref(), Some("foreshard-await"));
        let forever = threads.spawn(std::future::pending::<()>()).unwrap();
        drop(threads);
        assert!(forever.await.unwrap_err().is_cancelled());
    }
}
