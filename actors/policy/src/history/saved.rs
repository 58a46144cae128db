//! The history as bytes, for restarts: a million series in some hundred megabytes, in one pass.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::codec::{Malformed, Reader, Writer, checksum};
use super::series::{Bucket, Buckets, Rolling, Series, SeriesStats};
use super::sketch::QuantileSketch;
use super::tail::Tail;
use super::together::Target;
use super::{History, HistoryError, HistoryView};
use crate::config::LoopConfig;
use crate::ids::{ExpressionId, PartitionId, SeriesKey, Tick};

/// Begins the bytes.
const MAGIC: &[u8; 4] = b"FSHI";

/// Changes whenever the bytes do. The first version was JSON.
const VERSION: u32 = 2;

const CHECKSUM_BYTES: usize = 8;

fn corrupt(reason: impl ToString) -> HistoryError {
    HistoryError::Corrupt { reason: reason.to_string() }
}

impl From<Malformed> for HistoryError {
    fn from(Malformed(reason): Malformed) -> Self {
        corrupt(reason)
    }
}

/// A history at the end of a tick, to be written elsewhere: it shares its series with the view.
#[derive(Clone, Debug)]
pub struct Snapshot {
    view: Arc<HistoryView>,
    frame: u64,
    tail: Tail,
    pairs: BTreeMap<(Target, Target), u64>,
}

impl Snapshot {
    /// The whole state as bytes.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let open = Bucket::default();
        let series = self.view.series.iter().map(|it| {
            let parts = Parts {
                stats: &it.stats,
                open: &open,
                buckets: &it.buckets,
                durations: &it.durations,
            };
            (&it.key, parts)
        });
        let ticks = (self.view.at.next(), self.view.oldest);
        write(ticks, self.frame, &self.tail, series, &self.pairs)
    }
}

/// What is written of one series.
struct Parts<'a> {
    stats: &'a SeriesStats,
    open: &'a Bucket,
    buckets: &'a Buckets,
    durations: &'a QuantileSketch,
}

fn write<'a>(
    (now, oldest): (Tick, Tick),
    frame: u64,
    tail: &Tail,
    series: impl ExactSizeIterator<Item = (&'a SeriesKey, Parts<'a>)>,
    pairs: &BTreeMap<(Target, Target), u64>,
) -> Vec<u8> {
    let mut to = Writer::default();
    to.raw(MAGIC);
    to.raw(&VERSION.to_le_bytes());
    to.number(now.0);
    to.number(oldest.0);
    to.number(frame);
    tail.write(&mut to);
    to.number(series.len() as u64);
    for (key, parts) in series {
        write_key(&mut to, key);
        write_series(&mut to, &parts);
    }
    to.number(pairs.len() as u64);
    for ((a, b), count) in pairs {
        write_target(&mut to, a);
        write_target(&mut to, b);
        to.number(*count);
    }
    let mut bytes = to.finish();
    let sum = checksum(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

impl History {
    /// What is to be saved right after a tick was closed, with the view of that moment. Cheap: the
    /// series are those of the view. Calls of the open tick are not in it.
    #[must_use]
    pub fn snapshot(&self, view: &Arc<HistoryView>) -> Snapshot {
        Snapshot {
            view: Arc::clone(view),
            frame: self.frame,
            tail: self.tail.clone(),
            pairs: self.together.pairs.clone(),
        }
    }

    /// The whole state as bytes, with the open tick.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let series = self.series.iter().map(|(key, series)| {
            let parts = Parts {
                stats: &series.stats,
                open: &series.open,
                buckets: &series.buckets,
                durations: &series.durations,
            };
            (key, parts)
        });
        write((self.now, self.oldest), self.frame, &self.tail, series, &self.together.pairs)
    }

    /// Takes up what [`save`](Self::save) wrote, within the bounds of `config`.
    ///
    /// # Errors
    /// [`HistoryError::Version`] or [`HistoryError::Corrupt`] if it is something else.
    pub fn load(config: &LoopConfig, bytes: &[u8]) -> Result<Self, HistoryError> {
        if bytes.first() == Some(&b'{') {
            return Err(HistoryError::Version { version: 1, expected: VERSION });
        }
        let rest =
            bytes.strip_prefix(MAGIC).ok_or_else(|| corrupt("it begins with other bytes"))?;
        let (version, _) = rest.split_first_chunk().ok_or_else(|| corrupt("it ends early"))?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(HistoryError::Version { version, expected: VERSION });
        }
        let (whole, sum) =
            bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or_else(|| corrupt("it ends early"))?;
        if checksum(whole) != u64::from_le_bytes(*sum) {
            return Err(corrupt("the checksum is another one"));
        }
        let body = whole.get(MAGIC.len() + 4..).unwrap_or_default();
        Self::read(config, &mut Reader::new(body))
    }

    fn read(config: &LoopConfig, from: &mut Reader<'_>) -> Result<Self, HistoryError> {
        let mut history = Self::new(config);
        history.now = Tick(from.number()?);
        history.oldest = Tick(from.number()?);
        history.frame = from.number()?;
        history.tail = Tail::read(from, config.monitor().tail_cells())?;
        for _ in 0..from.length()? {
            let key = read_key(from)?;
            let series = read_series(from)?;
            let in_order = series.buckets.iter().is_sorted_by(|a, b| a.tick < b.tick);
            if !in_order || series.buckets.back().is_some_and(|last| last.tick >= history.now) {
                return Err(corrupt(format!("ticks of {key} are out of order")));
            }
            history.buckets += series.buckets.len();
            history.series.insert(key, series);
        }
        let pairs = from.length()?;
        let pairs = (0..pairs)
            .map(|_| Ok((read_target(from)?, read_target(from)?, from.number()?)))
            .collect::<Result<_, Malformed>>()?;
        history.together.restore(pairs);
        if !from.is_at_end() {
            return Err(corrupt("it goes on after its end"));
        }
        history.keep_bounds();
        Ok(history)
    }
}

