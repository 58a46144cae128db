//! Values of one function expression over the rows of a segment: of all rows, or of those that
//! somebody needed so far.
//!
//! Queries with other filters complete each other: each computes only rows that nobody computed, and
//! what is stored grows until the column is whole.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, new_empty_array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{CastOptions, cast_with_options, concat, filter, interleave, take};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;

/// Values for some rows out of a fixed number.
#[derive(Clone, Debug)]
pub struct OutputValues {
    /// Which rows have a value; `None` if all do.
    known: Option<BooleanBuffer>,
    /// One value per known row, in the order of the rows.
    values: ArrayRef,
    /// Whether `values` are keys into a dictionary, by our choice.
    is_packed: bool,
}

/// What [`OutputValues::select`] found.
#[derive(Clone, Debug)]
pub struct Selected {
    /// One value per wanted row that has one, in the order of the rows.
    pub values: ArrayRef,
    /// Which of the wanted rows have one; `None` if all do.
    pub known: Option<BooleanBuffer>,
}

impl OutputValues {
    /// One value per row.
    #[must_use]
    pub fn whole(values: ArrayRef) -> Self {
        Self { known: None, values, is_packed: false }
    }

    /// Nothing is known of `rows` rows.
    #[must_use]
    pub fn nothing(rows: usize, data_type: &DataType) -> Self {
        let known = (rows > 0).then(|| BooleanBuffer::new_unset(rows));
        Self { known, values: new_empty_array(data_type), is_packed: false }
    }

    /// Values for the rows that are set in `known`; `None` if their number is another.
    #[must_use]
    pub fn of_rows(known: BooleanBuffer, values: ArrayRef) -> Option<Self> {
        let count = known.count_set_bits();
        if count != values.len() {
            return None;
        }
        let known = (count < known.len()).then_some(known);
        Some(Self { known, values, is_packed: false })
    }

