//! Numbers for Prometheus: counters and gauges by name and labels, rendered as text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Label sets of one name; further ones are counted in one series without labels.
const SERIES_PER_NAME_MAX: usize = 1_000;

/// A number that only grows.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// The sum so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
enum Series {
    Counters(BTreeMap<String, Counter>),
    Gauges(BTreeMap<String, Gauge>),
}

#[derive(Debug)]
struct Family {
    help: &'static str,
    series: Series,
}

/// All numbers of a process. Cheap to clone; clones share the numbers.
///
/// ```
/// # use foreshard::metrics::Metrics;
/// let metrics = Metrics::default();
/// metrics.counter("foreshard_queries_total", "Queries.", &[("way", "http")]).add(2);
/// assert_eq!(
///     metrics.render(),
///     "# HELP foreshard_queries_total Queries.\n\
///      ## TYPE foreshard_queries_total counter\n\
///      foreshard_queries_total{way=\"http\"} 2\n"
/// );
/// ```
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    families: Arc<RwLock<BTreeMap<&'static str, Family>>>,
}

impl Metrics {
    /// The counter of this name and these labels; made at first use. Keep it rather than ask often.
    ///
    /// A name that is a gauge already gives a counter that is not rendered.
    #[must_use]
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
    ) -> Counter {
        let mut families = self.families.write().unwrap_or_else(PoisonError::into_inner);
        let family = families
            .entry(name)
            .or_insert_with(|| Family { help, series: Series::Counters(BTreeMap::new()) });
        match &mut family.series {
            Series::Counters(series) => series.entry(key(labels, series)).or_default().clone(),
            Series::Gauges(_) => Counter::default(),
        }
    }

    /// The gauge of this name and these labels; made at first use. Keep it rather than ask often.
    ///
    /// A name that is a counter already gives a gauge that is not rendered.
    #[must_use]
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Gauge {
        let mut families = self.families.write().unwrap_or_else(PoisonError::into_inner);
        let family = families
            .entry(name)
            .or_insert_with(|| Family { help, series: Series::Gauges(BTreeMap::new()) });
        match &mut family.series {
            Series::Gauges(series) => series.entry(key(labels, series)).or_default().clone(),
            Series::Counters(_) => Gauge::default(),
        }
    }

    /// Counts a query that begins.
    pub fn query_started(&self) {
        self.counter("foreshard_queries_total", "Statements that were begun.", &[]).add(1);
    }

    /// Counts a query that failed, before or after its first rows.
    pub fn query_failed(&self) {
        self.counter("foreshard_queries_failed_total", "Statements that failed.", &[]).add(1);
    }

    /// All numbers in the text format of Prometheus, sorted by name.
    #[must_use]
    pub fn render(&self) -> String {
        let families = self.families.read().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (name, Family { help, series }) in families.iter() {
            let kind = match series {
                Series::Counters(_) => "counter",
                Series::Gauges(_) => "gauge",
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            match series {
                Series::Counters(series) => series.iter().for_each(|(labels, counter)| {
                    let _ = writeln!(text, "{name}{labels} {}", counter.value());
                }),
                Series::Gauges(series) => series.iter().for_each(|(labels, gauge)| {
                    let _ = writeln!(text, "{name}{labels} {}", gauge.value());
                }),
            }
        }
        text
    }
}

/// The labels as they are rendered; none of them if there are too many series already.
fn key<T>(labels: &[(&str, &str)], series: &BTreeMap<String, T>) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let pairs: Vec<_> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    let key = format!("{{{}}}", pairs.join(","));
    let room = series.len() < SERIES_PER_NAME_MAX || series.contains_key(&key);
    if room { key } else { String::new() }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_name_and_labels_are_the_same_number() {
        let metrics = Metrics::default();
        metrics.counter("a_total", "A.", &[("k", "x")]).add(1);
        metrics.counter("a_total", "A.", &[("k", "x")]).add(2);
        metrics.gauge("b", "B.", &[]).set(0.5);
        let text = metrics.render();
        assert!(text.contains("a_total{k=\"x\"} 3\n") && text.ends_with("b 0.5\n"), "{text}");
    }

    #[test]
    fn labels_are_bounded_and_escaped() {
        let metrics = Metrics::default();
        for n in 0..SERIES_PER_NAME_MAX + 5 {
            metrics.counter("a_total", "A.", &[("k", &n.to_string())]).add(1);
        }
        assert!(metrics.render().contains("\na_total 5\n"));
        metrics.gauge("b", "B.", &[("k", "a\"b\n")]).set(1.0);
        assert!(metrics.render().ends_with("b{k=\"a\\\"b\\n\"} 1\n"));
    }
}
