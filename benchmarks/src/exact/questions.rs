//! Questions about few expressions, again and again, so that what was stored for one is there for the
//! others; and beside each expression those that it must not be mixed up with.

use rand::Rng;
use rand::rngs::StdRng;

use crate::exact::functions::FUNCTIONS;
use crate::exact::random;
use crate::exact::redefined::CALLS;

/// Forms of calls. `@` stands before a column; `@K` is a column that is in another place, and of another
/// type, in each table. What stands in one line is easily taken for one another.
const FORMS: &[&[&str]] = &[
    &["twice(@n)", "shifted(@n)", "twice(@id)", "twice(@K)"],
    &["twice(@n + 1)", "twice(1 + @n)", "twice(@n - 1)", "twice(1 - @n)", "twice(@n + 2)"],
    &["twice(@n * @id)", "twice(@id * @n)", "twice(@n / 3)", "twice(3 / nullif(@n, 0))"],
    &["twice(shifted(@n))", "shifted(twice(@n))", "twice(twice(@n))"],
    &["twice(@n % 7)", "twice(7 % nullif(@n, 0))", "shifted(@n % 7)"],
    &["pair(@n, 1)", "pair(@n, 1.0)", "pair(@n, '1')", "pair(@n, CAST(1 AS INT))", "pair(1, @n)"],
    &["pair(@n, @id)", "pair(@id, @n)", "pair(@n, @n)", "pair(@n, @K)", "pair(@K, @n)"],
    &["pair(@f, 0.0)", "pair(@f, -0.0)", "pair(@f, CAST('NaN' AS DOUBLE))", "pair(@f, NULL)"],
    &[
        "pair(@n = 3, 1)",
        "pair(@n <> 3, 1)",
        "pair(@n > 3, 1)",
        "pair(3 > @n, 1)",
        "pair(@n < 3, 1)",
    ],
    &["shown(@f)", "shown(-@f)", "shown(@f * -0.0)", "shown(@f * 0.0)", "shown(@f + 0.0)"],
    &["shown(@f - 1.5)", "shown(1.5 - @f)", "shown(@f / 4)", "shown(CAST(@n AS DOUBLE) * -0.0)"],
    &["say(@t)", "say(upper(@t))", "say(lower(@t))", "say(@t || 'a')", "say('a' || @t)"],
    &["here(@n)", "here(@id)", "here(@n + 1)", "here(1 + @n)"],
    &[
        "twice(CAST(CAST(@ts AS TIMESTAMP WITH TIME ZONE) AS BIGINT) / 1000000)",
        "pair(CAST(@ts AS TIMESTAMP WITH TIME ZONE), 1)",
        "pair(@ts, 1)",
        "twice(CAST(to_timestamp(CAST(@ts AS VARCHAR)) AS BIGINT) / 1000000)",
    ],
    &["twice(CASE WHEN @n > 3 THEN @n ELSE 0 END)", "twice(CASE WHEN @n > 3 THEN 0 ELSE @n END)"],
    &["pair(@n IS NULL, 1)", "pair(@n IS NOT NULL, 1)", "pair(CAST(@n AS INT), 1)"],
];

/// Conditions of WHERE and FILTER.
const CONDITIONS: &[&str] = &[
    "@n > 3",
    "@n >= 3",
    "@n < 3",
    "@n <= 3",
    "@n = 3",
    "@n <> 3",
    "@n IS NULL",
    "@n IS NOT NULL",
    "@id % 3 = 1",
    "@id % 3 = 2",
    "@id < 150",
    "@f > 0.0",
    "@f = -0.0",
    "@t LIKE 'a%'",
    "@t LIKE '%a'",
    "@ts > TIMESTAMP '2024-01-20T00:00:00'",
    "CAST(@ts AS TIMESTAMP WITH TIME ZONE) > CAST('2024-01-20T00:00:00' AS TIMESTAMP WITH TIME ZONE)",
    "twice(@n) > 5",
    "shifted(@n) > 105",
    "say(@t) > 'm'",
];

