//! What an analyst asks who looks around in a table: thirty questions whose rows overlap.
//!
//! ```text
//! days   |----------------- home: half of the year ------------------|
//! 1           [==========================]
//! 2 zoom in             [============]
//! 3 pan                     [============]
//! 4 regroup                 [============]        the same rows, grouped in another way
//! 5 zoom out          [========================]
//! 6 filter            [== one category, or low prices only ===]
//! ```

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::posts::CATEGORIES;

/// Questions of one session.
pub const ASKS: usize = 30;

/// Days of the table.
pub const DAYS: i32 = 360;

/// Days that the analyst is interested in, somewhere in the table.
const HOME_DAYS: i32 = 180;

/// Width of a window of days: of the first, the narrowest and the widest.
const WIDTH_FIRST: i32 = 90;
const WIDTH_MIN: i32 = 12;
const WIDTH_MAX: i32 = 120;

/// What the analyst does between two questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// The first question.
    Start,
    /// To half of the days.
    ZoomIn,
    /// To the days beside.
    Pan,
    /// To twice as many days.
    ZoomOut,
    /// To other categories or prices.
    Filter,
    /// To another grouping of the same rows.
    Regroup,
}

/// What is asked about the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Mean and highest value by category.
    ByCategory,
    /// The same by region.
    ByRegion,
    /// The same by week.
    ByWeek,
    /// Lowest value by category and region.
    Lowest,
    /// How many rows of each region have a low value.
    LowByRegion,
}

const SHAPES: [Shape; 5] =
    [Shape::ByCategory, Shape::ByRegion, Shape::ByWeek, Shape::Lowest, Shape::LowByRegion];

/// Rows by columns that cost nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// First day and the day after the last.
    pub days: (i32, i32),
    /// Only prices below.
    pub price_below: Option<u32>,
    /// Only this one of [`CATEGORIES`].
    pub category: Option<usize>,
}

