//! When what is asked: a day of 24 hours with a rhythm that the last hour does not give away.
//!
//! Every function expression over every pair of regions is a *panel*. A quarter of the panels stand on
//! four dashboards that are watched in the peak hours and take turns:
//!
//! ```text
//!          08  09  10  11        17  18  19  20
//! people   A   B   A   B         C   D   C   D       the other hours: reports over the other panels
//! ```
//!
//! `A` and `B` share no function, nor do `C` and `D`: who looks at the last hour gets ready for the
//! wrong functions, who looks at the day before gets ready for the right ones. Two ad-hoc questions a
//! day can be foreseen by nobody. On the first day everything else is reported once; a quarter of
//! these reports stays for the second day.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Hours of a day; one tick of the loop each.
pub const HOURS: u32 = 24;

/// Days that are played: one to learn, one to act.
pub const DAYS: u32 = 2;

/// Regions, which are the partitions of every table.
pub const REGIONS: u32 = 16;

/// Hours in which people look at dashboards, and which dashboard.
const PEAK: [(u32, usize); 8] =
    [(8, 0), (9, 1), (10, 0), (11, 1), (17, 2), (18, 3), (19, 2), (20, 3)];

/// Rows appended in an hour outside of the peak, as a share of those in a peak hour.
const QUIET_SHARE: f64 = 0.15;

/// Of so many reports of the first day one stays.
const REPORTS_PER_STAYING: usize = 4;

/// Why a query is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Somebody looks at a dashboard in a peak hour.
    Dashboard,
    /// A report that runs at its hour of the day.
    Report,
    /// A question that nobody could foresee.
    AdHoc,
}

/// What is asked about the function's results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// How many there are, the lowest and the highest.
    Summary,
    /// The ten highest with their rows.
    TopTen,
}

/// One query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Position of the function expression.
    pub expression: usize,
    /// First and last region that is asked about.
    pub regions: (u32, u32),
    /// What is asked.
    pub shape: Shape,
    /// Why.
    pub kind: Kind,
}

/// One hour: rows are appended, the engine has an idle moment, then people ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// Day, counted from zero.
    pub day: u32,
    /// Hour of the day.
    pub hour: u32,
    /// Rows appended to each region of each table before the queries.
    pub rows_appended: usize,
    /// The queries, in their order.
    pub asks: Vec<Ask>,
}

impl Round {
    /// Whether people look at dashboards in this hour.
    #[must_use]
    pub fn is_peak(&self) -> bool {
        dashboard_at(self.hour).is_some()
    }
}

/// Whether people look at dashboards in this hour of the day.
#[must_use]
pub fn is_peak_hour(hour: u32) -> bool {
    dashboard_at(hour).is_some()
}

fn dashboard_at(hour: u32) -> Option<usize> {
    PEAK.iter().find(|(peak, _)| *peak == hour).map(|(_, dashboard)| *dashboard)
}

/// One function expression over two neighbouring regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Panel {
    expression: usize,
    regions: (u32, u32),
}

/// All hours of all days.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The hours, in order.
    pub rounds: Vec<Round>,
}

impl Schedule {
    /// Draws a schedule. The same arguments give the same schedule.
    ///
    /// # Shape and units
    /// * `costs`: nanoseconds per row of each function expression; decides only which of them share
    ///   a dashboard, so that all dashboards cost about the same.
    /// * `rows_peak`: rows appended to each region of each table before a peak hour.
    #[must_use]
    pub fn new(seed: u64, costs: &[f64], rows_peak: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let dashboards = dashboards(costs, &mut rng);
        let reports = reports(costs.len(), &dashboards, &mut rng);
        let rows_quiet = ((rows_peak as f64 * QUIET_SHARE) as usize).max(1);
        let mut rounds = Vec::new();
        for day in 0..DAYS {
            let ad_hoc_hours = [rng.random_range(8..12), rng.random_range(17..21)];
            for hour in 0..HOURS {
                let mut asks = match dashboard_at(hour) {
                    Some(dashboard) => watch(&dashboards[dashboard], &mut rng),
                    None => reports_at(day, hour, &reports),
                };
                if ad_hoc_hours.contains(&hour)
                    && let Some(panel) = pick(&reports, &mut rng)
                {
                    asks.push(one_region(panel, rng.random_range(0..2), Kind::AdHoc));
                }
                let rows_appended = if is_peak_hour(hour) { rows_peak } else { rows_quiet };
                rounds.push(Round { day, hour, rows_appended, asks });
            }
        }
        Self { rounds }
    }

