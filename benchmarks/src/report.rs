//! What a benchmark found: rows for reading, figures with bounds for judging; as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::machine::Machine;

/// Everything that one run of one benchmark found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name of the benchmark.
    pub name: String,
    /// Seed of everything random in it.
    pub seed: u64,
    /// True if it ran on less data than the bounds are meant for.
    pub quick: bool,
    /// Where it ran.
    pub machine: Machine,
    /// What was measured, one row per thing; all rows have the same columns.
    pub rows: Vec<Row>,
    /// What it comes down to.
    pub figures: Vec<Figure>,
}

impl Report {
    /// True if no bound was missed.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.figures.iter().all(|figure| figure.holds)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quick = if self.quick { " (quick)" } else { "" };
        writeln!(f, "{}{quick}, seed {}, on {}\n", self.name, self.seed, self.machine)?;
        if let Some(first) = self.rows.first() {
            let names = first.0.iter().map(|(name, _)| (*name).to_owned()).collect();
            let cells = |row: &Row| row.0.iter().map(|(_, cell)| cell.to_string()).collect();
            let right = first.0.iter().map(|(_, cell)| !matches!(cell, Cell::Text(_))).collect();
            write_table(f, names, self.rows.iter().map(cells).collect(), right)?;
            writeln!(f)?;
        }
        let names = ["figure", "value", "bound", "holds"].map(str::to_owned).to_vec();
        let figures = self.figures.iter().map(|figure| {
            let holds = match (&figure.bound, figure.holds) {
                (None, _) => "",
                (Some(_), true) => "yes",
                (Some(_), false) => "NO",
            };
            let value = format!("{:.3} {}", figure.value, figure.unit);
            let bound = figure.bound.map(|bound| bound.to_string()).unwrap_or_default();
            vec![figure.name.clone(), value.trim_end().to_owned(), bound, holds.to_owned()]
        });
        write_table(f, names, figures.collect(), vec![false, true, false, false])
    }
}

/// One measured thing: named cells in the order in which they are shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row(Vec<(&'static str, Cell)>);

impl Row {
    /// Adds a cell at the right.
    #[must_use]
    pub fn with(mut self, name: &'static str, cell: impl Into<Cell>) -> Self {
        self.0.push((name, cell.into()));
        self
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, cell) in &self.0 {
            map.serialize_entry(name, cell)?;
        }
        map.end()
    }
}

/// One value of a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Cell {
    /// Words.
    Text(String),
    /// A count.
    Count(u64),
    /// A measure; shown with three digits after the point, kept in full in JSON.
    Measure(f64),
    /// Measures by name; the least one is shown.
    Map(BTreeMap<String, f64>),
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Count(count) => write!(f, "{count}"),
            Self::Measure(value) if value.is_nan() => f.write_str("-"),
            Self::Measure(value) => write!(f, "{value:.3}"),
            Self::Map(map) => match map.iter().min_by(|a, b| a.1.total_cmp(b.1)) {
                Some((name, value)) => write!(f, "{name} {value:.3}"),
                None => f.write_str("-"),
            },
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Cell {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Self::Measure(value)
    }
}

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// At most this.
    AtMost(f64),
    /// Less than this.
    Below(f64),
    /// At least this.
    AtLeast(f64),
    /// This and nothing else: for counts and their quotients.
    Exactly(f64),
}

impl Bound {
    /// Whether `value` keeps the bound; NaN keeps none.
    #[must_use]
    pub fn admits(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::Below(bound) => value < bound,
            Self::AtLeast(bound) => value >= bound,
            Self::Exactly(bound) => value == bound,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "<= {bound}"),
            Self::Below(bound) => write!(f, "< {bound}"),
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
            Self::Exactly(bound) => write!(f, "= {bound}"),
        }
    }
}

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One number that a run comes down to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// Its value; `null` in JSON if it could not be measured.
    pub value: f64,
    /// Its unit; `ratio` for parts of one and quotients.
    pub unit: &'static str,
    /// What it must be, such as `<= 1.1`; `null` if it is only reported.
    pub bound: Option<Bound>,
    /// True if the bound is kept or there is none.
    pub holds: bool,
}

