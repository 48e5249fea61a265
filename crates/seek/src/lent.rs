//! Buffers of decoded bytes that are handed out without being copied.
//!
//! ```text
//! take() ─► filled by a decoder ─► lend() ─┬─► Bytes, read by others, perhaps on another thread
//!    ▲                                     └─► Arc, kept by the decoder ─► give_back()
//!    └──────────── when nobody reads it any more ──────────────────────────────┘
//! ```

use bytes::Bytes;
use std::{collections::VecDeque, ops::Range, sync::Arc};

/// Buffers kept for the next ones; more would be memory held for a peak that has passed.
const SPARE_MAX: usize = 16;

/// Gives buffers of one length, again and again the same ones.
#[derive(Debug)]
pub struct Buffers {
    len: usize,
    /// Oldest first: the one that is most likely read.
    spare: VecDeque<Arc<Box<[u8]>>>,
}

impl Buffers {
    pub fn new(len: usize) -> Self {
        Self {
            len,
            spare: VecDeque::new(),
        }
    }

    /// A buffer that nobody else has. Its content is whatever it was.
    pub fn take(&mut self) -> Box<[u8]> {
        // A reader that is so far behind frees its buffer itself.
        let spare = self.spare.pop_front().and_then(Arc::into_inner);
        spare.unwrap_or_else(|| vec![0; self.len].into_boxed_slice())
    }

    /// Takes a buffer to be used again once its readers are done.
    pub fn give_back(&mut self, buffer: Arc<Box<[u8]>>) {
        if self.spare.len() < SPARE_MAX {
            self.spare.push_back(buffer);
        }
    }
}

/// The bytes `range` of `buffer`, for others to read.
pub fn lend(buffer: &Arc<Box<[u8]>>, range: Range<usize>) -> Bytes {
    Bytes::from_owner(Lent(buffer.clone())).slice(range)
}

struct Lent(Arc<Box<[u8]>>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_again_only_when_nobody_reads_it() {
        let mut buffers = Buffers::new(8);
        let mut first = buffers.take();
        first.fill(1);
        let address = first.as_ptr();
        let first = Arc::new(first);
        let read = lend(&first, 2..5);
        buffers.give_back(first);

        let mut second = buffers.take();
        assert_ne!(second.as_ptr(), address, "somebody reads the first one");
        second.fill(2);
        assert_eq!(read, [1, 1, 1][..]);

        let address = second.as_ptr();
        buffers.give_back(Arc::new(second));
        let third = buffers.take();
        assert_eq!(third.as_ptr(), address);
    }
}
