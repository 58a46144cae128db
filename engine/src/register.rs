//! Functions of users: registered and redefined while the engine runs.

use datafusion::logical_expr::async_udf::AsyncScalarUDF;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use foreshard_udfs::{AsyncOptions, Card, FunctionVersion};

use crate::engine::Engine;
use crate::error::EngineError;

impl Engine {
    /// Registers an aggregate function, or a new version of one: states of the old one are never used
    /// again.
    ///
    /// # Errors
    /// If the card does not fit the function.
    pub fn register_aggregate(
        &self,
        card: Card,
        udaf: AggregateUDF,
    ) -> Result<FunctionVersion, EngineError> {
        Ok(self.inner.functions.register_aggregate(card, udaf)?)
    }

    /// Registers a function, or a new version of one: outputs of the old one are never used again.
    ///
    /// # Errors
    /// If the card does not fit the function.
    pub fn register_function(
        &self,
        card: Card,
        udf: ScalarUDF,
    ) -> Result<FunctionVersion, EngineError> {
        let name = card.name.clone();
        let version = self.inner.functions.register(card, udf)?;
        self.follow(&name);
        Ok(version)
    }

    /// Registers a function that waits for something else, such as a model behind HTTP, or a new
    /// version of one. It is called like any other function, and what it answers is stored likewise;
    /// `options` say how much it is asked at a time, how long it may take, and how often it is asked
    /// again.
    ///
    /// Each process of a cluster registers it for itself, and has limits of its own.
    ///
    /// # Errors
    /// If the card does not fit the function, or an option is out of its bounds.
    pub fn register_async_function(
        &self,
        card: Card,
        udf: AsyncScalarUDF,
        options: AsyncOptions,
    ) -> Result<FunctionVersion, EngineError> {
        let name = card.name.clone();
        let version = self.inner.functions.register_async(card, udf, options)?;
        self.follow(&name);
        Ok(version)
    }

    /// Has what was called of a function be expected of its new body.
    fn follow(&self, name: &str) {
        let Some(function) = self.inner.functions.get(name) else { return };
        for what in self.inner.members.redefined(&function) {
            self.inner.the_loop.follow(what);
        }
    }
}
