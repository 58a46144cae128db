//! Whether the mix has shown that it is better than the plainest forecasts, and why not.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::track::Track;

/// Scores before the mix is judged.
const COUNT_MIN: f64 = 8.0;

/// Gain over repeating the last tick that opens the gate, beside what few independent scores may give
/// by chance.
const GAIN: f64 = 0.015;

/// Gain over the last season that opens it.
const GAIN_SEASON: f64 = 0.01;

/// Loss against the last season that shuts it.
const LOSS_SEASON: f64 = 0.04;

/// Gain that chance gives when there is one independent score, falling with the root of their number.
const CHANCE: f64 = 0.25;

/// Part of what chance gives that a mix must have gained to be said, though no step is taken by it: a
/// little more is lost by saying too little than by saying what is not proven.
const CHANCE_SAID: f64 = 0.3;

/// Shares of ticks within an 80 % interval that are taken for honest.
const INSIDE: (f64, f64) = (0.70, 0.92);

/// Scores before the coverage is judged.
const INSIDE_COUNT_MIN: f64 = 100.0;

/// How a forecast stands at one horizon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Standing {
    /// Nothing is known of its worth yet.
    #[default]
    New,
    /// Better than repeating the last tick or season, with honest intervals.
    Proven {
        /// Share of the plain forecast's loss that was avoided.
        gain: f64,
    },
    /// The last season alone is better, and is said instead.
    Season {
        /// Share of the loss of repeating the last tick that the last season avoids.
        gain: f64,
    },
    /// Each tick is like the last one, which is said.
    Steady,
    /// Not better than repeating the last tick by more than chance; if it is not better at all, plain
    /// repetition is said instead.
    Plain {
        /// Share of the plain forecast's loss that was avoided; about zero or negative.
        gain: f64,
    },
    /// Better, but its intervals hold too few or too many ticks.
    Dishonest {
        /// Share of ticks within the interval that was to hold 80 %.
        inside: f64,
    },
}

impl Standing {
    /// Whether steps may be taken ahead by it.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        matches!(self, Self::Proven { .. } | Self::Season { .. } | Self::Steady)
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => write!(f, "not trusted yet: too few of its forecasts are over"),
            Self::Steady => write!(f, "trusted: each tick is like the last one"),
            Self::Proven { gain } => {
                write!(
                    f,
                    "trusted: it avoided {:.0} % of the loss of plain repetition",
                    gain * 100.0
                )
            }
            Self::Season { gain } => write!(
                f,
                "trusted: the last season, which is shown, avoided {:.0} % of the loss of \
                 repeating the last tick",
                gain * 100.0
            ),
            Self::Plain { gain } if *gain < 0.0 => write!(
                f,
                "not trusted: it lost {:.1} % more than plain repetition, which is shown instead",
                -gain * 100.0
            ),
            Self::Plain { gain } => write!(
                f,
                "not trusted: avoiding {:.1} % of the loss of plain repetition may be chance",
                gain * 100.0
            ),
            Self::Dishonest { inside } => write!(
                f,
                "not trusted: {:.0} % of ticks fell into an interval meant for 80 %",
                inside * 100.0
            ),
        }
    }
}

/// Positions of the plain members.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain {
    pub(super) naive: usize,
    pub(super) seasonal: [usize; 2],
}

/// What chance alone may gain in so few independent scores.
fn chance(track: &Track, ahead: usize) -> f64 {
    CHANCE / (track.mix.loss.count / ahead.max(1) as f64).max(0.1).sqrt()
}

/// The standing of a track for a horizon `ahead`, after `before`.
pub(super) fn judge(track: &Track, before: Standing, plain: Plain, ahead: usize) -> Standing {
    let count = track.mix.loss.count;
    let Some(naive) = track.against(plain.naive).filter(|_| count >= COUNT_MIN) else {
        return Standing::New;
    };
    if track.never_misses(plain.naive) {
        return Standing::Steady;
    }
    let chance = chance(track, ahead);
    // Equal to the last tick is no reason for trust, unless nothing was lost at all.
    let beats = |loss: f64| match before {
        Standing::Plain { .. } => loss <= 1.0 - GAIN - chance,
        _ => loss < 1.0 || track.is_exact(),
    };
    let of = |member: usize| track.against(member).map(|mix| (mix, naive / mix));
    let season = plain.seasonal.into_iter().filter_map(of).max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((mix, season)) = season {
        let was = matches!(before, Standing::Season { .. });
        let is_better = mix > if was { 1.0 - GAIN_SEASON } else { 1.0 + LOSS_SEASON };
        if is_better && beats(season) {
            return Standing::Season { gain: 1.0 - season };
        }
    }
    let gain = 1.0 - naive;
    if !beats(naive) {
        return Standing::Plain { gain };
    }
    let inside = track.inside.mean();
    let honest = (INSIDE.0..=INSIDE.1).contains(&inside) || track.is_exact();
    if track.inside.count / ahead.max(1) as f64 >= INSIDE_COUNT_MIN && !honest {
        return Standing::Dishonest { inside };
    }
    Standing::Proven { gain }
}

