//! A merged tree as an EROFS image.

use super::chunk::ChunkMap;
use super::dir::{Packing, encode_block, entries};
use super::format::{
    BLOCK, CHUNK_INDEX_LEN, DEVICE_SLOT_LEN, DEVICE_TABLE_AT, DataLayout, INODE_LEN, INODE_SLOT,
    NO_XATTRS, RawInode, SOME_XATTRS, Superblock, chunk_format, content_uuid, encode_device, put,
    round_up,
};
use super::plan::{Plan, Spot, file_type};
use super::xattr;
use crate::tree::{Node, NodeId, NodeKind, Tree};
use std::collections::BTreeMap;

/// A tree that EROFS cannot express. Nodes are named by their index in [`Tree::nodes`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum WriteError {
    #[error("node 0 of the tree must be the root directory")]
    RootIsNotADirectory,
    #[error("directory {directory} names node {node}, which does not exist")]
    NoSuchNode { directory: NodeId, node: NodeId },
    #[error("directory {node} has two names: only files can be hard-linked")]
    DirectoryHasTwoNames { node: NodeId },
    #[error(
        "directory {directory} has an entry whose name is empty, reserved, over 255 bytes, or holds '/' or NUL"
    )]
    InvalidName { directory: NodeId },
    #[error("symbolic link {node} has a target that is empty, over 4095 bytes, or holds NUL")]
    InvalidTarget { node: NodeId },
    #[error("node {node} has a modification time with 10⁹ or more nanoseconds")]
    InvalidTime { node: NodeId },
    #[error("device {node} has the number {major}:{minor}; Linux allows up to 4095:1048575")]
    InvalidDevice {
        node: NodeId,
        major: u32,
        minor: u32,
    },
    #[error("node {node} has extended attributes over 64 KiB each or 256 KiB in all")]
    XattrsTooLarge { node: NodeId },
    #[error("file {node} lies in layer {layer}, which does not exist")]
    NoSuchLayer { node: NodeId, layer: u16 },
    #[error("file {node} has {size} bytes; Linux allows up to 2⁶³ - 1")]
    FileTooLarge { node: NodeId, size: u64 },
    #[error("file {node} has segments that overlap, or reach beyond the file or its layer")]
    InvalidSegments { node: NodeId },
    #[error(
        "sparse file {node} has data that does not lie on 512-byte borders \
         ({length} bytes at {logical}, at {tar_offset} in the tar): store it without holes"
    )]
    UnalignedSegment {
        node: NodeId,
        logical: u64,
        length: u64,
        tar_offset: u64,
    },
    #[error("sparse file {node} has too many small holes for its size: store it without holes")]
    TooFragmented { node: NodeId },
    #[error(
        "the image has {layers} layers; at most {} are supported",
        crate::limits::LAYERS_MAX
    )]
    TooManyLayers { layers: usize },
    #[error(
        "layer {layer} has {size} bytes; at most {} are supported",
        crate::limits::TAR_BYTES_MAX
    )]
    LayerTooLarge { layer: usize, size: u64 },
    #[error("the tree's metadata takes more than 2 TiB")]
    ImageTooLarge,
}

/// Writes `tree` as an EROFS image. The same tree always gives the same bytes.
///
/// Nodes that no directory names are left out, and so are extended attributes that no Linux file
/// system can hold. Time and memory are proportional to the tree (and to its sparse files' chunks).
pub fn write(tree: &Tree) -> Result<Vec<u8>, WriteError> {
    let plan = Plan::new(tree)?;
    let mut writer = Writer {
        tree,
        plan: &plan,
        image: vec![0; plan.len],
    };
    for (slot, &size) in tree.layer_tar_sizes.iter().enumerate() {
        let blocks = size.div_ceil(BLOCK as u64) as u32; // the plan has checked it
        put(
            &mut writer.image,
            DEVICE_TABLE_AT + slot * DEVICE_SLOT_LEN + 64,
            &blocks.to_le_bytes(),
        );
    }
    for (number, &id) in (1..).zip(&plan.order) {
        writer.node(id, number);
    }
    writer.superblock();
    Ok(writer.image)
}

struct Writer<'a> {
    tree: &'a Tree,
    plan: &'a Plan,
    image: Vec<u8>,
}

