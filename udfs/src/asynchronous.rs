//! Functions that wait for something else: a model behind HTTP or gRPC, another database.
//!
//! [`Asynchronous`] makes of DataFusion's [`AsyncScalarUDF`] a function that is called like any other, so
//! that everything that is done for functions is done for it: guarded, metered, versioned, stored.
//!
//! A call is cut into batches. So many are on their way at a time as the options allow, for all queries
//! of the process together; each attempt has a time limit, and an immutable function is asked again when
//! one fails. All of it runs on threads of its own ([`threads`]); who asks awaits the answer
//! ([`Asynchronous::answer`]), or holds up its thread where DataFusion calls a function and cannot wait.

mod batches;
mod evaluate;
mod options;
mod threads;

use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::task::{Context, Poll};
use std::time::Duration;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::Result;
use datafusion::logical_expr::async_udf::AsyncScalarUDF;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature,
};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use self::batches::Batches;
pub use self::evaluate::{calls_asynchronously, evaluate_later};
pub use self::options::AsyncOptions;
pub(crate) use self::threads::Threads;
use crate::calling::CalledBy;
use crate::error::{Call, FunctionError};
use crate::guard;

/// A thread that is held up looks so often whether anybody still waits.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// An asynchronous function as one that is called like any other.
#[derive(Debug)]
pub(crate) struct Asynchronous {
    udf: Arc<AsyncScalarUDF>,
    options: AsyncOptions,
    slots: Arc<Semaphore>,
    threads: Arc<Threads>,
}

impl Asynchronous {
    /// Calls `udf` on `threads`.
    ///
    /// # Errors
    /// [`FunctionError::Register`] if an option is out of its bounds.
    pub(crate) fn new(
        udf: AsyncScalarUDF,
        options: AsyncOptions,
        threads: Arc<Threads>,
    ) -> Result<Self, FunctionError> {
        let options = options.checked(udf.name())?;
        let slots = Arc::new(Semaphore::new(options.concurrency));
        Ok(Self { udf: Arc::new(udf), options, slots, threads })
    }

    /// The answer to a call. Dropped before it is there, nothing is asked any more.
    pub(crate) async fn answer(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let call = self.call(&args);
        let answer = self.start(&call, self.batches(args).answer())?.await;
        answer.unwrap_or_else(|| Err(self.ended(call)))
    }

    /// The same, on a thread that cannot do anything else meanwhile.
    fn answer_in_place(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (call, caller) = (self.call(&args), CalledBy::caller(&args.config_options));
        let is_gone = || caller.as_ref().is_some_and(|caller| caller.is_gone());
        let given_up = || Err(FunctionError::GivenUp { call: Box::new(call.clone()) }.into());
        if is_gone() {
            return given_up();
        }
        let (sender, receiver) = sync_channel(1);
        let work = self.batches(args).answer();
        // Nobody listens any more if the caller has gone.
        let asking = self.start(&call, async move { drop(sender.send(work.await)) })?;
        let answer = held_up(|| {
            loop {
                match receiver.recv_timeout(LOOK_EVERY) {
                    Ok(answer) => return Some(answer),
                    Err(RecvTimeoutError::Timeout) if !is_gone() => {}
                    Err(RecvTimeoutError::Timeout) => return Some(given_up()),
                    Err(RecvTimeoutError::Disconnected) => return None,
                }
            }
        });
        drop(asking);
        answer.unwrap_or_else(|| Err(self.ended(call.clone())))
    }

    fn call(&self, args: &ScalarFunctionArgs) -> Call {
        Call::new(self.udf.name(), &args.arg_fields, args.number_rows)
    }

    fn batches(&self, args: ScalarFunctionArgs) -> Batches {
        let (udf, slots) = (Arc::clone(&self.udf), Arc::clone(&self.slots));
        Batches { udf, options: self.options, slots, args }
    }

    fn start<T: Send + 'static>(
        &self,
        call: &Call,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<Asking<T>> {
        let started = self.threads.spawn(work);
        let no_thread = |error| format!("there is no thread to await it on: {error}");
        Ok(Asking(started.map_err(|error| {
            FunctionError::unanswered(Box::new(call.clone()), 0, &no_thread(error))
        })?))
    }

    fn ended(&self, call: Call) -> datafusion::error::DataFusionError {
        FunctionError::unanswered(Box::new(call), 0, "the threads that await it have ended").into()
    }
}

/// A call that is on its way; stops when it is dropped.
struct Asking<T>(JoinHandle<T>);

impl<T> Drop for Asking<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T> Future for Asking<T> {
    /// Nothing if the threads have ended. A panic was caught within.
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        Pin::new(&mut self.0).poll(context).map(Result::ok)
    }
}

/// Runs `wait`, which holds up the thread; other work of its runtime goes on elsewhere if it can.
fn held_up<T>(wait: impl Fn() -> T) -> T {
    let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    if !matches!(flavor, Ok(RuntimeFlavor::MultiThread)) {
        return wait();
    }
    // Tokio refuses it to tasks that are bound to their thread, by a panic before it does anything.
    guard::caught(|| tokio::task::block_in_place(&wait)).unwrap_or_else(|_refused| wait())
}

impl PartialEq for Asynchronous {
    fn eq(&self, other: &Self) -> bool {
        self.udf == other.udf && self.options == other.options
    }
}

impl Eq for Asynchronous {}

impl Hash for Asynchronous {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.udf.hash(state);
    }
}

/// As [`AsyncScalarUDF`] plans, which is what plain DataFusion sees of the function.
impl ScalarUDFImpl for Asynchronous {
    fn name(&self) -> &str {
        self.udf.name()
    }

    fn signature(&self) -> &Signature {
        self.udf.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.udf.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.udf.return_field_from_args(args)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.answer_in_place(args)
    }
}

#[cfg(test)]
mod tests;
