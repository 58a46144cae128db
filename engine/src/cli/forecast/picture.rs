//! A load and its forecast as an SVG file, one panel for each function.

use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::chart::{amount, top};
use super::shown::{Coming, Shown, moment};

const WIDTH: u32 = 1_120;
/// Height of the title, and of each panel.
const HEAD: u32 = 62;
const PANEL: u32 = 330;
const MARGIN: u32 = 20;

const INK: RGBColor = RGBColor(38, 42, 51);
const FAINT: RGBColor = RGBColor(120, 126, 138);
const GRID: RGBColor = RGBColor(232, 234, 238);
/// Told apart from the ink by people with any colour vision (Okabe and Ito).
const BLUE: RGBColor = RGBColor(0, 114, 178);

/// Panels of one picture; further functions are left out.
pub(super) const PANELS_MAX: usize = 6;

/// The picture could not be drawn or written.
type Failed = Box<dyn std::error::Error + Send + Sync>;

fn failed(error: impl std::fmt::Display) -> Failed {
    error.to_string().into()
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws at most [`PANELS_MAX`] functions into `file`.
pub(super) fn draw(all: &[Shown], file: &Path) -> Result<(), Failed> {
    let panels = u32::try_from(all.len().clamp(1, PANELS_MAX)).unwrap_or(1);
    let root = SVGBackend::new(file, (WIDTH, HEAD + PANEL * panels)).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let (head, body) = root.split_vertically(HEAD);
    let title = "Calls, and what Foreshard expects of the coming ticks";
    head.draw(&Text::new(title, (20, 12), text(22.0, INK))).map_err(failed)?;
    legend(&head)?;
    for (area, shown) in body.split_evenly((panels as usize, 1)).iter().zip(all) {
        panel(area, shown)?;
    }
    root.present().map_err(failed)
}

fn text(size: f64, colour: RGBColor) -> TextStyle<'static> {
    TextStyle { color: colour.to_backend_color(), ..TextStyle::from(("sans-serif", size)) }
}

fn legend(area: &Area<'_>) -> Result<(), Failed> {
    let style = || text(14.0, INK).pos(Pos::new(HPos::Left, VPos::Center));
    let y = 48;
    let line = |x: i32| vec![(x, y), (x + 26, y)];
    area.draw(&PathElement::new(line(20), INK.stroke_width(2))).map_err(failed)?;
    area.draw(&Text::new("calls", (54, y), style())).map_err(failed)?;
    let dashed = DashedPathElement::new(line(120), 5, 4, BLUE.stroke_width(2));
    area.draw(&dashed).map_err(failed)?;
    area.draw(&Text::new("expected", (154, y), style())).map_err(failed)?;
    let band = Rectangle::new([(246, y - 7), (272, y + 7)], BLUE.mix(0.16).filled());
    area.draw(&band).map_err(failed)?;
    area.draw(&Text::new("in 8 of 10 ticks", (280, y), style())).map_err(failed)
}

/// Distances between the labels of the time axis, in seconds.
const STEPS_S: [u32; 18] = [
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200,
    86_400,
];

/// Most labels of the time axis.
const LABELS_MAX: f64 = 9.0;

/// Milliseconds since the Unix epoch, with labels at round times of the day.
struct Clock {
    first: f64,
    last: f64,
}

impl Clock {
    /// Milliseconds between two labels: the smallest round time that leaves room, or whole days.
    fn step_ms(&self) -> f64 {
        let least = (self.last - self.first) / LABELS_MAX;
        let mut round = STEPS_S.iter().map(|seconds| f64::from(*seconds) * 1e3);
        let day_ms = 86_400e3;
        round.find(|step| *step >= least).unwrap_or((least / day_ms).ceil().max(1.0) * day_ms)
    }
}

impl Ranged for Clock {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, ms: &f64, (left, right): (i32, i32)) -> i32 {
        left + (f64::from(right - left) * (ms - self.first) / (self.last - self.first)) as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        let step = self.step_ms();
        let start = (self.first / step).ceil();
        let labels = ((self.last / step).floor() - start).max(0.0) as u32;
        (0..=labels).map(|label| (start + f64::from(label)) * step).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.first..self.last
    }
}

impl ValueFormatter<f64> for Clock {
    fn format_ext(&self, ms: &f64) -> String {
        moment(*ms as u64, (self.last - self.first) as u64)
    }
}

