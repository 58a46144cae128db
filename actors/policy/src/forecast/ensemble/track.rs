//! What the members and the mix were worth so far, for one horizon of one series.

use serde::{Deserialize, Serialize};

use super::band::{Band, Logs, MEMBER, MIX};
use super::stack::stacked;

/// How strongly weights follow losses: a member whose loss is twice the best one's gets `exp(-HEDGE)`
/// of its weight.
const HEDGE: f64 = 24.0;

/// The same among the ways to mix.
const HEDGE_WAYS: f64 = 40.0;

/// Scores after which a score counts half, for short horizons.
const HALF_LIFE: f64 = 2_000.0;

/// Horizons after which a score counts half, for long ones.
const HALF_LIFE_HORIZONS: f64 = 10.0;

/// Scores of all series together that a series' own scores are weighed against.
const POOL: f64 = 10.0;

/// Scores of all series together that count as some of a series' own.
const POOL_BELIEVED: f64 = 60.0;

/// Scores between two searches for stacked weights.
const STACK_EVERY: u32 = 12;

/// Scores before weights are stacked.
const STACK_MIN: f64 = 20.0;

/// Added to losses before they are compared: what a constant series loses is rounding.
const LOSS_FLOOR: f64 = 1e-3;

/// Scores after which losses are believed by half.
const BELIEF: f64 = 20.0;

/// How much more than another one a member with a season is believed before it has shown anything: the
/// season was tested for, or the operator says so.
const SEASON_PRIOR: f64 = 4.0;

/// Loss in logarithms of calls below which nothing is lost.
const EXACT: f64 = 1e-3;

/// What is left of past scores after a drift.
const FORGET: f64 = 0.25;

/// Horizons of scores that are kept in any case.
const KEPT_HORIZONS: f64 = 50.0;

/// Ways to mix: by Hedge, half and half, stacked.
const WAYS: [f64; 3] = [0.0, 0.5, 1.0];

/// Mean that forgets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Fading {
    sum: f64,
    pub(super) count: f64,
}

impl Fading {
    pub(super) fn add(&mut self, value: f64, keep: f64) {
        self.sum = self.sum * keep + value;
        self.count = self.count * keep + 1.0;
    }

    pub(super) fn mean(&self) -> f64 {
        self.sum / self.count.max(1e-9)
    }
}

/// A member or the mix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Source {
    pub(super) band: Band,
    /// Pinball loss of the learned quantiles, in logarithms of calls.
    pub(super) loss: Fading,
}

/// One horizon of one series.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Track {
    pub(super) members: Vec<Source>,
    pub(super) mix: Source,
    /// Pinball loss of the ways to mix, without a band of their own.
    ways: [Fading; WAYS.len()],
    /// Share of ticks within the interval that was published.
    pub(super) inside: Fading,
    /// Sums of products of the members' misses.
    products: Vec<f64>,
    stacked: Vec<f64>,
    until_stack: u32,
}

/// What was said at one tick about another one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Said {
    /// What each member said, if anything.
    pub(super) raw: Vec<Option<Logs>>,
    /// The same with learned quantiles.
    pub(super) learned: Vec<Option<Logs>>,
    /// The mix before its band, and with it.
    pub(super) mixed: Logs,
    pub(super) mix: Logs,
    ways: [Logs; WAYS.len()],
    /// Scales of the members' bands and of the mix's.
    scales: Vec<f32>,
    mix_scale: f32,
    pub(super) weights: Vec<f64>,
    /// What is published: the mix, or a plain member as long as the mix is not proven.
    pub(super) published: Logs,
}

