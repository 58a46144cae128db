//! Why forecasts are trusted or not, in plain words.

use super::{Forecast, SeriesForecast};

/// One line for people: how the forecasts of these series stand, the costliest of them in words, and what
/// follows from that.
#[must_use]
pub fn reason<'a>(
    forecast: &Forecast,
    series: impl IntoIterator<Item = &'a SeriesForecast>,
) -> String {
    let series: Vec<_> = series.into_iter().collect();
    let load = |series: &SeriesForecast| series.calls_now * series.ns_per_call;
    let costliest = series.iter().max_by(|a, b| load(a).total_cmp(&load(b)));
    let Some(costliest) = costliest else { return "nothing is known of its calls".to_owned() };
    let proven = series.iter().filter(|series| series.standing.is_proven()).count();
    let of_all = match series.len() {
        1 => String::new(),
        all => format!("{proven} of {all} series are trusted, and the costliest is "),
    };
    let so = if series.iter().all(|series| forecast.may_act_on(series)) && !forecast.trusted {
        "; it was announced, so steps are taken ahead"
    } else if forecast.trusted {
        "; steps are taken ahead of calls"
    } else {
        "; no steps are taken ahead of calls: forecasts of too little of the whole load are trusted"
    };
    format!("{of_all}{}{so}", costliest.standing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::ensemble::Standing;
    use crate::ids::{ExpressionId, PartitionId, SeriesKey};

    fn series(calls: f64, standing: Standing) -> SeriesForecast {
        SeriesForecast {
            key: SeriesKey {
                function: "f".into(),
                expression: ExpressionId(1),
                partition: PartitionId::new("t", 0),
            },
            calls: vec![],
            ns_per_call: 1e6,
            ns_per_row: 1.0,
            bytes_per_row: 8.0,
            weights: vec![],
            calls_now: calls,
            calls_season: 0.0,
            standing,
            announced: false,
        }
    }

    fn said(trusted: bool, series: &[SeriesForecast]) -> String {
        reason(&Forecast { trusted, ..Forecast::default() }, series)
    }

    #[test]
    fn a_reason_says_what_the_costliest_forecast_was_worth_and_what_is_done_about_it() {
        let proven = series(5.0, Standing::Proven { gain: 0.4 });
        let fresh = series(1.0, Standing::New);
        assert_eq!(
            said(true, std::slice::from_ref(&proven)),
            "trusted: it avoided 40 % of the loss of plain repetition; steps are taken ahead of calls"
        );
        let both = said(true, &[fresh.clone(), proven]);
        assert!(
            both.starts_with("1 of 2 series are trusted, and the costliest is trusted: it"),
            "{both}"
        );
        let shut = said(false, std::slice::from_ref(&fresh));
        assert!(shut.starts_with("not trusted yet: ") && shut.contains("; no steps are"), "{shut}");
        let announced = said(false, &[SeriesForecast { announced: true, ..fresh }]);
        assert!(announced.ends_with("; it was announced, so steps are taken ahead"), "{announced}");
        assert_eq!(said(true, &[]), "nothing is known of its calls");
    }
}