    /// Rows that each region of each table gets over all rounds.
    #[must_use]
    pub fn rows_appended(&self) -> usize {
        self.rounds.iter().map(|round| round.rows_appended).sum()
    }
}

/// The four dashboards: two halves of the expressions, each over two sets of regions.
fn dashboards(costs: &[f64], rng: &mut StdRng) -> [Vec<Panel>; 4] {
    let mut by_cost: Vec<usize> = (0..costs.len()).collect();
    by_cost.sort_by(|a, b| costs[*b].total_cmp(&costs[*a]));
    let mut halves = [Vec::new(), Vec::new()];
    for (position, expression) in by_cost.into_iter().enumerate() {
        // The dearest to one, the next two to the other, ..: the halves cost about the same.
        halves[position.div_ceil(2) % 2].push(expression);
    }
    if halves[1].is_empty() {
        halves[1] = halves[0].clone();
    }
    halves.shuffle(rng);
    for half in &mut halves {
        half.shuffle(rng);
    }
    let pairs = REGIONS as usize / 2;
    std::array::from_fn(|dashboard| {
        let panel = |(position, &expression): (usize, &usize)| Panel {
            expression,
            regions: region_pair((position + dashboard) % pairs),
        };
        halves[dashboard % 2].iter().enumerate().map(panel).collect()
    })
}

fn region_pair(position: usize) -> (u32, u32) {
    let first = 2 * position as u32;
    (first, first + 1)
}

/// The panels that stand on no dashboard, in the order of their reports.
fn reports(expressions: usize, dashboards: &[Vec<Panel>], rng: &mut StdRng) -> Vec<Panel> {
    let pairs = REGIONS as usize / 2;
    let mut panels: Vec<Panel> = (0..expressions)
        .flat_map(|expression| {
            (0..pairs).map(move |pair| Panel { expression, regions: region_pair(pair) })
        })
        .filter(|panel| !dashboards.iter().flatten().any(|watched| watched == panel))
        .collect();
    panels.shuffle(rng);
    panels
}

fn pick(panels: &[Panel], rng: &mut StdRng) -> Option<Panel> {
    if panels.is_empty() { None } else { Some(panels[rng.random_range(0..panels.len())]) }
}

/// Two to four people look at each panel: some at both regions, some at one.
fn watch(dashboard: &[Panel], rng: &mut StdRng) -> Vec<Ask> {
    let mut asks = Vec::new();
    for &panel in dashboard {
        for person in 0..rng.random_range(2..=4) {
            let Panel { expression, regions } = panel;
            asks.push(match person {
                0 => Ask { expression, regions, shape: Shape::Summary, kind: Kind::Dashboard },
                1 => Ask { expression, regions, shape: Shape::TopTen, kind: Kind::Dashboard },
                _ => one_region(panel, rng.random_range(0..2), Kind::Dashboard),
            });
        }
    }
    asks.shuffle(rng);
    asks
}

/// The reports of a quiet hour: each region of each panel without a dashboard has its hour.
fn reports_at(day: u32, hour: u32, reports: &[Panel]) -> Vec<Ask> {
    let quiet: Vec<u32> = (0..HOURS).filter(|hour| !is_peak_hour(*hour)).collect();
    // Panels come in a random order, so those that stay are any.
    let staying = if day == 0 { reports.len() } else { reports.len() / REPORTS_PER_STAYING };
    let slots = reports[..staying].iter().flat_map(|panel| [(panel, 0), (panel, 1)]);
    slots
        .zip(quiet.iter().cycle())
        .filter(|(_, at)| **at == hour)
        .map(|((panel, side), _)| one_region(*panel, side, Kind::Report))
        .collect()
}

