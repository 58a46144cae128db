//! Generated rows of an invented forum: who wrote what, where and when, and what it was about.
//!
//! A row depends on the seed and on its id, on nothing else: rows that are appended later continue the
//! same table, and however a table is cut into batches, it is the same table.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use anyhow::Result;
use arrow::array::{ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Rows of a batch.
pub const BATCH_ROWS: usize = 8_192;

/// Regions, numbered from zero.
pub const REGIONS: i32 = 16;

/// What posts are about; the first ones more often.
pub const CATEGORIES: [&str; 12] = [
    "food", "travel", "music", "sport", "films", "books", "health", "money", "garden", "science",
    "history", "weather",
];

/// Towns with latitude and longitude; posts come from around one of them.
pub const TOWNS: [(&str, f64, f64); 12] = [
    ("Zürich", 47.37, 8.54),
    ("Genève", 46.20, 6.14),
    ("Bern", 46.95, 7.45),
    ("Hamburg", 53.55, 9.99),
    ("München", 48.14, 11.58),
    ("Marseille", 43.30, 5.37),
    ("Bordeaux", 44.84, -0.58),
    ("Manchester", 53.48, -2.24),
    ("Edinburgh", 55.95, -3.19),
    ("Barcelona", 41.39, 2.17),
    ("Valencia", 39.47, -0.38),
    ("Palermo", 38.12, 13.36),
];

const SURNAMES: [&str; 16] = [
    "Smith", "Schmidt", "Meyer", "Keller", "Johnson", "Fischer", "Dubois", "Moreau", "Garcia",
    "Lopez", "Rossi", "Bianchi", "Wilson", "Taylor", "Weber", "Brunner",
];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The words of each language, and how many posts of a hundred are written in it.
static LANGUAGES: LazyLock<[(u32, Vec<&str>); 4]> = LazyLock::new(|| {
    [
        (
            55,
            "the dinner was really great and people here love this awful place because they \
             never wait for good music with friends terrible weather should always happy \
             about street hate would wonderful another morning boring journey through",
        ),
        (
            20,
            "und die nicht wir haben gestern einen schönen Garten gesehen aber leider war \
             das Wetter schlecht für meine Freunde möchte immer wieder zwischen Straße \
             warten vielleicht",
        ),
        (
            15,
            "les nous avons mangé dans une petite maison avec mais était toujours parce que \
             voyage beaucoup musique pour cette histoire très bonne jamais encore français \
             aujourd'hui",
        ),
        (
            10,
            "los pero nosotros hemos comido en una pequeña casa con estaba siempre porque \
             viaje mucho música para esta historia muy buena nunca todavía mañana gracias \
             ciudad",
        ),
    ]
    .map(|(share, words)| (share, words.split(' ').collect()))
});

/// A column that posts may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Column {
    /// Position of the row.
    Id,
    /// Day that the post was written, from 0; later rows have later days.
    Day,
    /// One of [`REGIONS`].
    Region,
    /// One of [`CATEGORIES`].
    Category,
    /// What was paid, 0 to 1,000, mostly little.
    Price,
    /// How many, 1 to 9.
    Quantity,
    /// One of 50,000 customers, the first ones more often.
    Customer,
    /// Degrees.
    Latitude,
    /// Degrees.
    Longitude,
    /// Name of one of [`TOWNS`], now and then misspelt.
    Town,
    /// Initial and surname of the author.
    Author,
    /// Short text with two numbers and a month in it.
    Code,
    /// A text in one of four languages; no two are the same.
    Body,
    /// Another text that takes up some words of the body.
    Reply,
}

impl Column {
    /// Name and type.
    #[must_use]
    pub fn field(self) -> Field {
        let (name, data_type) = match self {
            Self::Id => ("id", DataType::Int64),
            Self::Day => ("day", DataType::Int32),
            Self::Region => ("region", DataType::Int32),
            Self::Category => ("category", DataType::Utf8),
            Self::Price => ("price", DataType::Float64),
            Self::Quantity => ("quantity", DataType::Int32),
            Self::Customer => ("customer", DataType::Int64),
            Self::Latitude => ("latitude", DataType::Float64),
            Self::Longitude => ("longitude", DataType::Float64),
            Self::Town => ("town", DataType::Utf8),
            Self::Author => ("author", DataType::Utf8),
            Self::Code => ("code", DataType::Utf8),
            Self::Body => ("body", DataType::Utf8),
            Self::Reply => ("reply", DataType::Utf8),
        };
        Field::new(name, data_type, false)
    }
}