/// Aggregates without a function of ours.
const AGGREGATES: &[&str] = &[
    "count(*)",
    "count(@n)",
    "count(@f)",
    "sum(@n)",
    "sum(@id)",
    "avg(@n)",
    "min(@n)",
    "max(@n)",
    "max(@t)",
    "count(DISTINCT @n)",
    "count(DISTINCT @t)",
    "bool_or(@n > 3)",
    "bool_and(@n > 3)",
    "max(CAST(CAST(@ts AS TIMESTAMP WITH TIME ZONE) AS BIGINT))",
    "max(CAST(@ts AS TIMESTAMP WITH TIME ZONE))",
    "max(to_timestamp(CAST(@ts AS VARCHAR)))",
];

/// Lines of [`FORMS`] that one play asks about.
const LINES: usize = 2;

/// Conditions of one play.
const CONDITIONS_OF_PLAY: usize = 3;

/// Aggregates of one play.
const AGGREGATES_OF_PLAY: usize = 2;

/// Random queries that one play chooses from.
const RANDOM_QUERIES: u64 = 48;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The query.
    pub sql: String,
    /// Its rows have one possible order.
    pub ordered: bool,
}

/// What one play asks about.
#[derive(Debug)]
pub struct Questions {
    seed: u64,
    forms: Vec<&'static str>,
    conditions: Vec<&'static str>,
    aggregates: Vec<&'static str>,
}

impl Questions {
    /// The questions of the play with this seed.
    #[must_use]
    pub fn new(seed: u64, rng: &mut StdRng) -> Self {
        let forms = (0..LINES).flat_map(|_| FORMS[rng.random_range(0..FORMS.len())]);
        let forms = forms.copied().collect();
        let conditions = (0..CONDITIONS_OF_PLAY).map(|_| pick(rng, CONDITIONS)).collect();
        let aggregates = (0..AGGREGATES_OF_PLAY).map(|_| pick(rng, AGGREGATES)).collect();
        Self { seed, forms, conditions, aggregates }
    }

    /// The next question.
    #[must_use]
    pub fn next(&self, rng: &mut StdRng) -> Question {
        if rng.random_bool(0.3) {
            let seed = self.seed * RANDOM_QUERIES + rng.random_range(0..RANDOM_QUERIES);
            let functions = if seed.is_multiple_of(2) { FUNCTIONS } else { CALLS };
            let query = random::query(seed, functions);
            return Question { sql: query.sql, ordered: query.ordered };
        }
        let table = pick(rng, &["fact", "fact", "twin"]);
        let mut sql = self.written(rng);
        let ordered = sql.contains("LIMIT");
        sql = over(&sql.replace("{table}", table), table, "a.");
        Question { sql, ordered }
    }

    /// A call of the play over the columns of a table.
    #[must_use]
    pub fn call_over(&self, table: &str, rng: &mut StdRng) -> String {
        over(self.call(rng), table, "")
    }

