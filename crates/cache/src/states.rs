//! The table of a layer's spans, mapped into every process that uses the layer.
//!
//! ```text
//!  0  8  "CLIPSPAN"         16 16  boot identifier of the last user
//!  8  4  version            32  8  inode number of the data file
//! 12  4  number of spans    40  4  CRC-32C of the ends
//!                           44 20  zero
//! 64           4n  one word per span (state and generation, see `word`)
//! 64 + 4n      4n  when each span was last used: seconds since 1970, 0 for never
//! 64 + 8n      8n  where each span ends in the data file
//! ```
//!
//! In native byte order. All accesses to the words are atomic. The ends are here so that a layer can be
//! evicted by a process that does not have its archive; their checksum keeps a flipped bit from punching
//! holes into other spans.
//!
//! Times of use are kept in the process' own memory, and written to the file with pwrite now and then: a store
//! to a mapped page of a disk that has failed would kill the process, on the path of a read that needs no disk.
#![allow(unsafe_code)]

use crate::word::{self, Word};
use memmap2::{MmapOptions, MmapRaw};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::SystemTime,
};

const MAGIC: &[u8; 8] = b"CLIPSPAN";
const VERSION: u32 = 3;
const HEADER_LEN: usize = 64;
const COUNT_AT: usize = 12;
const BOOT_ID_AT: usize = 16;
const INODE_AT: usize = 32;
const CRC_AT: usize = 40;
const CRC_END: usize = 44;
/// A layer of [`clip_archive::limits::TAR_BYTES_MAX`] has fewer spans: what claims more is damaged.
const SPANS_MAX: usize = 1 << 26;

/// What the table must know of the data file that it speaks of.
#[derive(Debug, Clone, Copy)]
pub struct DataFile {
    /// Its inode number: another file in its place holds other bytes.
    pub inode: u64,
    /// False if it did not have the right length.
    pub whole: bool,
}

/// Whether the words of a table may be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// They speak of this layer and this data file, and of this life of the machine.
    Trusted,
    /// They speak of this layer, but of an earlier life or of another data file.
    Distrusted,
    /// There is no table, or one of another shape.
    Other,
}

/// The mapped table.
#[derive(Debug)]
pub struct SpanStates {
    map: MmapRaw,
    len: usize,
    file: File,
    /// When this process last used each span.
    used: Box<[AtomicU32]>,
    /// Whether some of these are not in the file yet.
    used_since: AtomicBool,
}

