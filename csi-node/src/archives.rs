//! The archives on this node's disk: `<state>/archives/<hex>.clip`, each under the digest of its bytes.
//!
//! One that is there is used without asking anybody. One that is not is fetched once, however many pods wait for it, and
//! goes on being fetched when their patience ends. It gets its name only after its digest was checked and its bytes
//! are on disk, so a file under that name is whole.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use clip_registry::Digest;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::archive_sources::{FetchError, Sources};
use crate::mounts::LocalArchive;
use crate::profiles::ProfileFiles;
use crate::resolve::ArchiveRef;
use crate::wire::Secret;

/// No archive of a real image comes near: 1 GiB stands for a tree of about a hundred million entries.
pub const MAX_ARCHIVE: u64 = 1 << 30;

/// The archives on disk. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Archives {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    profiles: ProfileFiles,
    sources: Sources,
    /// Those that are being fetched.
    under_way: Mutex<HashMap<Digest, Fetch>>,
}

/// A start profile is asked for beside the archive; so long it may take.
const PROFILE_PATIENCE: Duration = Duration::from_secs(2);

type Fetch = Shared<BoxFuture<'static, Result<LocalArchive, Arc<FetchError>>>>;

impl Archives {
    /// Keeps archives in `folder`, which is created; what an earlier life left unfinished there is removed, and the profiles
    /// of archives that are gone.
    pub fn new(folder: PathBuf, profiles: ProfileFiles, sources: Sources) -> io::Result<Archives> {
        std::fs::create_dir_all(&folder)?;
        remove_unfinished(&folder)?;
        let archives = Archives {
            inner: Arc::new(Inner {
                folder,
                profiles,
                sources,
                under_way: Mutex::default(),
            }),
        };
        let is_there = |archive: &Digest| archives.on_disk(archive).is_some();
        if let Err(error) = archives.inner.profiles.remove_orphans(is_there) {
            tracing::warn!(%error, "start profiles of archives that are gone stay");
        }
        Ok(archives)
    }

    /// The archive on disk, fetched if it is not there yet.
    ///
    /// `credentials` are a docker configuration for registries that have it. Of several pods that want the same archive
    /// at the same time, the first one's are used; where they fail, each tries its own.
    pub async fn ensure(
        &self,
        wanted: &ArchiveRef,
        credentials: Option<&Secret>,
    ) -> Result<LocalArchive, Arc<FetchError>> {
        if let Some(archive) = self.on_disk(&wanted.digest) {
            return Ok(archive);
        }
        let others = self.under_way().get(&wanted.digest).cloned();
        if let Some(others) = others
            && let Ok(archive) = others.await
        {
            return Ok(archive);
        }
        let fetch = self
            .under_way()
            .entry(wanted.digest.clone())
            .or_insert_with(|| self.begin(wanted, credentials))
            .clone();
        fetch.await
    }

    /// The archive, if it is on disk already.
    pub fn on_disk(&self, digest: &Digest) -> Option<LocalArchive> {
        let file = self.inner.folder.join(format!("{}.clip", digest.hex()));
        file.is_file().then(|| LocalArchive {
            digest: digest.clone(),
            file,
        })
    }

