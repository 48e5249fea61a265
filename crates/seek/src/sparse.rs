//! The part of a window that is needed, from the references into it.

use crate::deflate::Reference;
use clip_archive::{Window, section::WINDOW_LEN};

/// Runs this close are joined: the bytes between cost less than another run.
const JOINED_GAP: usize = 3;

/// Which bytes of a window are referred to.
pub struct Marks([u64; WINDOW_LEN / 64]);

impl Marks {
    pub fn new() -> Self {
        Self([0; WINDOW_LEN / 64])
    }

    /// Marks what `references` take from the window of a border that lies `distance` bytes before
    /// the border that they were noted for.
    pub fn add(&mut self, references: &[Reference], distance: usize) {
        for reference in references {
            if let Some(reach @ 1..) = reference.reach().checked_sub(distance) {
                self.mark(WINDOW_LEN - reach, reference.match_len().min(reach));
            }
        }
    }

    fn mark(&mut self, start: usize, len: usize) {
        let (mut word, bit) = (start / 64, start % 64);
        let mut left = len + bit;
        let mut mask = u64::MAX << bit;
        while left > 64 {
            self.0[word] |= mask;
            mask = u64::MAX;
            word += 1;
            left -= 64;
        }
        self.0[word] |= mask & (u64::MAX >> (64 - left));
    }

    /// The marked bytes of `history`, whose end is the border.
    pub fn gather(&self, history: &[u8]) -> Window {
        let history = &history[history.len() - WINDOW_LEN..];
        let mut window = Window::default();
        let mut next = self.find(0, true);
        while let Some(start) = next {
            let mut end = start;
            while let Some(marked) = next
                && (marked <= end + JOINED_GAP || end == start)
            {
                end = self.find(marked, false).unwrap_or(WINDOW_LEN);
                next = self.find(end, true);
            }
            window.runs.push((start as u16, (end - start) as u16));
            window.bytes.extend_from_slice(&history[start..end]);
        }
        window
    }

    /// The first byte from `at` on that is marked, or is not.
    fn find(&self, at: usize, marked: bool) -> Option<usize> {
        let flip = if marked { 0 } else { u64::MAX };
        let mut word = at / 64;
        let mut bits = (self.0.get(word)? ^ flip) & (u64::MAX << (at % 64));
        while bits == 0 {
            word += 1;
            bits = self.0.get(word)? ^ flip;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }
}

/// Bytes that a seek point with this window adds to an archive, about: a span's digest does not
/// compress; runs and content do.
pub fn cost(window: &Window) -> u64 {
    let (runs, bytes) = (window.runs.len() as u64, window.bytes.len() as u64);
    SPAN_COST + (runs * RUN_COST_TENTHS + bytes * BYTE_COST_TENTHS) / 10
}

/// A digest of 32 bytes, positions and lengths.
const SPAN_COST: u64 = 40;
const RUN_COST_TENTHS: u64 = 22;
const BYTE_COST_TENTHS: u64 = 6;
