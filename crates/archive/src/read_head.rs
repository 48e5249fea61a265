//! The head of an archive, without the rest of its file.

use crate::{
    Digest, Head,
    codec::{self, DecodeError},
    header::{HEADER_LEN, Header, HeaderError},
    limits::HEAD_BYTES_MAX,
    write::HEAD_PREFIX_LEN,
};
use std::{
    fs::File,
    io::{self, Read as _},
};

/// Why a head cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadHeadError {
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The head does not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl Head {
    /// Reads header and head of the archive `file`, which stands at its beginning. The sections stay unread, and what
    /// the head says of them is not checked: [`crate::Archive::open`] does that.
    pub fn read(file: &mut File) -> Result<Self, ReadHeadError> {
        let len = file.metadata()?.len();
        let header = read(file, HEADER_LEN as u64)?;
        let header = Header::decode_first(&header, len)?;
        let head = read(file, header.head_len.min(HEAD_BYTES_MAX as u64))?;
        Ok(Self::decode(&head)?)
    }

    /// Decodes `part`, the bytes between header and sections.
    pub(crate) fn decode(part: &[u8]) -> Result<Self, DecodeError> {
        let damaged = DecodeError::Frame {
            what: "head",
            expected: HEAD_PREFIX_LEN,
        };
        let (raw_len, rest) = part.split_first_chunk::<8>().ok_or(damaged)?;
        let damaged = DecodeError::Frame {
            what: "head",
            expected: HEAD_PREFIX_LEN,
        };
        let (digest, frame) = rest.split_first_chunk::<32>().ok_or(damaged)?;
        let raw_len = u64::from_le_bytes(*raw_len);
        let raw = codec::decompress(
            "head",
            frame,
            raw_len,
            HEAD_BYTES_MAX,
            &Digest::from_bytes(*digest),
        )?;
        codec::decode("head", &raw)
    }
}

/// The next `len` bytes, or as many as there are.
fn read(file: &mut File, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}
