//! An uncompressed layer: every byte can be read where it lies; spans are cut to size.

use crate::spans::{SpanCutter, SpanLimits, SpanStart};
use bytes::Bytes;
use clip_archive::{SeekTable, SpanKind};

/// Passes an uncompressed layer through.
#[derive(Debug)]
pub struct PlainStream {
    cutter: SpanCutter,
    span_len: u64,
    at: u64,
}

impl PlainStream {
    pub fn new(limits: SpanLimits) -> Self {
        // What is downloaded is what is decoded, so the smaller limit rules both.
        Self {
            cutter: SpanCutter::new(limits, SpanKind::Plain),
            span_len: limits.tar.min(limits.blob),
            at: 0,
        }
    }

    pub fn push(&mut self, blob: &Bytes, sink: &mut dyn FnMut(Bytes)) {
        sink(blob.clone());
        let mut blob = &blob[..];
        while !blob.is_empty() {
            let room = self.span_len - self.cutter.tar_len();
            let (now, later) = blob.split_at(room.min(blob.len() as u64) as usize);
            self.cutter.extend(now);
            self.at += now.len() as u64;
            if self.cutter.tar_len() == self.span_len {
                self.cutter.cut(
                    self.at,
                    SpanStart {
                        blob_offset: self.at,
                        kind: SpanKind::Plain,
                    },
                );
            }
            blob = later;
        }
    }

    pub fn finish(self) -> SeekTable {
        self.cutter.finish(self.at)
    }
}
