//! What a client asks over HTTP: a statement, its parameters, and the form of the answer.

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use serde::Deserialize;
use serde_json::Value;

use crate::encode::Format;
use crate::error::EngineError;
use crate::query_stream::QueryStream;
use crate::session::Session;

/// Media types that answers can have.
const OFFERED: &str =
    "application/json, application/x-ndjson, text/csv and application/vnd.apache.arrow.stream";

/// A statement and its parameters.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ask {
    /// Exactly one statement.
    sql: String,
    /// Values of `$1`, `$2` and so on.
    #[serde(default)]
    parameters: Vec<Value>,
}

impl Ask {
    /// Reads a request: JSON if its media type says so, SQL otherwise.
    pub(super) fn parse(media_type: Option<&str>, body: &[u8]) -> Result<Self, EngineError> {
        let media_type =
            media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if media_type.eq_ignore_ascii_case("application/json") {
            return serde_json::from_slice(body).map_err(|error| EngineError::Request {
                reason: format!("the body must be {{\"sql\": .., \"parameters\": [..]}}: {error}"),
            });
        }
        match std::str::from_utf8(body) {
            Ok(sql) => Ok(Self { sql: sql.to_owned(), parameters: Vec::new() }),
            Err(error) => {
                Err(EngineError::Request { reason: format!("the body is not UTF-8: {error}") })
            }
        }
    }

    /// Runs the statement on `session`.
    pub(super) async fn run(self, session: Session) -> Result<QueryStream, EngineError> {
        if self.parameters.is_empty() {
            return session.sql(&self.sql).await;
        }
        let prepared = session.prepare(&self.sql).await?;
        let wanted = prepared.parameters();
        if wanted.len() != self.parameters.len() {
            let (expected, given) = (wanted.len(), self.parameters.len());
            return Err(EngineError::ParameterCount { expected, given });
        }
        let values = wanted.iter().zip(&self.parameters).enumerate();
        let values: Result<Vec<_>, _> =
            values.map(|(at, ((_, kind), value))| scalar(at + 1, kind, value)).collect();
        session.execute(&prepared, values?).await
    }
}

/// The value of parameter `index`, which must be of `kind`.
fn scalar(index: usize, kind: &DataType, value: &Value) -> Result<ScalarValue, EngineError> {
    let text = match value {
        Value::Null => return Ok(ScalarValue::try_from(kind)?),
        Value::String(text) => text.clone(),
        Value::Number(number) if !is_text(kind) => number.to_string(),
        Value::Bool(truth) if *kind == DataType::Boolean => truth.to_string(),
        other => {
            let reason = format!("is {other}; it must be {kind}");
            return Err(EngineError::Parameter { index, reason });
        }
    };
    ScalarValue::try_from_string(text, kind).map_err(|_| EngineError::Parameter {
        index,
        reason: format!("is {value}; it must be {kind}"),
    })
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// The form of the answer that a client likes best of those that are offered.
pub(super) fn accepted(accept: Option<&str>) -> Result<Format, EngineError> {
    let accept = accept.unwrap_or("*/*");
    let mut best: Option<(f32, Format)> = None;
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let format = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
            "*/*" | "application/*" | "application/json" => Format::Document,
            "application/x-ndjson" => Format::Lines,
            "text/csv" | "text/*" => Format::Csv,
            "application/vnd.apache.arrow.stream" => Format::Arrow,
            _ => continue,
        };
        let weight = parts.find_map(|part| part.strip_prefix("q=")).unwrap_or("1");
        let weight = weight.parse::<f32>().unwrap_or(0.0);
        if weight > best.map_or(0.0, |(most, _)| most) {
            best = Some((weight, format));
        }
    }
    let none = || EngineError::NotAcceptable { accept: accept.to_owned(), offered: OFFERED };
    best.map(|(_, format)| format).ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_that_the_client_likes_best_is_taken() {
        assert_eq!(accepted(None).unwrap(), Format::Document);
        assert_eq!(accepted(Some("text/html, */*;q=0.8")).unwrap(), Format::Document);
        assert_eq!(accepted(Some("application/json;q=0.5, text/csv")).unwrap(), Format::Csv);
        let arrow = "application/vnd.apache.arrow.stream";
        assert_eq!(accepted(Some(arrow)).unwrap(), Format::Arrow);
        assert_eq!(accepted(Some("image/png")).unwrap_err().http_status(), 406);
        assert_eq!(accepted(Some("text/csv;q=0")).unwrap_err().code(), "FS-NET-5");
    }

    #[test]
    fn a_body_is_sql_or_json_by_its_media_type() {
        let plain = Ask::parse(Some("text/plain; charset=utf-8"), b"SELECT 1").unwrap();
        let json = Ask::parse(Some("application/json"), br#"{"sql": "SELECT 1"}"#).unwrap();
        assert_eq!(plain, json);
        let typo = Ask::parse(Some("application/json"), br#"{"sqll": "SELECT 1"}"#);
        assert_eq!(typo.unwrap_err().code(), "FS-NET-4");
        assert_eq!(Ask::parse(None, b"\xff").unwrap_err().code(), "FS-NET-4");
    }

    #[test]
    fn json_values_become_the_types_of_their_parameters_or_an_error_with_the_position() {
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let value = |kind, text| scalar(2, &kind, &json(text));
        assert_eq!(value(DataType::Int64, "7").unwrap(), ScalarValue::from(7_i64));
        assert_eq!(value(DataType::Float64, "7").unwrap(), ScalarValue::from(7.0));
        assert_eq!(value(DataType::Utf8, "\"7\"").unwrap(), ScalarValue::from("7"));
        assert_eq!(value(DataType::Int64, "null").unwrap(), ScalarValue::Int64(None));
        let error = value(DataType::Int64, "7.5").unwrap_err();
        assert_eq!(error.line(), "error[FS-SQL-10]: parameter $2 is 7.5; it must be Int64");
        assert!(value(DataType::Utf8, "7").is_err());
        assert!(value(DataType::Boolean, "true").is_ok());
    }
}