impl Window {
    /// The rows in SQL.
    #[must_use]
    pub fn predicate(&self) -> String {
        let (first, end) = self.days;
        let mut sql = format!("day >= {first} AND day < {end}");
        if let Some(price) = self.price_below {
            sql.push_str(&format!(" AND price < {price}"));
        }
        if let Some(category) = self.category {
            sql.push_str(&format!(" AND category = '{}'", CATEGORIES[category]));
        }
        sql
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// What led to it.
    pub by: Move,
    /// The rows.
    pub window: Window,
    /// What about them.
    pub shape: Shape,
}

impl Ask {
    /// The question in SQL, about the values of `call` over a table of posts; `low` is a value below
    /// which about half of the values are.
    #[must_use]
    pub fn sql(&self, table: &str, call: &str, low: f64) -> String {
        let rows = self.window.predicate();
        let by = |group: &str| {
            format!(
                "SELECT {group} AS part, count(*) AS posts, avg({call}) AS mean, \
                 max({call}) AS highest FROM {table} WHERE {rows} GROUP BY 1"
            )
        };
        match self.shape {
            Shape::ByCategory => by("category"),
            Shape::ByRegion => by("region"),
            Shape::ByWeek => by("day / 7"),
            // Not the ten lowest rows: plain DataFusion would push the top ten's bound down as a filter
            // and evaluate the function twice, which is its own fault and not what is compared.
            Shape::Lowest => format!(
                "SELECT category, region, min({call}) AS value FROM {table} WHERE {rows} \
                 GROUP BY category, region"
            ),
            Shape::LowByRegion => format!(
                "SELECT region, count(*) AS posts FROM {table} WHERE {rows} AND {call} < {low} \
                 GROUP BY region"
            ),
        }
    }
}

/// Draws a session. The same seed gives the same session.
#[must_use]
pub fn session(seed: u64) -> Vec<Ask> {
    let mut dice = StdRng::seed_from_u64(seed);
    let home = dice.random_range(0..=DAYS - HOME_DAYS);
    let first = home + (HOME_DAYS - WIDTH_FIRST) / 2;
    let days = (first, first + WIDTH_FIRST);
    let window = Window { days, price_below: None, category: None };
    let mut asks = vec![Ask { by: Move::Start, window, shape: Shape::ByCategory }];
    while asks.len() < ASKS {
        let next = step(&asks[asks.len() - 1], home, &mut dice);
        if asks.last() != Some(&next) {
            asks.push(next);
        }
    }
    asks
}

fn step(now: &Ask, home: i32, dice: &mut StdRng) -> Ask {
    let mut next = now.clone();
    let (first, end) = now.window.days;
    let width = end - first;
    next.by = match dice.random_range(0..100) {
        0..18 if width > WIDTH_MIN => Move::ZoomIn,
        0..40 => Move::Pan,
        40..58 if width < WIDTH_MAX => Move::ZoomOut,
        40..84 => Move::Regroup,
        _ => Move::Filter,
    };
    match next.by {
        Move::Start => {}
        Move::ZoomIn => {
            let half = (width / 2).max(WIDTH_MIN);
            let at = first + dice.random_range(0..=width - half);
            next.window.days = (at, at + half);
        }
        Move::Pan => {
            let by = (width / 3).max(1);
            next.window.days =
                at_home(first + if dice.random_bool(0.5) { by } else { -by }, width, home);
        }
        Move::ZoomOut => {
            let wider = (width * 2).min(WIDTH_MAX);
            next.window.days = at_home(first - (wider - width) / 2, wider, home);
        }
        Move::Regroup => {
            let other = dice.random_range(1..SHAPES.len());
            next.shape = SHAPES[(now.shape as usize + other) % SHAPES.len()];
        }
        Move::Filter => match dice.random_range(0..4) {
            0 => next.window.category = Some(dice.random_range(0..4)),
            1 => next.window.price_below = Some([50, 200, 500][dice.random_range(0..3)]),
            _ => (next.window.category, next.window.price_below) = (None, None),
        },
    }
    next
}

/// So many days from `first`, moved back to where the analyst is interested.
fn at_home(first: i32, width: i32, home: i32) -> (i32, i32) {
    let first = first.clamp(home, home + HOME_DAYS - width);
    (first, first + width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_moves_in_all_ways_and_never_leaves_the_table() {
        for seed in 0..50 {
            let asks = session(seed);
            assert_eq!(asks.len(), ASKS);
            assert_eq!(asks, session(seed));
            for ask in &asks {
                let (first, end) = ask.window.days;
                assert!(0 <= first && end <= DAYS && end - first >= WIDTH_MIN, "{ask:?}");
            }
            assert!(asks.windows(2).all(|two| two[0] != two[1]));
        }
        let all: Vec<Ask> = (0..50).flat_map(session).collect();
        for by in [Move::ZoomIn, Move::Pan, Move::ZoomOut, Move::Filter, Move::Regroup] {
            assert!(all.iter().filter(|ask| ask.by == by).count() > 50, "{by:?}");
        }
        assert!(SHAPES.iter().all(|shape| all.iter().any(|ask| ask.shape == *shape)));
    }

    #[test]
    fn a_day_of_interest_is_looked_at_several_times() {
        for seed in 0..50 {
            let asks = session(seed);
            let looks: i32 = asks.iter().map(|ask| ask.window.days.1 - ask.window.days.0).sum();
            let covers = |day: &i32| {
                asks.iter().any(|ask| (ask.window.days.0..ask.window.days.1).contains(day))
            };
            let days = (0..DAYS).filter(covers).count() as i32;
            assert!(looks >= 4 * days, "seed {seed}: {looks} looks at {days} days");
        }
    }

    #[test]
    fn a_question_names_its_rows_and_its_function() {
        let window = Window { days: (10, 40), price_below: Some(50), category: Some(1) };
        let ask = Ask { by: Move::Filter, window, shape: Shape::LowByRegion };
        assert_eq!(
            ask.sql("posts", "f(body)", 0.5),
            "SELECT region, count(*) AS posts FROM posts WHERE day >= 10 AND day < 40 AND price < 50 \
             AND category = 'travel' AND f(body) < 0.5 GROUP BY region"
        );
    }
}
