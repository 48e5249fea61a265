//! Random access into a layer: choose seek points while a layer streams by, resume at one later.
//!
//! A gzip stream cannot simply be seeked: a deflate block begins at any *bit*, and refers back to
//! up to 32 KiB of output before it. So the indexer ([`SpanIndexer`]) notes, about every
//! [`SpanLimits::tar`] bytes, a block border's bit position and the bytes of the 32 KiB before it
//! that are really referred to (about a tenth). With these, [`SpanDecoder`] decodes one span from
//! nothing but the span's own compressed bytes.
//!
//! gzip members and zstd frames begin without history; an uncompressed layer needs no decoder.
//!
//! The node never trusts a decoded span by itself: its digest is in the archive.

mod deflate;
#[doc(hidden)]
pub mod differential;
mod gzip;
mod indexer;
mod inflate;
mod lent;
mod member;
mod placement;
mod plain;
mod resume;
mod retained;
mod spans;
mod sparse;
mod zstd_frames;

pub use indexer::{Compression, SpanIndexer};
pub use resume::SpanDecoder;
pub use spans::SpanLimits;

/// Why a compressed layer cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The compressed stream breaks its format.
    #[error("the {format} stream is damaged near byte {at} of the blob: {problem}")]
    Damaged {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// Compressed bytes consumed before the problem.
        at: u64,
        /// The decoder's complaint.
        problem: String,
    },
    /// The stream ends in the middle.
    #[error("the {format} stream ends in the middle, after {at} bytes of the blob")]
    Truncated {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// Compressed bytes consumed.
        at: u64,
    },
    /// A zstd frame wants more memory than a read may cost.
    #[error(
        "the zstd frame at byte {at} of the blob needs a window of {} MiB, more than the 128 MiB that are accepted: compress the layer again with --long=27 or less", bytes >> 20
    )]
    Window {
        /// What the frame asks for.
        bytes: u64,
        /// Where it begins or has been read to.
        at: u64,
    },
    /// The layer decodes to more than can be mounted.
    #[error("the layer decodes to more than {limit} bytes: it is broken, or a decompression bomb")]
    TooLarge {
        /// What a layer may have in bytes.
        limit: u64,
    },
    /// A span gave fewer bytes than the archive promises.
    #[error("a span decoded to {found} bytes instead of {expected}")]
    ShortSpan {
        /// Promised length.
        expected: u64,
        /// What the decoder gave.
        found: u64,
    },
}
