//! The folder in which the archive service keeps archives.
//!
//! ```text
//! <dir>/3f5a…e1.clip      an archive, named by the SHA-256 of its bytes; never changed once it is there
//! <dir>/3f5a…e1.profile   which parts of its image a container reads first ([`StartProfile`]); goes with the archive
//! <dir>/0b7c-….json       a record: which archive the ClipImage with this uid has ([`Record`])
//! <dir>/.upload-XXXXXX    an upload in progress; swept at start
//! ```
//!
//! ClipImages that index the same image share one file. Files and records appear by rename, after fsync, the
//! archive before its record: a crash leaves at most a file that nobody refers to, which [`crate::collect`]
//! removes. The folder may be lost as a whole (`emptyDir`): archives are then made again.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use clip_archive::{Digest, StartProfile};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

/// Which archive a ClipImage has, and what is known about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// uid of the ClipImage.
    pub uid: String,
    /// Its `NAMESPACE/NAME`.
    pub image: String,
    /// Digest of the archive file.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
    /// [`crate::identity::content_key`] of the spec for which it was made.
    pub content_key: String,
    /// The request that it answers.
    pub requested_at: Option<String>,
    /// The Job that uploaded it.
    pub job: String,
    /// What the archive says about its image.
    pub platform: String,
    /// Digest of the image manifest.
    pub manifest_digest: String,
    /// Version of the archive format.
    pub format_version: u8,
    /// Numbers of the archive.
    pub files: u64,
    /// Layers of the image.
    pub layers: u64,
    /// Bytes of the compressed layers.
    pub compressed_bytes: u64,
    /// Bytes of the layers when unpacked.
    pub unpacked_bytes: u64,
    /// Milliseconds that indexing took, once the Job reported it.
    pub duration_ms: Option<u64>,
    /// When it was uploaded.
    pub created: Time,
    /// Where the Job pushed it.
    pub publication: Option<Publication>,
}

impl Record {
    /// The namespace of the ClipImage.
    pub fn namespace(&self) -> &str {
        let (namespace, _) = self.image.split_once('/').unwrap_or_default();
        namespace
    }
}

/// A push to a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// The repository that the spec asked for.
    pub repository: String,
    /// REPOSITORY@DIGEST, as the Job reported it.
    pub reference: String,
}

/// An archive file of the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredArchive {
    /// Its digest, from its name.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// The folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    changes: Arc<AtomicU64>,
}

impl Store {
    /// Opens the folder, makes it when it is missing, and sweeps uploads that a crash left behind.
    ///
    /// # Errors
    /// When the folder cannot be made or listed.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(".upload-") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            changes: Arc::default(),
        })
    }

    /// A new file to receive an upload; it vanishes unless it is [kept](Self::keep).
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new_upload(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new()
            .prefix(".upload-")
            .tempfile_in(&self.dir)
    }

    /// Makes a complete, verified upload the archive `digest`.
    ///
    /// # Errors
    /// When the file cannot be made durable or renamed.
    pub fn keep(&self, upload: NamedTempFile, digest: Digest) -> io::Result<()> {
        upload.as_file().sync_all()?;
        upload
            .persist(self.archive_path(digest))
            .map_err(|error| error.error)?;
        self.sync_dir()
    }

    /// Where the archive `digest` is or would be.
    pub fn archive_path(&self, digest: Digest) -> PathBuf {
        self.dir.join(format!("{}.clip", digest.hex()))
    }

    /// The start profile of the archive `digest`, if there is one that can be read.
    pub fn profile(&self, digest: Digest) -> Option<StartProfile> {
        let path = self.profile_path(digest);
        let json = fs::read(&path).ok()?;
        let parsed = StartProfile::parse(&json);
        parsed
            .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "start profile cannot be read"))
            .ok()
    }

    /// Writes the start profile of the archive `digest`, in place of an older one. Not synced: it is a hint, and a
    /// broken one is passed over.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_profile(&self, digest: Digest, profile: &StartProfile) -> io::Result<()> {
        let mut file = self.new_upload()?;
        io::Write::write_all(&mut file, &profile.to_json())?;
        let kept = file.persist(self.profile_path(digest));
        kept.map(drop).map_err(|error| error.error)
    }

    fn profile_path(&self, digest: Digest) -> PathBuf {
        self.dir.join(format!("{}.profile", digest.hex()))
    }

    /// Whether the archive of a record is there in full length.
    pub fn holds(&self, record: &Record) -> bool {
        let Ok(digest) = record.digest.parse::<Digest>() else {
            return false;
        };
        fs::metadata(self.archive_path(digest)).is_ok_and(|file| file.len() == record.size)
    }

    /// Writes the record of `record.uid`, in place of an older one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_record(&self, record: &Record) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".upload-")
            .tempfile_in(&self.dir)?;
        serde_json::to_writer_pretty(&mut file, record)?;
        file.as_file().sync_all()?;
        file.persist(self.record_path(&record.uid))
            .map_err(|error| error.error)?;
        self.changes.fetch_add(1, Ordering::Release);
        self.sync_dir()
    }

    /// The record of the ClipImage with this uid, if there is one that can be read.
    pub fn record(&self, uid: &str) -> Option<Record> {
        read_record(&self.record_path(uid))
    }

    /// All records that can be read.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn records(&self) -> io::Result<Vec<Record>> {
        let paths = self.paths_with_extension("json")?;
        Ok(paths.iter().filter_map(|path| read_record(path)).collect())
    }

    /// All archives.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn archives(&self) -> io::Result<Vec<StoredArchive>> {
        let archive = |path: &PathBuf| {
            let hex = path.file_stem()?.to_str()?;
            let size = fs::metadata(path).ok()?.len();
            Some(StoredArchive {
                digest: format!("sha256:{hex}").parse().ok()?,
                size,
            })
        };
        Ok(self
            .paths_with_extension("clip")?
            .iter()
            .filter_map(archive)
            .collect())
    }

    /// Removes a record; that it is gone already is fine.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_record(&self, uid: &str) -> io::Result<()> {
        remove(&self.record_path(uid))?;
        self.changes.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// How often a record was written or removed through this store or a clone of it: while that is the same,
    /// [`Self::records`] are.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Removes an archive with its profile; that it is gone already is fine. Downloads in progress finish.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_archive(&self, digest: Digest) -> io::Result<()> {
        remove(&self.profile_path(digest))?;
        remove(&self.archive_path(digest))
    }

    /// A uid comes from the apiserver, but is also a query parameter: keep it a plain file name.
    fn record_path(&self, uid: &str) -> PathBuf {
        let name: String = uid
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .collect();
        self.dir.join(format!("{name}.json"))
    }

    fn paths_with_extension(&self, extension: &str) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|found| found == extension) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }

    fn sync_dir(&self) -> io::Result<()> {
        fs::File::open(&self.dir)?.sync_all()
    }
}

/// `None` also for a record that an older version wrote differently: the image is then indexed again.
fn read_record(path: &Path) -> Option<Record> {
    let bytes = fs::read(path).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "record cannot be read: the image will be indexed again");
            None
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
