//! Where a tree keeps what has no fixed length, and nodes that refer to it.

use super::{Attributes, Node, NodeKind};
use crate::{Segment, Xattr};

/// Names, link targets, segments and extended attributes of all nodes.
#[derive(Debug, Default)]
pub(super) struct Store {
    text: Vec<u8>,
    segments: Vec<Segment>,
    xattrs: Vec<Xattr>,
}

/// Neighbours in a vector.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Run {
    pub at: u32,
    pub len: u32,
}

/// A [`Node`] as it is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    pub kind: StoredKind,
    pub attributes: Attributes,
    pub xattrs: Run,
}

/// A [`NodeKind`] as it is kept.
#[derive(Debug, Clone, Copy)]
pub(super) enum StoredKind {
    /// In a finished tree its children; while the tree grows, `at` is its number among the directories.
    Directory(Run),
    File {
        layer: u16,
        size: u64,
        segments: Run,
    },
    Symlink(Run),
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

impl Store {
    /// Keeps `node`; of a directory, all but what `directory` says.
    pub fn keep(&mut self, node: &Node<'_>, directory: Run) -> Stored {
        let kind = match node.kind {
            NodeKind::Directory => StoredKind::Directory(directory),
            NodeKind::File {
                layer,
                size,
                segments,
            } => StoredKind::File {
                layer,
                size,
                segments: Run::appended(&mut self.segments, segments),
            },
            NodeKind::Symlink(target) => StoredKind::Symlink(self.keep_text(target)),
            NodeKind::CharDevice { major, minor } => StoredKind::CharDevice { major, minor },
            NodeKind::BlockDevice { major, minor } => StoredKind::BlockDevice { major, minor },
            NodeKind::Fifo => StoredKind::Fifo,
        };
        Stored {
            kind,
            attributes: node.attributes,
            xattrs: self.keep_xattrs(node.xattrs),
        }
    }

    pub fn keep_xattrs(&mut self, xattrs: &[Xattr]) -> Run {
        Run::appended(&mut self.xattrs, xattrs)
    }

    pub fn keep_text(&mut self, text: &[u8]) -> Run {
        Run::appended(&mut self.text, text)
    }

    pub fn text(&self, run: Run) -> &[u8] {
        run.of(&self.text)
    }

    pub fn text_len(&self) -> usize {
        self.text.len()
    }

    pub fn view(&self, stored: &Stored) -> Node<'_> {
        Node {
            kind: self.view_kind(&stored.kind),
            attributes: stored.attributes,
            xattrs: stored.xattrs.of(&self.xattrs),
        }
    }

    pub fn view_kind(&self, kind: &StoredKind) -> NodeKind<'_> {
        match *kind {
            StoredKind::Directory(_) => NodeKind::Directory,
            StoredKind::File {
                layer,
                size,
                segments,
            } => NodeKind::File {
                layer,
                size,
                segments: segments.of(&self.segments),
            },
            StoredKind::Symlink(target) => NodeKind::Symlink(self.text(target)),
            StoredKind::CharDevice { major, minor } => NodeKind::CharDevice { major, minor },
            StoredKind::BlockDevice { major, minor } => NodeKind::BlockDevice { major, minor },
            StoredKind::Fifo => NodeKind::Fifo,
        }
    }
}

impl Run {
    pub fn of<T>(self, all: &[T]) -> &[T] {
        &all[self.at as usize..][..self.len as usize]
    }

    fn appended<T: Clone>(all: &mut Vec<T>, items: &[T]) -> Self {
        let run = Self {
            at: position(all.len()),
            len: position(items.len()),
        };
        all.extend_from_slice(items);
        run
    }
}

/// A position in a vector, or its length, in 32 bits.
pub(super) fn position(at: usize) -> u32 {
    at.try_into().expect(
        "crate::limits keep all names and targets of a tree below 4 GiB, and items far fewer",
    )
}
