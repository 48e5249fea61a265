//! The `.clip` archive: what is on disk, nothing else.
//!
//! ```text
//! ┌────────┬──────┬───────────────┬───────────────┬─────┐
//! │ header │ head │ layer section │ layer section │ ... │
//! │ 54 B   │ zstd │ tree │ seek   │ tree │ seek   │     │
//! └────────┴──────┴───────────────┴───────────────┴─────┘
//! ```
//!
//! * the **header** ([`header`]) says where the rest lies;
//! * the **head** ([`Head`]) names the image (registry, repository, manifest digest, platform,
//!   configuration) and lists its layers;
//! * a **layer section** ([`LayerSection`]) describes one layer and nothing else: its entries in
//!   tar order ([`Entry`]) and its spans ([`Span`]) with the windows that a decoder needs to resume.
//!
//! Digests cover the canonical *uncompressed* encoding ([`codec`]), never zstd's output, so that a
//! newer zstd changes no identity.
//!
//! For reading, the layers are laid over each other ([`merge`]) and the result is written as an
//! EROFS image ([`erofs`]) whose files point into one device per layer: the layer's uncompressed tar.
//!
//! This crate does no I/O: bytes in, bytes out. An archive is untrusted input; opening one fails
//! with an [`OpenError`], it never panics and never allocates more than [`limits`] allow.

pub mod codec;
pub mod columns;
pub mod digest;
pub mod entry;
pub mod erofs;
pub mod head;
pub mod header;
pub mod limits;
pub mod merge;
pub mod open;
pub mod profile;
mod read_head;
pub mod section;
pub mod tree;
pub mod write;

pub use digest::{Digest, SpanDigest, SpanHasher};
pub use entry::{Entry, EntryKind, Segment, Xattr};
pub use head::{Head, LayerRef, RuntimeDirs};
pub use merge::merge;
pub use open::{Archive, OpenError, Summary};
pub use profile::StartProfile;
pub use read_head::ReadHeadError;
pub use section::{LayerSection, SeekTable, Span, SpanKind, Window};
pub use tree::Tree;
pub use write::ArchiveWriter;
