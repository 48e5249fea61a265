//! Extended attributes, stored behind their inode.
//!
//! ```text
//! │ filter 4 │ shared count 1 │ 0 × 7 │ then, each padded to 4 bytes:
//! │ name length 1 │ prefix 1 │ value length 2 │ name without prefix │ value │
//! ```

use super::format::{put, round_up, u16_at};
use super::{Nid, ReadError};
use crate::Xattr;

/// The namespaces that Linux knows, with their numbers. The ACLs' names have nothing behind them.
const PREFIXES: [(&str, u8); 5] = [
    ("user.", 1),
    ("system.posix_acl_access", 2),
    ("system.posix_acl_default", 3),
    ("trusted.", 4),
    ("security.", 6),
];
const HEADER_LEN: usize = 12;
const ENTRY_LEN: usize = 4;
/// Bytes that an inode's attributes may take: their size is a 16-bit number of 4-byte units.
const TOTAL_MAX: usize = HEADER_LEN + 4 * (u16::MAX as usize - 1);

/// Bytes that `xattrs` need behind the inode; `None` if the format has no room for them.
///
/// Attributes that no Linux file system can hold are left out, as unpacking the layer would: names
/// outside the namespaces above (`com.apple.provenance`), empty, over 255 bytes, or holding a NUL.
pub(super) fn encoded_len(xattrs: &[Xattr]) -> Option<usize> {
    let mut total = 0;
    for (_, suffix, value) in storable(xattrs) {
        u16::try_from(value.len()).ok()?;
        total += round_up(ENTRY_LEN + suffix.len() + value.len(), ENTRY_LEN);
    }
    match total {
        0 => Some(0),
        _ => Some(HEADER_LEN + total).filter(|&len| len <= TOTAL_MAX),
    }
}

/// The inode field that tells readers the attributes' size.
pub(super) fn units(encoded_len: usize) -> u16 {
    match encoded_len.checked_sub(HEADER_LEN) {
        Some(entries) => (1 + entries / 4) as u16,
        None => 0,
    }
}

/// The reverse of [`units`].
pub(super) fn len_of_units(units: u16) -> usize {
    match usize::from(units) {
        0 => 0,
        units => HEADER_LEN + (units - 1) * 4,
    }
}

/// Writes the attributes into `out`, which is [`encoded_len`] zeros.
pub(super) fn encode(out: &mut [u8], xattrs: &[Xattr]) {
    let mut at = HEADER_LEN; // the header stays zero: no filter, nothing shared
    for (prefix, suffix, value) in storable(xattrs) {
        put(out, at, &[suffix.len() as u8, prefix]);
        put(out, at + 2, &(value.len() as u16).to_le_bytes());
        put(out, at + ENTRY_LEN, suffix);
        put(out, at + ENTRY_LEN + suffix.len(), value);
        at += round_up(ENTRY_LEN + suffix.len() + value.len(), ENTRY_LEN);
    }
}

/// (prefix number, rest of the name, value) of those attributes that can be stored.
fn storable(xattrs: &[Xattr]) -> impl Iterator<Item = (u8, &[u8], &[u8])> {
    xattrs.iter().filter_map(|xattr| {
        let name = xattr.name.as_slice();
        let (prefix, suffix) = PREFIXES.iter().find_map(|(prefix, number)| {
            let suffix = name.strip_prefix(prefix.as_bytes())?;
            (suffix.is_empty() != prefix.ends_with('.')).then_some((*number, suffix))
        })?;
        (name.len() <= 255 && !name.contains(&0)).then_some((prefix, suffix, &xattr.value[..]))
    })
}

/// One extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XattrEntry<'a> {
    /// The namespace, such as `user.`; for POSIX ACLs the whole name.
    pub prefix: &'static str,
    /// The rest of the name.
    pub suffix: &'a [u8],
    /// The value.
    pub value: &'a [u8],
}

