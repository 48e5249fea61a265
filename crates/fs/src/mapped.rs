//! A file mapped into memory, read only.
#![allow(unsafe_code)]

use memmap2::Mmap;
use std::{fs::File, io, path::Path};

/// The bytes of a file that nobody changes: files of the node's state directory are written under
/// another name, then renamed, and never touched again.
#[derive(Debug)]
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps the file at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is sound as long as nobody truncates or overwrites the file in
        // place. Only callers' own files, written once by rename, are mapped (see the type).
        Ok(Self(unsafe { Mmap::map(&file)? }))
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
