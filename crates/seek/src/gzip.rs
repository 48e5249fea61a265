//! A gzip layer: one or more members (RFC 1952), each a deflate stream (RFC 1951).
//!
//! ```text
//! blob ──► Header ► Inflater ► Trailer ──► decoded bytes ──► sink
//!                      │ borders, references      │
//!                      ▼                          ▼ kept while undecided
//!                   pending ─ 32 KiB later ─► Placement ─ decided ─► SpanCutter
//!                             sparse window
//! ```
//!
//! Every block border and member start may become a seek point. What its window needs is known 32
//! KiB of output later, or when the member ends: nothing behind that can refer into it. Then
//! [`Placement`] weighs it against the others.

use crate::{
    DecodeError,
    deflate::{Corrupt, Inflater, Reference, Stop, UNIT_LEN_MAX},
    member::{BadMember, Header, Trailer},
    placement::{Border, Placement},
    retained::Retained,
    spans::{SpanCutter, SpanLimits, SpanStart},
    sparse::{self, Marks},
};
use bytes::Bytes;
use clip_archive::{SeekTable, SpanKind, Window, section::WINDOW_LEN};
use std::collections::VecDeque;

/// Decodes a gzip layer and chooses seek points.
#[derive(Debug)]
pub struct GzipStream {
    state: State,
    inflater: Inflater,
    retained: Retained,
    /// Decoded bytes that the checksum covers.
    summed: u64,
    checksum: crc32fast::Hasher,
    /// Decoded bytes before the current member.
    member_begins: u64,
    /// Compressed bytes consumed.
    at: u64,
    /// The beginning of a unit whose end has not come yet.
    unfinished: Vec<u8>,
    pending: VecDeque<Pending>,
    /// The border that was offered last.
    offered: Border,
    placement: Placement<SeekPoint>,
    cutter: SpanCutter,
}

#[derive(Debug)]
enum State {
    /// At the start of the blob, or behind a member: a member or the end follows.
    BetweenMembers,
    Header(Header),
    Body,
    Trailer(Trailer),
    /// Behind the last member only zero bytes follow (tar tools pad to tape blocks).
    Padding,
}

/// A border that may become a seek point, and whose window is not known yet.
#[derive(Debug)]
struct Pending {
    border: Border,
    start: Start,
    /// What refers to before this border, up to the next pending one.
    references: Vec<Reference>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Member,
    Block { skip_bits: u8 },
}

/// How a span begins, if it does.
#[derive(Debug)]
enum SeekPoint {
    Member,
    Block { skip_bits: u8, window: Window },
}

/// Why a blob is not gzip.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Member(#[from] BadMember),
    #[error(transparent)]
    Deflate(#[from] Corrupt),
    #[error("something other than a gzip member follows the last one")]
    Garbage,
}

impl GzipStream {
    pub fn new(limits: SpanLimits) -> Self {
        let start = Border {
            tar: 0,
            blob: 0,
            blob_end: 0,
        };
        Self {
            state: State::BetweenMembers,
            inflater: Inflater::new(),
            retained: Retained::new(),
            summed: 0,
            checksum: crc32fast::Hasher::new(),
            member_begins: 0,
            at: 0,
            unfinished: Vec::new(),
            pending: VecDeque::new(),
            offered: start,
            placement: Placement::new(limits, start),
            cutter: SpanCutter::new(limits, SpanKind::GzipMember),
        }
    }

    pub fn push(
        &mut self,
        mut blob: &[u8],
        sink: &mut dyn FnMut(Bytes),
    ) -> Result<(), DecodeError> {
        // What was left over comes again with some of the new bytes behind it, until the decoder
        // is among the new ones.
        while !self.unfinished.is_empty() && !blob.is_empty() {
            let mut joined = std::mem::take(&mut self.unfinished);
            let old = joined.len();
            let (some, later) = blob.split_at(blob.len().min(UNIT_LEN_MAX));
            joined.extend_from_slice(some);
            let consumed = self.consume(&joined, sink)?;
            match consumed.checked_sub(old) {
                Some(new) => blob = &blob[new..],
                None => {
                    joined.drain(..consumed);
                    self.unfinished = joined;
                    blob = later;
                }
            }
        }
        if !blob.is_empty() {
            let consumed = self.consume(blob, sink)?;
            self.unfinished.extend_from_slice(&blob[consumed..]);
        }
        Ok(())
    }

