//! What a layer still needs of the disk, and what the cache has room for: asked before much is fetched that nobody waits
//! for. Fetching it first and evicting it then would be of no use, and would cost others what they had.

use crate::{evict::idle_bytes, layer::LayerReader, survey::disk_bytes, word::SpanState};
use std::{fs::File, io};

/// What may be taken away to make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Yielding {
    /// Layers that nobody has open and nobody used for an hour: what is evicted before all else.
    Idle,
    /// Everything.
    All,
}

/// Says that a layer is in use, although nobody reads it: it is not among the first to be evicted.
#[derive(Debug)]
pub struct InUse(#[expect(dead_code, reason = "its lock is held until it is dropped")] File);

impl LayerReader {
    /// Bytes that may come to this layer's cache without anything being taken away but what is `yielding`. Looks at every
    /// layer there is.
    ///
    /// # Errors
    /// When the cache cannot be looked at.
    pub fn room(&self, yielding: Yielding) -> io::Result<u64> {
        let housekeeper = &self.store.housekeeper;
        match yielding {
            Yielding::Idle => housekeeper.room(idle_bytes),
            Yielding::All => housekeeper.room(disk_bytes),
        }
    }

    /// Decoded bytes of the spans that are not on the disk.
    pub fn absent_bytes(&self) -> u64 {
        let has_bytes = |state| matches!(state, SpanState::Present | SpanState::Unverified);
        let spans = self.store.table.spans.iter().enumerate();
        let absent = spans.filter(|(index, _)| !has_bytes(self.store.state(*index)));
        absent.map(|(_, span)| span.tar_len).sum()
    }

    /// Whether every span can be read from the disk at once.
    pub fn is_complete(&self) -> bool {
        (0..self.span_count()).all(|span| !self.store.is_missing(span))
    }

    /// Keeps the layer in use after this reader is gone; none if its disk is not to be had.
    pub fn keep_in_use(&self) -> Option<InUse> {
        self.store.files()?.keep_in_use().ok().map(InUse)
    }
}
