//! A folder of archives, as `clip index --dir` leaves one behind.

use super::{ArchivePlace, PlaceError};
use crate::digest_of;
use clip_archive::{Archive, Digest, Head, ReadHeadError, head::Indexer};
use clip_registry::LayerDescriptor;
use futures::future::BoxFuture;
use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The `*.clip` files of a folder, with what they describe. Files that are no archives are passed over with a warning.
#[derive(Debug)]
pub struct ArchiveFolder {
    path: PathBuf,
    archives: Mutex<Vec<Described>>,
}

#[derive(Debug)]
struct Described {
    path: PathBuf,
    indexer: Indexer,
    layers: Vec<Digest>,
}

impl ArchiveFolder {
    /// Reads the heads of the archives in `path`.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn open(path: &Path) -> io::Result<ArchiveFolder> {
        let mut files: Vec<PathBuf> = fs::read_dir(path)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<_>>()?;
        files.retain(|file| file.extension() == Some(OsStr::new("clip")) && file.is_file());
        // Which of several is used should not depend on the order that the file system has.
        files.sort();
        Ok(ArchiveFolder {
            path: path.to_owned(),
            archives: Mutex::new(files.into_iter().filter_map(describe).collect()),
        })
    }

    /// An archive was written to `path`, perhaps in another's place.
    pub fn add(&self, path: PathBuf) {
        let mut archives = self.archives();
        archives.retain(|archive| archive.path != path);
        archives.extend(describe(path));
    }

    fn archives(&self) -> MutexGuard<'_, Vec<Described>> {
        self.archives.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn describe(path: PathBuf) -> Option<Described> {
    let head = File::open(&path)
        .map_err(ReadHeadError::from)
        .and_then(|mut file| Head::read(&mut file))
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "passed over"))
        .ok()?;
    Some(Described {
        indexer: head.indexer,
        layers: head.layers.iter().map(|layer| layer.digest).collect(),
        path,
    })
}

fn read(path: &Path) -> Result<Archive, PlaceError> {
    Ok(Archive::open(fs::read(path)?)?)
}

impl fmt::Display for ArchiveFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl ArchivePlace for ArchiveFolder {
    fn with_layer<'a>(
        &'a self,
        layer: &'a LayerDescriptor,
        indexer: &'a Indexer,
    ) -> BoxFuture<'a, Result<Option<Archive>, PlaceError>> {
        let wanted = digest_of(&layer.digest);
        let describes =
            |archive: &&Described| archive.indexer == *indexer && archive.layers.contains(&wanted);
        let found = self
            .archives()
            .iter()
            .find(describes)
            .map(|archive| archive.path.clone());
        Box::pin(async move { found.as_deref().map(read).transpose() })
    }
}