    fn call(&self, rng: &mut StdRng) -> &'static str {
        pick(rng, &self.forms)
    }

    fn written(&self, rng: &mut StdRng) -> String {
        let (one, other) = (self.call(rng), self.call(rng));
        let (when, also) = (pick(rng, &self.conditions), pick(rng, &self.conditions));
        let (sum, and) = (pick(rng, &self.aggregates), pick(rng, &self.aggregates));
        let filter = match rng.random_range(0..6) {
            0..3 => String::new(),
            3..5 => format!(" WHERE {when}"),
            _ => format!(" WHERE {when} AND {also}"),
        };
        let from = "FROM {table} a";
        match rng.random_range(0..16) {
            0 | 1 => format!("SELECT @id, {one} AS c0, {other} AS c1 {from}{filter}"),
            2 => format!("SELECT @id AS c0 {from} WHERE {one} IS DISTINCT FROM {one} OR {when}"),
            3 => format!("SELECT CASE WHEN {when} THEN {one} END AS c0, @id AS c1 {from}{filter}"),
            4 => {
                format!("SELECT {one} AS c0, count(*) AS c1, {sum} AS c2 {from}{filter} GROUP BY 1")
            }
            5 => format!("SELECT min({one}) AS c0, max({other}) AS c1, {sum} AS c2 {from}{filter}"),
            6 => format!(
                "SELECT count(DISTINCT {one}) AS c0, max({other}) FILTER (WHERE {also}) AS c1 \
                 {from}{filter}"
            ),
            7 => format!("SELECT {one} AS c0, @id AS c1 {from}{filter} ORDER BY 1, 2 LIMIT 9"),
            // By the key that both tables are partitioned by.
            8 if rng.random_bool(0.6) => format!(
                "SELECT @id AS c0, b.id AS c1, {one} AS c2 {from} {} JOIN note b ON @id = b.fact_id{filter}",
                pick(rng, &["", "LEFT", "RIGHT", "FULL"])
            ),
            8 => format!(
                "SELECT a.id AS c0, b.id AS c1, {one} AS c2 {from} JOIN note b ON twice(@n) = b.fact_id\
                 {filter}"
            ),
            9 if rng.random_bool(0.5) => format!("SELECT {sum} AS c0 {from}{filter}"),
            9 => format!(
                "SELECT {sum} AS c0, {and} AS c1 {from} WHERE @n IN (SELECT w FROM note WHERE id > 20) \
                 AND {when}"
            ),
            10 => format!(
                "SELECT @n % {} AS c0, {sum} AS c1, {and} FILTER (WHERE {also}) AS c2 {from}{filter} \
                 GROUP BY 1",
                rng.random_range(2..4)
            ),
            11 => format!("SELECT DISTINCT {one} AS c0 {from}{filter}"),
            // In every play, and each time the same: what may only have changed is a setting.
            12 => format!("SELECT max(here(@n)) AS c0, {sum} AS c1 {from}"),
            13 => format!(
                "SELECT b.flag AS c0, {sum} AS c1, max({one}) AS c2 {from} JOIN dim b ON @n = b.k{filter} \
                 GROUP BY 1"
            ),
            14 if rng.random_bool(0.5) => {
                let group = pick(rng, &["@id", "@id", "@n", "@ts", "@K"]);
                let values = pick(rng, &["@t", "@n", "@n % 7", "@f"]);
                format!(
                    "SELECT {group} AS c0, count(DISTINCT {values}) AS c1 {from}{filter} GROUP BY 1"
                )
            }
            _ => format!("SELECT {sum} AS c0 {from} WHERE {one} IS NOT NULL AND {when}"),
        }
    }
}

/// What stands for columns, as columns of `table` under `alias`.
fn over(sql: &str, table: &str, alias: &str) -> String {
    let key = if table == "fact" { "k" } else { "\"K\"" };
    sql.replace("@K", &format!("{alias}{key}")).replace('@', alias)
}

/// One of several texts.
pub(super) fn pick(rng: &mut StdRng, from: &[&'static str]) -> &'static str {
    from[rng.random_range(0..from.len())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exact::data::{samples, twin};
    use crate::exact::functions;
    use crate::exact::oracle::Plain;
    use crate::exact::redefined::Redefined;

    #[tokio::test]
    async fn plain_datafusion_understands_every_form_condition_and_aggregate() {
        let mut tables = samples(1).unwrap();
        tables.push(twin(1).unwrap());
        let plain = Plain::new(&tables, &functions::all().unwrap().0).unwrap();
        for index in 0..Redefined::COUNT {
            plain.define(&Redefined::default().definition(index).1);
        }
        for table in ["fact", "twin"] {
            for form in FORMS.iter().copied().flatten().chain(CONDITIONS).chain(AGGREGATES) {
                let sql = format!("SELECT {} FROM {table}", over(form, table, ""));
                let answer = plain.answer(&sql).await;
                assert!(answer.is_ok(), "{sql}: {answer:?}");
            }
        }
    }
}
