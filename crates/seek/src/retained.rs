//! Decoded bytes that are kept until it is known which span they belong to.
//!
//! The decoder's buffers themselves are kept, so nothing is copied but 32 KiB of history from each
//! to the next. That history also is every border's window, found where the border is.

use crate::{
    deflate::{Output, Reference},
    spans::SpanCutter,
};
use clip_archive::section::WINDOW_LEN;
use std::collections::VecDeque;

/// The decoder's output, the current buffer and older ones.
#[derive(Debug)]
pub struct Retained {
    output: Output,
    /// Decoded bytes before the current buffer's.
    begins: u64,
    older: VecDeque<Filled>,
    spare: Vec<Box<[u8]>>,
    /// Decoded bytes that were given to the cutter.
    released: u64,
}

/// A buffer that the decoder is done with.
#[derive(Debug)]
struct Filled {
    buffer: Box<[u8]>,
    begins: u64,
    /// Behind its last decoded byte, in the buffer.
    end: usize,
}

/// Buffers kept for the next ones; more would be memory held for a peak that has passed.
const SPARE_MAX: usize = 16;

impl Retained {
    pub fn new() -> Self {
        Self {
            output: Output::new(),
            begins: 0,
            older: VecDeque::new(),
            spare: Vec::new(),
            released: 0,
        }
    }

    /// Decoded bytes so far.
    pub fn tar_len(&self) -> u64 {
        self.begins + (self.output.at() - WINDOW_LEN) as u64
    }

    /// The decoder's output; it must be turned over with [`Self::turn_over`].
    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// See [`Output::references`].
    pub fn references(&self) -> &[Reference] {
        self.output.references()
    }

    /// Decoded bytes from number `from` on, as far back as the current buffer goes.
    pub fn fresh(&self, from: u64) -> &[u8] {
        let start = WINDOW_LEN + (from - self.begins) as usize;
        &self.output.filled()[start..]
    }

    /// Makes room: the current buffer joins the older ones.
    pub fn turn_over(&mut self) {
        let next = self.spare.pop().unwrap_or_else(Output::new_buffer);
        let (begins, end) = (self.begins, self.output.at());
        self.begins = self.tar_len();
        let buffer = self.output.turn_over(next);
        self.older.push_back(Filled {
            buffer,
            begins,
            end,
        });
    }

    /// At least 32 KiB of output up to number `end`, which has not been released. Before the first
    /// byte there are zeros.
    pub fn history(&self, end: u64) -> &[u8] {
        let older = self.older.iter().rev().find(|older| older.begins <= end);
        let (begins, bytes) = match older {
            Some(older) if end < self.begins => (older.begins, &older.buffer[..older.end]),
            _ => (self.begins, self.output.filled()),
        };
        &bytes[..WINDOW_LEN + (end - begins) as usize]
    }

    /// Gives decoded bytes up to number `end` to the cutter, and forgets them.
    pub fn release(&mut self, end: u64, cutter: &mut SpanCutter) {
        while self.released < end {
            let (begins, bytes) = match self.older.front() {
                Some(oldest) => (oldest.begins, &oldest.buffer[..oldest.end]),
                None => (self.begins, self.output.filled()),
            };
            let start = WINDOW_LEN + (self.released - begins) as usize;
            let stop = bytes.len().min(WINDOW_LEN + (end - begins) as usize);
            cutter.extend(&bytes[start..stop]);
            self.released += (stop - start) as u64;
            if stop == bytes.len()
                && let Some(oldest) = self.older.pop_front()
                && self.spare.len() < SPARE_MAX
            {
                self.spare.push(oldest.buffer);
            }
        }
    }
}