    /// Number of rows, with or without a value.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.known.as_ref().map_or(self.values.len(), BooleanBuffer::len)
    }

    /// Number of rows with a value.
    #[must_use]
    pub fn rows_known(&self) -> usize {
        self.values.len()
    }

    /// Whether every row has a value.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.known.is_none()
    }

    /// Which rows have a value; `None` if all do.
    #[must_use]
    pub fn known(&self) -> Option<&BooleanBuffer> {
        self.known.as_ref()
    }

    /// The values of the known rows, in the order of the rows. Copies them if they are packed.
    ///
    /// # Errors
    /// If Arrow cannot copy values of this type.
    pub fn values(&self) -> Result<ArrayRef, ArrowError> {
        self.unpack(self.values.clone())
    }

    /// The same values, texts as keys into a dictionary of up to 65,536 if that spares a quarter of the
    /// bytes.
    #[must_use]
    pub fn packed(self) -> Self {
        let texts = matches!(
            self.values.data_type(),
            DataType::Utf8
                | DataType::LargeUtf8
                | DataType::Utf8View
                | DataType::Binary
                | DataType::LargeBinary
                | DataType::BinaryView
        );
        if !texts {
            return self;
        }
        let (keys, texts) = (Box::new(DataType::UInt16), Box::new(self.values.data_type().clone()));
        let options = CastOptions { safe: false, ..CastOptions::default() };
        match cast_with_options(&self.values, &DataType::Dictionary(keys, texts), &options) {
            Ok(packed) if 4 * size(&packed) <= 3 * size(&self.values) => {
                Self { known: self.known, values: packed, is_packed: true }
            }
            // Too many different ones, or too long.
            _ => self,
        }
    }

    /// The values as they are held: keys into a dictionary if they are packed.
    pub(crate) fn raw(&self) -> &ArrayRef {
        &self.values
    }

    /// Whether [`raw`](Self::raw) are keys into a dictionary, by our choice.
    pub(crate) fn is_packed(&self) -> bool {
        self.is_packed
    }

    /// What was taken apart by [`raw`](Self::raw), [`known`](Self::known) and
    /// [`is_packed`](Self::is_packed); `None` if the parts do not fit each other.
    pub(crate) fn of_raw(
        known: Option<BooleanBuffer>,
        values: ArrayRef,
        is_packed: bool,
    ) -> Option<Self> {
        if is_packed && values.as_any_dictionary_opt().is_none() {
            return None;
        }
        let of_rows = match known {
            Some(known) => Self::of_rows(known, values)?,
            None => Self::whole(values),
        };
        Some(Self { is_packed, ..of_rows })
    }

    fn unpack(&self, values: ArrayRef) -> Result<ArrayRef, ArrowError> {
        match values.as_any_dictionary_opt().filter(|_| self.is_packed) {
            Some(dictionary) => take(dictionary.values(), dictionary.keys(), None),
            None => Ok(values),
        }
    }

    /// Bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let known = self.known.as_ref().map_or(0, |known| known.len().div_ceil(8));
        (self.values.get_array_memory_size() + known) as u64
    }

    /// What is known of `rows` rows from `start` on. Copies no value.
    #[must_use]
    pub fn slice(&self, start: usize, rows: usize) -> Self {
        let Some(known) = &self.known else {
            let (values, is_packed) = (self.values.slice(start, rows), self.is_packed);
            return Self { known: None, values, is_packed };
        };
        let here = known.slice(start, rows);
        let before = known.slice(0, start).count_set_bits();
        let count = here.count_set_bits();
        let values = self.values.slice(before, count);
        Self { known: (count < rows).then_some(here), values, is_packed: self.is_packed }
    }

    /// The values of the rows that are set in `wanted`, or of all rows.
    ///
    /// # Errors
    /// If Arrow cannot filter values of this type.
    pub fn select(&self, wanted: Option<&BooleanBuffer>) -> Result<Selected, ArrowError> {
        let Some(wanted) = wanted else {
            return Ok(Selected { values: self.values()?, known: self.known.clone() });
        };
        let mask = BooleanArray::from(wanted.clone());
        let Some(known) = &self.known else {
            let values = self.unpack(filter(&self.values, &mask)?)?;
            return Ok(Selected { values, known: None });
        };
        let is_known = BooleanArray::from(known.clone());
        let values = filter(&self.values, as_boolean(&filter(&mask, &is_known)?)?)?;
        let values = self.unpack(values)?;
        let known = filter(&is_known, &mask)?;
        let known = as_boolean(&known)?.values().clone();
        let known = (known.count_set_bits() < known.len()).then_some(known);
        Ok(Selected { values, known })
    }

    /// What either of the two knows of the same rows; where both do, the values of `self`.
    ///
    /// # Errors
    /// If Arrow cannot copy values of this type.
    pub fn merge(&self, other: &Self) -> Result<Self, ArrowError> {
        let Some(mine) = self.known.as_ref().filter(|_| other.rows_known() > 0) else {
            return Ok(self.clone());
        };
        if self.rows_known() == 0 {
            return Ok(other.clone());
        }
        let all;
        let theirs = match &other.known {
            Some(known) => known,
            None => {
                all = BooleanBuffer::new_set(other.rows());
                &all
            }
        };
        let (mut first, mut second) = (0, 0);
        let mut indices = Vec::with_capacity(self.rows_known() + other.rows_known());
        for (mine, theirs) in mine.iter().zip(theirs.iter()) {
            match (mine, theirs) {
                (true, _) => indices.push((0, first)),
                (false, true) => indices.push((1, second)),
                (false, false) => {}
            }
            first += usize::from(mine);
            second += usize::from(theirs);
        }
        let (ours, others) = (self.values()?, other.values()?);
        let values = interleave(&[ours.as_ref(), others.as_ref()], &indices)?;
        let known = mine | theirs;
        let known = (known.count_set_bits() < known.len()).then_some(known);
        Ok(Self { known, values, is_packed: false })
    }

    /// What is known of `rows` rows that are laid out anew: of each part the rows that are set in its mask,
    /// in their order, then new rows of which nothing is known. `None` if nothing is known, or if there
    /// are more rows in the parts.
    ///
    /// # Errors
    /// If Arrow cannot copy values of this type.
    pub fn laid_out(
        parts: &[(&BooleanBuffer, Option<&Self>)],
        rows: usize,
    ) -> Result<Option<Self>, ArrowError> {
        let mut known = BooleanBufferBuilder::new(rows);
        let mut pieces = vec![];
        for (kept, values) in parts {
            let Some(values) = values.filter(|values| values.rows() == kept.len()) else {
                known.append_n(kept.count_set_bits(), false);
                continue;
            };
            let found = values.select(Some(kept))?;
            match &found.known {
                Some(bits) => known.append_buffer(bits),
                None => known.append_n(found.values.len(), true),
            }
            pieces.push(found.values);
        }
        let Some(new) = rows.checked_sub(known.len()).filter(|_| !pieces.is_empty()) else {
            return Ok(None);
        };
        known.append_n(new, false);
        let pieces: Vec<&dyn Array> = pieces.iter().map(AsRef::as_ref).collect();
        let values = without_gaps(concat(&pieces)?);
        Ok(Self::of_rows(known.finish(), values).filter(|values| values.rows_known() > 0))
    }
}

