//! `SELECT * FROM forecast('embed', 12)` and `SELECT * FROM past('embed', 100)`: what is expected of a
//! function in the coming ticks, and how often it was called in the last ones, on all partitions together.
//!
//! Quantiles of the sum follow from those of the parts and from how much the parts went together in the
//! past: see [`foreshard_policy::forecast::function`].

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Weak};

use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{Result, ScalarValue, exec_datafusion_err};
use datafusion::datasource::MemTable;
use datafusion::logical_expr::Expr;
use datafusion::prelude::SessionContext;
use foreshard_policy::forecast::function::{FunctionTick, of_function, past_calls, series_of};
use foreshard_policy::forecast::reason;
use foreshard_policy::ids::Tick;

use crate::catalog::system::Sheet;
use crate::engine::Inner;
use crate::error::{EngineError, nearest};

/// Which ticks are asked about.
#[derive(Clone, Copy, Debug)]
enum Ticks {
    Coming,
    Past,
}

impl Ticks {
    fn name(self) -> &'static str {
        match self {
            Self::Coming => "forecast",
            Self::Past => "past",
        }
    }
}

/// One of the two functions. It knows the engine weakly, because the engine's sessions hold it.
struct TicksOf {
    engine: Weak<Inner>,
    ticks: Ticks,
}

impl fmt::Debug for TicksOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.ticks.name())
    }
}

/// Lets a session use both.
pub(crate) fn install(context: &SessionContext, engine: &Arc<Inner>) {
    for ticks in [Ticks::Coming, Ticks::Past] {
        let function = TicksOf { engine: Arc::downgrade(engine), ticks };
        context.register_udtf(ticks.name(), Arc::new(function));
    }
}

impl TableFunctionImpl for TicksOf {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let engine = self.engine.upgrade();
        let engine = engine.ok_or_else(|| exec_datafusion_err!("the engine has stopped"))?;
        let asked = Asked::of(self.ticks, args.exprs(), &engine)?;
        let sheet = match self.ticks {
            Ticks::Coming => coming(&engine, &asked),
            Ticks::Past => past(&engine, &asked),
        };
        let batch = sheet.finish()?;
        Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
    }
}

/// The arguments, checked.
#[derive(Debug)]
struct Asked {
    function: String,
    ticks: usize,
    table: Option<String>,
}

impl Asked {
    fn of(ticks: Ticks, arguments: &[Expr], engine: &Inner) -> Result<Self, EngineError> {
        let name = ticks.name();
        let config = engine.the_loop.config();
        let (most, setting) = match ticks {
            Ticks::Coming => (config.horizon_ticks(), "loop.horizon-ticks"),
            Ticks::Past => (config.history_ticks_max(), "loop.history-ticks-max"),
        };
        let (function, number, table) = match arguments {
            [function] => (function, None, None),
            [function, number] => (function, Some(number), None),
            [function, number, table] => (function, Some(number), Some(table)),
            other => {
                let given = other.len();
                return Err(EngineError::Invalid {
                    message: format!(
                        "{name} takes a function, how many ticks, and a table, of which the last two may \
                         be left out: {name}('embed', 12, 'trades'); {given} arguments were given"
                    ),
                });
            }
        };
        let asked = Self {
            function: text(name, "first", "the name of a function", function)?,
            ticks: number.map_or(Ok(most), |number| {
                ticks_within(name, most, setting, whole_number(name, number)?)
            })?,
            table: table
                .map(|table| text(name, "third", "the name of a table", table))
                .transpose()?,
        };
        asked.check_names(engine)?;
        Ok(asked)
    }

    fn check_names(&self, engine: &Inner) -> Result<(), EngineError> {
        known_function(engine, &self.function)?;
        let Some(table) = &self.table else { return Ok(()) };
        let names = engine.catalog.names();
        if names.contains(table) {
            return Ok(());
        }
        let nearest = nearest(table, names.iter().map(String::as_str)).map(ToOwned::to_owned);
        Err(EngineError::UnknownTable { name: table.clone(), nearest })
    }
}