fn one_region(panel: Panel, side: u32, kind: Kind) -> Ask {
    let region = panel.regions.0 + side;
    Ask { expression: panel.expression, regions: (region, region), shape: Shape::Summary, kind }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const COSTS: [f64; 8] = [500e3, 20e3, 100e3, 80e3, 400e3, 50e3, 60e3, 200e3];

    fn watched(round: &Round) -> BTreeSet<(usize, u32)> {
        let dashboards = round.asks.iter().filter(|ask| ask.kind == Kind::Dashboard);
        dashboards
            .flat_map(|ask| (ask.regions.0..=ask.regions.1).map(|region| (ask.expression, region)))
            .collect()
    }

    fn functions(round: &Round) -> BTreeSet<usize> {
        watched(round).into_iter().map(|(expression, _)| expression).collect()
    }

    fn at(schedule: &Schedule, day: u32, hour: u32) -> &Round {
        &schedule.rounds[(day * HOURS + hour) as usize]
    }

    #[test]
    fn the_same_seed_gives_the_same_day_and_another_seed_another() {
        let schedule = Schedule::new(7, &COSTS, 40);
        assert_eq!(schedule, Schedule::new(7, &COSTS, 40));
        assert_ne!(schedule, Schedule::new(8, &COSTS, 40));
        assert_eq!(schedule.rounds.len(), 48);
    }

    #[test]
    fn the_last_hour_is_no_guide_but_the_day_before_is() {
        for seed in 0..20 {
            let schedule = Schedule::new(seed, &COSTS, 40);
            for (hour, _) in PEAK {
                let today = at(&schedule, 1, hour);
                assert_eq!(watched(today), watched(at(&schedule, 0, hour)), "hour {hour}");
                assert!(watched(today).is_disjoint(&watched(at(&schedule, 1, hour - 1))));
                assert!(functions(today).is_disjoint(&functions(at(&schedule, 1, hour - 1))));
            }
        }
    }

    #[test]
    fn on_the_first_day_everything_is_asked_and_of_the_reports_a_quarter_stays() {
        let schedule = Schedule::new(1, &COSTS, 40);
        let asked = |day: u32, kind: Kind| -> BTreeSet<(usize, u32)> {
            let asks = (0..HOURS).flat_map(|hour| at(&schedule, day, hour).asks.clone());
            asks.filter(|ask| ask.kind == kind)
                .flat_map(|ask| {
                    (ask.regions.0..=ask.regions.1).map(move |region| (ask.expression, region))
                })
                .collect()
        };
        let all = COSTS.len() * REGIONS as usize;
        let (watched, reports) = (asked(0, Kind::Dashboard), asked(0, Kind::Report));
        assert_eq!((watched.len(), reports.len()), (all / 4, all * 3 / 4));
        assert!(watched.is_disjoint(&reports));
        assert_eq!(asked(1, Kind::Dashboard), watched);
        let staying = asked(1, Kind::Report);
        assert!(staying.is_subset(&reports));
        assert_eq!(staying.len(), reports.len() / 4);
    }

    #[test]
    fn what_nobody_can_foresee_stays_below_one_peak_query_in_twenty() {
        for seed in 0..20 {
            let schedule = Schedule::new(seed, &COSTS, 40);
            let peak = schedule.rounds.iter().filter(|round| round.day == 1 && round.is_peak());
            let asks: Vec<&Ask> = peak.flat_map(|round| &round.asks).collect();
            let ad_hoc = asks.iter().filter(|ask| ask.kind == Kind::AdHoc).count();
            assert_eq!(ad_hoc, 2);
            assert!(asks.len() >= 64, "{} queries", asks.len());
        }
    }

    #[test]
    fn one_expression_alone_still_makes_a_day() {
        let schedule = Schedule::new(3, &[1e5], 4);
        assert!(schedule.rounds.iter().filter(|round| round.is_peak()).all(|r| !r.asks.is_empty()));
        assert_eq!(schedule.rows_appended(), 2 * (8 * 4 + 16));
    }
}
