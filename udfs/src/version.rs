//! The version of a function: the part of every key of a stored output that makes it never stale.

use std::fmt;

use datafusion::config::ConfigOptions;

/// Names one definition of one function. Two definitions never share a version within a process,
/// and the same definition, registered in the same order, has the same version on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionVersion(pub u128);

impl FunctionVersion {
    /// The version of the `generation`-th registration of `name` with a card of `card_version`.
    #[must_use]
    pub fn new(name: &str, card_version: &str, generation: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hash_part(&mut hasher, name);
        hash_part(&mut hasher, card_version);
        hasher.update(&generation.to_le_bytes());
        Self::of(&hasher)
    }

    /// The version of the same definition bound to `settings` (a function that answers otherwise
    /// under other settings). The same settings give the same version.
    #[must_use]
    pub fn with_settings(self, settings: &ConfigOptions) -> Self {
        let mut entries = settings.entries();
        entries.sort_by(|left, right| left.key.cmp(&right.key));
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0.to_le_bytes());
        for entry in entries {
            hash_part(&mut hasher, &entry.key);
            hash_part(&mut hasher, entry.value.as_deref().unwrap_or_default());
        }
        Self::of(&hasher)
    }

    fn of(hasher: &blake3::Hasher) -> Self {
        let mut bytes = [0; 16];
        hasher.finalize_xof().fill(&mut bytes);
        Self(u128::from_le_bytes(bytes))
    }
}

impl fmt::Display for FunctionVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Hashes the length first, so that `("ab", "c")` and `("a", "bc")` differ.
fn hash_part(hasher: &mut blake3::Hasher, part: &str) {
    hasher.update(&(part.len() as u64).to_le_bytes());
    hasher.update(part.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_card_version_and_generation_each_change_the_version() {
        let base = FunctionVersion::new("f", "1", 1);
        assert_eq!(base, FunctionVersion::new("f", "1", 1));
        assert_ne!(base, FunctionVersion::new("g", "1", 1));
        assert_ne!(base, FunctionVersion::new("f", "2", 1));
        assert_ne!(base, FunctionVersion::new("f", "1", 2));
        assert_ne!(FunctionVersion::new("ab", "c", 1), FunctionVersion::new("a", "bc", 1));
    }

    #[test]
    fn other_settings_give_another_version_and_the_same_settings_the_same() {
        let base = FunctionVersion::new("f", "1", 1);
        let mut settings = ConfigOptions::default();
        settings.execution.time_zone = Some("+00:00".to_owned());
        let utc = base.with_settings(&settings);
        settings.execution.time_zone = Some("+05:00".to_owned());
        let karachi = base.with_settings(&settings);
        settings.execution.time_zone = Some("+00:00".to_owned());
        assert_ne!(utc, karachi);
        assert_ne!(utc, base);
        assert_eq!(utc, base.with_settings(&settings));
    }

    #[test]
    fn a_version_is_shown_as_32_hex_digits() {
        assert_eq!(FunctionVersion(255).to_string(), "000000000000000000000000000000ff");
    }
}
