//! Values of a call that one task evaluated, by row: a join may repeat a row, and what was evaluated is
//! offered to the partitions in the end.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array, ArrayRef, BooleanBufferBuilder, UInt32Array};
use arrow::compute::{concat, take};
use arrow::error::ArrowError;
use foreshard_actors::partition::OutputValues;

use crate::query::late::carried::RowNumber;

/// Beyond so many arrays they become one: picking values out of many takes longer.
const PIECES_MAX: usize = 32;

/// The values.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Where the value of a row is, counted through all pieces.
    places: HashMap<RowNumber, usize>,
    pieces: Vec<ArrayRef>,
    /// First place in each piece.
    starts: Vec<usize>,
    len: usize,
    bytes: usize,
}

impl Found {
    /// Place of a row's value: a piece, and a position in it.
    pub(super) fn place(&self, row: RowNumber) -> Option<(usize, usize)> {
        let place = *self.places.get(&row)?;
        let piece = self.starts.partition_point(|start| *start <= place) - 1;
        Some((piece, place - self.starts[piece]))
    }

    /// The values, piece by piece.
    pub(super) fn pieces(&self) -> &[ArrayRef] {
        &self.pieces
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the values and of what finds them.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.places.len() * 3 * size_of::<RowNumber>()
    }

    /// Takes one value per row; a row without number has one that nobody asks for again.
    pub(super) fn add(
        &mut self,
        rows: &[Option<RowNumber>],
        values: ArrayRef,
    ) -> Result<(), ArrowError> {
        for (row, place) in rows.iter().zip(self.len..) {
            if let Some(row) = row {
                self.places.insert(*row, place);
            }
        }
        self.bytes += values.get_array_memory_size();
        self.starts.push(self.len);
        self.len += values.len();
        self.pieces.push(values);
        if self.pieces.len() > PIECES_MAX {
            let all = self.all()?;
            self.bytes = all.get_array_memory_size();
            self.pieces = vec![all];
            self.starts = vec![0];
        }
        Ok(())
    }

    fn all(&self) -> Result<ArrayRef, ArrowError> {
        let pieces: Vec<&dyn Array> = self.pieces.iter().map(AsRef::as_ref).collect();
        concat(&pieces)
    }

    /// The values by segment: its number, and what is known of its rows. `rows` tells how many a segment
    /// has.
    pub(super) fn by_segment(
        self,
        rows: impl Fn(u32) -> Option<usize>,
    ) -> Result<Vec<(u32, OutputValues)>, ArrowError> {
        if self.places.is_empty() {
            return Ok(vec![]);
        }
        let all = self.all()?;
        let mut segments: BTreeMap<u32, Vec<(u32, u32)>> = BTreeMap::new();
        for (row, place) in self.places {
            segments.entry(row.segment()).or_default().push((row.row(), place as u32));
        }
        let mut outputs = Vec::with_capacity(segments.len());
        for (segment, mut places) in segments {
            let Some(rows) = rows(segment) else { continue };
            places.sort_unstable();
            let mut known = BooleanBufferBuilder::new(rows);
            known.append_n(rows, false);
            places.iter().for_each(|(row, _)| known.set_bit(*row as usize, true));
            let places = UInt32Array::from_iter_values(places.into_iter().map(|(_, place)| place));
            let values = take(&all, &places, None)?;
            outputs.extend(
                OutputValues::of_rows(known.finish(), values).map(|values| (segment, values)),
            );
        }
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::Int64Type;

    use super::*;

    fn numbers(values: impl IntoIterator<Item = i64>) -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(values))
    }

    #[test]
    fn values_are_found_by_row_through_many_pieces_and_fall_apart_by_segment() {
        let mut found = Found::default();
        // Row r of segment s has the value 1,000 s + r; they come from the last one down.
        for piece in (0..100_u32).rev() {
            let (segment, row) = (piece % 3, piece / 3);
            let rows = [Some(RowNumber::new(segment, row)), None];
            let value = i64::from(1_000 * segment + row);
            found.add(&rows, numbers([value, -1])).unwrap();
        }
        assert_eq!((found.len(), found.pieces().len() <= PIECES_MAX), (200, true));
        let (piece, position) = found.place(RowNumber::new(2, 7)).unwrap();
        assert_eq!(found.pieces()[piece].as_primitive::<Int64Type>().value(position), 2_007);
        assert!(found.place(RowNumber::new(2, 33)).is_none());
        let segments = found.by_segment(|segment| (segment < 2).then_some(40)).unwrap();
        assert_eq!(segments.iter().map(|(segment, _)| *segment).collect::<Vec<_>>(), [0, 1]);
        let (_, second) = &segments[1];
        assert_eq!((second.rows(), second.rows_known()), (40, 33));
        let values = second.values().unwrap();
        let expected: Vec<i64> = (1_000..1_033).collect();
        assert_eq!(values.as_primitive::<Int64Type>().values().to_vec(), expected);
        assert!(second.known().unwrap().slice(33, 7).count_set_bits() == 0);
    }
}
