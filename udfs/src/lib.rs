//! SQL functions with cards: text, phonetics, places, patterns, hashes, URLs, language, embeddings.
//!
//! A [`Card`] says of a function what it is called, which version it is, what it costs and how it is
//! called. [`Functions`] keeps functions by name; each scalar function in it is a [`Registered`]:
//! guarded against panics and wrong answers, metered, and versioned, so that an engine may keep its
//! outputs. Any [`ScalarUDF`] can be registered, not only those
//! of this library, and any asynchronous function of DataFusion: a model behind HTTP, say
//! ([`Functions::register_async`]).
//!
//! | function | answer | cost |
//! |---|---|---|
//! | `levenshtein_similarity(a, b)` | Float64, 0 to 1 | free |
//! | `jaro_winkler(a, b)` | Float64, 0 to 1 | free |
//! | `best_match(text, candidates)` | Utf8 | dear |
//! | `best_match_score(text, candidates)` | Float64, 0 to 1 | dear |
//! | `ncd(a, b)` | Float64, 0 to about 1 | dear |
//! | `double_metaphone(name)` | Utf8 | free |
//! | `soundex(name)` | Utf8 | free |
//! | `h3_cell(latitude, longitude, resolution)` | Utf8, hexadecimal | free |
//! | `h3_distance(from, to)` | Int64, cells | free |
//! | `haversine_km(latitude1, longitude1, latitude2, longitude2)` | Float64, km | free |
//! | `regex_extract(text, pattern [, group])` | Utf8 | free |
//! | `blake3_hex(content)` | Utf8 | free |
//! | `url_host(url)` | Utf8 | cheap |
//! | `url_query(url, key)` | Utf8 | cheap |
//! | `sentiment(text)` | Float64, -1 to 1 | cheap |
//! | `language(text)` | Utf8, ISO 639-3 | dear |
//! | `embedding_similarity(a, b)` | Float64, -1 to 1 | cheap |
//! | `weighted_avg(value, weight)` | Float64, aggregate | free |
//! | [`Embedding::open`]: `name(text)` | list of Float32 | costly |
//!
//! Free is below 1 us a row, cheap below 10 us, dear below 100 us, costly above ([`CostClass`]), for
//! names, sentences of a dozen words, 200 short candidates and vectors of 384 numbers.
//! Functions of the library are immutable, and NULL in is NULL out. A value that means nothing, such
//! as a latitude of 91 or a text that is no URL, gives NULL; a setting that means nothing, such as a
//! broken pattern, is a [`FunctionError`].
//!
//! ```
//! use datafusion::prelude::SessionContext;
//! use foreshard_udfs::{Functions, registered};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
//! # runtime.block_on(async {
//! let functions = Functions::library();
//! let context = SessionContext::new();
//! functions.install(&context);
//!
//! let sql = "SELECT best_match(city, 'Zürich|Genève|Bern') AS city
//!            FROM (VALUES ('Zurich'), ('Geneve')) AS t(city)";
//! let batches = context.sql(sql).await?.collect().await?;
//! let table = arrow::util::pretty::pretty_format_batches(&batches)?.to_string();
//! assert!(table.contains("Zürich") && table.contains("Genève"));
//!
//! // What it did is counted.
//! let udf = functions.get("best_match").ok_or("no such function")?;
//! let function = registered(&udf).ok_or("not registered")?;
//! assert_eq!(function.metered().rows, 2);
//! assert!(function.is_storable());
//! # Ok(())
//! # })
//! # }
//! ```

mod aggregate;
mod asynchronous;
mod calling;
mod card;
mod compression;
mod conduct;
mod embed;
mod error;
mod geo;
mod guard;
mod hash;
mod language;
mod meter;
mod native;
mod pattern;
mod phonetic;
mod registered;
mod registered_aggregate;
mod registry;
mod text;
#[cfg(test)]
mod trial;
mod vector;
mod version;
mod web;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};

pub use asynchronous::{AsyncOptions, calls_asynchronously, evaluate_later};
pub use calling::{CalledBy, Caller, call_threads, longest_call};
pub use card::{Card, CostClass};
pub use embed::Embedding;
pub use error::{Call, FunctionError};
pub use guard::quiet_function_panics;
pub use meter::{Meter, Metered};
pub use registered::{OUTPUT_BYTES_MAX, Registered, registered};
pub use registered_aggregate::{RegisteredAggregate, registered_aggregate};
pub use registry::{Functions, Kind, Listed};
pub use version::FunctionVersion;

/// All scalar functions of the library.
fn scalars() -> Vec<(Card, ScalarUDF)> {
    let families = [
        text::functions(),
        compression::functions(),
        phonetic::functions(),
        geo::functions(),
        pattern::functions(),
        hash::functions(),
        web::functions(),
        language::functions(),
        vector::functions(),
    ];
    families.into_iter().flatten().collect()
}

/// All aggregate functions of the library.
fn aggregates() -> Vec<(Card, AggregateUDF)> {
    aggregate::functions()
}
