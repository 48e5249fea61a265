//! Decoded bytes that are kept until it is known which span they belong to.
//!
//! The decoder's buffers themselves are kept, and lent to whoever reads the decoded bytes, so
//! nothing is copied but 32 KiB of history from each to the next. That history also is every
//! border's window, found where the border is.

use crate::{
    deflate::{BUFFER_LEN, Output, Reference},
    lent::{Buffers, lend},
    spans::SpanCutter,
};
use bytes::Bytes;
use clip_archive::section::WINDOW_LEN;
use std::{collections::VecDeque, sync::Arc};

/// The decoder's output, the current buffer and older ones.
#[derive(Debug)]
pub struct Retained {
    output: Output,
    /// Decoded bytes before the current buffer's.
    begins: u64,
    older: VecDeque<Filled>,
    buffers: Buffers,
    /// Decoded bytes that were given to the cutter.
    released: u64,
}

/// A buffer that the decoder is done with.
#[derive(Debug)]
struct Filled {
    buffer: Arc<Box<[u8]>>,
    begins: u64,
    /// Behind its last decoded byte, in the buffer.
    end: usize,
}

impl Retained {
    pub fn new() -> Self {
        Self {
            output: Output::new(),
            begins: 0,
            older: VecDeque::new(),
            buffers: Buffers::new(BUFFER_LEN),
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

    /// Makes room: the current buffer joins the older ones. Gives what was decoded into it.
    pub fn turn_over(&mut self) -> Bytes {
        let (begins, end) = (self.begins, self.output.at());
        self.begins = self.tar_len();
        let buffer = Arc::new(self.output.turn_over(self.buffers.take()));
        let decoded = lend(&buffer, WINDOW_LEN..end);
        self.older.push_back(Filled {
            buffer,
            begins,
            end,
        });
        decoded
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
            {
                self.buffers.give_back(oldest.buffer);
            }
        }
    }
}
