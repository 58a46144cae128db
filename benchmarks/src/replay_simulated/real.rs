//! Reads what the real benchmark came to: its report, as it was printed or as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// One arm of one regime of the real benchmark.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RealArm {
    pub(super) calls: u64,
    pub(super) p95_ms: f64,
}

/// All of them, by regime and name.
pub(super) type Real = BTreeMap<(String, String), RealArm>;

/// Reads a report.
///
/// # Errors
/// The file cannot be read, or is no report of the replay; it is named.
pub(super) fn read(path: &Path) -> Result<Real> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let real = if text.trim_start().starts_with('{') { of_json(&text) } else { of_text(&text) };
    let real = real.with_context(|| format!("in {}", path.display()))?;
    if real.is_empty() {
        bail!("{} is no report of the replay", path.display());
    }
    Ok(real)
}

fn of_json(text: &str) -> Result<Real> {
    let report: serde_json::Value = serde_json::from_str(text)?;
    let arm = |row: &serde_json::Value| -> Option<_> {
        let name = |key: &str| row[key].as_str().map(str::to_owned);
        let (calls, p95_ms) = (row["calls"].as_u64()?, row["p95_ms"].as_f64()?);
        Some(((name("regime")?, name("arm")?), RealArm { calls, p95_ms }))
    };
    Ok(report["rows"].as_array().into_iter().flatten().filter_map(arm).collect())
}

/// The first table whose columns begin as those of the replay; other output may stand around it.
fn of_text(text: &str) -> Result<Real> {
    let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let names = lines.find(|cells| cells.starts_with(&["regime", "arm"]));
    let Some(names) = names else { return Ok(Real::new()) };
    let column = |name: &str| {
        let place = names.iter().position(|other| *other == name);
        place.with_context(|| format!("there is no column {name}"))
    };
    let (calls, p95_ms) = (column("calls")?, column("p95_ms")?);
    let rows = lines.take_while(|cells| !cells.is_empty());
    rows.map(|cells| {
        let cell = |place: usize| cells.get(place).copied().context("a row ends early");
        let arm = RealArm { calls: cell(calls)?.parse()?, p95_ms: cell(p95_ms)?.parse()? };
        Ok(((cell(0)?.to_owned(), cell(1)?.to_owned()), arm))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::report::{Report, Row};

    #[test]
    fn a_report_is_read_as_it_was_printed_and_as_json() {
        let row = |regime: &str, arm: &str, p95_ms: f64| {
            let row = Row::default().with("regime", regime).with("arm", arm);
            row.with("calls", 7_u64).with("mean_ms", 2.0).with("p95_ms", p95_ms)
        };
        let report = Report {
            name: "replay".into(),
            seed: 1,
            quick: false,
            machine: Machine::unknown(),
            rows: vec![row("scarce", "off", 5.25), row("ample", "oracle", 1.5)],
            figures: vec![],
        };
        let printed = format!("minutes 0 to 16 of 48, off\n{report}rc 0\n");
        let json = serde_json::to_string(&report).unwrap();
        let arm = |p95_ms| RealArm { calls: 7, p95_ms };
        for real in [of_text(&printed).unwrap(), of_json(&json).unwrap()] {
            let of = |regime: &str, name: &str| real.get(&(regime.into(), name.into())).copied();
            assert_eq!(of("scarce", "off"), Some(arm(5.25)));
            assert_eq!((of("ample", "oracle"), real.len()), (Some(arm(1.5)), 2));
        }
        assert_eq!(of_text("nothing of that kind\n").unwrap(), Real::new());
        let error = of_text("regime  arm  calls\nscarce  off  7\n").unwrap_err().to_string();
        assert_eq!(error, "there is no column p95_ms");
    }
}
