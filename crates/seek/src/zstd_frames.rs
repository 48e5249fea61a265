//! A zstd layer: every frame begins without history, so frame starts are free seek points.
//! A layer that is one frame has one span.

use crate::{
    DecodeError,
    spans::{SpanCutter, SpanLimits, SpanStart},
};
use clip_archive::{SeekTable, SpanKind};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

/// Output is handed on in pieces of this size: two of zstd's 128 KiB blocks.
const OUT_LEN: usize = 256 << 10;

/// Decodes a zstd layer and notes frame starts.
pub struct ZstdStream {
    decoder: Decoder<'static>,
    out: Vec<u8>,
    cutter: SpanCutter,
    at: u64,
    at_frame_border: bool,
}

impl std::fmt::Debug for ZstdStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZstdStream")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl ZstdStream {
    pub fn new(limits: SpanLimits) -> Self {
        let decoder = Decoder::new().expect("a decoder without dictionary needs only memory");
        let cutter = SpanCutter::new(limits, SpanKind::ZstdFrame);
        Self {
            decoder,
            out: vec![0; OUT_LEN],
            cutter,
            at: 0,
            at_frame_border: true,
        }
    }

    pub fn push(&mut self, blob: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<(), DecodeError> {
        let mut input = InBuffer::around(blob);
        let mut output_was_full = false;
        while input.pos() < blob.len() || output_was_full {
            if self.at_frame_border && self.cutter.is_due(self.at) {
                self.cutter.cut(
                    self.at,
                    SpanStart {
                        blob_offset: self.at,
                        kind: SpanKind::ZstdFrame,
                    },
                );
            }
            let before = input.pos();
            let mut output = OutBuffer::around(&mut self.out[..]);
            let hint = self.decoder.run(&mut input, &mut output).map_err(|error| {
                DecodeError::Damaged {
                    format: "zstd",
                    at: self.at,
                    problem: error.to_string(),
                }
            })?;
            let produced = output.pos();
            self.at += (input.pos() - before) as u64;
            self.at_frame_border = hint == 0;
            output_was_full = produced == OUT_LEN && !self.at_frame_border;
            self.cutter.extend(&self.out[..produced]);
            sink(&self.out[..produced]);
        }
        Ok(())
    }

    pub fn finish(self) -> Result<SeekTable, DecodeError> {
        match self.at_frame_border {
            true => Ok(self.cutter.finish(self.at)),
            false => Err(DecodeError::Truncated {
                format: "zstd",
                at: self.at,
            }),
        }
    }
}
