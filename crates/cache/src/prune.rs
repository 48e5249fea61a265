//! Making the cache smaller because somebody asks for it.

use crate::evict::{Evictor, Freed};
use std::{io, path::Path};

/// What was taken away, and what is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// What was taken away.
    pub freed: Freed,
    /// Bytes that the cache still takes on the disk.
    pub left: u64,
}

/// Makes the cache in `dir` smaller: to `to` bytes, beginning with what was not used for the longest time, or, without
/// it, by all layers that nobody has open. Safe beside processes that use it. Waits for an evictor that is at work.
pub fn prune(dir: &Path, to: Option<u64>) -> io::Result<Pruned> {
    let evictor = Evictor::lock(dir)?;
    let freed = match to {
        None => evictor.remove_unused()?,
        Some(to) => evictor.free(evictor.disk_bytes()?.saturating_sub(to))?,
    };
    Ok(Pruned {
        freed,
        left: evictor.disk_bytes()?,
    })
}
