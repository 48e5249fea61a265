//! The columns of a layer's spans and windows.

use super::{Reader, Writer};
use crate::{
    SpanDigest,
    codec::DecodeError,
    section::{Span, SpanKind, Window},
};

mod spans {
    /// A code of the kind.
    pub const KIND: usize = 0;
    /// Decoded lengths.
    pub const TAR_LEN: usize = 1;
    /// First byte in the blob, as the difference from the end of the span before.
    pub const BLOB_OFFSET: usize = 2;
    /// Lengths in the blob.
    pub const BLOB_LEN: usize = 3;
    /// Windows, as the difference from one more than the window before.
    pub const WINDOW: usize = 4;
    /// Digests of the decoded bytes, 32 each.
    pub const DIGEST: usize = 5;
    pub const COLUMNS: usize = 6;
}

mod kind {
    pub const PLAIN: u8 = 0;
    pub const GZIP_MEMBER: u8 = 1;
    pub const ZSTD_FRAME: u8 = 2;
    /// And the bits to skip.
    pub const GZIP_BLOCK: u8 = 8;
}

mod windows {
    /// Number of runs.
    pub const RUNS: usize = 0;
    /// Distance of a run from the end of the one before.
    pub const GAP: usize = 1;
    /// Lengths of the runs.
    pub const LEN: usize = 2;
    /// Number of bytes needed.
    pub const BYTES_LEN: usize = 3;
    /// The bytes.
    pub const BYTES: usize = 4;
    pub const COLUMNS: usize = 5;
}

const DIGEST_LEN: usize = 32;

/// The canonical encoding of a layer's spans.
pub fn encode_spans(spans: &[Span]) -> Vec<u8> {
    let mut columns = Writer::<{ spans::COLUMNS }>::new();
    let mut blob_end = 0u64;
    let mut next_window = 0u32;
    for span in spans {
        let code = match span.kind {
            SpanKind::Plain => kind::PLAIN,
            SpanKind::GzipMember => kind::GZIP_MEMBER,
            SpanKind::ZstdFrame => kind::ZSTD_FRAME,
            SpanKind::GzipBlock { skip_bits, window } => {
                let difference = i64::from(window) - i64::from(next_window);
                columns.signed(spans::WINDOW, difference);
                next_window = window.wrapping_add(1);
                kind::GZIP_BLOCK | skip_bits & 7
            }
        };
        columns.byte(spans::KIND, code);
        columns.number(spans::TAR_LEN, span.tar_len);
        let difference = span.blob_offset.wrapping_sub(blob_end) as i64;
        columns.signed(spans::BLOB_OFFSET, difference);
        columns.number(spans::BLOB_LEN, span.blob_len);
        columns.bytes(spans::DIGEST, span.digest.as_bytes());
        blob_end = span.blob_offset.wrapping_add(span.blob_len);
    }
    columns.finish(spans.len())
}

/// Decodes what [`encode_spans`] made.
pub fn decode_spans(bytes: &[u8]) -> Result<Vec<Span>, DecodeError> {
    // Each has a digest.
    let most = (bytes.len() / DIGEST_LEN) as u64;
    let mut columns = Reader::<{ spans::COLUMNS }>::new("span table", bytes, most)?;
    let mut spans = Vec::with_capacity(columns.count as usize);
    let mut blob_end = 0u64;
    let mut next_window = 0u32;
    for _ in 0..columns.count {
        let kind = match columns.byte(spans::KIND)? {
            kind::PLAIN => SpanKind::Plain,
            kind::GZIP_MEMBER => SpanKind::GzipMember,
            kind::ZSTD_FRAME => SpanKind::ZstdFrame,
            code if code & !7 == kind::GZIP_BLOCK => {
                let difference = columns.signed(spans::WINDOW)?;
                let window = i64::from(next_window).checked_add(difference);
                let window = window.and_then(|window| u32::try_from(window).ok());
                let window = window.ok_or_else(|| columns.malformed())?;
                next_window = window.wrapping_add(1);
                let skip_bits = code & 7;
                SpanKind::GzipBlock { skip_bits, window }
            }
            _ => return Err(columns.malformed()),
        };
        let difference = columns.signed(spans::BLOB_OFFSET)?;
        let span = Span {
            tar_len: columns.number(spans::TAR_LEN)?,
            blob_offset: blob_end.wrapping_add_signed(difference),
            blob_len: columns.number(spans::BLOB_LEN)?,
            kind,
            digest: digest(columns.bytes(spans::DIGEST, DIGEST_LEN)?),
        };
        blob_end = span.blob_offset.wrapping_add(span.blob_len);
        spans.push(span);
    }
    columns.finish()?;
    Ok(spans)
}

fn digest(bytes: &[u8]) -> SpanDigest {
    let mut digest = [0; DIGEST_LEN];
    digest.copy_from_slice(bytes);
    SpanDigest::from_bytes(digest)
}

/// The canonical encoding of a layer's windows.
pub fn encode_windows(windows: &[Window]) -> Vec<u8> {
    let mut columns = Writer::<{ windows::COLUMNS }>::new();
    for window in windows {
        columns.number(windows::RUNS, window.runs.len() as u64);
        let mut end = 0u16;
        for &(start, len) in &window.runs {
            columns.number(windows::GAP, start.wrapping_sub(end).into());
            columns.number(windows::LEN, len.into());
            end = start.wrapping_add(len);
        }
        columns.number(windows::BYTES_LEN, window.bytes.len() as u64);
        columns.bytes(windows::BYTES, &window.bytes);
    }
    columns.finish(windows.len())
}

/// Decodes what [`encode_windows`] made, at most `max` windows.
pub fn decode_windows(bytes: &[u8], max: u64) -> Result<Vec<Window>, DecodeError> {
    let mut columns = Reader::<{ windows::COLUMNS }>::new("seek windows", bytes, max)?;
    let mut windows = Vec::new();
    for _ in 0..columns.count {
        let count = columns.number(windows::RUNS)?;
        let mut runs = Vec::new();
        let mut end = 0u16;
        for _ in 0..count {
            let start = end.wrapping_add(columns.small(windows::GAP)?);
            let len = columns.small(windows::LEN)?;
            end = start.wrapping_add(len);
            runs.push((start, len));
        }
        let len = columns.small(windows::BYTES_LEN)?;
        let bytes = columns.bytes(windows::BYTES, len)?.to_vec();
        windows.push(Window { runs, bytes });
    }
    columns.finish()?;
    Ok(windows)
}
