//! Every span of a layer, decoded alone from its seek point while the blob streams by once.
//!
//! The streaming decoder that indexed the layer never used a seek point. This does what a cold read
//! does: a fresh decoder, the span's window, the span's own compressed bytes and nothing else.

use crate::Archive;
use clip_archive::{OpenError, SeekTable, SpanDigest, SpanHasher, SpanKind, Window};
use clip_seek::{DecodeError, SpanDecoder};
use std::ops::Range;

/// A span that does not give what the archive promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadSpan {
    /// Which span of the layer.
    pub span: usize,
    /// Its bytes in the uncompressed layer.
    pub tar: Range<u64>,
    /// The bytes of the blob that it is decoded from.
    pub blob: Range<u64>,
    /// The digest that the archive promises.
    pub expected: SpanDigest,
    /// What was found instead.
    pub problem: SpanProblem,
}

/// What is wrong with a span.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpanProblem {
    /// Other bytes.
    #[error("decodes to bytes with digest {0}")]
    Digest(SpanDigest),
    /// No bytes, or too few.
    #[error("does not decode: {0}")]
    Decode(DecodeError),
    /// The blob ended before the span did.
    #[error("is not in the blob, which ends before it")]
    Missing,
}

/// The result for one layer.
#[derive(Debug)]
pub(super) struct SpansChecked {
    pub checked: u64,
    pub bad: Vec<BadSpan>,
}

/// See the module.
pub(super) struct SpanChecker {
    table: SeekTable,
    windows: Vec<Window>,
    /// Position of each span in the tar.
    starts: Vec<u64>,
    /// How many spans have begun.
    begun: usize,
    open: Vec<Open>,
    at: u64,
    bad: Vec<BadSpan>,
}

/// A span of which bytes are still to come.
struct Open {
    span: usize,
    decoder: SpanDecoder,
    hasher: SpanHasher,
}

impl SpanChecker {
    /// A checker for layer `index`, at the start of its blob.
    pub fn new(archive: &Archive, index: usize) -> Result<Self, OpenError> {
        let table = archive.seek_table(index)?;
        let next_start = |at: &mut u64, len: u64| Some(std::mem::replace(at, *at + len));
        let lengths = table.spans.iter().map(|span| span.tar_len);
        Ok(Self {
            starts: lengths.scan(0, next_start).collect(),
            windows: archive.windows(index)?,
            table,
            begun: 0,
            open: Vec::new(),
            at: 0,
            bad: Vec::new(),
        })
    }

    /// Takes the next bytes of the blob.
    pub fn push(&mut self, chunk: &[u8]) {
        let end = self.at + chunk.len() as u64;
        for open in std::mem::take(&mut self.open) {
            self.feed(open, chunk);
        }
        // An archive that opens has its spans in the order of their bytes.
        while let Some(span) = self.table.spans.get(self.begun) {
            if span.blob_offset >= end {
                break;
            }
            self.feed(self.begin(self.begun), chunk);
            self.begun += 1;
        }
        self.at = end;
    }

    /// The blob is complete.
    pub fn finish(mut self) -> SpansChecked {
        let unfinished = std::mem::take(&mut self.open);
        let never_begun = self.begun..self.table.spans.len();
        let missing = unfinished.iter().map(|open| open.span).chain(never_begun);
        for span in missing {
            self.report(span, SpanProblem::Missing);
        }
        self.bad.sort_by_key(|bad| bad.span);
        SpansChecked {
            checked: self.table.spans.len() as u64,
            bad: self.bad,
        }
    }

    fn begin(&self, span: usize) -> Open {
        let window = match self.table.spans[span].kind {
            SpanKind::GzipBlock { window, .. } => self.windows.get(window as usize),
            _ => None,
        };
        Open {
            span,
            decoder: SpanDecoder::new(&self.table.spans[span], window),
            hasher: SpanHasher::default(),
        }
    }

    /// Gives a span its share of `chunk`, which lies at `self.at`.
    fn feed(&mut self, mut open: Open, chunk: &[u8]) {
        let span = &self.table.spans[open.span];
        let (start, end) = (span.blob_offset, span.blob_offset + span.blob_len);
        let within = |position: u64| position.saturating_sub(self.at).min(chunk.len() as u64);
        let share = &chunk[within(start) as usize..within(end) as usize];
        let hasher = &mut open.hasher;
        let decoded = open.decoder.push(share, &mut |bytes| hasher.update(bytes));
        if let Err(problem) = decoded {
            return self.report(open.span, SpanProblem::Decode(problem));
        }
        if end > self.at + chunk.len() as u64 {
            return self.open.push(open);
        }
        if let Err(problem) = open.decoder.finish() {
            return self.report(open.span, SpanProblem::Decode(problem));
        }
        let found = open.hasher.take();
        if found != span.digest {
            self.report(open.span, SpanProblem::Digest(found));
        }
    }

    fn report(&mut self, index: usize, problem: SpanProblem) {
        let (span, start) = (&self.table.spans[index], self.starts[index]);
        self.bad.push(BadSpan {
            span: index,
            tar: start..start + span.tar_len,
            blob: span.blob_offset..span.blob_offset + span.blob_len,
            expected: span.digest,
            problem,
        });
    }
}

impl std::fmt::Debug for SpanChecker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpanChecker")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}
