//! Directories: sorted entries, packed into 512-byte blocks that are searched alone.
//!
//! ```text
//! a block: │ nid 8 │ name offset 2 │ type 1 │ 0 │ ... one per entry ... │ names ... │ 0…0 │
//! ```
//! The first entry's name offset tells how many entries there are. Names, "." and ".." included,
//! ascend bytewise within a block and from block to block. The last name of a block ends at the
//! block's end or at the first NUL; an entry never crosses a border.

use super::format::{BLOCK, DIRENT_LEN, NAME_MAX, put, u16_at, u64_at};
use super::{FileType, Nid, ReadError};
use crate::tree::{NodeId, Tree};
use std::cmp::Ordering;

/// The entries of a directory as they are stored, "." and ".." in their places.
pub(super) fn entries(
    tree: &Tree,
    itself: NodeId,
    parent: NodeId,
) -> impl Iterator<Item = (&[u8], NodeId)> {
    let mut dots = [(b".".as_slice(), itself), (b"..", parent)]
        .into_iter()
        .peekable();
    let mut children = tree.children(itself).peekable();
    std::iter::from_fn(move || match (dots.peek(), children.peek()) {
        (Some(dot), Some(child)) if child.0 < dot.0 => children.next(),
        (Some(_), _) => dots.next(),
        (None, _) => children.next(),
    })
}

/// Fills blocks with entries in order, each as full as it gets.
#[derive(Debug, Default)]
pub(super) struct Packing {
    full_blocks: usize,
    used: usize,
}

impl Packing {
    /// Adds an entry; true if it had to start another block.
    pub fn add(&mut self, name: &[u8]) -> bool {
        let needed = DIRENT_LEN + name.len();
        let next_block = self.used + needed > BLOCK;
        if next_block {
            self.full_blocks += 1;
            self.used = 0;
        }
        self.used += needed;
        next_block
    }

    /// Bytes of the directory: blocks but for the last count whole.
    pub fn size(&self) -> usize {
        self.full_blocks * BLOCK + self.used
    }
}

/// Writes one block's entries; `out` is as long as they need, or longer and zero.
pub(super) fn encode_block(out: &mut [u8], entries: &[(&[u8], Nid, FileType)]) {
    let mut name_at = entries.len() * DIRENT_LEN;
    for (i, (name, nid, kind)) in entries.iter().enumerate() {
        let dirent = &mut out[i * DIRENT_LEN..];
        put(dirent, 0, &nid.0.to_le_bytes());
        put(dirent, 8, &(name_at as u16).to_le_bytes());
        dirent[10] = kind.to_dirent();
        put(out, name_at, name);
        name_at += name.len();
    }
}

/// A directory's bytes: whole blocks and, perhaps, a tail stored elsewhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct DirData<'a> {
    pub nid: Nid,
    pub blocks: &'a [u8],
    pub tail: &'a [u8],
}

impl<'a> DirData<'a> {
    /// The node called `name`.
    pub fn lookup(&self, name: &[u8]) -> Result<Option<Nid>, ReadError> {
        // The last block that starts with a name not above ours is the only one that can hold it.
        let (mut low, mut high) = (0, self.block_count());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.block(middle)?.entry(0)?.name.cmp(name) {
                Ordering::Greater => high = middle,
                Ordering::Less | Ordering::Equal => low = middle + 1,
            }
        }
        match low.checked_sub(1) {
            Some(block) => self.block(block)?.lookup(name),
            None => Ok(None),
        }
    }

    fn block_count(&self) -> usize {
        self.blocks.len().div_ceil(BLOCK) + usize::from(!self.tail.is_empty())
    }

    fn block(&self, index: usize) -> Result<DirBlock<'a>, ReadError> {
        let start = index * BLOCK;
        let bytes = match self
            .blocks
            .get(start..(start + BLOCK).min(self.blocks.len()))
        {
            Some(block) if !block.is_empty() => block,
            _ => self.tail,
        };
        DirBlock::new(self.nid, bytes)
    }
}

/// One block of a directory, its entry count checked.
#[derive(Debug, Clone, Copy)]
struct DirBlock<'a> {
    directory: Nid,
    bytes: &'a [u8],
    count: usize,
}

impl<'a> DirBlock<'a> {
    fn new(directory: Nid, bytes: &'a [u8]) -> Result<Self, ReadError> {
        let corrupt = ReadError::corrupt(directory, "a directory block has no entries");
        if bytes.len() < DIRENT_LEN {
            return Err(corrupt);
        }
        let names_at = usize::from(u16_at(bytes, 8));
        if names_at < DIRENT_LEN || !names_at.is_multiple_of(DIRENT_LEN) || names_at > bytes.len() {
            return Err(corrupt);
        }
        Ok(Self {
            directory,
            bytes,
            count: names_at / DIRENT_LEN,
        })
    }

