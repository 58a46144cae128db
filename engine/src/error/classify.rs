//! Turns DataFusion's errors into the engine's, by what lies at the bottom of the source chain.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::error::ArrowError;
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;
use foreshard_actors::store::StoreError;
use foreshard_udfs::FunctionError;

use super::facts::known_code;
use super::{EngineError, Position, ValueMistake, nearest};

/// Errors in a source chain are followed at most this far.
const CHAIN_LENGTH_MAX: usize = 64;

/// An [`EngineError`] on its way through DataFusion. Its text starts with the code in brackets, so
/// that the code survives a network hop that keeps only the text.
#[derive(Debug)]
pub(super) struct Travelling(pub(super) EngineError);

impl fmt::Display for Travelling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.0.code(), self.0)
    }
}

impl Error for Travelling {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

/// See [`EngineError::from_datafusion`].
pub(super) fn classify(error: DataFusionError) -> EngineError {
    match unwrap(error) {
        Ok(ours) => ours,
        Err(error) => {
            let mut links = Vec::new();
            let mut link: Option<&(dyn Error + 'static)> = Some(&error);
            while let Some(found) = link.filter(|_| links.len() < CHAIN_LENGTH_MAX) {
                links.push(found);
                link = found.source();
            }
            let found = links.iter().rev().find_map(|link| coded(*link));
            let found = found.or_else(|| links.iter().rev().find_map(|link| own(*link)));
            found.unwrap_or_else(|| rest(error))
        }
    }
}

/// Takes an error of ours out of its wrapping, where nobody else holds the wrapping.
fn unwrap(error: DataFusionError) -> Result<EngineError, DataFusionError> {
    match error {
        DataFusionError::External(inner) => unwrap_external(inner),
        DataFusionError::Context(text, inner) => {
            unwrap(*inner).map_err(|inner| DataFusionError::Context(text, Box::new(inner)))
        }
        DataFusionError::Diagnostic(diagnostic, inner) => {
            unwrap(*inner).map_err(|inner| DataFusionError::Diagnostic(diagnostic, Box::new(inner)))
        }
        DataFusionError::ArrowError(inner, trace) => match *inner {
            ArrowError::ExternalError(inner) => unwrap_external(inner),
            inner => Err(DataFusionError::ArrowError(Box::new(inner), trace)),
        },
        DataFusionError::Shared(inner) => match Arc::try_unwrap(inner) {
            Ok(inner) => unwrap(inner),
            Err(inner) => Err(DataFusionError::Shared(inner)),
        },
        other => Err(other),
    }
}

fn unwrap_external(
    error: Box<dyn Error + Send + Sync + 'static>,
) -> Result<EngineError, DataFusionError> {
    let error = match error.downcast::<Travelling>() {
        Ok(ours) => return Ok(ours.0),
        Err(error) => error,
    };
    let error = match error.downcast::<EngineError>() {
        Ok(ours) => return Ok(*ours),
        Err(error) => error,
    };
    match error.downcast::<DataFusionError>() {
        Ok(inner) => unwrap(*inner),
        Err(error) => Err(DataFusionError::External(error)),
    }
}

/// The coded error that `link` is or whose text it carries.
fn coded(link: &(dyn Error + 'static)) -> Option<EngineError> {
    if let Some(error) = link.downcast_ref::<EngineError>() {
        return Some(EngineError::Relayed { code: error.code(), message: error.to_string() });
    }
    if let Some(error) = link.downcast_ref::<StoreError>() {
        return Some(error.clone().into());
    }
    if let Some(error) = link.downcast_ref::<FunctionError>() {
        return Some(error.clone().into());
    }
    if let Some(status) = link.downcast_ref::<tonic::Status>()
        && status.code() == tonic::Code::Unavailable
    {
        return Some(EngineError::NodeLost { node: sentence(status.message()) });
    }
    from_text(&link.to_string())
}

/// Finds `[FS-AREA-n] text` in the text of an error that came over the network.
fn from_text(text: &str) -> Option<EngineError> {
    let start = text.find("[FS-")?;
    let (code, message) = text[start + 1..].split_once("] ")?;
    let code = known_code(code)?;
    Some(EngineError::Relayed { code, message: sentence(message) })
}

/// What a link of the chain that is a library's own error means.
fn own(link: &(dyn Error + 'static)) -> Option<EngineError> {
    if let Some(error) = link.downcast_ref::<ParserError>() {
        return Some(syntax(error));
    }
    if let Some(error) = link.downcast_ref::<SchemaError>() {
        return Some(schema(error));
    }
    if let Some(error) = link.downcast_ref::<ArrowError>() {
        return arrow(error);
    }
    if let Some(error) = link.downcast_ref::<object_store::Error>() {
        return Some(object_store(error));
    }
    if let Some(error) = link.downcast_ref::<parquet::errors::ParquetError>() {
        return Some(parquet(error));
    }
    if let Some(error) = link.downcast_ref::<std::io::Error>() {
        return Some(EngineError::Io { message: sentence(&error.to_string()) });
    }
    datafusion(link.downcast_ref::<DataFusionError>()?)
}

fn datafusion(error: &DataFusionError) -> Option<EngineError> {
    match error {
        DataFusionError::Plan(text) => Some(plan(text)),
        DataFusionError::NotImplemented(text) => {
            Some(EngineError::NotSupported { message: sentence(text) })
        }
        DataFusionError::ResourcesExhausted(text) => {
            Some(EngineError::Memory { message: sentence(text) })
        }
        DataFusionError::Configuration(text) if text.contains("Function factory") => {
            Some(EngineError::NotSupported { message: sentence(text) })
        }
        DataFusionError::Configuration(text) => {
            Some(EngineError::Invalid { message: sentence(text) })
        }
        DataFusionError::Execution(text) => definition(text).or_else(|| value(text)),
        DataFusionError::ExecutionJoin(error) if error.is_cancelled() => {
            Some(EngineError::Cancelled)
        }
        _ => None,
    }
}

fn rest(error: DataFusionError) -> EngineError {
    let root = error.find_root();
    let defect = matches!(
        root,
        DataFusionError::Internal(_) | DataFusionError::ExecutionJoin(_) | DataFusionError::Ffi(_)
    );
    if defect {
        EngineError::Defect(Box::new(error))
    } else {
        EngineError::Execution(Box::new(error))
    }
}

fn syntax(error: &ParserError) -> EngineError {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text,
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply",
    };
    let (message, position) = match text.rsplit_once(" at Line: ") {
        Some((message, place)) => (message, position(place)),
        None => (text, None),
    };
    EngineError::Syntax { message: sentence(message), position }
}

fn position(place: &str) -> Option<Position> {
    let (line, column) = place.split_once(", Column: ")?;
    Some(Position { line: line.parse().ok()?, column: column.trim_end().parse().ok()? })
}

fn schema(error: &SchemaError) -> EngineError {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let names: Vec<_> = valid_fields.iter().map(|field| field.name.as_str()).collect();
            EngineError::UnknownColumn {
                name: field.flat_name(),
                nearest: nearest(&field.name, names).map(str::to_owned),
            }
        }
        SchemaError::AmbiguousReference { field } => {
            EngineError::Invalid { message: format!("column {} is ambiguous", field.flat_name()) }
        }
        other => EngineError::Invalid { message: sentence(&other.to_string()) },
    }
}

fn plan(text: &str) -> EngineError {
    if let Some(name) = between(text, "table '", "' not found") {
        return EngineError::UnknownTable { name: short_name(name).to_owned(), nearest: None };
    }
    if let Some(name) = between(text, "Invalid function '", "'") {
        let nearest = between(text, "Did you mean '", "'").map(str::to_owned);
        return EngineError::UnknownFunction { name: name.to_owned(), nearest };
    }
    if let Some(name) = between(text, "table function '", "' not found") {
        return EngineError::UnknownFunction { name: name.to_owned(), nearest: None };
    }
    if let Some(start) = text.find("No function matches") {
        return EngineError::Type { message: sentence(&text[start..]) };
    }
    const TYPE_WORDS: [&str; 5] =
        ["coerce", "coercion", "Cannot infer common", "not match", "does not support"];
    let message = sentence(text);
    if TYPE_WORDS.iter().any(|word| text.contains(word)) {
        EngineError::Type { message }
    } else {
        EngineError::Invalid { message }
    }
}

fn arrow(error: &ArrowError) -> Option<EngineError> {
    let message = sentence(&error.to_string());
    Some(match error {
        ArrowError::DivideByZero => {
            EngineError::Value { message, mistake: ValueMistake::DivisionByZero }
        }
        ArrowError::ArithmeticOverflow(_) => {
            EngineError::Value { message, mistake: ValueMistake::Overflow }
        }
        ArrowError::CastError(_) | ArrowError::ParseError(_) => {
            EngineError::Value { message, mistake: ValueMistake::Cast }
        }
        ArrowError::MemoryError(_) => EngineError::Memory { message },
        ArrowError::ParquetError(_) => EngineError::Damaged { message },
        ArrowError::ComputeError(text) => return value(text),
        _ => return None,
    })
}

/// What DataFusion says of a definition that cannot be, only known by its text.
fn definition(text: &str) -> Option<EngineError> {
    if let Some(name) = between(text, "able '", "' already exists") {
        return Some(EngineError::TableExists { name: short_name(name).to_owned() });
    }
    let missing = between(text, "Table '", "' doesn't exist");
    if let Some(name) = missing.or_else(|| between(text, "View '", "' doesn't exist")) {
        return Some(EngineError::UnknownTable {
            name: short_name(name).to_owned(),
            nearest: None,
        });
    }
    if text.contains("Unable to find factory for") {
        return Some(EngineError::NotSupported { message: sentence(text) });
    }
    const MISTAKES: [&str; 4] = [
        "Schema '",
        "cannot coexist with",
        "because other tables depend on it",
        "has null but schema specifies non-nullable",
    ];
    let is_mistake = MISTAKES.iter().any(|words| text.contains(words));
    is_mistake.then(|| EngineError::Invalid { message: sentence(text) })
}

/// Execution errors have no types of their own; the few that users cause are told by their text.
fn value(text: &str) -> Option<EngineError> {
    let lower = text.to_lowercase();
    let mistake = if lower.contains("divide by zero") || lower.contains("division by zero") {
        ValueMistake::DivisionByZero
    } else if lower.contains("overflow") {
        ValueMistake::Overflow
    } else if lower.contains("cast") || lower.contains("cannot parse") {
        ValueMistake::Cast
    } else {
        return None;
    };
    Some(EngineError::Value { message: sentence(text), mistake })
}

fn object_store(error: &object_store::Error) -> EngineError {
    match error {
        object_store::Error::NotFound { path, .. } => EngineError::Missing { path: path.clone() },
        other => EngineError::Io { message: sentence(&other.to_string()) },
    }
}

fn parquet(error: &parquet::errors::ParquetError) -> EngineError {
    EngineError::Damaged { message: sentence(&error.to_string()) }
}

/// `datafusion.public.trades` is `trades`; `system.nodes` stays.
fn short_name(name: &str) -> &str {
    let mut parts = name.rsplitn(3, '.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(table), Some("public"), _) => table,
        (Some(table), Some(schema), Some(_)) => {
            &name[name.len() - table.len() - schema.len() - 1..]
        }
        _ => name,
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let start = text.find(before)? + before.len();
    let end = text[start..].find(after)? + start;
    Some(&text[start..end])
}

/// Prefixes of libraries that say nothing to a user.
const PREFIXES: [&str; 13] = [
    "Error during planning: ",
    "Execution error: ",
    "External error: ",
    "Arrow error: ",
    "Parquet error: ",
    "Object Store error: ",
    "IO error: ",
    "SQL error: ",
    "Schema error: ",
    "Internal error: ",
    "Compute error: ",
    "Cast error: ",
    "sql parser error: ",
];

/// One sentence of an error text: no library prefix, no list of candidates, no back trace, no line
/// breaks, lower case at the start and no full stop at the end.
pub(super) fn sentence(text: &str) -> String {
    let mut text = text.trim();
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)) {
        text = rest.trim_start();
    }
    for end in [
        "\n\nbacktrace: ",
        "\nThis issue was likely caused",
        "\n\tCandidate functions",
        "\nValid fields are",
    ] {
        text = text.split(end).next().unwrap_or(text);
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = text.trim_end_matches('.');
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(first), Some(second)) if first.is_uppercase() && !second.is_uppercase() => {
            first.to_lowercase().chain(text.chars().skip(1)).collect()
        }
        _ => text.to_owned(),
    }
}
