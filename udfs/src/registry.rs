//! All functions of an engine by name: registered, redefined, looked up, listed.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use datafusion::catalog::{TableFunction, TableFunctionImpl};
use datafusion::logical_expr::async_udf::AsyncScalarUDF;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF, ScalarUDFImpl, Volatility};
use datafusion::prelude::SessionContext;

use crate::asynchronous::{AsyncOptions, Asynchronous, Threads};
use crate::card::Card;
use crate::error::FunctionError;
use crate::meter::Metered;
use crate::registered::{OUTPUT_BYTES_MAX, Registered, registered};
use crate::registered_aggregate::RegisteredAggregate;
use crate::version::FunctionVersion;

/// How a function is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// One answer a row.
    Scalar,
    /// One answer a group.
    Aggregate,
    /// A table, in FROM.
    Table,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Aggregate => "aggregate",
            Self::Table => "table",
        })
    }
}

/// One line of [`Functions::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// What the function says about itself.
    pub card: Card,
    /// How it is called.
    pub kind: Kind,
    /// Which definition it is.
    pub version: FunctionVersion,
    /// True if its outputs may be stored.
    pub is_storable: bool,
    /// True if it was found to lie.
    pub is_quarantined: bool,
    /// What was counted; zero for aggregate and table functions, which are not metered.
    pub metered: Metered,
}

#[derive(Debug, Clone)]
struct Described<F> {
    card: Card,
    version: FunctionVersion,
    function: F,
}

#[derive(Debug, Default)]
struct Shelves {
    scalars: HashMap<String, Arc<ScalarUDF>>,
    aggregates: HashMap<String, Described<Arc<AggregateUDF>>>,
    tables: HashMap<String, Described<Arc<TableFunction>>>,
    /// How often each name was registered, of whatever kind.
    generations: HashMap<String, u64>,
    /// Grows with each registration.
    revision: u64,
    has_asynchronous: bool,
}

/// The functions of one engine. Shared by `Arc`; every method may be called from any thread.
///
/// A scalar function and an aggregate function share their names, as in SQL: registering either
/// replaces the other. Table functions have names of their own, since they stand in FROM.
#[derive(Debug)]
pub struct Functions {
    shelves: RwLock<Shelves>,
    output_bytes_max: usize,
    /// Where asynchronous functions are awaited.
    threads: Arc<Threads>,
}

impl Default for Functions {
    fn default() -> Self {
        let (shelves, threads) = (RwLock::default(), Arc::default());
        Self { shelves, output_bytes_max: OUTPUT_BYTES_MAX, threads }
    }
}

impl Functions {
    /// No functions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All functions of this crate but the embedding, which needs a model.
    #[must_use]
    pub fn library() -> Self {
        let functions = Self::new();
        for (card, udf) in crate::scalars() {
            functions.put_scalar(card, Arc::new(udf));
        }
        for (card, udaf) in crate::aggregates() {
            functions.put_aggregate(card, udaf);
        }
        functions
    }

    /// The same functions with another bound on what functions registered from now on may return in
    /// one batch, in bytes ([`OUTPUT_BYTES_MAX`] by default).
    #[must_use]
    pub fn with_output_bytes_max(mut self, bytes: usize) -> Self {
        self.output_bytes_max = bytes;
        self
    }

    /// Registers a scalar function, or redefines it: the version always changes, the counters start
    /// again and a quarantine ends. Queries that run keep the definition they began with.
    ///
    /// # Errors
    /// [`FunctionError::Register`] if the card tells another name or volatility than the function,
    /// or if the function is asynchronous.
    pub fn register(&self, card: Card, udf: ScalarUDF) -> Result<FunctionVersion, FunctionError> {
        let udf = match registered(&udf) {
            Some(registered) => Arc::clone(registered.inner()),
            None => Arc::new(udf),
        };
        check_name(&card, udf.name())?;
        check_volatility(&card, udf.signature().volatility)?;
        if udf.as_async().is_some() {
            let expected = "one that answers at once; for others there are register_async of the \
                            functions and register_async_function of the engine";
            let expected = expected.to_owned();
            return Err(refusal(&card, "the function", "asynchronous".to_owned(), expected));
        }
        Ok(self.put_scalar(card, udf))
    }

