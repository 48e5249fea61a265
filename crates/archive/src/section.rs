//! A layer's section: its entries, and the spans from which any byte can be decoded.

use crate::{Digest, Entry, SpanDigest, limits};

/// Everything an archive knows about one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSection {
    /// Digest of the blob in the registry.
    pub digest: Digest,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Media type of the blob.
    pub media_type: String,
    /// Entries in tar order.
    pub entries: Vec<Entry>,
    /// Spans and windows.
    pub seek: SeekTable,
}

/// How to reach any byte of a layer's uncompressed tar.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeekTable {
    /// Size of the uncompressed tar in bytes.
    pub tar_size: u64,
    /// The spans in order; together they are exactly the tar.
    pub spans: Vec<Span>,
    /// The windows that spans refer to.
    pub windows: Vec<Window>,
}

/// The smallest piece of a layer that can be decoded alone: from one seek point to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Length of the decoded bytes.
    pub tar_len: u64,
    /// First byte of the blob that the decoder needs.
    pub blob_offset: u64,
    /// Number of bytes of the blob that the decoder needs. Neighbouring gzip spans may share one
    /// byte, as deflate blocks begin at any bit.
    pub blob_len: u64,
    /// How to start the decoder.
    pub kind: SpanKind,
    /// Digest of the decoded bytes.
    pub digest: SpanDigest,
}

/// How to start the decoder of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// The blob is the tar itself.
    Plain,
    /// A gzip member (RFC 1952) begins here.
    GzipMember,
    /// A deflate block (RFC 1951) begins inside a gzip member.
    GzipBlock {
        /// How many low bits of the first byte belong to the block before; 0 to 7.
        skip_bits: u8,
        /// Index of the window that holds what the block refers back to.
        window: u32,
    },
    /// A zstd frame (RFC 8878) begins here.
    ZstdFrame,
}

/// The part of the 32 KiB before a deflate block that later bytes really refer to. The rest is
/// taken as zero: on real layers about a tenth is needed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Window {
    /// `(start, length)` of each needed run, ascending, within the 32 KiB.
    pub runs: Vec<(u16, u16)>,
    /// The needed bytes, back to back.
    pub bytes: Vec<u8>,
}

/// Distance that deflate can refer back (RFC 1951, section 2).
pub const WINDOW_LEN: usize = 32 << 10;

/// Why a span table cannot be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeekTableError {
    /// Spans do not add up to the tar.
    #[error("its spans cover {covered} bytes, its tar has {tar_size}")]
    Coverage {
        /// Sum of the spans.
        covered: u64,
        /// Promised size.
        tar_size: u64,
    },
    /// A span lies outside the blob, or is empty.
    #[error("span {0} lies outside the layer's blob or is empty")]
    SpanOutside(usize),
    /// A span begins before the one in front of it has ended.
    #[error("span {0} overlaps the span before it")]
    Overlap(usize),
    /// A span promises more than its compressed bytes could decode to.
    #[error("span {0} promises more bytes than its part of the blob can hold")]
    Ratio(usize),
    /// A span names a window that does not exist, or more than seven bits to skip.
    #[error("span {0} cannot be started: its window or bit offset does not exist")]
    Start(usize),
    /// A window's runs are not inside 32 KiB or not in order.
    #[error("window {0} is malformed")]
    Window(usize),
    /// The tar is larger than EROFS can address.
    #[error("its tar claims {0} bytes, more than can be mounted")]
    TooLarge(u64),
}

impl SeekTable {
    /// Checks the spans against the blob's size and the number of windows.
    pub fn check_spans(
        &self,
        blob_size: u64,
        windows: Option<usize>,
    ) -> Result<(), SeekTableError> {
        if self.tar_size > limits::TAR_BYTES_MAX {
            return Err(SeekTableError::TooLarge(self.tar_size));
        }
        let mut covered = 0u64;
        let mut blob_end = 0;
        for (index, span) in self.spans.iter().enumerate() {
            let end = span.blob_offset.checked_add(span.blob_len);
            if span.tar_len == 0 || span.blob_len == 0 || end.is_none_or(|end| end > blob_size) {
                return Err(SeekTableError::SpanOutside(index));
            }
            if let SpanKind::GzipBlock { skip_bits, window } = span.kind
                && (skip_bits > 7 || windows.is_some_and(|windows| window as usize >= windows))
            {
                return Err(SeekTableError::Start(index));
            }
            // Deflate blocks begin at any bit, so two spans may share one byte, never more.
            if span.blob_offset + 1 < blob_end {
                return Err(SeekTableError::Overlap(index));
            }
            if span.tar_len > span.kind.holds_at_most(span.blob_len) {
                return Err(SeekTableError::Ratio(index));
            }
            blob_end = span.blob_offset + span.blob_len;
            covered = covered.saturating_add(span.tar_len);
        }
        match covered == self.tar_size {
            true => Ok(()),
            false => Err(SeekTableError::Coverage {
                covered,
                tar_size: self.tar_size,
            }),
        }
    }
}

impl SpanKind {
    /// The most bytes that `blob_len` bytes of this kind can decode to.
    fn holds_at_most(self, blob_len: u64) -> u64 {
        match self {
            Self::Plain => blob_len,
            // Two bits make 258 bytes: RFC 1951, section 3.2.5.
            Self::GzipMember | Self::GzipBlock { .. } => blob_len.saturating_mul(1032),
            // Four bytes make a block of 128 KiB: RFC 8878, section 3.1.1.2.
            Self::ZstdFrame => blob_len.saturating_mul(32 << 10),
        }
    }
}

impl Window {
    /// Writes the window into 32 KiB of `out`, zeros where nothing is needed. Of a window that is
    /// not [well formed](Self::is_well_formed), what fits.
    pub fn expand(&self, out: &mut [u8; WINDOW_LEN]) {
        out.fill(0);
        let mut rest = self.bytes.as_slice();
        for &(start, len) in &self.runs {
            let (run, tail) = rest.split_at(usize::from(len).min(rest.len()));
            let place = out.get_mut(usize::from(start)..).unwrap_or_default();
            let fits = run.len().min(place.len());
            place[..fits].copy_from_slice(&run[..fits]);
            rest = tail;
        }
    }

    /// Whether the runs are ascending, inside 32 KiB, and as long as the bytes.
    pub fn is_well_formed(&self) -> bool {
        let mut end = 0;
        let mut total = 0;
        for &(start, len) in &self.runs {
            let (start, len) = (usize::from(start), usize::from(len));
            if len == 0 || start < end || start + len > WINDOW_LEN {
                return false;
            }
            end = start + len;
            total += len;
        }
        total == self.bytes.len()
    }
}