    fn lookup(&self, name: &[u8]) -> Result<Option<Nid>, ReadError> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.entry(middle)?;
            match entry.name.cmp(name) {
                Ordering::Equal => return Ok(Some(entry.nid)),
                Ordering::Greater => high = middle,
                Ordering::Less => low = middle + 1,
            }
        }
        Ok(None)
    }

    /// The entry at `index`, which must be below `self.count`. Its cookie is left 0.
    fn entry(&self, index: usize) -> Result<DirEntry<'a>, ReadError> {
        let corrupt = |what| ReadError::corrupt(self.directory, what);
        let dirent = &self.bytes[index * DIRENT_LEN..(index + 1) * DIRENT_LEN];
        let start = usize::from(u16_at(dirent, 8));
        let name = if index + 1 < self.count {
            let end = usize::from(u16_at(self.bytes, (index + 1) * DIRENT_LEN + 8));
            self.bytes.get(start..end)
        } else {
            let rest = self.bytes.get(start..);
            rest.and_then(|rest| rest.split(|&byte| byte == 0).next())
        };
        let name = name.ok_or(corrupt("a name lies outside its directory block"))?;
        if start < self.count * DIRENT_LEN || name.is_empty() || name.len() > NAME_MAX {
            return Err(corrupt("a directory entry has no valid name"));
        }
        let kind = FileType::from_dirent(dirent[10])
            .ok_or(corrupt("a directory entry is of an unknown type"))?;
        Ok(DirEntry {
            name,
            nid: Nid(u64_at(dirent, 0)),
            kind,
            next_cookie: 0,
        })
    }
}

/// One entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The name; "." and ".." are entries, too.
    pub name: &'a [u8],
    /// The node.
    pub nid: Nid,
    /// The node's type.
    pub kind: FileType,
    /// Where [`Image::read_dir`](super::Image::read_dir) goes on behind this entry. Never 0.
    pub next_cookie: u64,
}

/// The entries of a directory from a cookie on, in bytewise order of their names.
///
/// A cookie is a position in the directory's bytes, so resuming costs no search. After an error the
/// iterator ends.
#[derive(Debug, Clone)]
pub struct ReadDir<'a> {
    data: DirData<'a>,
    cookie: u64,
}

impl<'a> ReadDir<'a> {
    pub(super) fn new(data: DirData<'a>, cookie: u64) -> Self {
        Self { data, cookie }
    }

    fn entry_at_cookie(&self) -> Option<Result<DirEntry<'a>, ReadError>> {
        let block = usize::try_from(self.cookie / BLOCK as u64).ok()?;
        if block >= self.data.block_count() {
            return None;
        }
        // An odd cookie is not ours; like the kernel, go on at the next border.
        let index = (self.cookie as usize % BLOCK).div_ceil(DIRENT_LEN);
        let entry = self.data.block(block).and_then(|content| {
            let (block, content, index) = match index < content.count {
                true => (block, content, index),
                false if block + 1 < self.data.block_count() => {
                    (block + 1, self.data.block(block + 1)?, 0)
                }
                false => return Ok(None),
            };
            let next_cookie = match index + 1 < content.count {
                true => block * BLOCK + (index + 1) * DIRENT_LEN,
                false => (block + 1) * BLOCK,
            };
            Ok(Some(DirEntry {
                next_cookie: next_cookie as u64,
                ..content.entry(index)?
            }))
        });
        entry.transpose()
    }
}

impl<'a> Iterator for ReadDir<'a> {
    type Item = Result<DirEntry<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.entry_at_cookie()?;
        self.cookie = entry.as_ref().map_or(u64::MAX, |entry| entry.next_cookie);
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Attributes, TreeBuilder};

    #[test]
    fn the_dots_stand_where_their_bytes_belong() {
        let mut tree = TreeBuilder::new(Attributes::default());
        for name in [b"\x01".as_slice(), b"-", b".-", b".a", b"a"] {
            tree.link(0, name, 0);
        }
        let tree = tree.finish(vec![]);
        let stored: Vec<&[u8]> = entries(&tree, 0, 0).map(|(name, _)| name).collect();
        let expected: [&[u8]; 7] = [b"\x01", b"-", b".", b".-", b"..", b".a", b"a"];
        assert_eq!(stored, expected);
        assert!(stored.is_sorted());
    }
}
