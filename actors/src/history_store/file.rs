//! Parquet files of the history: rows by series and time, whole or not there at all.

use std::fs::File;
use std::iter::Peekable;
use std::path::{Path, PathBuf};

use foreshard_policy::history::{Resolution, Row};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::error::HistoryStoreError;
use super::rows::{Parsed, parse, schema, to_batch};
use super::segment::sync_folder;

/// Rows of a row group: what a look-up of one function has to read at least.
const ROW_GROUP_ROWS: usize = 8_192;

/// A file while it is written, under another name.
pub(super) struct FileWriter {
    path: PathBuf,
    new: PathBuf,
    writer: ArrowWriter<File>,
    resolution: Resolution,
    waiting: Vec<Row>,
    made: Made,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) first_ms: u64,
    pub(super) last_ms: u64,
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

impl FileWriter {
    pub(super) fn create(path: PathBuf) -> Result<Self, HistoryStoreError> {
        let mut new = path.clone().into_os_string();
        new.push(".new");
        let new = PathBuf::from(new);
        let file = File::create(&new).map_err(HistoryStoreError::io("create", &new))?;
        // The squares of damaged clocks could be NaN, which statistics ignore; sketches have no order.
        let none = |column: &str| (column.to_owned(), EnabledStatistics::None);
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_created_by(concat!("foreshard ", env!("CARGO_PKG_VERSION")).to_owned());
        for (column, statistics) in ["would_be_ns_squares", "durations"].map(none) {
            properties =
                properties.set_column_statistics_enabled(column.as_str().into(), statistics);
        }
        let writer = ArrowWriter::try_new(file, schema(), Some(properties.build()))?;
        let made = Made { first_ms: u64::MAX, ..Made::default() };
        let (resolution, waiting) = (Resolution::Second, Vec::new());
        Ok(Self { path, new, writer, resolution, waiting, made })
    }

    /// Adds a row. Rows come by series and time, or a look-up by name reads more than it needs.
    pub(super) fn push(
        &mut self,
        row: Row,
        resolution: Resolution,
    ) -> Result<(), HistoryStoreError> {
        if resolution != self.resolution || self.waiting.len() >= ROW_GROUP_ROWS {
            self.write_waiting()?;
            self.resolution = resolution;
        }
        self.made.first_ms = self.made.first_ms.min(row.start_ms);
        self.made.last_ms = self.made.last_ms.max(row.start_ms);
        self.made.rows += 1;
        self.waiting.push(row);
        Ok(())
    }

    fn write_waiting(&mut self) -> Result<(), HistoryStoreError> {
        if !self.waiting.is_empty() {
            self.writer.write(&to_batch(&self.waiting, self.resolution)?)?;
            self.waiting.clear();
        }
        Ok(())
    }

    /// Gives the file its name, once all of it is on the disk.
    pub(super) fn finish(mut self) -> Result<Made, HistoryStoreError> {
        self.write_waiting()?;
        let file = self.writer.into_inner()?;
        file.sync_all().map_err(HistoryStoreError::io("sync", &self.new))?;
        let bytes = file.metadata().map_err(HistoryStoreError::io("look at", &self.new))?.len();
        std::fs::rename(&self.new, &self.path)
            .map_err(HistoryStoreError::io("rename", &self.new))?;
        sync_folder(&self.path)?;
        let first_ms = if self.made.rows == 0 { 0 } else { self.made.first_ms };
        Ok(Made { bytes, first_ms, ..self.made })
    }
}

/// What a file holds, batch by batch.
pub(super) fn batches(
    path: &Path,
) -> Result<impl Iterator<Item = Result<Parsed, HistoryStoreError>> + use<>, HistoryStoreError> {
    let file = File::open(path).map_err(HistoryStoreError::io("open", path))?;
    let unreadable = || HistoryStoreError::unreadable(path);
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(unreadable())?;
    let reader = reader.with_batch_size(ROW_GROUP_ROWS / 4).build().map_err(unreadable())?;
    let path = path.to_owned();
    Ok(reader.map(move |batch| {
        let unreadable = || HistoryStoreError::unreadable(&path);
        parse(&batch.map_err(unreadable())?).map_err(unreadable())
    }))
}

type Rows = Box<dyn Iterator<Item = Result<Row, HistoryStoreError>>>;

/// The rows of a file of this program, in the order in which they are in it.
pub(super) fn rows(path: &Path) -> Result<Rows, HistoryStoreError> {
    Ok(Box::new(batches(path)?.flat_map(|parsed| {
        let (rows, error) = match parsed {
            Ok(parsed) => (parsed.rows, None),
            Err(error) => (Vec::new(), Some(Err(error))),
        };
        rows.into_iter().map(|(_, row)| Ok(row)).chain(error)
    })))
}

