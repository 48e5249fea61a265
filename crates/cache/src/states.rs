//! The table of span states, mapped into every process that uses the layer.
//!
//! ```text
//!  0  8  "CLIPSPAN"         16 16  boot identifier of the last user
//!  8  4  version            32  8  inode number of the data file
//! 12  4  number of spans    40 24  zero
//!                           64  4n one state per span, native byte order
//! ```
//!
//! All accesses to the states are atomic; a state is set *after* the data it speaks of was written.
#![allow(unsafe_code)]

use memmap2::{MmapOptions, MmapRaw};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

const MAGIC: &[u8; 8] = b"CLIPSPAN";
const VERSION: u32 = 2;
const HEADER_LEN: usize = 64;
const BOOT_ID_AT: usize = 16;
const INODE_AT: usize = 32;
const INODE_END: usize = 40;

/// What is known about a span's bytes in the data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanState {
    /// Nothing.
    Absent,
    /// Written and checked since the machine was started.
    Present,
    /// Written and checked once, but the machine was started or the data file changed since.
    Unverified,
}

/// What the table must know of the data file that it speaks of.
#[derive(Debug, Clone, Copy)]
pub struct DataFile {
    /// Its inode number: another file in its place holds other bytes.
    pub inode: u64,
    /// False if it did not have the right length.
    pub whole: bool,
}

/// The mapped table.
#[derive(Debug)]
pub struct SpanStates {
    map: MmapRaw,
    len: usize,
}

impl SpanStates {
    /// Opens or creates the table at `path` for `len` spans in `data`. A table of another shape is
    /// begun anew.
    pub fn open(path: &Path, len: usize, data: DataFile) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        // One process at a time decides whether the machine was restarted in between.
        file.lock()?;
        let result = prepare(&file, len, data);
        file.unlock()?;
        result?;
        let map = MmapOptions::new()
            .len(HEADER_LEN + 4 * len)
            .map_raw(&file)?;
        Ok(Self { map, len })
    }

    /// The state of span `index`.
    pub fn get(&self, index: usize) -> SpanState {
        SpanState::of(self.slot(index).load(Ordering::Acquire))
    }

    /// Sets the state of span `index`; what was written before is visible to who sees the state.
    pub fn set(&self, index: usize, state: SpanState) {
        self.slot(index).store(state.code(), Ordering::Release);
    }

    fn slot(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.len, "span {index} of {}", self.len);
        // SAFETY: the map is HEADER_LEN + 4 * len bytes long and lives as long as `self`; the slot
        // is within it and aligned (the map is page-aligned, the header 64 bytes). All processes
        // access slots atomically only, and nobody shrinks the file.
        unsafe {
            &*self
                .map
                .as_mut_ptr()
                .add(HEADER_LEN + 4 * index)
                .cast::<AtomicU32>()
        }
    }
}

/// The table as somebody sees it who changes nothing and holds no map: for checks beside running
/// mounts. A read of the file sees what the maps hold (same page cache).
#[derive(Debug)]
pub struct SpanStatesSeen {
    file: File,
    len: usize,
    /// False if nobody trusts the states before checking: they are from before the machine was
    /// started, or speak of another data file.
    pub trusted: bool,
}

impl SpanStatesSeen {
    /// Opens the table at `path` for `len` spans; none if it is not there or of another shape, in
    /// which case the cache begins anew.
    pub fn open(path: &Path, len: usize, data_inode: u64) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let data = DataFile {
            inode: data_inode,
            whole: true,
        };
        let expected = header(len, data)?;
        let mut found = [0; HEADER_LEN];
        if !has_shape(&file, len, &expected, &mut found)? {
            return Ok(None);
        }
        let trusted = found == expected;
        Ok(Some(Self { file, len, trusted }))
    }

    /// The state of span `index` now; a table that was cut meanwhile knows nothing.
    pub fn get(&self, index: usize) -> io::Result<SpanState> {
        assert!(index < self.len, "span {index} of {}", self.len);
        let mut code = [0; 4];
        let at = (HEADER_LEN + 4 * index) as u64;
        match self.file.read_exact_at(&mut code, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(SpanState::Absent),
            read => read.map(|()| SpanState::of(u32::from_ne_bytes(code))),
        }
    }
}

impl SpanState {
    fn of(code: u32) -> Self {
        match code {
            1 => Self::Present,
            2 => Self::Unverified,
            _ => Self::Absent,
        }
    }

