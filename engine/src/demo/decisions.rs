//! Every decision with its reason: grouped for reading, and whole as a CSV file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use foreshard_policy::decision::Outcome;

use super::day::{Arm, DayReport, Decided};

/// Decisions of one kind.
#[derive(Clone, Debug, Default)]
pub struct Group<'a> {
    /// The decisions, those that spared people most first.
    pub decisions: Vec<&'a Decided>,
    /// Rows that they computed or copied.
    pub rows: u64,
    /// Nanoseconds of background work that they took.
    pub background_ns: u64,
    /// Nanoseconds of waiting that they spared; none if that is not measured.
    pub spared_ns: Option<f64>,
    /// Steps that could not be carried out.
    pub failed: usize,
}

/// The decisions of the forecast arm by kind.
#[must_use]
pub fn groups(report: &DayReport) -> BTreeMap<&str, Group<'_>> {
    let mut groups: BTreeMap<&str, Group<'_>> = BTreeMap::new();
    let decisions = report.arm(Arm::Forecast).map(|arm| arm.decisions.as_slice());
    for decided in decisions.unwrap_or_default() {
        let group = groups.entry(&decided.row.kind).or_default();
        group.decisions.push(decided);
        match &decided.row.outcome {
            Some(Outcome::Done { rows, ns, .. }) => {
                group.rows += rows;
                group.background_ns += ns;
            }
            Some(Outcome::Failed { .. }) => group.failed += 1,
            Some(Outcome::Left { .. }) | None => {}
        }
        if let Some(spared) = decided.row.measured {
            *group.spared_ns.get_or_insert(0.0) += spared;
        }
    }
    for group in groups.values_mut() {
        let worth =
            |decided: &Decided| decided.row.measured.unwrap_or(decided.row.expected_benefit_ns);
        group.decisions.sort_by(|a, b| worth(b).total_cmp(&worth(a)));
    }
    groups
}

/// Writes every decision of every arm, oldest first.
///
/// # Errors
/// What the file system says.
pub fn write(report: &DayReport, path: &Path) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    writeln!(
        file,
        "way,day,hour,kind,step,reason,inputs,forecast,alternatives,expected_benefit_ms,\
         expected_cost_ms,outcome,rows,took_ms,spared_ms"
    )?;
    for arm in &report.arms {
        for Decided { round, row } in &arm.decisions {
            let (day, hour) =
                report.rounds.get(*round).map_or((0, 0), |round| (round.day + 1, round.hour));
            let (outcome, rows, ns) = match &row.outcome {
                None => ("under way".to_owned(), 0, 0),
                Some(Outcome::Done { rows, ns, .. }) => ("done".to_owned(), *rows, *ns),
                Some(Outcome::Failed { code, reason }) => (format!("{code}: {reason}"), 0, 0),
                Some(Outcome::Left { reason }) => (format!("left: {reason}"), 0, 0),
            };
            let ms = |ns: f64| format!("{:.3}", ns / 1e6);
            let cells = [
                arm.arm.name().to_owned(),
                day.to_string(),
                hour.to_string(),
                row.kind.clone(),
                row.target.clone(),
                row.reason.clone(),
                row.inputs.clone(),
                row.forecast.clone(),
                row.alternatives.join("; "),
                ms(row.expected_benefit_ns),
                ms(row.expected_cost_ns),
                outcome,
                rows.to_string(),
                ms(ns as f64),
                row.measured.map(ms).unwrap_or_default(),
            ];
            writeln!(file, "{}", cells.map(|cell| csv(&cell)).join(","))?;
        }
    }
    file.flush()
}

/// A cell of a CSV file, quoted where it must be (RFC 4180).
fn csv(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use foreshard_policy::config::Mode;
    use foreshard_policy::decision::{By, DecisionRow};
    use foreshard_policy::ids::{Epoch, Tick};

    use super::super::day::ArmReport;
    use super::super::schedule::Schedule;
    use super::*;

    fn decided(id: u64, spared: f64) -> Decided {
        let row = DecisionRow {
            id,
            tick: Tick(9),
            at_ms: 0,
            epoch: Epoch(1),
            kind: "precompute".into(),
            target: format!("precompute f{id} on t/1"),
            step: None,
            by: By::Loop,
            mode: Mode::Forecast,
            reason: "2.0 calls expected, the first within 1 s".into(),
            inputs: String::new(),
            forecast: String::new(),
            alternatives: vec!["wait \"here\"".into()],
            expected_benefit_ns: 4e6,
            expected_cost_ns: 2e6,
            expected: None,
            predicted: None,
            outcome: Some(Outcome::Done { rows: 80, bytes: 640, ns: 3_000_000 }),
            measured: Some(spared),
            note: None,
        };
        Decided { round: 32, row }
    }

    fn report() -> DayReport {
        let decisions = vec![decided(1, 5e6), decided(2, 9e6)];
        let arm = ArmReport { arm: Arm::Forecast, answers: vec![], hours: vec![], decisions };
        DayReport { rounds: Schedule::new(1, &[1e5], 4).rounds, arms: vec![arm] }
    }

    #[test]
    fn decisions_of_a_kind_are_summed_and_the_most_useful_stands_first() {
        let report = report();
        let groups = groups(&report);
        let group = &groups["precompute"];
        assert_eq!((group.rows, group.background_ns, group.failed), (160, 6_000_000, 0));
        assert_eq!(group.spared_ns, Some(14e6));
        assert_eq!(group.decisions[0].row.id, 2);
    }

    #[test]
    fn the_file_has_one_quoted_line_per_decision() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions.csv");
        write(&report(), &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(
            lines[1],
            "forecast,2,8,precompute,precompute f1 on t/1,\
             \"2.0 calls expected, the first within 1 s\",,,\"wait \"\"here\"\"\",4.000,2.000,done,80,3.000,5.000"
        );
    }
}
