//! A gzip layer: one or more members (RFC 1952), each a deflate stream (RFC 1951).
//!
//! While the stream is decoded, block borders go by. When the current span is large enough, the
//! next border becomes a seek point: its bit position is noted and the 32 KiB before it are kept
//! until the *next* 32 KiB of output are known, because only those can refer into the window.
//! Then [`used_window`] finds out which bytes of the window they use.

use crate::{
    DecodeError,
    inflate::{Corrupt, Inflate, Step, Stop, Wrapper},
    spans::{SpanCutter, SpanLimits, SpanStart},
};
use clip_archive::{SeekTable, SpanKind, Window, section::WINDOW_LEN};

/// Fresh output per round. Large enough that moving the 32 KiB of history costs little, small
/// enough to stay in the second-level cache together with it.
const FRESH_LEN: usize = 224 << 10;

/// Compressed bytes that are kept until 32 KiB of output tell which part of a window they use. Blocks
/// without output could go on for ever; when they do, the whole window is kept instead.
const PENDING_BLOB_MAX: usize = 256 << 10;

/// Decodes a gzip layer and notes seek points.
#[derive(Debug)]
pub struct GzipStream {
    inflate: Inflate,
    cutter: SpanCutter,
    state: State,
    /// `WINDOW_LEN` bytes of history, then fresh output up to `filled`.
    out: Vec<u8>,
    filled: usize,
    /// Compressed bytes consumed.
    at: u64,
    last_byte: u8,
    /// Output of the current member: no back-reference reaches before its start.
    member_len: u64,
    pending: Option<PendingWindow>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the start of the blob, or behind a member: a member or the end follows.
    BetweenMembers,
    InMember,
    /// Behind the last member only zero bytes follow (tar tools pad to tape blocks).
    Padding,
}

/// A seek point whose window is not known yet.
#[derive(Debug)]
struct PendingWindow {
    index: u32,
    skip_bits: u8,
    history: Vec<u8>,
    /// The blob from the seek point on.
    blob: Vec<u8>,
    /// Output since the seek point.
    tar_len: usize,
}

impl GzipStream {
    pub fn new(limits: SpanLimits) -> Self {
        Self {
            inflate: Inflate::new(Wrapper::Gzip),
            cutter: SpanCutter::new(limits, SpanKind::GzipMember),
            state: State::BetweenMembers,
            out: vec![0; WINDOW_LEN + FRESH_LEN],
            filled: WINDOW_LEN,
            at: 0,
            last_byte: 0,
            member_len: 0,
            pending: None,
        }
    }

    pub fn push(
        &mut self,
        mut blob: &[u8],
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), DecodeError> {
        loop {
            match self.state {
                State::BetweenMembers => match blob.first() {
                    None => return Ok(()),
                    Some(0) if self.at > 0 => self.state = State::Padding,
                    Some(_) => self.begin_member(),
                },
                State::InMember => {
                    let output_was_full = self.make_room();
                    if blob.is_empty() && !output_was_full {
                        return Ok(());
                    }
                    let step = self
                        .inflate
                        .step(blob, &mut self.out[self.filled..], true)
                        .map_err(|Corrupt| self.damaged("not a valid gzip stream"))?;
                    self.account(&blob[..step.consumed], step, sink);
                    let stuck =
                        step.consumed == 0 && step.produced == 0 && step.stop == Stop::Buffers;
                    blob = &blob[step.consumed..];
                    if stuck {
                        return Ok(());
                    }
                    match step.stop {
                        Stop::Buffers => {}
                        Stop::Border { unused_bits } => self.at_border(unused_bits),
                        Stop::End => {
                            self.resolve_pending();
                            self.state = State::BetweenMembers;
                        }
                    }
                }
                State::Padding => {
                    if blob.iter().any(|&byte| byte != 0) {
                        return Err(
                            self.damaged("something other than a gzip member follows the last one")
                        );
                    }
                    self.at += blob.len() as u64;
                    return Ok(());
                }
            }
        }
    }

    pub fn finish(self) -> Result<SeekTable, DecodeError> {
        match self.state {
            State::InMember => Err(DecodeError::Truncated {
                format: "gzip",
                at: self.at,
            }),
            _ if self.at == 0 => Err(DecodeError::Truncated {
                format: "gzip",
                at: 0,
            }),
            _ => Ok(self.cutter.finish(self.at)),
        }
    }

    fn begin_member(&mut self) {
        if self.cutter.is_due(self.at) {
            self.cutter.cut(
                self.at,
                SpanStart {
                    blob_offset: self.at,
                    kind: SpanKind::GzipMember,
                },
            );
        }
        self.inflate.reset(Wrapper::Gzip);
        self.member_len = 0;
        self.state = State::InMember;
    }