    pub fn finish(mut self, sink: &mut dyn FnMut(Bytes)) -> Result<SeekTable, DecodeError> {
        self.hand_on(sink);
        let complete = matches!(self.state, State::BetweenMembers | State::Padding);
        if !complete || self.at == 0 {
            return Err(DecodeError::Truncated {
                format: "gzip",
                at: self.at + self.unfinished.len() as u64,
            });
        }
        let tar_len = self.retained.tar_len();
        self.placement.finish(tar_len, self.at);
        self.settle();
        self.retained.release(tar_len, &mut self.cutter);
        Ok(self.cutter.finish(self.at))
    }

    /// Decodes what can be decoded; says how many bytes that took.
    fn consume(&mut self, input: &[u8], sink: &mut dyn FnMut(Bytes)) -> Result<usize, DecodeError> {
        let begins = self.at;
        loop {
            let left = &input[(self.at - begins) as usize..];
            match self.step(left, sink) {
                Ok(true) => {}
                Ok(false) => return Ok((self.at - begins) as usize),
                Err(problem) => {
                    self.hand_on(sink);
                    return Err(DecodeError::Damaged {
                        format: "gzip",
                        at: self.at,
                        problem: problem.to_string(),
                    });
                }
            }
        }
    }

    /// Whether it is worth another step.
    fn step(&mut self, input: &[u8], sink: &mut dyn FnMut(Bytes)) -> Result<bool, Problem> {
        match &mut self.state {
            State::BetweenMembers => match input.first() {
                None => return Ok(false),
                Some(0) if self.at > 0 => self.state = State::Padding,
                Some(_) => self.begin_member(),
            },
            State::Header(header) => {
                self.at += header.push(input)? as u64;
                if !header.is_complete() {
                    return Ok(false);
                }
                self.begin_body();
            }
            State::Body => {
                let progress = self.inflater.run(input, self.retained.output())?;
                self.at += progress.consumed as u64;
                match progress.stop {
                    Stop::NeedInput => return Ok(false),
                    Stop::OutputFull => self.make_room(sink),
                    Stop::Border => self.at_border(progress.unused_bits),
                    Stop::End => self.end_body(),
                }
            }
            State::Trailer(trailer) => {
                let content_len = self.retained.tar_len() - self.member_begins;
                let checksum = self.checksum.clone().finalize();
                self.at += trailer.push(input, checksum, content_len)? as u64;
                if !trailer.is_complete() {
                    return Ok(false);
                }
                self.state = State::BetweenMembers;
            }
            State::Padding => {
                let zeros = input.iter().position(|&byte| byte != 0);
                self.at += zeros.unwrap_or(input.len()) as u64;
                return match zeros {
                    None => Ok(false),
                    Some(_) => Err(Problem::Garbage),
                };
            }
        }
        Ok(true)
    }

    fn begin_member(&mut self) {
        let border = Border {
            tar: self.retained.tar_len(),
            blob: self.at,
            blob_end: self.at,
        };
        self.add_pending(border, Start::Member);
        self.state = State::Header(Header::new());
    }

    fn begin_body(&mut self) {
        self.member_begins = self.retained.tar_len();
        self.checksum = crc32fast::Hasher::new();
        self.inflater.reset();
        self.retained.output().begin_stream();
        self.state = State::Body;
    }

