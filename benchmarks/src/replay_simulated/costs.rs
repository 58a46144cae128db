//! What the model takes for granted: measured once, the same for all arms.

/// Costs of everything but functions, which a [`Scene`](super::scene::Scene) brings.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Costs {
    /// Cores that all nodes share.
    pub(super) cores: usize,
    /// Nanoseconds of a core from a call to its physical plan.
    pub(super) plan_ns: f64,
    /// From there to its last row where everything is stored, on the node of the client and on another.
    pub(super) scan_ns: f64,
    pub(super) scan_elsewhere_ns: f64,
    /// Nanoseconds until the rows of a minute are there and those of another are gone.
    pub(super) append_ns: f64,
    /// Nanoseconds from the end of a tick to a plan.
    pub(super) forecast_ns: f64,
    /// Nanoseconds of each piece of learning, between which it lets queries go first, when members learn anew; and
    /// of all of it when they do not.
    pub(super) learn_ns: Vec<f64>,
    pub(super) learn_little_ns: f64,
    /// Nanoseconds of the network for a byte of a copied partition.
    pub(super) copy_ns_per_byte: f64,
}

impl Costs {
    /// The same with what the rounds of a loop took.
    pub(super) fn with_rounds(&self, rounds: &[RoundTook]) -> Self {
        // The newer ones had as much of a past as those to come.
        let late = &rounds[rounds.len() / 2..];
        let news = rounds.iter().rev().find(|round| round.is_new);
        let little = late.iter().filter(|round| !round.is_new);
        Self {
            forecast_ns: median(late.iter().map(|round| round.forecast_ns)),
            learn_ns: news
                .map(|it| it.learn_ns.iter().map(|ns| *ns as f64).collect())
                .unwrap_or_default(),
            learn_little_ns: median(little.map(|round| round.learn_ns.iter().sum())),
            ..self.clone()
        }
    }

    /// Functions take time, and nothing else does: for what is known in formulas.
    #[cfg(test)]
    pub(super) const NONE: Self = Self {
        cores: 64,
        plan_ns: 0.0,
        scan_ns: 0.0,
        scan_elsewhere_ns: 0.0,
        append_ns: 0.0,
        forecast_ns: 0.0,
        learn_ns: Vec::new(),
        learn_little_ns: 0.0,
        copy_ns_per_byte: 0.0,
    };
}

/// What a round of a loop took.
#[derive(Clone, Debug, Default)]
pub(super) struct RoundTook {
    /// Nanoseconds until its forecast.
    pub(super) forecast_ns: u64,
    /// Nanoseconds of each piece of learning.
    pub(super) learn_ns: Vec<u64>,
    /// Whether members learned anew.
    pub(super) is_new: bool,
}

/// The middle value; zero if there is none.
fn median(values: impl Iterator<Item = u64>) -> f64 {
    let mut sorted: Vec<u64> = values.collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).map_or(0.0, |middle| *middle as f64)
}