    /// Registers or redefines a function that waits for something else, such as a model behind HTTP:
    /// any asynchronous function of DataFusion. From then on it is a scalar function like any other.
    ///
    /// # Errors
    /// [`FunctionError::Register`] if the card tells another name or volatility than the function, or
    /// if an option is out of its bounds.
    pub fn register_async(
        &self,
        card: Card,
        udf: AsyncScalarUDF,
        options: AsyncOptions,
    ) -> Result<FunctionVersion, FunctionError> {
        check_name(&card, udf.name())?;
        check_volatility(&card, udf.signature().volatility)?;
        let function = Asynchronous::new(udf, options, Arc::clone(&self.threads))?;
        self.write().has_asynchronous = true;
        Ok(self.put_scalar(card, Arc::new(ScalarUDF::from(function))))
    }

    /// Whether an asynchronous function was ever registered.
    #[must_use]
    pub fn has_asynchronous(&self) -> bool {
        self.read().has_asynchronous
    }

    /// Registers or redefines an aggregate function. It is guarded and watched, and not metered.
    ///
    /// # Errors
    /// [`FunctionError::Register`] if the card tells another name than the function.
    pub fn register_aggregate(
        &self,
        card: Card,
        udaf: AggregateUDF,
    ) -> Result<FunctionVersion, FunctionError> {
        check_name(&card, udaf.name())?;
        Ok(self.put_aggregate(card, udaf))
    }

    /// Registers or redefines a table function under its card's name. It is neither guarded nor
    /// metered.
    pub fn register_table(
        &self,
        card: Card,
        function: Arc<dyn TableFunctionImpl>,
    ) -> FunctionVersion {
        let mut shelves = self.write();
        let version = shelves.next_version(&card);
        let name = card.name.clone();
        let function = Arc::new(TableFunction::new(name.clone(), function));
        shelves.tables.insert(name, Described { card, version, function });
        version
    }

