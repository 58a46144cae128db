//! How functions are called: on whose behalf, which calls have not ended yet, and on which threads.

mod caller;
pub(crate) mod running;
mod threads;

pub use self::{
    caller::{CalledBy, Caller},
    running::longest_call,
    threads::call_threads,
};
