//! What is shown of one function: its calls in the last ticks, and those that are expected.

use arrow::temporal_conversions::timestamp_ms_to_datetime;
use foreshard_policy::forecast::function::{of_function, past_calls, series_of};
use foreshard_policy::forecast::{Forecast, Moments, reason};
use foreshard_policy::history::HistoryView;
use foreshard_policy::ids::Tick;

/// Calls in one tick that is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Past {
    /// When it began.
    pub(super) at_ms: u64,
    pub(super) calls: f64,
}

/// What is expected of one tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Coming {
    /// When it begins.
    pub(super) at_ms: u64,
    pub(super) q10: f64,
    pub(super) q50: f64,
    pub(super) q90: f64,
    /// Calls under way at the same time.
    pub(super) concurrency: f64,
}

/// One function.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shown {
    pub(super) function: String,
    pub(super) past: Vec<Past>,
    pub(super) coming: Vec<Coming>,
    /// Why it is trusted or not.
    pub(super) reason: String,
}

/// What stands below the axis.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) first: Option<String>,
    pub(super) now: Option<String>,
    pub(super) last: Option<String>,
}

impl Shown {
    /// What is known of a function here.
    pub(super) fn of(
        function: &str,
        (past_ticks, horizon): (usize, usize),
        history: &HistoryView,
        forecast: &Forecast,
        moments: &Moments,
    ) -> Self {
        let parts = past_calls(history, past_ticks, |key| *key.function == *function);
        let ticks = parts.iter().map(Vec::len).max().unwrap_or(0);
        let first = history.at.0 + 1 - ticks as u64;
        let past = (0..ticks).map(|at| Past {
            at_ms: moments.start_ms(Tick(first + at as u64)),
            calls: parts.iter().filter_map(|part| part.get(at)).sum(),
        });
        let coming = of_function(forecast, history, function, None).into_iter().take(horizon);
        let coming = coming.map(|tick| Coming {
            at_ms: moments.start_ms(tick.tick),
            q10: tick.calls.q10,
            q50: tick.calls.q50,
            q90: tick.calls.q90,
            concurrency: tick.concurrency,
        });
        Self {
            function: function.to_owned(),
            past: past.collect(),
            coming: coming.collect(),
            reason: reason(forecast, series_of(forecast, function, None)),
        }
    }

    /// Length of a tick in ms; 0 if there is none.
    pub(super) fn tick_ms(&self) -> u64 {
        let mut starts =
            self.past.iter().map(|tick| tick.at_ms).chain(self.coming.iter().map(|it| it.at_ms));
        let (first, second) = (starts.next().unwrap_or(0), starts.next().unwrap_or(0));
        second.saturating_sub(first)
    }

    /// From now to the end of the last tick.
    fn coming_ms(&self) -> u64 {
        self.tick_ms().saturating_mul(self.coming.len() as u64)
    }

    /// When the tick begins in which most calls are expected, and how many.
    pub(super) fn most(&self) -> Option<(String, f64)> {
        let busiest = self.coming.iter().max_by(|a, b| a.q50.total_cmp(&b.q50))?;
        Some((moment(busiest.at_ms, self.coming_ms()), busiest.q50))
    }

    /// Most calls that are expected at the same time.
    pub(super) fn crowded(&self) -> f64 {
        self.coming.iter().map(|tick| tick.concurrency).fold(0.0, f64::max)
    }

    /// Length of a tick as people say it.
    pub(super) fn tick(&self) -> String {
        duration(self.tick_ms())
    }

    /// Moments of the first tick, of now, and of the end of the last tick.
    pub(super) fn times(&self) -> Times {
        let first = self.past.first().map(|tick| tick.at_ms);
        let now = self.coming.first().map(|tick| tick.at_ms);
        let last = self.coming.last().map(|tick| tick.at_ms + self.tick_ms());
        let span_ms = last.or(now).unwrap_or(0).saturating_sub(first.or(now).unwrap_or(0));
        let text = |ms: Option<u64>| ms.map(|ms| moment(ms, span_ms));
        Times { first: text(first), now: text(now), last: text(last) }
    }

