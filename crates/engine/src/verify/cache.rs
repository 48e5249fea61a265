//! [`verify_cache`]: what a node has cached of an image, against the image's archive.

use crate::{Archive, StateDir};
use clip_archive::{OpenError, erofs};
use clip_cache::{CacheAudit, audit, forget_damaged};
use std::{
    io,
    path::{Path, PathBuf},
};

/// What was found in the cache.
#[derive(Debug, Clone)]
pub struct CacheVerified {
    /// The layers that were looked at, by position in the image.
    pub layers: Vec<(usize, CacheAudit)>,
    /// The image's expanded tree.
    pub tree: CachedTree,
}

/// What the state directory has of the merged tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CachedTree {
    /// Nothing: it is made when the image is mounted.
    Absent,
    /// The tree of this archive.
    Intact,
    /// This file is another. A mount notices and makes it anew; one that runs may show wrong names.
    Corrupt(PathBuf),
}

/// Why the cache cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum CacheVerifyError {
    /// There is none.
    #[error("{0} holds no cache of clip: name the state directory of the node or of the mounts")]
    NotACache(PathBuf),
    /// It cannot be read.
    #[error("cannot read the cache in {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive.
    #[error(transparent)]
    Archive(#[from] OpenError),
    /// The archive's tree cannot be written.
    #[error(transparent)]
    Tree(#[from] erofs::WriteError),
}

impl CacheVerified {
    /// Whether everything that is there is right.
    pub fn is_intact(&self) -> bool {
        !matches!(self.tree, CachedTree::Corrupt(_))
            && self
                .layers
                .iter()
                .all(|(_, audit)| audit.damaged.is_empty())
    }

    /// Has what is wrong made or fetched again when it is needed. Safe beside mounts; what they have shown already, the
    /// kernel may show again.
    pub fn repair(&self) -> io::Result<()> {
        for (_, audit) in &self.layers {
            forget_damaged(audit)?;
        }
        match &self.tree {
            CachedTree::Corrupt(path) => std::fs::remove_file(path),
            CachedTree::Absent | CachedTree::Intact => Ok(()),
        }
    }
}

/// Compares everything that the cache in `state_dir` has of `archive`, which must have passed
/// [`Archive::verify`], or of its layers `wanted`. Asks no registry, changes nothing, and may run
/// beside mounts that use the cache. Blocks on the disk.
pub fn verify_cache(
    state_dir: &Path,
    archive: &Archive,
    wanted: Option<&[usize]>,
    advanced: &dyn Fn(usize, u64),
) -> Result<CacheVerified, CacheVerifyError> {
    let io_error = |source| CacheVerifyError::Io {
        path: state_dir.to_owned(),
        source,
    };
    if !state_dir.join("layers").is_dir() {
        return Err(CacheVerifyError::NotACache(state_dir.to_owned()));
    }
    let mut layers = Vec::new();
    for (index, layer) in archive.head().layers.iter().enumerate() {
        if wanted.is_some_and(|wanted| !wanted.contains(&index)) {
            continue;
        }
        let table = archive.seek_table(index)?;
        let section = layer.section_digest();
        let found = audit(state_dir, &section, &table, &mut |bytes| {
            advanced(index, bytes)
        });
        layers.push((index, found.map_err(io_error)?));
    }
    let tree = verify_tree(&StateDir::at(state_dir), archive)?;
    Ok(CacheVerified { layers, tree })
}

/// One writer version writes the same bytes for the same tree.
fn verify_tree(state: &StateDir, archive: &Archive) -> Result<CachedTree, CacheVerifyError> {
    let path = state.tree(&archive.head().tree_digest());
    let found = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(CachedTree::Absent),
        Err(source) => return Err(CacheVerifyError::Io { path, source }),
        Ok(found) => found,
    };
    let expected = erofs::write(&archive.merge()?)?;
    Ok(match found == expected {
        true => CachedTree::Intact,
        false => CachedTree::Corrupt(path),
    })
}
