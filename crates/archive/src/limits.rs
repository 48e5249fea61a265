//! Upper bounds on what an archive may claim. Each is far above what real images hold, and low
//! enough that a crafted archive cannot exhaust a node: a few kilobytes of zstd can stand for
//! gigabytes, and a byte of an encoded list for dozens in memory.
//!
//! `docs/format.md`, "Limits", lists them; `tests/hostile.rs` observes time and memory at them.

/// Decoded size of the head: dominated by the image configuration, which registries cap at 4–8 MiB.
pub const HEAD_BYTES_MAX: usize = 16 << 20;
/// Layers of one image: EROFS device identifiers are 16 bits wide; overlayfs stops at 500.
pub const LAYERS_MAX: usize = 4096;
/// Entries of all layers of an image together, and nodes of its merged tree, implied directories
/// included. The largest images in use have about a million.
pub const ENTRIES_MAX: usize = 4 << 20;
/// Decoded size in bytes of all layers' entries together: 128 for each of [`ENTRIES_MAX`]; real
/// ones take 40 to 80.
pub const TREE_BYTES_MAX: usize = 512 << 20;
/// Memory in bytes that all layers' entries together may take: an empty list in an encoding is one
/// byte, in memory 24.
pub const TREE_MEMORY_MAX: usize = 1 << 30;
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
