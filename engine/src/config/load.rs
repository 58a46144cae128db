//! Reads settings from their sources and says where each came from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::{Config, ConfigError};
use crate::error::nearest;

/// Name of the settings file that is read when none is named.
const FILE: &str = "foreshard.toml";
/// Start of the names of environment variables that are settings.
const ENVIRONMENT: &str = "FORESHARD_";

/// Settings, and where those that are not defaults came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// By key: a file, `environment` or `flag`. A key that is missing here has its default.
    pub sources: BTreeMap<String, String>,
}

impl Loaded {
    /// See [`Config::load`].
    ///
    /// # Errors
    /// [`ConfigError`] names the key, the place, the value and the bound.
    pub fn load(path: Option<&Path>, overrides: &[(String, String)]) -> Result<Self, ConfigError> {
        let mut figment = Figment::new();
        let found = path.map(Path::to_owned).or_else(|| {
            let here = PathBuf::from(FILE);
            here.is_file().then_some(here)
        });
        if let Some(path) = &found {
            let text = std::fs::read_to_string(path).map_err(|error| ConfigError::File {
                path: path.clone(),
                reason: error.to_string(),
            })?;
            let values = toml::from_str::<toml::Table>(&text).map_err(|error| {
                ConfigError::File { path: path.clone(), reason: toml_reason(&error) }
            })?;
            drop(values);
            figment = figment.merge(Named(path.display().to_string(), Toml::string(&text)));
        }
        let environment = Env::prefixed(ENVIRONMENT)
            .map(|key| key.as_str().replace("__", ".").replace('_', "-").into())
            .split(".");
        let defaults = Figment::from(Serialized::defaults(Config::default()));
        for (key, value) in environment.iter() {
            let key = key.as_str();
            let variable = Serialized::default(key, plain(&defaults, key, &value));
            figment = figment.merge(Named("environment".to_owned(), variable));
        }
        for (key, value) in overrides {
            let flag = Serialized::default(key, plain(&defaults, key, value));
            figment = figment.merge(Named("flag".to_owned(), flag));
        }
        let sources = sources(&figment)?;
        let config = extract(&defaults.merge(figment), &sources)?;
        Ok(Self { config, sources })
    }
}

/// See [`Config::set`].
pub(super) fn set(config: &Config, key: &str, value: &str) -> Result<Config, ConfigError> {
    let former = Figment::from(Serialized::defaults(config));
    let value = plain(&former, key, value);
    let flag = Figment::from(Named("SET".to_owned(), Serialized::default(key, value)));
    let sources = sources(&flag)?;
    extract(&former.merge(flag), &sources)
}

/// A provider under a name that users understand.
struct Named<P>(String, P);

impl<P: Provider> Provider for Named<P> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.0.clone())
    }

    fn data(&self) -> figment::error::Result<Map<Profile, Dict>> {
        self.1.data()
    }
}

/// What stands for the value of `key`: TOML where it is a number, a truth value or a list, plain text otherwise,
/// and where the setting itself is a text.
fn plain(settings: &Figment, key: &str, text: &str) -> Value {
    let parsed = toml::from_str::<toml::Table>(&format!("value = {text}")).ok();
    let parsed =
        parsed.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    let is_text = matches!(settings.find_value(key), Ok(Value::String(..)));
    let parsed = parsed.filter(|value| value.is_str() || !is_text);
    let value = parsed.unwrap_or_else(|| toml::Value::String(text.to_owned()));
    Value::serialize(&value).unwrap_or_else(|_| Value::from(text))
}

/// The source of every key that is set; refuses keys that do not exist.
fn sources(figment: &Figment) -> Result<BTreeMap<String, String>, ConfigError> {
    let known: Vec<String> =
        Config::default().entries().into_iter().map(|entry| entry.key).collect();
    let values = figment.data().unwrap_or_default();
    let mut leaves = Vec::new();
    for dict in values.values() {
        flatten("", dict, &mut leaves);
    }
    let mut sources = BTreeMap::new();
    for (key, value) in leaves {
        let metadata = figment.get_metadata(value.tag());
        let source_name = metadata.map_or_else(|| "settings".to_owned(), |m| m.name.to_string());
        if !known.contains(&key) {
            let nearest = nearest_key(&key, &known);
            return Err(ConfigError::UnknownKey { key, source_name, nearest });
        }
        sources.insert(key, source_name);
    }
    Ok(sources)
}

/// The nearest of the whole keys, or the key whose last part is nearest.
fn nearest_key(key: &str, known: &[String]) -> Option<String> {
    let whole = nearest(key, known.iter().map(String::as_str)).map(str::to_owned);
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let by_part = || {
        let parts: Vec<String> = known.iter().map(|key| last(key)).collect();
        let part = nearest(&last(key), parts.iter().map(String::as_str))?;
        known.iter().find(|key| last(key) == part).cloned()
    };
    whole.or_else(by_part)
}

fn flatten<'a>(prefix: &str, dict: &'a Dict, leaves: &mut Vec<(String, &'a Value)>) {
    for (key, value) in dict {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Dict(_, inner) if !inner.is_empty() => flatten(&key, inner, leaves),
            leaf => leaves.push((key, leaf)),
        }
    }
}

fn extract(figment: &Figment, sources: &BTreeMap<String, String>) -> Result<Config, ConfigError> {
    let raw: Config = figment.extract().map_err(|error| value_error(&error, sources))?;
    raw.checked_whole()
}

fn value_error(error: &figment::Error, sources: &BTreeMap<String, String>) -> ConfigError {
    let key = error.path.join(".");
    let of_key = sources.get(&key).cloned();
    let named = || error.metadata.as_ref().map(|metadata| metadata.name.to_string());
    let source_name = of_key.or_else(named).unwrap_or_else(|| "settings".to_owned());
    ConfigError::Value { key, source_name, reason: error.kind.to_string() }
}

/// The parser's message without its drawing of the text, with the line.
fn toml_reason(error: &toml::de::Error) -> String {
    let drawing = error.to_string();
    let line = drawing.lines().next().unwrap_or_default();
    let place = line.strip_prefix("TOML parse error ").unwrap_or(line);
    format!("{} {place}", error.message().trim_end_matches('.'))
}