impl Writer<'_> {
    fn superblock(&mut self) {
        let plan = self.plan;
        let has_xattrs = plan
            .order
            .iter()
            .any(|&id| plan.spots[id as usize].xattrs_len > 0);
        Superblock {
            // The root comes first, behind at most 4096 device slots: its number has 16 bits.
            root_nid: plan.spots[0].nid().0 as u16,
            inodes: plan.order.len() as u64,
            blocks: (plan.len / BLOCK) as u32,
            meta_block: 0,
            uuid: content_uuid(&self.image),
            volume_name: if has_xattrs { SOME_XATTRS } else { NO_XATTRS },
            devices: self.tree.layer_tar_sizes.len() as u16,
            device_table_slot: (DEVICE_TABLE_AT / DEVICE_SLOT_LEN) as u16,
        }
        .encode(&mut self.image);
    }

    fn node(&mut self, id: NodeId, number: u32) {
        let node = &self.tree.nodes[id as usize];
        let spot = self.plan.spots[id as usize];
        let inode = RawInode {
            layout: spot.layout,
            xattr_units: xattr::units(spot.xattrs_len as usize),
            mode: (node.mode & 0o7777) | file_type(&node.kind).mode_bits(),
            size: spot.size,
            detail: self.detail(node, &spot),
            number,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            mtime_nsec: node.mtime_nsec,
            nlink: spot.nlink,
        };
        put(&mut self.image, spot.at, &inode.encode());
        let xattrs_at = spot.at + INODE_LEN;
        let data_at = xattrs_at + spot.xattrs_len as usize;
        if spot.xattrs_len > 0 {
            xattr::encode(&mut self.image[xattrs_at..data_at], &node.xattrs);
        }
        match &node.kind {
            NodeKind::Directory(children) => self.directory(id, &spot, children, data_at),
            NodeKind::Symlink(target) => {
                let at = match spot.layout {
                    DataLayout::Inline => data_at,
                    _ => self.block_at(&spot),
                };
                put(&mut self.image, at, target);
            }
            NodeKind::File {
                layer,
                size,
                segments,
            } => {
                let (bits, at) = (spot.chunk_bits, round_up(data_at, CHUNK_INDEX_LEN));
                let map = ChunkMap {
                    bits,
                    count: size.div_ceil((BLOCK as u64) << bits),
                };
                let end = at + map.count as usize * CHUNK_INDEX_LEN;
                map.encode(&mut self.image[at..end], segments, layer + 1);
            }
            NodeKind::CharDevice { .. } | NodeKind::BlockDevice { .. } | NodeKind::Fifo => {}
        }
    }

    /// The inode's `i_u`.
    fn detail(&self, node: &Node, spot: &Spot) -> u32 {
        match (&node.kind, spot.layout) {
            (NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor }, _) => {
                encode_device(*major, *minor).unwrap_or_default() // the plan has checked it
            }
            (_, DataLayout::Chunks) => chunk_format(spot.chunk_bits),
            (NodeKind::Directory(_) | NodeKind::Symlink(_), _) => {
                (self.block_at(spot) / BLOCK) as u32
            }
            _ => 0,
        }
    }

    /// Position of the node's first block in the data area.
    fn block_at(&self, spot: &Spot) -> usize {
        self.plan.data_at + spot.first_block as usize * BLOCK
    }

    fn directory(
        &mut self,
        id: NodeId,
        spot: &Spot,
        children: &BTreeMap<Vec<u8>, NodeId>,
        inline_at: usize,
    ) {
        let first = self.block_at(spot);
        let mut next_block = 0;
        let mut write_block = |image: &mut [u8], entries: &[_]| {
            let is_tail = (next_block + 1) * BLOCK > spot.size as usize;
            let at = match spot.layout {
                DataLayout::Inline if is_tail => inline_at,
                _ => first + next_block * BLOCK,
            };
            encode_block(&mut image[at..], entries);
            next_block += 1;
        };
        let mut packing = Packing::default();
        let mut block = Vec::with_capacity(BLOCK / 13);
        for (name, node) in entries(children, id, spot.parent) {
            if packing.add(name) {
                write_block(&mut self.image, &block);
                block.clear();
            }
            let kind = file_type(&self.tree.nodes[node as usize].kind);
            block.push((name, self.plan.spots[node as usize].nid(), kind));
        }
        write_block(&mut self.image, &block);
    }
}

const _: () = assert!(
    (DEVICE_TABLE_AT + crate::limits::LAYERS_MAX * DEVICE_SLOT_LEN) / INODE_SLOT
        < u16::MAX as usize
);
