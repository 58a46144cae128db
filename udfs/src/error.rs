//! Every way in which a function can fail, with its code.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::error::DataFusionError;

use crate::version::FunctionVersion;

/// Characters of a value that are shown in an error.
const SHOWN_CHARS_MAX: usize = 80;

/// Characters of another service's complaint that are shown in an error.
const REASON_CHARS_MAX: usize = 500;

/// One call as errors name it: `soundex(Utf8) over 8192 rows`, `model(Utf8) over 8192 rows, in rows 64
/// to 127,`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Name of the function.
    pub function: String,
    /// Types of the arguments.
    pub arguments: Vec<DataType>,
    /// Rows of the batch; 0 while planning.
    pub rows: usize,
    /// Which of these rows it is about, from 0 on, if not about all.
    pub part: Option<Range<usize>>,
}

impl Call {
    pub(crate) fn new(function: &str, arguments: &[FieldRef], rows: usize) -> Self {
        let arguments = arguments.iter().map(|field| field.data_type().clone()).collect();
        Self { function: function.to_owned(), arguments, rows, part: None }
    }

    /// The same call, of which only these rows are meant.
    pub(crate) fn in_rows(self, rows: Range<usize>) -> Self {
        Self { part: Some(rows), ..self }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.function)?;
        for (position, argument) in self.arguments.iter().enumerate() {
            let comma = if position == 0 { "" } else { ", " };
            write!(f, "{comma}{argument}")?;
        }
        write!(f, ") over {} rows", self.rows)?;
        match &self.part {
            Some(part) => {
                write!(f, ", in rows {} to {},", part.start, part.end.saturating_sub(1))
            }
            None => Ok(()),
        }
    }
}

/// What went wrong with a function. It reaches DataFusion's users as [`DataFusionError::External`];
/// [`FunctionError::of`] finds it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FunctionError {
    /// The function panicked; the query fails, the process goes on.
    #[error("{call} failed: the function panicked with \"{message}\"")]
    Panicked {
        /// The call.
        call: Box<Call>,
        /// What the function said.
        message: String,
    },
    /// The function returned another number of rows than it was given.
    #[error("{call} returned {returned} rows; it must return as many as it is given")]
    Length {
        /// The call.
        call: Box<Call>,
        /// Rows that came back.
        returned: usize,
    },
    /// The function returned another type than it declared.
    #[error("{call} returned {returned}; it declared {declared}")]
    Type {
        /// The call.
        call: Box<Call>,
        /// The type of its return field.
        declared: Box<DataType>,
        /// The type that came back.
        returned: Box<DataType>,
    },
    /// The function broke what it says about NULLs.
    #[error("{call} broke its NULL rule: {rule}")]
    Nulls {
        /// The call.
        call: Box<Call>,
        /// The rule.
        rule: &'static str,
    },
    /// The function returned more than a batch may hold.
    #[error("{call} returned {bytes} bytes; a batch may have at most {bytes_max}")]
    Bytes {
        /// The call.
        call: Box<Call>,
        /// Bytes that came back.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// An argument has a value that the function does not take.
    #[error("{function}: {argument} is {value}; it must be {expected}")]
    Argument {
        /// Name of the function.
        function: String,
        /// Name of the argument.
        argument: &'static str,
        /// The value, shortened.
        value: String,
        /// What it must be.
        expected: String,
    },
    /// No function has this name.
    #[error("unknown function {name}{}", did_you_mean(.nearest.as_deref()))]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// The name that comes nearest, if one is near.
        nearest: Option<String>,
    },
    /// The function was redefined since the asker looked.
    #[error("function {name} has version {current} here; version {asked} was asked for")]
    Version {
        /// Name of the function.
        name: String,
        /// The version that was asked for.
        asked: FunctionVersion,
        /// The version it has here.
        current: FunctionVersion,
    },
    /// A function cannot be registered as it is.
    #[error("function {name} cannot be registered: {what} is {value}; it must be {expected}")]
    Register {
        /// Name of the function.
        name: String,
        /// What is wrong with it.
        what: &'static str,
        /// What it is.
        value: String,
        /// What it must be.
        expected: String,
    },
    /// A file of a model is missing or cannot be read.
    #[error("model file {} cannot be read: {reason}", .file.display())]
    ModelFile {
        /// The file.
        file: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file of a model can be read but does not make a model.
    #[error("model file {} is not usable: {reason}", .file.display())]
    Model {
        /// The file.
        file: PathBuf,
        /// What is wrong in it, with names and shapes.
        reason: String,
    },
    /// An asynchronous function failed or took too long, as often as it was asked.
    #[error("{call} had no answer in {}: {reason}", attempts_made(*.attempts))]
    Unanswered {
        /// The call, and which of its rows.
        call: Box<Call>,
        /// How often it was asked.
        attempts: u32,
        /// What was wrong with the last attempt.
        reason: String,
    },
    /// Nobody waits for the answer of an asynchronous function any more.
    #[error("{call} was given up: nobody waits for its answer")]
    GivenUp {
        /// The call.
        call: Box<Call>,
    },
    /// Earlier calls of the function hold their threads for nobody.
    #[error(
        "{call} was refused: {stuck} earlier calls of the function have not ended yet, and nobody waits for \
         them any more"
    )]
    Stuck {
        /// The call.
        call: Box<Call>,
        /// Calls that have not ended.
        stuck: usize,
    },
}

