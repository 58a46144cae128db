//! Segments: files to which frames are only appended, so that a crash costs at most the last frame.
//!
//! ```text
//! frame = magic 4 | length of the body 4 | checksum 8 | body
//! body  = head 48 | rows as an Arrow IPC stream
//! ```
//!
//! The checksum is over the body, so whatever follows the last whole frame is told from it. Bytes
//! between two whole frames that are none are skipped and counted; the last ones are cut off.

use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use foreshard_policy::history::{Resolution, Row};
use foreshard_policy::ids::Tick;

use super::error::HistoryStoreError;
use super::rows::{from_batch, schema, to_batch};

const MAGIC: &[u8; 4] = b"FSF1";
const BEFORE_BODY: usize = 16;
const HEAD: usize = 48;

/// No frame is longer; a length beyond it is damage.
const BODY_BYTES_MAX: usize = 256 << 20;

/// What is written at once: the calls between two flushes.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Number of the frame. They ascend; one that is missing was dropped.
    pub number: u64,
    /// The tick that was open when these calls were counted.
    pub tick: Tick,
    /// When it was flushed, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Whether the clock had not jumped lately.
    pub calm: bool,
    /// The calls, by series and second.
    pub rows: Vec<Row>,
}

/// Where a frame is, and what one must know to leave it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) number: u64,
    tick: u64,
    at_ms: u64,
    calm: bool,
    /// Beginning of its first and of its last second.
    pub(super) first_ms: u64,
    pub(super) last_ms: u64,
    /// Of the body.
    offset: u64,
    length: usize,
}

impl Entry {
    pub(super) fn at_ms(&self) -> u64 {
        self.at_ms
    }
}

/// The frame as bytes.
fn encode(frame: &Frame) -> Result<(Vec<u8>, Entry), HistoryStoreError> {
    let starts = || frame.rows.iter().map(|row| row.start_ms);
    let (first_ms, last_ms) = (starts().min().unwrap_or(0), starts().max().unwrap_or(0));
    let mut bytes = vec![0; BEFORE_BODY];
    let head = [frame.number, frame.tick.0, frame.at_ms, first_ms, last_ms, frame.calm.into()];
    head.iter().for_each(|part| bytes.extend(part.to_le_bytes()));
    if !frame.rows.is_empty() {
        let mut writer = StreamWriter::try_new(&mut bytes, &schema())?;
        writer.write(&to_batch(&frame.rows, Resolution::Second)?)?;
        writer.finish()?;
    }
    let length = bytes.len() - BEFORE_BODY;
    if length > BODY_BYTES_MAX {
        let reason = format!("a frame has {length} bytes; it must be at most {BODY_BYTES_MAX}");
        return Err(HistoryStoreError::Unwritable { reason });
    }
    let sum = checksum(&bytes[BEFORE_BODY..]);
    bytes[..4].copy_from_slice(MAGIC);
    bytes[4..8].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    bytes[8..BEFORE_BODY].copy_from_slice(&sum);
    let entry = Entry {
        number: frame.number,
        tick: frame.tick.0,
        at_ms: frame.at_ms,
        calm: frame.calm,
        first_ms,
        last_ms,
        offset: BEFORE_BODY as u64,
        length,
    };
    Ok((bytes, entry))
}

fn checksum(body: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::hash(body).as_bytes()[..8]);
    sum
}

