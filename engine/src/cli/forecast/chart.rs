//! A load and its forecast as characters: braille dots for lines, shade for the band, a bar for now.
//!
//! Past and future are told apart by the bar, so the chart needs no colour.

use super::shown::Shown;

/// Columns of the chart with its labels.
const WIDTH: usize = 96;
/// Columns for the labels of the vertical axis.
const LABELS: usize = 8;
/// Rows of the chart.
const HEIGHT: usize = 14;
/// Dots of one character: two columns of four.
const DOTS: (usize, usize) = (2, 4);
/// The braille character without a dot; the lower byte of the others says which dots they have.
const BRAILLE: u32 = 0x2800;
/// The bit of each dot, by column and row.
const BITS: [[u8; 4]; 2] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];

const BLUE: &str = "\u{1b}[34m";
const PLAIN: &str = "\u{1b}[0m";

/// Dots on a grid of characters, and shaded characters behind them.
struct Canvas {
    columns: usize,
    dots: Vec<u8>,
    shade: Vec<bool>,
}

impl Canvas {
    fn new(columns: usize) -> Self {
        let cells = columns * HEIGHT;
        Self { columns, dots: vec![0; cells], shade: vec![false; cells] }
    }

    /// Sets a dot; `x` from the left, `y` from the bottom.
    fn dot(&mut self, x: usize, y: usize) {
        let row = (HEIGHT * DOTS.1 - 1).saturating_sub(y);
        let cell = row / DOTS.1 * self.columns + x / DOTS.0;
        if let Some(dots) = self.dots.get_mut(cell) {
            *dots |= BITS[x % DOTS.0][row % DOTS.1];
        }
    }

    /// A line through one height per column of dots, from `left` on.
    fn line(&mut self, left: usize, heights: &[usize]) {
        let mut before = heights.first().copied().unwrap_or(0);
        for (x, &height) in (left..).zip(heights) {
            let between = if before < height { before + 1..=height } else { height..=before };
            let steep = between.clone().count() > 1;
            if steep {
                between.clone().filter(|y| *y != before).for_each(|y| self.dot(x, y));
            }
            self.dot(x, height);
            before = height;
        }
    }

    /// Shades the characters between two heights per column of dots, from `left` on.
    fn band(&mut self, left: usize, low: &[usize], high: &[usize]) {
        for ((x, low), high) in (left..).zip(low).zip(high) {
            for row in low / DOTS.1..=high / DOTS.1 {
                let cell = (HEIGHT - 1).saturating_sub(row) * self.columns + x / DOTS.0;
                if let Some(shade) = self.shade.get_mut(cell) {
                    *shade = true;
                }
            }
        }
    }

    fn character(&self, row: usize, column: usize, now: usize) -> char {
        let cell = row * self.columns + column;
        match (self.dots.get(cell).copied().unwrap_or(0), self.shade.get(cell)) {
            (0, Some(true)) => '░',
            (0, _) if column == now => '┊',
            (0, _) => ' ',
            (dots, _) => char::from_u32(BRAILLE + u32::from(dots)).unwrap_or(' '),
        }
    }
}

/// `values` at so many evenly spaced places: straight lines between them if there are fewer values, means
/// of several if there are more.
pub(super) fn spread(values: &[f64], places: usize) -> Vec<f64> {
    let count = values.len();
    if count == 0 {
        return vec![];
    }
    let at = |position: usize| values.get(position.min(count - 1)).copied().unwrap_or(0.0);
    if places <= count {
        let start = |place: usize| place * count / places.max(1);
        let mean = |place: usize| {
            let part = &values[start(place)..start(place + 1).max(start(place) + 1)];
            part.iter().sum::<f64>() / part.len() as f64
        };
        return (0..places).map(mean).collect();
    }
    let between = |place: usize| {
        let position = (place as f64 + 0.5) * count as f64 / places as f64 - 0.5;
        let position = position.clamp(0.0, (count - 1) as f64);
        let (whole, part) = (position.floor(), position.fract());
        at(whole as usize) * (1.0 - part) + at(whole as usize + 1) * part
    };
    (0..places).map(between).collect()
}

