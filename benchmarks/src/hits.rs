//! ClickBench: its 43 queries, and a generated table for them with the columns that they use.
//!
//! The real table has 100 million rows of a web counter, which nobody wants to download for a
//! benchmark of overhead. This one has its skew where the queries look: one counter with a sixth of
//! the rows, most search phrases empty, few phones, users and addresses that come again and again.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use arrow::array::{
    ArrayRef, Date32Array, Int16Array, Int32Array, Int64Array, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Column that the table is partitioned by.
pub const KEY: &str = "WatchID";

/// Rows of a batch.
const BATCH_ROWS: usize = 8_192;

/// The counter that most queries about one counter ask for.
const HOT_COUNTER: i32 = 62;
/// The user that one query looks for.
const HOT_USER: i64 = 435_090_932_899_640_449;
/// The hashes that two queries look for.
const HOT_URL_HASH: i64 = 2_868_770_270_353_813_622;
const HOT_REFERER_HASH: i64 = 3_594_120_000_172_545_465;

/// First second and first day of July 2013, since 1970.
const JULY_SECONDS: i64 = 1_372_636_800;
const JULY_DAY: i32 = 15_887;
const MONTH_SECONDS: i64 = 31 * 86_400;

const HOSTS: [&str; 12] = [
    "www.shop.example",
    "news.example",
    "mail.example",
    "www.cars.example",
    "video.example",
    "forum.example",
    "www.jobs.example",
    "maps.example",
    "www.flats.example",
    "games.example",
    "weather.example",
    "www.google.example",
];

const WORDS: [&str; 24] = [
    "cheap", "flat", "car", "online", "photo", "how", "to", "bake", "bread", "news", "today",
    "film", "free", "music", "train", "ticket", "weather", "map", "winter", "tyres", "school",
    "holiday", "garden", "price",
];

const PHONES: [&str; 6] = ["iPhone 4", "Galaxy S3", "Lumia 920", "Xperia Z", "Desire HD", "N8"];

const WIDTHS: [i16; 8] = [1366, 1920, 1280, 1024, 1600, 1440, 320, 768];

/// The queries, the first one at index 0.
#[must_use]
pub fn queries() -> Vec<&'static str> {
    let text = include_str!("hits/queries.sql");
    let text = text.split_once('\n').map_or("", |(_comment, queries)| queries);
    text.split(';').map(str::trim).filter(|query| !query.is_empty()).collect()
}

/// The query without its limit, which may keep any of equal rows.
#[must_use]
pub fn without_limit(query: &str) -> &str {
    query.rsplit_once(" LIMIT ").map_or(query, |(before, _)| before)
}

/// The columns that the queries use, with the types of the published Parquet file; `EventDate` is the
/// date that its number of days stands for.
#[must_use]
pub fn schema() -> SchemaRef {
    use DataType::{Date32, Int16, Int32, Int64, Utf8};
    let fields = [
        ("WatchID", Int64),
        ("Title", Utf8),
        ("EventTime", Int64),
        ("EventDate", Date32),
        ("CounterID", Int32),
        ("ClientIP", Int32),
        ("RegionID", Int32),
        ("UserID", Int64),
        ("URL", Utf8),
        ("Referer", Utf8),
        ("IsRefresh", Int16),
        ("ResolutionWidth", Int16),
        ("MobilePhone", Int16),
        ("MobilePhoneModel", Utf8),
        ("TraficSourceID", Int16),
        ("SearchEngineID", Int16),
        ("SearchPhrase", Utf8),
        ("AdvEngineID", Int16),
        ("WindowClientWidth", Int16),
        ("WindowClientHeight", Int16),
        ("IsLink", Int16),
        ("IsDownload", Int16),
        ("DontCountHits", Int16),
        ("URLHash", Int64),
        ("RefererHash", Int64),
    ];
    let fields = fields.map(|(name, data_type)| Field::new(name, data_type, false));
    Arc::new(Schema::new(fields.to_vec()))
}

/// The rows with these numbers, in batches of 8,192. A row depends on the seed and its number alone.
///
/// # Errors
/// If Arrow does not take them.
pub fn batches(seed: u64, rows: Range<i64>) -> Result<Vec<RecordBatch>> {
    let starts = (rows.start..rows.end).step_by(BATCH_ROWS);
    let batch = |start: i64| {
        let numbers = start..rows.end.min(start + BATCH_ROWS as i64);
        let hits: Vec<Hit> = numbers.map(|number| Hit::new(seed, number)).collect();
        Ok(RecordBatch::try_new(schema(), columns(&hits))?)
    };
    starts.map(batch).collect()
}

