//! `CALL control('table', 'suggest')`, `CALL budget('table', 'weight', 2)`, `CALL freeze('table')`, `CALL unfreeze('table')`, `CALL approve(12)` and
//! `CALL undo(12)`: what people let the loop do to a table, and what they say to single steps.

use std::sync::Arc;

use foreshard_actors::controls::RequestError;
use foreshard_policy::budgets::TableBudget;
use foreshard_policy::config::ConfigError;
use foreshard_policy::control::Control;

use crate::error::EngineError;
use crate::query_stream::QueryStream;
use crate::session::Session;
use crate::statements::call::{counts, invalid, store};

/// Says what the loop may do to a table by itself; `default` leaves that to the setting again. Answers
/// whether that is new.
pub(super) async fn control(
    session: &Session,
    table: &str,
    text: &str,
) -> Result<QueryStream, EngineError> {
    let table = Arc::clone(&store(session, table)?.table().name);
    let control: Option<Control> = match text {
        "default" => None,
        text => {
            Some(text.parse().map_err(|error| EngineError::Control(RequestError::Refused(error)))?)
        }
    };
    let the_loop = &session.inner.the_loop;
    let changed = the_loop.change_controls(move |all| all.set(&table, control)).await?;
    counts(&[("changed", u64::from(changed))])
}

/// Gives a table another weight or limit where it shares what nodes have with others. Answers whether that is
/// new.
pub(super) async fn budget(
    session: &Session,
    table: &str,
    what: &str,
    text: &str,
) -> Result<QueryStream, EngineError> {
    let table = Arc::clone(&store(session, table)?.table().name);
    let number = || -> Result<Option<f64>, EngineError> {
        let refused = || invalid(format!("a budget is a number or default, not {text:?}"));
        if text == "default" { Ok(None) } else { text.parse().map(Some).map_err(|_| refused()) }
    };
    let refused = |error: ConfigError| invalid(format!("{error} ({})", error.code()));
    let (the_loop, usual) = (&session.inner.the_loop, TableBudget::default());
    let now = the_loop.controls().budget(&table);
    let changed = match what {
        "weight" => now.with_weight(number()?.unwrap_or_else(|| usual.weight())),
        "limit" => now.with_limit(number()?.unwrap_or_else(|| usual.limit())),
        _ => return Err(invalid(format!("{what:?} is no budget; it must be weight or limit"))),
    };
    let changed = changed.map_err(refused)?;
    let is_new = the_loop.change_controls(move |all| all.set_budget(&table, changed)).await?;
    counts(&[("changed", u64::from(is_new))])
}

/// From now on nothing of a table changes, or it may again. Answers whether that is new.
pub(super) async fn freeze(
    session: &Session,
    table: &str,
    frozen: bool,
) -> Result<QueryStream, EngineError> {
    let table = Arc::clone(&store(session, table)?.table().name);
    let change = session
        .inner
        .the_loop
        .change_controls(move |all| if frozen { all.freeze(&table) } else { all.unfreeze(&table) });
    counts(&[("changed", u64::from(change.await?))])
}

/// Has a suggested step carried out; answers the decision that does it.
pub(super) async fn approve(session: &Session, text: &str) -> Result<QueryStream, EngineError> {
    let id = decision("approve", text)?;
    counts(&[("decision", session.inner.the_loop.approve(id).await?)])
}

/// Takes a step back; answers the decision that does it.
pub(super) async fn undo(session: &Session, text: &str) -> Result<QueryStream, EngineError> {
    let id = decision("undo", text)?;
    counts(&[("decision", session.inner.the_loop.undo(id).await?)])
}

fn decision(name: &str, text: &str) -> Result<u64, EngineError> {
    let number = text.parse().ok();
    number.ok_or_else(|| {
        invalid(format!("the argument of {name} must be an id of system.decisions, not {text:?}"))
    })
}
