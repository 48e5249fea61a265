//! Node numbers of a FUSE connection.
//!
//! ```text
//!                 Layout::Tree           Layout::TreeAndBlobs
//! 1               the image's root       a directory with "tree" and "blobs"
//! 2                                      the directory "blobs"
//! nid + 16        EROFS node nid         EROFS node nid
//! 2^62 + i                               the uncompressed tar of layer i
//! ```
//!
//! The numbers depend on the archive alone, so a server that takes over a connection gives the same.

use clip_archive::erofs::Nid;

/// What the root of a connection shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The image's files.
    Tree,
    /// `tree/` with the image's files and `blobs/` with one file per layer, its uncompressed tar.
    TreeAndBlobs,
}

impl Layout {
    /// Permissions of the directories that no image brings: the root of [`Self::TreeAndBlobs`] and `blobs/`.
    pub const DIRECTORY_MODE: u16 = 0o755;
}

/// A node of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// The root of [`Layout::TreeAndBlobs`].
    Top,
    /// `blobs/`.
    Blobs,
    /// A layer.
    Blob(u16),
    /// A node of the image.
    Tree(Nid),
}

const ROOT: u64 = 1;
const BLOBS: u64 = 2;
const TREE_BASE: u64 = 16;
const BLOB_BASE: u64 = 1 << 62;

/// Translates between node numbers and nodes.
#[derive(Debug, Clone, Copy)]
pub struct Numbering {
    /// What the root shows.
    pub layout: Layout,
    /// The image's root.
    pub tree_root: Nid,
}

impl Numbering {
    /// The node with number `ino`. The numbers come from the kernel, which has them from us.
    pub fn node(self, ino: u64) -> Node {
        match (ino, self.layout) {
            (ROOT, Layout::Tree) => Node::Tree(self.tree_root),
            (ROOT, Layout::TreeAndBlobs) => Node::Top,
            (BLOBS, Layout::TreeAndBlobs) => Node::Blobs,
            (BLOB_BASE.., _) => Node::Blob((ino - BLOB_BASE) as u16),
            _ => Node::Tree(Nid(ino.saturating_sub(TREE_BASE))),
        }
    }

    /// The number of `node`.
    pub fn ino(self, node: Node) -> u64 {
        match node {
            Node::Top => ROOT,
            Node::Blobs => BLOBS,
            Node::Blob(index) => BLOB_BASE + u64::from(index),
            Node::Tree(nid) if nid == self.tree_root && self.layout == Layout::Tree => ROOT,
            Node::Tree(nid) => nid.0 + TREE_BASE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_nodes_translate_both_ways_in_both_layouts() {
        for layout in [Layout::Tree, Layout::TreeAndBlobs] {
            let numbering = Numbering {
                layout,
                tree_root: Nid(36),
            };
            for node in [
                Node::Tree(Nid(36)),
                Node::Tree(Nid(0)),
                Node::Tree(Nid(1 << 40)),
            ] {
                assert_eq!(numbering.node(numbering.ino(node)), node, "{layout:?}");
            }
        }
        let numbering = Numbering {
            layout: Layout::TreeAndBlobs,
            tree_root: Nid(36),
        };
        for node in [Node::Top, Node::Blobs, Node::Blob(0), Node::Blob(126)] {
            assert_eq!(numbering.node(numbering.ino(node)), node);
        }
    }
}