impl Figure {
    /// A figure that must keep a bound.
    #[must_use]
    pub fn bounded(name: &str, value: f64, unit: &'static str, bound: Bound) -> Self {
        Self { name: name.to_owned(), value, unit, bound: Some(bound), holds: bound.admits(value) }
    }

    /// A figure that is only reported.
    #[must_use]
    pub fn reported(name: &str, value: f64, unit: &'static str) -> Self {
        Self { name: name.to_owned(), value, unit, bound: None, holds: true }
    }
}

/// Writes columns side by side, each as wide as its widest cell; `right` says which are numbers.
fn write_table(
    f: &mut fmt::Formatter<'_>,
    names: Vec<String>,
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
) -> fmt::Result {
    let mut widths = vec![0; names.len()];
    for line in std::iter::once(&names).chain(&rows) {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for line in std::iter::once(&names).chain(&rows) {
        let mut text = String::new();
        for ((cell, &width), &right) in line.iter().zip(&widths).zip(&right) {
            if right {
                text.push_str(&format!("{cell:>width$}  "));
            } else {
                text.push_str(&format!("{cell:<width$}  "));
            }
        }
        writeln!(f, "{}", text.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(value: f64) -> Report {
        Report {
            name: "overhead".into(),
            seed: 7,
            quick: false,
            machine: Machine::unknown(),
            rows: vec![Row::default().with("query", "q1").with("ratio", 1.25).with("runs", 5_u64)],
            figures: vec![
                Figure::bounded("geomean_ratio", value, "ratio", Bound::AtMost(1.1)),
                Figure::reported("worst_ratio", 1.25, "ratio"),
            ],
        }
    }

    #[test]
    fn the_json_has_the_shape_that_the_manual_names() {
        let json = serde_json::to_value(report(1.05)).unwrap();
        let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            keys.iter().copied().collect::<std::collections::BTreeSet<_>>(),
            ["figures", "machine", "name", "quick", "rows", "seed"].into()
        );
        assert_eq!(json["rows"][0], serde_json::json!({"query": "q1", "ratio": 1.25, "runs": 5}));
        assert_eq!(
            json["figures"][0],
            serde_json::json!({
                "name": "geomean_ratio", "value": 1.05, "unit": "ratio", "bound": "<= 1.1", "holds": true
            })
        );
        assert_eq!(json["figures"][1]["bound"], serde_json::Value::Null);
        for key in ["cores", "memory_bytes", "os", "rustc"] {
            assert!(json["machine"].as_object().unwrap().contains_key(key), "machine.{key}");
        }
    }

    #[test]
    fn a_missed_bound_fails_the_report_and_an_unmeasured_figure_misses_every_bound() {
        assert!(report(1.1).holds());
        assert!(!report(1.1001).holds());
        assert!(!report(f64::NAN).holds());
        let bounds = [Bound::AtMost(1.0), Bound::Below(1.0), Bound::AtLeast(1.0)];
        for bound in bounds.into_iter().chain([Bound::Exactly(1.0)]) {
            assert!(!bound.admits(f64::NAN), "{bound}");
        }
        assert!(Bound::Exactly(1.0).admits(1.0) && !Bound::Exactly(1.0).admits(1.01));
        assert!(!Bound::Below(1.0).admits(1.0));
        assert!(Bound::AtLeast(1.0).admits(1.0));
    }

    #[test]
    fn the_table_says_loudly_what_was_missed() {
        let text = report(1.2).to_string();
        assert!(text.contains("geomean_ratio  1.200 ratio  <= 1.1  NO"), "{text}");
        assert!(text.contains("query  ratio  runs\nq1     1.250     5\n"), "{text}");
    }
}
