//! On whose behalf a function is called: a query that may be over while an answer is waited for.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Weak};

use datafusion::common::{Result, config_err};
use datafusion::config::{ConfigEntry, ConfigExtension, ConfigOptions, ExtensionOptions};

/// Who waits for the answer of a function.
pub trait Caller: fmt::Debug + Send + Sync {
    /// True once nobody wants the answer any more.
    fn is_gone(&self) -> bool;
}

/// Tells an asynchronous function, through the settings that DataFusion hands it, who waits for its
/// answer. Where it has to hold up a thread it looks every 20 ms whether somebody still does.
///
/// The caller is known only while it lives: settings outlive the query that they are of.
#[derive(Debug, Clone, Default)]
pub struct CalledBy(Option<Weak<dyn Caller>>);

impl CalledBy {
    /// Called for `caller`.
    #[must_use]
    pub fn new(caller: &Arc<impl Caller + 'static>) -> Self {
        let caller: Arc<dyn Caller> = caller.clone();
        Self(Some(Arc::downgrade(&caller)))
    }

    /// Who calls with these settings, if it still lives. A call keeps it until it ends: what is gone for
    /// good could not tell any more that it is.
    pub(crate) fn caller(settings: &ConfigOptions) -> Option<Arc<dyn Caller>> {
        Self::known(settings)?.upgrade()
    }

    /// The same, whether it lives or not.
    pub(crate) fn known(settings: &ConfigOptions) -> Option<Weak<dyn Caller>> {
        settings.extensions.get::<Self>()?.0.clone()
    }
}

impl ConfigExtension for CalledBy {
    const PREFIX: &'static str = "foreshard_call";
}

impl ExtensionOptions for CalledBy {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(self.clone())
    }

    fn set(&mut self, key: &str, _value: &str) -> Result<()> {
        config_err!("{}.{key} is no setting", Self::PREFIX)
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        vec![]
    }
}