impl Track {
    /// Takes in what was said about a tick `ahead`, of which the logarithm is now known. A member
    /// that said nothing is not scored.
    pub(super) fn score(&mut self, said: &Said, actual: f64, ahead: usize) {
        let count = said.raw.len();
        if self.members.len() != count {
            self.members = vec![Source::default(); count];
            self.products = vec![0.0; count * count];
            self.stacked.clear();
        }
        let half_life = HALF_LIFE.max(HALF_LIFE_HORIZONS * ahead as f64);
        let keep = 0.5_f64.powf(1.0 / half_life);
        let sources = self.members.iter_mut().zip(&said.raw).zip(&said.learned).zip(&said.scales);
        for (((source, raw), learned), scale) in sources {
            if let (Some(raw), Some(learned)) = (raw, learned) {
                let (middle, scale) = (f64::from(raw.middle), f64::from(*scale));
                source.band.learn(middle, scale, actual, ahead, MEMBER);
                source.loss.add(learned.pinball(actual), keep);
            }
        }
        let middle = f64::from(said.mixed.middle);
        self.mix.band.learn(middle, f64::from(said.mix_scale), actual, ahead, MIX);
        self.mix.loss.add(said.mix.pinball(actual), keep);
        for (way, said) in self.ways.iter_mut().zip(&said.ways) {
            way.add(said.pinball(actual), keep);
        }
        let actual_calls = said.published.quantiles().holds(actual.exp_m1());
        self.inside.add(f64::from(u8::from(actual_calls)), keep);
        self.multiply(said, actual, keep);
    }

    fn multiply(&mut self, said: &Said, actual: f64, keep: f64) {
        let miss = |raw: &Option<Logs>| raw.map(|raw| f64::from(raw.middle) - actual);
        let misses: Vec<Option<f64>> = said.raw.iter().map(miss).collect();
        // Ticks that everybody missed would decide alone: their squares are held down.
        let weight = 1.0 / ((f64::from(said.mix.middle) - actual).abs() + 0.05);
        let count = misses.len();
        for (line, a) in self.products.chunks_exact_mut(count.max(1)).zip(&misses) {
            for (product, b) in line.iter_mut().zip(&misses) {
                *product *= keep;
                if let (Some(a), Some(b)) = (a, b) {
                    *product += weight * a * b;
                }
            }
        }
    }

    /// Mixes what the members say, and publishes that.
    /// Members at `seasonal` have the benefit of the doubt.
    pub(super) fn mix(&mut self, raw: Vec<Option<Logs>>, pool: &Self, seasonal: &[usize]) -> Said {
        let own = self.mix.loss.count;
        let bands = |member: usize| {
            let own = self.members.get(member).filter(|source| source.band.count >= POOL);
            own.or(pool.members.get(member)).map(|source| source.band).unwrap_or_default()
        };
        let learn = |(member, raw): (usize, &Option<Logs>)| {
            raw.map(|raw| bands(member).quantiles(&raw, MEMBER))
        };
        let learned: Vec<Option<Logs>> = raw.iter().enumerate().map(learn).collect();
        let scale = |(member, raw): (usize, &Option<Logs>)| {
            raw.map_or(0.0, |raw| bands(member).scale(raw.width(), MEMBER) as f32)
        };
        let scales = raw.iter().enumerate().map(scale).collect();
        let hedged = self.hedged(&learned, pool, seasonal);
        let stacked = self.stacked(&hedged);
        let weights_of = |share: f64| -> Vec<f64> {
            hedged.iter().zip(&stacked).map(|(a, b)| (1.0 - share) * a + share * b).collect()
        };
        let ways = WAYS.map(|share| average(&learned, &weights_of(share)));
        let share = self.way();
        let weights = weights_of(share);
        let mixed = average(&learned, &weights);
        let band = if own >= POOL { self.mix.band } else { pool.mix.band };
        let mix = band.quantiles(&mixed, MIX);
        let mix_scale = band.scale(mixed.width(), MIX) as f32;
        Said { raw, learned, mixed, mix, ways, scales, mix_scale, weights, published: mix }
    }