/// Adds rows up that come by series and time from each of several sources, and hands the sums on in
/// that order. It holds a row of each source.
pub(super) fn merge(
    sources: Vec<Rows>,
    to: Resolution,
    mut take: impl FnMut(Row) -> Result<(), HistoryStoreError>,
) -> Result<(), HistoryStoreError> {
    let mut sources: Vec<Peekable<Rows>> = sources.into_iter().map(Iterator::peekable).collect();
    let mut take = |mut row: Row| {
        if to == Resolution::Second {
            // The second may have come in parts.
            row.summary.in_flight_max = row.summary.in_flight(to.ms());
        }
        take(row)
    };
    let mut sum: Option<Row> = None;
    while let Some(row) = next_row(&mut sources, to)? {
        let row = Row { start_ms: to.start(row.start_ms), ..row };
        match &mut sum {
            Some(sum) if sum.key == row.key && sum.start_ms == row.start_ms => {
                sum.summary.merge(&row.summary);
            }
            _ => {
                if let Some(done) = sum.replace(row) {
                    take(done)?;
                }
            }
        }
    }
    sum.map_or(Ok(()), take)
}

/// The first row of all that come next.
fn next_row(
    sources: &mut [Peekable<Rows>],
    to: Resolution,
) -> Result<Option<Row>, HistoryStoreError> {
    let mut first: Option<(usize, &Row)> = None;
    for (source, rows) in sources.iter_mut().enumerate() {
        let row = match rows.peek() {
            None => continue,
            Some(Ok(row)) => row,
            Some(Err(_)) => return rows.next().transpose(),
        };
        let place = |row: &Row| to.start(row.start_ms);
        let is_first =
            first.is_none_or(|(_, held)| (&row.key, place(row)) < (&held.key, place(held)));
        if is_first {
            first = Some((source, row));
        }
    }
    let source = first.map(|(source, _)| source);
    source.and_then(|source| sources.get_mut(source)?.next()).transpose()
}

#[cfg(test)]
mod tests {
    use foreshard_policy::history::{Summary, added_up};
    use foreshard_policy::ids::{ExpressionId, PartitionId, SeriesKey};
    use proptest::prelude::*;

    use super::*;

    fn row(ordinal: u32, start_ms: u64, calls: u64) -> Row {
        let key = SeriesKey {
            function: "f".into(),
            expression: ExpressionId(1),
            partition: PartitionId::new("t", ordinal),
        };
        Row { key, start_ms, summary: Summary { calls, ns: 500_000_000, ..Summary::default() } }
    }

    #[test]
    fn a_file_has_its_name_when_it_is_whole_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut writer = FileWriter::create(path.clone()).unwrap();
        let written: Vec<Row> = (0..20_000).map(|at| row(at, 1_000, 3)).collect();
        for row in &written {
            writer.push(row.clone(), Resolution::Second).unwrap();
        }
        assert!(!path.exists());
        let made = writer.finish().unwrap();
        assert_eq!((made.first_ms, made.last_ms, made.rows), (1_000, 1_000, 20_000));
        assert_eq!(made.bytes, std::fs::metadata(&path).unwrap().len());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(rows(&path).unwrap().map(Result::unwrap).collect::<Vec<_>>(), written);
    }

    #[test]
    fn a_file_of_something_else_is_unreadable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "no Parquet").unwrap();
        let error = rows(&path).err().unwrap();
        assert_eq!((error.code(), error.is_retryable()), ("FS-HISTORY-5", false));
    }

    proptest! {
        #[test]
        fn merging_files_gives_what_adding_all_rows_up_gives(
            parts in prop::collection::vec(
                prop::collection::vec((0u32..3, 0u64..200, 1u64..9), 0..20), 1..5),
        ) {
            let row = |(ordinal, second, calls): (u32, u64, u64)| row(ordinal, second * 1_000, calls);
            let parts: Vec<Vec<Row>> = parts
                .into_iter()
                .map(|part| added_up(part.into_iter().map(row), Resolution::Second))
                .collect();
            for to in Resolution::ALL {
                let sources = parts.iter().cloned();
                let sources = sources.map(|part| Box::new(part.into_iter().map(Ok)) as Rows);
                let mut merged = vec![];
                let take = |row| {
                    merged.push(row);
                    Ok(())
                };
                merge(sources.collect(), to, take).unwrap();
                prop_assert_eq!(&merged, &added_up(parts.concat(), to));
            }
        }
    }
}
