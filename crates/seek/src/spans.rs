//! Cutting a decoded stream into spans: lengths, positions and digests.

use clip_archive::{SeekTable, Span, SpanHasher, SpanKind, Window};

/// How large a span may grow before the next chance to begin a new one is taken. A single deflate
/// block or zstd frame that is longer is kept whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanLimits {
    /// Decoded bytes: what a node decodes and stores for one cold read.
    pub tar: u64,
    /// Compressed bytes: what a node downloads for one cold read.
    pub blob: u64,
}

impl Default for SpanLimits {
    /// 2 MiB and 512 KiB: measured to cost about 0.1–0.3 % of a layer in windows while a cold
    /// 4 KiB read fetches a few hundred KiB.
    fn default() -> Self {
        Self {
            tar: 2 << 20,
            blob: 512 << 10,
        }
    }
}

impl SpanLimits {
    /// Whether a span of this size should end at the next opportunity. Borders come every 16–200
    /// KiB of output, so cutting from three quarters on keeps nearly all spans within the limits.
    pub fn is_due(&self, tar_len: u64, blob_len: u64) -> bool {
        tar_len >= self.tar - self.tar / 4 || blob_len >= self.blob - self.blob / 4
    }
}

/// Collects the spans of one layer.
#[derive(Debug)]
pub struct SpanCutter {
    limits: SpanLimits,
    table: SeekTable,
    start: SpanStart,
    tar_len: u64,
    hasher: SpanHasher,
}

/// Where and how the current span began.
#[derive(Debug, Clone, Copy)]
pub struct SpanStart {
    /// First byte of the blob that its decoder needs.
    pub blob_offset: u64,
    /// How its decoder starts.
    pub kind: SpanKind,
}

impl SpanCutter {
    /// A cutter whose first span begins at the blob's first byte.
    pub fn new(limits: SpanLimits, kind: SpanKind) -> Self {
        let start = SpanStart {
            blob_offset: 0,
            kind,
        };
        Self {
            limits,
            table: SeekTable::default(),
            start,
            tar_len: 0,
            hasher: SpanHasher::default(),
        }
    }

    /// Appends decoded bytes to the current span.
    pub fn extend(&mut self, decoded: &[u8]) {
        self.hasher.update(decoded);
        self.tar_len += decoded.len() as u64;
    }

    /// Decoded bytes of the current span so far.
    pub fn tar_len(&self) -> u64 {
        self.tar_len
    }

    /// Whether the current span, ending at byte `blob_end`, is large enough.
    pub fn is_due(&self, blob_end: u64) -> bool {
        self.tar_len > 0
            && self
                .limits
                .is_due(self.tar_len, blob_end - self.start.blob_offset)
    }

    /// Ends the current span at byte `blob_end` (exclusive) and begins the next at `next`.
    pub fn cut(&mut self, blob_end: u64, next: SpanStart) {
        let digest = self.hasher.take();
        if self.tar_len > 0 {
            self.table.spans.push(Span {
                tar_len: self.tar_len,
                blob_offset: self.start.blob_offset,
                blob_len: blob_end - self.start.blob_offset,
                kind: self.start.kind,
                digest,
            });
            self.table.tar_size += self.tar_len;
        }
        self.tar_len = 0;
        self.start = next;
    }

    /// Keeps a window for the span that begins next; gives its index.
    pub fn add_window(&mut self, window: Window) -> u32 {
        self.table.windows.push(window);
        self.table.windows.len() as u32 - 1
    }

    /// Ends the last span at the blob's end.
    pub fn finish(mut self, blob_end: u64) -> SeekTable {
        self.cut(blob_end, self.start);
        self.table
    }
}
