//! A zstd layer: every frame begins without history, so frame starts are free seek points.
//! A layer that is one frame has one span. Skippable frames (pzstd's sizes, the table of contents of zstd:chunked) are
//! passed over; those behind the last content belong to no span.

use crate::{
    DecodeError,
    lent::{Buffers, lend},
    spans::{SpanCutter, SpanLimits, SpanStart},
};
use bytes::Bytes;
use clip_archive::{SeekTable, SpanKind};
use std::sync::Arc;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

/// Output is handed on in pieces of this size, two of zstd's 128 KiB blocks, and what is left at the end.
const OUT_LEN: usize = 256 << 10;
/// Window that is accepted: as much as the `zstd` command takes without being asked to (`--long=27`, level 22), and as
/// much memory as one cold read may cost a node. Frames say what they need before they need it.
const WINDOW_LOG_MAX: u32 = 27;
/// The longest frame header (RFC 8878, section 3.1.1.1), magic number included.
const FRAME_HEADER_MAX: usize = 18;

/// A decoder that takes windows up to [`WINDOW_LOG_MAX`].
pub fn decoder() -> Decoder<'static> {
    let mut decoder = Decoder::new().expect("a decoder without dictionary needs only memory");
    decoder
        .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
        .expect("27 is in the range that zstd documents");
    decoder
}

/// Decodes a zstd layer and notes frame starts.
pub struct ZstdStream {
    decoder: Decoder<'static>,
    buffers: Buffers,
    out: Box<[u8]>,
    /// How much of `out` is decoded bytes.
    filled: usize,
    cutter: SpanCutter,
    at: u64,
    at_frame_border: bool,
    /// Behind the last frame that held content.
    content_end: u64,
    /// The first bytes of the current frame.
    frame_header: Vec<u8>,
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
        let cutter = SpanCutter::new(limits, SpanKind::ZstdFrame);
        let mut buffers = Buffers::new(OUT_LEN);
        Self {
            decoder: decoder(),
            out: buffers.take(),
            buffers,
            filled: 0,
            cutter,
            at: 0,
            at_frame_border: true,
            content_end: 0,
            frame_header: Vec::with_capacity(FRAME_HEADER_MAX),
        }
    }

    pub fn push(&mut self, blob: &[u8], sink: &mut dyn FnMut(Bytes)) -> Result<(), DecodeError> {
        let mut input = InBuffer::around(blob);
        let mut output_was_full = false;
        while input.pos() < blob.len() || output_was_full {
            if self.at_frame_border {
                self.begin_frame();
            }
            let before = input.pos();
            let mut output = OutBuffer::around_pos(&mut self.out[..], self.filled);
            let result = self.decoder.run(&mut input, &mut output);
            let filled = output.pos();
            let consumed = &blob[before..input.pos()];
            let missing = FRAME_HEADER_MAX - self.frame_header.len();
            let seen = &blob[before..];
            self.frame_header
                .extend_from_slice(&seen[..seen.len().min(missing)]);
            let hint = match result {
                Ok(hint) => hint,
                Err(error) => {
                    self.hand_on(sink);
                    return Err(self.refused(&error));
                }
            };
            self.at += consumed.len() as u64;
            self.at_frame_border = hint == 0;
            output_was_full = filled == OUT_LEN && !self.at_frame_border;
            if filled > self.filled {
                self.content_end = self.at;
            }
            self.cutter.extend(&self.out[self.filled..filled]);
            self.filled = filled;
            if filled == OUT_LEN {
                self.hand_on(sink);
            }
        }
        Ok(())
    }

    fn hand_on(&mut self, sink: &mut dyn FnMut(Bytes)) {
        let buffer = Arc::new(std::mem::replace(&mut self.out, self.buffers.take()));
        sink(lend(&buffer, 0..self.filled));
        self.buffers.give_back(buffer);
        self.filled = 0;
    }

    pub fn finish(mut self, sink: &mut dyn FnMut(Bytes)) -> Result<SeekTable, DecodeError> {
        self.hand_on(sink);
        match self.at_frame_border {
            true => Ok(self.cutter.finish(self.content_end)),
            false => Err(DecodeError::Truncated {
                format: "zstd",
                at: self.at,
            }),
        }
    }

    fn begin_frame(&mut self) {
        self.frame_header.clear();
        if self.cutter.is_due(self.content_end) {
            self.cutter.cut(
                self.content_end,
                SpanStart {
                    blob_offset: self.at,
                    kind: SpanKind::ZstdFrame,
                },
            );
        }
    }

    fn refused(&self, error: &std::io::Error) -> DecodeError {
        match window_size(&self.frame_header) {
            Some(bytes) if bytes > 1 << WINDOW_LOG_MAX => {
                DecodeError::Window { bytes, at: self.at }
            }
            _ => DecodeError::Damaged {
                format: "zstd",
                at: self.at,
                problem: error.to_string(),
            },
        }
    }
}

/// How much of its past a frame wants to be remembered (RFC 8878, section 3.1.1.1).
fn window_size(header: &[u8]) -> Option<u64> {
    let (&[0x28, 0xB5, 0x2F, 0xFD, descriptor], rest) = header.split_first_chunk::<5>()? else {
        return None;
    };
    let is_single_segment = descriptor & 0x20 != 0;
    if !is_single_segment {
        let (exponent, mantissa) = (rest.first()? >> 3, u64::from(rest.first()? & 7));
        let base = 1u64 << (10 + exponent);
        return Some(base + base / 8 * mantissa);
    }
    // Such a frame remembers all of its content, whose size it names behind the dictionary's number.
    let size_at = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size_len = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let size = rest.get(size_at..size_at + size_len)?;
    let size = size
        .iter()
        .rev()
        .fold(0, |n, &byte| n << 8 | u64::from(byte));
    Some(if size_len == 2 { size + 256 } else { size })
}

#[cfg(test)]
mod tests {
    use super::window_size;

    #[test]
    fn a_frame_header_tells_the_window() {
        let header = |rest: &[u8]| [&[0x28, 0xB5, 0x2F, 0xFD], rest].concat();
        for (rest, size) in [
            (&[0x00, 0x88][..], Some(128 << 20)),
            (&[0x04, 0xA8], Some(2 << 30)),
            (&[0x04, 0x0F], Some(2048 + 7 * 256)),
            (&[0x20, 0xFF], Some(255)),
            (&[0x60, 1, 0], Some(257)),
            (&[0xA1, 9, 0, 0, 0, 0x10], Some(256 << 20)),
            (&[0xE0, 0, 0, 0, 0, 1, 0, 0, 0], Some(1 << 32)),
            (&[0xE0, 0], None),
            (&[], None),
        ] {
            assert_eq!(window_size(&header(rest)), size, "{rest:x?}");
        }
        assert_eq!(window_size(b"\x50\x2a\x4d\x18\0\0\0\0"), None);
    }
}
