//! The picture of the played days: load and forecast, how long people waited, what was decided.

use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::schedule::{HOURS, is_peak_hour};

const SIZE: (u32, u32) = (1280, 1060);
const HEAD: u32 = 84;
/// Room on the right for the legends.
const LEGEND: u32 = 268;
const LEFT: u32 = 72;
const MARGIN: u32 = 20;

const INK: RGBColor = RGBColor(38, 42, 51);
const FAINT: RGBColor = RGBColor(120, 126, 138);
const GRID: RGBColor = RGBColor(232, 234, 238);
const PEAK: RGBColor = RGBColor(255, 243, 214);
/// Told apart by people with any colour vision (Okabe and Ito), in the order of use.
const COLOURS: [RGBColor; 6] = [
    RGBColor(120, 126, 138),
    RGBColor(230, 159, 0),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];

/// What the picture shows; one value per hour, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// What was played on, in a few words.
    pub subtitle: String,
    /// Function work that the queries of the hour asked for, in ms, stored or not.
    pub load_ms: Vec<f64>,
    /// What the forecast said of it before the hour began: 10 %, 50 % and 90 % quantile, in ms.
    pub forecast_ms: Vec<Option<[f64; 3]>>,
    /// The 95 % quantile of the waiting times of each way, in ms: name and hours.
    pub p95_ms: Vec<(String, Vec<Option<f64>>)>,
    /// Steps that the forecast way took before each hour: kind and hours.
    pub steps: Vec<(String, Vec<u32>)>,
}

/// The picture could not be drawn or written.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct PlotError {
    /// What the drawing library said.
    pub reason: String,
}

fn failed(error: impl std::fmt::Display) -> PlotError {
    PlotError { reason: error.to_string() }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws `picture` into an SVG file.
///
/// # Errors
/// [`PlotError`] if the file cannot be written.
pub fn draw(picture: &Picture, file: &Path) -> Result<(), PlotError> {
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let (head, body) = root.split_vertically(HEAD);
    head_line(&head, picture)?;
    let panels = body.split_evenly((3, 1));
    load_panel(&panels[0], picture)?;
    waiting_panel(&panels[1], picture)?;
    steps_panel(&panels[2], picture)?;
    root.present().map_err(failed)
}

fn text(size: f64, colour: RGBColor) -> TextStyle<'static> {
    TextStyle { color: colour.to_backend_color(), ..TextStyle::from(("sans-serif", size)) }
}

fn head_line(area: &Area<'_>, picture: &Picture) -> Result<(), PlotError> {
    let title = "Foreshard: the same day played twice, to learn and to act";
    area.draw(&Text::new(title, (20, 18), text(26.0, INK))).map_err(failed)?;
    area.draw(&Text::new(picture.subtitle.clone(), (20, 52), text(16.0, FAINT))).map_err(failed)
}

/// A named mark in the room to the right of a panel.
enum Mark {
    Line(RGBColor),
    Dashed(RGBColor),
    Box(RGBColor, f64),
}

fn legend(area: &Area<'_>, marks: &[(Mark, String)]) -> Result<(), PlotError> {
    let (width, _) = area.dim_in_pixel();
    let left = (width - LEGEND + 26) as i32;
    for (row, (mark, name)) in (0_i32..).zip(marks) {
        let y = 50 + 26 * row;
        let line = vec![(left, y), (left + 26, y)];
        match mark {
            Mark::Line(colour) => {
                area.draw(&PathElement::new(line, colour.stroke_width(3))).map_err(failed)?;
            }
            Mark::Dashed(colour) => {
                let style = colour.stroke_width(3);
                area.draw(&DashedPathElement::new(line, 5, 4, style)).map_err(failed)?;
            }
            Mark::Box(colour, share) => {
                let corners = [(left, y - 7), (left + 26, y + 7)];
                area.draw(&Rectangle::new(corners, colour.mix(*share).filled())).map_err(failed)?;
            }
        }
        let style = text(15.0, INK).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(name.clone(), (left + 36, y), style)).map_err(failed)?;
    }
    Ok(())
}

/// Hours from left to right, every fourth with its time of the day.
struct HourAxis(u32);

impl Ranged for HourAxis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, hour: &f64, (left, right): (i32, i32)) -> i32 {
        left + (f64::from(right - left) * hour / f64::from(self.0)) as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..=self.0).step_by(4).map(f64::from).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        0.0..f64::from(self.0)
    }
}

impl ValueFormatter<f64> for HourAxis {
    fn format_ext(&self, hour: &f64) -> String {
        format!("{:02}:00", hour.round() as u32 % HOURS)
    }
}