    /// Removes an archive whose bytes are not those of its name any more, so that it is fetched again: for one that the
    /// server found to be damaged.
    pub async fn remove_if_changed(&self, archive: &LocalArchive) {
        let archive = archive.clone();
        let check = move || match digest_of_file(&archive.file) {
            Ok(digest) if digest == archive.digest => Ok(()),
            _ => {
                tracing::error!(file = %archive.file.display(), "the archive changed on disk and is fetched again");
                std::fs::remove_file(&archive.file)
            }
        };
        match tokio::task::spawn_blocking(check).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "cannot remove the damaged archive"),
            Err(error) => tracing::error!(%error, "checking the damaged archive failed"),
        }
    }

    /// Whether the folder can be written to.
    pub fn check_writable(&self) -> io::Result<()> {
        NamedTempFile::with_prefix_in(UNFINISHED, &self.inner.folder).map(drop)
    }

    /// A fetch that runs by itself, whether somebody waits for it or not.
    fn begin(&self, wanted: &ArchiveRef, credentials: Option<&Secret>) -> Fetch {
        let (archives, wanted, credentials) = (self.clone(), wanted.clone(), credentials.cloned());
        let task = tokio::spawn(async move {
            let outcome = archives
                .fetch(&wanted, credentials.as_ref())
                .await
                .map_err(Arc::new);
            archives.under_way().remove(&wanted.digest);
            outcome
        });
        let joined = task.map(|joined| {
            joined.unwrap_or_else(|panicked| {
                Err(Arc::new(FetchError::Disk(io::Error::other(panicked))))
            })
        });
        joined.boxed().shared()
    }

    async fn fetch(
        &self,
        wanted: &ArchiveRef,
        credentials: Option<&Secret>,
    ) -> Result<LocalArchive, FetchError> {
        // It may have been finished between the caller's look and now.
        if let Some(archive) = self.on_disk(&wanted.digest) {
            return Ok(archive);
        }
        let mut unfinished = Unfinished::create(&self.inner.folder).map_err(FetchError::Disk)?;
        let fetched = self
            .inner
            .sources
            .fetch(wanted, credentials, &mut unfinished);
        let (fetched, ()) = tokio::join!(fetched, self.fetch_profile(&wanted.digest));
        fetched?;
        let file = self
            .inner
            .folder
            .join(format!("{}.clip", wanted.digest.hex()));
        let (named, digest) = (file.clone(), wanted.digest.clone());
        tokio::task::spawn_blocking(move || unfinished.keep(&digest, &named))
            .await
            .map_err(|panicked| FetchError::Disk(io::Error::other(panicked)))??;
        tracing::info!(archive = %wanted.digest, "archive fetched");
        Ok(LocalArchive {
            digest: wanted.digest.clone(),
            file,
        })
    }

    /// Best effort, and never a reason to wait long.
    async fn fetch_profile(&self, archive: &Digest) {
        let Inner {
            sources, profiles, ..
        } = &*self.inner;
        match tokio::time::timeout(PROFILE_PATIENCE, sources.fetch_profile(archive)).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(json))) => {
                if let Err(error) = profiles.keep_published(archive, &json) {
                    tracing::warn!(%archive, %error, "cannot keep the start profile");
                }
            }
            Ok(Err(error)) => tracing::info!(%archive, %error, "no start profile"),
            Err(_) => tracing::info!(%archive, "no start profile: no answer in time"),
        }
    }

    /// Sends what was recorded here to the archive service. What cannot be sent now is sent with the next call.
    pub async fn send_profiles(&self) {
        let Inner {
            sources, profiles, ..
        } = &*self.inner;
        let unsent = profiles.unsent().unwrap_or_default();
        for (archive, path) in unsent {
            let sent = match tokio::fs::read(&path).await {
                Ok(json) => sources.send_profile(&archive, json).await,
                Err(error) => Err(FetchError::Disk(error)),
            };
            match sent {
                Ok(()) => tracing::info!(%archive, "start profile sent"),
                // Refused for good: nothing would change at the next time.
                Err(FetchError::Refused { status, .. }) if status.is_client_error() => {
                    tracing::info!(%archive, %status, "start profile refused");
                }
                Err(error) => {
                    tracing::debug!(%archive, %error, "start profile not sent yet");
                    continue;
                }
            }
            if let Err(error) = profiles.mark_sent(&archive) {
                tracing::warn!(%archive, %error, "cannot note that the start profile was sent");
            }
        }
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<Digest, Fetch>> {
        self.inner
            .under_way
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// What the names of unfinished files begin with.
const UNFINISHED: &str = ".unfinished-";

fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// An archive that is being written; removed when dropped before it is kept.
#[derive(Debug)]
pub struct Unfinished {
    file: NamedTempFile,
    hash: Sha256,
    size: u64,
}

impl Unfinished {
    fn create(folder: &Path) -> io::Result<Unfinished> {
        Ok(Unfinished {
            file: NamedTempFile::with_prefix_in(UNFINISHED, folder)?,
            hash: Sha256::new(),
            size: 0,
        })
    }

    /// Adds bytes at the end.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.size += bytes.len() as u64;
        if self.size > MAX_ARCHIVE {
            return Err(FetchError::TooLarge);
        }
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(FetchError::Disk)
    }

    /// Forgets what was written, to begin with another source.
    pub fn clear(&mut self) -> Result<(), FetchError> {
        (self.hash, self.size) = (Sha256::new(), 0);
        self.file.as_file().set_len(0).map_err(FetchError::Disk)?;
        io::Seek::rewind(&mut self.file).map_err(FetchError::Disk)
    }

    /// Whether what was written has this digest.
    pub fn check(&self, expected: &Digest) -> Result<(), FetchError> {
        let found = Digest::from_sha256(self.hash.clone().finalize().into());
        if found == *expected {
            return Ok(());
        }
        Err(FetchError::Digest {
            expected: expected.clone(),
            found,
            size: self.size,
        })
    }

    fn keep(self, digest: &Digest, name: &Path) -> Result<(), FetchError> {
        self.check(digest)?;
        self.file.as_file().sync_all().map_err(FetchError::Disk)?;
        self.file
            .persist(name)
            .map_err(|error| FetchError::Disk(error.error))?;
        let folder = name.parent().unwrap_or(Path::new("/"));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(FetchError::Disk)
    }
}

/// The digest of a file's bytes.
pub fn digest_of_file(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_sha256(hash.finalize().into())),
            read => hash.update(&buffer[..read]),
        }
    }
}