impl SpanStates {
    /// Whether the table at `path` may be opened for spans that end at `ends` in `data`.
    pub fn fit(path: &Path, ends: &[u64], data: DataFile) -> io::Result<Fit> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Fit::Other),
            opened => opened?,
        };
        fit_of(&file, &header(ends, data)?, data)
    }

    /// Begins a table in place of what is at `path`. Nobody else may use it.
    pub fn create(path: &Path, ends: &[u64], data: DataFile) -> io::Result<()> {
        // Written, not just made longer: a store to a mapped hole on a full disk kills the process.
        let mut table = vec![0; table_len(ends.len())];
        table[..HEADER_LEN].copy_from_slice(&header(ends, data)?);
        table[ends_at(ends.len())..].copy_from_slice(&bytes_of(ends));
        std::fs::write(path, table)
    }

    /// Takes back the trust in all words of a table that is [`Fit::Distrusted`]. Nobody else may use it.
    pub fn distrust(path: &Path, ends: &[u64], data: DataFile) -> io::Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut words = vec![0; 4 * ends.len()];
        file.read_exact_at(&mut words, HEADER_LEN as u64)?;
        for word in words.chunks_exact_mut(4) {
            let found = Word::from_bits(u32_at(word, 0));
            word.copy_from_slice(&found.distrusted().bits().to_ne_bytes());
        }
        file.write_all_at(&words, HEADER_LEN as u64)?;
        file.write_all_at(&header(ends, data)?, 0)
    }

    /// Maps the table at `path`, which is [`Fit::Trusted`] for `len` spans.
    pub fn open(path: &Path, len: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let map = map_words(&file, len)?;
        Ok(Self {
            map,
            len,
            file,
            used: std::iter::repeat_with(AtomicU32::default)
                .take(len)
                .collect(),
            used_since: AtomicBool::new(false),
        })
    }

    /// The word of span `index`.
    pub fn cell(&self, index: usize) -> &AtomicU32 {
        cell(&self.map, self.len, index)
    }

    /// The word of span `index` now.
    pub fn look(&self, index: usize) -> Word {
        word::look(self.cell(index))
    }

    /// Says that span `index` is used now. No system call (the clock is read in user space).
    pub fn touch(&self, index: usize, now: u32) {
        let used = &self.used[index];
        if used.load(Ordering::Relaxed) != now {
            used.store(now, Ordering::Relaxed);
            if !self.used_since.load(Ordering::Relaxed) {
                self.used_since.store(true, Ordering::Relaxed);
            }
        }
    }

    /// The same, and others know it at once.
    pub fn touch_now(&self, index: usize) -> io::Result<()> {
        let now = now();
        self.touch(index, now);
        let at = used_at(self.len) + 4 * index;
        self.file.write_all_at(&now.to_ne_bytes(), at as u64)
    }

    /// Lets the other processes know what this one has used. Of two that do it at once one may lose some.
    pub fn share_used(&self) -> io::Result<()> {
        if !self.used_since.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let mut shared = vec![0; 4 * self.len];
        let at = used_at(self.len) as u64;
        self.file.read_exact_at(&mut shared, at)?;
        for (there, here) in shared.chunks_exact_mut(4).zip(&self.used) {
            let latest = u32_at(there, 0).max(here.load(Ordering::Relaxed));
            there.copy_from_slice(&latest.to_ne_bytes());
        }
        self.file.write_all_at(&shared, at)
    }
}

/// The table as somebody sees it who does not have the layer's archive: for the evictor and for checks.
/// A read of the file sees what the maps hold (same page cache).
#[derive(Debug)]
pub struct SpanStatesSeen {
    file: File,
    ends: Vec<u64>,
    header: [u8; HEADER_LEN],
}

impl SpanStatesSeen {
    /// Opens the table at `path`, to look, or to change words too; none if there is none that this version can read.
    pub fn open(path: &Path, writable: bool) -> io::Result<Option<Self>> {
        let file = match OpenOptions::new().read(true).write(writable).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut header = [0; HEADER_LEN];
        let len = file.metadata()?.len();
        if len < HEADER_LEN as u64 {
            return Ok(None);
        }
        file.read_exact_at(&mut header, 0)?;
        let count = u32_at(&header, COUNT_AT) as usize;
        if header[..8] != *MAGIC
            || u32_at(&header, 8) != VERSION
            || count > SPANS_MAX
            || len != table_len(count) as u64
        {
            return Ok(None);
        }
        let mut ends = vec![0; 8 * count];
        file.read_exact_at(&mut ends, ends_at(count) as u64)?;
        if crc32c::crc32c(&ends) != u32_at(&header, CRC_AT) {
            return Ok(None);
        }
        let ends = ends
            .chunks_exact(8)
            .map(|end| u64::from_ne_bytes(end.try_into().expect("8 bytes")))
            .collect();
        Ok(Some(Self { file, ends, header }))
    }

    /// Whether present spans of this table are believed when `data_inode` is the data file's. Otherwise they are
    /// checked before their next use.
    pub fn is_trusted(&self, data_inode: u64) -> io::Result<bool> {
        let data = DataFile {
            inode: data_inode,
            whole: true,
        };
        Ok(self.header == header(&self.ends, data)?)
    }

    /// Where the spans end.
    pub fn ends(&self) -> &[u64] {
        &self.ends
    }

    /// Where span `index` is.
    pub fn range(&self, index: usize) -> std::ops::Range<u64> {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[index]
    }