    /// Slides the history when the buffer is full; true when it was.
    fn make_room(&mut self) -> bool {
        let full = self.filled == self.out.len();
        if full {
            self.out.copy_within(self.filled - WINDOW_LEN.., 0);
            self.filled = WINDOW_LEN;
        }
        full
    }

    fn account(&mut self, consumed: &[u8], step: Step, sink: &mut dyn FnMut(&[u8])) {
        let fresh = &self.out[self.filled..self.filled + step.produced];
        self.cutter.extend(fresh);
        sink(fresh);
        self.filled += step.produced;
        self.member_len += step.produced as u64;
        self.at += consumed.len() as u64;
        self.last_byte = consumed.last().copied().unwrap_or(self.last_byte);
        if let Some(pending) = &mut self.pending {
            pending.blob.extend_from_slice(consumed);
            pending.tar_len += step.produced;
            if pending.tar_len >= WINDOW_LEN || pending.blob.len() > PENDING_BLOB_MAX {
                self.resolve_pending();
            }
        }
    }

    fn at_border(&mut self, unused_bits: u8) {
        if self.member_len == 0 || self.pending.is_some() || !self.cutter.is_due(self.at) {
            return;
        }
        let index = self.cutter.reserve_window();
        let skip_bits = (8 - unused_bits) % 8;
        let shared_byte = (skip_bits > 0).then_some(self.last_byte);
        let blob_offset = self.at - u64::from(shared_byte.is_some());
        self.cutter.cut(
            self.at,
            SpanStart {
                blob_offset,
                kind: SpanKind::GzipBlock {
                    skip_bits,
                    window: index,
                },
            },
        );
        let known = (self.member_len as usize).min(WINDOW_LEN);
        let mut history = vec![0; WINDOW_LEN - known];
        history.extend_from_slice(&self.out[self.filled - known..self.filled]);
        self.pending = Some(PendingWindow {
            index,
            skip_bits,
            history,
            blob: shared_byte.into_iter().collect(),
            tar_len: 0,
        });
    }

    fn resolve_pending(&mut self) {
        if let Some(pending) = self.pending.take() {
            let window = match pending.blob.len() > PENDING_BLOB_MAX {
                true => gather(&pending.history, &[true; WINDOW_LEN]),
                false => used_window(&pending.history, &pending.blob, pending.skip_bits),
            };
            self.cutter.set_window(pending.index, window);
        }
    }

    fn damaged(&self, problem: &str) -> DecodeError {
        DecodeError::Damaged {
            format: "gzip",
            at: self.at,
            problem: problem.to_owned(),
        }
    }
}

/// Which bytes of the 32 KiB `history` are used by the deflate blocks in `blob` (from bit
/// `skip_bits` of its first byte on, at least 32 KiB of output or up to the member's end).
///
/// The blocks are decoded three times over made-up histories: one whose byte *i* is `i & 255`, one
/// with `i >> 8`, one with `!(i & 255)`. Output bytes that differ between the first and the third
/// came from the history, and the first two name the place. The decoder itself says what it
/// copies, so nothing here knows deflate.
fn used_window(history: &[u8], blob: &[u8], skip_bits: u8) -> Window {
    let decode = |byte_at: &dyn Fn(usize) -> u8| {
        let made_up: Vec<u8> = (0..WINDOW_LEN).map(byte_at).collect();
        let mut inflate = Inflate::new(Wrapper::Raw);
        let mut blob = blob;
        if let (1.., [first, rest @ ..]) = (skip_bits, blob) {
            inflate.prime(*first, skip_bits);
            blob = rest;
        }
        inflate.set_dictionary(&made_up);
        let mut out = vec![0; WINDOW_LEN];
        let mut filled = 0;
        while let Ok(step) = inflate.step(blob, &mut out[filled..], false) {
            filled += step.produced;
            blob = &blob[step.consumed..];
            if step.stop == Stop::End
                || filled == WINDOW_LEN
                || (step.consumed == 0 && step.produced == 0)
            {
                break;
            }
        }
        out.truncate(filled);
        out
    };
    let low = decode(&|i| i as u8);
    let high = decode(&|i| (i >> 8) as u8);
    let inverted = decode(&|i| !(i as u8));
    let mut used = vec![false; WINDOW_LEN];
    for ((&low, &high), &inverted) in low.iter().zip(&high).zip(&inverted) {
        if low != inverted {
            used[usize::from(high) << 8 | usize::from(low)] = true;
        }
    }
    gather(history, &used)
}

fn gather(history: &[u8], used: &[bool]) -> Window {
    let mut window = Window::default();
    let mut at = 0;
    while let Some(start) = used[at..]
        .iter()
        .position(|&used| used)
        .map(|skip| at + skip)
    {
        let len = used[start..]
            .iter()
            .position(|&used| !used)
            .unwrap_or(used.len() - start);
        window.runs.push((start as u16, len as u16));
        window.bytes.extend_from_slice(&history[start..start + len]);
        at = start + len;
    }
    window
}
