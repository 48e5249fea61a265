//! Decoded bytes that nobody has checked yet.
//!
//! They must not touch the data file: another process may have filled the same span meanwhile, and its readers would see
//! them.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::Path,
};

/// Spans are 2 MiB at most, unless a layer offers no place to begin (zstd in one frame): those do not go to memory.
const IN_MEMORY_MAX: u64 = 16 << 20;
/// Copied at a time from the disk to the disk.
const COPY_LEN: usize = 1 << 20;

/// A span on its way to the data file.
#[derive(Debug)]
pub enum Staged {
    /// In memory.
    Memory(Vec<u8>),
    /// In a file without a name; nothing of it is left after a kill.
    File(File),
}

impl Staged {
    /// Room for `len` bytes, in memory or on the disk of `dir`.
    pub fn new(dir: &Path, len: u64) -> io::Result<Self> {
        match len {
            0..=IN_MEMORY_MAX => Ok(Self::Memory(Vec::with_capacity(len as usize))),
            _ => tempfile::tempfile_in(dir).map(Self::File),
        }
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Memory(memory) => {
                memory.extend_from_slice(bytes);
                Ok(())
            }
            Self::File(file) => file.write_all(bytes),
        }
    }

    /// Writes everything to `data` at `at`.
    pub fn write_to(&self, data: &File, at: u64) -> io::Result<()> {
        let file = match self {
            Self::Memory(memory) => return data.write_all_at(memory, at),
            Self::File(file) => file,
        };
        let mut buf = vec![0; COPY_LEN];
        let mut copied = 0;
        loop {
            let len = file.read_at(&mut buf, copied)?;
            if len == 0 {
                return Ok(());
            }
            data.write_all_at(&buf[..len], at + copied)?;
            copied += len as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_spans_arrive_whole_at_their_place() {
        for len in [10, IN_MEMORY_MAX + 12_345] {
            let dir = tempfile::tempdir().unwrap();
            let content: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let mut staged = Staged::new(dir.path(), len).unwrap();
            content
                .chunks(100_000)
                .for_each(|chunk| staged.push(chunk).unwrap());
            let data = tempfile::tempfile_in(dir.path()).unwrap();
            staged.write_to(&data, 3).unwrap();
            let mut found = vec![0; content.len()];
            data.read_exact_at(&mut found, 3).unwrap();
            assert!(found == content);
        }
    }
}