    /// The word of span `index` now; a table that was cut meanwhile knows nothing.
    pub fn look(&self, index: usize) -> io::Result<Word> {
        assert!(
            index < self.ends.len(),
            "span {index} of {}",
            self.ends.len()
        );
        let mut bits = [0; 4];
        let at = (HEADER_LEN + 4 * index) as u64;
        match self.file.read_exact_at(&mut bits, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Word::from_bits(0)),
            read => read.map(|()| Word::from_bits(u32::from_ne_bytes(bits))),
        }
    }

    /// Word and last use of every span.
    pub fn all(&self) -> io::Result<impl Iterator<Item = (Word, u32)> + use<>> {
        let len = self.ends.len();
        let mut found = vec![0; 8 * len];
        self.file.read_exact_at(&mut found, HEADER_LEN as u64)?;
        Ok((0..len).map(move |index| {
            let word = Word::from_bits(u32_at(&found, 4 * index));
            (word, u32_at(&found, 4 * (len + index)))
        }))
    }

    /// Maps the words to change them.
    pub fn words(&self) -> io::Result<Words> {
        let len = self.ends.len();
        let map = map_words(&self.file, len)?;
        Ok(Words { map, len })
    }
}

/// The mapped words of a table.
#[derive(Debug)]
pub struct Words {
    map: MmapRaw,
    len: usize,
}

impl Words {
    /// The word of span `index`.
    pub fn cell(&self, index: usize) -> &AtomicU32 {
        cell(&self.map, self.len, index)
    }
}

/// Seconds since 1970: what [`SpanStates::touch`] keeps. Without a system call.
pub fn now() -> u32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as u32)
}

fn map_words(file: &File, len: usize) -> io::Result<MmapRaw> {
    MmapOptions::new().len(HEADER_LEN + 4 * len).map_raw(file)
}

fn cell(map: &MmapRaw, len: usize, index: usize) -> &AtomicU32 {
    assert!(index < len, "span {index} of {len}");
    // SAFETY: the map is HEADER_LEN + 4 * len bytes long and lives as long as the reference; the word is
    // within it and aligned (the map is page-aligned, the header 64 bytes). All processes access words
    // atomically only while others may (`distrust` and `create` run alone), and nobody shrinks the file.
    unsafe {
        &*map
            .as_mut_ptr()
            .add(HEADER_LEN + 4 * index)
            .cast::<AtomicU32>()
    }
}

fn table_len(len: usize) -> usize {
    HEADER_LEN + 16 * len
}

fn used_at(len: usize) -> usize {
    HEADER_LEN + 4 * len
}

