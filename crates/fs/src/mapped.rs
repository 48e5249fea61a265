//! A file mapped into memory, read only.
#![allow(unsafe_code)]

use memmap2::{Mmap, MmapOptions};
use std::{fs::File, io};

/// The bytes of a file that nobody changes: files of the node's state directory are written under
/// another name, then renamed, and never touched again.
#[derive(Debug)]
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps `file`. Of a mapping only what was looked at is in this process's memory, until it goes.
    pub fn new(file: &File) -> io::Result<Self> {
        Self::with(&MmapOptions::new(), file)
    }

    /// Maps `file` for somebody who looks at all of it: its pages come at once instead of one fault after the other.
    pub fn whole(file: &File) -> io::Result<Self> {
        Self::with(MmapOptions::new().populate(), file)
    }

    fn with(options: &MmapOptions, file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is sound as long as nobody truncates or overwrites the file in
        // place. Only callers' own files, written once by rename, are mapped (see the type).
        Ok(Self(unsafe { options.map(file)? }))
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
