//! First pass of the writer: where every inode goes.
//!
//! Inodes stand in the order in which a walk meets them, a directory's children together. The
//! kernel wants inline data within one block, so a directory's or link's inode moves to the next
//! border if that keeps it together with its tail, and otherwise has its data in the data area.

use super::chunk::{ChunkError, ChunkMap};
use super::dir::{Packing, entries};
use super::format::{
    BLOCK, CHUNK_INDEX_LEN, DEVICE_SLOT_LEN, DEVICE_TABLE_AT, DataLayout, INODE_LEN, INODE_SLOT,
    NAME_MAX, encode_device, round_up,
};
use super::{FileType, Nid, WriteError, xattr};
use crate::limits::{LAYERS_MAX, TAR_BYTES_MAX, TARGET_BYTES_MAX};
use crate::tree::{Node, NodeId, NodeKind, Tree};

/// Chunk indexes in one image: 64 MiB of them. Only sparse files have more than one, and a file
/// that is full of small holes could otherwise outgrow any memory.
const CHUNKS_MAX: u64 = 1 << 23;

/// Where one node goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    /// Position of the inode in the image; 0 for a node that no directory names.
    pub at: usize,
    /// `i_size`.
    pub size: u64,
    pub nlink: u32,
    /// The directory that names this one.
    pub parent: NodeId,
    /// First block of its data within the data area.
    pub first_block: u32,
    /// Bytes of its extended attributes.
    pub xattrs_len: u32,
    pub layout: DataLayout,
    /// Size of its chunks.
    pub chunk_bits: u8,
}

impl Spot {
    pub fn nid(&self) -> Nid {
        Nid((self.at / INODE_SLOT) as u64)
    }
}

/// Where everything goes.
#[derive(Debug)]
pub(super) struct Plan {
    /// The spot of each of the tree's nodes.
    pub spots: Vec<Spot>,
    /// The nodes in the order of their spots; the root is first.
    pub order: Vec<NodeId>,
    /// Position of the data area.
    pub data_at: usize,
    /// Bytes of the whole image.
    pub len: usize,
}

impl Plan {
    /// Plans an image of `tree`.
    pub fn new(tree: &Tree) -> Result<Self, WriteError> {
        check_layers(&tree.layer_tar_sizes)?;
        let nowhere = Spot {
            at: 0,
            size: 0,
            nlink: 0,
            parent: 0,
            first_block: 0,
            xattrs_len: 0,
            layout: DataLayout::Plain,
            chunk_bits: 0,
        };
        let mut planner = Planner {
            tree,
            spots: vec![nowhere; tree.nodes.len()],
            order: Vec::with_capacity(tree.nodes.len()),
            cursor: DEVICE_TABLE_AT + tree.layer_tar_sizes.len() * DEVICE_SLOT_LEN,
            data_blocks: 0,
            chunks: 0,
        };
        planner.walk()?;
        let data_at = round_up(planner.cursor, BLOCK);
        // Whole pages: what lies behind the end of a backing file is nobody's business.
        let len = round_up(data_at + planner.data_blocks * BLOCK, 4096);
        u32::try_from(len / BLOCK).map_err(|_| WriteError::ImageTooLarge)?;
        Ok(Self {
            spots: planner.spots,
            order: planner.order,
            data_at,
            len,
        })
    }
}

fn check_layers(sizes: &[u64]) -> Result<(), WriteError> {
    if sizes.len() > LAYERS_MAX {
        return Err(WriteError::TooManyLayers {
            layers: sizes.len(),
        });
    }
    match sizes.iter().position(|&size| size > TAR_BYTES_MAX) {
        Some(layer) => Err(WriteError::LayerTooLarge {
            layer,
            size: sizes[layer],
        }),
        None => Ok(()),
    }
}

struct Planner<'a> {
    tree: &'a Tree,
    spots: Vec<Spot>,
    order: Vec<NodeId>,
    /// End of the last inode.
    cursor: usize,
    data_blocks: usize,
    chunks: u64,
}

impl<'a> Planner<'a> {
    fn walk(&mut self) -> Result<(), WriteError> {
        const ROOT: NodeId = 0;
        let root = self
            .tree
            .nodes
            .first()
            .ok_or(WriteError::RootIsNotADirectory)?;
        if !matches!(root.kind, NodeKind::Directory(_)) {
            return Err(WriteError::RootIsNotADirectory);
        }
        self.place(ROOT, root, ROOT)?;
        let mut pending = vec![ROOT];
        while let Some(directory) = pending.pop() {
            let tree = self.tree;
            let NodeKind::Directory(children) = &tree.nodes[directory as usize].kind else {
                continue;
            };
            let mine = pending.len();
            for (name, &child) in children {
                if !is_valid_name(name) {
                    return Err(WriteError::InvalidName { directory });
                }
                let node = tree.nodes.get(child as usize);
                let node = node.ok_or(WriteError::NoSuchNode {
                    directory,
                    node: child,
                })?;
                let is_directory = matches!(node.kind, NodeKind::Directory(_));
                if self.spots[child as usize].at == 0 {
                    self.place(child, node, directory)?;
                } else if is_directory {
                    return Err(WriteError::DirectoryHasTwoNames { node: child });
                } else {
                    self.spots[child as usize].nlink += 1;
                }
                if is_directory {
                    self.spots[directory as usize].nlink += 1;
                    pending.push(child);
                }
            }
            pending[mine..].reverse(); // so that the walk follows the names' order
        }
        Ok(())
    }

