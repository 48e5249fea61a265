//! The merged tree of an image: what a container would see, before it is written as EROFS.

use crate::{Segment, Xattr};
use std::collections::BTreeMap;

/// Index of a node in [`Tree::nodes`].
pub type NodeId = u32;

/// An image's files. Node 0 is the root directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// All nodes; hard links are one node with several names.
    pub nodes: Vec<Node>,
    /// Uncompressed size in bytes of each layer's tar, in the image's order: the EROFS devices.
    pub layer_tar_sizes: Vec<u64>,
}

/// One inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What the node is.
    pub kind: NodeKind,
    /// The twelve permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds within the second.
    pub mtime_nsec: u32,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
}

/// The kinds of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory: name → node. Names are non-empty, at most 255 bytes, without `/` and NUL,
    /// and never `.` or `..`.
    Directory(BTreeMap<Vec<u8>, NodeId>),
    /// A regular file whose bytes lie in layer `layer` (index into the image's layer list).
    File {
        /// The layer that holds the content.
        layer: u16,
        /// Size in bytes.
        size: u64,
        /// Where the bytes lie; see [`crate::EntryKind::File`].
        segments: Vec<Segment>,
    },
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

impl Tree {
    /// The node at `path` (components separated by `/`, no leading slash; empty for the root).
    /// Symbolic links are not followed.
    pub fn lookup(&self, path: &[u8]) -> Option<NodeId> {
        let mut id = 0;
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            match &self.nodes[id as usize].kind {
                NodeKind::Directory(children) => id = *children.get(name)?,
                _ => return None,
            }
        }
        Some(id)
    }

    /// How many names there are, the root not counted; a hard link counts once per name.
    pub fn name_count(&self) -> u64 {
        let children = |node: &Node| match &node.kind {
            NodeKind::Directory(children) => children.len() as u64,
            _ => 0,
        };
        self.nodes.iter().map(children).sum()
    }
}
