//! Members that are slow, that fail, and that watch.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use foreshard_actors::predictor::Members;
use foreshard_policy::forecast::{Effort, FitReport, ForecastError, Member, Quantiles, Window};
use tokio::sync::Notify;

/// A member that answers everything with an error, or with a panic.
pub(crate) fn failing_member(panics: bool) -> Members {
    Arc::new(move |_| Ok(vec![Box::new(Failing { panics }) as Box<dyn Member>]))
}

/// A member that learns until it is released; its state is how often it learned.
pub(crate) fn slow_member() -> (Members, Gate) {
    slow_at(None)
}

/// A member that makes its second forecast until it is released.
pub(crate) fn member_slow_to_forecast() -> (Members, Gate) {
    slow_at(Some(0))
}

fn slow_at(forecasts: Option<u8>) -> (Members, Gate) {
    let (hold, released) = sync_channel(1);
    let begun = Arc::new(Notify::new());
    let gate = Gate { begun: begun.clone(), hold };
    let released = Arc::new(Mutex::new(released));
    let members: Members = Arc::new(move |_| {
        let (begun, released) = (begun.clone(), released.clone());
        let slow = Slow { begun, released, learned: 0, forecasts };
        Ok(vec![Box::new(slow) as Box<dyn Member>])
    });
    (members, gate)
}

pub(crate) struct Gate {
    /// The member has begun with what takes so long.
    pub(crate) begun: Arc<Notify>,
    /// As long as this is held, it goes on.
    pub(crate) hold: SyncSender<()>,
}

#[derive(Clone)]
struct Slow {
    begun: Arc<Notify>,
    released: Arc<Mutex<Receiver<()>>>,
    learned: u8,
    /// Forecasts that it made, if these are slow.
    forecasts: Option<u8>,
}

impl Slow {
    fn wait(&self) {
        self.begun.notify_one();
        assert!(self.released.lock().unwrap().recv().is_err());
    }
}

impl Member for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn fit(
        &mut self,
        _: &Window<'_>,
        _: &[usize],
        _: Effort<'_>,
    ) -> Result<FitReport, ForecastError> {
        if self.forecasts.is_none() {
            self.wait();
        }
        self.learned += 1;
        Ok(FitReport::default())
    }

    fn forecast(
        &mut self,
        _: &Window<'_>,
        _: &[usize],
    ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
        let forecasts = self.forecasts.as_mut().map(|made| {
            *made += 1;
            *made
        });
        if forecasts.is_some_and(|made| made > 1) {
            self.wait();
        }
        Ok(Vec::new())
    }

    fn copy(&self) -> Result<Box<dyn Member>, ForecastError> {
        Ok(Box::new(self.clone()))
    }

    fn save(&self) -> Result<Vec<u8>, ForecastError> {
        Ok(vec![self.learned])
    }

    fn load(&mut self, state: &[u8]) -> Result<(), ForecastError> {
        self.learned = state.first().copied().unwrap_or_default();
        Ok(())
    }
}

/// A member that writes down when tick 0 was, as it is told.
pub(crate) fn watching_member() -> (Members, Arc<Mutex<Vec<i64>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watched = seen.clone();
    let members: Members =
        Arc::new(move |_| Ok(vec![Box::new(Watching(watched.clone())) as Box<dyn Member>]));
    (members, seen)
}

#[derive(Clone)]
struct Watching(Arc<Mutex<Vec<i64>>>);

impl Member for Watching {
    fn name(&self) -> &'static str {
        "watching"
    }

    fn fit(
        &mut self,
        _: &Window<'_>,
        _: &[usize],
        _: Effort<'_>,
    ) -> Result<FitReport, ForecastError> {
        Ok(FitReport::default())
    }

    fn forecast(
        &mut self,
        window: &Window<'_>,
        _: &[usize],
    ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
        self.0.lock().unwrap().push(window.epoch_ms);
        Ok(Vec::new())
    }

    fn copy(&self) -> Result<Box<dyn Member>, ForecastError> {
        Ok(Box::new(self.clone()))
    }

    fn save(&self) -> Result<Vec<u8>, ForecastError> {
        Ok(Vec::new())
    }

    fn load(&mut self, _: &[u8]) -> Result<(), ForecastError> {
        Ok(())
    }
}

/// No more members, but an error at these calls, counted from one.
pub(crate) fn members_that_fail_on(calls: std::ops::RangeInclusive<usize>) -> Members {
    let count = AtomicUsize::new(0);
    Arc::new(move |_| {
        if calls.contains(&(count.fetch_add(1, Ordering::SeqCst) + 1)) {
            return Err(ForecastError::Numeric { member: "failing", reason: "not yet".into() });
        }
        Ok(Vec::new())
    })
}

#[derive(Clone, Copy)]
struct Failing {
    panics: bool,
}

impl Failing {
    fn fail<T>(&self) -> Result<T, ForecastError> {
        assert!(!self.panics, "a broken member");
        Err(ForecastError::Numeric { member: "failing", reason: "as always".into() })
    }
}

impl Member for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn fit(
        &mut self,
        _: &Window<'_>,
        _: &[usize],
        _: Effort<'_>,
    ) -> Result<FitReport, ForecastError> {
        self.fail()
    }

    fn forecast(
        &mut self,
        _: &Window<'_>,
        _: &[usize],
    ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
        self.fail()
    }

    fn copy(&self) -> Result<Box<dyn Member>, ForecastError> {
        Ok(Box::new(*self))
    }

    fn save(&self) -> Result<Vec<u8>, ForecastError> {
        Ok(Vec::new())
    }

    fn load(&mut self, _: &[u8]) -> Result<(), ForecastError> {
        Ok(())
    }
}