impl FunctionError {
    /// The stable code of the error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Panicked { .. } => "FS-FN-1",
            Self::Length { .. } => "FS-FN-2",
            Self::Type { .. } => "FS-FN-3",
            Self::Nulls { .. } => "FS-FN-4",
            Self::Bytes { .. } => "FS-FN-5",
            Self::Argument { .. } => "FS-FN-6",
            Self::Unknown { .. } => "FS-FN-7",
            Self::Version { .. } => "FS-FN-8",
            Self::Register { .. } => "FS-FN-9",
            Self::ModelFile { .. } => "FS-FN-10",
            Self::Model { .. } => "FS-FN-11",
            Self::Unanswered { .. } => "FS-FN-12",
            Self::GivenUp { .. } => "FS-FN-13",
            Self::Stuck { .. } => "FS-FN-14",
        }
    }

    /// True if the same request may succeed when made again: the asker then sees the new version, the
    /// service behind the function is well again, or calls have ended.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Version { .. } | Self::Unanswered { .. } | Self::Stuck { .. })
    }

    /// The function error inside `error`, however often DataFusion wrapped it.
    #[must_use]
    pub fn of(error: &DataFusionError) -> Option<&Self> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            cause = error.source();
        }
        None
    }

    pub(crate) fn argument(
        function: &str,
        argument: &'static str,
        value: impl fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        let value = shortened(&value.to_string(), SHOWN_CHARS_MAX);
        Self::Argument { function: function.to_owned(), argument, value, expected: expected.into() }
    }

    pub(crate) fn unanswered(call: Box<Call>, attempts: u32, reason: &str) -> Self {
        Self::Unanswered { call, attempts, reason: shortened(reason, REASON_CHARS_MAX) }
    }
}

impl From<FunctionError> for DataFusionError {
    fn from(error: FunctionError) -> Self {
        Self::External(Box::new(error))
    }
}

/// The beginning of a text, for errors.
fn shortened(text: &str, chars_max: usize) -> String {
    let mut chars = text.chars();
    let mut shown: String = chars.by_ref().take(chars_max).collect();
    if chars.next().is_some() {
        shown.push_str("...");
    }
    shown
}

fn attempts_made(attempts: u32) -> String {
    match attempts {
        1 => "1 attempt".to_owned(),
        attempts => format!("{attempts} attempts"),
    }
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn an_error_names_function_types_and_rows() {
        let call = Call {
            function: "f".to_owned(),
            arguments: vec![DataType::Utf8, DataType::Int64],
            rows: 8192,
            part: None,
        };
        let error = FunctionError::Length { call: Box::new(call.clone()), returned: 1 };
        assert_eq!(
            error.to_string(),
            "f(Utf8, Int64) over 8192 rows returned 1 rows; it must return as many as it is given"
        );
        assert_eq!(error.code(), "FS-FN-2");
        let call = Box::new(call.in_rows(64..128));
        let error = FunctionError::unanswered(call, 3, &"x".repeat(1_000));
        let expected =
            "f(Utf8, Int64) over 8192 rows, in rows 64 to 127, had no answer in 3 attempts: ";
        let text = error.to_string();
        assert_eq!(text.strip_prefix(expected).map(str::len), Some(503), "{text}");
        assert!(error.is_retryable());
    }

    #[test]
    fn the_error_is_found_under_every_wrapping_of_datafusion() {
        let error = FunctionError::argument("f", "x", "y".repeat(500), "short");
        assert_eq!(error.to_string().len(), "f: x is ...; it must be short".len() + 80);
        let wrapped = DataFusionError::Shared(Arc::new(
            DataFusionError::from(error.clone()).context("while doing a thing"),
        ));
        assert_eq!(FunctionError::of(&wrapped), Some(&error));
        assert_eq!(FunctionError::of(&DataFusionError::Plan("other".to_owned())), None);
    }

    #[test]
    fn an_unknown_name_suggests_the_nearest_only_if_there_is_one() {
        let near =
            FunctionError::Unknown { name: "sondex".into(), nearest: Some("soundex".into()) };
        assert_eq!(near.to_string(), "unknown function sondex; did you mean soundex?");
        let far = FunctionError::Unknown { name: "xyz".into(), nearest: None };
        assert_eq!(far.to_string(), "unknown function xyz");
    }
}
