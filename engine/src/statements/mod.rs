//! What each kind of statement does: queries are handed back to be run, everything else is done here.

mod announce;
pub(crate) mod call;
mod colocate;
mod control;
mod create;
mod dml;
pub(crate) mod files;
mod history;
mod partitions;
mod schemas;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{DdlStatement, LogicalPlan, Statement as PlannedStatement};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::dialect::dialect_from_str;

use crate::catalog::Catalog;
use crate::error::EngineError;
use crate::query::context::QueryContext;
use crate::query_stream::QueryStream;
use crate::session::Session;
pub(crate) use crate::statements::history::moment;
pub(crate) use crate::statements::schemas::table_name;

/// What is left to do for a statement.
pub(crate) enum Done {
    /// Nothing: this is its answer.
    Stream(QueryStream),
    /// Run this query.
    Query(LogicalPlan),
}

/// Parses exactly one statement.
pub(crate) fn parse_one(state: &SessionState, sql: &str) -> Result<Statement, EngineError> {
    let options = &state.config_options().sql_parser;
    let dialect = dialect_from_str(options.dialect.as_ref());
    let dialect = dialect.ok_or_else(|| EngineError::NotSupported {
        message: format!("SQL dialect {}", options.dialect.as_ref()),
    })?;
    let mut statements = DFParserBuilder::new(sql)
        .with_dialect(dialect.as_ref())
        .with_recursion_limit(options.recursion_limit.get())
        .build()
        .and_then(|mut parser| parser.parse_statements())
        .map_err(EngineError::from_datafusion)?;
    match (statements.len(), statements.pop_front()) {
        (1, Some(statement)) => Ok(statement),
        (found, _) => Err(EngineError::NotOneStatement { found }),
    }
}

/// Names and types of a plan's parameters in the order of their numbers.
pub(crate) fn parameters(plan: &LogicalPlan) -> Result<Vec<(String, DataType)>, EngineError> {
    let types: HashMap<String, Option<DataType>> = plan.get_parameter_types()?;
    let mut numbered: Vec<(usize, String, Option<DataType>)> = types
        .into_iter()
        .map(|(name, data_type)| {
            let number = name.trim_start_matches('$').parse().unwrap_or(usize::MAX);
            (number, name, data_type)
        })
        .collect();
    numbered.sort();
    for (position, (number, name, _)) in numbered.iter().enumerate() {
        if *number != position + 1 {
            return Err(EngineError::Invalid {
                message: format!("parameter {name} is used but ${} is not", position + 1),
            });
        }
    }
    // A parameter whose type nothing tells is text, as in PostgreSQL.
    let typed = |(_, name, data_type): (usize, String, Option<DataType>)| {
        (name, data_type.unwrap_or(DataType::Utf8))
    };
    Ok(numbered.into_iter().map(typed).collect())
}

/// Does what is not a query; `sql` is its text.
pub(crate) async fn run(
    session: &Session,
    state: &SessionState,
    plan: LogicalPlan,
    sql: &str,
    query: &Arc<QueryContext>,
) -> Result<Done, EngineError> {
    match plan {
        LogicalPlan::Dml(statement) => {
            let rows = dml::run(session, state, statement, query).await?;
            Ok(Done::Stream(QueryStream::affected(rows)?))
        }
        LogicalPlan::Ddl(statement) => {
            define(session, state, statement, sql, query).await?;
            Ok(Done::Stream(QueryStream::empty()))
        }
        LogicalPlan::Statement(PlannedStatement::Execute(_)) => {
            let prepared = session.context.execute_logical_plan(plan).await;
            let prepared = prepared.map_err(|error| session.explain(error))?;
            Ok(Done::Query(prepared.into_unoptimized_plan()))
        }
        LogicalPlan::Statement(
            PlannedStatement::TransactionStart(_) | PlannedStatement::TransactionEnd(_),
        ) => Err(EngineError::NotSupported {
            message: "transactions over several statements; each statement is one".to_owned(),
        }),
        LogicalPlan::Statement(_) => {
            let done = session.context.execute_logical_plan(plan).await;
            done.map_err(|error| session.explain(error))?;
            Ok(Done::Stream(QueryStream::empty()))
        }
        plan => Ok(Done::Query(plan)),
    }
}

async fn define(
    session: &Session,
    state: &SessionState,
    statement: DdlStatement,
    sql: &str,
    query: &Arc<QueryContext>,
) -> Result<(), EngineError> {
    match statement {
        DdlStatement::CreateExternalTable(create) => {
            create::external(session, state, *create, sql).await
        }
        DdlStatement::CreateCatalogSchema(create) => schemas::create(session, &create),
        DdlStatement::DropCatalogSchema(drop) => schemas::drop(session, &drop).await,
        DdlStatement::CreateMemoryTable(create) => {
            create::memory(session, state, create, query).await
        }
        DdlStatement::DropTable(drop) => {
            let name = table_name(session, &drop.name)?;
            create::drop_table(session, &name, drop.if_exists).await
        }
        // A function that is dropped is gone for one client only.
        statement @ (DdlStatement::CreateView(_)
        | DdlStatement::DropView(_)
        | DdlStatement::CreateFunction(_)
        | DdlStatement::DropFunction(_)) => {
            let plan = LogicalPlan::Ddl(statement);
            let done = session.context.execute_logical_plan(plan).await;
            done.map(drop).map_err(|error| session.explain(error))
        }
        other => Err(EngineError::NotSupported { message: other.name().to_owned() }),
    }
}

/// Names of all functions that a session knows.
pub(crate) fn function_names(context: &SessionContext) -> Vec<String> {
    let state = context.state();
    let names = state.scalar_functions().keys().chain(state.aggregate_functions().keys());
    names.chain(state.window_functions().keys()).cloned().collect()
}

/// Names of all columns of all tables.
pub(crate) fn column_names(catalog: &Catalog) -> Vec<String> {
    let fields = catalog.stores().into_iter().flat_map(|store| {
        let fields = store.table().schema.fields().clone();
        fields.iter().map(|field| field.name().clone()).collect::<Vec<_>>()
    });
    fields.collect()
}