/// The plain member that is said `ahead` ticks ahead instead of the mix, if one is.
pub(super) fn instead(
    track: &Track,
    standing: Standing,
    plain: Plain,
    ahead: usize,
) -> Option<usize> {
    let loss = |member: &usize| {
        let source = track.members.get(*member).filter(|source| source.loss.count > 0.0);
        source.map_or(f64::INFINITY, |source| source.loss.mean())
    };
    let seasonal = || plain.seasonal.into_iter().min_by(|a, b| loss(a).total_cmp(&loss(b)));
    match standing {
        Standing::Plain { gain } if gain >= GAIN + CHANCE_SAID * chance(track, ahead) => None,
        Standing::Plain { .. } => {
            seasonal().filter(|season| loss(season) < loss(&plain.naive)).or(Some(plain.naive))
        }
        Standing::Steady => Some(plain.naive),
        Standing::Season { .. } => seasonal(),
        Standing::New | Standing::Proven { .. } | Standing::Dishonest { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::track::Source;
    use super::*;

    /// A mix and a naive member that lost so much in each of `count` scores, four in five within the interval.
    fn track(mix: f64, naive: f64, count: u32) -> Track {
        let mut track = Track::default();
        track.members.push(Source::default());
        for score in 0..count {
            track.mix.loss.add(mix, 1.0);
            track.members[0].loss.add(naive, 1.0);
            track.inside.add(if score % 5 == 0 { 0.0 } else { 1.0 }, 1.0);
        }
        track
    }

    const ALONE: Plain = Plain { naive: 0, seasonal: [usize::MAX; 2] };

    #[test]
    fn what_may_be_chance_opens_no_gate() {
        let shut = Standing::Plain { gain: 0.0 };
        let of = |count, ahead| judge(&track(0.95, 1.0, count), shut, ALONE, ahead);
        assert!(matches!(of(9, 1), Standing::Plain { .. }), "{:?}", of(9, 1));
        assert!(of(900, 1).is_proven(), "{:?}", of(900, 1));
        assert!(matches!(of(900, 60), Standing::Plain { .. }), "fifteen spans: {:?}", of(900, 60));
        assert_eq!(of(3, 1), Standing::New);
    }

    #[test]
    fn a_mix_that_loses_more_than_plain_repetition_shuts_the_gate() {
        let open = Standing::Proven { gain: 0.1 };
        let of = |mix| judge(&track(mix, 1.0, 200), open, ALONE, 1);
        assert!(of(0.99).is_proven() && !of(1.01).is_proven());
        assert_eq!(instead(&track(1.01, 1.0, 200), of(1.01), ALONE, 1), Some(0));
    }

    #[test]
    fn what_gained_more_than_a_part_of_chance_is_said_though_no_step_is_taken_by_it() {
        let of = |mix| {
            let track = track(mix, 1.0, 20);
            let standing = judge(&track, Standing::Plain { gain: 0.0 }, ALONE, 1);
            assert!(matches!(standing, Standing::Plain { .. }), "{mix}: {standing:?}");
            instead(&track, standing, ALONE, 1)
        };
        assert_eq!([of(0.99), of(0.955)], [Some(0), None]);
    }

    #[test]
    fn of_two_plain_ways_the_one_that_lost_less_is_said() {
        let mut track = track(1.5, 1.0, 20);
        let plain = Plain { naive: 0, seasonal: [1, usize::MAX] };
        for (season, said) in [(0.9, 1), (1.1, 0)] {
            track.members.truncate(1);
            track.members.push(Source::default());
            (0..20).for_each(|_| track.members[1].loss.add(season, 1.0));
            let shut = Standing::Plain { gain: -0.5 };
            assert_eq!(instead(&track, shut, plain, 1), Some(said), "a season that loses {season}");
        }
    }

    #[test]
    fn the_reason_is_told_in_plain_words() {
        let told = |standing: Standing| standing.to_string();
        assert_eq!(
            told(Standing::Proven { gain: 0.314 }),
            "trusted: it avoided 31 % of the loss of plain repetition"
        );
        assert_eq!(
            told(Standing::Plain { gain: -0.02 }),
            "not trusted: it lost 2.0 % more than plain repetition, which is shown instead"
        );
        assert_eq!(
            told(Standing::Dishonest { inside: 0.55 }),
            "not trusted: 55 % of ticks fell into an interval meant for 80 %"
        );
    }
}