    fn code(self) -> u32 {
        match self {
            Self::Absent => 0,
            Self::Present => 1,
            Self::Unverified => 2,
        }
    }
}

/// Writes the header, and takes back trust in states that speak of the time before the machine was
/// started, or of another data file.
fn prepare(file: &File, len: usize, data: DataFile) -> io::Result<()> {
    let size = HEADER_LEN + 4 * len;
    let header = header(len, data)?;
    let mut found = [0; HEADER_LEN];
    if !has_shape(file, len, &header, &mut found)? {
        // Written, not just made longer: a store to a mapped hole on a full disk kills the process.
        let mut table = vec![0; size];
        table[..HEADER_LEN].copy_from_slice(&header);
        file.set_len(0)?;
        return file.write_all_at(&table, 0);
    }
    if data.whole && found == header {
        return Ok(());
    }
    let mut states = vec![0; 4 * len];
    file.read_exact_at(&mut states, HEADER_LEN as u64)?;
    for state in states.chunks_exact_mut(4) {
        if state == SpanState::Present.code().to_ne_bytes() {
            state.copy_from_slice(&SpanState::Unverified.code().to_ne_bytes());
        }
    }
    file.write_all_at(&states, HEADER_LEN as u64)?;
    file.write_all_at(&header, 0)
}

/// The header of a table that can be trusted.
fn header(len: usize, data: DataFile) -> io::Result<[u8; HEADER_LEN]> {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_ne_bytes());
    header[12..16].copy_from_slice(&(len as u32).to_ne_bytes());
    header[BOOT_ID_AT..INODE_AT].copy_from_slice(&boot_id()?);
    header[INODE_AT..INODE_END].copy_from_slice(&data.inode.to_ne_bytes());
    Ok(header)
}

/// Whether `file` is a table for `len` spans. Its header goes to `found`.
fn has_shape(
    file: &File,
    len: usize,
    header: &[u8; HEADER_LEN],
    found: &mut [u8; HEADER_LEN],
) -> io::Result<bool> {
    Ok(file.metadata()?.len() == (HEADER_LEN + 4 * len) as u64
        && file.read_exact_at(found, 0).is_ok()
        && found[..BOOT_ID_AT] == header[..BOOT_ID_AT])
}

/// Identifies the run of the kernel (random(4), /proc/sys/kernel/random/boot_id).
fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let mut id = [0; 16];
    hex::decode_to_slice(digits, &mut id)
        .map_err(|_| io::Error::other("the kernel's boot_id is not a UUID"))?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: DataFile = DataFile {
        inode: 7,
        whole: true,
    };

    fn all(states: &SpanStates) -> Vec<SpanState> {
        (0..states.len).map(|index| states.get(index)).collect()
    }

    #[test]
    fn states_survive_reopening_and_lose_trust_after_a_reboot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("states");
        let states = SpanStates::open(&path, 3, DATA).unwrap();
        states.set(1, SpanState::Present);
        let other = SpanStates::open(&path, 3, DATA).unwrap();
        assert_eq!(
            other.get(1),
            SpanState::Present,
            "a second process sees it at once"
        );
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(&[7; 16], BOOT_ID_AT as u64)
            .unwrap();
        let after_reboot = SpanStates::open(&path, 3, DATA).unwrap();
        assert_eq!(
            all(&after_reboot),
            [SpanState::Absent, SpanState::Unverified, SpanState::Absent]
        );
    }

    #[test]
    fn states_lose_trust_when_the_data_file_was_replaced_or_cut() {
        for changed in [
            DataFile { inode: 8, ..DATA },
            DataFile {
                whole: false,
                ..DATA
            },
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("states");
            SpanStates::open(&path, 2, DATA)
                .unwrap()
                .set(0, SpanState::Present);
            let states = SpanStates::open(&path, 2, changed).unwrap();
            assert_eq!(all(&states), [SpanState::Unverified, SpanState::Absent]);
        }
    }

    #[test]
    fn a_table_of_another_shape_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("states");
        SpanStates::open(&path, 3, DATA)
            .unwrap()
            .set(0, SpanState::Present);
        assert_eq!(
            SpanStates::open(&path, 4, DATA).unwrap().get(0),
            SpanState::Absent
        );
        std::fs::write(&path, b"garbage").unwrap();
        assert_eq!(
            SpanStates::open(&path, 4, DATA).unwrap().get(3),
            SpanState::Absent
        );
    }
}
