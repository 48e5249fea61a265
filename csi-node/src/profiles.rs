//! Start profiles on this node's disk: `<state>/profiles/`.
//!
//! ```text
//! <hex>.profile     what other nodes recorded of the archive <hex>: clip-serve fetches it ahead
//! <hex>.recorded    what clip-serve recorded here, to be sent to the archive service
//! <hex>.sent        the same after it was sent: once for each archive and node is enough
//! ```
//! All of it is a hint: a file that is lost or broken costs speed, nothing else.

use std::io;
use std::path::{Path, PathBuf};

use clip_registry::Digest;
use tempfile::NamedTempFile;

/// The folder.
#[derive(Clone, Debug)]
pub struct ProfileFiles {
    folder: PathBuf,
}

const RECORDED: &str = "recorded";

impl ProfileFiles {
    /// The folder below `state`, which is created.
    pub fn open(state: &Path) -> io::Result<ProfileFiles> {
        let folder = state.join("profiles");
        std::fs::create_dir_all(&folder)?;
        Ok(ProfileFiles { folder })
    }

    /// What other nodes recorded.
    pub fn published(&self, archive: &Digest) -> PathBuf {
        self.path(archive, "profile")
    }

    /// Where a recording goes; none when this node has recorded the archive already.
    pub fn to_record(&self, archive: &Digest) -> Option<PathBuf> {
        let recorded = self.path(archive, RECORDED);
        let is_known = recorded.exists() || self.path(archive, "sent").exists();
        (!is_known).then_some(recorded)
    }

    /// Keeps what other nodes recorded.
    pub fn keep_published(&self, archive: &Digest, json: &[u8]) -> io::Result<()> {
        let mut file = NamedTempFile::new_in(&self.folder)?;
        io::Write::write_all(&mut file, json)?;
        let kept = file.persist(self.published(archive));
        kept.map(drop).map_err(|error| error.error)
    }

    /// Recordings that nobody has been sent yet.
    pub fn unsent(&self) -> io::Result<Vec<(Digest, PathBuf)>> {
        let mut unsent = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|found| found == RECORDED)
                && let Some(hex) = path.file_stem().and_then(|hex| hex.to_str())
                && let Ok(digest) = format!("sha256:{hex}").parse()
            {
                unsent.push((digest, path));
            }
        }
        Ok(unsent)
    }

    /// Remembers that a recording was sent.
    pub fn mark_sent(&self, archive: &Digest) -> io::Result<()> {
        std::fs::rename(self.path(archive, RECORDED), self.path(archive, "sent"))
    }

    fn path(&self, archive: &Digest, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", archive.hex()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_recorded_once_and_sent_once() {
        let state = tempfile::tempdir().unwrap();
        let files = ProfileFiles::open(state.path()).unwrap();
        let archive = Digest::sha256_of(b"archive");
        let place = files.to_record(&archive).unwrap();
        assert_eq!(files.unsent().unwrap(), []);
        std::fs::write(&place, "{}").unwrap();
        std::fs::write(place.with_file_name("junk.recorded"), "").unwrap();
        assert_eq!(files.to_record(&archive), None);
        assert_eq!(files.unsent().unwrap(), [(archive.clone(), place)]);
        files.mark_sent(&archive).unwrap();
        assert_eq!(files.to_record(&archive), None);
        assert_eq!(files.unsent().unwrap(), []);
    }
}
