//! An upload mapped into memory, read only: its pages belong to the page cache, which gives them up when memory is
//! short, so that an archive of any size can be verified within the operator's memory limit.
#![allow(unsafe_code)]

use std::{fs::File, io};

use memmap2::Mmap;

/// The bytes of an upload that has arrived.
#[derive(Debug)]
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps an upload, which nobody writes to any more.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn new(upload: &File) -> io::Result<Self> {
        // SAFETY: the mapping is sound as long as nobody truncates or overwrites the file in place. It is a temporary
        // file under a random name in the operator's own folder; its one writer has finished.
        Ok(Self(unsafe { Mmap::map(upload)? }))
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