fn ends_at(len: usize) -> usize {
    HEADER_LEN + 8 * len
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn bytes_of(ends: &[u64]) -> Vec<u8> {
    ends.iter().flat_map(|end| end.to_ne_bytes()).collect()
}

/// The header of a table that can be trusted.
fn header(ends: &[u64], data: DataFile) -> io::Result<[u8; HEADER_LEN]> {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(MAGIC);
    header[8..COUNT_AT].copy_from_slice(&VERSION.to_ne_bytes());
    header[COUNT_AT..BOOT_ID_AT].copy_from_slice(&(ends.len() as u32).to_ne_bytes());
    header[BOOT_ID_AT..INODE_AT].copy_from_slice(&boot_id()?);
    header[INODE_AT..CRC_AT].copy_from_slice(&data.inode.to_ne_bytes());
    header[CRC_AT..CRC_END].copy_from_slice(&crc32c::crc32c(&bytes_of(ends)).to_ne_bytes());
    Ok(header)
}

fn fit_of(file: &File, expected: &[u8; HEADER_LEN], data: DataFile) -> io::Result<Fit> {
    let count = u32_at(expected, COUNT_AT) as usize;
    let mut found = [0; HEADER_LEN];
    if file.metadata()?.len() != table_len(count) as u64
        || file.read_exact_at(&mut found, 0).is_err()
    {
        return Ok(Fit::Other);
    }
    let mut ends = vec![0; 8 * count];
    file.read_exact_at(&mut ends, ends_at(count) as u64)?;
    let has_shape = found[..BOOT_ID_AT] == expected[..BOOT_ID_AT]
        && found[CRC_AT..] == expected[CRC_AT..]
        && crc32c::crc32c(&ends) == u32_at(expected, CRC_AT);
    Ok(match has_shape {
        false => Fit::Other,
        true if data.whole && found == *expected => Fit::Trusted,
        true => Fit::Distrusted,
    })
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

/// Makes the table at `path` one of an earlier life of the machine.
#[cfg(test)]
pub fn age(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[7; 16], BOOT_ID_AT as u64).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::word::SpanState;
    use std::path::PathBuf;

    const DATA: DataFile = DataFile {
        inode: 7,
        whole: true,
    };
    const ENDS: [u64; 3] = [100, 300, 301];

    fn table() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("states");
        SpanStates::create(&path, &ENDS, DATA).unwrap();
        let states = SpanStates::open(&path, 3).unwrap();
        assert!(word::publish(states.cell(1), states.look(1)));
        (dir, path)
    }

    fn states_in(path: &Path) -> Vec<SpanState> {
        let seen = SpanStatesSeen::open(path, false).unwrap().unwrap();
        seen.all().unwrap().map(|(word, _)| word.state()).collect()
    }

    #[test]
    fn states_are_seen_by_all_at_once_and_lose_trust_after_a_reboot() {
        let (_dir, path) = table();
        assert_eq!(SpanStates::fit(&path, &ENDS, DATA).unwrap(), Fit::Trusted);
        assert!(SpanStates::open(&path, 3).unwrap().look(1).is_present());
        let seen = SpanStatesSeen::open(&path, false).unwrap().unwrap();
        assert!(seen.look(1).unwrap().is_present() && seen.is_trusted(7).unwrap());
        assert_eq!((seen.ends(), seen.range(1)), (&ENDS[..], 100..300));
        age(&path);
        assert_eq!(
            SpanStates::fit(&path, &ENDS, DATA).unwrap(),
            Fit::Distrusted
        );
        let seen = SpanStatesSeen::open(&path, false).unwrap().unwrap();
        assert!(!seen.is_trusted(7).unwrap());
        SpanStates::distrust(&path, &ENDS, DATA).unwrap();
        assert_eq!(SpanStates::fit(&path, &ENDS, DATA).unwrap(), Fit::Trusted);
        assert_eq!(
            states_in(&path),
            [SpanState::Absent, SpanState::Unverified, SpanState::Absent]
        );
    }

    #[test]
    fn a_table_fits_one_data_file_and_one_layer() {
        let (_dir, path) = table();
        let replaced = DataFile { inode: 8, ..DATA };
        let cut = DataFile {
            whole: false,
            ..DATA
        };
        for changed in [replaced, cut] {
            let fit = SpanStates::fit(&path, &ENDS, changed).unwrap();
            assert_eq!(fit, Fit::Distrusted, "{changed:?}");
        }
        for ends in [&[100, 300][..], &[100, 200, 301], &[100, 300, 301, 302]] {
            let fit = SpanStates::fit(&path, ends, DATA).unwrap();
            assert_eq!(fit, Fit::Other, "{ends:?}");
        }
        std::fs::write(&path, b"garbage").unwrap();
        assert_eq!(SpanStates::fit(&path, &ENDS, DATA).unwrap(), Fit::Other);
        assert!(SpanStatesSeen::open(&path, false).unwrap().is_none());
    }

    #[test]
    fn no_flipped_bit_in_the_ends_is_believed() {
        let (_dir, path) = table();
        let whole = std::fs::read(&path).unwrap();
        for at in ends_at(3)..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(SpanStates::fit(&path, &ENDS, DATA).unwrap(), Fit::Other);
            assert!(SpanStatesSeen::open(&path, false).unwrap().is_none());
        }
    }

    #[test]
    fn what_several_processes_used_last_counts() {
        let (_dir, path) = table();
        let (a, b) = (
            SpanStates::open(&path, 3).unwrap(),
            SpanStates::open(&path, 3).unwrap(),
        );
        a.touch(0, 10);
        b.touch(0, 20);
        b.touch(1, 5);
        b.share_used().unwrap();
        a.share_used().unwrap();
        a.touch_now(2).unwrap();
        let seen = SpanStatesSeen::open(&path, false).unwrap().unwrap();
        let used: Vec<u32> = seen.all().unwrap().map(|(_, used)| used).collect();
        assert_eq!(used[..2], [20, 5]);
        assert!(used[2] > 1_700_000_000);
    }
}
