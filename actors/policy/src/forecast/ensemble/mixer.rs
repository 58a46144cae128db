//! The members and what they were worth: asks all of them each tick, and mixes their answers.
//!
//! It knows series by id only, and one [`Window`] at a time: the ensemble of the loop and the benchmark
//! both turn it, so that what is measured is what runs.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::band::Logs;
use super::gate::{Plain, Standing, instead, judge};
use super::track::{Said, Track};
use crate::forecast::drift::PageHinkley;
use crate::forecast::{Effort, FitReport, ForecastError, Member, Quantiles, Window};

/// Forecasts of one series and horizon that wait for their ticks; of long horizons not every origin is
/// kept.
const PENDING_MAX: usize = 64;

/// What is expected of one series, one entry per horizon that was asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlook {
    /// What is published.
    pub quantiles: Quantiles,
    /// Weight of each member, in their order; they sum to one, or to zero if none said anything.
    pub weights: Vec<f64>,
    /// What each member says, its quantiles corrected by its past misses.
    pub members: Vec<Option<Quantiles>>,
    /// How the forecast stands at the learned horizon that is nearest.
    pub standing: Standing,
}

/// What is known of one series.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) tracks: Vec<Track>,
    pub(super) standings: Vec<Standing>,
    drift: PageHinkley,
    /// Drifts that were noticed.
    pub(super) drifts: u64,
    #[serde(skip)]
    pending: Vec<VecDeque<(u64, Said)>>,
    /// The last tick that was scored.
    at: u64,
}

impl Known {
    fn new(horizons: usize) -> Self {
        Self {
            tracks: vec![Track::default(); horizons],
            standings: vec![Standing::default(); horizons],
            pending: vec![VecDeque::new(); horizons],
            ..Self::default()
        }
    }
}

/// Members, their worth by series and horizon, and that over all series.
pub struct Mixer {
    members: Vec<Box<dyn Member>>,
    plain: Plain,
    /// Members that repeat a season.
    seasonal: Vec<usize>,
    /// Horizons that are learned for, ascending.
    horizons: Vec<usize>,
    pub(super) known: BTreeMap<u64, Known>,
    pub(super) pool: Vec<Track>,
    /// Series for which a season became known in the last call of [`forecast`](Self::forecast).
    pub(super) begun: u64,
}

impl fmt::Debug for Mixer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members.iter().map(|member| member.name())).finish()
    }
}

impl Mixer {
    /// A mixer that has learned nothing, for forecasts `horizons` ticks ahead (ascending).
    ///
    /// Members named `naive`, `seasonal_naive` and `seasonal_naive_long` are what the mix must beat.
    #[must_use]
    pub fn new(members: Vec<Box<dyn Member>>, horizons: Vec<usize>) -> Self {
        let place = |name: &str| {
            members.iter().position(|member| member.name() == name).unwrap_or(usize::MAX)
        };
        let seasonal = [place("seasonal_naive"), place("seasonal_naive_long")];
        let plain = Plain { naive: place("naive"), seasonal };
        let pool = vec![Track::default(); horizons.len()];
        let repeating = ["seasonal_naive", "profile"].map(place).to_vec();
        Self {
            members,
            plain,
            seasonal: repeating,
            horizons,
            known: BTreeMap::new(),
            pool,
            begun: 0,
        }
    }

    /// The members, in the order of all weights.
    pub fn members(&self) -> impl Iterator<Item = &dyn Member> {
        self.members.iter().map(|member| &**member)
    }

    pub(super) fn members_mut(&mut self) -> impl Iterator<Item = &mut Box<dyn Member>> {
        self.members.iter_mut()
    }

    /// Horizons that are learned for, ascending.
    pub(super) fn horizons(&self) -> &[usize] {
        &self.horizons
    }

    /// Puts `member` in the place of what it is a copy of.
    pub(super) fn replace(&mut self, place: usize, member: Box<dyn Member>) {
        if let Some(present) = self.members.get_mut(place) {
            *present = member;
        }
    }