/// Views into texts of rows that are gone would keep these.
fn without_gaps(values: ArrayRef) -> ArrayRef {
    match values.data_type() {
        DataType::Utf8View => Arc::new(values.as_string_view().gc()),
        DataType::BinaryView => Arc::new(values.as_binary_view().gc()),
        _ => values,
    }
}

impl Selected {
    /// One value per wanted row: the ones found, and `computed` for the others in their order.
    ///
    /// # Errors
    /// If Arrow cannot copy values of this type.
    pub fn complete(&self, computed: &ArrayRef) -> Result<ArrayRef, ArrowError> {
        let Some(known) = &self.known else { return Ok(self.values.clone()) };
        if self.values.is_empty() {
            return Ok(computed.clone());
        }
        let (mut found, mut new) = (0, 0);
        let mut indices = Vec::with_capacity(known.len());
        for is_known in known.iter() {
            let (array, next) = if is_known { (0, &mut found) } else { (1, &mut new) };
            indices.push((array, *next));
            *next += 1;
        }
        interleave(&[self.values.as_ref(), computed.as_ref()], &indices)
    }
}

fn size(values: &ArrayRef) -> usize {
    values.get_array_memory_size()
}

fn as_boolean(array: &dyn Array) -> Result<&BooleanArray, ArrowError> {
    array
        .as_any()
        .downcast_ref()
        .ok_or_else(|| ArrowError::CastError("a filtered mask is no mask".to_owned()))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray, StringViewArray};
    use arrow::datatypes::Int64Type;
    use proptest::prelude::*;

    use super::*;

    /// Values 0, 10, 20, .. of the rows that are set.
    fn output(known: &[bool]) -> OutputValues {
        let values = known.iter().enumerate().filter(|(_, known)| **known);
        let values: Int64Array = values.map(|(row, _)| Some(row as i64 * 10)).collect();
        OutputValues::of_rows(known.iter().copied().collect(), Arc::new(values)).unwrap()
    }

    fn numbers(values: &ArrayRef) -> Vec<i64> {
        values.as_primitive::<Int64Type>().values().to_vec()
    }

    #[test]
    fn as_many_values_as_known_rows_or_none_at_all() {
        let values: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let known = |bits: &[bool]| bits.iter().copied().collect::<BooleanBuffer>();
        assert!(OutputValues::of_rows(known(&[true, false, false]), values.clone()).is_none());
        assert!(OutputValues::of_rows(known(&[true, true]), values).unwrap().is_whole());
        let nothing = OutputValues::nothing(3, &DataType::Int64);
        assert_eq!((nothing.rows(), nothing.rows_known(), nothing.is_whole()), (3, 0, false));
        assert!(OutputValues::nothing(0, &DataType::Int64).is_whole());
    }

    fn languages(rows: usize) -> Vec<Option<String>> {
        (0..rows).map(|row| (row % 7 > 0).then(|| format!("language {}", row % 5))).collect()
    }

    #[test]
    fn few_different_texts_are_packed_and_come_back_as_they_were() {
        let texts = languages(1_000);
        let plain: [ArrayRef; 2] = [
            Arc::new(StringArray::from(texts.clone())),
            Arc::new(StringViewArray::from_iter(texts.clone())),
        ];
        for plain in plain {
            let whole = OutputValues::whole(plain.clone());
            let packed = whole.clone().packed();
            assert!(2 * packed.bytes() < whole.bytes(), "{} of {}", packed.bytes(), whole.bytes());
            assert_eq!(&packed.values().unwrap(), &plain);
            let wanted: BooleanBuffer = (0..50).map(|row| row % 3 == 0).collect();
            let of =
                |values: &OutputValues| values.slice(100, 50).select(Some(&wanted)).unwrap().values;
            assert_eq!(&of(&packed), &of(&whole));
            let half: BooleanBuffer = (0..1_000).map(|row| row % 2 == 0).collect();
            let even = whole.select(Some(&half)).unwrap().values;
            let even = OutputValues::of_rows(half, even).unwrap().packed();
            let odd: BooleanBuffer = (0..1_000).map(|row| row % 2 == 1).collect();
            let rest = OutputValues::of_rows(odd.clone(), whole.select(Some(&odd)).unwrap().values);
            let merged = even.merge(&rest.unwrap().packed()).unwrap();
            assert!(merged.is_whole());
            assert_eq!(&merged.packed().values().unwrap(), &plain);
        }
    }

    #[test]
    fn texts_of_rows_that_are_gone_are_gone_too() {
        let long = |row: usize| format!("a long text, and another one in each row: {row}");
        let texts =
            OutputValues::whole(Arc::new(StringViewArray::from_iter_values((0..1_000).map(long))));
        let few: BooleanBuffer = (0..1_000).map(|row| row % 100 == 7).collect();
        let left = OutputValues::laid_out(&[(&few, Some(&texts))], 10).unwrap().unwrap();
        assert!(left.is_whole() && 20 * left.bytes() < texts.bytes(), "{} bytes", left.bytes());
        let expected = StringViewArray::from_iter_values((0..10).map(|row| long(100 * row + 7)));
        assert_eq!(left.values().unwrap().as_string_view(), &expected);
    }

    #[test]
    fn what_does_not_fit_its_rows_is_not_known() {
        let values = output(&[true, true, false]);
        let kept = |bits: &[bool]| bits.iter().copied().collect::<BooleanBuffer>();
        let laid_out =
            |kept: &BooleanBuffer, rows| OutputValues::laid_out(&[(kept, Some(&values))], rows);
        assert!(laid_out(&kept(&[true, false]), 2).unwrap().is_none(), "a mask of two rows");
        assert!(laid_out(&kept(&[true, true, false]), 1).unwrap().is_none(), "room for one row");
        assert!(laid_out(&kept(&[false, false, true]), 1).unwrap().is_none(), "nothing is known");
    }

    #[test]
    fn different_texts_and_numbers_stay_as_they_are() {
        let different: StringArray = (0..100_000).map(|row| Some(row.to_string())).collect();
        for plain in [Arc::new(different) as ArrayRef, Arc::new(Int64Array::from(vec![1; 1_000]))] {
            let packed = OutputValues::whole(plain.clone()).packed();
            assert!(!packed.is_packed);
            assert_eq!(&packed.values().unwrap(), &plain);
        }
    }

    proptest! {
        #[test]
        fn what_is_known_and_wanted_is_found_and_the_rest_is_named(
            rows in prop::collection::vec((any::<bool>(), any::<bool>()), 1..60),
            cut in (0usize..60, 0usize..60),
        ) {
            let (known, wanted): (Vec<bool>, Vec<bool>) = rows.into_iter().unzip();
            let start = cut.0 % known.len();
            let count = cut.1 % (known.len() - start + 1);
            let here = output(&known).slice(start, count);
            prop_assert_eq!(here.rows(), count);
            let wanted: Vec<bool> = wanted[start..start + count].to_vec();
            let mask: BooleanBuffer = wanted.iter().copied().collect();
            let selected = here.select(Some(&mask)).unwrap();
            let row = |i: usize| (start + i) as i64 * 10;
            let rows: Vec<usize> = (0..count).filter(|i| wanted[*i]).collect();
            let missing = rows.iter().filter(|i| !known[start + **i]);
            // What is computed for a row is what would have been stored for it.
            let computed: Int64Array = missing.map(|i| Some(row(*i))).collect();
            let all = selected.complete(&(Arc::new(computed) as ArrayRef)).unwrap();
            prop_assert_eq!(numbers(&all), rows.iter().map(|i| row(*i)).collect::<Vec<_>>());
        }

        #[test]
        fn rows_that_are_laid_out_anew_keep_their_values(
            parts in prop::collection::vec(
                (prop::collection::vec((any::<bool>(), any::<bool>()), 0..20), any::<bool>()),
                0..4,
            ),
            new in 0usize..4,
        ) {
            let bits = |rows: &[(bool, bool)], of: fn(&(bool, bool)) -> bool| -> Vec<bool> {
                rows.iter().map(of).collect()
            };
            let (mut known, mut values) = (vec![], vec![]);
            let mut held = vec![];
            for (rows, is_stored) in &parts {
                let stored = is_stored.then(|| output(&bits(rows, |row| row.1)));
                let kept: BooleanBuffer = bits(rows, |row| row.0).into_iter().collect();
                held.push((kept, stored));
                for (row, (_, is_known)) in rows.iter().enumerate().filter(|(_, row)| row.0) {
                    known.push(*is_known && *is_stored);
                    values.extend((*is_known && *is_stored).then_some(row as i64 * 10));
                }
            }
            known.extend(std::iter::repeat_n(false, new));
            let parts: Vec<_> = held.iter().map(|(kept, stored)| (kept, stored.as_ref())).collect();
            match OutputValues::laid_out(&parts, known.len()).unwrap() {
                None => prop_assert!(values.is_empty()),
                Some(all) => {
                    prop_assert_eq!(all.rows(), known.len());
                    let is_known = |row: &usize| all.known().is_none_or(|bits| bits.value(*row));
                    let expected: Vec<usize> = (0..known.len()).filter(|row| known[*row]).collect();
                    let found: Vec<usize> = (0..known.len()).filter(is_known).collect();
                    prop_assert_eq!(found, expected);
                    prop_assert_eq!(numbers(&all.values().unwrap()), values);
                }
            }
        }

        #[test]
        fn two_that_are_merged_know_what_either_knew(
            rows in prop::collection::vec((any::<bool>(), any::<bool>()), 0..60),
        ) {
            let (one, other): (Vec<bool>, Vec<bool>) = rows.into_iter().unzip();
            let merged = output(&one).merge(&output(&other)).unwrap();
            let either: Vec<bool> = one.iter().zip(&other).map(|(a, b)| *a || *b).collect();
            let expected = output(&either);
            prop_assert_eq!(numbers(&merged.values().unwrap()), numbers(&expected.values().unwrap()));
            prop_assert_eq!(merged.known(), expected.known());
        }
    }
}