    /// One line on what is expected.
    pub(super) fn sentence(&self) -> String {
        let name = &self.function;
        let (Some(next), Some((at, most))) = (self.coming.first(), self.most()) else {
            return format!(
                "{name}: nothing is expected: it was never called, or no tick is over yet"
            );
        };
        let [q10, q50, q90, most] = [next.q10, next.q50, next.q90, most].map(number);
        format!(
            "{name}: {q50} calls in the next {} ({q10} to {q90} in 8 of 10), most {most} at {at}, up to {} \
             at the same time",
            self.tick(),
            number(self.crowded()),
        )
    }
}

/// A number of calls for a sentence.
pub(super) fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 || value == 0.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn duration(ms: u64) -> String {
    match ms {
        ms if ms >= 3_600_000 && ms.is_multiple_of(3_600_000) => format!("{} h", ms / 3_600_000),
        ms if ms >= 60_000 && ms.is_multiple_of(60_000) => format!("{} min", ms / 60_000),
        ms if ms >= 1_000 && ms.is_multiple_of(1_000) => format!("{} s", ms / 1_000),
        ms => format!("{ms} ms"),
    }
}

/// A moment in UTC: with its date where the whole picture is longer than twelve hours.
pub(super) fn moment(ms: u64, span_ms: u64) -> String {
    let format = match span_ms {
        span_ms if span_ms > 12 * 3_600_000 => "%b %e %H:%M",
        span_ms if span_ms > 20 * 60_000 => "%H:%M",
        _ => "%H:%M:%S",
    };
    let moment = i64::try_from(ms).ok().and_then(timestamp_ms_to_datetime);
    moment.map_or_else(String::new, |moment| moment.format(format).to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    /// 2026-11-30, midnight.
    const MIDNIGHT: u64 = 1_795_996_800_000;

    /// Two days by the hour, and what is expected of the third.
    pub(in super::super) fn daily() -> Shown {
        let load = |hour: u64| {
            let angle = (hour % 24) as f64 / 24.0 * std::f64::consts::TAU;
            60.0 - 45.0 * angle.cos() + (hour * 7 % 5) as f64
        };
        let past = (0..48)
            .map(|hour| Past { at_ms: MIDNIGHT - 48 * HOUR + hour * HOUR, calls: load(hour) });
        let coming = (0..24).map(|hour| Coming {
            at_ms: MIDNIGHT + hour * HOUR,
            q10: load(hour) * (0.9 - 0.01 * hour as f64),
            q50: load(hour),
            q90: load(hour) * (1.1 + 0.01 * hour as f64),
            concurrency: load(hour) / 30.0,
        });
        Shown {
            function: "embed".to_owned(),
            past: past.collect(),
            coming: coming.collect(),
            reason: "trusted: it lost 0.63 of what repeating the last tick would have".to_owned(),
        }
    }

    /// A function that nobody calls.
    pub(in super::super) fn still() -> Shown {
        Shown { function: "idle".to_owned(), ..Shown::default() }
    }

    #[test]
    fn a_sentence_says_what_is_expected_when_and_how_much_at_a_time() {
        assert_eq!(
            daily().sentence(),
            "embed: 15.0 calls in the next 1 h (13.5 to 16.5 in 8 of 10), most 109 at Nov 30 12:00, up to \
             3.6 at the same time"
        );
        assert!(still().sentence().starts_with("idle: nothing is expected"));
    }

    #[test]
    fn times_have_their_date_only_where_it_is_needed() {
        let times = daily().times();
        assert_eq!(times.first.as_deref(), Some("Nov 28 00:00"));
        assert_eq!(times.last.as_deref(), Some("Dec  1 00:00"));
        assert_eq!(moment(MIDNIGHT + 1_000, 60_000), "00:00:01");
        assert_eq!(still().times(), Times::default());
    }

    #[test]
    fn durations_are_said_in_the_largest_unit_that_fits() {
        assert_eq!(
            [500, 1_000, 90_000, 60_000, HOUR].map(duration),
            ["500 ms", "1 s", "90 s", "1 min", "1 h"]
        );
    }
}
