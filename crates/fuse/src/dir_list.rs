//! Answers to READDIR and READDIRPLUS.

use crate::{
    answer::entry,
    filesystem::Attributes,
    wire::{DIRENT_ALIGN, Dirent, EntryOut},
};
use rustix::io::Errno;
use zerocopy::IntoBytes;

/// The entries of a directory, as many as the kernel has room for.
#[derive(Debug)]
pub struct DirList<'a> {
    out: &'a mut Vec<u8>,
    /// `out` must not grow beyond this.
    end: usize,
    plus: bool,
}

impl<'a> DirList<'a> {
    /// Appends at most `len` bytes to `out`. `plus`: with the attributes of each entry.
    pub(crate) fn new(out: &'a mut Vec<u8>, len: usize, plus: bool) -> Self {
        let end = out.len() + len;
        Self { out, end, plus }
    }

    /// Adds an entry, after which the listing goes on with `next_cookie`. Its `kind` is the type as in `st_mode`;
    /// `attributes` are asked for only where the kernel wants them. False if there was no room: the list ends before it.
    pub fn add(
        &mut self,
        next_cookie: u64,
        name: &[u8],
        node: u64,
        kind: u32,
        attributes: impl FnOnce() -> Result<Attributes, Errno>,
    ) -> Result<bool, Errno> {
        let before = if self.plus { size_of::<EntryOut>() } else { 0 };
        let len = before + size_of::<Dirent>() + name.len().next_multiple_of(DIRENT_ALIGN);
        let end = self.out.len() + len;
        if end > self.end {
            return Ok(false);
        }
        if self.plus {
            self.out.extend_from_slice(entry(&attributes()?).as_bytes());
        }
        let dirent = Dirent {
            ino: node,
            off: next_cookie,
            namelen: name.len() as u32,
            // `IFTODT` of <dirent.h>.
            kind: (kind & 0o170_000) >> 12,
        };
        self.out.extend_from_slice(dirent.as_bytes());
        self.out.extend_from_slice(name);
        self.out.resize(end, 0);
        Ok(true)
    }
}
