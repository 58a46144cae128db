//! `CALL announce('embed', 5, '2026-12-01T09:00:00Z', '2026-12-01T10:00:00Z')` and `CALL unannounce('embed')`:
//! what people know of coming calls, and take back.

use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use foreshard_policy::forecast::announced::Announcement;

use crate::catalog::ticks::known_function;
use crate::error::EngineError;
use crate::session::Session;

fn invalid(message: String) -> EngineError {
    EngineError::Invalid { message }
}

/// Says that a function will be called so many times as often, and answers how many spans are announced
/// of it.
pub(super) async fn announce(
    session: &Session,
    function: &str,
    factor: &str,
    [from, until]: [&str; 2],
) -> Result<u64, EngineError> {
    known_function(&session.inner, function)?;
    let number = factor.parse().map_err(|_not_one| {
        invalid(format!("the second argument of announce must be a number, not {factor:?}"))
    })?;
    let announcement = Announcement {
        function: function.into(),
        factor: number,
        from_ms: moment("third", from)?,
        until_ms: moment("fourth", until)?,
    };
    let the_loop = &session.inner.the_loop;
    the_loop.announce(announcement).await?;
    let all = the_loop.announced();
    Ok(all.iter().filter(|span| *span.function == *function).count() as u64)
}

/// Takes back all that was announced of a function, and answers how many spans that were. The name may be
/// one that nobody knows any more.
pub(super) async fn unannounce(session: &Session, function: &str) -> Result<u64, EngineError> {
    match session.inner.the_loop.take_back(function).await? {
        0 => known_function(&session.inner, function).map(|()| 0),
        spans => Ok(spans as u64),
    }
}

/// Milliseconds since the Unix epoch. A text without an offset is in UTC.
fn moment(which: &str, text: &str) -> Result<u64, EngineError> {
    let ns = string_to_timestamp_nanos(text).ok();
    let ms = ns.and_then(|ns| u64::try_from(ns / 1_000_000).ok());
    ms.ok_or_else(|| {
        invalid(format!(
            "the {which} argument of announce must be a moment from 1970 on, such as \
             '2026-12-01T09:00:00Z', not {text:?}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::moment;

    #[test]
    fn a_moment_is_read_with_and_without_an_offset() {
        let nine = 1_796_115_600_000;
        for text in ["2026-12-01T09:00:00Z", "2026-12-01 09:00:00", "2026-12-01T10:00:00+01:00"] {
            assert_eq!(moment("third", text).unwrap(), nine, "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused_with_an_example() {
        for text in ["tomorrow", "", "1969-12-31T00:00:00Z"] {
            let error = moment("fourth", text).unwrap_err().to_string();
            assert!(error.contains("the fourth argument of announce") && error.contains(text));
        }
    }
}
