//! What the demo says, for somebody who sees Foreshard for the first time.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;

use super::day::{Arm, ArmReport, DayReport, NODES, Progress, Workload};
use super::decisions::{self, Group};
use super::measure::quantile;
use super::plot::Picture;
use super::schedule::{REGIONS, Round};

/// Decisions of one kind that are shown with their reasons.
const SHOWN: usize = 4;
/// Width of the bar that shows progress.
const BAR: usize = 32;

/// What this is.
pub fn opening() {
    println!("Foreshard answers SQL that calls expensive functions, learns when which of them are");
    println!("called on which data, and has the results ready before they are asked for.");
    println!();
    println!("Loading rows and measuring the functions ..");
}

/// What will be played.
pub fn plan(workload: &Workload, arms: &[Arm]) {
    let tables: Vec<_> = workload.world.tables.iter().map(|table| table.name.as_str()).collect();
    let rows = thousands(workload.rows() as u64);
    println!();
    println!("  data       {}: {}", workload.world.source, tables.join(", "));
    println!(
        "             {rows} rows by the end, in {REGIONS} regions, on {NODES} nodes in this process"
    );
    println!("  functions  what they cost on this machine:");
    for (expression, cost) in workload.world.expressions.iter().zip(&workload.costs) {
        println!("             {:>7} a row  {}", duration(*cost), expression.label);
    }
    println!("  one hour   rows are appended, then there is an idle moment, then people ask");
    println!(
        "  idle       {} of computing in each idle moment; all that is appended would take {}",
        duration(workload.idle_ns()),
        duration(workload.refresh_ns())
    );
    println!(
        "  peak       people look at dashboards from 08 to 12 and from 17 to 21 o'clock; what"
    );
    println!("             they look at changes every hour, but is the same as the day before");
    println!();
    println!(
        "The same two days are played in {} ways, on equal engines, hour by hour:",
        arms.len()
    );
    println!();
    for arm in arms {
        println!("  {:<10} {}", arm.name(), arm.meaning());
    }
    println!();
}

/// One line that grows while the days are played; a line every few hours where there is no terminal.
#[derive(Debug)]
pub struct ProgressLine {
    rounds: Vec<(u32, u32)>,
    terminal: bool,
    said: Option<usize>,
}

impl ProgressLine {
    /// Nothing said yet.
    #[must_use]
    pub fn new(workload: &Workload) -> Self {
        let rounds = workload.schedule.rounds.iter().map(|round| (round.day, round.hour)).collect();
        Self { rounds, terminal: std::io::stdout().is_terminal(), said: None }
    }

    /// Says how far it is.
    pub fn show(&mut self, now: Progress) {
        let Some((day, hour)) = self.rounds.get(now.rounds_done) else { return };
        let what = if *day == 0 { "learn" } else { "act" };
        if self.terminal {
            let full = BAR * now.rounds_done / now.rounds.max(1);
            let bar = format!("{}{}", "#".repeat(full), ".".repeat(BAR - full));
            let line =
                format!("  day {} ({what})  {hour:02}:00  [{bar}]  {}", day + 1, now.arm.name());
            print!("\r{line:<78}");
            // Progress that cannot be written is no reason to stop.
            drop(std::io::stdout().flush());
        } else if now.rounds_done.is_multiple_of(6) && self.said != Some(now.rounds_done) {
            self.said = Some(now.rounds_done);
            println!("  day {} ({what})  {hour:02}:00", day + 1);
        }
    }

    /// Clears the line.
    pub fn end(&self) {
        if self.terminal {
            print!("\r{:<78}\r", "");
        }
    }
}

/// The table of what each way brought, and what its columns mean.
pub fn outcome(report: &DayReport) {
    let queries = report.arms.first().map_or(0, |arm| report.peak(arm).queries);
    println!();
    println!("The second day's peak hours: {queries} queries in each way");
    println!();
    print!("{}", outcome_table(report));
    println!();
    println!("  p50, p95     half of the queries, and 95 of 100, took no longer than this");
    println!("  from store   function results that were there and had to be computed for nobody");
    println!(
        "  new rows     the same, of rows that were appended since the function was last asked"
    );
    println!("               for: only who looks ahead can have them ready");
    println!();
    let answers: usize = report.arms.iter().map(|arm| arm.answers.len()).sum();
    match report.answers_different() {
        0 => println!(
            "All {} answers of both days are the same in every way.",
            thousands(answers as u64)
        ),
        wrong => println!("{wrong} of {answers} answers DIFFER between the ways: this is a bug."),
    }
}

