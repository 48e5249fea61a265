//! Start profiles on this node's disk: `<state>/profiles/`.
//!
//! ```text
//! <hex>.profile     what other nodes recorded of the archive <hex>: clip-serve fetches it ahead
//! <hex>.recorded    what clip-serve recorded here, to be sent to the archive service
//! <hex>.sent        the same after it was sent: once for each archive and node is enough
//! ```
//! All of it is a hint: a file that is lost or broken costs speed, nothing else. What belongs to an archive goes with it
//! ([`ProfileFiles::remove_orphans`]).

use std::io;
use std::path::{Path, PathBuf};

use clip_registry::Digest;
use tempfile::NamedTempFile;

/// The folder.
#[derive(Clone, Debug)]
pub struct ProfileFiles {
    folder: PathBuf,
}

const PUBLISHED: &str = "profile";
const RECORDED: &str = "recorded";
const SENT: &str = "sent";

impl ProfileFiles {
    /// The folder below `state`, which is created.
    pub fn open(state: &Path) -> io::Result<ProfileFiles> {
        let folder = state.join("profiles");
        std::fs::create_dir_all(&folder)?;
        Ok(ProfileFiles { folder })
    }

    /// What other nodes recorded.
    pub fn published(&self, archive: &Digest) -> PathBuf {
        self.path(archive, PUBLISHED)
    }

    /// Where a recording goes; none when this node has recorded the archive already.
    pub fn to_record(&self, archive: &Digest) -> Option<PathBuf> {
        let recorded = self.path(archive, RECORDED);
        let is_known = recorded.exists() || self.path(archive, SENT).exists();
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
        self.files(&[RECORDED])
    }

    /// Removes what is kept of archives that are not there any more. What was recorded of them stays until it is sent.
    pub fn remove_orphans(&self, is_there: impl Fn(&Digest) -> bool) -> io::Result<()> {
        for (archive, path) in self.files(&[PUBLISHED, SENT])? {
            if is_there(&archive) {
                continue;
            }
            match std::fs::remove_file(path) {
                // Another plugin that starts, or ends, beside this one was quicker.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        Ok(())
    }

    /// The files with these extensions, and which archives they belong to.
    fn files(&self, extensions: &[&str]) -> io::Result<Vec<(Digest, PathBuf)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if extension.is_some_and(|found| extensions.contains(&found))
                && let Some(hex) = path.file_stem().and_then(|hex| hex.to_str())
                && let Ok(digest) = format!("sha256:{hex}").parse()
            {
                files.push((digest, path));
            }
        }
        Ok(files)
    }

    /// Remembers that a recording was sent.
    pub fn mark_sent(&self, archive: &Digest) -> io::Result<()> {
        std::fs::rename(self.path(archive, RECORDED), self.path(archive, SENT))
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
    #[test]
    fn what_is_kept_of_an_archive_goes_with_it() {
        let state = tempfile::tempdir().unwrap();
        let files = ProfileFiles::open(state.path()).unwrap();
        let [here, gone, unsent] =
            ["here", "gone", "unsent"].map(|name| Digest::sha256_of(name.as_bytes()));
        for archive in [&here, &gone] {
            files.keep_published(archive, b"{}").unwrap();
            std::fs::write(files.to_record(archive).unwrap(), "{}").unwrap();
            files.mark_sent(archive).unwrap();
        }
        let place = files.to_record(&unsent).unwrap();
        std::fs::write(&place, "{}").unwrap();
        std::fs::write(place.with_file_name("junk.sent"), "").unwrap();
        files.remove_orphans(|archive| *archive == here).unwrap();
        assert!(files.published(&here).exists() && !files.published(&gone).exists());
        assert_eq!(files.to_record(&here), None, "it stays sent");
        assert!(files.to_record(&gone).is_some(), "it may come back");
        assert_eq!(files.unsent().unwrap(), [(unsent, place)]);
    }
}
