//! The merged tree of an image: what a container would see, before it is written as EROFS.
//!
//! A tree is some vectors whose items name each other by position, so that one of a hundred thousand files is made, and
//! freed, with a few dozen allocations.
//!
//! ```text
//! nodes     │ root │ a │ b │ c │ ...                    breadth first, names sorted
//! children  │ of root: (name, node) ... │ of a: ... │   in the order of the nodes, names sorted
//! store     │ names and link targets │   │ segments │   │ extended attributes │
//! ```

mod builder;
mod index;
mod store;

use crate::{Segment, Xattr};
pub use builder::TreeBuilder;
pub(crate) use builder::{Found, Touched};
use store::{Run, Store, Stored, StoredKind};

/// Number of a node within its tree; the root directory is 0.
pub type NodeId = u32;

/// An image's files, made by [`merge`](crate::merge()) or a [`TreeBuilder`].
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Stored>,
    children: Vec<Child>,
    store: Store,
    layer_tar_sizes: Vec<u64>,
}

/// One inode. Hard links are one node with several names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node<'a> {
    /// What the node is.
    pub kind: NodeKind<'a>,
    /// Who may do what with it, and when it was changed.
    pub attributes: Attributes,
    /// Extended attributes, sorted by name.
    pub xattrs: &'a [Xattr],
}

/// What `chmod`, `chown` and `utimensat` set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
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
}

/// The kinds of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind<'a> {
    /// A directory; see [`Tree::children`].
    Directory,
    /// A regular file whose bytes lie in layer `layer` (index into the image's layer list).
    File {
        /// The layer that holds the content.
        layer: u16,
        /// Size in bytes.
        size: u64,
        /// Where the bytes lie; see [`crate::EntryKind::File`].
        segments: &'a [Segment],
    },
    /// A symbolic link with its target.
    Symlink(&'a [u8]),
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

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
struct Child {
    name: Run,
    node: NodeId,
}

impl Tree {
    /// Uncompressed size in bytes of each layer's tar, in the image's order: the EROFS devices.
    pub fn layer_tar_sizes(&self) -> &[u64] {
        &self.layer_tar_sizes
    }

    /// How many nodes there are; their numbers are those below.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The node with this number, which must be one.
    pub fn node(&self, id: NodeId) -> Node<'_> {
        self.store.view(&self.nodes[id as usize])
    }

    /// The names in a directory and what they name, sorted; nothing if the node is no directory.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> + Clone {
        let children = self.children_of(id).iter();
        children.map(|child| (self.store.text(child.name), child.node))
    }

    /// The node at `path` (components separated by `/`, no leading slash; empty for the root).
    /// Symbolic links are not followed.
    pub fn lookup(&self, path: &[u8]) -> Option<NodeId> {
        let mut names = path.split(|&b| b == b'/').filter(|name| !name.is_empty());
        names.try_fold(0, |id, name| {
            let children = self.children_of(id);
            let found = children.binary_search_by(|child| self.store.text(child.name).cmp(name));
            found.ok().map(|at| children[at].node)
        })
    }

    fn children_of(&self, id: NodeId) -> &[Child] {
        match self.nodes[id as usize].kind {
            StoredKind::Directory(run) => run.of(&self.children),
            _ => &[],
        }
    }

    /// How many names there are, the root not counted; a hard link counts once per name.
    pub fn name_count(&self) -> u64 {
        self.children.len() as u64
    }
}
