//! Settings of the loop: documented, bounded, checked once.

mod parts;
mod section;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use parts::{
    AllocateConfig, FeedbackConfig, LstmConfig, MonitorConfig, PrecomputeConfig, ReshapeConfig,
};
use section::{Bound, Setting, section};
pub use section::{ConfigError, Entry};

use crate::control::Control;

/// What the loop may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nothing is stored, nothing is changed.
    Off,
    /// Outputs are stored at first use; replicas follow the load of the last ticks.
    Reactive,
    /// As reactive, and steps are taken ahead by forecast while it is proven.
    #[default]
    Forecast,
    /// As forecast, but with the forecast turned upside down: for experiments only.
    Inverted,
}

impl Mode {
    /// Whether outputs that queries computed are stored.
    #[must_use]
    pub fn stores_outputs(self) -> bool {
        self != Self::Off
    }

    /// Whether steps are taken ahead of the calls.
    #[must_use]
    pub fn looks_ahead(self) -> bool {
        matches!(self, Self::Forecast | Self::Inverted)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Reactive => "reactive",
            Self::Forecast => "forecast",
            Self::Inverted => "inverted",
        })
    }
}

impl Setting for Mode {
    fn number(&self) -> Option<f64> {
        None
    }
    fn text(&self) -> String {
        self.to_string()
    }
}

impl Setting for Control {
    fn number(&self) -> Option<f64> {
        None
    }
    fn text(&self) -> String {
        self.to_string()
    }
}

/// Who starts and stops nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// Nodes are parts of the coordinating process.
    #[default]
    InProcess,
    /// Each node is a process that the coordinating one starts.
    Process,
    /// Each node is a pod of a StatefulSet.
    Kubernetes,
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InProcess => "in-process",
            Self::Process => "process",
            Self::Kubernetes => "kubernetes",
        })
    }
}

impl Setting for Provider {
    fn number(&self) -> Option<f64> {
        None
    }
    fn text(&self) -> String {
        self.to_string()
    }
}

section! {
    /// All settings of the loop, the table `[loop]` of `foreshard.toml`.
    LoopConfig (RawLoopConfig = "RawLoopConfig", prefix "", fits lead_within_horizon) {
        /// What the loop may do: off, reactive, forecast or inverted.
        "mode" mode with_mode: Mode = Mode::Forecast,
            "", Bound::Any;
        /// What it may do by itself to nodes, and to tables of which `CALL control` says nothing else: auto
        /// (plan and carry out), suggest (plan, and wait for `CALL approve`) or observe (nothing).
        "control" control with_control: Control = Control::Auto,
            "", Bound::Any;
        /// Length of a tick.
        "tick-ms" tick_ms with_tick_ms: u64 = 1_000,
            "ms", Bound::Within(1.0, 3.6e6);
        /// Ticks after which the load repeats; found by test if it is not given.
        "season-ticks" season_ticks with_season_ticks: Option<usize> = None,
            "ticks", Bound::Within(2.0, 1e6);
        /// How far ahead calls are forecast.
        "horizon-ticks" horizon_ticks with_horizon_ticks: usize = 12,
            "ticks", Bound::Within(1.0, 4096.0);
        /// How far back calls are remembered.
        "history-ticks-max" history_ticks_max with_history_ticks_max: usize = 4_096,
            "ticks", Bound::Within(16.0, 1e7);
        /// Function expressions on partitions that are counted; the least called is forgotten.
        "series-max" series_max with_series_max: usize = 10_000,
            "series", Bound::Within(1.0, 1e6);
    }
    sections {
        /// What the monitor keeps.
        monitor with_monitor: MonitorConfig;
        /// The neural member of the ensemble.
        lstm with_lstm: LstmConfig;
        /// When partitions gain and lose replicas.
        reshape with_reshape: ReshapeConfig;
        /// Which outputs are computed before they are asked for.
        precompute with_precompute: PrecomputeConfig;
        /// How steps are judged by what they brought.
        feedback with_feedback: FeedbackConfig;
        /// How many nodes there are and what each may use.
        allocate with_allocate: AllocateConfig;
    }
}

