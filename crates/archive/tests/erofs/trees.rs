//! Trees to judge: generated ones, and one with a bit of everything.

use clip_archive::erofs::{self, WriteError};
use clip_archive::tree::{self, Attributes, TreeBuilder};
use clip_archive::{Segment, Xattr};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeMap;

/// Layers in a generated tree, and the bytes of each.
const LAYERS: usize = 3;
const LAYER_SIZE: u64 = 200_000;

/// A tree as simple as can be, to make [`tree::Tree`]s from and to compare their images with. Node 0 is the root.
#[derive(Debug, Clone)]
pub struct Tree {
    pub nodes: Vec<Node>,
    pub layer_tar_sizes: Vec<u64>,
}

#[derive(Debug, Clone)]
pub struct Node {
    pub kind: NodeKind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_nsec: u32,
    pub xattrs: Vec<Xattr>,
}

#[derive(Debug, Clone)]
pub enum NodeKind {
    Directory(BTreeMap<Vec<u8>, u32>),
    File {
        layer: u16,
        size: u64,
        segments: Vec<Segment>,
    },
    Symlink(Vec<u8>),
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

/// The EROFS image of a tree.
pub fn write(tree: &Tree) -> Result<Vec<u8>, WriteError> {
    erofs::write(&tree.build())
}

impl Tree {
    /// The same tree as the library has it. Nodes without a name are left out, the others numbered anew.
    fn build(&self) -> tree::Tree {
        let root = &self.nodes[0];
        let mut builder = TreeBuilder::new(root.attributes());
        builder.describe(0, root.attributes(), &root.xattrs);
        let mut new_ids = BTreeMap::from([(0, 0)]);
        let mut pending = vec![0];
        while let Some(directory) = pending.pop() {
            let NodeKind::Directory(children) = &self.nodes[directory as usize].kind else {
                continue;
            };
            for (name, &child) in children {
                if let Some(&known) = new_ids.get(&child) {
                    builder.link(new_ids[&directory], name, known);
                    continue;
                }
                let node = self.nodes[child as usize].borrowed();
                let id = builder.add(new_ids[&directory], name, &node);
                new_ids.insert(child, id);
                pending.push(child);
            }
        }
        builder.finish(self.layer_tar_sizes.clone())
    }
}

impl Node {
    fn attributes(&self) -> Attributes {
        Attributes {
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            mtime_nsec: self.mtime_nsec,
        }
    }

    fn borrowed(&self) -> tree::Node<'_> {
        let kind = match &self.kind {
            NodeKind::Directory(_) => tree::NodeKind::Directory,
            NodeKind::File {
                layer,
                size,
                segments,
            } => tree::NodeKind::File {
                layer: *layer,
                size: *size,
                segments,
            },
            NodeKind::Symlink(target) => tree::NodeKind::Symlink(target),
            &NodeKind::CharDevice { major, minor } => tree::NodeKind::CharDevice { major, minor },
            &NodeKind::BlockDevice { major, minor } => tree::NodeKind::BlockDevice { major, minor },
            NodeKind::Fifo => tree::NodeKind::Fifo,
        };
        tree::Node {
            kind,
            attributes: self.attributes(),
            xattrs: &self.xattrs,
        }
    }
}

/// A node with ordinary attributes.
pub fn node(kind: NodeKind) -> Node {
    Node {
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 0,
        mtime_nsec: 0,
        xattrs: vec![],
    }
}

pub fn directory() -> Node {
    node(NodeKind::Directory(BTreeMap::new()))
}

/// A file whose bytes lie together.
pub fn file(layer: u16, size: u64, tar_offset: u64) -> Node {
    let segments = match size {
        0 => vec![],
        _ => vec![Segment {
            logical: 0,
            length: size,
            tar_offset,
        }],
    };
    node(NodeKind::File {
        layer,
        size,
        segments,
    })
}

pub fn xattr(name: &[u8], value: &[u8]) -> Xattr {
    Xattr {
        name: name.to_vec(),
        value: value.to_vec(),
    }
}

pub fn empty_tree(layer_tar_sizes: &[u64]) -> Tree {
    Tree {
        nodes: vec![directory()],
        layer_tar_sizes: layer_tar_sizes.to_vec(),
    }
}

/// Adds a node and returns its id.
pub fn add(tree: &mut Tree, parent: u32, name: &[u8], node: Node) -> u32 {
    let id = tree.nodes.len() as u32;
    tree.nodes.push(node);
    link(tree, parent, name, id);
    id
}

/// Gives a node one more name, unless the name is taken.
pub fn link(tree: &mut Tree, parent: u32, name: &[u8], id: u32) {
    if let NodeKind::Directory(children) = &mut tree.nodes[parent as usize].kind {
        children.entry(name.to_vec()).or_insert(id);
    }
}

