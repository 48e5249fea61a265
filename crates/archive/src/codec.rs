//! The canonical encoding of heads and sections, and its compressed frame.
//!
//! Canonical means: one value has one encoding. We use postcard (variable-length integers, fields
//! in declaration order, no maps), so equal values have equal bytes and equal digests. A frame is
//! that encoding under zstd; identity is always taken from the bytes *before* compression.

use crate::Digest;
use serde::{Serialize, de::DeserializeOwned};

/// zstd level of the frames: an archive is written once and read on every node, but level 19 would
/// take seconds for the 11 MB of entries that an image with 125,000 files has.
const ZSTD_LEVEL: i32 = 12;

/// Why a frame could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// zstd refused the bytes, or they decode to another length than promised.
    #[error("the {what} is damaged (it does not decompress to the {expected} bytes it promises)")]
    Frame {
        /// Which part.
        what: &'static str,
        /// Promised decoded length.
        expected: usize,
    },
    /// The decoded bytes have another digest than promised.
    #[error("the {what} is damaged (digest {found} instead of {expected})")]
    Digest {
        /// Which part.
        what: &'static str,
        /// Promised digest.
        expected: Digest,
        /// Digest of what was decoded.
        found: Digest,
    },
    /// The promised decoded length is above the limit.
    #[error("the {what} claims {claimed} bytes, more than the limit of {limit}")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Promised decoded length.
        claimed: u64,
        /// The limit.
        limit: usize,
    },
    /// A list is longer than anything that we would use.
    #[error("the {what} holds too much: {problem}")]
    TooMany {
        /// Which part.
        what: &'static str,
        /// The limit that is passed.
        problem: String,
    },
    /// The bytes are not an encoding of the expected value.
    #[error("the {what} is malformed: {source}")]
    Malformed {
        /// Which part.
        what: &'static str,
        /// postcard's complaint.
        source: postcard::Error,
    },
}

/// The canonical encoding of `value`.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value)
        .expect("encoding into memory cannot fail: no value of ours holds a map of unknown length")
}

/// Decodes a canonical encoding; trailing bytes are an error, as they would break "one encoding per value".
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DecodeError> {
    let malformed = |source| DecodeError::Malformed { what, source };
    match postcard::take_from_bytes(bytes).map_err(malformed)? {
        (value, []) => Ok(value),
        _ => Err(malformed(postcard::Error::DeserializeBadEncoding)),
    }
}

/// Compresses canonical bytes into a frame.
pub fn compress(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, ZSTD_LEVEL)
        .expect("compressing memory to memory fails only for an invalid level")
}

/// Decompresses a frame that promises `raw_len` bytes with digest `digest`.
pub fn decompress(
    what: &'static str,
    frame: &[u8],
    raw_len: u64,
    limit: usize,
    digest: &Digest,
) -> Result<Vec<u8>, DecodeError> {
    let bytes = decompress_unchecked(what, frame, raw_len, limit)?;
    check_digest(what, &bytes, digest)?;
    Ok(bytes)
}

/// Decompresses a frame that promises `raw_len` bytes, and leaves [`check_digest`] to the caller.
pub fn decompress_unchecked(
    what: &'static str,
    frame: &[u8],
    raw_len: u64,
    limit: usize,
) -> Result<Vec<u8>, DecodeError> {
    let expected = usize::try_from(raw_len).ok().filter(|&len| len <= limit);
    let expected = expected.ok_or(DecodeError::TooLarge {
        what,
        claimed: raw_len,
        limit,
    })?;
    // Four bytes are the smallest block, 128 KiB the largest content of one (RFC 8878, section
    // 3.1.1.2): what no frame of this length can hold is not worth reserving memory for.
    let can_hold = frame.len() as u64 / 4 * (128 << 10);
    let damaged = DecodeError::Frame { what, expected };
    if raw_len > can_hold {
        return Err(damaged);
    }
    match zstd::bulk::decompress(frame, expected) {
        Ok(bytes) if bytes.len() == expected => Ok(bytes),
        _ => Err(damaged),
    }
}

/// Whether `bytes` are those that `digest` promises.
pub fn check_digest(what: &'static str, bytes: &[u8], digest: &Digest) -> Result<(), DecodeError> {
    let (expected, found) = (*digest, Digest::of(bytes));
    match found == expected {
        true => Ok(()),
        false => Err(DecodeError::Digest {
            what,
            expected,
            found,
        }),
    }
}

/// Serialises a `Vec<u8>` as one byte string instead of a sequence of numbers (four times faster).
pub mod bytes {
    use serde::{Deserializer, Serializer, de::Visitor};

    /// See [`serde::Serialize`].
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    /// See [`serde::Deserialize`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a byte string")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}