    /// Weights by Hedge: the loss of a series pulled towards that of all series while it has few
    /// scores of its own. A member without any score counts as good as the best; one that is silent
    /// gets no weight.
    fn hedged(&self, said: &[Option<Logs>], pool: &Self, seasonal: &[usize]) -> Vec<f64> {
        let own = relative(&self.members);
        let pooled = relative(&pool.members);
        let loss = |member: usize| {
            let of = |all: &[Option<(f64, f64)>]| all.get(member).copied().flatten();
            match (of(&own), of(&pooled)) {
                (Some((own, count)), Some((pool, _))) => {
                    Some((own * count + pool * POOL) / (count + POOL))
                }
                (Some((loss, _)), None) | (None, Some((loss, _))) => Some(loss),
                (None, None) => None,
            }
        };
        let losses: Vec<Option<f64>> = (0..said.len()).map(loss).collect();
        let awake = losses.iter().zip(said).filter(|(_, said)| said.is_some());
        let best = awake.filter_map(|(loss, _)| *loss).fold(f64::INFINITY, f64::min);
        let count = |of: &[Source], member: usize| of.get(member).map_or(0.0, |s| s.loss.count);
        let scores = |member: usize| {
            count(&self.members, member) + count(&pool.members, member).min(POOL_BELIEVED)
        };
        let weight = |(member, (loss, said)): (usize, (&Option<f64>, &Option<Logs>))| {
            let doubt = BELIEF / (scores(member) + BELIEF);
            let prior = if seasonal.contains(&member) { SEASON_PRIOR.powf(doubt) } else { 1.0 };
            let behind = loss.map_or(0.0, |loss| (loss / best - 1.0).clamp(0.0, 1.0));
            if said.is_some() { prior * (-HEDGE * behind * (1.0 - doubt)).exp() } else { 0.0 }
        };
        normalised(losses.iter().zip(said).enumerate().map(weight).collect())
    }

    /// Stacked weights of the members that have weight in `hedged`, searched for now and then.
    fn stacked(&mut self, hedged: &[f64]) -> Vec<f64> {
        if self.mix.loss.count < STACK_MIN || self.products.len() != hedged.len() * hedged.len() {
            return hedged.to_vec();
        }
        if self.stacked.len() != hedged.len() || self.until_stack == 0 {
            self.stacked = stacked(&self.products, hedged);
            self.until_stack = STACK_EVERY;
        }
        self.until_stack -= 1;
        let awake = self.stacked.iter().zip(hedged);
        let awake = awake.map(|(weight, hedged)| if *hedged > 0.0 { *weight } else { 0.0 });
        let weights = normalised(awake.collect());
        if weights.iter().sum::<f64>() > 0.5 { weights } else { hedged.to_vec() }
    }

    /// How much of the stacked weights to take, by what the ways to mix were worth.
    fn way(&self) -> f64 {
        let scored = self.ways.iter().all(|way| way.count > 0.0);
        if !scored {
            return WAYS.iter().sum::<f64>() / WAYS.len() as f64;
        }
        let best = self.ways.iter().map(Fading::mean).fold(f64::INFINITY, f64::min);
        let over = |way: &Fading| (way.mean() + LOSS_FLOOR) / (best + LOSS_FLOOR) - 1.0;
        let weight = |way: &Fading| (-HEDGE_WAYS * over(way)).exp();
        let weights = normalised(self.ways.iter().map(weight).collect());
        weights.iter().zip(WAYS).map(|(weight, share)| weight * share).sum()
    }

    /// How far the mix missed, in deviations.
    pub(super) fn residual(&self, said: &Said, actual: f64) -> f64 {
        let miss = actual - f64::from(said.mix.middle);
        miss / (1.25 * self.mix.band.miss()).max(1e-3)
    }

    /// Forgets what everybody was worth, but not how far they miss: another member has something to
    /// say from now on.
    pub(super) fn restart(&mut self) {
        self.members.iter_mut().for_each(|source| source.loss = Fading::default());
        self.ways = [Fading::default(); WAYS.len()];
        self.products.iter_mut().for_each(|product| *product = 0.0);
        self.mix.loss = Fading::default();
    }

    /// Lets what was known so far count for a quarter, since the load is another one now; but not for
    /// less than some tens of horizons, below which weights would be chance.
    pub(super) fn forget(&mut self, ahead: usize) {
        let least = KEPT_HORIZONS * ahead as f64 / self.mix.loss.count.max(1.0);
        let kept = FORGET.max(least.min(1.0));
        let fade = |fading: &mut Fading| {
            fading.sum *= kept;
            fading.count *= kept;
        };
        self.members.iter_mut().for_each(|source| fade(&mut source.loss));
        self.ways.iter_mut().for_each(fade);
        self.products.iter_mut().for_each(|product| *product *= kept);
        fade(&mut self.mix.loss);
    }

    /// Whether the mix loses nothing worth mentioning.
    pub(super) fn is_exact(&self) -> bool {
        self.mix.loss.count > 0.0 && self.mix.loss.mean() < EXACT
    }