/// The frame whose bytes begin here, if it is whole: its place from here, and its end.
fn decode_head(bytes: &[u8]) -> Option<(Entry, usize)> {
    let before = bytes.get(..BEFORE_BODY)?;
    let (magic, rest) = before.split_first_chunk::<4>()?;
    let (length, sum) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    if magic != MAGIC || !(HEAD..=BODY_BYTES_MAX).contains(&length) {
        return None;
    }
    let body = bytes.get(BEFORE_BODY..BEFORE_BODY + length)?;
    if checksum(body) != sum {
        return None;
    }
    let part = |at: usize| {
        let bytes = body.get(8 * at..8 * at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    let entry = Entry {
        number: part(0),
        tick: part(1),
        at_ms: part(2),
        first_ms: part(3),
        last_ms: part(4),
        calm: part(5) == 1,
        offset: BEFORE_BODY as u64,
        length,
    };
    Some((entry, BEFORE_BODY + length))
}

/// What was found in a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Whole frames, in their order.
    pub(super) entries: Vec<Entry>,
    /// Bytes after the last whole frame: a frame that a crash cut short.
    pub(super) torn_bytes: u64,
    /// Bytes between whole frames that belong to none.
    pub(super) damaged_bytes: u64,
}

/// Finds the whole frames of a segment.
pub(super) fn scan(path: &Path) -> Result<Found, HistoryStoreError> {
    let bytes = std::fs::read(path).map_err(HistoryStoreError::io("read", path))?;
    let mut found = Found::default();
    let (mut at, mut skipped) = (0, 0);
    while at < bytes.len() {
        if let Some((entry, length)) = decode_head(&bytes[at..]) {
            found.entries.push(Entry { offset: entry.offset + at as u64, ..entry });
            found.damaged_bytes += skipped;
            skipped = 0;
            at += length;
            continue;
        }
        // To where the next frame may begin.
        let next = bytes[at + 1..].windows(MAGIC.len()).position(|window| window == MAGIC);
        let step = next.map_or(bytes.len() - at, |next| next + 1);
        skipped += step as u64;
        at += step;
    }
    found.torn_bytes = skipped;
    Ok(found)
}

/// Cuts off what follows the last whole frame.
pub(super) fn cut(path: &Path, found: &Found) -> Result<(), HistoryStoreError> {
    let end = found.entries.last().map_or(0, |last| last.offset + last.length as u64);
    let file = OpenOptions::new().write(true).open(path);
    let file = file.map_err(HistoryStoreError::io("open", path))?;
    file.set_len(end).map_err(HistoryStoreError::io("cut", path))?;
    file.sync_all().map_err(HistoryStoreError::io("sync", path))
}

/// Reads one frame.
pub(super) fn read(
    file: &mut File,
    path: &Path,
    entry: &Entry,
) -> Result<Frame, HistoryStoreError> {
    let io = || HistoryStoreError::io("read", path);
    let mut body = vec![0; entry.length];
    file.seek(SeekFrom::Start(entry.offset)).map_err(io())?;
    file.read_exact(&mut body).map_err(io())?;
    let mut rows = Vec::new();
    if body.len() > HEAD {
        let unreadable = || HistoryStoreError::unreadable(path);
        let stream = StreamReader::try_new(Cursor::new(&body[HEAD..]), None);
        for batch in stream.map_err(unreadable())? {
            rows.extend(from_batch(&batch.map_err(unreadable())?).map_err(unreadable())?);
        }
    }
    let Entry { number, tick, at_ms, calm, .. } = *entry;
    Ok(Frame { number, tick: Tick(tick), at_ms, calm, rows })
}

/// A segment that frames are appended to.
#[derive(Debug)]
pub(super) struct Segment {
    path: PathBuf,
    file: File,
    bytes: u64,
    dirty: bool,
}

impl Segment {
    /// Makes a new one; there must be no file of this name.
    pub(super) fn create(path: PathBuf) -> Result<Self, HistoryStoreError> {
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.map_err(HistoryStoreError::io("create", &path))?;
        sync_folder(&path)?;
        Ok(Self { path, file, bytes: 0, dirty: false })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends a frame. If that fails the segment is what it was before.
    pub(super) fn append(&mut self, frame: &Frame) -> Result<Entry, HistoryStoreError> {
        let (bytes, entry) = encode(frame)?;
        self.dirty = true;
        if let Err(source) = self.file.write_all(&bytes) {
            // What was written of it would be found damaged; better it is gone.
            drop(self.file.set_len(self.bytes));
            drop(self.file.seek(SeekFrom::Start(self.bytes)));
            return Err(HistoryStoreError::io("write", &self.path)(source));
        }
        let entry = Entry { offset: entry.offset + self.bytes, ..entry };
        self.bytes += bytes.len() as u64;
        Ok(entry)
    }

    /// Makes what was appended survive a crash of the machine.
    pub(super) fn sync(&mut self) -> Result<(), HistoryStoreError> {
        if std::mem::take(&mut self.dirty) {
            self.file.sync_data().map_err(HistoryStoreError::io("sync", &self.path))?;
        }
        Ok(())
    }
}

/// Makes the name of a file survive a crash of the machine.
pub(super) fn sync_folder(path: &Path) -> Result<(), HistoryStoreError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let sync = |folder: &Path| -> io::Result<()> { File::open(folder)?.sync_all() };
    sync(folder).map_err(HistoryStoreError::io("sync", folder))
}

#[cfg(test)]
mod tests {
    use foreshard_policy::history::Summary;
    use foreshard_policy::ids::{ExpressionId, PartitionId, SeriesKey};
    use proptest::prelude::*;

    use super::*;

    fn frame(number: u64, rows: u64) -> Frame {
        let key = SeriesKey {
            function: "f".into(),
            expression: ExpressionId(1),
            partition: PartitionId::new("t", 0),
        };
        let rows = (0..rows).map(|row| Row {
            key: key.clone(),
            start_ms: 1_000 * (number + row),
            summary: Summary { calls: number + 1, ..Summary::default() },
        });
        Frame { number, tick: Tick(number + 1), at_ms: 5, calm: true, rows: rows.collect() }
    }

    fn written(path: &Path, frames: &[Frame]) -> Vec<usize> {
        let mut segment = Segment::create(path.to_owned()).unwrap();
        let mut ends = vec![];
        for frame in frames {
            segment.append(frame).unwrap();
            ends.push(segment.bytes() as usize);
        }
        segment.sync().unwrap();
        ends
    }

    fn read_all(path: &Path, found: &Found) -> Vec<Frame> {
        let mut file = File::open(path).unwrap();
        found.entries.iter().map(|entry| read(&mut file, path, entry).unwrap()).collect()
    }

    #[test]
    fn frames_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let frames: Vec<Frame> = (0..4).map(|number| frame(number, number)).collect();
        written(&path, &frames);
        let found = scan(&path).unwrap();
        assert_eq!(read_all(&path, &found), frames);
        assert_eq!((found.torn_bytes, found.damaged_bytes), (0, 0));
        assert_eq!((found.entries[3].first_ms, found.entries[3].last_ms), (3_000, 5_000));
    }

    #[test]
    fn a_torn_end_is_cut_off_wherever_it_tears() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let frames = [frame(0, 1), frame(1, 2)];
        let ends = written(&path, &frames);
        let whole = std::fs::read(&path).unwrap();
        // Each cut syncs: not every length, but some in each part of the frame.
        for length in (ends[0]..ends[1]).step_by(131).chain([ends[0] + 1, ends[1] - 1]) {
            std::fs::write(&path, &whole[..length]).unwrap();
            let found = scan(&path).unwrap();
            assert_eq!((found.entries.len(), found.torn_bytes), (1, (length - ends[0]) as u64));
            cut(&path, &found).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), ends[0] as u64);
            assert_eq!(read_all(&path, &found), frames[..1]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_damaged_byte_costs_the_frame_it_is_in_and_no_other(
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("s");
            let frames: Vec<Frame> = (0..5).map(|number| frame(number, 1)).collect();
            let ends = written(&path, &frames);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            std::fs::write(&path, &bytes).unwrap();
            let hit = ends.iter().position(|end| at < *end).unwrap();
            let found = scan(&path).unwrap();
            let mut left = frames.clone();
            left.remove(hit);
            prop_assert_eq!(read_all(&path, &found), left);
            let lost = (ends[hit] - if hit == 0 { 0 } else { ends[hit - 1] }) as u64;
            let counted = if hit == 4 { found.torn_bytes } else { found.damaged_bytes };
            prop_assert_eq!(counted, lost);
        }
    }
}