fn lead_within_horizon(config: &LoopConfig) -> Result<(), ConfigError> {
    if config.precompute.lead_ticks() <= config.horizon_ticks {
        return Ok(());
    }
    Err(ConfigError::Limit {
        key: "precompute.lead-ticks",
        value: config.precompute.lead_ticks() as f64,
        limit: config.horizon_ticks as f64,
        because: "horizon-ticks",
    })
}

impl LoopConfig {
    /// Length of a tick in nanoseconds.
    #[must_use]
    pub fn tick_ns(&self) -> f64 {
        self.tick_ms as f64 * 1e6
    }
}

/// One line per setting: key, value and unit.
impl fmt::Display for LoopConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Entry { key, value, unit, .. } in self.entries() {
            writeln!(f, "{}", format!("{key} = {value} {unit}").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        toml::from_str::<LoopConfig>(text).unwrap_err().message().to_owned()
    }

    #[test]
    fn nothing_configured_gives_the_defaults_and_they_obey_their_own_bounds() {
        assert_eq!(toml::from_str::<LoopConfig>("").unwrap(), LoopConfig::default());
        assert_eq!(LoopConfig::default().checked(), Ok(LoopConfig::default()));
        assert_eq!(
            LoopConfig::default().reshape().clone().with_copies_max(4),
            Ok(ReshapeConfig::default())
        );
    }

    #[test]
    fn what_is_configured_is_read() {
        let text = "mode = 'inverted'\nseason-ticks = 24\n[allocate]\nnodes-max = 3";
        let config = toml::from_str::<LoopConfig>(text).unwrap();
        assert_eq!(config.mode(), Mode::Inverted);
        assert_eq!(config.season_ticks(), Some(24));
        assert_eq!(config.allocate().nodes_max(), 3);
        assert_eq!(config.tick_ms(), 1_000);
    }

    #[test]
    fn an_error_names_the_key_the_value_and_the_bound() {
        assert_eq!(error("tick-ms = 0"), "tick-ms is 0; it must be 1 to 3600000");
        assert_eq!(
            error("[precompute]\nbudget-share = 1.5"),
            "precompute.budget-share is 1.5; it must be 0 to 1"
        );
        assert_eq!(
            error("[reshape]\ncopy-above = nan"),
            "reshape.copy-above is NaN; it must be above 0"
        );
    }

    #[test]
    fn thresholds_that_would_flap_are_refused_with_the_limit_in_the_text() {
        assert_eq!(
            error("[reshape]\ncopy-above = 100.0\ndrop-below = 61.0"),
            "reshape.drop-below is 61; it must be at most 60 \
             (0.6 of reshape.copy-above, or replicas would flap)"
        );
    }

    #[test]
    fn settings_of_two_sections_must_fit_each_other() {
        assert_eq!(
            error("horizon-ticks = 4"),
            "precompute.lead-ticks is 8; it must be at most 4 (horizon-ticks)"
        );
        let error = LoopConfig::default().with_horizon_ticks(4).unwrap_err();
        assert_eq!(error.code(), "FS-CONFIG-2");
    }

    #[test]
    fn an_unknown_key_is_an_error_not_a_silent_default() {
        assert!(error("[reshape]\ncopys-max = 3").contains("unknown field `copys-max`"));
    }

    #[test]
    fn a_config_survives_being_written_down() {
        let config = LoopConfig::default().with_season_ticks(Some(7)).unwrap();
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<LoopConfig>(&text).unwrap(), config);
    }

    #[test]
    fn every_entry_explains_itself() {
        let config = LoopConfig::default().with_tick_ms(250).unwrap();
        let entries = config.entries();
        assert!(entries.iter().all(|entry| entry.doc.ends_with('.') && !entry.doc.contains("  ")));
        let tick = entries.iter().find(|entry| entry.key == "tick-ms").unwrap();
        assert_eq!((tick.value.as_str(), tick.default.as_str(), tick.unit), ("250", "1000", "ms"));
        assert!(config.to_string().contains("reshape.copy-above = 600 busy ms per s\n"));
        assert!(config.to_string().starts_with("mode = forecast\n"));
    }
}
