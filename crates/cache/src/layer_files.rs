//! A layer's directory: opening its files, and the lock that says who uses them.
//!
//! A flock on the directory itself. **Shared**: in use, as long as somebody has the layer open. **Exclusive**: being
//! prepared or removed by one who is alone. So whoever holds it shared knows that the files were prepared, and whoever
//! gets it exclusively may change or remove them in any way. The kernel releases the locks of a dead process.

use crate::states::{DataFile, Fit, SpanStates};
use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// The decoded layer, sparse.
pub const DATA: &str = "data";
/// The table of its spans.
pub const STATES: &str = "states";
/// What a layer's directory is called from when it turned out to be unusable until nobody uses it.
pub const SET_ASIDE: &str = "gone";

/// How often, and how long apart, files that do not fit are looked at while others hold them: they may be
/// preparing them, or only looking whether the layer is in use.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(10);

/// A layer's files, in use as long as this lives.
#[derive(Debug)]
pub struct LayerFiles {
    pub data: File,
    pub states: SpanStates,
    in_use: File,
}

impl LayerFiles {
    /// Opens the files in `dir` of a layer whose spans end at `ends`; makes what is missing, and takes back the trust in
    /// what is from before the machine was started.
    pub fn open(dir: &Path, ends: &[u64]) -> io::Result<Self> {
        let mut attempts = 0;
        loop {
            make(dir)?;
            let lock = match File::open(dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            match lock.try_lock() {
                Ok(()) if is_at(&lock, dir)? => {
                    prepare(dir, ends)?;
                    // Not in one step: another may remove the directory in between.
                    lock.unlock()?;
                }
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            lock.lock_shared()?;
            if !is_at(&lock, dir)? {
                continue;
            }
            if let Some(files) = open_prepared(dir, ends, lock)? {
                return Ok(files);
            }
            attempts += 1;
            std::thread::sleep(PAUSE);
            if attempts == ATTEMPTS {
                // Somebody replaced files under those who use them. They keep what they have; we begin anew.
                set_aside(dir)?;
                attempts = 0;
            }
        }
    }

    /// Keeps them in use for as long as what is returned lives.
    pub fn keep_in_use(&self) -> io::Result<File> {
        // Of one and the same lock, which the kernel releases with the last descriptor.
        self.in_use.try_clone()
    }
}

fn make(dir: &Path) -> io::Result<()> {
    let is_taken = || dir.symlink_metadata().is_ok_and(|found| !found.is_dir());
    match std::fs::create_dir_all(dir) {
        // It was there, and the evictor removed it before `create_dir_all` looked whether it is a directory.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !is_taken() => Ok(()),
        made => made,
    }
}

/// Whether `dir` still is the directory that `lock` has open.
pub fn is_at(lock: &File, dir: &Path) -> io::Result<bool> {
    let held = lock.metadata()?;
    match std::fs::metadata(dir) {
        Ok(there) => Ok((there.dev(), there.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Alone with the files.
fn prepare(dir: &Path, ends: &[u64]) -> io::Result<()> {
    let (data_path, states) = (dir.join(DATA), dir.join(STATES));
    let data = open_data(&data_path, ends)?;
    match SpanStates::fit(&states, ends, data)? {
        Fit::Trusted => Ok(()),
        Fit::Distrusted => SpanStates::distrust(&states, ends, data),
        Fit::Other => {
            // Removed, not cut: whoever knows no locks (an earlier version) keeps what it has open.
            remove_file(&states)?;
            remove_file(&data_path)?;
            SpanStates::create(&states, ends, open_data(&data_path, ends)?)
        }
    }
}

fn open_data(path: &Path, ends: &[u64]) -> io::Result<DataFile> {
    let data = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    let found = data.metadata()?;
    let len = ends.last().copied().unwrap_or(0);
    let whole = found.len() == len;
    if !whole {
        data.set_len(len)?;
    }
    Ok(DataFile {
        inode: found.ino(),
        whole,
    })
}

/// None if the files are not those of the layer, or not prepared.
fn open_prepared(dir: &Path, ends: &[u64], lock: File) -> io::Result<Option<LayerFiles>> {
    let data = match File::options().read(true).write(true).open(dir.join(DATA)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let found = data.metadata()?;
    let file = DataFile {
        inode: found.ino(),
        whole: found.len() == ends.last().copied().unwrap_or(0),
    };
    let path = dir.join(STATES);
    if SpanStates::fit(&path, ends, file)? != Fit::Trusted {
        return Ok(None);
    }
    Ok(Some(LayerFiles {
        data,
        states: SpanStates::open(&path, ends.len())?,
        in_use: lock,
    }))
}

fn set_aside(dir: &Path) -> io::Result<()> {
    let aside: PathBuf = (0u32..)
        .map(|number| dir.with_extension(format!("{number}.{SET_ASIDE}")))
        .find(|aside| !aside.exists())
        .expect("some number is free");
    tracing::warn!(
        dir = %dir.display(),
        "a layer's files were replaced while in use: beginning anew beside them"
    );
    match std::fs::rename(dir, aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

pub fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        states::age,
        word::{self, SpanState},
    };
    use std::os::unix::fs::FileExt;

    const ENDS: [u64; 2] = [4096, 10_000];

    fn layer() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("layers/abc");
        let files = LayerFiles::open(&dir, &ENDS).unwrap();
        files.data.write_all_at(&[1; 4096], 0).unwrap();
        assert!(word::publish(files.states.cell(0), files.states.look(0)));
        (root, dir)
    }

    fn first_state(files: &LayerFiles) -> SpanState {
        files.states.look(0).state()
    }

    #[test]
    fn a_layer_is_believed_again_in_the_same_life_and_distrusted_in_the_next() {
        let (_root, dir) = layer();
        assert_eq!(
            first_state(&LayerFiles::open(&dir, &ENDS).unwrap()),
            SpanState::Present
        );
        age(&dir.join(STATES));
        assert_eq!(
            first_state(&LayerFiles::open(&dir, &ENDS).unwrap()),
            SpanState::Unverified
        );
    }

    #[test]
    fn the_data_of_a_table_that_cannot_be_read_is_not_kept() {
        let (_root, dir) = layer();
        std::fs::write(dir.join(STATES), b"garbage").unwrap();
        let files = LayerFiles::open(&dir, &ENDS).unwrap();
        assert_eq!(first_state(&files), SpanState::Absent);
        assert_eq!(files.data.metadata().unwrap().blocks(), 0);
    }

    #[test]
    fn who_uses_a_layer_keeps_its_files_when_they_are_replaced() {
        let (_root, dir) = layer();
        let user = LayerFiles::open(&dir, &ENDS).unwrap();
        std::fs::remove_file(dir.join(DATA)).unwrap();
        let other = LayerFiles::open(&dir, &ENDS).unwrap();
        assert_eq!(
            (first_state(&user), first_state(&other)),
            (SpanState::Present, SpanState::Absent)
        );
        let mut bytes = [0; 4096];
        user.data.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [1; 4096]);
    }

    #[test]
    fn a_directory_that_is_looked_at_or_removed_meanwhile_is_opened_all_the_same() {
        let (_root, dir) = layer();
        age(&dir.join(STATES));
        std::thread::scope(|scope| {
            // As the evictor does it: it may find nothing, and never makes a directory.
            let looker = scope.spawn(|| {
                let mut looked = 0;
                while looked < 200 {
                    let lock = match File::open(&dir) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                        opened => opened.unwrap(),
                    };
                    looked += 1;
                    if lock.try_lock().is_ok() && is_at(&lock, &dir).unwrap() {
                        std::fs::remove_dir_all(&dir).unwrap();
                    }
                }
            });
            while !looker.is_finished() {
                let files = LayerFiles::open(&dir, &ENDS).unwrap();
                assert_ne!(first_state(&files), SpanState::Evicting);
            }
        });
    }

    #[test]
    fn something_else_in_the_place_of_the_directory_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("abc");
        std::fs::write(&dir, "").unwrap();
        let error = LayerFiles::open(&dir, &ENDS).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        std::fs::remove_file(&dir).unwrap();
        std::os::unix::fs::symlink("nowhere", &dir).unwrap();
        let error = LayerFiles::open(&dir, &ENDS).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
}