fn outcome_table(report: &DayReport) -> String {
    let mut text = format!(
        "  {:<10}{:>12}{:>12}{:>16}{:>12}{:>12}\n",
        "way", "p50", "p95", "rows from store", "from store", "new rows"
    );
    for arm in &report.arms {
        let peak = report.peak(arm);
        text.push_str(&format!(
            "  {:<10}{:>12}{:>12}{:>16}{:>12}{:>12}\n",
            arm.arm.name(),
            duration(peak.p50_ms * 1e6),
            duration(peak.p95_ms * 1e6),
            thousands(peak.rows_stored_count),
            percent(peak.rows_stored),
            percent(peak.fresh_rows_stored),
        ));
    }
    text
}

/// What was decided and why: sums by kind, and the decisions that were worth most.
pub fn decided(report: &DayReport) {
    println!();
    println!("What the engine decided in the way \"forecast\", and why:");
    let groups = decisions::groups(report);
    if groups.is_empty() {
        println!();
        println!("  nothing: no forecast was proven good enough to act on");
    }
    for (kind, group) in &groups {
        println!();
        println!("  {}", sum_line(kind, group));
        for decided in group.decisions.iter().take(SHOWN) {
            let when = report.rounds.get(decided.round).map(moment).unwrap_or_default();
            println!("    {when}  {}", decided.row.target);
            println!("    {:w$}  {}", "", decided.row.reason, w = when.len());
        }
        if group.decisions.len() > SHOWN {
            println!("    .. and {} more", thousands((group.decisions.len() - SHOWN) as u64));
        }
    }
}

fn sum_line(kind: &str, group: &Group<'_>) -> String {
    let mut line = format!("{kind}: {} steps", thousands(group.decisions.len() as u64));
    if group.rows > 0 {
        let took = duration(group.background_ns as f64);
        line.push_str(&format!(", {} rows in {took} of idle time", thousands(group.rows)));
    }
    if let Some(spared) = group.spared_ns {
        line.push_str(&format!(", spared people {}", duration(spared)));
    }
    if group.failed > 0 {
        line.push_str(&format!(", {} could not be carried out", group.failed));
    }
    line
}

fn moment(round: &Round) -> String {
    format!("day {} {:02}:00", round.day + 1, round.hour)
}

/// Where the files are.
pub fn closing(plot: &Path, decisions: &Path, seconds: f64) {
    println!();
    println!("  picture        {}", plot.display());
    println!("  all decisions  {}", decisions.display());
    println!("  took           {seconds:.0} s");
}

/// The same as a picture.
#[must_use]
pub fn picture(workload: &Workload, report: &DayReport) -> Picture {
    let ms = |ns: f64| ns / 1e6;
    let forecast = report.arm(Arm::Forecast);
    let hours = forecast.map(|arm| arm.hours.as_slice()).unwrap_or_default();
    Picture {
        subtitle: format!(
            "{}: {} function expressions over {} tables of {REGIONS} regions, on {NODES} nodes",
            workload.world.source,
            workload.world.expressions.len(),
            workload.world.tables.len()
        ),
        load_ms: hours.iter().map(|hour| ms(hour.asked_ns as f64)).collect(),
        forecast_ms: hours
            .iter()
            .map(|hour| hour.expected_ns.map(|q| [ms(q.q10), ms(q.q50), ms(q.q90)]))
            .collect(),
        p95_ms: report.arms.iter().map(|arm| (legend(arm.arm), p95_by_hour(report, arm))).collect(),
        steps: forecast.map(|arm| steps_by_hour(arm, report.rounds.len())).unwrap_or_default(),
    }
}

