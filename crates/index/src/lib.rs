//! Indexing one layer: its blob goes in as it is downloaded, its archive section comes out.
//!
//! ```text
//! blob bytes ─┬─ sha256 ── must be the manifest's digest
//!             └─ inflate ─┬─ sha256 ── must be the configuration's diffID
//!                         ├─ spans, seek points, span digests   (clip-seek)
//!                         └─ tar walk ── entries                 (tar.rs)
//! ```
//!
//! One pass, bounded memory (the entries, and a few hundred KiB), nothing on disk.

/// Raised when the same layer gives another section: earlier archives' sections are then not taken over.
pub const INDEXER_VERSION: u32 = 1;

mod hash;
mod layer;
mod tar;

pub use layer::{FileLayer, IndexedLayer, LayerContent, LayerError, LayerIndexer, LayerInfo};
pub use tar::{TarError, TarWalker};
