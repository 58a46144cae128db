//! Why a forecast is trusted or not, in plain words.

use super::Forecast;

/// One line for people: what a forecast was worth so far, and what follows from that.
#[must_use]
pub fn reason(forecast: &Forecast) -> String {
    let loss = 100.0 * (1.0 - forecast.skill);
    if forecast.trusted {
        format!(
            "trusted: so far it lost {loss:.0} % of what repeating the last tick would have lost, so steps \
             are taken ahead of calls"
        )
    } else if forecast.skill < 0.0 {
        format!(
            "not trusted: so far it lost {loss:.0} % of what repeating the last tick would have lost, so \
             rules go by the last ticks alone"
        )
    } else {
        "not trusted: too few of its ticks are over to know what it is worth, so rules go by the last \
         ticks alone"
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_says_what_the_forecast_was_worth_and_what_is_done_about_it() {
        let said = |trusted, skill| reason(&Forecast { trusted, skill, ..Forecast::default() });
        assert!(said(true, 0.4).starts_with("trusted: so far it lost 60 %"));
        assert!(said(false, -0.2).starts_with("not trusted: so far it lost 120 %"));
        assert!(said(false, 0.0).starts_with("not trusted: too few"));
    }
}
