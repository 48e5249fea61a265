//! The first 54 bytes of an archive, laid out as in the origin's format so that `file` and older
//! tools recognise the kind. All numbers are little endian.
//!
//! ```text
//!  0  9  magic 89 43 4C 49 50 0D 0A 1A 0A
//!  9  1  format version
//! 10  8  length of the head          18  8  position of the head (always 54)
//! 26  8  length of the sections      34  8  position of the sections
//! 42 12  storage type "oci", NUL padded
//! ```

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 54;
/// The first nine bytes: high bit, "CLIP", and the line-end characters that text-mode copies mangle.
pub const MAGIC: [u8; 9] = [0x89, b'C', b'L', b'I', b'P', 0x0D, 0x0A, 0x1A, 0x0A];
/// The version that this code writes and reads. Version 1 is the Go origin's, whether it calls itself v1 or v2.
pub const FORMAT_VERSION: u8 = 4;
/// The only storage type: content stays in an OCI registry.
pub const STORAGE_TYPE: [u8; 12] = *b"oci\0\0\0\0\0\0\0\0\0";

/// Where the parts of an archive lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Length of the compressed head; it begins right behind the header.
    pub head_len: u64,
    /// Length of all sections together; they begin right behind the head.
    pub sections_len: u64,
}

/// Why the first bytes are not those of an archive that we can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Fewer than 54 bytes, or another magic.
    #[error(
        "not a clip archive (its first bytes are not those of the .clip format): make one with `clip index IMAGE FILE`"
    )]
    NotAnArchive,
    /// The Go origin wrote it.
    #[error("made by Clip v1/v2 (Go): index again with `clip index IMAGE FILE`")]
    MadeByOrigin,
    /// A later format.
    #[error(
        "format version {0} is newer than this program reads ({FORMAT_VERSION}): upgrade clip, or index again"
    )]
    TooNew(u8),
    /// An earlier format of ours.
    #[error("format version {0} is no longer read: index again with `clip index IMAGE FILE`")]
    TooOld(u8),
    /// A storage type other than `oci`.
    #[error("unknown storage type: only archives of OCI images can be read")]
    StorageType,
    /// Positions and lengths do not match the file.
    #[error(
        "truncated or damaged: the header promises {promised} bytes, the file has {found} bytes; fetch it or index again"
    )]
    Truncated {
        /// What the header promises.
        promised: u128,
        /// What there is.
        found: u64,
    },
}

impl Header {
    /// The 54 bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..9].copy_from_slice(&MAGIC);
        out[9] = FORMAT_VERSION;
        let head_pos = HEADER_LEN as u64;
        let numbers = [
            self.head_len,
            head_pos,
            self.sections_len,
            head_pos + self.head_len,
        ];
        for (slot, number) in out[10..42].chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        out[42..].copy_from_slice(&STORAGE_TYPE);
        out
    }

    /// Reads and checks the header of the whole archive `file`.
    pub fn decode(file: &[u8]) -> Result<Self, HeaderError> {
        Self::decode_first(file, file.len() as u64)
    }

    /// Reads and checks the header from the `first` bytes of an archive that has `len` bytes.
    pub fn decode_first(first: &[u8], len: u64) -> Result<Self, HeaderError> {
        let header = first
            .first_chunk::<HEADER_LEN>()
            .ok_or(HeaderError::NotAnArchive)?;
        if header[..9] != MAGIC {
            return Err(HeaderError::NotAnArchive);
        }
        match header[9] {
            FORMAT_VERSION => {}
            1 => return Err(HeaderError::MadeByOrigin),
            version if version > FORMAT_VERSION => return Err(HeaderError::TooNew(version)),
            version => return Err(HeaderError::TooOld(version)),
        }
        if header[42..] != STORAGE_TYPE {
            return Err(HeaderError::StorageType);
        }
        let number =
            |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let (head_len, head_pos, sections_len, sections_pos) =
            (number(10), number(18), number(26), number(34));
        let promised = HEADER_LEN as u128 + u128::from(head_len) + u128::from(sections_len);
        let in_order = head_pos == HEADER_LEN as u64
            && u128::from(sections_pos) == HEADER_LEN as u128 + u128::from(head_len);
        if !in_order || promised != u128::from(len) {
            return Err(HeaderError::Truncated {
                promised,
                found: len,
            });
        }
        Ok(Self {
            head_len,
            sections_len,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_54_bytes_with_magic_version_and_type() {
        let bytes = Header {
            head_len: 3,
            sections_len: 4,
        }
        .encode();
        assert_eq!(
            bytes[..10],
            [
                0x89,
                0x43,
                0x4C,
                0x49,
                0x50,
                0x0D,
                0x0A,
                0x1A,
                0x0A,
                FORMAT_VERSION
            ]
        );
        assert_eq!(&bytes[42..45], b"oci");
        let mut file = bytes.to_vec();
        file.extend_from_slice(&[0; 7]);
        assert_eq!(
            Header::decode(&file),
            Ok(Header {
                head_len: 3,
                sections_len: 4
            })
        );
        assert_eq!(Header::decode_first(&bytes, 61), Header::decode(&file));
    }

    #[test]
    fn foreign_truncated_and_origin_made_files_are_refused_with_a_reason() {
        let mut file = Header {
            head_len: 3,
            sections_len: 4,
        }
        .encode()
        .to_vec();
        file.extend_from_slice(&[0; 6]);
        assert_eq!(
            Header::decode(&file),
            Err(HeaderError::Truncated {
                promised: 61,
                found: 60
            })
        );
        assert_eq!(Header::decode(b"hello"), Err(HeaderError::NotAnArchive));
        file[9] = 1;
        assert_eq!(Header::decode(&file), Err(HeaderError::MadeByOrigin));
        file[9] = 9;
        assert_eq!(Header::decode(&file), Err(HeaderError::TooNew(9)));
    }
}
