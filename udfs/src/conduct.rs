//! What is known against one definition of a function, and how a part of it runs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use datafusion::common::Result;

use crate::error::{Call, FunctionError};
use crate::guard;

/// Shared by all copies of the definition in all plans.
#[derive(Debug)]
pub(crate) struct Conduct {
    name: Box<str>,
    panics: AtomicU64,
    is_quarantined: AtomicBool,
}

impl Conduct {
    /// Nothing is known against the function of this name.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            panics: AtomicU64::new(0),
            is_quarantined: AtomicBool::new(false),
        }
    }

    /// Name of the function.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How often it panicked.
    pub(crate) fn panics(&self) -> u64 {
        self.panics.load(Ordering::Acquire)
    }

    /// It panicked.
    pub(crate) fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::AcqRel);
    }

    /// It was found to answer the same arguments in two ways.
    pub(crate) fn quarantine(&self) {
        self.is_quarantined.store(true, Ordering::Release);
    }

    pub(crate) fn is_quarantined(&self) -> bool {
        self.is_quarantined.load(Ordering::Acquire)
    }

    /// Runs a part of the function; a panic in it is counted and becomes an error.
    pub(crate) fn guarded<T>(
        &self,
        call: impl FnOnce() -> Call,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        guard::caught(work).unwrap_or_else(|message| {
            self.panicked();
            Err(FunctionError::Panicked { call: Box::new(call()), message }.into())
        })
    }
}
