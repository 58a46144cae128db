//! Prepared statements by handle: bounded in number, closed when nobody uses them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use foreshard_actors::ports::SharedClock;

use crate::error::EngineError;
use crate::session::{Prepared, Session};

/// A prepared statement of a client.
pub(super) struct Open {
    /// The session it was prepared in.
    pub(super) session: Session,
    /// The statement.
    pub(super) prepared: Prepared,
    bound: Mutex<Vec<Vec<ScalarValue>>>,
    used_ms: AtomicU64,
}

impl Open {
    /// The types of the parameters, in order.
    pub(super) fn kinds(&self) -> impl Iterator<Item = &DataType> {
        self.prepared.parameters().iter().map(|(_, kind)| kind)
    }

    /// Sets the rows of parameters that the next executions use.
    pub(super) fn bind(&self, rows: Vec<Vec<ScalarValue>>) {
        *lock(&self.bound) = rows;
    }

    /// The rows of parameters, one empty row if the statement has none.
    ///
    /// # Errors
    /// [`EngineError::ParameterCount`] if it has parameters and none were bound.
    pub(super) fn bound(&self) -> Result<Vec<Vec<ScalarValue>>, EngineError> {
        let rows = lock(&self.bound).clone();
        match self.prepared.parameters().len() {
            0 => Ok(vec![Vec::new()]),
            expected if rows.is_empty() => Err(EngineError::ParameterCount { expected, given: 0 }),
            _ => Ok(rows),
        }
    }
}

/// All prepared statements of a server.
pub(super) struct Statements {
    open: Mutex<HashMap<String, Arc<Open>>>,
    clock: SharedClock,
    open_max: usize,
    idle_ms: u64,
}

impl Statements {
    pub(super) fn new(clock: SharedClock, open_max: usize, idle_seconds: u64) -> Self {
        Self { open: Mutex::default(), clock, open_max, idle_ms: idle_seconds * 1_000 }
    }

    /// Keeps a statement and gives it a handle that nobody can guess.
    ///
    /// # Errors
    /// [`EngineError::TooMany`] if too many are in use.
    pub(super) fn open(&self, session: Session, prepared: Prepared) -> Result<String, EngineError> {
        let now = self.now_ms();
        let mut open = lock(&self.open);
        open.retain(|_, statement| {
            now.saturating_sub(statement.used_ms.load(Ordering::Relaxed)) < self.idle_ms
        });
        if open.len() >= self.open_max {
            return Err(EngineError::TooMany { what: "prepared statements", max: self.open_max });
        }
        let handle = uuid::Uuid::new_v4().simple().to_string();
        let used_ms = AtomicU64::new(now);
        let statement = Open { session, prepared, bound: Mutex::default(), used_ms };
        open.insert(handle.clone(), Arc::new(statement));
        Ok(handle)
    }

    /// The statement of `handle`.
    ///
    /// # Errors
    /// [`EngineError::UnknownStatement`] if it is closed or was idle for too long.
    pub(super) fn find(&self, handle: &[u8]) -> Result<Arc<Open>, EngineError> {
        let handle = String::from_utf8_lossy(handle);
        let now = self.now_ms();
        let mut open = lock(&self.open);
        let idle = |it: &Arc<Open>| now.saturating_sub(it.used_ms.load(Ordering::Relaxed));
        if open.get(handle.as_ref()).is_some_and(|it| idle(it) >= self.idle_ms) {
            open.remove(handle.as_ref());
        }
        let found = open.get(handle.as_ref()).cloned();
        let found = found.ok_or_else(|| EngineError::UnknownStatement {
            handle: handle.chars().take(64).collect(),
        })?;
        found.used_ms.store(now, Ordering::Relaxed);
        Ok(found)
    }

    /// Forgets `handle`; one that is not known is closed already.
    pub(super) fn close(&self, handle: &[u8]) {
        lock(&self.open).remove(String::from_utf8_lossy(handle).as_ref());
    }

    fn now_ms(&self) -> u64 {
        self.clock.monotonic_ns() / 1_000_000
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
