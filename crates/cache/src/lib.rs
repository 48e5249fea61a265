//! The node-wide span cache: one copy per layer, shared by every image, mount and process.
//!
//! ```text
//! DIR/layers/<section digest>/data     the uncompressed tar, sparse: holes where nothing was fetched
//!                             states   header, then one 32-bit state per span (memory-mapped)
//! ```
//!
//! The key is the digest of the layer's *section*: it covers the positions and the digests of all
//! spans, so an archive that lies spoils only its own cache.
//!
//! A read finds its spans' states. All present: one `pread`. Otherwise the missing spans are
//! fetched, decoded, compared with their digests, and only then written and marked present: what
//! was not checked never touches the data file. Many readers of one span cause one fetch; two
//! processes may both fetch a span, and write the same verified bytes to the same place.
//!
//! ```text
//!  read ─► access (first touch?) ─► read_ahead (what next?)
//!    └───► flights (who brings it?) ─► run (one request) ─► admission (now?) ─► fetch (decode, check, show)
//! ```
//!
//! States survive a restart of the process. After a restart of the machine nobody knows what of
//! the data reached the disk, so every state from before is "unverified": the span's digest is
//! computed once more before its first use. The same after somebody replaced or cut the data file.

mod access;
mod admission;
mod audit;
mod fetch;
mod flights;
mod layer;
mod prefetch;
mod read_ahead;
mod run;
mod staged;
mod states;
mod stats;
mod whole;

pub use access::Observer;
pub use audit::{CacheAudit, DamagedSpan, SpanDamage, audit};
pub use fetch::FillError;
pub use layer::{LayerReader, LayerSpec, ReadError, SpanCache, Windows};
pub use prefetch::{Prefetch, Progress};
pub use stats::CacheStats;