/// One row.
struct Hit {
    watch: i64,
    title: String,
    seconds: i64,
    counter: i32,
    address: i32,
    region: i32,
    user: i64,
    url: String,
    url_hash: i64,
    referer: String,
    referer_hash: i64,
    is_refresh: bool,
    width: i16,
    window: (i16, i16),
    phone: usize,
    source: i16,
    search_engine: i16,
    phrase: String,
    adv_engine: i16,
    is_link: bool,
    is_download: bool,
    is_uncounted: bool,
}

impl Hit {
    fn new(seed: u64, number: i64) -> Self {
        let number_mixed = scattered(number as u64 ^ seed.rotate_left(32));
        let mut dice = SmallRng::seed_from_u64(number_mixed);
        // Hits come nearly in the order of their time; a table of any size spans the month.
        let seconds = dice.random_range(0..MONTH_SECONDS);
        let user = low(&mut dice, 200_000);
        let phrase = match dice.random_bool(0.13) {
            true => phrase(&mut dice),
            false => String::new(),
        };
        let page = low(&mut dice, 60_000);
        let url = if dice.random_bool(0.001) { String::new() } else { address(page) };
        let from = low(&mut dice, 20_000);
        let referer = if dice.random_bool(0.2) { String::new() } else { address(from) };
        let is_searched = !phrase.is_empty();
        Self {
            watch: (number_mixed >> 1) as i64,
            title: title(page, &phrase),
            seconds: JULY_SECONDS + seconds,
            counter: match dice.random_bool(1.0 / 6.0) {
                true => HOT_COUNTER,
                false => 1 + low(&mut dice, 6_000) as i32,
            },
            address: scattered(user as u64 / 3) as i32,
            region: 1 + low(&mut dice, 5_000) as i32,
            user: if user == 7 { HOT_USER } else { (scattered(user as u64) >> 1) as i64 },
            url,
            url_hash: if page == 0 { HOT_URL_HASH } else { scattered(page as u64) as i64 },
            referer,
            referer_hash: if from == 0 { HOT_REFERER_HASH } else { scattered(!from as u64) as i64 },
            is_refresh: dice.random_bool(0.1),
            width: WIDTHS[low(&mut dice, WIDTHS.len())],
            window: (1 + low(&mut dice, 1_900) as i16, 1 + low(&mut dice, 1_000) as i16),
            phone: if dice.random_bool(0.05) { 1 + low(&mut dice, PHONES.len()) } else { 0 },
            source: dice.random_range(-1..8),
            search_engine: if is_searched { 1 + low(&mut dice, 30) as i16 } else { 0 },
            phrase,
            adv_engine: if dice.random_bool(0.006) { 1 + low(&mut dice, 18) as i16 } else { 0 },
            is_link: dice.random_bool(0.1),
            is_download: dice.random_bool(0.01),
            is_uncounted: dice.random_bool(0.05),
        }
    }
}

fn columns(hits: &[Hit]) -> Vec<ArrayRef> {
    let long = |value: &dyn Fn(&Hit) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(hits.iter().map(value)))
    };
    let int = |value: &dyn Fn(&Hit) -> i32| -> ArrayRef {
        Arc::new(Int32Array::from_iter_values(hits.iter().map(value)))
    };
    let short = |value: &dyn Fn(&Hit) -> i16| -> ArrayRef {
        Arc::new(Int16Array::from_iter_values(hits.iter().map(value)))
    };
    let text = |value: &dyn Fn(&Hit) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(hits.iter().map(value)))
    };
    let day = |hit: &Hit| JULY_DAY + ((hit.seconds - JULY_SECONDS) / 86_400) as i32;
    let model = |hit: &Hit| hit.phone.checked_sub(1).map_or("", |phone| PHONES[phone]).to_owned();
    vec![
        long(&|hit| hit.watch),
        text(&|hit| hit.title.clone()),
        long(&|hit| hit.seconds),
        Arc::new(Date32Array::from_iter_values(hits.iter().map(day))),
        int(&|hit| hit.counter),
        int(&|hit| hit.address),
        int(&|hit| hit.region),
        long(&|hit| hit.user),
        text(&|hit| hit.url.clone()),
        text(&|hit| hit.referer.clone()),
        short(&|hit| i16::from(hit.is_refresh)),
        short(&|hit| hit.width),
        short(&|hit| hit.phone as i16),
        text(&model),
        short(&|hit| hit.source),
        short(&|hit| hit.search_engine),
        text(&|hit| hit.phrase.clone()),
        short(&|hit| hit.adv_engine),
        short(&|hit| hit.window.0),
        short(&|hit| hit.window.1),
        short(&|hit| i16::from(hit.is_link)),
        short(&|hit| i16::from(hit.is_download)),
        short(&|hit| i16::from(hit.is_uncounted)),
        long(&|hit| hit.url_hash),
        long(&|hit| hit.referer_hash),
    ]
}