/// Middles of the ticks with their values.
fn points(ticks: impl Iterator<Item = (u64, f64)>, tick_ms: f64) -> Vec<(f64, f64)> {
    ticks.map(|(at_ms, value)| (at_ms as f64 + tick_ms / 2.0, value)).collect()
}

fn panel(area: &Area<'_>, shown: &Shown) -> Result<(), Failed> {
    area.draw(&Text::new(shown.sentence(), (20, 4), text(16.0, INK))).map_err(failed)?;
    area.draw(&Text::new(shown.reason.clone(), (20, 26), text(14.0, FAINT))).map_err(failed)?;
    if shown.coming.is_empty() {
        return Ok(());
    }
    let tick_ms = shown.tick_ms() as f64;
    let starts = shown.past.iter().map(|it| it.at_ms).chain(shown.coming.iter().map(|it| it.at_ms));
    let first = starts.clone().min().unwrap_or(0) as f64;
    let last = (starts.max().unwrap_or(1) as f64 + tick_ms).max(first + 1.0);
    let top = top(shown);
    let mut chart = ChartBuilder::on(area)
        .margin_top(52)
        .margin_left(MARGIN)
        .margin_right(3 * MARGIN)
        .x_label_area_size(34)
        .y_label_area_size(64)
        .build_cartesian_2d(Clock { first, last }, 0.0..top)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_labels(9)
        .y_labels(5)
        .y_label_formatter(&|calls: &f64| amount(*calls))
        .y_desc(format!("calls per {}", shown.tick()))
        .disable_x_mesh()
        .light_line_style(WHITE.mix(0.0))
        .bold_line_style(GRID)
        .axis_style(FAINT)
        .label_style(text(13.0, INK))
        .draw()
        .map_err(failed)?;
    let coming = |of: fn(&Coming) -> f64| {
        points(shown.coming.iter().map(|tick| (tick.at_ms, of(tick).min(top))), tick_ms)
    };
    let band = coming(|it| it.q10).into_iter().chain(coming(|it| it.q90).into_iter().rev());
    let band: Vec<_> = band.collect();
    if !band.is_empty() {
        let band = Polygon::new(band, BLUE.mix(0.16).filled());
        chart.draw_series([band]).map_err(failed)?;
    }
    let past = points(shown.past.iter().map(|tick| (tick.at_ms, tick.calls)), tick_ms);
    chart.draw_series(LineSeries::new(past, INK.stroke_width(2))).map_err(failed)?;
    let median = coming(|it| it.q50);
    let line = DashedLineSeries::new(median, 6, 4, BLUE.stroke_width(2));
    chart.draw_series(line).map_err(failed)?;
    if let Some(next) = shown.coming.first() {
        let now = vec![(next.at_ms as f64, 0.0), (next.at_ms as f64, top)];
        chart.draw_series([PathElement::new(now, FAINT.stroke_width(1))]).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::shown::tests::{daily, still};
    use super::*;

    #[test]
    fn the_picture_names_the_function_its_forecast_and_its_axes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("embed.svg");
        draw(&[daily(), still()], &file).unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        for words in
            ["embed: 15.0 calls", "trusted: it lost", "calls per 1 h", "Nov 30", "idle: nothing"]
        {
            assert!(svg.contains(words), "{words}");
        }
        assert!(svg.contains("polygon"), "the band");
        if let Ok(kept) = std::env::var("FORESHARD_TEST_PLOT") {
            std::fs::copy(&file, kept).unwrap();
        }
    }

    #[test]
    fn labels_stand_at_round_times() {
        let hour = 3_600e3;
        let labels = |first: f64, last: f64| {
            let axis = Clock { first, last };
            let points = axis.key_points(plotters::coord::ranged1d::BoldPoints(9));
            points.iter().map(|ms| axis.format_ext(ms)).collect::<Vec<_>>()
        };
        assert_eq!(labels(0.0, 24.0 * hour)[..2], ["Jan  1 00:00", "Jan  1 03:00"]);
        assert_eq!(labels(7.2 * hour, 7.3 * hour)[0], "07:12:00");
        assert_eq!(labels(0.0, 2_400.0 * hour).len(), 9);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        assert!(draw(&[daily()], Path::new("/no/such/folder/forecast.svg")).is_err());
    }
}
