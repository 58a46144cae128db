//! Who is next where several tables wait for the same thing: each gets its part by weight, and none that waits
//! is passed over for ever.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A line of those who wait, each for a table. Within a table the first is served first; with one table it is
/// a plain line.
///
/// Each table has a clock that runs by what it was given, divided by its weight, and the table whose clock
/// is furthest behind is next. A table that begins to wait starts at the clock of whom was served last: what
/// others got while it wanted nothing is not made up for, and what it got while nobody else wanted anything
/// is not held against it.
///
/// # Source
/// Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), with what was given charged when it is
/// known.
#[derive(Clone, Debug, Default)]
pub struct FairLine {
    tables: BTreeMap<Arc<str>, Waiting>,
    tickets: u64,
    /// The clock of the table that was served last.
    now: f64,
}

/// Those who wait for one table.
#[derive(Clone, Debug)]
struct Waiting {
    clock: f64,
    weight: f64,
    line: VecDeque<u64>,
}

impl FairLine {
    /// Somebody waits for `table` from now on; answers the ticket. The newest weight of a table counts; what
    /// is not above zero counts as one.
    pub fn join(&mut self, table: &Arc<str>, weight: f64) -> u64 {
        let ticket = self.tickets;
        self.tickets += 1;
        let now = self.now;
        let waiting = self.tables.entry(Arc::clone(table)).or_insert_with(|| Waiting {
            clock: now,
            weight: 1.0,
            line: VecDeque::new(),
        });
        if waiting.line.is_empty() {
            waiting.clock = waiting.clock.max(now);
        }
        waiting.weight = if weight > 0.0 && weight.is_finite() { weight } else { 1.0 };
        waiting.line.push_back(ticket);
        ticket
    }

    /// Who is served next, and for which table.
    ///
    /// # Cost
    /// `O(tables that wait or were served of late)`.
    #[must_use]
    pub fn next(&self) -> Option<(u64, &Arc<str>)> {
        let waiting = self
            .tables
            .iter()
            .filter_map(|(table, waiting)| Some((waiting.clock, *waiting.line.front()?, table)));
        let next = waiting.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        next.map(|(_, ticket, table)| (ticket, table))
    }

    /// Takes the next one off the line, who is charged with `cost` of whatever is given.
    pub fn serve(&mut self, cost: f64) -> Option<(u64, Arc<str>)> {
        let (ticket, table) = self.next().map(|(ticket, table)| (ticket, Arc::clone(table)))?;
        if let Some(waiting) = self.tables.get_mut(&table) {
            waiting.line.pop_front();
            self.now = self.now.max(waiting.clock);
        }
        self.charge(&table, cost);
        Some((ticket, table))
    }

    /// Charges a table with `cost` more, or less if it is negative.
    pub fn charge(&mut self, table: &str, cost: f64) {
        if let Some(waiting) = self.tables.get_mut(table) {
            waiting.clock += cost / waiting.weight;
        }
        self.forget();
    }

    /// Who waits for nothing and whose clock is behind begins anew anyway; all do once nobody waits.
    fn forget(&mut self) {
        if self.is_empty() {
            let clocks = self.tables.values().map(|waiting| waiting.clock);
            self.now = clocks.fold(self.now, f64::max);
        }
        let now = self.now;
        self.tables.retain(|_, waiting| !waiting.line.is_empty() || waiting.clock > now);
    }

