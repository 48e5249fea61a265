//! The two verbs end to end, one page each: [`index_image`] and [`Node::open_image`]. And the judge
//! of both: [`verify_image`].
//!
//! Everything else in this crate serves these two: progress for people, errors with the reason that
//! a Kubernetes condition shows, and the state directory of a node.

mod complete;
mod fetch_ahead;
mod first_start;
mod image_file;
mod index_image;
mod layer_content;
mod open_image;
mod pace;
mod published;
mod reuse;
mod state_dir;
mod verify;

pub use clip_archive::{Archive, Digest, RuntimeDirs, StartProfile};
pub use clip_cache::{
    CacheAudit, CacheLimits, CacheStats, CachedLayer, DamagedSpan, FreeSpace, Freed, Pruned,
    SpanDamage, list as list_cache, parse_bytes, prune as prune_cache,
};
pub use clip_fs::{
    ImageFs, KernelMount, Layout, MountOptions, Session, carries_overlay, connection, datagram,
    is_connected, mount_points, read_ahead,
};
pub use clip_fuse::{Connection, Dispatcher};
pub use clip_registry as registry;
pub use clip_seek::SpanLimits;
pub use complete::{CompleteError, KeptInUse};
pub use fetch_ahead::FetchAhead;
pub use image_file::ImageFileError;
pub use index_image::{IndexError, IndexOptions, IndexedImage, Progress, Quiet, index_image};
pub use open_image::{Node, NodeOptions, OpenImageError, OpenedImage};
pub use pace::Pace;
pub use published::{ARCHIVE_MEDIA_TYPE, ARTIFACT_TYPE, PublishedArchives, publish};
pub use reuse::{ArchiveFolder, ArchivePlace, PlaceError};
pub use state_dir::StateDir;
pub use verify::{
    BadSpan, CacheVerified, CacheVerifyError, CachedTree, Finding, LayerVerified, SpanProblem,
    Status, Verified, VerifyOptions, VerifyProgress, verify_cache, verify_image,
};

/// The digest type of archives for one of the registry's. Both are SHA-256.
pub fn digest_of(digest: &clip_registry::Digest) -> Digest {
    Digest::from_bytes(digest.to_bytes())
}