    fn at_border(&mut self, unused_bits: u8) {
        let border = Border {
            tar: self.retained.tar_len(),
            blob: self.at - u64::from(unused_bits > 0),
            blob_end: self.at,
        };
        let skip_bits = (8 - unused_bits) % 8;
        self.offer_known(false);
        self.add_pending(border, Start::Block { skip_bits });
    }

    fn end_body(&mut self) {
        // No span begins where nothing is decoded any more.
        let tar_len = self.retained.tar_len();
        self.pending.pop_back_if(|last| last.border.tar == tar_len);
        self.offer_known(true);
        self.sum();
        self.state = State::Trailer(Trailer::default());
    }

    fn make_room(&mut self, sink: &mut dyn FnMut(Bytes)) {
        self.hand_on(sink);
        self.offer_known(false);
        self.settle();
    }

    /// Whole buffers: that costs the least, and a decoder's last one is given when it ends.
    fn hand_on(&mut self, sink: &mut dyn FnMut(Bytes)) {
        self.sum();
        sink(self.retained.turn_over());
    }

    fn sum(&mut self) {
        let fresh = self.retained.fresh(self.summed);
        self.checksum.update(fresh);
        self.summed += fresh.len() as u64;
    }

    fn add_pending(&mut self, border: Border, start: Start) {
        let before = match self.pending.back() {
            Some(last) => last.border,
            None => self.offered,
        };
        if !self.placement.is_worthwhile(&border, &before) {
            return;
        }
        let output = self.retained.output();
        if let Some(last) = self.pending.back_mut() {
            last.references = output.references().to_vec();
        }
        output.begin_border();
        self.pending.push_back(Pending {
            border,
            start,
            references: Vec::new(),
        });
    }

    /// Offers the borders whose windows are known now: 32 KiB of output lie behind them, or their
    /// member has ended.
    fn offer_known(&mut self, member_ended: bool) {
        let tar_len = self.retained.tar_len();
        while let Some(first) = self.pending.front() {
            let known_from = match first.start {
                Start::Block { .. } if !member_ended => first.border.tar + WINDOW_LEN as u64,
                _ => first.border.tar + 1,
            };
            if tar_len < known_from {
                return;
            }
            let (cost, point) = match first.start {
                Start::Member => (sparse::cost(&Window::default()), SeekPoint::Member),
                Start::Block { skip_bits } => {
                    let window = self.window_of_first_pending();
                    (
                        sparse::cost(&window),
                        SeekPoint::Block { skip_bits, window },
                    )
                }
            };
            self.offered = first.border;
            self.placement.offer(first.border, cost, point);
            self.pending.pop_front();
        }
    }

    fn window_of_first_pending(&self) -> Window {
        let mut marks = Marks::new();
        let begins = self.pending[0].border.tar;
        let latest = self.pending.len() - 1;
        for (index, pending) in self.pending.iter().enumerate() {
            let distance = (pending.border.tar - begins) as usize;
            marks.add(&pending.references, distance);
            if index == latest {
                marks.add(self.retained.references(), distance);
            }
        }
        marks.gather(self.retained.history(begins))
    }

    /// Ends the spans whose ends are certain, and lets go of the bytes that belong to them.
    fn settle(&mut self) {
        match self.pending.front() {
            Some(first) => self
                .placement
                .advance(first.border.tar, first.border.blob_end),
            None => self.placement.advance(self.retained.tar_len(), self.at),
        }
        while let Some((border, point)) = self.placement.next_decided() {
            self.retained.release(border.tar, &mut self.cutter);
            let kind = match point {
                SeekPoint::Member => SpanKind::GzipMember,
                SeekPoint::Block { skip_bits, window } => SpanKind::GzipBlock {
                    skip_bits,
                    window: self.cutter.add_window(window),
                },
            };
            let next = SpanStart {
                blob_offset: border.blob,
                kind,
            };
            self.cutter.cut(border.blob_end, next);
        }
        let undecided = self.placement.undecided_from();
        self.retained.release(undecided, &mut self.cutter);
    }
}