    /// Lets the members that learn in steps, or all of them, learn with no more than `effort` each. A member that fails keeps its former state; its error is in the report.
    pub fn fit(
        &mut self,
        window: &Window<'_>,
        effort: Effort<'_>,
        all: bool,
    ) -> Vec<(&'static str, Result<FitReport, ForecastError>)> {
        let horizons = &self.horizons;
        let members = self.members.iter_mut().filter(|member| all || member.learns_in_steps());
        members.map(|member| (member.name(), member.fit(window, horizons, effort))).collect()
    }

    /// Forgets what was said of ticks to come.
    pub(super) fn forget_said(&mut self) {
        self.known.values_mut().for_each(|known| known.pending.clear());
    }

    /// Takes what is known of the series `of` to be true of `heir`, unless something is known of that.
    pub(super) fn inherit(&mut self, heir: u64, of: u64) {
        if !self.known.contains_key(&heir)
            && let Some(known) = self.known.get(&of).cloned()
        {
            self.known.insert(heir, known);
        }
    }

    /// Scores what was said about the ticks of `window` that closed since the last call, which moves
    /// weights, intervals and the gate. Series that are gone are forgotten.
    pub fn observe(&mut self, window: &Window<'_>) {
        let at = window.at.0;
        let mut gone = std::mem::take(&mut self.known);
        for series in window.series {
            let Some(mut known) = gone.remove(&series.id) else { continue };
            known.pending.resize_with(self.horizons.len(), VecDeque::new);
            for tick in known.at + 1..=at {
                let back = (at - tick) as usize;
                if back < series.len() {
                    self.score(&mut known, tick, series.log(back));
                }
            }
            known.at = at;
            self.known.insert(series.id, known);
        }
    }

    fn score(&mut self, known: &mut Known, tick: u64, actual: f64) {
        for (class, ahead) in self.horizons.iter().copied().enumerate() {
            let pending = &mut known.pending[class];
            while let Some((due, _)) = pending.front()
                && *due <= tick
            {
                let Some((due, said)) = pending.pop_front() else { break };
                if due < tick {
                    continue;
                }
                let track = &mut known.tracks[class];
                track.score(&said, actual, ahead);
                self.pool[class].score(&said, actual, ahead);
                known.standings[class] = judge(track, known.standings[class], self.plain, ahead);
                if class == 0 {
                    let residual = track.residual(&said, actual);
                    if known.drift.observe(residual).is_some() {
                        known.drifts += 1;
                        let tracks = known.tracks.iter_mut().zip(&self.horizons);
                        tracks.for_each(|(track, ahead)| track.forget(*ahead));
                    }
                }
            }
        }
    }

    /// Forecasts every series of `window` for `asked` ticks ahead (ascending, at least one): outer by
    /// series. What is said about learned horizons is kept for [`observe`](Self::observe), for series
    /// whose place in the window is in `kept`. A member that fails is left out.
    ///
    /// # Errors
    /// The last member's error if no member can forecast.
    pub fn forecast(
        &mut self,
        window: &Window<'_>,
        asked: &[usize],
        kept: impl Fn(usize) -> bool,
    ) -> Result<Vec<Vec<Outlook>>, ForecastError> {
        let answers = self.ask(window, asked)?;
        let horizons = self.horizons.clone();
        let nearest = |ahead: &usize| {
            let distances = horizons.iter().map(|learned| learned.abs_diff(*ahead));
            distances.enumerate().min_by_key(|(_, distance)| *distance).map_or(0, |(c, _)| c)
        };
        let classes: Vec<usize> = asked.iter().map(nearest).collect();
        self.begun = 0;
        let fresh = Known::new(self.horizons.len());
        let mut all = Vec::with_capacity(window.series.len());
        for (place, series) in window.series.iter().enumerate() {
            let mut known = self.known.remove(&series.id).unwrap_or_else(|| fresh.clone());
            let mut outlooks = Vec::with_capacity(asked.len());
            for (position, (ahead, class)) in asked.iter().zip(&classes).enumerate() {
                let answer = |member: &Option<Vec<Vec<Quantiles>>>| {
                    member.as_ref()?.get(place)?.get(position).map(Logs::of)
                };
                let raw: Vec<Option<Logs>> = answers.iter().map(answer).collect();
                let track = &mut known.tracks[*class];
                if self.season_begins(&raw, track) {
                    track.restart();
                    self.begun += u64::from(*class == 0);
                    known.standings[*class] = Standing::New;
                }
                let standing = known.standings[*class];
                let mut said = track.mix(raw, &self.pool[*class], &self.seasonal);
                self.fall_back(&mut said, track, standing, horizons[*class]);
                outlooks.push(Outlook {
                    quantiles: said.published.quantiles(),
                    weights: said.weights.clone(),
                    members: said.learned.iter().map(|l| l.map(|l| l.quantiles())).collect(),
                    standing,
                });
                if *ahead == horizons[*class] && kept(place) {
                    known.keep(*class, window.at.0, *ahead, said);
                }
            }
            if kept(place) {
                known.at = window.at.0;
                self.known.insert(series.id, known);
            }
            all.push(outlooks);
        }
        if 2 * self.begun as usize > window.series.len() {
            self.pool.iter_mut().for_each(Track::restart);
        }
        Ok(all)
    }

