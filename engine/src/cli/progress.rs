//! A line on a terminal's stderr that says that long work goes on.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, interval_at};

/// Work shorter than this shows nothing.
const SHOWN_AFTER: Duration = Duration::from_secs(1);
/// Time between two pictures of the line.
const EVERY: Duration = Duration::from_millis(200);
/// The wheel.
const WHEEL: [char; 4] = ['|', '/', '-', '\\'];

/// The line of one statement.
#[derive(Debug)]
pub(super) struct Progress {
    start: Instant,
    rows: usize,
    pictures: usize,
    shown: bool,
    terminal: bool,
}

impl Progress {
    /// Starts to count the time. Nothing is ever shown if stderr is no terminal.
    pub(super) fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { start: Instant::now(), rows: 0, pictures: 0, shown: false, terminal }
    }

    /// Waits for `work` and keeps the line moving meanwhile.
    pub(super) async fn watch<T>(&mut self, work: impl Future<Output = T>) -> T {
        if !self.terminal {
            return work.await;
        }
        let mut work = pin!(work);
        let mut ticks = interval_at((self.start + SHOWN_AFTER).max(Instant::now()), EVERY);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                _ = ticks.tick() => self.show(),
            }
        }
    }

    /// Counts rows that came.
    pub(super) fn rows(&mut self, rows: usize) {
        self.rows += rows;
    }

    /// The time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Takes the line away, so that something else can be written.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            // A terminal that cannot be written to shows no line.
            let _unshown = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    fn show(&mut self) {
        self.pictures += 1;
        self.shown = true;
        let wheel = WHEEL[self.pictures % WHEEL.len()];
        let seconds = self.start.elapsed().as_secs_f64();
        let mut stderr = std::io::stderr();
        let _unshown = write!(stderr, "\r\x1b[K{wheel} {seconds:.1} s, {} rows", self.rows);
        let _unshown = stderr.flush();
    }
}