/// The smallest of 1, 2, 5, 10, 20, .. parts per whole that is not below `value`.
pub(super) fn round_up(value: f64) -> f64 {
    if !value.is_finite() || value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    steps
        .iter()
        .map(|step| step * power)
        .find(|step| *step >= value * (1.0 - 1e-9))
        .unwrap_or(value)
}

/// A number of calls in few characters.
pub(super) fn amount(value: f64) -> String {
    let text = match value {
        value if value >= 1e7 => return format!("{:.0}M", value / 1e6),
        value if value >= 1e4 => return format!("{:.0}k", value / 1e3),
        value if value >= 10.0 || value == 0.0 => return format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The highest value that the picture must have room for: what was and what is expected; of a wide band
/// only a part.
pub(super) fn top(shown: &Shown) -> f64 {
    let sure = shown.past.iter().map(|tick| tick.calls).chain(shown.coming.iter().map(|it| it.q50));
    let sure = sure.fold(0.0, f64::max);
    let unsure = shown.coming.iter().map(|tick| tick.q90).fold(0.0, f64::max);
    round_up(if sure > 0.0 { unsure.min(2.0 * sure).max(sure) } else { unsure })
}

/// Draws a load and its forecast; every line ends with a line feed, and none is longer than 100 characters.
pub(super) fn draw(shown: &Shown, colour: bool) -> String {
    let columns = WIDTH - LABELS - 1;
    let ticks = (shown.past.len() + shown.coming.len()).max(1);
    let now = (columns * shown.past.len() / ticks).clamp(1, columns - 1);
    let (left, right) = (now * DOTS.0, (columns - now) * DOTS.0);
    let top = top(shown);
    let rows = HEIGHT * DOTS.1 - 1;
    let heights = |values: Vec<f64>, dots: usize| -> Vec<usize> {
        let height = |value: f64| ((value / top * rows as f64).round() as usize).min(rows);
        spread(&values, dots).into_iter().map(height).collect()
    };
    let coming = |of: fn(&super::shown::Coming) -> f64| {
        heights(shown.coming.iter().map(of).collect(), right)
    };
    let mut canvas = Canvas::new(columns);
    canvas.band(left, &coming(|it| it.q10), &coming(|it| it.q90));
    canvas.line(0, &heights(shown.past.iter().map(|it| it.calls).collect(), left));
    canvas.line(left, &coming(|it| it.q50));
    let mut text = String::new();
    for row in 0..HEIGHT {
        let value = match row {
            0 => amount(top),
            row if row == HEIGHT / 2 => amount(top / 2.0),
            row if row == HEIGHT - 1 => "0".to_owned(),
            _ => String::new(),
        };
        text.push_str(&format!("{value:>w$} │", w = LABELS - 1));
        let of_row = |from: usize, to: usize| -> String {
            (from..to).map(|column| canvas.character(row, column, now)).collect()
        };
        let (past, coming) = (of_row(0, now), of_row(now, columns));
        text.push_str(&past);
        text.push_str(&painted(coming.trim_end(), colour));
        text.push('\n');
    }
    text.push_str(&axis(shown, columns, now));
    let legend = format!("{:w$}⠒⠒ calls in a tick of {}    ", "", shown.tick(), w = LABELS + 1);
    text.push_str(&legend);
    text.push_str(&painted("⠒⠒ expected  ░░ in 8 of 10 ticks", colour));
    text.push_str("    ┊ now\n");
    text
}

fn painted(text: &str, colour: bool) -> String {
    if colour && !text.is_empty() { format!("{BLUE}{text}{PLAIN}") } else { text.to_owned() }
}

/// The horizontal axis, with the times at its ends and at now where there is room.
fn axis(shown: &Shown, columns: usize, now: usize) -> String {
    let mut line = vec!['─'; columns];
    line[now] = '┴';
    let line: String = line.into_iter().collect();
    let mut labels = vec![' '; columns];
    let times = shown.times();
    let mut free_from = 0;
    let places = [(0, times.first), (now, times.now), (columns, times.last)];
    for (number, (place, time)) in places.into_iter().enumerate() {
        let Some(time) = time else { continue };
        let width = time.chars().count();
        let start = match number {
            0 => 0,
            1 => place.saturating_sub(width / 2),
            _ => place.saturating_sub(width),
        };
        if start < free_from || start + width > columns {
            continue;
        }
        labels.splice(start..start + width, time.chars());
        free_from = start + width + 2;
    }
    let labels: String = labels.into_iter().collect();
    let indent = " ".repeat(LABELS);
    format!("{indent}└{line}\n{indent} {}\n", labels.trim_end())
}

/// The same in one row of so many characters: what was, a bar, what is expected.
pub(super) fn spark(shown: &Shown, width: usize) -> String {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let top = top(shown);
    let steps = |values: Vec<f64>, places: usize| -> String {
        let step = |value: f64| STEPS[((value / top * 8.0) as usize).min(STEPS.len() - 1)];
        spread(&values, places).into_iter().map(step).collect()
    };
    let ticks = (shown.past.len() + shown.coming.len()).max(1);
    let past = ((width - 1) * shown.past.len() / ticks).clamp(1, width - 2);
    format!(
        "{}┊{}",
        steps(shown.past.iter().map(|tick| tick.calls).collect(), past),
        steps(shown.coming.iter().map(|tick| tick.q50).collect(), width - 1 - past)
    )
}

#[cfg(test)]
mod tests {
    use super::super::shown::tests::{daily, still};
    use super::*;

    #[test]
    fn a_chart_has_the_load_left_and_the_forecast_right_of_now_and_fits_a_terminal() {
        let chart = draw(&daily(), false);
        let lines: Vec<&str> = chart.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() <= 100), "{chart}");
        assert!(!chart.contains('\u{1b}'), "{chart}");
        let now = lines[HEIGHT].chars().position(|letter| letter == '┴').unwrap();
        for line in &lines[..HEIGHT] {
            let band = line.chars().position(|letter| letter == '░');
            assert!(band.is_none_or(|band| band >= now), "{chart}");
        }
        assert!(lines[..HEIGHT].iter().any(|line| line.contains('░')), "{chart}");
        // Three days of which one is to come.
        assert!((60..75).contains(&now), "{now}\n{chart}");
        assert!(chart.contains("Nov 30 00:00"), "{chart}");
        if let Ok(kept) = std::env::var("FORESHARD_TEST_CHART") {
            std::fs::write(kept, draw(&daily(), true)).unwrap();
        }
    }

    #[test]
    fn a_higher_load_is_drawn_higher() {
        let mut canvas = Canvas::new(2);
        canvas.line(0, &[0, 0, 55, 55]);
        assert_eq!(canvas.character(HEIGHT - 1, 0, 9), '⣀');
        assert_eq!(canvas.character(0, 0, 9), ' ');
        assert_eq!(canvas.character(0, 1, 9), '⡏', "a steep rise is one line");
    }

    #[test]
    fn values_are_spread_over_places_by_means_or_by_straight_lines() {
        assert_eq!(spread(&[1.0, 3.0, 5.0, 7.0], 2), [2.0, 6.0]);
        assert_eq!(spread(&[0.0, 4.0], 4), [0.0, 1.0, 3.0, 4.0]);
        assert_eq!(spread(&[2.0], 3), [2.0; 3]);
        assert!(spread(&[], 3).is_empty());
    }

    #[test]
    fn a_scale_ends_at_a_round_number_above_the_highest_value() {
        assert_eq!(
            [0.0, 0.7, 9.1, 47.0, 100.0, 101.0].map(round_up),
            [1.0, 0.8, 10.0, 50.0, 100.0, 150.0]
        );
        assert_eq!([0.25, 1.5, 50.0, 47_000.0].map(amount), ["0.25", "1.5", "50", "47k"]);
    }

    #[test]
    fn nothing_is_drawn_as_nothing() {
        let chart = draw(&still(), false);
        assert!(chart.lines().take(HEIGHT).all(|line| !line.contains('░')), "{chart}");
        assert_eq!(chart.lines().count(), HEIGHT + 3);
    }

    #[test]
    fn a_spark_shows_both_sides_of_now() {
        let spark = spark(&daily(), 31);
        assert_eq!(spark.chars().count(), 31, "{spark}");
        let (past, coming) = spark.split_once('┊').unwrap();
        for side in [past, coming] {
            assert!(side.contains('▁') && side.contains('▆'), "{spark}");
        }
    }
}
