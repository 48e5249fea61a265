//! The directory in which a node keeps what it can always make again.
//!
//! ```text
//! DIR/layers/<section digest>/...   the span cache (clip-cache)
//! DIR/trees/<tree digest>.erofs     expanded trees
//! DIR/archives/<manifest digest>.clip  archives that `clip mount IMAGE` made
//! ```

use clip_archive::Digest;
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags},
    unistd::linkat,
};
use std::{
    fs::File,
    io::{self, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
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

    /// The state directory at `dir` for somebody who only looks: nothing is created.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
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

    /// The files of all archives that are kept here.
    pub fn archives(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(self.0.join("archives")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|kind| kind == "clip") {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }

    /// Writes a file so that it is there whole or not at all, whoever is killed whenever.
    pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
        write_whole(path, &|mut file| {
            file.write_all(bytes)?;
            file.sync_data()
        })
    }

    /// The same for a file whose readers check it: only while the machine runs is it whole or not at all. The disk may
    /// take its time, which for a large tree is longer than making it.
    pub fn write_unsynced(
        path: &Path,
        content: impl Fn(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        write_whole(path, &content)
    }
}

/// What makes the content of a file before it gets its name. It may be asked twice.
type Content<'a> = &'a dyn Fn(&File) -> io::Result<()>;

fn write_whole(path: &Path, content: Content<'_>) -> io::Result<()> {
    // Not every filesystem has files without a name (NFS), nor every sandbox a /proc.
    write_unnamed(path, content).or_else(|_| write_renamed(path, content))
}

/// The file gets its name when it is complete, so a kill before leaves nothing.
fn write_unnamed(path: &Path, content: Content<'_>) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let file = File::options()
        .write(true)
        .custom_flags(nix::libc::O_TMPFILE)
        .mode(0o666)
        .open(dir.unwrap_or(Path::new(".")))?;
    content(&file)?;
    let link = |name: &Path| {
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        linkat(
            AT_FDCWD,
            unnamed.as_str(),
            AT_FDCWD,
            name,
            AtFlags::AT_SYMLINK_FOLLOW,
        )
    };
    match link(path) {
        Err(Errno::EEXIST) => {}
        linked => return Ok(linked?),
    }
    // A link replaces no file, a rename does. The name between them is always the same: what a kill
    // between them leaves is taken away by the next writer.
    let between = path.with_extension("new");
    match link(&between) {
        Err(Errno::EEXIST) => {
            let _ = std::fs::remove_file(&between);
            link(&between)?;
        }
        linked => linked?,
    }
    std::fs::rename(&between, path)
}

fn write_renamed(path: &Path, content: Content<'_>) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let unique = format!(
        "{}.{}.tmp",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    );
    let temporary = path.with_extension(unique);
    let write = || {
        content(&File::create(&temporary)?)?;
        std::fs::rename(&temporary, path)
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_and_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.clip");
        std::fs::write(dir.path().join("image.new"), "left by a killed writer").unwrap();
        for content in ["first", "second"] {
            StateDir::write(&path, content.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        StateDir::write_unsynced(&path, |mut file| file.write_all(b"third")).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "third");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_in_a_missing_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = StateDir::write(&dir.path().join("missing/image.clip"), b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
