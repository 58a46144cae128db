//! System tables about what is expected, what that was worth, who expects it, and what was announced.

use std::collections::BTreeMap;
use std::sync::Arc;

use foreshard_actors::board::MemberFit;
use foreshard_policy::forecast::{Forecast, reason};
use foreshard_policy::ids::{PartitionId, Tick};
use foreshard_policy::score::Score;

use crate::catalog::system::sheet::Sheet;
use crate::engine::Inner;

fn partition(id: &PartitionId) -> u64 {
    u64::from(id.ordinal)
}

/// `system.forecasts`: what is expected of each series in each of the coming ticks.
pub(super) fn forecasts(engine: &Inner) -> Sheet {
    let (forecast, moments) = (engine.the_loop.forecast(), engine.the_loop.moments());
    let rows = || {
        forecast.series.iter().flat_map(|series| {
            let concurrency = series.concurrency(forecast.tick_ms);
            let ticks = (forecast.at.0 + 1..).zip(&series.calls).zip(concurrency);
            ticks.map(move |((tick, calls), busy)| (series, Tick(tick), calls, busy))
        })
    };
    let weights = |weights: &[(String, f64)]| {
        let parts: Vec<String> =
            weights.iter().map(|(member, weight)| format!("{member} {weight:.2}")).collect();
        parts.join(", ")
    };
    Sheet::default()
        .text("function", rows().map(|(series, ..)| &series.key.function))
        .text("expression", rows().map(|(series, ..)| series.key.expression))
        .text("table_name", rows().map(|(series, ..)| &series.key.partition.table))
        .count("partition", rows().map(|(series, ..)| partition(&series.key.partition)))
        .count("made_at_tick", rows().map(|_| forecast.at.0))
        .count("tick", rows().map(|(_, tick, ..)| tick.0))
        .moment("at", rows().map(|(_, tick, ..)| moments.start_ms(tick)))
        .number("calls_q10", rows().map(|(_, _, calls, _)| calls.q10))
        .number("calls_q50", rows().map(|(_, _, calls, _)| calls.q50))
        .number("calls_q90", rows().map(|(_, _, calls, _)| calls.q90))
        .number("ns_per_call", rows().map(|(series, ..)| series.ns_per_call))
        .number("concurrency", rows().map(|(.., busy)| busy))
        .text("member_weights", rows().map(|(series, ..)| weights(&series.weights)))
        .flag("announced", rows().map(|(series, ..)| series.announced))
        .flag("trusted", rows().map(|_| forecast.trusted))
        .text("reason", rows().map(|(series, ..)| reason(&forecast, [series])))
}

/// `system.scores`: forecasts against what happened. Coverage and skill are those of all recent scores of
/// the function at that horizon.
pub(super) fn scores(engine: &Inner) -> Sheet {
    let scores = engine.the_loop.scores();
    let rows = || scores.recent.iter();
    let means =
        |score: &Score| scores.means.get(&(Arc::clone(&score.series.function), score.horizon));
    Sheet::default()
        .text("function", rows().map(|score| &score.series.function))
        .text("expression", rows().map(|score| score.series.expression))
        .text("table_name", rows().map(|score| &score.series.partition.table))
        .count("partition", rows().map(|score| partition(&score.series.partition)))
        .count("horizon", rows().map(|score| score.horizon as u64))
        .count("tick", rows().map(|score| score.at.0))
        .number("expected_q10", rows().map(|score| score.expected.q10))
        .number("expected_q50", rows().map(|score| score.expected.q50))
        .number("expected_q90", rows().map(|score| score.expected.q90))
        .number("actual", rows().map(|score| score.actual))
        .flag("covered", rows().map(|score| score.expected.holds(score.actual)))
        .number("pinball", rows().map(|score| score.pinball))
        .number("scaled", rows().map(|score| score.scaled))
        .number_or_null("coverage", rows().map(|score| Some(means(score)?.coverage)))
        .number_or_null("skill", rows().map(|score| Some(1.0 - means(score)?.scaled)))
}

/// How much the forecasts of all series listen to one member.
#[derive(Clone, Copy, Default)]
struct Heard {
    /// Series in which it has a weight.
    series: u64,
    /// Sum of its weights.
    weight: f64,
}

