//! `foreshard config show`: every setting with its value, where it comes from, and what it does.

use std::io::Write;

use clap::Subcommand;
use foreshard_policy::config::Entry;

use super::{Failure, Settings};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print every setting in force, with its source and its meaning, as a settings file.
    Show {
        #[command(flatten)]
        settings: Settings,
    },
}

pub(super) fn run(command: &ConfigCommand) -> Result<(), Failure> {
    let ConfigCommand::Show { settings } = command;
    let loaded = settings.load(&[])?;
    let mut out = std::io::stdout().lock();
    let mut section = String::new();
    for Entry { key, value, default, unit, bound, doc } in loaded.config.entries() {
        let (of, name) = key.rsplit_once('.').unwrap_or(("", &key));
        if of != section {
            section = of.to_owned();
            writeln!(out, "[{section}]\n")?;
        }
        let source = loaded.sources.get(&key).map_or("default", String::as_str);
        let unit = if unit.is_empty() { String::new() } else { format!(" In {unit}.") };
        let bound = if bound.is_empty() { String::new() } else { format!(" Must be {bound}.") };
        writeln!(out, "# {doc}{unit}{bound}")?;
        let default = if source == "default" || value == default {
            String::new()
        } else {
            format!(" (default {})", toml_value(&default))
        };
        // A default that only the engine can say, such as a season that is found, stays a comment.
        let mute = if loaded.config.set(&key, &value).is_ok() { "" } else { "# " };
        writeln!(out, "{mute}{name} = {}  # {source}{default}\n", toml_value(&value))?;
    }
    Ok(())
}

/// The value as a settings file has it: text in quotes.
fn toml_value(value: &str) -> String {
    let bare = value.parse::<f64>().is_ok() || matches!(value, "true" | "false");
    if bare { value.to_owned() } else { toml::Value::String(value.to_owned()).to_string() }
}

#[cfg(test)]
mod tests {
    use super::toml_value;

    #[test]
    fn values_are_shown_as_a_settings_file_has_them() {
        assert_eq!(toml_value("12"), "12");
        assert_eq!(toml_value("true"), "true");
        assert_eq!(toml_value("127.0.0.1:8080"), "\"127.0.0.1:8080\"");
    }
}
