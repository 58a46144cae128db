//! Numbers and texts as bytes, small and the same everywhere.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes are not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

const SHORT: Malformed = Malformed("it ends early");

/// Appends values. Whole numbers take a byte per seven bits.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    texts: BTreeMap<Arc<str>, u64>,
}

impl Writer {
    pub(super) fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    pub(super) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    pub(super) fn real(&mut self, real: f64) {
        self.raw(&real.to_bits().to_le_bytes());
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A text the first time; a number instead of it from then on.
    pub(super) fn text(&mut self, text: &Arc<str>) {
        let next = self.texts.len() as u64;
        if let Some(known) = self.texts.get(text) {
            return self.number(*known);
        }
        self.number(next);
        self.number(text.len() as u64);
        self.raw(text.as_bytes());
        self.texts.insert(Arc::clone(text), next);
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Takes values in the order in which they were written.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    texts: Vec<Arc<str>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, texts: Vec::new() }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn raw(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(SHORT)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.bytes.split_first_chunk::<N>().ok_or(SHORT)?;
        self.bytes = rest;
        Ok(*taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn number(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Malformed("a number has too many bytes"))
    }

    /// A number of things of which each takes at least a byte, so that a wrong one asks for no
    /// memory.
    pub(super) fn length(&mut self) -> Result<usize, Malformed> {
        let length = usize::try_from(self.number()?).map_err(|_too_large| SHORT)?;
        if length > self.bytes.len() {
            return Err(SHORT);
        }
        Ok(length)
    }

    pub(super) fn small(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.number()?).map_err(|_too_large| Malformed("a number is too large"))
    }

    pub(super) fn real(&mut self) -> Result<f64, Malformed> {
        Ok(f64::from_bits(u64::from_le_bytes(self.array()?)))
    }

    pub(super) fn wide(&mut self) -> Result<u128, Malformed> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    pub(super) fn text(&mut self) -> Result<Arc<str>, Malformed> {
        let known = usize::try_from(self.number()?).map_err(|_too_large| SHORT)?;
        if let Some(text) = self.texts.get(known) {
            return Ok(Arc::clone(text));
        }
        if known > self.texts.len() {
            return Err(Malformed("a text is named before it is given"));
        }
        let length = self.length()?;
        let text = std::str::from_utf8(self.raw(length)?);
        let text: Arc<str> = text.map_err(|_no_text| Malformed("a text is no UTF-8"))?.into();
        self.texts.push(Arc::clone(&text));
        Ok(text)
    }
}

/// FNV-1a: tells bytes that were damaged, not bytes that were forged.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_repeated_texts_take_a_byte() {
        let mut writer = Writer::default();
        for number in [0, 127, 128, u64::MAX] {
            writer.number(number);
        }
        writer.real(-0.5);
        let (text, other): (Arc<str>, Arc<str>) = ("embed".into(), "".into());
        writer.text(&text);
        writer.text(&other);
        let before = writer.bytes.len();
        writer.text(&text);
        assert_eq!(writer.bytes.len(), before + 1);
        let bytes = writer.finish();
        let mut reader = Reader::new(&bytes);
        let numbers: Vec<u64> = (0..4).map(|_| reader.number().unwrap()).collect();
        assert_eq!(numbers, [0, 127, 128, u64::MAX]);
        assert_eq!(reader.real(), Ok(-0.5));
        let texts: Vec<Arc<str>> = (0..3).map(|_| reader.text().unwrap()).collect();
        assert_eq!(texts, [Arc::clone(&text), other, text]);
        assert!(reader.is_at_end());
        assert_eq!(reader.byte(), Err(SHORT));
    }

    #[test]
    fn lengths_beyond_the_end_are_refused_before_they_take_memory() {
        let mut writer = Writer::default();
        writer.number(u64::MAX);
        assert_eq!(Reader::new(&writer.finish()).length(), Err(SHORT));
        assert_eq!(Reader::new(&[3]).text().unwrap_err().0, "a text is named before it is given");
        assert!(Reader::new(&[0xff; 11]).number().is_err());
    }
}
