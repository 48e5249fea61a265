//! The part of a window that is needed, from the references into it.

use crate::deflate::Reference;
use clip_archive::{Window, section::WINDOW_LEN};

/// Runs this close are joined: the bytes between cost less than another run.
const JOINED_GAP: usize = 4;

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

/// A digest of 32 bytes, positions and lengths: measured.
const SPAN_COST: u64 = 45;
/// Measured on four images, like the next: the least archives. The optimum is flat: twice as much
/// or half changes them by 2 %.
const RUN_COST_TENTHS: u64 = 30;
const BYTE_COST_TENTHS: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_window_has_what_was_marked_and_little_else(
            marks in prop::collection::vec((0usize..WINDOW_LEN, 1usize..259), 0..200),
            seed: u8,
        ) {
            let mut used = vec![false; WINDOW_LEN];
            let mut bitmap = Marks::new();
            for &(start, len) in &marks {
                let len = len.min(WINDOW_LEN - start);
                bitmap.mark(start, len);
                used[start..start + len].fill(true);
            }
            let history: Vec<u8> = (0..WINDOW_LEN + 77)
                .map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed)
                .collect();
            let window = bitmap.gather(&history);
            prop_assert!(window.is_well_formed());
            let mut joined = vec![false; WINDOW_LEN];
            for &(start, len) in &window.runs {
                joined[usize::from(start)..usize::from(start) + usize::from(len)].fill(true);
            }
            let mut expanded = [0; WINDOW_LEN];
            window.expand(&mut expanded);
            for at in 0..WINDOW_LEN {
                if used[at] {
                    prop_assert!(joined[at]);
                    prop_assert_eq!(expanded[at], history[77 + at]);
                }
                let near = at.saturating_sub(JOINED_GAP)..(at + JOINED_GAP + 1).min(WINDOW_LEN);
                prop_assert!(!joined[at] || used[near].contains(&true));
            }
        }
    }
}