/// A generated tree.
pub fn any_tree() -> impl Strategy<Value = Tree> {
    let entries = vec((any::<Index>(), any_name(), any_node()), 0..60);
    let links = vec((any::<Index>(), any::<Index>(), any_name()), 0..8);
    (any_directory(), entries, links).prop_map(|(root, entries, links)| {
        let mut tree = Tree {
            nodes: vec![root],
            layer_tar_sizes: vec![LAYER_SIZE; LAYERS],
        };
        let mut directories = vec![0];
        let mut others = vec![];
        for (parent, name, node) in entries {
            let kind_is_directory = matches!(node.kind, NodeKind::Directory(_));
            let id = add(&mut tree, *parent.get(&directories), &name, node);
            if kind_is_directory {
                &mut directories
            } else {
                &mut others
            }
            .push(id);
        }
        for (parent, target, name) in links {
            if !others.is_empty() {
                link(
                    &mut tree,
                    *parent.get(&directories),
                    &name,
                    *target.get(&others),
                );
            }
        }
        tree
    })
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop_oneof![
        6 => vec(b'a'..=b'e', 1..4),
        2 => vec(prop_oneof![Just(b'.'), Just(b'-'), Just(b'x')], 1..5),
        2 => vec(any::<u8>(), 1..40),
        1 => vec(any::<u8>(), 200..=255),
    ];
    bytes.prop_map(|mut name| {
        for byte in &mut name {
            *byte = if matches!(*byte, 0 | b'/') {
                b'_'
            } else {
                *byte
            };
        }
        if name == b"." || name == b".." {
            name.push(b'x');
        }
        name
    })
}

fn any_node() -> impl Strategy<Value = Node> {
    prop_oneof![
        6 => any_directory(),
        6 => with_attributes(any_file().boxed(), "user."),
        2 => with_attributes(any_sparse_file().boxed(), "user."),
        3 => with_attributes(any_symlink().boxed(), "trusted."),
        1 => with_attributes(any_special().boxed(), "security.clip-"),
    ]
}

fn any_directory() -> impl Strategy<Value = Node> {
    with_attributes(
        Just(NodeKind::Directory(BTreeMap::new())).boxed(),
        "trusted.",
    )
}

fn any_file() -> impl Strategy<Value = NodeKind> {
    (
        0..LAYERS as u16,
        prop_oneof![0..3000u64, 0..100_000u64],
        0..190u64,
    )
        .prop_map(|(layer, size, block)| {
            file(layer, size.min(LAYER_SIZE - block * 512), block * 512).kind
        })
}

fn any_sparse_file() -> impl Strategy<Value = NodeKind> {
    let unit = prop_oneof![Just(512u64), Just(4096u64)];
    let runs = vec((0..20u64, 0..5u64, 0..200u64), 0..5);
    (0..LAYERS as u16, unit, runs, 0..2000u64, 0..10_000u64).prop_map(
        |(layer, unit, runs, last, hole)| {
            let (mut size, mut segments) = (0, vec![]);
            for (hole, data, block) in runs {
                let logical = size + hole * unit;
                segments.push(Segment {
                    logical,
                    length: data * unit,
                    tar_offset: block * 512,
                });
                size = logical + data * unit;
            }
            segments.push(Segment {
                logical: size,
                length: last,
                tar_offset: 1024,
            });
            // Either data reaches the file's very end, or the file ends in a hole.
            size = if last % 512 == 0 {
                size + last + hole
            } else {
                size + last
            };
            NodeKind::File {
                layer,
                size,
                segments,
            }
        },
    )
}

fn any_symlink() -> impl Strategy<Value = NodeKind> {
    let bytes =
        prop_oneof![4 => vec(1u8.., 1..80), 2 => vec(1u8.., 400..600), 1 => vec(1u8.., 4095)];
    bytes.prop_map(NodeKind::Symlink)
}

fn any_special() -> impl Strategy<Value = NodeKind> {
    let number = || (1..1u32 << 12, 0..1u32 << 20);
    prop_oneof![
        number().prop_map(|(major, minor)| NodeKind::CharDevice { major, minor }),
        number().prop_map(|(major, minor)| NodeKind::BlockDevice { major, minor }),
        Just(NodeKind::Fifo),
    ]
}

