//! Where forecasts come from: a server that runs, or the data folder of one that does not.

use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, TimestampMillisecondType};
use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use datafusion::error::DataFusionError;
use foreshard_actors::kept::{self, Kept};
use foreshard_policy::forecast::Forecast;
use futures::TryStreamExt;
use tonic::transport::{Channel, Endpoint};

use super::past_ticks;
use super::shown::{Coming, Past, Shown};
use crate::config::Config;
use crate::error::{EngineError, nearest};

/// Longest wait for a server to take a connection.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Functions that are listed, those first of which most calls are expected.
const FUNCTIONS_MAX: usize = 40;

/// One of the two.
pub(super) enum Source {
    Server(Box<FlightSqlServiceClient<Channel>>),
    Folder(Box<Kept>),
}

impl Source {
    /// Connects to a server.
    pub(super) async fn server(address: &str) -> Result<Self, EngineError> {
        let failed = |reason: String| EngineError::Address { address: address.to_owned(), reason };
        let host = address.split_once("://").map_or(address, |(_, host)| host);
        let endpoint = Endpoint::from_shared(format!("http://{host}"));
        let endpoint = endpoint.map_err(|error| failed(error.to_string()))?;
        let connected = endpoint.connect_timeout(CONNECT_MAX).connect().await;
        let channel = connected.map_err(|error| {
            // Its own text says "transport error" only.
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            failed(cause.unwrap_or_else(|| error.to_string()))
        })?;
        Ok(Self::Server(Box::new(FlightSqlServiceClient::new(channel))))
    }

    /// Reads the data folder of an engine that does not run; nothing in it is changed.
    pub(super) async fn folder(config: &Config) -> Result<Self, EngineError> {
        let folder = config.data_dir().join("loop");
        let settings = config.loop_config().clone();
        let path = folder.display().to_string();
        let looking = tokio::task::spawn_blocking(move || kept::look(&settings, &folder));
        let kept = looking.await.map_err(|error| EngineError::Io { message: error.to_string() })?;
        match kept.map_err(|error| EngineError::Damaged { message: error.to_string() })? {
            Some(kept) => Ok(Self::Folder(Box::new(kept))),
            None => Err(EngineError::Missing { path }),
        }
    }

    /// Functions of which calls are expected, those with most first.
    pub(super) async fn functions(&mut self) -> Result<Vec<String>, EngineError> {
        match self {
            Self::Server(client) => {
                let sql = format!(
                    "SELECT function FROM system.forecasts GROUP BY function \
                     ORDER BY sum(calls_q50) DESC, function LIMIT {FUNCTIONS_MAX}"
                );
                let batches = ask(client, sql).await?;
                let names = batches.iter().flat_map(|batch| {
                    let names = batch.column(0).as_string_opt::<i32>();
                    let names = names.into_iter().flat_map(|names| names.iter().flatten());
                    names.map(ToOwned::to_owned).collect::<Vec<_>>()
                });
                Ok(names.collect())
            }
            Self::Folder(kept) => Ok(busiest(&kept.forecast)),
        }
    }

    /// One function, as far ahead as is asked for.
    pub(super) async fn function(
        &mut self,
        function: &str,
        horizon: Option<usize>,
    ) -> Result<Shown, EngineError> {
        match self {
            Self::Server(client) => of_server(client, function, horizon).await,
            Self::Folder(kept) => of_folder(kept, function, horizon),
        }
    }
}

/// Functions by the calls that are expected of them.
fn busiest(forecast: &Forecast) -> Vec<String> {
    let mut calls = std::collections::BTreeMap::<&str, f64>::new();
    for series in &forecast.series {
        *calls.entry(&series.key.function).or_default() +=
            series.calls.iter().map(|tick| tick.q50).sum::<f64>();
    }
    let mut calls: Vec<_> = calls.into_iter().collect();
    calls.sort_by(|a, b| b.1.total_cmp(&a.1));
    calls.into_iter().take(FUNCTIONS_MAX).map(|(function, _)| function.to_owned()).collect()
}

