//! Upper bounds on what an archive may claim. Each is far above what real images hold, and low
//! enough that a crafted archive cannot exhaust a node: a few kilobytes of zstd can stand for
//! gigabytes, and a byte of an encoded list for dozens in memory.
//!
//! `docs/format.md`, "Limits", lists them; `tests/hostile.rs` observes time and memory at them.

use crate::Entry;

/// Decoded size of the head: dominated by the image configuration, which registries cap at 4–8 MiB.
pub const HEAD_BYTES_MAX: usize = 16 << 20;
/// Layers of one image: EROFS device identifiers are 16 bits wide; overlayfs stops at 500.
pub const LAYERS_MAX: usize = 4096;
/// Entries of all layers of an image together, and nodes of its merged tree, implied directories
/// included. The largest images in use have about a million.
pub const ENTRIES_MAX: usize = 2 << 20;
/// Decoded size in bytes of all layers' entries together: 128 for each of [`ENTRIES_MAX`]; real
/// ones take 40 to 80.
pub const TREE_BYTES_MAX: usize = 256 << 20;
/// Memory in bytes that all layers' entries together may take: an empty list in an encoding is one
/// byte, in memory 24.
pub const TREE_MEMORY_MAX: usize = 512 << 20;
/// Bytes of all names and link targets of a merged tree. They are part of what entries take, but for the names of
/// directories that are made where links lead, again and again.
pub const TREE_TEXT_MAX: usize = TREE_MEMORY_MAX;
/// Decoded size in bytes of all layers' span tables together: 4 TiB in spans of 512 KiB need less.
pub const SPAN_BYTES_MAX: usize = 512 << 20;
/// Decoded size in bytes of all layers' windows together: at 3 KiB each, enough for 60 GB of gzip.
pub const WINDOW_BYTES_MAX: usize = 512 << 20;
/// Length in bytes of a path in a tar entry: Linux' `PATH_MAX`.
pub const PATH_BYTES_MAX: usize = 4096;
/// Length in bytes of one path component: Linux' `NAME_MAX`.
pub const NAME_BYTES_MAX: usize = 255;
/// Length in bytes of a symbolic link's target: Linux refuses longer ones.
pub const TARGET_BYTES_MAX: usize = 4095;
/// Extended attributes of one entry: more than Linux lists (64 KiB of names).
pub const XATTRS_MAX: usize = 64 << 10;
/// Pieces of one sparse file.
pub const SEGMENTS_MAX: usize = 1 << 20;
/// Uncompressed size in bytes of one layer: EROFS counts 512-byte blocks in 32 bits.
pub const TAR_BYTES_MAX: u64 = (u32::MAX as u64) * 512;
/// Compressed size in bytes of one layer: not more than twice the largest tar.
pub const BLOB_BYTES_MAX: u64 = 2 * TAR_BYTES_MAX;
/// Path components that merging looks up, for each entry on average: forty symbolic links with
/// targets of two thousand components each could otherwise make every entry cost milliseconds.
pub const STEPS_PER_ENTRY: u64 = 64;
/// Path components that merging looks up beyond [`STEPS_PER_ENTRY`]: a fifth of a second.
pub const STEPS_SPARE: u64 = 4 << 20;

/// What the entries of one image, or of one layer that is being indexed, may still take.
#[derive(Debug, Clone)]
pub struct EntryBudget {
    entries: usize,
    memory: usize,
}

/// An image with more entries than [`ENTRIES_MAX`], or larger ones than [`TREE_MEMORY_MAX`] allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// Too many.
    #[error("there are more than {ENTRIES_MAX} entries")]
    Entries,
    /// Too large, all together.
    #[error("the entries take more than {TREE_MEMORY_MAX} bytes")]
    Memory,
}

impl Default for EntryBudget {
    fn default() -> Self {
        Self {
            entries: ENTRIES_MAX,
            memory: TREE_MEMORY_MAX,
        }
    }
}

impl EntryBudget {
    /// Takes what `entry` needs.
    pub fn admit(&mut self, entry: &Entry) -> Result<(), TooMuch> {
        self.admit_bytes(entry.memory())
    }

    /// Takes what one entry of `memory` bytes needs.
    pub fn admit_bytes(&mut self, memory: usize) -> Result<(), TooMuch> {
        self.entries = self.entries.checked_sub(1).ok_or(TooMuch::Entries)?;
        self.memory = self.memory.checked_sub(memory).ok_or(TooMuch::Memory)?;
        Ok(())
    }
}