    /// Lets somebody leave the line; answers whether they were in it.
    pub fn leave(&mut self, ticket: u64) -> bool {
        let was_there = self.tables.values_mut().any(|waiting| {
            let at = waiting.line.iter().position(|other| *other == ticket);
            at.and_then(|at| waiting.line.remove(at)).is_some()
        });
        self.forget();
        was_there
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables.values().all(|waiting| waiting.line.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(name: &str) -> Arc<str> {
        name.into()
    }

    /// How often each table is served, of so many times.
    fn served(line: &mut FairLine, times: usize) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for _ in 0..times {
            let Some((_, table)) = line.serve(1.0) else { break };
            *counts.entry(table.to_string()).or_insert(0) += 1;
        }
        counts
    }

    #[test]
    fn a_flood_of_one_table_holds_nobody_else_up() {
        let mut line = FairLine::default();
        for _ in 0..1_000 {
            line.join(&table("flood"), 1.0);
        }
        assert_eq!(served(&mut line, 500)["flood"], 500, "alone it gets all");
        let late = line.join(&table("quiet"), 1.0);
        let both: Vec<u64> = (0..2).filter_map(|_| line.serve(1.0)).map(|(it, _)| it).collect();
        assert!(both.contains(&late), "{both:?}");
        for _ in 0..100 {
            line.join(&table("quiet"), 1.0);
        }
        let counts = served(&mut line, 100);
        assert!((49..=51).contains(&counts["quiet"]), "{counts:?}");
    }

    #[test]
    fn tables_are_served_by_weight_and_by_what_they_took() {
        let mut line = FairLine::default();
        for _ in 0..400 {
            line.join(&table("a"), 3.0);
            line.join(&table("b"), 1.0);
        }
        assert_eq!(served(&mut line, 100)["a"], 75);
        line.charge("a", 30.0);
        assert_eq!(served(&mut line, 10)["b"], 10, "a took as much as 30 turns more");
    }

    #[test]
    fn who_wanted_nothing_for_long_gets_nothing_more_than_its_part_afterwards() {
        let mut line = FairLine::default();
        line.join(&table("b"), 1.0);
        line.serve(1.0);
        for _ in 0..1_000 {
            line.join(&table("a"), 1.0);
        }
        served(&mut line, 500);
        for _ in 0..100 {
            line.join(&table("b"), 1.0);
        }
        assert!((49..=51).contains(&served(&mut line, 100)["b"]));
    }

    #[test]
    fn what_is_forgotten_leaves_nothing_behind() {
        let mut line = FairLine::default();
        for number in 0..1_000 {
            let ticket = line.join(&table(&format!("t{number}")), 1.0);
            assert!(if number % 2 == 0 { line.leave(ticket) } else { line.serve(1.0).is_some() });
        }
        assert!(line.is_empty() && line.tables.is_empty(), "{} are left", line.tables.len());
        assert!(!line.leave(7), "it has left already");
    }

    proptest! {
        #[test]
        fn one_table_is_served_in_the_order_of_arrival(
            costs in prop::collection::vec(0.0..5.0, 1..40), weight in 0.1..9.0,
        ) {
            let (mut line, mut tickets) = (FairLine::default(), VecDeque::new());
            for (number, cost) in costs.iter().enumerate() {
                tickets.push_back(line.join(&table("t"), weight));
                if number % 3 == 2 {
                    prop_assert_eq!(line.serve(*cost).map(|(it, _)| it), tickets.pop_front());
                }
            }
            while let Some(ticket) = tickets.pop_front() {
                prop_assert_eq!(line.serve(1.0).map(|(it, _)| it), Some(ticket));
            }
            prop_assert!(line.is_empty());
        }

        #[test]
        fn whoever_waits_is_served_before_others_get_much_more(
            weights in prop::collection::vec(0.5..4.0, 2..6), costs in prop::collection::vec(0.1..2.0, 300),
        ) {
            let mut line = FairLine::default();
            let names: Vec<Arc<str>> = (0..weights.len()).map(|i| table(&format!("t{i}"))).collect();
            for _ in 0..costs.len() {
                for (name, weight) in names.iter().zip(&weights) {
                    line.join(name, *weight);
                }
            }
            let mut got: BTreeMap<Arc<str>, f64> = BTreeMap::new();
            for cost in &costs {
                let Some((_, name)) = line.serve(*cost) else { continue };
                *got.entry(name).or_default() += cost;
            }
            let parts: Vec<f64> =
                names.iter().zip(&weights).map(|(it, weight)| got[it] / weight).collect();
            let low = parts.iter().copied().fold(f64::INFINITY, f64::min);
            let high = parts.iter().copied().fold(0.0, f64::max);
            prop_assert!(high - low <= 2.0 * 2.0 / 0.5, "{parts:?}: at most one piece apart each");
        }
    }
}