/// Sets up one panel with its grid, peak hours and axes; a macro because the types of linear and
/// logarithmic charts differ.
macro_rules! panel {
    ($area:expr, $title:expr, $unit:expr, $hours:expr, $y:expr, $top:expr, $bottom:expr) => {{
        $area.draw(&Text::new($title, (20, 4), text(17.0, INK))).map_err(failed)?;
        let mut chart = ChartBuilder::on($area)
            .margin_top(32)
            .margin_left(MARGIN)
            .margin_right(LEGEND)
            .x_label_area_size(46)
            .y_label_area_size(LEFT)
            .build_cartesian_2d(HourAxis($hours), $y)
            .map_err(failed)?;
        let peaks = (0..$hours).filter(|hour| is_peak_hour(hour % HOURS)).map(|hour| {
            let hour = f64::from(hour);
            Rectangle::new([(hour, $bottom), (hour + 1.0, $top)], PEAK.filled())
        });
        chart.draw_series(peaks).map_err(failed)?;
        chart
            .configure_mesh()
            .x_labels(13)
            .y_labels(6)
            .y_label_formatter(&amount)
            .y_desc($unit)
            .disable_x_mesh()
            .light_line_style(WHITE.mix(0.0))
            .bold_line_style(GRID)
            .axis_style(FAINT)
            .label_style(text(14.0, INK))
            .axis_desc_style(text(15.0, INK))
            .draw()
            .map_err(failed)?;
        for day in 0..$hours.div_ceil(HOURS) {
            let start = f64::from(day * HOURS);
            let line = vec![(start, $bottom), (start, $top)];
            chart.draw_series([PathElement::new(line, FAINT.stroke_width(1))]).map_err(failed)?;
        }
        chart
    }};
}

fn amount(value: &f64) -> String {
    match *value {
        value if value >= 10_000.0 => format!("{:.0}k", value / 1000.0),
        value if value >= 10.0 || value == 0.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        value => format!("{value:.2}"),
    }
}

fn hours(picture: &Picture) -> u32 {
    u32::try_from(picture.load_ms.len().max(1)).unwrap_or(u32::MAX)
}

/// The middle of each hour with its value; hours without one end a line.
fn runs(values: impl Iterator<Item = Option<f64>>) -> Vec<Vec<(f64, f64)>> {
    let mut runs = vec![vec![]];
    for (hour, value) in (0_u32..).zip(values) {
        match (value, runs.last_mut()) {
            (Some(value), Some(run)) => run.push((f64::from(hour) + 0.5, value)),
            _ => runs.push(vec![]),
        }
    }
    runs.retain(|run| !run.is_empty());
    runs
}

fn load_panel(area: &Area<'_>, picture: &Picture) -> Result<(), PlotError> {
    let (ink, blue) = (INK, COLOURS[2]);
    let known = || picture.forecast_ms.iter().flatten();
    let peak =
        picture.load_ms.iter().copied().chain(known().map(|band| band[1])).fold(1.0, f64::max);
    // The band of an unsure forecast may leave the picture; the load and the median may not.
    let top = 1.25 * peak;
    let title = "How much function work was asked for, and what was expected of it";
    let mut chart =
        panel!(area, title, "function work, ms per hour", hours(picture), 0.0..top, top, 0.0);
    let quantile = |at: usize| {
        let value = move |band: &Option<[f64; 3]>| band.map(|band| band[at].clamp(0.0, top));
        runs(picture.forecast_ms.iter().map(value))
    };
    for (low, high) in quantile(0).into_iter().zip(quantile(2)) {
        let outline: Vec<_> = low.into_iter().chain(high.into_iter().rev()).collect();
        chart.draw_series([Polygon::new(outline, blue.mix(0.16).filled())]).map_err(failed)?;
    }
    let load = picture.load_ms.iter().copied().map(Some);
    for run in runs(load) {
        chart.draw_series(LineSeries::new(run, ink.stroke_width(3))).map_err(failed)?;
    }
    for run in quantile(1) {
        chart
            .draw_series(DashedLineSeries::new(run, 6, 4, blue.stroke_width(3)))
            .map_err(failed)?;
    }
    legend(
        area,
        &[
            (Mark::Line(ink), "what was asked for".into()),
            (Mark::Dashed(blue), "forecast, an hour ahead".into()),
            (Mark::Box(blue, 0.16), "from its 10 % to its 90 % quantile".into()),
            (Mark::Box(PEAK, 1.0), "peak hours".into()),
        ],
    )
}