fn of_folder(kept: &Kept, function: &str, horizon: Option<usize>) -> Result<Shown, EngineError> {
    let names = || kept.history.series.iter().map(|series| &*series.key.function);
    if !names().any(|name| name == function) {
        let nearest = nearest(function, names()).map(ToOwned::to_owned);
        return Err(EngineError::UnknownFunction { name: function.to_owned(), nearest });
    }
    let most = kept.horizon;
    let horizon = horizon.unwrap_or(most);
    if !(1..=most).contains(&horizon) {
        return Err(EngineError::Invalid {
            message: format!(
                "forecast over {horizon} ticks; it must be 1 to {most} (loop.horizon-ticks)"
            ),
        });
    }
    let ticks = (past_ticks(horizon), horizon);
    Ok(Shown::of(function, ticks, &kept.history, &kept.forecast, &kept.moments))
}

async fn of_server(
    client: &mut FlightSqlServiceClient<Channel>,
    function: &str,
    horizon: Option<usize>,
) -> Result<Shown, EngineError> {
    let name = function.replace('\'', "''");
    let ticks = horizon.map_or_else(String::new, |ticks| format!(", {ticks}"));
    let coming = ask(client, format!("SELECT * FROM forecast('{name}'{ticks})")).await?;
    let horizon = coming.iter().map(RecordBatch::num_rows).sum();
    let sql = format!(
        "SELECT * FROM (SELECT * FROM past('{name}') ORDER BY tick DESC LIMIT {}) AS newest \
         ORDER BY tick",
        past_ticks(horizon)
    );
    let past = ask(client, sql).await?;
    let mut shown = Shown { function: function.to_owned(), ..Shown::default() };
    for batch in &past {
        let calls = numbers(batch, "calls");
        let ticks = moments(batch).into_iter().zip(calls);
        shown.past.extend(ticks.map(|(at_ms, calls)| Past { at_ms, calls }));
    }
    for batch in &coming {
        let [q10, q50, q90, concurrency] =
            ["calls_q10", "calls_q50", "calls_q90", "concurrency"].map(|name| numbers(batch, name));
        let at = |of: &[f64], row: usize| of.get(row).copied().unwrap_or(0.0);
        shown.coming.extend(moments(batch).into_iter().enumerate().map(|(row, at_ms)| Coming {
            at_ms,
            q10: at(&q10, row),
            q50: at(&q50, row),
            q90: at(&q90, row),
            concurrency: at(&concurrency, row),
        }));
        let reasons = batch.column_by_name("reason").and_then(|it| it.as_string_opt::<i32>());
        if let Some(reason) = reasons.and_then(|reasons| reasons.iter().flatten().next()) {
            reason.clone_into(&mut shown.reason);
        }
    }
    Ok(shown)
}

async fn ask(
    client: &mut FlightSqlServiceClient<Channel>,
    sql: String,
) -> Result<Vec<RecordBatch>, EngineError> {
    let mut batches = Vec::new();
    let info = client.execute(sql, None).await.map_err(told)?;
    for endpoint in info.endpoint {
        let Some(ticket) = endpoint.ticket else { continue };
        let rows = client.do_get(ticket).await.map_err(told)?;
        batches.extend(rows.try_collect::<Vec<_>>().await.map_err(told)?);
    }
    Ok(batches)
}

/// What the server said, with its code.
fn told(error: FlightError) -> EngineError {
    let text = match &error {
        FlightError::Tonic(status) => status.message().to_owned(),
        other => other.to_string(),
    };
    EngineError::from_datafusion(DataFusionError::External(text.into()))
}

fn numbers(batch: &RecordBatch, name: &str) -> Vec<f64> {
    let column = batch.column_by_name(name).and_then(|it| it.as_primitive_opt::<Float64Type>());
    column.map_or_else(Vec::new, |column| column.values().to_vec())
}

fn moments(batch: &RecordBatch) -> Vec<u64> {
    let column = batch.column_by_name("at");
    let column = column.and_then(|it| it.as_primitive_opt::<TimestampMillisecondType>());
    let ms = |ms: &i64| u64::try_from(*ms).unwrap_or(0);
    column.map_or_else(Vec::new, |column| column.values().iter().map(ms).collect())
}
