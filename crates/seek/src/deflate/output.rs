//! Where decoded bytes go: behind 32 KiB of history, with room to spare.
//!
//! ```text
//! buffer:  │ history, 32 KiB │ decoded ............ at │ room ...... limit │ MARGIN │
//!                     floor: first byte of the stream; nothing refers to before it
//!                              border: what later bytes refer to before it is noted
//! ```

use super::Corrupt;
use clip_archive::section::WINDOW_LEN;

/// Decoded bytes per buffer. Large enough that copying 32 KiB of history to the next one costs
/// little, small enough to stay in the second-level cache.
const ROOM: usize = 224 << 10;

/// A symbol begins before the limit, and is at most two literals and a match of 258 bytes that is
/// copied 32 bytes at a time.
pub const MARGIN: usize = 320;

/// Length of a buffer.
pub const BUFFER_LEN: usize = WINDOW_LEN + ROOM + MARGIN;

/// More than all references that can reach before a border: such a match begins within 32 KiB
/// behind it and has at least 3 bytes. A power of two, so that a masked index is known to be inside.
const REFERENCES_LEN: usize = 16 << 10;

/// The output of an [`super::Inflater`].
pub struct Output {
    pub(super) buffer: Box<[u8]>,
    /// Where the next byte goes.
    pub(super) at: usize,
    pub(super) floor: usize,
    pub(super) references: References,
}

/// What was copied from before the latest border.
pub struct References {
    pub(super) border: usize,
    pub(super) noted: Box<[Reference; REFERENCES_LEN]>,
    pub(super) len: usize,
}

/// A match that begins before a border (and may end behind it): how far before it, less one, above
/// 16 bits of its length. One word, as it is written for every match.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reference(u32);

impl Reference {
    /// Distance from the match's beginning to the border; 1 to 32,768.
    pub fn reach(self) -> usize {
        (self.0 >> 16) as usize + 1
    }

    /// Length of the match; 3 to 258.
    pub fn match_len(self) -> usize {
        usize::from(self.0 as u16)
    }
}

impl Output {
    /// An empty output.
    pub fn new() -> Self {
        Self {
            buffer: Self::new_buffer(),
            at: WINDOW_LEN,
            floor: WINDOW_LEN,
            references: References {
                border: 0,
                noted: Box::new([Reference::default(); REFERENCES_LEN]),
                len: 0,
            },
        }
    }

    /// A buffer for [`Self::turn_over`].
    pub fn new_buffer() -> Box<[u8]> {
        vec![0; BUFFER_LEN].into_boxed_slice()
    }

    /// Position behind the last byte, in the buffer.
    pub fn at(&self) -> usize {
        self.at
    }

    /// History and decoded bytes.
    pub fn filled(&self) -> &[u8] {
        &self.buffer[..self.at]
    }

    /// A deflate stream begins: what came before is not for it to refer to.
    pub fn begin_stream(&mut self) {
        self.floor = self.at;
        self.references.border = 0;
        self.references.len = 0;
    }

    /// From now on notes what refers to before this position.
    pub fn begin_border(&mut self) {
        self.references.border = self.at;
        self.references.len = 0;
    }

    /// What was copied from before the latest border since then.
    pub fn references(&self) -> &[Reference] {
        &self.references.noted[..self.references.len]
    }

    /// Whether no further symbol may begin.
    pub fn is_full(&self) -> bool {
        self.at >= self.limit()
    }

    /// Goes on in `next`, which gets the last 32 KiB as history; gives the old buffer.
    pub fn turn_over(&mut self, mut next: Box<[u8]>) -> Box<[u8]> {
        let gone = self.at - WINDOW_LEN;
        next[..WINDOW_LEN].copy_from_slice(&self.buffer[gone..self.at]);
        self.at = WINDOW_LEN;
        // What lies outside the new history cannot be referred to, so the start will do for it.
        self.floor = self.floor.saturating_sub(gone);
        self.references.border = self.references.border.saturating_sub(gone);
        std::mem::replace(&mut self.buffer, next)
    }

    pub(super) fn limit(&self) -> usize {
        self.buffer.len() - MARGIN
    }

    /// Appends a literal. The output must not be full.
    pub(super) fn push(&mut self, byte: u8) {
        self.buffer[self.at] = byte;
        self.at += 1;
    }

    /// Appends at most `len` bytes of `source`, as many as there is room for; says how many.
    pub(super) fn append(&mut self, source: &[u8], len: usize) -> usize {
        let room = self.limit().saturating_sub(self.at);
        let len = len.min(source.len()).min(room);
        self.buffer[self.at..self.at + len].copy_from_slice(&source[..len]);
        self.at += len;
        len
    }

    /// Appends `len` bytes that begin `distance` bytes back, and may overlap what they give. The
    /// output must not be full.
    pub(super) fn repeat(&mut self, distance: usize, len: usize) -> Result<(), Corrupt> {
        if distance > self.at - self.floor {
            return Err(Corrupt::Distance);
        }
        let from = self.at - distance;
        let mut references = self.references.cursor();
        references.note(from, len);
        let noted = references.len();
        self.references.set_len(noted);
        for at in self.at..self.at + len {
            self.buffer[at] = self.buffer[at - distance];
        }
        self.at += len;
        Ok(())
    }
}

impl References {
    /// For noting many: keeps the length where the compiler can hold it in a register.
    #[inline(always)]
    pub(super) fn cursor(&mut self) -> Cursor<'_> {
        Cursor {
            border: self.border,
            noted: &mut self.noted,
            len: self.len,
        }
    }

    pub(super) fn set_len(&mut self, len: usize) {
        self.len = len;
    }
}

/// Notes references; see [`References::cursor`].
pub(super) struct Cursor<'a> {
    border: usize,
    noted: &'a mut [Reference; REFERENCES_LEN],
    len: usize,
}

impl Cursor<'_> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Notes a match that begins at `from`, if that is before the border. Without a branch: near a
    /// border the answer is as good as random.
    #[inline(always)]
    pub(super) fn note(&mut self, from: usize, len: usize) {
        let reach = self.border.wrapping_sub(from) as u32;
        self.noted[self.len & (REFERENCES_LEN - 1)] =
            Reference(reach.wrapping_sub(1) << 16 | len as u32);
        self.len += usize::from(from < self.border);
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output")
            .field("at", &self.at)
            .field("floor", &self.floor)
            .finish_non_exhaustive()
    }
}