/// A table of posts.
#[derive(Clone, Debug)]
pub struct Posts {
    /// Seed of every value.
    pub seed: u64,
    /// Words of a body.
    pub words: usize,
    /// Rows that are written on one day; at least one.
    pub rows_a_day: i64,
    /// The columns, in order.
    pub columns: Vec<Column>,
}

impl Posts {
    /// Names and types of the columns.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        let fields = self.columns.iter().map(|column| column.field());
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// The rows with these ids, in batches of at most [`BATCH_ROWS`].
    ///
    /// # Errors
    /// If Arrow does not take them.
    pub fn batches(&self, ids: Range<i64>) -> Result<Vec<RecordBatch>> {
        let starts = (ids.start..ids.end).step_by(BATCH_ROWS);
        let batch = |start: i64| {
            let ids = start..ids.end.min(start + BATCH_ROWS as i64);
            let columns = self.columns.iter().map(|column| self.column(*column, ids.clone()));
            Ok(RecordBatch::try_new(self.schema(), columns.collect())?)
        };
        starts.map(batch).collect()
    }

    /// Texts as long as so many words, separated by `|`, none of which is in the table.
    #[must_use]
    pub fn candidates(&self, count: usize, words: usize) -> String {
        let others = Self { seed: self.seed ^ 0x5EED, words, ..self.clone() };
        let texts = (0..count as i64).map(|id| others.body(id).replace(['\'', '|'], ""));
        texts.collect::<Vec<_>>().join("|")
    }

    fn column(&self, column: Column, ids: Range<i64>) -> ArrayRef {
        let texts = |text: &dyn Fn(i64) -> String| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(ids.clone().map(text)))
        };
        let floats = |number: &dyn Fn(i64) -> f64| -> ArrayRef {
            Arc::new(Float64Array::from_iter_values(ids.clone().map(number)))
        };
        let integers = |number: &dyn Fn(i64) -> i32| -> ArrayRef {
            Arc::new(Int32Array::from_iter_values(ids.clone().map(number)))
        };
        let longs = |number: &dyn Fn(i64) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(ids.clone().map(number)))
        };
        let dice = |id| self.dice(id, column as u64);
        match column {
            Column::Id => longs(&|id| id),
            Column::Day => integers(&|id| (id / self.rows_a_day.max(1)) as i32),
            Column::Region => integers(&|id| dice(id).random_range(0..REGIONS)),
            Column::Category => texts(&|id| CATEGORIES[low(&mut dice(id), 12)].to_owned()),
            Column::Price => {
                floats(&|id| (dice(id).random::<f64>().powi(3) * 100_000.0).round() / 100.0)
            }
            Column::Quantity => integers(&|id| 1 + low(&mut dice(id), 9) as i32),
            Column::Customer => longs(&|id| low(&mut dice(id), 50_000) as i64),
            Column::Latitude => floats(&|id| self.town(id).1 + dice(id).random_range(-0.3..0.3)),
            Column::Longitude => floats(&|id| self.town(id).2 + dice(id).random_range(-0.3..0.3)),
            Column::Town => texts(&|id| misspelt(self.town(id).0, &mut dice(id))),
            Column::Author => texts(&|id| {
                let mut dice = dice(id);
                let initial = char::from(b'A' + dice.random_range(0..26_u8));
                format!("{initial}. {}", misspelt(SURNAMES[low(&mut dice, 16)], &mut dice))
            }),
            Column::Code => texts(&|id| {
                let mut dice = dice(id);
                let month = MONTHS[dice.random_range(0..12)];
                format!("order {} of {month} {}", id % 100_000, dice.random_range(1..29))
            }),
            Column::Body => texts(&|id| self.body(id)),
            Column::Reply => texts(&|id| self.reply(id)),
        }
    }

    /// Randomness of one value.
    fn dice(&self, id: i64, what: u64) -> SmallRng {
        let mixed = (id as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ what.rotate_left(57);
        SmallRng::seed_from_u64(self.seed.wrapping_mul(0xD134_2543_DE82_EF95) ^ mixed)
    }

    fn town(&self, id: i64) -> (&'static str, f64, f64) {
        TOWNS[self.dice(id, 101).random_range(0..TOWNS.len())]
    }

    fn body(&self, id: i64) -> String {
        let mut dice = self.dice(id, 102);
        let vocabulary = vocabulary(dice.random_range(0..100));
        let mut text = sentence(vocabulary, self.words.saturating_sub(1), &mut dice);
        text.push_str(&format!(" {id}"));
        text
    }

    /// Some words of the body with words of another language between them.
    fn reply(&self, id: i64) -> String {
        let mut dice = self.dice(id, 103);
        let share = dice.random::<f64>();
        let vocabulary = vocabulary(dice.random_range(0..100));
        let body = self.body(id);
        let words = body.split(' ').map(|word| match dice.random_bool(share) {
            true => word,
            false => vocabulary[dice.random_range(0..vocabulary.len())],
        });
        words.collect::<Vec<_>>().join(" ")
    }
}