fn waiting_panel(area: &Area<'_>, picture: &Picture) -> Result<(), PlotError> {
    let known = || picture.p95_ms.iter().flat_map(|(_, hours)| hours.iter().flatten().copied());
    let top = 1.5 * known().fold(1.0, f64::max);
    let bottom = (known().fold(top, f64::min) / 1.5).max(top / 1e6);
    let title = "How long people waited (logarithmic scale; lower is better)";
    let unit = "p95 of query times, ms";
    let mut chart =
        panel!(area, title, unit, hours(picture), (bottom..top).log_scale(), top, bottom);
    let mut marks = vec![];
    for ((name, values), colour) in picture.p95_ms.iter().zip(COLOURS) {
        for run in runs(values.iter().copied()) {
            chart.draw_series(LineSeries::new(run, colour.stroke_width(3))).map_err(failed)?;
        }
        marks.push((Mark::Line(colour), name.clone()));
    }
    legend(area, &marks)
}

fn steps_panel(area: &Area<'_>, picture: &Picture) -> Result<(), PlotError> {
    let hours = hours(picture);
    let mut below = vec![0_u32; hours as usize];
    for (_, counts) in &picture.steps {
        for (below, count) in below.iter_mut().zip(counts) {
            *below += count;
        }
    }
    let top = 1.15 * f64::from(below.iter().copied().max().unwrap_or(0).max(1));
    let title = "What the engine decided to do before each hour (way: forecast)";
    let mut chart = panel!(area, title, "steps per hour", hours, 0.0..top, top, 0.0);
    below.fill(0);
    let mut marks = vec![];
    for ((name, counts), colour) in picture.steps.iter().zip(COLOURS.iter().skip(2)) {
        for ((hour, &count), below) in (0_u32..).zip(counts).zip(&mut below) {
            if count == 0 {
                continue;
            }
            let (low, high) = (f64::from(*below), f64::from(*below + count));
            *below += count;
            let corners = [(f64::from(hour) + 0.12, low), (f64::from(hour) + 0.88, high)];
            chart.draw_series([Rectangle::new(corners, colour.filled())]).map_err(failed)?;
        }
        marks.push((Mark::Box(*colour, 1.0), name.clone()));
    }
    if marks.is_empty() {
        marks.push((Mark::Box(GRID, 1.0), "no steps were taken".into()));
    }
    day_names(area, hours)?;
    legend(area, &marks)
}

/// Writes `day 1: learn` and `day 2: act` below the hours.
fn day_names(area: &Area<'_>, hours: u32) -> Result<(), PlotError> {
    let (width, height) = area.dim_in_pixel();
    let across = f64::from(width - LEGEND - LEFT - MARGIN);
    for (day, name) in (0_u32..).zip(["day 1: learn", "day 2: act"]) {
        let middle = f64::from(day * HOURS + HOURS / 2) / f64::from(hours);
        let x = f64::from(LEFT + MARGIN) + across * middle;
        let style = text(16.0, INK).pos(Pos::new(HPos::Center, VPos::Bottom));
        area.draw(&Text::new(name, (x as i32, height as i32 - 4), style)).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        let load: Vec<f64> =
            (0..48).map(|hour| if is_peak_hour(hour % HOURS) { 900.0 } else { 80.0 }).collect();
        let forecast = |hour: usize| {
            (hour > 2).then(|| [load[hour] * 0.7, load[hour] * 0.95 + 10.0, load[hour] * 1.4])
        };
        let waited = |factor: f64| {
            (0_u32..48)
                .zip(&load)
                .map(|(hour, load)| (hour % 7 != 6).then_some(factor * (5.0 + load / 10.0)))
                .collect::<Vec<_>>()
        };
        Picture {
            subtitle: "TPC-H customer, orders, part; 8 functions, 8 regions, 3 nodes".into(),
            forecast_ms: (0..48).map(forecast).collect(),
            p95_ms: vec![
                ("off: all computed anew".into(), waited(5.0)),
                ("reactive: kept after first use".into(), waited(1.0)),
                ("forecast: ready before".into(), waited(0.1)),
            ],
            steps: vec![
                ("precompute an output".into(), (0..48).map(|hour| hour % 24).collect()),
                ("copy a partition".into(), (0..48).map(|hour| u32::from(hour % 9 == 8)).collect()),
            ],
            load_ms: load,
        }
    }

    #[test]
    fn the_picture_names_its_axes_units_and_ways() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("day.svg");
        draw(&picture(), &file).unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        for words in [
            "function work, ms per hour",
            "p95 of query times, ms",
            "steps per hour",
            "forecast: ready before",
            "day 2: act",
            "08:00",
        ] {
            assert!(svg.contains(words), "{words}");
        }
        if let Ok(kept) = std::env::var("FORESHARD_TEST_PLOT") {
            std::fs::copy(&file, kept).unwrap();
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        assert!(draw(&picture(), Path::new("/no/such/folder/day.svg")).is_err());
    }

    #[test]
    fn a_day_without_values_is_drawn_empty() {
        let folder = tempfile::tempdir().unwrap();
        draw(&Picture::default(), &folder.path().join("empty.svg")).unwrap();
    }
}