impl XattrEntry<'_> {
    /// The full name, copied.
    pub fn name(&self) -> Vec<u8> {
        [self.prefix.as_bytes(), self.suffix].concat()
    }

    /// Whether `name` is this attribute's full name.
    pub fn is_called(&self, name: &[u8]) -> bool {
        name.strip_prefix(self.prefix.as_bytes()) == Some(self.suffix)
    }
}

/// The extended attributes of a node. After an error the iterator ends.
#[derive(Debug, Clone)]
pub struct Xattrs<'a> {
    nid: Nid,
    rest: &'a [u8],
}

impl<'a> Xattrs<'a> {
    /// `body` is what [`encode`] wrote, or nothing.
    pub(super) fn new(nid: Nid, body: &'a [u8]) -> Result<Self, ReadError> {
        match body.get(4) {
            Some(0) | None => Ok(Self {
                nid,
                rest: body.get(HEADER_LEN..).unwrap_or_default(),
            }),
            Some(_) => Err(ReadError::corrupt(nid, "it has shared extended attributes")),
        }
    }

    /// The first entry of `self.rest` and its length.
    fn first(&self) -> Result<(XattrEntry<'a>, usize), ReadError> {
        let corrupt = |what| ReadError::corrupt(self.nid, what);
        let too_long = corrupt("an extended attribute is longer than its place");
        let (entry, rest) = self.rest.split_first_chunk::<ENTRY_LEN>().ok_or(too_long)?;
        let (suffix_len, value_len) = (usize::from(entry[0]), usize::from(u16_at(entry, 2)));
        let (suffix, rest) = rest.split_at_checked(suffix_len).ok_or(too_long)?;
        let value = rest.get(..value_len).ok_or(too_long)?;
        let (prefix, _) = PREFIXES
            .iter()
            .find(|(_, number)| *number == entry[1])
            .ok_or(corrupt("an extended attribute is of an unknown namespace"))?;
        let len = round_up(ENTRY_LEN + suffix_len + value_len, ENTRY_LEN);
        Ok((
            XattrEntry {
                prefix,
                suffix,
                value,
            },
            len,
        ))
    }
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = Result<XattrEntry<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let first = self.first();
        let len = first.as_ref().map_or(usize::MAX, |(_, len)| *len);
        self.rest = self.rest.get(len..).unwrap_or_default();
        Some(first.map(|(entry, _)| entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &[u8], value: &[u8]) -> Xattr {
        Xattr {
            name: name.to_vec(),
            value: value.to_vec(),
        }
    }

    #[test]
    fn attributes_survive_and_impossible_ones_are_left_out() {
        let possible = [
            xattr(b"security.capability", b"\x01\0\0\x02"),
            xattr(b"system.posix_acl_access", b"\x02\0\0\0"),
            xattr(b"trusted.overlay.opaque", b"y"),
            xattr(b"user.empty", b""),
        ];
        let impossible = [
            xattr(b"com.apple.provenance", b"1"),
            xattr(b"system.posix_acl_access2", b"1"),
            xattr(b"user.", b"1"),
            xattr(b"user.a\0b", b"1"),
            xattr(&[b"user.", [b'x'; 251].as_slice()].concat(), b"1"),
        ];
        let all = [possible.as_slice(), &impossible].concat();
        let mut body = vec![0; encoded_len(&all).unwrap()];
        encode(&mut body, &all);
        assert_eq!(len_of_units(units(body.len())), body.len());
        let read: Vec<Xattr> = Xattrs::new(Nid(2), &body)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| xattr(&entry.name(), entry.value))
            .collect();
        assert_eq!(read, possible);
        assert_eq!(encoded_len(&impossible), Some(0));
    }

    #[test]
    fn attributes_beyond_the_formats_limits_are_refused() {
        let longest = xattr(b"user.a", &[0; 65_535]);
        assert!(encoded_len(std::slice::from_ref(&longest)).is_some());
        assert_eq!(encoded_len(&[xattr(b"user.a", &[0; 65_536])]), None);
        assert_eq!(encoded_len(&vec![longest; 4]), None);
    }
}
