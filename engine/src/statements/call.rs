//! `CALL precompute('table', 'f(x)')`, `CALL drop_stored(['table'])`, `CALL pin_stored('table'[, 'f(x)'])`
//! and `CALL unpin_stored` alike: what people do by hand to stored outputs and partial aggregates. And
//! `CALL announce('f', 5, 'from', 'until')`: what they know of coming calls (`announce`); `CALL
//! export_history('file'[, 'from', 'to'])`, `CALL import_history('file')`: see `history`. What they let the
//! loop do: `CALL control('table', 'suggest')`, `CALL budget('table', 'weight', 2)`, `CALL freeze('table')`, `CALL approve(12)`, `CALL undo(12)`: see
//! `control`. And `CALL split_partition('table', 0[, 'key'])`, `CALL merge_partitions('table', 0, 1)`: see
//! `partitions`. And `CALL colocate('a', 'b')`, `CALL colocate_end('a')`: see `colocate`.

use std::sync::Arc;

use arrow::array::UInt64Array;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use datafusion::common::DFSchema;
use datafusion::execution::SessionState;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Statement as SqlStatement,
    UnaryOperator, Value,
};
use foreshard_actors::expressions::FunctionExpression;
use foreshard_actors::node::Tables;
use foreshard_actors::pins::Pinned;
use foreshard_actors::ports::Outcome;
use foreshard_actors::table::TableStore;
use foreshard_policy::ids::{ExpressionId, NodeId, PartitionId};

use crate::error::EngineError;
use crate::query::functions::{describe, is_storable};
use crate::query_stream::QueryStream;
use crate::session::Session;
use crate::statements::{announce, colocate, control, history, parse_one, partitions};

/// A call with its arguments, numbers among them as their text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Call {
    name: String,
    arguments: Vec<String>,
}

const USAGE: &str = "CALL precompute('table', 'expression'), CALL drop_stored('table'), \
                     CALL drop_stored(), CALL pin_stored('table'), \
                     CALL pin_stored('table', 'expression'), CALL unpin_stored likewise, \
                     CALL announce('function', factor, 'from', 'until'), \
                     CALL unannounce('function'), CALL export_history('file'), \
                     CALL export_history('file', 'from', 'to'), CALL import_history('file'), \
                     CALL control('table', 'auto' or 'suggest' or 'observe' or 'default'), \
                     CALL budget('table', 'weight' or 'limit', number or 'default'), \
                     CALL freeze('table'), CALL unfreeze('table'), CALL approve(decision), \
                     CALL undo(decision), CALL split_partition('table', partition), \
                     CALL split_partition('table', partition, 'key'), \
                     CALL merge_partitions('table', partition, partition), \
                     CALL colocate('table', 'table', ..), or CALL colocate_end('table')";

/// The call that `sql` is; `None` if it is another statement.
pub(crate) fn parse(state: &SessionState, sql: &str) -> Result<Option<Call>, EngineError> {
    let is_call =
        sql.split_whitespace().next().is_some_and(|word| word.eq_ignore_ascii_case("call"));
    if !is_call {
        return Ok(None);
    }
    let Statement::Statement(statement) = parse_one(state, sql)? else { return Ok(None) };
    let SqlStatement::Call(Function { name, args, .. }) = *statement else { return Ok(None) };
    let arguments = match args {
        FunctionArguments::List(list) => list.args,
        _ => vec![],
    };
    let text = |argument: FunctionArg| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(argument)) => written(argument),
        _ => None,
    };
    let arguments: Option<Vec<String>> = arguments.into_iter().map(text).collect();
    let arguments =
        arguments.ok_or_else(|| invalid(format!("arguments are texts and numbers: {USAGE}")))?;
    Ok(Some(Call { name: name.to_string().to_ascii_lowercase(), arguments }))
}