/// The address of a page: the first pages lie on the first hosts.
fn address(page: usize) -> String {
    let host = HOSTS[scattered(page as u64) as usize % (1 + page % HOSTS.len())];
    let section = WORDS[page % WORDS.len()];
    format!("http://{host}/{section}/{page}.html?from={}", page % 97)
}

fn title(page: usize, phrase: &str) -> String {
    let word = WORDS[page % WORDS.len()];
    match page % 50 {
        0 => String::new(),
        1 => format!("{word} {phrase} - Google"),
        _ => format!("{word} number {} on the page {page}", page % 31),
    }
}

fn phrase(dice: &mut SmallRng) -> String {
    let words = dice.random_range(1..4);
    let words = (0..words).map(|_| WORDS[low(dice, WORDS.len())]);
    let mut phrase = words.collect::<Vec<_>>().join(" ");
    if dice.random_bool(0.4) {
        phrase.push_str(&format!(" {}", low(dice, 3_000)));
    }
    phrase
}

/// A number below `end`, the low ones much more often.
fn low(dice: &mut SmallRng, end: usize) -> usize {
    let share = dice.random::<f64>();
    ((share.powi(3) * end as f64) as usize).min(end - 1)
}

/// A number that looks like any other: the finaliser of SplitMix64.
fn scattered(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{Int32Type, Int64Type};
    use datafusion::catalog::MemTable;
    use datafusion::prelude::SessionContext;

    use super::*;

    async fn numbers(context: &SessionContext, sql: &str) -> Vec<i64> {
        let answer = context.sql(sql).await.unwrap().collect().await.unwrap();
        let columns = answer[0].columns();
        columns.iter().map(|column| column.as_primitive::<Int64Type>().value(0)).collect()
    }

    #[tokio::test]
    async fn all_queries_run_and_the_skew_is_where_they_look() {
        let context = SessionContext::new();
        let table = MemTable::try_new(schema(), vec![batches(1, 0..20_000).unwrap()]).unwrap();
        context.register_table("hits", Arc::new(table)).unwrap();
        let found = numbers(
            &context,
            r#"SELECT count(*) FILTER (WHERE "CounterID" = 62),
                      count(*) FILTER (WHERE "SearchPhrase" = ''),
                      count(*) FILTER (WHERE "URL" LIKE '%google%'),
                      count(*) FILTER (WHERE "UserID" = 435090932899640449),
                      count(DISTINCT "UserID"),
                      count(DISTINCT "EventDate") FROM hits"#,
        )
        .await;
        assert!((3_000..4_500).contains(&found[0]), "{found:?}");
        assert!((16_000..18_500).contains(&found[1]), "{found:?}");
        assert!(found[2] > 20 && found[3] > 0, "{found:?}");
        assert!((2_000..18_000).contains(&found[4]), "{found:?}");
        assert_eq!(found[5], 31);
        let queries = queries();
        assert_eq!(queries.len(), 43);
        for (number, query) in queries.iter().enumerate() {
            let frame = context.sql(query).await.unwrap();
            frame.collect().await.unwrap_or_else(|error| panic!("query {number}: {error}"));
        }
    }

    #[test]
    fn a_row_does_not_depend_on_how_the_table_is_cut() {
        let whole = batches(5, 0..9_000).unwrap();
        let tail = batches(5, 8_192..9_000).unwrap();
        assert_eq!(whole[1], tail[0]);
        assert_ne!(batches(6, 8_192..9_000).unwrap(), tail);
        let counters = whole[0]["CounterID"].as_primitive::<Int32Type>();
        assert_eq!(counters.len(), 8_192);
    }

    #[test]
    fn only_a_limit_at_the_end_is_taken_off() {
        assert_eq!(
            without_limit("SELECT a FROM hits ORDER BY a LIMIT 10 OFFSET 5"),
            "SELECT a FROM hits ORDER BY a"
        );
        assert_eq!(without_limit("SELECT a FROM hits"), "SELECT a FROM hits");
    }
}