fn write_partition(to: &mut Writer, id: &PartitionId) {
    to.text(&id.table);
    to.number(u64::from(id.ordinal));
}

fn read_partition(from: &mut Reader<'_>) -> Result<PartitionId, Malformed> {
    Ok(PartitionId { table: from.text()?, ordinal: from.small()? })
}

fn write_key(to: &mut Writer, key: &SeriesKey) {
    to.text(&key.function);
    write_target(to, &(key.expression, key.partition.clone()));
}

fn read_key(from: &mut Reader<'_>) -> Result<SeriesKey, Malformed> {
    let function = from.text()?;
    let (expression, partition) = read_target(from)?;
    Ok(SeriesKey { function, expression, partition })
}

fn write_target(to: &mut Writer, (expression, partition): &Target) {
    to.raw(&expression.0.to_le_bytes());
    write_partition(to, partition);
}

fn read_target(from: &mut Reader<'_>) -> Result<Target, Malformed> {
    Ok((ExpressionId(from.wide()?), read_partition(from)?))
}

fn write_rolling(to: &mut Writer, rolling: &Rolling) {
    to.number(rolling.count);
    to.real(rolling.mean);
    to.real(rolling.variance);
}

fn read_rolling(from: &mut Reader<'_>) -> Result<Rolling, Malformed> {
    let (count, mean, variance) = (from.number()?, from.real()?, from.real()?);
    if !mean.is_finite() || !variance.is_finite() {
        return Err(Malformed("a rolling figure is not finite"));
    }
    Ok(Rolling { count, mean, variance })
}

fn write_bucket(to: &mut Writer, bucket: &Bucket, since: Tick) {
    to.number(bucket.tick.0.saturating_sub(since.0));
    to.number(u64::from(bucket.calls));
    to.number(bucket.rows);
    to.number(bucket.would_be_ns);
}

fn read_bucket(from: &mut Reader<'_>, since: Tick) -> Result<Bucket, Malformed> {
    let tick = Tick(since.0.saturating_add(from.number()?));
    let (calls, rows, would_be_ns) = (from.small()?, from.number()?, from.number()?);
    Ok(Bucket { tick, calls, rows, would_be_ns })
}

fn write_series(to: &mut Writer, series: &Parts<'_>) {
    let stats = series.stats;
    let counts = [stats.calls, stats.rows, stats.rows_stored, stats.rows_fresh];
    counts.into_iter().for_each(|count| to.number(count));
    let more = [stats.rows_fresh_stored, stats.ns, stats.would_be_ns, stats.bytes];
    more.into_iter().for_each(|count| to.number(count));
    let rolling =
        [&stats.calls_per_tick, &stats.ns_per_row, &stats.ns_per_call, &stats.bytes_per_row];
    rolling.into_iter().for_each(|rolling| write_rolling(to, rolling));
    to.number(stats.first_called.0);
    to.number(stats.last_called.0);
    write_bucket(to, series.open, Tick(0));
    to.number(series.buckets.len() as u64);
    let mut since = Tick(0);
    for bucket in series.buckets.iter() {
        write_bucket(to, bucket, since);
        since = bucket.tick;
    }
    series.durations.write(to);
}

fn read_series(from: &mut Reader<'_>) -> Result<Series, Malformed> {
    let stats = SeriesStats {
        calls: from.number()?,
        rows: from.number()?,
        rows_stored: from.number()?,
        rows_fresh: from.number()?,
        rows_fresh_stored: from.number()?,
        ns: from.number()?,
        would_be_ns: from.number()?,
        bytes: from.number()?,
        calls_per_tick: read_rolling(from)?,
        ns_per_row: read_rolling(from)?,
        ns_per_call: read_rolling(from)?,
        bytes_per_row: read_rolling(from)?,
        first_called: Tick(from.number()?),
        last_called: Tick(from.number()?),
    };
    let open = read_bucket(from, Tick(0))?;
    let mut since = Tick(0);
    let buckets = from.length()?;
    let buckets = (0..buckets)
        .map(|_| {
            let bucket = read_bucket(from, since)?;
            since = bucket.tick;
            Ok(bucket)
        })
        .collect::<Result<_, Malformed>>()?;
    let durations = Arc::new(QuantileSketch::read(from)?);
    Ok(Series { stats, buckets: Arc::new(buckets), open, durations })
}
