//! How a section of settings is written down once and gets its checks, getters, setters and manual.

use std::path::{Path, PathBuf};

use foreshard_policy::config::Entry;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ConfigError;

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bound {
    /// Anything its type can say.
    Any,
    /// A number from the first to the second, both included.
    Within(u64, u64),
    /// Text that is not empty.
    NotEmpty,
    /// One of these words.
    OneOf(&'static [&'static str]),
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => Ok(()),
            Self::Within(low, high) => write!(f, "{low} to {high}"),
            Self::NotEmpty => f.write_str("not empty"),
            Self::OneOf(words) => f.write_str(&words.join(" or ")),
        }
    }
}

/// A value that can stand in a section.
pub(super) trait Setting: Clone + PartialEq {
    /// The value as it is written in the file.
    fn text(&self) -> String;
    /// The value as a number, if it is one.
    fn number(&self) -> Option<u64> {
        None
    }
}

impl Setting for u64 {
    fn text(&self) -> String {
        self.to_string()
    }
    fn number(&self) -> Option<u64> {
        Some(*self)
    }
}

impl Setting for u32 {
    fn text(&self) -> String {
        self.to_string()
    }
    fn number(&self) -> Option<u64> {
        Some(u64::from(*self))
    }
}

impl Setting for usize {
    fn text(&self) -> String {
        self.to_string()
    }
    fn number(&self) -> Option<u64> {
        u64::try_from(*self).ok()
    }
}

impl Setting for String {
    fn text(&self) -> String {
        self.clone()
    }
}

impl Setting for PathBuf {
    fn text(&self) -> String {
        self.display().to_string()
    }
}

/// An address that may be switched off by the word `off`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address(Option<String>);

impl Address {
    /// No address: the service is not started.
    pub const OFF: Self = Self(None);

    /// `host:port`, or `None` if the service is off.
    #[must_use]
    pub fn get(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self::OFF);
        }
        let parts = text.rsplit_once(':');
        let good =
            parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if good {
            Ok(Self(Some(text.to_owned())))
        } else {
            Err(format!("{text:?} is not an address; it must be host:port or off"))
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Setting for Address {
    fn text(&self) -> String {
        self.0.clone().unwrap_or_else(|| "off".to_owned())
    }
}

/// What the getter of a field gives: a reference where copying would allocate.
pub(super) trait Shown<'a, Out> {
    /// What the getter returns.
    fn shown(&'a self) -> Out;
}

impl<T: Copy> Shown<'_, T> for T {
    fn shown(&self) -> T {
        *self
    }
}

impl<'a> Shown<'a, &'a str> for String {
    fn shown(&'a self) -> &'a str {
        self
    }
}

impl<'a> Shown<'a, &'a Path> for PathBuf {
    fn shown(&'a self) -> &'a Path {
        self
    }
}

impl<'a> Shown<'a, Option<&'a str>> for Address {
    fn shown(&'a self) -> Option<&'a str> {
        self.get()
    }
}

/// Refuses a value outside its bound.
pub(super) fn check<T: Setting>(key: &str, value: &T, bound: Bound) -> Result<(), ConfigError> {
    let holds = match bound {
        Bound::Any => true,
        Bound::Within(low, high) => value.number().is_none_or(|n| (low..=high).contains(&n)),
        Bound::NotEmpty => !value.text().is_empty(),
        Bound::OneOf(words) => words.contains(&value.text().as_str()),
    };
    if holds {
        return Ok(());
    }
    let (key, bound) = (key.to_owned(), bound.to_string());
    Err(ConfigError::Bound { key, value: value.text(), bound })
}

/// One line of the manual.
pub(super) fn entry<T: Setting>(
    key: &str,
    (value, default): (&T, &T),
    (unit, bound): (&'static str, Bound),
    doc: &str,
) -> Entry {
    Entry {
        key: key.to_owned(),
        value: value.text(),
        default: default.text(),
        unit,
        bound: bound.to_string(),
        doc: doc.trim().to_owned(),
    }
}

/// Writes a section: the struct, its defaults, getters, checked setters, `checked` and `entries`.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident (prefix $prefix:literal) {
            $(
                $(#[doc = $doc:literal])+
                $key:literal $field:ident $with:ident: $type:ty => $out:ty = $default:expr, $unit:literal, $bound:expr;
            )+
        }
        sections {
            $(
                $(#[doc = $part_doc:literal])+
                $part_key:literal $part:ident $with_part:ident: $part_type:ty;
            )*
        }
    ) => {
        $(#[doc = $about])+
        ///
        /// Built only by loading or by setters that check, so a value of this type always obeys its
        /// bounds.
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $(#[serde(rename = $key)] $field: $type,)+
            $(#[serde(rename = $part_key)] $part: $part_type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ $($part: <$part_type>::default(),)* }
            }
        }

        impl $name {
            $(
                $(#[doc = $doc])+
                #[must_use]
                pub fn $field(&self) -> $out {
                    $crate::config::section::Shown::shown(&self.$field)
                }

                /// Sets the value that the getter of this name gives.
                ///
                /// # Errors
                /// [`ConfigError`](crate::config::ConfigError) if it is out of bounds.
                pub fn $with(mut self, $field: $type) -> Result<Self, $crate::config::ConfigError> {
                    self.$field = $field;
                    $crate::config::section::check(concat!($prefix, $key), &self.$field, $bound)?;
                    Ok(self)
                }
            )+
            $(
                $(#[doc = $part_doc])+
                #[must_use]
                pub fn $part(&self) -> &$part_type {
                    &self.$part
                }

                /// Replaces the whole section.
                #[must_use]
                pub fn $with_part(mut self, $part: $part_type) -> Self {
                    self.$part = $part;
                    self
                }
            )*

            /// Refuses values out of bounds, which only parsing can have let in.
            pub(super) fn checked(self) -> Result<Self, $crate::config::ConfigError> {
                $($crate::config::section::check(concat!($prefix, $key), &self.$field, $bound)?;)+
                Ok(self)
            }

            /// The settings of this section itself, with value, unit and what each does.
            fn own_entries(&self) -> Vec<foreshard_policy::config::Entry> {
                let defaults = Self::default();
                vec![$(
                    $crate::config::section::entry(
                        concat!($prefix, $key),
                        (&self.$field, &defaults.$field),
                        ($unit, $bound),
                        concat!($($doc),+),
                    )
                ),+]
            }
        }
    };
}
pub(super) use section;