fn with_attributes(
    kind: BoxedStrategy<NodeKind>,
    namespace: &'static str,
) -> impl Strategy<Value = Node> {
    let id = || prop_oneof![Just(0u32), 0..u32::MAX];
    let mtime = prop_oneof![0..2_000_000_000i64, -10_000_000_000i64..10_000_000_000];
    let name = vec(prop_oneof![b'a'..=b'c'], 1..6);
    let value = prop_oneof![6 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), 300..3000)];
    let xattrs = prop_oneof![
        3 => Just(BTreeMap::new()),
        1 => proptest::collection::btree_map(name, value, 0..4),
    ];
    let attributes = (
        kind,
        0u16..0o10000,
        (id(), id()),
        mtime,
        0u32..1_000_000_000,
        xattrs,
    );
    attributes.prop_map(move |(kind, mode, (uid, gid), mtime, mtime_nsec, xattrs)| {
        let xattrs = xattrs
            .iter()
            .map(|(name, value)| xattr(&[namespace.as_bytes(), name].concat(), value));
        Node {
            kind,
            mode,
            uid,
            gid,
            mtime,
            mtime_nsec,
            xattrs: xattrs.collect(),
        }
    })
}

/// A tree with everything that real images were seen to hold, and every limit that the kernel
/// lets us reach: a layer over 4 GiB, a large directory, long names and targets, ACLs, capabilities.
pub fn everything() -> Tree {
    let mut tree = empty_tree(&[1 << 20, 6 << 30, 512]);
    tree.nodes[0].mode = 0o755;
    let bin = add(
        &mut tree,
        0,
        b"bin",
        Node {
            mode: 0o1777,
            ..directory()
        },
    );
    let mut tool = Node {
        mode: 0o4755,
        uid: 70_000,
        gid: u32::MAX - 1,
        ..file(0, 600_000, 512)
    };
    tool.xattrs = vec![
        xattr(
            b"security.capability",
            b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ),
        xattr(b"system.posix_acl_access", &acl()),
        xattr(b"user.note", b"\xff\0binary"),
    ];
    let tool = add(&mut tree, bin, b"tool", tool);
    link(&mut tree, 0, b"same-tool", tool);
    link(&mut tree, bin, b"\xff\xfe not utf-8", tool);
    add(&mut tree, bin, b"huge", file(1, 5 << 30, 1024));
    add(&mut tree, bin, b"last-block", file(2, 1, 0));
    add(&mut tree, bin, b"empty", file(0, 0, 0));
    add(
        &mut tree,
        bin,
        b"past",
        Node {
            mtime: -1,
            mtime_nsec: 999_999_999,
            ..file(0, 512, 0)
        },
    );
    add(
        &mut tree,
        bin,
        b"future",
        Node {
            mtime: 1 << 35,
            mtime_nsec: 1,
            ..file(0, 513, 512)
        },
    );
    add(
        &mut tree,
        bin,
        b"hole",
        node(NodeKind::File {
            layer: 0,
            size: 1 << 33,
            segments: vec![],
        }),
    );
    add(&mut tree, bin, &[b'n'; 255], file(0, 10, 512));
    for length in [1, 59, 60, 447, 448, 449, 511, 512, 513, 1024, 4095] {
        let name = format!("link-{length}");
        add(
            &mut tree,
            bin,
            name.as_bytes(),
            node(NodeKind::Symlink(vec![b't'; length])),
        );
    }
    let mut attributed = Node {
        mode: 0o2750,
        ..directory()
    };
    attributed.xattrs = vec![
        xattr(b"system.posix_acl_default", &acl()),
        xattr(b"trusted.overlay.opaque", b"y"),
        xattr(b"user.large", &[7; 60_000]),
    ];
    let attributed = add(&mut tree, 0, b"attributed", attributed);
    add(&mut tree, attributed, b"inside", node(NodeKind::Fifo));
    add(
        &mut tree,
        attributed,
        b"null",
        node(NodeKind::CharDevice { major: 1, minor: 3 }),
    );
    add(
        &mut tree,
        attributed,
        b"disk",
        node(NodeKind::BlockDevice {
            major: 259,
            minor: 70_000,
        }),
    );
    add(&mut tree, 0, b"no-entries", directory());
    let crowded = add(&mut tree, 0, b"crowded", directory());
    for i in 0..20_000 {
        add(
            &mut tree,
            crowded,
            format!("entry-{i}").as_bytes(),
            file(0, i % 7 * 100, 512),
        );
    }
    let mut deep = 0;
    for _ in 0..200 {
        deep = add(&mut tree, deep, b"d", directory());
    }
    tree
}

/// A valid POSIX ACL (version 2): owner, one named user, group, mask, others.
fn acl() -> Vec<u8> {
    let entries = [
        (1u16, 7u16, u32::MAX),
        (2, 5, 1000),
        (4, 5, u32::MAX),
        (16, 5, u32::MAX),
        (32, 5, u32::MAX),
    ];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}
