//! `SELECT * FROM what_if('nodes', 2, 'factor', 3, 'function', 'embed')`: the steps that would be planned next if
//! something were otherwise, as names and values in any order. It changes nothing.
//!
//! | name | value |
//! |---|---|
//! | `nodes` | nodes that stay |
//! | `memory` | bytes that each node may hold |
//! | `budget` | share of a tick that background compute may use on each node |
//! | `factor` | factor on the calls of all coming ticks; nothing where the mode does not look ahead |
//! | `function` | only calls of this function are multiplied |

use std::fmt;
use std::sync::{Arc, Weak};

use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{Result, ScalarValue, exec_datafusion_err};
use datafusion::datasource::MemTable;
use datafusion::logical_expr::Expr;
use datafusion::prelude::SessionContext;
use foreshard_actors::manager::FORECAST_WAIT_TICKS;
use foreshard_actors::ports::Cluster;
use foreshard_policy::decision::By;
use foreshard_policy::reshape::Planned;
use foreshard_policy::what_if::{Picture, WhatIf};

use crate::catalog::system::Sheet;
use crate::catalog::ticks::{known_function, text, wrong};
use crate::engine::Inner;
use crate::error::EngineError;

const NAME: &str = "what_if";

/// The function. It knows the engine weakly, because the engine's sessions hold it.
struct Supposing {
    engine: Weak<Inner>,
}

impl fmt::Debug for Supposing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)
    }
}

/// Lets a session use it.
pub(crate) fn install(context: &SessionContext, engine: &Arc<Inner>) {
    context.register_udtf(NAME, Arc::new(Supposing { engine: Arc::downgrade(engine) }));
}

impl TableFunctionImpl for Supposing {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let engine = self.engine.upgrade();
        let engine = engine.ok_or_else(|| exec_datafusion_err!("the engine has stopped"))?;
        let batch = sheet(&steps(&engine, &supposed(&engine, args.exprs())?)?).finish()?;
        Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
    }
}

/// The arguments, checked but for their bounds.
fn supposed(engine: &Inner, arguments: &[Expr]) -> Result<WhatIf, EngineError> {
    let mut what_if = WhatIf::default();
    let (pairs, rest) = arguments.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(usage("a name has no value"));
    }
    for [name, value] in pairs {
        let name =
            text(NAME, "name of an", "one of nodes, memory, budget, factor, function", name)?;
        match name.as_str() {
            "nodes" => what_if.nodes = Some(whole(&name, value)?),
            "memory" => what_if.memory_bytes = Some(whole(&name, value)?),
            "budget" => what_if.budget_share = Some(number(&name, value)?),
            "factor" => what_if.factor = Some(number(&name, value)?),
            "function" => {
                let function = text(NAME, &name, "the name of a function", value)?;
                known_function(engine, &function)?;
                what_if.function = Some(function.into());
            }
            other => return Err(usage(&format!("there is no {other:?}"))),
        }
    }
    if what_if.function.is_some() && what_if.factor.is_none() {
        return Err(usage("a function needs a factor"));
    }
    Ok(what_if)
}

fn usage(problem: &str) -> EngineError {
    EngineError::Invalid {
        message: format!(
            "{NAME}: {problem}; it takes names and values, such as {NAME}('nodes', 2, 'memory', \
             1073741824, 'budget', 0.25, 'factor', 3, 'function', 'embed')"
        ),
    }
}

fn number(name: &str, given: &Expr) -> Result<f64, EngineError> {
    let number = match given {
        Expr::Literal(ScalarValue::Int64(Some(number)), _) => Some(*number as f64),
        Expr::Literal(ScalarValue::UInt64(Some(number)), _) => Some(*number as f64),
        Expr::Literal(ScalarValue::Float64(Some(number)), _) => Some(*number),
        _ => None,
    };
    number.ok_or_else(|| wrong(NAME, name, "a number", given))
}

fn whole<T: TryFrom<i128>>(name: &str, given: &Expr) -> Result<T, EngineError> {
    let number = match given {
        Expr::Literal(ScalarValue::Int64(Some(number)), _) => Some(i128::from(*number)),
        Expr::Literal(ScalarValue::UInt64(Some(number)), _) => Some(i128::from(*number)),
        _ => None,
    };
    let number = number.and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| wrong(NAME, name, "a whole number from 0 on", given))
}

fn steps(engine: &Inner, what_if: &WhatIf) -> Result<Vec<(By, Planned)>, EngineError> {
    let the_loop = &engine.the_loop;
    let board = the_loop.board();
    let (forecast, now) = (the_loop.forecast(), the_loop.last_tick());
    // As the manager, which plans without a forecast that is late; at first there is none.
    let is_known = forecast.tick_ms > 0 && now.0 <= forecast.at.0 + FORECAST_WAIT_TICKS;
    let picture = Picture {
        view: &engine.members.view(),
        forecast: is_known.then_some(&*forecast),
        reshape: &board.reshaping.load(),
        allocate: &board.allocating.load(),
        config: &the_loop.config(),
        now,
    };
    Ok(what_if.steps(picture).map_err(crate::config::ConfigError::from)?)
}

fn sheet(steps: &[(By, Planned)]) -> Sheet {
    let rows = || steps.iter();
    let planned = || steps.iter().map(|(_, planned)| planned);
    Sheet::default()
        .text("kind", planned().map(|it| it.step.kind()))
        .text("target", planned().map(|it| &it.step))
        .text("decided_by", rows().map(|(by, _)| by))
        .text("reason", planned().map(|it| it.reason))
        .text("inputs", planned().map(|it| &it.inputs))
        .text("forecast", planned().map(|it| &it.forecast))
        .text("alternatives", planned().map(|it| it.alternatives.join("; ")))
        .number("expected_benefit_ns", planned().map(|it| it.worth.benefit_ns))
        .number("expected_cost_ns", planned().map(|it| it.worth.cost_ns))
        .number("bytes", planned().map(|it| it.worth.bytes))
}
