//! Indexing one layer: its blob goes in as it is downloaded, its archive section comes out.
//!
//! ```text
//! blob bytes ─┬─ sha256 ── must be the manifest's digest
//!             └─ inflate ─┬─ sha256 ── must be the configuration's diffID
//!                         ├─ spans, seek points, span digests   (clip-seek)
//!                         └─ tar walk ── entries                 (tar/)
//! ```
//!
//! One pass, bounded memory (the entries, and a few megabytes), nothing on disk. Each line of the picture is a thread
//! where there are several processors (`stage.rs`).

/// Raised when the same layer gives another section: earlier archives' sections are then not taken over.
pub const INDEXER_VERSION: u32 = 1;

mod content;
mod hash;
mod layer;
mod stage;
mod tar;

pub use layer::{FileLayer, IndexedLayer, LayerContent, LayerError, LayerIndexer, LayerInfo};
pub use tar::{TarError, TarWalker};