    /// Gives `node` the next spot.
    fn place(&mut self, id: NodeId, node: &Node, parent: NodeId) -> Result<(), WriteError> {
        if node.mtime_nsec >= 1_000_000_000 {
            return Err(WriteError::InvalidTime { node: id });
        }
        let xattrs_len =
            xattr::encoded_len(&node.xattrs).ok_or(WriteError::XattrsTooLarge { node: id })?;
        let start = round_up(self.cursor, INODE_SLOT);
        let header = INODE_LEN + xattrs_len;
        let mut spot = Spot {
            at: start,
            size: 0,
            nlink: 1,
            parent,
            first_block: 0,
            xattrs_len: xattrs_len as u32,
            layout: DataLayout::Plain,
            chunk_bits: 0,
        };
        let mut end = start + header;
        match &node.kind {
            NodeKind::Directory(children) => {
                let mut packing = Packing::default();
                for (name, _) in entries(children, id, parent) {
                    packing.add(name);
                }
                spot.nlink = 2;
                end = self.place_data(&mut spot, header, packing.size(), true);
            }
            NodeKind::Symlink(target) => {
                if !(1..=TARGET_BYTES_MAX).contains(&target.len()) || target.contains(&0) {
                    return Err(WriteError::InvalidTarget { node: id });
                }
                end = self.place_data(&mut spot, header, target.len(), false);
            }
            NodeKind::File {
                layer,
                size,
                segments,
            } => {
                spot.size = *size;
                if *size > 0 {
                    let map = self.chunk_map(id, *layer, *size, segments)?;
                    spot.layout = DataLayout::Chunks;
                    spot.chunk_bits = map.bits;
                    // Bounded by CHUNKS_MAX, so it fits.
                    end = round_up(end, CHUNK_INDEX_LEN) + map.count as usize * CHUNK_INDEX_LEN;
                }
            }
            NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
                if encode_device(*major, *minor).is_none() {
                    let (major, minor) = (*major, *minor);
                    return Err(WriteError::InvalidDevice {
                        node: id,
                        major,
                        minor,
                    });
                }
            }
            NodeKind::Fifo => {}
        }
        self.cursor = end;
        self.spots[id as usize] = spot;
        self.order.push(id);
        Ok(())
    }

    /// Decides where `size` bytes of a directory or link go, and returns where the inode ends.
    /// Only what `may_split` has its last part inline and the rest in the data area.
    fn place_data(
        &mut self,
        spot: &mut Spot,
        header: usize,
        size: usize,
        may_split: bool,
    ) -> usize {
        let (full_blocks, tail) = (size / BLOCK, size % BLOCK);
        let together = header + tail;
        let inline = tail > 0 && together <= BLOCK && (may_split || full_blocks == 0);
        let blocks = if inline {
            full_blocks
        } else {
            size.div_ceil(BLOCK)
        };
        spot.size = size as u64;
        spot.first_block = self.data_blocks as u32;
        self.data_blocks += blocks;
        if !inline {
            return spot.at + header;
        }
        if spot.at % BLOCK + together > BLOCK {
            spot.at = round_up(spot.at, BLOCK);
        }
        spot.layout = DataLayout::Inline;
        spot.at + together
    }

    fn chunk_map(
        &mut self,
        node: NodeId,
        layer: u16,
        size: u64,
        segments: &[crate::Segment],
    ) -> Result<ChunkMap, WriteError> {
        let tar_size = *self
            .tree
            .layer_tar_sizes
            .get(usize::from(layer))
            .ok_or(WriteError::NoSuchLayer { node, layer })?;
        if size > i64::MAX as u64 {
            return Err(WriteError::FileTooLarge { node, size });
        }
        let map = ChunkMap::new(size, segments, tar_size).map_err(|error| match error {
            ChunkError::Invalid => WriteError::InvalidSegments { node },
            ChunkError::Unaligned(segment) => WriteError::UnalignedSegment {
                node,
                logical: segment.logical,
                length: segment.length,
                tar_offset: segment.tar_offset,
            },
        })?;
        self.chunks = self.chunks.saturating_add(map.count);
        if self.chunks > CHUNKS_MAX {
            return Err(WriteError::TooFragmented { node });
        }
        Ok(map)
    }
}

fn is_valid_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|&byte| byte == b'/' || byte == 0)
}

/// The type of a node.
pub(super) fn file_type(kind: &NodeKind) -> FileType {
    match kind {
        NodeKind::Directory(_) => FileType::Directory,
        NodeKind::File { .. } => FileType::Regular,
        NodeKind::Symlink(_) => FileType::Symlink,
        NodeKind::CharDevice { .. } => FileType::CharDevice,
        NodeKind::BlockDevice { .. } => FileType::BlockDevice,
        NodeKind::Fifo => FileType::Fifo,
    }
}