/// Refuses the name of a function that is neither registered nor remembered.
pub(crate) fn known_function(engine: &Inner, name: &str) -> Result<(), EngineError> {
    let registered = engine.functions.list();
    let history = engine.the_loop.history();
    let registered = registered.iter().map(|listed| listed.card.name.as_str());
    let called = history.series.iter().map(|series| &*series.key.function);
    let names: BTreeSet<&str> = registered.chain(called).collect();
    if names.contains(name) {
        return Ok(());
    }
    let nearest = nearest(name, names).map(ToOwned::to_owned);
    Err(EngineError::UnknownFunction { name: name.to_owned(), nearest })
}

pub(super) fn wrong(name: &str, which: &str, what: &str, given: &Expr) -> EngineError {
    let given = match given {
        Expr::Literal(value, _) => format!("{value}, a {}", value.data_type()),
        other => other.to_string(),
    };
    EngineError::Type {
        message: format!("the {which} argument of {name} must be {what}, not {given}"),
    }
}

pub(super) fn text(
    name: &str,
    which: &str,
    what: &str,
    given: &Expr,
) -> Result<String, EngineError> {
    let value = match given {
        Expr::Literal(value, _) => value.try_as_str().flatten(),
        _ => None,
    };
    value.map(ToOwned::to_owned).ok_or_else(|| wrong(name, which, what, given))
}

fn whole_number(name: &str, given: &Expr) -> Result<i128, EngineError> {
    let number = match given {
        Expr::Literal(ScalarValue::Int64(Some(number)), _) => Some(i128::from(*number)),
        Expr::Literal(ScalarValue::UInt64(Some(number)), _) => Some(i128::from(*number)),
        _ => None,
    };
    number.ok_or_else(|| wrong(name, "second", "a number of ticks", given))
}

fn ticks_within(name: &str, most: usize, setting: &str, given: i128) -> Result<usize, EngineError> {
    let ticks = usize::try_from(given).ok().filter(|ticks| (1..=most).contains(ticks));
    ticks.ok_or_else(|| EngineError::Invalid {
        message: format!("{name} over {given} ticks; it must be 1 to {most} ({setting})"),
    })
}

fn coming(engine: &Inner, asked: &Asked) -> Sheet {
    let the_loop = &engine.the_loop;
    let (forecast, moments) = (the_loop.forecast(), the_loop.moments());
    let mut ticks =
        of_function(&forecast, &the_loop.history(), &asked.function, asked.table.as_deref());
    ticks.truncate(asked.ticks);
    let reason = reason(&forecast, series_of(&forecast, &asked.function, asked.table.as_deref()));
    let rows = || ticks.iter();
    let number = |of: fn(&FunctionTick) -> f64| ticks.iter().map(of);
    Sheet::default()
        .count("tick", rows().map(|row| row.tick.0))
        .moment("at", rows().map(|row| moments.start_ms(row.tick)))
        .number("calls_q10", number(|row| row.calls.q10))
        .number("calls_q50", number(|row| row.calls.q50))
        .number("calls_q90", number(|row| row.calls.q90))
        .number("concurrency", number(|row| row.concurrency))
        .flag("trusted", rows().map(|_| forecast.trusted))
        .text("reason", rows().map(|_| &reason))
}

fn past(engine: &Inner, asked: &Asked) -> Sheet {
    let (history, moments) = (engine.the_loop.history(), engine.the_loop.moments());
    let parts = past_calls(&history, asked.ticks, |key| {
        *key.function == *asked.function
            && asked.table.as_ref().is_none_or(|table| *key.partition.table == **table)
    });
    let ticks = parts.iter().map(Vec::len).max().unwrap_or(0);
    let first = history.at.0 + 1 - ticks as u64;
    let calls = |at: usize| parts.iter().filter_map(|part| part.get(at)).sum::<f64>();
    let rows = || (first..).take(ticks);
    Sheet::default()
        .count("tick", rows())
        .moment("at", rows().map(|tick| moments.start_ms(Tick(tick))))
        .number("calls", (0..ticks).map(calls))
}