    /// The scalar function of this name or alias, as it is defined now.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        let shelves = self.read();
        let by_alias =
            || shelves.scalars.values().find(|udf| udf.aliases().iter().any(|a| a == name));
        shelves.scalars.get(name).or_else(by_alias).map(Arc::clone)
    }

    /// The scalar function of this name, if it is still the definition that the asker means.
    ///
    /// # Errors
    /// [`FunctionError::Unknown`] if no scalar function has the name; [`FunctionError::Version`] if
    /// it was redefined.
    pub fn get_versioned(
        &self,
        name: &str,
        asked: FunctionVersion,
    ) -> Result<Arc<ScalarUDF>, FunctionError> {
        let udf = self.get(name).ok_or_else(|| self.unknown(name))?;
        match registered(&udf).map(Registered::version) {
            Some(current) if current != asked => {
                Err(FunctionError::Version { name: name.to_owned(), asked, current })
            }
            _ => Ok(udf),
        }
    }

    /// The aggregate function of this name.
    #[must_use]
    pub fn aggregate(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.read().aggregates.get(name).map(|described| Arc::clone(&described.function))
    }

    /// The version of an aggregate function, if this very definition is registered.
    #[must_use]
    pub fn aggregate_version(&self, function: &AggregateUDF) -> Option<FunctionVersion> {
        let shelves = self.read();
        let described = shelves.aggregates.get(function.name())?;
        (described.function.as_ref() == function).then_some(described.version)
    }

    /// The table function of this name.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<Arc<TableFunction>> {
        self.read().tables.get(name).map(|described| Arc::clone(&described.function))
    }

    /// All scalar functions, by name: what a new session is made of.
    #[must_use]
    pub fn scalars(&self) -> Vec<Arc<ScalarUDF>> {
        let mut all: Vec<_> = self.read().scalars.values().map(Arc::clone).collect();
        all.sort_by(|left, right| left.name().cmp(right.name()));
        all
    }

    /// All functions, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let shelves = self.read();
        let scalars =
            shelves.scalars.values().filter_map(|udf| registered(udf)).map(|function| Listed {
                card: function.card().clone(),
                kind: Kind::Scalar,
                version: function.version(),
                is_storable: function.is_storable(),
                is_quarantined: function.is_quarantined(),
                metered: function.metered(),
            });
        let aggregates =
            shelves.aggregates.values().map(|one| one.listed(Kind::Aggregate)).collect::<Vec<_>>();
        let tables = shelves.tables.values().map(|one| one.listed(Kind::Table)).collect::<Vec<_>>();
        let mut all: Vec<Listed> = scalars.chain(aggregates).chain(tables).collect();
        all.sort_by(|l, r| (&l.card.name, l.kind).cmp(&(&r.card.name, r.kind)));
        all
    }

    /// The name, of any kind, that comes nearest to `name`; none if it would be a wild guess.
    #[must_use]
    pub fn nearest(&self, name: &str) -> Option<String> {
        let asked = name.to_lowercase();
        let distance_max = 1 + asked.chars().count() / 4;
        let shelves = self.read();
        let names = shelves.generations.keys();
        names
            .map(|known| (strsim::osa_distance(&asked, &known.to_lowercase()), known))
            .filter(|(distance, _)| *distance <= distance_max)
            .min()
            .map(|(_, known)| known.clone())
    }

    /// The error for a name that nothing has.
    #[must_use]
    pub fn unknown(&self, name: &str) -> FunctionError {
        FunctionError::Unknown { name: name.to_owned(), nearest: self.nearest(name) }
    }

    /// A number that grows with each registration.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.read().revision
    }

    /// Makes all functions, as they are defined now, callable in `context`; returns the revision that
    /// they are of.
    pub fn install(&self, context: &SessionContext) -> u64 {
        let shelves = self.read();
        for udf in shelves.scalars.values() {
            context.register_udf(udf.as_ref().clone());
        }
        for described in shelves.aggregates.values() {
            context.register_udaf(described.function.as_ref().clone());
        }
        for (name, described) in &shelves.tables {
            context.register_udtf(name, Arc::clone(described.function.function()));
        }
        shelves.revision
    }

    fn put_scalar(&self, card: Card, udf: Arc<ScalarUDF>) -> FunctionVersion {
        let mut shelves = self.write();
        let version = shelves.next_version(&card);
        let name = card.name.clone();
        let function =
            Registered::new(udf, card, version).with_output_bytes_max(self.output_bytes_max);
        shelves.aggregates.remove(&name);
        shelves.scalars.insert(name, Arc::new(ScalarUDF::from(function)));
        version
    }

    fn put_aggregate(&self, card: Card, udaf: AggregateUDF) -> FunctionVersion {
        let mut shelves = self.write();
        let version = shelves.next_version(&card);
        let function = Arc::new(AggregateUDF::from(RegisteredAggregate::new(udaf, version)));
        let name = card.name.clone();
        shelves.scalars.remove(&name);
        shelves.aggregates.insert(name, Described { card, version, function });
        version
    }

    // A writer that panicked left whole entries only: every change is one insert.
    fn read(&self) -> RwLockReadGuard<'_, Shelves> {
        self.shelves.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shelves> {
        self.shelves.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelves {
    fn next_version(&mut self, card: &Card) -> FunctionVersion {
        let generation = self.generations.entry(card.name.clone()).or_default();
        *generation += 1;
        self.revision += 1;
        FunctionVersion::new(&card.name, &card.version, *generation)
    }
}

impl<F> Described<F> {
    fn listed(&self, kind: Kind) -> Listed {
        Listed {
            card: self.card.clone(),
            kind,
            version: self.version,
            is_storable: false,
            is_quarantined: false,
            metered: Metered::default(),
        }
    }
}

fn check_name(card: &Card, name: &str) -> Result<(), FunctionError> {
    if card.name == name {
        return Ok(());
    }
    let expected = format!("{name}, as the function's");
    Err(refusal(card, "the card's name", card.name.clone(), expected))
}

fn check_volatility(card: &Card, volatility: Volatility) -> Result<(), FunctionError> {
    if card.volatility == volatility {
        return Ok(());
    }
    let value = format!("{:?}", card.volatility).to_lowercase();
    let expected = format!("{volatility:?}, as the function's").to_lowercase();
    Err(refusal(card, "the card's volatility", value, expected))
}

fn refusal(card: &Card, what: &'static str, value: String, expected: String) -> FunctionError {
    FunctionError::Register { name: card.name.clone(), what, value, expected }
}

#[cfg(test)]
mod tests;
