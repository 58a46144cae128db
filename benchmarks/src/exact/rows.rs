//! Rows in a form that two engines' answers can be compared in.

use std::cmp::Ordering;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Float64Type, SchemaRef};
use arrow::row::{RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// Relative (and, near zero, absolute) difference that two floats may have.
pub const TOLERANCE: f64 = 1e-9;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// NULL.
    Null,
    /// A float, which may differ in the last digits.
    Float(f64),
    /// Anything that is compared exactly, as text.
    Exact(String),
}

impl Cell {
    /// Equal as P1 means it: exactly, but for floats, of which a sum may differ in the last digits.
    /// NaN equals NaN, and 0.0 equals -0.0.
    fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Float(left), Self::Float(right)) => {
                (left.is_nan() && right.is_nan())
                    || left == right
                    || (left - right).abs() <= TOLERANCE * left.abs().max(right.abs()).max(1.0)
            }
            _ => self == other,
        }
    }

    /// Order by everything but the values of floats, which are all the same here.
    fn cmp_but_floats(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Exact(left), Self::Exact(right)) => left.cmp(right),
            _ => self.rank().cmp(&other.rank()),
        }
    }

    /// Order of floats, with one zero and one NaN: what matches must sort together.
    fn cmp_floats(&self, other: &Self) -> Ordering {
        let plain = |value: f64| if value.is_nan() { f64::NAN } else { value + 0.0 };
        match (self, other) {
            (Self::Float(left), Self::Float(right)) => plain(*left).total_cmp(&plain(*right)),
            _ => Ordering::Equal,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Float(_) => 1,
            Self::Exact(_) => 2,
        }
    }
}

/// One row.
pub type Row = Vec<Cell>;

/// The rows of `batches`, in their order.
pub fn rows(batches: &[RecordBatch]) -> Vec<Row> {
    let mut all = Vec::new();
    for batch in batches {
        let mut of_batch = vec![Row::with_capacity(batch.num_columns()); batch.num_rows()];
        for column in batch.columns() {
            for (row, cell) in of_batch.iter_mut().zip(cells(column)) {
                row.push(cell);
            }
        }
        all.append(&mut of_batch);
    }
    all
}

fn cells(column: &dyn Array) -> Vec<Cell> {
    match column.data_type() {
        DataType::Float64 => {
            let values = column.as_primitive::<Float64Type>();
            values.iter().map(|value| value.map_or(Cell::Null, Cell::Float)).collect()
        }
        DataType::Float32 => {
            let values = column.as_primitive::<Float32Type>();
            values.iter().map(|v| v.map_or(Cell::Null, |v| Cell::Float(v.into()))).collect()
        }
        _ => {
            let options = FormatOptions::default();
            let Ok(text) = ArrayFormatter::try_new(column, &options) else {
                return vec![Cell::Exact("a value that has no text".into()); column.len()];
            };
            (0..column.len())
                .map(|row| match column.is_null(row) {
                    true => Cell::Null,
                    false => Cell::Exact(text.value(row).to_string()),
                })
                .collect()
        }
    }
}

/// Quick and exact: the same rows, bit by bit, in any order (or in this one, if `ordered`).
pub fn are_identical(
    schema: &SchemaRef,
    left: &[RecordBatch],
    right: &[RecordBatch],
    ordered: bool,
) -> bool {
    let fields = schema.fields().iter().map(|field| SortField::new(field.data_type().clone()));
    let Ok(converter) = RowConverter::new(fields.collect()) else { return false };
    let encoded = |batches: &[RecordBatch]| -> Option<Vec<Box<[u8]>>> {
        let mut all = Vec::new();
        for batch in batches {
            let rows = converter.convert_columns(batch.columns()).ok()?;
            all.extend(rows.iter().map(|row| row.as_ref().into()));
        }
        if !ordered {
            all.sort_unstable();
        }
        Some(all)
    };
    match (encoded(left), encoded(right)) {
        (Some(left), Some(right)) => left == right,
        _ => false,
    }
}

/// The first rows in which the two differ, or `None` if they match.
pub fn difference(left: &[Row], right: &[Row], ordered: bool) -> Option<String> {
    if left.len() != right.len() {
        return Some(format!(
            "{} rows instead of {}\n{}",
            right.len(),
            left.len(),
            one_sided(left, right)
        ));
    }
    if ordered {
        let at = left.iter().zip(right).position(|(left, right)| !match_rows(left, right))?;
        return Some(format!("row {at}: plain {:?}\n       ours {:?}", left[at], right[at]));
    }
    let (left, right) = (sorted(left), sorted(right));
    if left.iter().zip(&right).all(|(left, right)| match_rows(left, right)) {
        return None;
    }
    // Floats that differ in the last digits may sort rows differently: pair what is left by hand.
    let (only_left, only_right) = unpaired(left, right);
    (!only_left.is_empty()).then(|| show(&only_left, &only_right))
}

fn match_rows(left: &[Cell], right: &[Cell]) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(left, right)| left.matches(right))
}

/// Rows by their exact columns first, then by their floats.
fn sorted(rows: &[Row]) -> Vec<Row> {
    let mut rows = rows.to_vec();
    rows.sort_by(|left, right| {
        let by = |order: fn(&Cell, &Cell) -> Ordering| {
            let mut orders = left.iter().zip(right).map(|(left, right)| order(left, right));
            orders.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
        };
        by(Cell::cmp_but_floats).then_with(|| by(Cell::cmp_floats))
    });
    rows
}

fn unpaired(left: Vec<Row>, mut right: Vec<Row>) -> (Vec<Row>, Vec<Row>) {
    let mut only_left = Vec::new();
    for row in left {
        match right.iter().position(|other| match_rows(&row, other)) {
            Some(at) => drop(right.swap_remove(at)),
            None => only_left.push(row),
        }
    }
    (only_left, right)
}

fn one_sided(left: &[Row], right: &[Row]) -> String {
    let (only_left, only_right) = unpaired(sorted(left), sorted(right));
    show(&only_left, &only_right)
}

fn show(only_left: &[Row], only_right: &[Row]) -> String {
    let lines = |who: &str, rows: &[Row]| -> String {
        rows.iter().take(5).map(|row| format!("  only {who}: {row:?}\n")).collect()
    };
    lines("plain", only_left) + &lines("ours", only_right)
}
