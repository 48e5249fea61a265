//! What is in a cache directory, for the evictor and for people.

use crate::{
    layer_files::{DATA, SET_ASIDE, STATES, is_at},
    states::SpanStatesSeen,
};
use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// What the cache has of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedLayer {
    /// The layer's directory; its name is the digest of the layer's section in hex.
    pub dir: PathBuf,
    /// Bytes on the disk, the table included.
    pub disk_bytes: u64,
    /// Bytes of the spans that are here.
    pub cached_bytes: u64,
    /// Bytes of the whole uncompressed layer.
    pub layer_bytes: u64,
    /// Spans that are here.
    pub spans_cached: u64,
    /// Spans of the layer.
    pub spans: u64,
    /// When something of it was last read from the cache, to some seconds. What the kernel answers from its own page
    /// cache is not seen.
    pub last_used: Option<SystemTime>,
    /// Whether a process has it open.
    pub in_use: bool,
}

/// All layers in the cache directory `dir`, the latest used first.
pub fn list(dir: &Path) -> io::Result<Vec<CachedLayer>> {
    let mut layers = Vec::new();
    for dir in layer_dirs(dir)? {
        let layer = look_at(&dir);
        match layer {
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            layer => layers.push(layer?),
        }
    }
    layers.sort_by_key(|layer| std::cmp::Reverse(layer.last_used));
    Ok(layers)
}

/// The directories of layers in the cache directory `dir`.
pub(crate) fn layer_dirs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut dirs = Vec::new();
    for entry in std::fs::read_dir(dir.join("layers"))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            dirs.push(entry.path());
        }
    }
    Ok(dirs)
}

/// Bytes that the files in a layer's directory take on the disk.
pub(crate) fn disk_bytes(dir: &Path) -> io::Result<u64> {
    Ok(file_bytes(&dir.join(DATA))? + file_bytes(&dir.join(STATES))?)
}

/// Bytes that a file takes on the disk; none if there is none.
pub(crate) fn file_bytes(path: &Path) -> io::Result<u64> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        found => Ok(512 * found?.blocks()),
    }
}

/// Whether a layer's directory was only kept for those who still use it.
pub(crate) fn is_set_aside(dir: &Path) -> bool {
    dir.extension().is_some_and(|kind| kind == SET_ASIDE)
}

/// The lock of a layer that nobody uses, held until it is dropped; none if somebody does, or if the layer is gone.
pub(crate) fn lock_unused(dir: &Path) -> io::Result<Option<File>> {
    let lock = match File::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match lock.try_lock() {
        Ok(()) => Ok(is_at(&lock, dir)?.then_some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn look_at(dir: &Path) -> io::Result<CachedLayer> {
    let mut layer = CachedLayer {
        dir: dir.to_owned(),
        disk_bytes: disk_bytes(dir)?,
        cached_bytes: 0,
        layer_bytes: 0,
        spans_cached: 0,
        spans: 0,
        last_used: None,
        in_use: lock_unused(dir)?.is_none(),
    };
    let Some(states) = SpanStatesSeen::open(&dir.join(STATES), false)? else {
        return Ok(layer);
    };
    let mut last_used = 0;
    for (index, (word, used)) in states.all()?.enumerate() {
        let range = states.range(index);
        layer.layer_bytes = range.end;
        layer.spans += 1;
        if word.has_bytes() {
            layer.spans_cached += 1;
            layer.cached_bytes += range.end - range.start;
            last_used = last_used.max(used);
        }
    }
    let since_1970 = Duration::from_secs(last_used.into());
    layer.last_used = (last_used > 0).then(|| SystemTime::UNIX_EPOCH + since_1970);
    Ok(layer)
}