    /// Whether a member was scored and what it said came true each time.
    pub(super) fn never_misses(&self, member: usize) -> bool {
        let source = self.members.get(member).filter(|source| source.band.count > 0.0);
        source.is_some_and(|source| source.band.miss() < EXACT)
    }

    /// Loss of the mix as a multiple of a member's; `None` as long as one of them was not scored.
    pub(super) fn against(&self, member: usize) -> Option<f64> {
        let plain = self.members.get(member).filter(|source| source.loss.count > 0.0)?;
        let mix = self.mix.loss;
        // Rounding alone must not cost the trust on a load that never changes.
        let (mix, plain) = (mix.mean(), plain.loss.mean());
        (self.mix.loss.count > 0.0).then(|| (mix + EXACT) / (plain + EXACT))
    }
}

/// Loss of each source as a multiple of the best one's, with the number of scores; absent if it was
/// never scored.
fn relative(sources: &[Source]) -> Vec<Option<(f64, f64)>> {
    let scored = |source: &&Source| source.loss.count > 0.0;
    let losses = sources.iter().filter(scored).map(|source| source.loss.mean());
    let best = losses.fold(f64::INFINITY, f64::min);
    let one = |source: &Source| {
        let loss = &source.loss;
        (loss.count > 0.0).then(|| ((loss.mean() + LOSS_FLOOR) / (best + LOSS_FLOOR), loss.count))
    };
    sources.iter().map(one).collect()
}

fn normalised(mut weights: Vec<f64>) -> Vec<f64> {
    let sum: f64 = weights.iter().sum();
    if sum > 0.0 {
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    weights
}

/// Weighted mean of quantiles.
fn average(said: &[Option<Logs>], weights: &[f64]) -> Logs {
    let mut sums = [0.0; 3];
    for (said, weight) in said.iter().zip(weights) {
        if let Some(said) = said {
            sums[0] += weight * f64::from(said.low);
            sums[1] += weight * f64::from(said.middle);
            sums[2] += weight * f64::from(said.high);
        }
    }
    let [low, middle, high] = sums.map(|sum| sum as f32);
    Logs { low, middle, high }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(middle: f32) -> Option<Logs> {
        Some(Logs { low: middle - 0.1, middle, high: middle + 0.1 })
    }

    fn after(scores: usize, said: &[Option<Logs>], actual: f64) -> Track {
        let (mut track, pool) = (Track::default(), Track::default());
        for _ in 0..scores {
            let said = track.mix(said.to_vec(), &pool, &[]);
            track.score(&said, actual, 1);
        }
        track
    }

    #[test]
    fn the_member_that_is_right_gets_the_weight() {
        let said = [logs(1.0), logs(2.0), logs(3.0)];
        let weights = after(60, &said, 3.0).mix(said.to_vec(), &Track::default(), &[]).weights;
        assert!(weights[2] > 0.98, "{weights:?}");
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_series_without_scores_goes_by_what_is_true_of_all() {
        let said = [logs(1.0), logs(3.0)];
        let all = after(60, &said, 3.0);
        assert!(Track::default().mix(said.to_vec(), &all, &[]).weights[1] > 0.98);
    }

    #[test]
    fn a_member_that_wakes_up_counts_as_good_as_the_best_and_a_silent_one_not_at_all() {
        let mut track = after(10, &[logs(2.9), None], 3.0);
        let pool = Track::default();
        assert_eq!(track.mix(vec![logs(2.9), None], &pool, &[]).weights, [1.0, 0.0]);
        assert_eq!(track.mix(vec![logs(2.9), logs(1.0)], &pool, &[]).weights, [0.5, 0.5]);
        assert_eq!(track.mix(vec![logs(2.9), logs(1.0)], &pool, &[1]).weights, [0.2, 0.8]);
        assert_eq!(track.mix(vec![None, None], &pool, &[]).weights, [0.0, 0.0]);
    }

    #[test]
    fn losses_of_exactly_zero_give_finite_weights() {
        let said = vec![Some(Logs { low: 2.0, middle: 2.0, high: 2.0 }); 2];
        let weights = after(60, &said, 2.0).mix(said, &Track::default(), &[]).weights;
        assert!(weights.iter().all(|weight| (weight - 0.5).abs() < 1e-3), "{weights:?}");
    }
}