    /// Whether a season is known from now on, or a longer one besides: what was true without it says little,
    /// also of members that only use it among much else.
    fn season_begins(&self, raw: &[Option<Logs>], track: &Track) -> bool {
        let begins = |season: &usize| {
            let speaks = raw.get(*season).is_some_and(Option::is_some);
            let scored = track.members.get(*season).is_some_and(|source| source.band.count > 0.0);
            speaks && !scored
        };
        self.plain.seasonal.iter().any(begins)
    }

    /// Share of the tracks, each series weighing as `load` says, that stand as `is_meant` says; one if there
    /// are none.
    pub(super) fn share(
        &self,
        load: impl Fn(u64) -> f64,
        is_meant: impl Fn(&Standing) -> bool,
    ) -> f64 {
        let (mut meant, mut all) = (0.0, 0.0);
        for (id, known) in &self.known {
            let load = load(*id);
            for standing in &known.standings {
                all += load;
                meant += if is_meant(standing) { load } else { 0.0 };
            }
        }
        if all > 0.0 { meant / all } else { 1.0 }
    }

    /// Says what a plain member says as long as the mix is no better.
    fn fall_back(&self, said: &mut Said, track: &Track, standing: Standing, ahead: usize) {
        let Some(member) = instead(track, standing, self.plain, ahead) else { return };
        if let Some(Some(plain)) = said.learned.get(member).copied() {
            said.published = plain;
            said.weights.iter_mut().for_each(|weight| *weight = 0.0);
            said.weights[member] = 1.0;
        }
    }

    fn ask(
        &mut self,
        window: &Window<'_>,
        asked: &[usize],
    ) -> Result<Vec<Option<Vec<Vec<Quantiles>>>>, ForecastError> {
        let mut failure = None;
        let answer = |member: &mut Box<dyn Member>| match member.forecast(window, asked) {
            Ok(answer) => Some(answer),
            Err(error) => {
                failure = Some(error);
                None
            }
        };
        let answers: Vec<_> = self.members.iter_mut().map(answer).collect();
        match failure {
            Some(error) if answers.iter().all(Option::is_none) => Err(error),
            _ => Ok(answers),
        }
    }
}

impl Known {
    /// Whether it was learned for so many horizons.
    pub(super) fn is_for(&self, horizons: usize) -> bool {
        self.tracks.len() == horizons && self.standings.len() == horizons
    }

    fn keep(&mut self, class: usize, at: u64, ahead: usize, said: Said) {
        let stride = ahead.div_ceil(PENDING_MAX) as u64;
        if !at.is_multiple_of(stride) {
            return;
        }
        // Forecasts that wait do not survive a restart.
        self.pending.resize_with(self.tracks.len(), VecDeque::new);
        let (due, pending) = (at + ahead as u64, &mut self.pending[class]);
        pending.retain(|(other, _)| *other != due);
        pending.push_back((due, said));
    }
}
