//! The ensemble as bytes, for restarts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::hierarchy::Hierarchy;
use super::mixer::Known;
use super::track::Track;
use super::{Ensemble, Learned};
use crate::forecast::ForecastError;

/// Changes whenever the fields below do.
const VERSION: u32 = 3;

const NAME: &str = "ensemble";

#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    /// Names in the order of the losses.
    members: Vec<(String, Vec<u8>)>,
    learned: Learned,
    known: BTreeMap<u64, Known>,
    pool: Vec<Track>,
    #[serde(default)]
    hierarchy: Option<Hierarchy>,
}

impl Ensemble {
    /// Weights, intervals, trust and the state of every member as bytes.
    ///
    /// # Errors
    /// [`ForecastError::Numeric`] if a member cannot be written.
    pub fn save(&self) -> Result<Vec<u8>, ForecastError> {
        let members = self
            .mixer
            .members()
            .map(|member| Ok((member.name().to_owned(), member.save()?)))
            .collect::<Result<_, ForecastError>>()?;
        let saved = Saved {
            version: VERSION,
            members,
            learned: self.learned.clone(),
            known: self.mixer.known.clone(),
            pool: self.mixer.pool.clone(),
            hierarchy: Some(self.hierarchy.clone()),
        };
        serde_json::to_vec(&saved)
            .map_err(|error| ForecastError::Numeric { member: NAME, reason: error.to_string() })
    }

    /// Takes up what [`save`](Self::save) wrote. Weights are kept only if the members are the same
    /// ones; a member that the state does not name stays as it is.
    ///
    /// # Errors
    /// [`ForecastError::State`] if it is something else; nothing of the ensemble's own has changed
    /// then.
    pub fn load(&mut self, state: &[u8]) -> Result<(), ForecastError> {
        let unusable = |reason: String| ForecastError::State { member: NAME, reason };
        let saved: Saved =
            serde_json::from_slice(state).map_err(|error| unusable(error.to_string()))?;
        if saved.version != VERSION {
            return Err(unusable(format!("version {}, not {VERSION}", saved.version)));
        }
        let horizons = self.mixer.pool.len();
        let whole = saved.known.values().all(|known| known.is_for(horizons));
        let is_for = |hierarchy: &Hierarchy| hierarchy.is_for(horizons);
        let whole = whole && saved.hierarchy.as_ref().is_none_or(is_for);
        if saved.pool.len() != horizons || !whole {
            return Err(unusable(format!("it is not for {horizons} horizons")));
        }
        let names = saved.members.iter().map(|(name, _)| name.as_str());
        let same = names.eq(self.mixer.members().map(|member| member.name()));
        for member in self.mixer.members_mut() {
            let found = saved.members.iter().find(|(name, _)| name == member.name());
            if let Some((_, state)) = found {
                member.load(state)?;
            }
        }
        if same {
            self.learned = saved.learned;
            (self.mixer.known, self.mixer.pool) = (saved.known, saved.pool);
            self.hierarchy = saved.hierarchy.unwrap_or_else(|| self.hierarchy.clone());
        }
        self.pending.clear();
        Ok(())
    }
}
