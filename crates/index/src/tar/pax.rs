//! PAX records (POSIX.1-2017, pax, "pax Extended Header"): `LENGTH KEY=VALUE\n`, one after the other.

use std::collections::BTreeMap;

pub(super) const PATH: &[u8] = b"path";
pub(super) const LINK_PATH: &[u8] = b"linkpath";
pub(super) const UID: &[u8] = b"uid";
pub(super) const GID: &[u8] = b"gid";
pub(super) const SIZE: &[u8] = b"size";
pub(super) const MTIME: &[u8] = b"mtime";
pub(super) const ATIME: &[u8] = b"atime";
pub(super) const CTIME: &[u8] = b"ctime";
/// Prefix of an extended attribute's name. The other spelling, `LIBARCHIVE.xattr.`, is one that no
/// unpacker of images reads; bsdtar, which writes it, writes this one beside it.
pub(super) const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
pub(super) const SPARSE_MAJOR: &[u8] = b"GNU.sparse.major";
pub(super) const SPARSE_MINOR: &[u8] = b"GNU.sparse.minor";
pub(super) const SPARSE_NAME: &[u8] = b"GNU.sparse.name";
pub(super) const SPARSE_SIZE: &[u8] = b"GNU.sparse.size";
pub(super) const SPARSE_REAL_SIZE: &[u8] = b"GNU.sparse.realsize";
pub(super) const SPARSE_PIECES: &[u8] = b"GNU.sparse.numblocks";
pub(super) const SPARSE_MAP: &[u8] = b"GNU.sparse.map";
const SPARSE_OFFSET: &[u8] = b"GNU.sparse.offset";
const SPARSE_LENGTH: &[u8] = b"GNU.sparse.numbytes";

const MALFORMED: &str = "its PAX header is malformed";

/// The records in front of one member; of two with one key the later counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Records(BTreeMap<Vec<u8>, Vec<u8>>);

impl Records {
    /// Reads the content of an `x` or `g` member.
    pub fn parse(mut text: &[u8]) -> Result<Self, &'static str> {
        let mut records = BTreeMap::new();
        // Sparse format 0.0 repeats two keys for each piece; it becomes the list of format 0.1.
        let mut pieces: Vec<&[u8]> = Vec::new();
        while !text.is_empty() {
            let (key, value, rest) = split_record(text).ok_or(MALFORMED)?;
            text = rest;
            match key {
                SPARSE_OFFSET | SPARSE_LENGTH => {
                    let expected = [SPARSE_OFFSET, SPARSE_LENGTH][pieces.len() % 2];
                    if key != expected || value.contains(&b',') {
                        return Err(MALFORMED);
                    }
                    pieces.push(value);
                }
                _ => drop(records.insert(key.to_vec(), value.to_vec())),
            }
        }
        if !pieces.is_empty() {
            records.insert(SPARSE_MAP.to_vec(), pieces.join(&b','));
        }
        Ok(Self(records))
    }

    /// The value of `key`; an empty one takes a record back, so it counts as none.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let value = self.0.get(key)?;
        (!value.is_empty()).then_some(value)
    }

    /// A decimal number.
    pub fn number(&self, key: &[u8]) -> Result<Option<i64>, &'static str> {
        self.get(key)
            .map(|value| decimal(value).ok_or("a number in its PAX header is not one"))
            .transpose()
    }

    /// A time in seconds and nanoseconds since 1970.
    pub fn time(&self, key: &[u8]) -> Result<Option<(i64, u32)>, &'static str> {
        self.get(key)
            .map(|value| time(value).ok_or("the time in its PAX header is not one"))
            .transpose()
    }

    /// Extended attributes, sorted by name; an empty value is a value.
    pub fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().filter_map(|(key, value)| {
            let name = key.strip_prefix(XATTR_PREFIX)?;
            Some((name, value.as_slice()))
        })
    }
}

/// The first record's key and value, and what follows it.
fn split_record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().position(|&byte| byte == b' ')?;
    let len = usize::try_from(decimal(&text[..space])?).ok()?;
    let record = text.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    // NUL may stand in an attribute's value, but not in a name.
    let name = match key {
        PATH | LINK_PATH | b"uname" | b"gname" => value,
        _ => key,
    };
    (!key.is_empty() && !name.contains(&0)).then_some((key, value, &text[len..]))
}

/// A decimal number, with a sign or without.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds since 1970 with a fraction, `-1.25`. Digits beyond nanoseconds are cut off.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let nanos = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    match (whole.starts_with('-'), nanos) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((seconds, nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_nanoseconds_also_before_1970() {
        assert_eq!(
            time(b"1700000000.123456789"),
            Some((1_700_000_000, 123_456_789))
        );
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-0.5"), Some((-1, 500_000_000)));
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"5."), Some((5, 0)));
        for wrong in ["x", "", ".5", "1.x", "1.-2"] {
            assert_eq!(time(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_record_is_as_long_as_it_says() {
        let good = Records::parse(b"10 key=v1\n12 other=v2\n").unwrap();
        assert_eq!(good.get(b"key"), Some(&b"v1"[..]));
        assert_eq!(good.get(b"other"), Some(&b"v2"[..]));
        for wrong in [
            "10 key=v1",
            "11 key=v1\n",
            "8 key=v1\n",
            "999999999999999999999 key=v1\n",
            "-3 key=v1\n",
            "7 =v1\n",
            "x",
            "6 key\n",
            "3 \n",
            "0 ",
        ] {
            assert!(Records::parse(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
    }
}
