//! Session options that travel to the workers: every `datafusion.*` entry that a client changed.
//!
//! A worker starts from default options; without this it would use another batch size, another time
//! zone, another dialect, and answer differently.

use std::collections::HashMap;
use std::sync::OnceLock;

use datafusion::common::{Result, extensions_options};
use datafusion::config::{ConfigExtension, ConfigOptions};

extensions_options! {
    /// Options of one client's session.
    pub struct SessionOptions {
        /// Entries that differ from the defaults, form-encoded because they travel in a header.
        /// Written by the engine, not by users.
        pub changed: String, default = String::new()
        /// Id of the running query; written by the engine.
        pub query: u64, default = 0
        /// Whether the query may run on several nodes; written by the engine.
        pub other_nodes: bool, default = false
        /// Whether queries of the session use stored outputs.
        pub use_outputs: bool, default = true
        /// Whether queries of the session use stored partial aggregates.
        pub use_partials: bool, default = true
        /// Whether queries of the session join partitions of one range of keys where they are.
        pub colocated_joins: bool, default = true
        /// Of so many look-ups of stored values one is checked by calling the function again; 0 for none.
        pub check_every: u64, default = 1_000
    }
}

impl ConfigExtension for SessionOptions {
    const PREFIX: &'static str = "foreshard";
}

/// The entries of `options` that differ from DataFusion's defaults, as one text.
#[must_use]
pub fn changed_entries(options: &ConfigOptions) -> String {
    // Written down once: it takes as long as planning a small query.
    static DEFAULTS: OnceLock<HashMap<String, Option<String>>> = OnceLock::new();
    let defaults = DEFAULTS.get_or_init(|| {
        let entries = ConfigOptions::new().entries();
        entries.into_iter().map(|entry| (entry.key, entry.value)).collect()
    });
    let is_changed = |key: &str, value: &Option<String>| {
        key.starts_with("datafusion.") && defaults.get(key) != Some(value)
    };
    let mut encoded = url::form_urlencoded::Serializer::new(String::new());
    for entry in options.entries() {
        if is_changed(&entry.key, &entry.value)
            && let Some(value) = &entry.value
        {
            encoded.append_pair(&entry.key, value);
        }
    }
    encoded.finish()
}

/// The settings that change what an immutable expression gives, as one text: part of what names a stored
/// value.
///
/// Functions are called with all settings; these are the ones that functions of DataFusion and of its
/// Spark library answer by.
#[must_use]
pub fn settings_of_results(options: &ConfigOptions) -> String {
    let execution = &options.execution;
    format!("{:?} {}", execution.time_zone, execution.enable_ansi_mode)
}

/// Applies what [`changed_entries`] wrote.
///
/// # Errors
/// If an entry is not one of this DataFusion's options: the nodes run different versions.
pub fn apply_entries(options: &mut ConfigOptions, entries: &str) -> Result<()> {
    for (key, value) in url::form_urlencoded::parse(entries.as_bytes()) {
        options.set(&key, &value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_options_arrive_and_the_others_stay() {
        let mut sent = ConfigOptions::new();
        sent.execution.batch_size = "1234".parse().unwrap();
        sent.execution.time_zone = Some("+05:00".into());
        let entries = changed_entries(&sent);
        assert_eq!(entries.split('&').count(), 2, "{entries}");
        assert!(entries.is_ascii(), "{entries}");
        let mut arrived = ConfigOptions::new();
        apply_entries(&mut arrived, &entries).unwrap();
        assert_eq!(arrived.execution.batch_size.to_string(), "1234");
        assert_eq!(arrived.execution.time_zone.as_deref(), Some("+05:00"));
    }
}
