//! The ways to be ready that are compared, and what is written down of each.

use foreshard_policy::calls::CallRecord;
use foreshard_policy::config::Mode;
use foreshard_policy::decision::{DecisionRow, Outcome};

/// The kind of step that is taken ahead of calls.
const AHEAD: &str = "precompute";

/// What is done ahead of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Arm {
    /// Nothing is stored.
    Off,
    /// What a call computed is stored.
    Reactive,
    /// And what was used in the last day is computed when rows come.
    Eager,
    /// And everything is, in an order by chance.
    Random,
    /// And what is expected is.
    Forecast,
    /// And what is not expected is.
    Inverted,
    /// And what will be called is.
    Oracle,
}

impl Arm {
    pub(crate) const ALL: [Self; 7] = [
        Self::Off,
        Self::Reactive,
        Self::Eager,
        Self::Random,
        Self::Forecast,
        Self::Inverted,
        Self::Oracle,
    ];

    /// Those that are compared where the budget is ample.
    pub(crate) const EASY: [Self; 3] = [Self::Off, Self::Forecast, Self::Oracle];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Reactive => "reactive",
            Self::Eager => "eager",
            Self::Random => "random",
            Self::Forecast => "forecast",
            Self::Inverted => "inverted",
            Self::Oracle => "oracle",
        }
    }

    /// Mode of the loop; what planners are told instead of the forecast comes on top.
    pub(crate) fn mode(self) -> Mode {
        match self {
            Self::Off => Mode::Off,
            Self::Reactive => Mode::Reactive,
            Self::Eager | Self::Random | Self::Forecast | Self::Oracle => Mode::Forecast,
            Self::Inverted => Mode::Inverted,
        }
    }
}

/// One answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) minute: usize,
    /// From when it was due until its last row was there.
    pub(crate) ns: u64,
    pub(crate) checksum: u64,
}

/// What functions did in a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Minute {
    pub(crate) rows: u64,
    pub(crate) rows_stored: u64,
    pub(crate) rows_fresh: u64,
    pub(crate) rows_fresh_stored: u64,
    /// Nanoseconds that calls computed.
    pub(crate) ns: u64,
    /// What the fresh rows that were stored would have cost.
    pub(crate) spared_ns: f64,
}

impl Minute {
    pub(crate) fn count(&mut self, call: &CallRecord) {
        self.rows += call.rows;
        self.rows_stored += call.rows_stored;
        self.rows_fresh += call.rows_fresh;
        self.rows_fresh_stored += call.rows_fresh_stored;
        self.ns += call.ns;
        let row_ns = call.would_be_ns as f64 / call.rows.max(1) as f64;
        self.spared_ns += call.rows_fresh_stored as f64 * row_ns;
    }
}

/// Everything that an arm did.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Played {
    /// In the order of the calls.
    pub(crate) answers: Vec<Answer>,
    pub(crate) minutes: Vec<Minute>,
    /// Nanoseconds of background work, as the steps said.
    pub(crate) background_ns: u64,
    pub(crate) steps: u64,
    pub(crate) steps_failed: u64,
    /// Ticks whose forecast could be acted on, of those that were looked at.
    pub(crate) ticks_trusted: u64,
    /// How many computations ahead of calls were decided in each minute.
    pub(crate) ahead: Vec<u64>,
}

impl Played {
    /// Takes in what was decided after the warm-up; `first` is the tick that was closed in minute 0.
    pub(crate) fn decided<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a DecisionRow>,
        first: Option<u64>,
        warm_up: usize,
    ) {
        self.ahead = vec![0; self.minutes.len()];
        let counts = first.unwrap_or_default() + warm_up as u64;
        for row in rows.filter(|row| row.tick.0 >= counts) {
            self.steps += 1;
            match row.outcome {
                Some(Outcome::Done { ns, .. }) => self.background_ns += ns,
                Some(Outcome::Failed { .. }) => self.steps_failed += 1,
                Some(Outcome::Left { .. }) | None => {}
            }
            let minute = row.tick.0.checked_sub(first.unwrap_or_default());
            let minute = minute.and_then(|minute| self.ahead.get_mut(minute as usize));
            if let Some(count) = minute.filter(|_| row.kind == AHEAD) {
                *count += 1;
            }
        }
    }

    /// Leaves out the answers and the minutes of the warm-up; from here on the first minute is that after it.
    pub(crate) fn forget(&mut self, warm_up: usize) {
        self.answers.retain(|answer| answer.minute >= warm_up);
        self.answers.iter_mut().for_each(|answer| answer.minute -= warm_up);
        self.minutes.drain(..warm_up.min(self.minutes.len()));
        self.ahead.drain(..warm_up.min(self.ahead.len()));
    }
}
