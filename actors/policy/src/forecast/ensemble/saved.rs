//! The ensemble as bytes, for restarts.

use serde::{Deserialize, Serialize};

use super::{Ensemble, Learned};
use crate::forecast::ForecastError;

/// Changes whenever the fields below do.
const VERSION: u32 = 1;

const NAME: &str = "ensemble";

#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    /// Names in the order of the losses.
    members: Vec<(String, Vec<u8>)>,
    learned: Learned,
}

impl Ensemble {
    /// Weights, intervals, trust and the state of every member as bytes.
    ///
    /// # Errors
    /// [`ForecastError::Numeric`] if a member cannot be written.
    pub fn save(&self) -> Result<Vec<u8>, ForecastError> {
        let members = self.members.iter();
        let members = members
            .map(|member| Ok((member.name().to_owned(), member.save()?)))
            .collect::<Result<_, ForecastError>>()?;
        let saved = Saved { version: VERSION, members, learned: self.learned.clone() };
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
        if !saved.learned.tracks.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(unusable("series are out of order".to_owned()));
        }
        let names = saved.members.iter().map(|(name, _)| name.as_str());
        let same = names.eq(self.members.iter().map(|member| member.name()));
        for member in &mut self.members {
            let found = saved.members.iter().find(|(name, _)| name == member.name());
            if let Some((_, state)) = found {
                member.load(state)?;
            }
        }
        if same {
            self.learned = saved.learned;
        }
        self.pending.clear();
        Ok(())
    }
}
