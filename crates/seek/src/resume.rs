//! Decoding one span from its own compressed bytes.

use crate::{
    DecodeError,
    inflate::{Corrupt, Inflate, Stop, Wrapper},
    zstd_frames,
};
use clip_archive::{Span, SpanKind, Window, section::WINDOW_LEN};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

/// Output is handed on in pieces of this size.
const OUT_LEN: usize = 128 << 10;
/// CRC-32 and length behind a gzip member (RFC 1952, section 2.3.1).
const GZIP_TRAILER_LEN: usize = 8;

/// Decodes one span. Takes its blob bytes in pieces and stops by itself at the span's end.
pub struct SpanDecoder {
    engine: Engine,
    out: Vec<u8>,
    expected: u64,
    found: u64,
    blob_at: u64,
}

enum Engine {
    Plain,
    /// In the middle of a member: raw deflate after the first byte was split at `skip_bits`.
    Block {
        inflate: Inflate,
        skip_bits: u8,
    },
    /// Behind a member that was entered in the middle.
    Trailer {
        left: usize,
    },
    Member(Inflate),
    Zstd(Box<Decoder<'static>>),
}

impl std::fmt::Debug for SpanDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpanDecoder")
            .field("expected", &self.expected)
            .field("found", &self.found)
            .finish_non_exhaustive()
    }
}

impl SpanDecoder {
    /// A decoder for `span`. `window` must be the span's window for [`SpanKind::GzipBlock`]; the
    /// other kinds need none.
    pub fn new(span: &Span, window: Option<&Window>) -> Self {
        let engine = match span.kind {
            SpanKind::Plain => Engine::Plain,
            SpanKind::GzipMember => Engine::Member(Inflate::new(Wrapper::Gzip)),
            SpanKind::GzipBlock { skip_bits, .. } => {
                let mut inflate = Inflate::new(Wrapper::Raw);
                let mut history = [0; WINDOW_LEN];
                if let Some(window) = window {
                    window.expand(&mut history);
                }
                inflate.set_dictionary(&history);
                Engine::Block { inflate, skip_bits }
            }
            SpanKind::ZstdFrame => Engine::Zstd(Box::new(zstd_frames::decoder())),
        };
        Self {
            engine,
            out: vec![0; OUT_LEN],
            expected: span.tar_len,
            found: 0,
            blob_at: span.blob_offset,
        }
    }

    /// Takes the next bytes of the span's blob range; decoded bytes go to `sink`, in order and
    /// never more than the span holds.
    pub fn push(
        &mut self,
        mut blob: &[u8],
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), DecodeError> {
        while self.found < self.expected {
            let room = (self.expected - self.found).min(OUT_LEN as u64) as usize;
            let (consumed, produced) = self.step(blob, room)?;
            if matches!(self.engine, Engine::Plain) {
                sink(&blob[..produced]);
            } else {
                sink(&self.out[..produced]);
            }
            self.found += produced as u64;
            self.blob_at += consumed as u64;
            blob = &blob[consumed..];
            if blob.is_empty() && produced == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Whether everything that the span promises was decoded.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.found == self.expected {
            true => Ok(()),
            false => Err(DecodeError::ShortSpan {
                expected: self.expected,
                found: self.found,
            }),
        }
    }

    /// Decodes at most `room` bytes; returns bytes consumed and produced.
    fn step(&mut self, blob: &[u8], room: usize) -> Result<(usize, usize), DecodeError> {
        let damaged = |format, problem: &str| DecodeError::Damaged {
            format,
            at: self.blob_at,
            problem: problem.to_owned(),
        };
        match &mut self.engine {
            Engine::Plain => {
                let len = room.min(blob.len());
                Ok((len, len))
            }
            Engine::Block {
                inflate,
                skip_bits: skip_bits @ 1..,
            } => {
                let Some(&first) = blob.first() else {
                    return Ok((0, 0));
                };
                inflate.prime(first, std::mem::take(skip_bits));
                Ok((1, 0))
            }
            Engine::Block { inflate, .. } => {
                let step = inflate
                    .step(blob, &mut self.out[..room], false)
                    .map_err(|Corrupt| damaged("gzip", "not a valid deflate stream"))?;
                if step.stop == Stop::End {
                    self.engine = Engine::Trailer {
                        left: GZIP_TRAILER_LEN,
                    };
                }
                Ok((step.consumed, step.produced))
            }
            Engine::Trailer { left } => {
                let len = (*left).min(blob.len());
                *left -= len;
                if *left == 0 {
                    self.engine = Engine::Member(Inflate::new(Wrapper::Gzip));
                }
                Ok((len, 0))
            }
            Engine::Member(inflate) => {
                let step = inflate
                    .step(blob, &mut self.out[..room], false)
                    .map_err(|Corrupt| damaged("gzip", "not a valid gzip stream"))?;
                if step.stop == Stop::End {
                    inflate.reset(Wrapper::Gzip);
                }
                Ok((step.consumed, step.produced))
            }
            Engine::Zstd(decoder) => {
                let mut input = InBuffer::around(blob);
                let mut output = OutBuffer::around(&mut self.out[..room]);
                decoder
                    .run(&mut input, &mut output)
                    .map_err(|error| damaged("zstd", &error.to_string()))?;
                Ok((input.pos(), output.pos()))
            }
        }
    }
}