/// A literal as it was written, without its quotes.
fn written(argument: Expr) -> Option<String> {
    match argument {
        Expr::Value(value) => match value.value {
            Value::SingleQuotedString(text) => Some(text),
            Value::Number(number, _) => Some(number.to_string()),
            _ => None,
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match *expr {
            number @ Expr::Value(_) => written(number).map(|number| format!("-{number}")),
            _ => None,
        },
        _ => None,
    }
}

pub(super) fn invalid(message: String) -> EngineError {
    EngineError::Invalid { message }
}

/// Does it.
pub(crate) async fn run(
    session: &Session,
    state: &SessionState,
    call: Call,
) -> Result<QueryStream, EngineError> {
    let arguments: Vec<&str> = call.arguments.iter().map(String::as_str).collect();
    match (call.name.as_str(), arguments.as_slice()) {
        ("precompute", [table, expression]) => precompute(session, state, table, expression).await,
        ("drop_stored", []) => drop_stored(session, None).await,
        ("drop_stored", [table]) => drop_stored(session, Some(table)).await,
        ("pin_stored", [table]) => pin(session, state, table, None),
        ("pin_stored", [table, expression]) => pin(session, state, table, Some(expression)),
        ("export_history", [file]) => history::export(session, file, None).await,
        ("export_history", [file, from, to]) => {
            history::export(session, file, Some((from, to))).await
        }
        ("import_history", [file]) => history::import(session, file).await,
        ("split_partition", [table, partition]) => {
            partitions::split(session, table, partition, None).await
        }
        ("split_partition", [table, partition, key]) => {
            partitions::split(session, table, partition, Some(key)).await
        }
        ("merge_partitions", [table, one, other]) => {
            partitions::merge(session, table, one, other).await
        }
        ("unpin_stored", [table]) => unpin(session, state, table, None),
        ("unpin_stored", [table, expression]) => unpin(session, state, table, Some(expression)),
        ("announce", [function, factor, from, until]) => {
            let spans = announce::announce(session, function, factor, [from, until]).await?;
            counts(&[("announced", spans)])
        }
        ("unannounce", [function]) => {
            let spans = announce::unannounce(session, function).await?;
            counts(&[("taken_back", spans)])
        }
        ("control", [table, text]) => control::control(session, table, text).await,
        ("budget", [table, what, text]) => control::budget(session, table, what, text).await,
        ("freeze", [table]) => control::freeze(session, table, true).await,
        ("unfreeze", [table]) => control::freeze(session, table, false).await,
        ("approve", [decision]) => control::approve(session, decision).await,
        ("colocate", tables) if tables.len() > 1 => colocate::colocate(session, tables).await,
        ("colocate_end", [table]) => colocate::end(session, table).await,
        ("undo", [decision]) => control::undo(session, decision).await,
        (name, arguments) => {
            let given = arguments.len();
            Err(invalid(format!("there is no procedure {name} with {given} arguments: {USAGE}")))
        }
    }
}

/// Computes and stores an expression on every partition of a table that lacks it.
async fn precompute(
    session: &Session,
    state: &SessionState,
    table: &str,
    expression: &str,
) -> Result<QueryStream, EngineError> {
    let store = store(session, table)?;
    let expression = expression_of(session, state, &store, expression)?;
    let (name, id) = (Arc::clone(&store.table().name), expression.id);
    let members = &session.inner.members;
    drop(members.expressions().remember(expression));
    let (mut rows, mut bytes, mut ns) = (0, 0, 0);
    for ordinal in store.snapshot().layout.ordinals() {
        let partition = PartitionId::new(Arc::clone(&name), *ordinal);
        match members.precompute(id, &partition).await {
            Outcome::Done { rows: r, bytes: b, ns: n } => {
                rows += r;
                bytes += b;
                ns += n;
            }
            Outcome::Reshaped { .. } => {}
            Outcome::Failed { code, reason } => {
                return Err(invalid(format!("{partition}: {reason} ({code})")));
            }
        }
    }
    counts(&[("rows", rows), ("bytes", bytes), ("ns", ns)])
}

/// Throws away what is stored for a table, or for all.
async fn drop_stored(session: &Session, table: Option<&str>) -> Result<QueryStream, EngineError> {
    let members = &session.inner.members;
    table.map(|table| store(session, table)).transpose()?;
    let mut dropped = session.inner.groups.forget(table);
    for partition in members.placement().holders.keys() {
        if table.is_none_or(|table| *partition.table == *table) {
            let done = members.drop_outputs(None, partition).await;
            dropped += done.map_err(|error| invalid(format!("{partition}: {error}")))?;
        }
    }
    counts(&[("dropped", dropped)])
}

pub(super) fn store(session: &Session, table: &str) -> Result<Arc<dyn TableStore>, EngineError> {
    let unknown = || EngineError::UnknownTable { name: table.to_owned(), nearest: None };
    session.inner.catalog.store(table).ok_or_else(unknown)
}

/// The expression that is written as `text`, if its outputs may be stored.
fn expression_of(
    session: &Session,
    state: &SessionState,
    store: &Arc<dyn TableStore>,
    text: &str,
) -> Result<FunctionExpression, EngineError> {
    let columns = DFSchema::try_from(store.table().schema.as_ref().clone())?;
    let explain = |error| session.explain(error);
    let planned = state.create_logical_expr(text, &columns).map_err(explain)?;
    let planned = state.create_physical_expr(planned, &columns).map_err(explain)?;
    if !is_storable(&planned) {
        return Err(invalid(format!(
            "{text} is not stored: it must be a call of a registered immutable function of columns"
        )));
    }
    Ok(describe(&planned, &store.table().name, state.config_options())?)
}

/// Keeps the outputs of an expression, or all that is stored for a table, from giving way: what is there
/// and what comes.
fn pin(
    session: &Session,
    state: &SessionState,
    table: &str,
    expression: Option<&str>,
) -> Result<QueryStream, EngineError> {
    let store = store(session, table)?;
    let name = Arc::clone(&store.table().name);
    let members = &session.inner.members;
    let mut pinned = Pinned::clone(&members.expressions().pins.all());
    let (mut newly, text) = (Pinned::default(), expression.unwrap_or("everything").to_owned());
    match expression {
        None => drop(newly.tables.insert(Arc::clone(&name))),
        Some(expression) => {
            let expression = expression_of(session, state, &store, expression)?;
            newly.expressions.insert(expression.id);
            // So that it is forgotten with its function or its table.
            drop(members.expressions().remember(expression));
        }
    }
    let add = |pinned: &mut Pinned| {
        pinned.tables.extend(newly.tables.iter().cloned());
        pinned.expressions.extend(newly.expressions.iter().copied());
    };
    add(&mut pinned);
    for (node, _, bytes, bytes_max) in members.held_if(&pinned) {
        if bytes > bytes_max {
            return Err(invalid(format!(
                "{text} of {name} cannot be pinned: {node} would hold {bytes} bytes that are pinned; \
                 it has {bytes_max} (loop.allocate.memory-bytes)"
            )));
        }
    }
    members.pin(add);
    held(session, &newly)
}

/// Lets what was pinned give way again.
fn unpin(
    session: &Session,
    state: &SessionState,
    table: &str,
    expression: Option<&str>,
) -> Result<QueryStream, EngineError> {
    let store = store(session, table)?;
    let members = &session.inner.members;
    let known = members.expressions();
    let mut gone = Pinned::default();
    match expression {
        Some(text) => {
            gone.expressions.insert(expression_of(session, state, &store, text)?.id);
        }
        None => {
            let name = &store.table().name;
            gone.tables.insert(Arc::clone(name));
            let is_of_table =
                |id: &ExpressionId| known.get(*id).is_some_and(|it| it.table == *name);
            gone.expressions = known.pins.all().expressions.iter().copied().collect();
            gone.expressions.retain(is_of_table);
        }
    }
    members.pin(|pinned| {
        pinned.tables.retain(|table| !gone.tables.contains(table));
        pinned.expressions.retain(|expression| !gone.expressions.contains(expression));
    });
    held(session, &gone)
}

/// How much is held of what these pins name.
fn held(session: &Session, pinned: &Pinned) -> Result<QueryStream, EngineError> {
    let held = session.inner.members.held_if(pinned);
    let sum = |of: fn(&(NodeId, u64, u64, u64)) -> u64| held.iter().map(of).sum();
    counts(&[("stored", sum(|node| node.1)), ("bytes", sum(|node| node.2))])
}

/// One row of numbers.
pub(super) fn counts(columns: &[(&str, u64)]) -> Result<QueryStream, EngineError> {
    let field = |(name, _): &(&str, u64)| Field::new(*name, DataType::UInt64, false);
    let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
    let value = |(_, value): &(&str, u64)| Arc::new(UInt64Array::from(vec![*value])) as _;
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns.iter().map(value).collect())?;
    Ok(QueryStream::of(schema, vec![batch]))
}
