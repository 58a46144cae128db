//! Counts the rows that a function is evaluated on: a measure that no clock disturbs and that does not
//! ask the engine about itself.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature,
};

/// Rows that functions were evaluated on. Cheap to clone; clones count together.
#[derive(Clone, Debug, Default)]
pub struct RowCounter(Arc<AtomicU64>);

impl RowCounter {
    /// Rows counted so far.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// `function` as it was, but counted here.
    #[must_use]
    pub fn count(&self, function: &Arc<ScalarUDF>) -> ScalarUDF {
        ScalarUDF::from(Counted { inner: Arc::clone(function), counter: self.clone() })
    }
}

/// A function of the library that counts its rows. Hands on what functions of the library define.
#[derive(Debug)]
struct Counted {
    inner: Arc<ScalarUDF>,
    counter: RowCounter,
}

impl PartialEq for Counted {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner && Arc::ptr_eq(&self.counter.0, &other.counter.0)
    }
}

impl Eq for Counted {}

impl Hash for Counted {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl ScalarUDFImpl for Counted {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn is_strict(&self) -> bool {
        self.inner.is_strict()
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arg_types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.counter.0.fetch_add(args.number_rows as u64, Ordering::Relaxed);
        self.inner.invoke_with_args(args)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;
    use foreshard_udfs::{Functions, registered};

    use super::*;

    #[tokio::test]
    async fn every_row_that_a_function_sees_is_counted_and_no_other() {
        let library = Functions::library();
        let soundex = library.get("soundex").unwrap();
        let counter = RowCounter::default();
        let context = SessionContext::new();
        context.register_udf(counter.count(registered(&soundex).unwrap().inner()));
        let sql =
            "SELECT soundex(name) FROM (VALUES ('Ann', 1), ('Bob', 2), ('Eve', 3)) AS t(name, k)
                   WHERE k > 1";
        let frame = context.sql(sql).await.unwrap();
        let rows: usize = frame.collect().await.unwrap().iter().map(|batch| batch.num_rows()).sum();
        assert_eq!((rows as u64, counter.rows()), (2, 2));
    }
}
