//! Lists as columns: the wire form of a layer's section.
//!
//! ```text
//! number of items │ length of column 0 │ … │ length of column N-1 │ column 0 │ … │ column N-1
//! ```
//!
//! Numbers are postcard's variable-length integers, signed ones zigzag. A column holds one field of
//! all items, mostly as the difference from what the item before lets expect, so that zstd finds
//! long runs. Items that lack a field have nothing in its column.

mod entries;
mod seek;

pub use entries::{Entries, encode_entries};
pub use seek::{decode_spans, decode_windows, encode_spans, encode_windows};

use crate::codec::DecodeError;
use std::{collections::HashMap, hash::Hash};

/// Collects `N` columns.
struct Writer<const N: usize> {
    columns: [Vec<u8>; N],
}

impl<const N: usize> Writer<N> {
    fn new() -> Self {
        Self {
            columns: std::array::from_fn(|_| Vec::new()),
        }
    }

    fn byte(&mut self, column: usize, value: u8) {
        self.columns[column].push(value);
    }

    fn bytes(&mut self, column: usize, bytes: &[u8]) {
        self.columns[column].extend_from_slice(bytes);
    }

    /// A string without NUL bytes.
    fn text(&mut self, column: usize, text: &[u8]) {
        self.bytes(column, text);
        self.byte(column, 0);
    }

    fn number(&mut self, column: usize, value: u64) {
        put(&mut self.columns[column], &value);
    }

    fn signed(&mut self, column: usize, value: i64) {
        put(&mut self.columns[column], &value);
    }

    fn finish(self, count: usize) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, &(count as u64));
        for column in &self.columns {
            put(&mut out, &(column.len() as u64));
        }
        out.extend(self.columns.into_iter().flatten());
        out
    }
}

fn put<T: serde::Serialize>(out: &mut Vec<u8>, value: &T) {
    let bytes = postcard::to_extend(value, std::mem::take(out));
    *out = bytes.expect("a number is encoded into memory");
}

/// What is still to be read of `N` columns.
#[derive(Debug)]
struct Reader<'a, const N: usize> {
    what: &'static str,
    count: u64,
    columns: [&'a [u8]; N],
}

impl<'a, const N: usize> Reader<'a, N> {
    /// At most `max` items.
    fn new(what: &'static str, bytes: &'a [u8], max: u64) -> Result<Self, DecodeError> {
        let malformed = |source| DecodeError::Malformed { what, source };
        let (count, mut rest) = postcard::take_from_bytes::<u64>(bytes).map_err(malformed)?;
        if count > max {
            let problem = format!("{count} items, more than the limit of {max}");
            return Err(DecodeError::TooMany { what, problem });
        }
        let mut lengths = [0; N];
        for length in &mut lengths {
            (*length, rest) = postcard::take_from_bytes::<u64>(rest).map_err(malformed)?;
        }
        let mut columns = [&[][..]; N];
        for (column, length) in columns.iter_mut().zip(lengths) {
            let split = usize::try_from(length)
                .ok()
                .and_then(|length| rest.split_at_checked(length));
            (*column, rest) =
                split.ok_or_else(|| malformed(postcard::Error::DeserializeUnexpectedEnd))?;
        }
        let reader = Self {
            what,
            count,
            columns,
        };
        match rest {
            [] => Ok(reader),
            _ => Err(reader.malformed()),
        }
    }

    fn byte(&mut self, column: usize) -> Result<u8, DecodeError> {
        Ok(self.bytes(column, 1)?[0])
    }

    fn bytes(&mut self, column: usize, len: usize) -> Result<&'a [u8], DecodeError> {
        let split = self.columns[column].split_at_checked(len);
        let (bytes, rest) = split.ok_or_else(|| self.end())?;
        self.columns[column] = rest;
        Ok(bytes)
    }

    fn text(&mut self, column: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.columns[column].iter().position(|&byte| byte == 0);
        let text = self.bytes(column, end.ok_or_else(|| self.end())?)?;
        self.byte(column)?;
        Ok(text)
    }

    fn number(&mut self, column: usize) -> Result<u64, DecodeError> {
        match self.small_number(column) {
            Some(number) => Ok(number.into()),
            None => self.value(column),
        }
    }

    fn signed(&mut self, column: usize) -> Result<i64, DecodeError> {
        match self.small_number(column) {
            Some(number) => Ok(i64::from(number >> 1) ^ -i64::from(number & 1)),
            None => self.value(column),
        }
    }

    /// A number of one byte: nearly all are.
    fn small_number(&mut self, column: usize) -> Option<u8> {
        match self.columns[column] {
            [number @ 0..0x80, rest @ ..] => {
                self.columns[column] = rest;
                Some(*number)
            }
            _ => None,
        }
    }

    /// A number that must fit.
    fn small<T: TryFrom<u64>>(&mut self, column: usize) -> Result<T, DecodeError> {
        let number = self.number(column)?;
        T::try_from(number).map_err(|_| self.malformed())
    }

    fn value<T: serde::Deserialize<'a>>(&mut self, column: usize) -> Result<T, DecodeError> {
        let what = self.what;
        let taken = postcard::take_from_bytes(self.columns[column]);
        let (value, rest) = taken.map_err(|source| DecodeError::Malformed { what, source })?;
        self.columns[column] = rest;
        Ok(value)
    }

    /// All items have been read: nothing may be left.
    fn finish(&self) -> Result<(), DecodeError> {
        match self.columns.iter().all(|column| column.is_empty()) {
            true => Ok(()),
            false => Err(self.malformed()),
        }
    }

    fn end(&self) -> DecodeError {
        DecodeError::Malformed {
            what: self.what,
            source: postcard::Error::DeserializeUnexpectedEnd,
        }
    }

    fn malformed(&self) -> DecodeError {
        DecodeError::Malformed {
            what: self.what,
            source: postcard::Error::DeserializeBadEncoding,
        }
    }
}

/// Values that occur again and again. Each is coded as 0 when it is that of the item before, else
/// as one more than its index among all that came so far; the value of a new index follows in a
/// column of its own.
#[derive(Debug)]
struct Repeated<T> {
    seen: Vec<T>,
    index: HashMap<T, usize>,
    last: Option<usize>,
}

impl<T: Copy + Eq + Hash> Repeated<T> {
    fn new() -> Self {
        Self {
            seen: Vec::new(),
            index: HashMap::new(),
            last: None,
        }
    }

    /// The code, and the newest value before this one if this one is new.
    fn encode(&mut self, value: T) -> (u64, Option<Option<T>>) {
        let newest = self.seen.last().copied();
        let index = *self.index.entry(value).or_insert(self.seen.len());
        let is_new = index == self.seen.len();
        if is_new {
            self.seen.push(value);
        }
        let code = match self.last == Some(index) {
            true => 0,
            false => index as u64 + 1,
        };
        self.last = Some(index);
        (code, is_new.then_some(newest))
    }

    /// The value of a code; `read` gets a new one, from the newest before it. `None`: no such code.
    fn decode<E>(
        &mut self,
        code: u64,
        read: impl FnOnce(Option<T>) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let index = match code.checked_sub(1) {
            None => self.last,
            Some(index) => usize::try_from(index).ok(),
        };
        let Some(index) = index.filter(|&index| index <= self.seen.len()) else {
            return Ok(None);
        };
        if index == self.seen.len() {
            let value = read(self.seen.last().copied())?;
            self.seen.push(value);
        }
        self.last = Some(index);
        Ok(Some(self.seen[index]))
    }
}
