//! Is it the forecast that helps? A day with a rhythm, played by four engines that differ only in the
//! mode of the loop.
//!
//! The workload (see `foreshard::demo::schedule`) is made so that a forecast has to be right to be
//! useful: rows are appended before every hour, so what is stored is never enough; the idle moments
//! have room for half of what could be refreshed; and what the last hour asked for is not
//! what the next one asks for. An engine that gets ready for the wrong things, `inverted`, must fail
//! the bounds that `forecast` keeps, or they would prove nothing.

use anyhow::Result;
use foreshard::demo::day::{Arm, ArmReport, DayReport, Peak, Size, Workload, play};
use foreshard::demo::world::World;

use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};

const ARMS: [Arm; 4] = [Arm::Off, Arm::Reactive, Arm::Forecast, Arm::Inverted];

/// Runs the benchmark.
///
/// # Errors
/// The first error of an engine.
pub async fn run(options: Options) -> Result<Found> {
    let size = if options.quick { Size::QUICK } else { Size::FULL };
    let workload = Workload::new(World::tpch()?, size, options.seed, &options.clock).await?;
    eprintln!(
        "idle moments have {:.0} ms of background computing; all that is appended would take {:.0} ms",
        workload.idle_ns() / 1e6,
        workload.refresh_ns() / 1e6
    );
    let mut said = None;
    let report = play(&workload, &ARMS, &options.clock, |now| {
        if said != Some(now.rounds_done) && now.rounds_done % 6 == 0 {
            eprintln!("{} of {} hours played", now.rounds_done, now.rounds);
        }
        said = Some(now.rounds_done);
    })
    .await?;
    let rows = report.arms.iter().map(|arm| row(&report, arm)).collect();
    let peaks = |arm| report.arm(arm).map(|played| report.peak(played));
    let figures = match (peaks(ARMS[0]), peaks(ARMS[1]), peaks(ARMS[2]), peaks(ARMS[3])) {
        (Some(off), Some(reactive), Some(forecast), Some(inverted)) => {
            figures(&Peaks { off, reactive, forecast, inverted }, report.answers_different())
        }
        _ => vec![],
    };
    Ok((rows, figures))
}

fn row(report: &DayReport, arm: &ArmReport) -> Row {
    let peak = report.peak(arm);
    let idle: u64 = arm.hours.iter().map(|hour| hour.idle_ns).sum();
    let computed: u64 = arm.hours.iter().map(|hour| hour.computed_ns).sum();
    let background: u64 = arm.hours.iter().map(|hour| hour.background_ns).sum();
    Row::default()
        .with("arm", arm.arm.name())
        .with("queries", peak.queries as u64)
        .with("p50_ms", peak.p50_ms)
        .with("p95_ms", peak.p95_ms)
        .with("rows_stored", peak.rows_stored)
        .with("fresh_rows_stored", peak.fresh_rows_stored)
        .with("rows_from_store", peak.rows_stored_count)
        .with("peak_background_ms", peak.background_ns as f64 / 1e6)
        .with("all_background_ms", background as f64 / 1e6)
        .with("all_idle_ms", idle as f64 / 1e6)
        .with("all_computed_ms", computed as f64 / 1e6)
        .with("decisions", arm.decisions.len() as u64)
}

/// The second day's peak hours of each arm.
struct Peaks {
    off: Peak,
    reactive: Peak,
    forecast: Peak,
    inverted: Peak,
}

fn figures(peaks: &Peaks, answers_different: usize) -> Vec<Figure> {
    let Peaks { off, reactive, forecast, inverted } = peaks;
    let over = |rival: &Peak| forecast.p95_ms / rival.p95_ms;
    vec![
        Figure::bounded(
            "fresh_rows_stored",
            forecast.fresh_rows_stored,
            "ratio",
            Bound::AtLeast(0.6),
        ),
        Figure::bounded("p95_forecast_over_off", over(off), "ratio", Bound::AtMost(0.5)),
        Figure::bounded("p95_forecast_over_reactive", over(reactive), "ratio", Bound::Below(1.0)),
        Figure::bounded("p95_forecast_over_inverted", over(inverted), "ratio", Bound::Below(1.0)),
        Figure::reported("fresh_rows_stored_inverted", inverted.fresh_rows_stored, "ratio"),
        Figure::reported("fresh_rows_stored_reactive", reactive.fresh_rows_stored, "ratio"),
        Figure::bounded(
            "answers_different",
            answers_different as f64,
            "answers",
            Bound::AtMost(0.0),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peak(p95_ms: f64, fresh_rows_stored: f64) -> Peak {
        Peak {
            queries: 98,
            p50_ms: p95_ms / 2.0,
            p95_ms,
            rows_stored: 0.9,
            fresh_rows_stored,
            rows_stored_count: 1,
            background_ns: 1,
        }
    }

    fn peaks(forecast: Peak) -> Peaks {
        let (off, reactive, inverted) = (peak(300.0, 0.0), peak(30.0, 0.0), peak(31.0, 0.1));
        Peaks { off, reactive, forecast, inverted }
    }

    fn missed(figures: &[Figure]) -> Vec<&str> {
        let missed = figures.iter().filter(|figure| !figure.holds);
        missed.map(|figure| figure.name.as_str()).collect()
    }

    #[test]
    fn a_forecast_that_is_right_keeps_every_bound() {
        assert_eq!(missed(&figures(&peaks(peak(9.0, 0.85)), 0)), [""; 0]);
    }

    #[test]
    fn the_inverted_arm_in_the_forecasts_place_misses_the_bounds() {
        let inverted = peaks(peak(31.0, 0.1));
        assert_eq!(
            missed(&figures(&inverted, 0)),
            ["fresh_rows_stored", "p95_forecast_over_reactive", "p95_forecast_over_inverted"]
        );
    }

    #[test]
    fn plain_datafusion_in_the_forecasts_place_misses_every_bound() {
        assert_eq!(missed(&figures(&peaks(peak(300.0, 0.0)), 0)).len(), 4);
    }

    #[test]
    fn one_different_answer_is_one_too_many() {
        assert_eq!(missed(&figures(&peaks(peak(9.0, 0.85)), 1)), ["answers_different"]);
    }
}
