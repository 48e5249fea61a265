//! The directory in which a node keeps what it can always make again.
//!
//! ```text
//! DIR/layers/<section digest>/...   the span cache (clip-cache)
//! DIR/trees/<tree digest>.erofs     expanded trees
//! DIR/archives/<manifest digest>.clip  archives that `clip mount IMAGE` made
//! ```

use clip_archive::Digest;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// See the module.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The state directory at `dir`, created when it is missing.
    pub fn open(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(dir.join("trees"))?;
        std::fs::create_dir_all(dir.join("archives"))?;
        Ok(Self(dir))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The file of the expanded tree with this digest.
    pub fn tree(&self, digest: &Digest) -> PathBuf {
        self.0.join("trees").join(format!("{}.erofs", digest.hex()))
    }

    /// The file of the archive that was made here of the image with this manifest.
    pub fn archive(&self, manifest: &Digest) -> PathBuf {
        self.0
            .join("archives")
            .join(format!("{}.clip", manifest.hex()))
    }

    /// Writes a file so that it is there whole or not at all, whoever is killed whenever.
    pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let unique = format!(
            "{}.{}.tmp",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        );
        let temporary = path.with_extension(unique);
        let write = || {
            let mut file = std::fs::File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_data()?;
            std::fs::rename(&temporary, path)
        };
        write().inspect_err(|_| {
            let _ = std::fs::remove_file(&temporary);
        })
    }
}
