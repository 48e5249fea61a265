//! The node-wide span cache: one copy per layer, shared by every image, mount and process.
//!
//! ```text
//! DIR/layers/<section digest>/data     the uncompressed tar, sparse: holes where nothing was fetched
//!                             states   header, then a word, the last use and the end of each span (memory-mapped)
//! ```
//!
//! The key is the digest of the layer's *section*: it covers the positions and the digests of all
//! spans, so an archive that lies spoils only its own cache.
//!
//! A read looks at its spans' words. All present: one `pread`, and a second look (`word`). Otherwise the missing
//! spans are fetched, decoded, compared with their digests, and only then written and marked present: what
//! was not checked never touches the data file. Many readers of one span cause one fetch; two
//! processes may both fetch a span, and write the same verified bytes to the same place. A disk that takes nothing
//! fails no read (`landing`).
//!
//! ```text
//!  read ─► access (first touch?) ─► read_ahead, long_files (what next?)
//!    └───► flights (who brings it?) ─► run (one request) ─► admission (now?) ─► fetch (decode, check) ─► landing (show)
//! ```
//!
//! Words survive a restart of the process. After a restart of the machine nobody knows what of
//! the data reached the disk, so every span from before is "unverified": its digest is
//! computed once more before its first use. The same after somebody replaced or cut the data file.
//!
//! The cache stays within [`CacheLimits`]: a thread (`housekeeper`) takes away what was not used for the longest time
//! (`evict`), in layers of all processes. Who has a layer open says so by a lock on its directory (`layer_files`).

mod access;
mod admission;
mod audit;
mod evict;
mod fetch;
mod flights;
mod given_up;
mod housekeeper;
mod landing;
mod layer;
mod layer_files;
mod layer_store;
mod limits;
mod long_files;
mod memory_spans;
mod patience;
mod prefetch;
mod prune;
mod read_ahead;
mod room;
mod run;
mod staged;
mod states;
mod stats;
mod survey;
mod whole;
mod word;

pub use access::{Observer, Watcher};
pub use audit::{CacheAudit, DamagedSpan, SpanDamage, audit, forget_damaged};
pub use evict::Freed;
pub use fetch::FillError;
pub use layer::{LayerReader, LayerSpec, SpanCache, Windows};
pub use limits::{CacheLimits, FreeSpace, parse_bytes};
pub use patience::ReadError;
pub use prefetch::{Persistence, Prefetch, Progress};
pub use prune::{Pruned, prune};
pub use room::{InUse, Yielding};
pub use stats::CacheStats;
pub use survey::{CachedLayer, list};