/// A number below `end`, the low ones more often.
fn low(dice: &mut SmallRng, end: usize) -> usize {
    let share = dice.random::<f64>();
    ((share * share * end as f64) as usize).min(end - 1)
}

/// The words of the language that `percent` falls to.
fn vocabulary(percent: u32) -> &'static [&'static str] {
    let mut up_to = 0;
    let found = LANGUAGES.iter().find(|(share, _)| {
        up_to += share;
        percent < up_to
    });
    found.map_or(&LANGUAGES[0].1, |(_, words)| words)
}

fn sentence(vocabulary: &[&str], words: usize, dice: &mut SmallRng) -> String {
    let words = (0..words).map(|_| vocabulary[dice.random_range(0..vocabulary.len())]);
    words.collect::<Vec<_>>().join(" ")
}

/// `name`, of which one time in four a letter is left out or doubled.
fn misspelt(name: &str, dice: &mut SmallRng) -> String {
    if dice.random_bool(0.75) {
        return name.to_owned();
    }
    let at = dice.random_range(1..name.chars().count());
    let doubled = dice.random_bool(0.5);
    let letters = name.chars().enumerate().flat_map(|(position, letter)| {
        let times = if position != at { 1 } else { usize::from(doubled) * 2 };
        std::iter::repeat_n(letter, times)
    });
    letters.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use arrow::array::AsArray;
    use arrow::compute::concat_batches;

    use super::*;

    const ALL: [Column; 14] = [
        Column::Id,
        Column::Day,
        Column::Region,
        Column::Category,
        Column::Price,
        Column::Quantity,
        Column::Customer,
        Column::Latitude,
        Column::Longitude,
        Column::Town,
        Column::Author,
        Column::Code,
        Column::Body,
        Column::Reply,
    ];

    fn posts(seed: u64) -> Posts {
        Posts { seed, words: 12, rows_a_day: 100, columns: ALL.to_vec() }
    }

    fn rows(posts: &Posts, ids: Range<i64>) -> RecordBatch {
        concat_batches(&posts.schema(), &posts.batches(ids).unwrap()).unwrap()
    }

    #[test]
    fn rows_that_are_appended_continue_the_table() {
        let whole = rows(&posts(1), 0..9_000);
        assert_eq!(whole.slice(8_990, 10), rows(&posts(1), 8_990..9_000));
        assert_ne!(whole.slice(0, 10), rows(&posts(2), 0..10));
    }

    #[test]
    fn bodies_differ_from_each_other_and_have_as_many_words_as_asked_for() {
        let rows = rows(&posts(7), 0..3_000);
        let bodies = rows["body"].as_string::<i32>();
        assert_eq!(bodies.iter().flatten().collect::<HashSet<_>>().len(), 3_000);
        assert!(bodies.iter().flatten().all(|body| body.split(' ').count() == 12));
    }

    #[test]
    fn each_language_category_and_town_is_there() {
        let rows = rows(&posts(3), 0..3_000);
        let distinct = |column: &str| {
            rows[column].as_string::<i32>().iter().flatten().collect::<HashSet<_>>().len()
        };
        assert_eq!(distinct("category"), CATEGORIES.len());
        assert!(distinct("town") > TOWNS.len());
        let bodies = rows["body"].as_string::<i32>();
        for word in ["the ", "und ", "nous ", "pero "] {
            assert!(bodies.iter().flatten().any(|body| body.contains(word)), "{word}");
        }
    }

    #[test]
    fn candidates_are_texts_that_can_stand_in_a_literal() {
        let candidates = posts(1).candidates(200, 8);
        assert_eq!(candidates.split('|').count(), 200);
        assert!(!candidates.contains('\''));
    }
}
