//! A file mapped into memory, read only.
#![allow(unsafe_code)]

use memmap2::Mmap;
use std::{fs::File, io};

/// The bytes of a file that nobody changes: files of the node's state directory are written under
/// another name, then renamed, and never touched again.
#[derive(Debug)]
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps `file`. Of a mapping only what was looked at is in this process's memory, until it goes.
    pub fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is sound as long as nobody truncates or overwrites the file in
        // place. Only callers' own files, written once by rename, are mapped (see the type).
        Ok(Self(unsafe { Mmap::map(file)? }))
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