fn heard(forecast: &Forecast) -> BTreeMap<&str, Heard> {
    let mut members: BTreeMap<&str, Heard> = BTreeMap::new();
    let weights = forecast.series.iter().flat_map(|series| &series.weights);
    for (member, weight) in weights {
        let heard = members.entry(member).or_default();
        heard.series += u64::from(*weight > 0.0);
        heard.weight += weight;
    }
    members
}

/// `system.members`: who takes part in forecasts, how much it is listened to, and how it learns.
pub(super) fn members(engine: &Inner) -> Sheet {
    let (forecast, fits) = (engine.the_loop.forecast(), engine.the_loop.fits());
    let (heard, series) = (heard(&forecast), forecast.series.len().max(1) as f64);
    let rows = || fits.iter();
    let of = |fit: &MemberFit| heard.get(fit.standing.member).copied().unwrap_or_default();
    let tick = |tick: Option<Tick>| tick.map(|tick| tick.0);
    Sheet::default()
        .text("member", rows().map(|fit| fit.standing.member))
        .flag("awake", rows().map(|fit| of(fit).series > 0))
        .count("series", rows().map(|fit| of(fit).series))
        .number("weight_mean", rows().map(|fit| of(fit).weight / series))
        .number_or_null("scaled_loss", rows().map(|fit| fit.standing.scaled_loss))
        .number_or_null("skill", rows().map(|fit| Some(1.0 - fit.standing.scaled_loss?)))
        .count("steps", rows().map(|fit| fit.standing.report.steps))
        .count_or_null("learned_ticks", rows().map(|fit| fit.standing.report.ticks))
        .count_or_null("learned_until_tick", rows().map(|fit| tick(fit.standing.report.at)))
        .count_or_null(
            "frozen_since_tick",
            rows().map(|fit| tick(fit.standing.report.frozen_since)),
        )
        .number("loss_first", rows().map(|fit| fit.last.loss_first))
        .number("loss_last", rows().map(|fit| fit.last.loss_last))
        .text_or_null("error", rows().map(|fit| fit.error.clone()))
}

/// `system.next_calls`: which function is called on which table next, and which will be called most on which
/// partition within the hour.
pub(super) fn next_calls(engine: &Inner) -> Sheet {
    let expected = engine.the_loop.next_calls();
    let trust: Vec<String> =
        expected.trust.iter().map(|(name, trust)| format!("{name} {trust:.2}")).collect();
    let trust = trust.join(", ");
    let call = (1..).zip(&expected.call).map(|(rank, ((function, table), chance))| {
        let partition = None;
        Next { of: "call", rank, function, table, partition, chance: *chance }
    });
    let hour = (1..).zip(&expected.hour).map(|(rank, ((function, place), chance))| {
        let partition = Some(partition(place));
        Next { of: "hour", rank, function, table: &place.table, partition, chance: *chance }
    });
    let all: Vec<Next<'_>> = call.chain(hour).collect();
    let rows = || all.iter();
    Sheet::default()
        .text("next", rows().map(|next| next.of))
        .count("rank", rows().map(|next| next.rank))
        .text("function", rows().map(|next| next.function))
        .text("table_name", rows().map(|next| next.table))
        .count_or_null("partition", rows().map(|next| next.partition))
        .number("chance", rows().map(|next| next.chance))
        .text_or_null("trust", rows().map(|next| (next.of == "call").then(|| trust.clone())))
}

/// One thing that is expected to be called.
struct Next<'a> {
    /// The next `call`, or within the next `hour`.
    of: &'static str,
    rank: u64,
    function: &'a Arc<str>,
    table: &'a Arc<str>,
    partition: Option<u64>,
    chance: f64,
}

/// `system.announced`: what people announced of the future, and of the past that is remembered.
pub(super) fn announced(engine: &Inner) -> Sheet {
    let announced = engine.the_loop.announced();
    let rows = || announced.iter();
    Sheet::default()
        .text("function", rows().map(|span| &span.function))
        .number("factor", rows().map(|span| span.factor))
        .moment("starts_at", rows().map(|span| span.from_ms))
        .moment("ends_at", rows().map(|span| span.until_ms))
}