fn legend(arm: Arm) -> String {
    match arm {
        Arm::Off => "off: computed anew".into(),
        Arm::Reactive => "reactive: kept after first use".into(),
        Arm::Forecast => "forecast: ready before".into(),
        Arm::Inverted => "inverted: ready for others".into(),
    }
}

fn p95_by_hour(report: &DayReport, arm: &ArmReport) -> Vec<Option<f64>> {
    let mut times = vec![Vec::new(); report.rounds.len()];
    for answer in &arm.answers {
        if let Some(times) = times.get_mut(answer.round) {
            times.push(answer.ns);
        }
    }
    times.iter().map(|times| (!times.is_empty()).then(|| quantile(times, 0.95) / 1e6)).collect()
}

fn steps_by_hour(arm: &ArmReport, rounds: usize) -> Vec<(String, Vec<u32>)> {
    let mut kinds: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for decided in &arm.decisions {
        let hours = kinds.entry(&decided.row.kind).or_insert_with(|| vec![0; rounds]);
        if let Some(hour) = hours.get_mut(decided.round) {
            *hour += 1;
        }
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, hours)| std::cmp::Reverse(hours.iter().sum::<u32>()));
    kinds.into_iter().map(|(kind, hours)| (kind.to_owned(), hours)).collect()
}

/// Nanoseconds in the unit a reader expects.
fn duration(ns: f64) -> String {
    match ns {
        ns if ns.is_nan() => "-".to_owned(),
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e5 => format!("{:.1} us", ns / 1e3),
        ns if ns < 1e6 => format!("{:.0} us", ns / 1e3),
        ns if ns < 1e8 => format!("{:.1} ms", ns / 1e6),
        ns if ns < 1e9 => format!("{:.0} ms", ns / 1e6),
        ns => format!("{:.1} s", ns / 1e9),
    }
}

fn percent(share: f64) -> String {
    if share.is_nan() { "-".to_owned() } else { format!("{:.0} %", 100.0 * share) }
}

/// `1234567` as `1,234,567`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::day::{Answer, Hour};
    use super::super::schedule::{HOURS, Schedule};
    use super::*;

    /// A report in which every query of an arm takes the same time and as much is stored.
    fn report(arms: &[(Arm, u64, u64)]) -> DayReport {
        let rounds = Schedule::new(1, &[1e5, 2e5], 4).rounds;
        let arm = |&(arm, ns, fresh_stored): &(Arm, u64, u64)| ArmReport {
            arm,
            answers: (0..rounds.len()).map(|round| Answer { round, ns, checksum: 5 }).collect(),
            hours: vec![
                Hour {
                    rows: 2_000,
                    rows_stored: 1_000,
                    rows_fresh: 100,
                    rows_fresh_stored: fresh_stored,
                    ..Hour::default()
                };
                rounds.len()
            ],
            decisions: vec![],
        };
        let arms = arms.iter().map(arm).collect();
        DayReport { rounds, arms }
    }

    #[test]
    fn the_table_says_what_each_way_brought() {
        let report = report(&[(Arm::Off, 120_000_000, 0), (Arm::Forecast, 4_500_000, 90)]);
        assert_eq!(
            outcome_table(&report).lines().collect::<Vec<_>>(),
            [
                "  way                p50         p95 rows from store  from store    new rows",
                "  off             120 ms      120 ms           8,000        50 %         0 %",
                "  forecast        4.5 ms      4.5 ms           8,000        50 %        90 %",
            ]
        );
    }

    #[test]
    fn numbers_are_written_as_people_read_them() {
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(999), "999");
        let shown = [950.0, 45_300.0, 410_000.0, 4_560_000.0, 234e6, 2.34e9].map(duration);
        assert_eq!(shown, ["950 ns", "45.3 us", "410 us", "4.6 ms", "234 ms", "2.3 s"]);
        assert_eq!(percent(f64::NAN), "-");
    }

    #[test]
    fn the_picture_has_a_value_for_every_hour_that_was_played() {
        let report = report(&[(Arm::Forecast, 4_500_000, 90)]);
        let p95 = p95_by_hour(&report, &report.arms[0]);
        assert_eq!(p95.len(), 2 * HOURS as usize);
        assert!(p95.iter().all(|ms| *ms == Some(4.5)));
    }
}
