//! How a section of settings is written down once and gets its checks, getters, setters and manual.

use serde::Serialize;

/// A setting is out of bounds. The text names the key, the value and the bound.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// One value is outside its own bound.
    #[error("{key} is {value}; it must be {bound}")]
    Bound {
        /// The setting, with its section.
        key: String,
        /// The value given.
        value: String,
        /// What it must be.
        bound: String,
    },
    /// Two values do not fit each other.
    #[error("{key} is {value}; it must be at most {limit} ({because})")]
    Limit {
        /// The setting, with its section.
        key: &'static str,
        /// The value given.
        value: f64,
        /// The highest value allowed.
        limit: f64,
        /// Where the limit comes from.
        because: &'static str,
    },
}

impl ConfigError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Bound { .. } => "FS-CONFIG-1",
            Self::Limit { .. } => "FS-CONFIG-2",
        }
    }

    /// Whether the same settings may be accepted later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// One setting as `system.settings` and the manual show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Full key, for example `reshape.copy-above`.
    pub key: String,
    /// Value in force.
    pub value: String,
    /// Value if nothing is configured.
    pub default: String,
    /// Unit of the value; empty if it has none.
    pub unit: &'static str,
    /// What it must be.
    pub bound: String,
    /// What it does.
    pub doc: String,
}

/// What a number must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bound {
    /// Anything its type can say.
    Any,
    /// From the first to the second, both included.
    Within(f64, f64),
    /// Finite and greater than this.
    Above(f64),
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => Ok(()),
            Self::Within(low, high) => write!(f, "{low} to {high}"),
            Self::Above(low) => write!(f, "above {low}"),
        }
    }
}

/// A value that can stand in a section.
pub(super) trait Setting: Clone + PartialEq {
    /// The value as a number, if it is one.
    fn number(&self) -> Option<f64>;
    /// The value as it is written in the file.
    fn text(&self) -> String;
}

macro_rules! numbers {
    ($($type:ty),+) => {$(
        impl Setting for $type {
            fn number(&self) -> Option<f64> {
                Some(*self as f64)
            }
            fn text(&self) -> String {
                self.to_string()
            }
        }
    )+};
}

numbers!(u32, u64, usize, f64);

impl Setting for bool {
    fn number(&self) -> Option<f64> {
        None
    }
    fn text(&self) -> String {
        self.to_string()
    }
}

impl Setting for Option<usize> {
    fn number(&self) -> Option<f64> {
        self.as_ref().and_then(Setting::number)
    }
    fn text(&self) -> String {
        self.map_or_else(|| "found".to_owned(), |value| value.to_string())
    }
}

/// Refuses a value outside its bound.
pub(super) fn check<T: Setting>(key: &str, value: &T, bound: Bound) -> Result<(), ConfigError> {
    let holds = match (value.number(), bound) {
        (None, _) | (_, Bound::Any) => true,
        (Some(number), Bound::Within(low, high)) => (low..=high).contains(&number),
        (Some(number), Bound::Above(low)) => number.is_finite() && number > low,
    };
    if holds {
        return Ok(());
    }
    Err(ConfigError::Bound { key: key.to_owned(), value: value.text(), bound: bound.to_string() })
}

/// Writes a section: the checked struct, its raw twin for parsing, getters, setters, `entries`.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident ($raw:ident = $raw_text:literal, prefix $prefix:literal, fits $fits:path) {
            $(
                $(#[doc = $doc:literal])+
                $key:literal $field:ident $with:ident: $type:ty = $default:expr,
                    $unit:literal, $bound:expr;
            )+
        }
        sections {
            $(
                $(#[doc = $part_doc:literal])+
                $part:ident $with_part:ident: $part_type:ty;
            )*
        }
    ) => {
        $(#[doc = $about])+
        ///
        /// Built only by parsing or by setters that check, so a value of this type always obeys its
        /// bounds.
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = $raw_text, rename_all = "kebab-case")]
        pub struct $name {
            $($field: $type,)+
            $($part: $part_type,)*
        }

        /// The same as it is written in the file: every key is optional.
        #[derive(Clone, Debug, serde::Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        struct $raw {
            $($field: $type,)+
            $($part: $part_type,)*
        }

        impl Default for $raw {
            fn default() -> Self {
                Self { $($field: $default,)+ $($part: <$part_type>::default(),)* }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                let $raw { $($field,)+ $($part,)* } = $raw::default();
                Self { $($field,)+ $($part,)* }
            }
        }

        impl TryFrom<$raw> for $name {
            type Error = $crate::config::ConfigError;

            fn try_from(raw: $raw) -> Result<Self, Self::Error> {
                let $raw { $($field,)+ $($part,)* } = raw;
                Self { $($field,)+ $($part,)* }.checked()
            }
        }

        impl $name {
            $(
                $(#[doc = $doc])+
                #[must_use]
                pub fn $field(&self) -> $type {
                    self.$field.clone()
                }

                /// Sets the value that the getter of this name gives.
                ///
                /// # Errors
                /// [`ConfigError`](crate::config::ConfigError) if it is out of bounds.
                pub fn $with(mut self, $field: $type) -> Result<Self, $crate::config::ConfigError> {
                    self.$field = $field;
                    self.checked()
                }
            )+
            $(
                $(#[doc = $part_doc])+
                #[must_use]
                pub fn $part(&self) -> &$part_type {
                    &self.$part
                }

                /// Replaces the whole section.
                ///
                /// # Errors
                /// [`ConfigError`](crate::config::ConfigError) if it does not fit the other
                /// settings.
                pub fn $with_part(
                    mut self,
                    $part: $part_type,
                ) -> Result<Self, $crate::config::ConfigError> {
                    self.$part = $part;
                    self.checked()
                }
            )*

            fn checked(self) -> Result<Self, $crate::config::ConfigError> {
                $($crate::config::section::check(concat!($prefix, $key), &self.$field, $bound)?;)+
                $fits(&self)?;
                Ok(self)
            }

            /// Every setting of this section with its value, unit and what it does.
            #[must_use]
            pub fn entries(&self) -> Vec<$crate::config::Entry> {
                let defaults = Self::default();
                #[allow(unused_mut, reason = "a section without parts adds nothing")]
                let mut entries = vec![$(
                    $crate::config::section::entry(
                        concat!($prefix, $key),
                        (&self.$field, &defaults.$field),
                        ($unit, $bound),
                        concat!($($doc),+),
                    )
                ),+];
                $(entries.extend(self.$part.entries());)*
                entries
            }
        }
    };
}
pub(super) use section;

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

/// For sections whose values do not depend on each other.
pub(super) fn fits_always<T>(_: &T) -> Result<(), ConfigError> {
    Ok(())
}
