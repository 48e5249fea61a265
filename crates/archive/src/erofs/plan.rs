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
use std::ops::Range;

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
    /// The image in pieces, in the order of the nodes.
    pub pieces: Vec<Piece>,
    /// Position of the data area.
    pub data_at: usize,
    /// Bytes of the whole image.
    pub len: usize,
    /// Whether any node has extended attributes.
    pub has_xattrs: bool,
}

/// Neighbours in the order of the nodes, which are written together: two runs of the image's bytes. The first piece
/// has what lies before all inodes, too, and the last one the padding of both areas.
#[derive(Debug, Clone, Default)]
pub(super) struct Piece {
    /// In [`Plan::order`].
    pub nodes: Range<usize>,
    /// Their inodes, as positions in the image.
    pub inodes: Range<usize>,
    /// Their blocks within the data area.
    pub blocks: Range<usize>,
}

/// What a piece has of either area, at least: little enough to stay in a processor's cache until it is written, large
/// enough that joining the pieces' checksums, 40 µs each, takes no time to speak of.
const PIECE_BYTES: usize = 1 << 20;

impl Plan {
    /// Plans an image of `tree`.
    pub fn new(tree: &Tree) -> Result<Self, WriteError> {
        check_layers(tree.layer_tar_sizes())?;
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
            spots: vec![nowhere; tree.node_count()],
            order: Vec::with_capacity(tree.node_count()),
            cursor: DEVICE_TABLE_AT + tree.layer_tar_sizes().len() * DEVICE_SLOT_LEN,
            data_blocks: 0,
            chunks: 0,
            pieces: Vec::new(),
            has_xattrs: false,
        };
        planner.walk()?;
        let data_at = round_up(planner.cursor, BLOCK);
        // Whole pages: what lies behind the end of a backing file is nobody's business.
        let len = round_up(data_at + planner.data_blocks * BLOCK, 4096);
        u32::try_from(len / BLOCK).map_err(|_| WriteError::ImageTooLarge)?;
        planner.end_piece(data_at, (len - data_at) / BLOCK);
        Ok(Self {
            spots: planner.spots,
            order: planner.order,
            pieces: planner.pieces,
            data_at,
            len,
            has_xattrs: planner.has_xattrs,
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
    pieces: Vec<Piece>,
    has_xattrs: bool,
}

impl Planner<'_> {
    fn walk(&mut self) -> Result<(), WriteError> {
        const ROOT: NodeId = 0;
        self.place(ROOT, &self.tree.node(ROOT), ROOT)?;
        let mut pending = vec![ROOT];
        while let Some(directory) = pending.pop() {
            let mine = pending.len();
            for (name, child) in self.tree.children(directory) {
                if !is_valid_name(name) {
                    return Err(WriteError::InvalidName { directory });
                }
                let node = self.tree.node(child);
                let is_directory = node.kind == NodeKind::Directory;
                if self.spots[child as usize].at == 0 {
                    self.place(child, &node, directory)?;
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
    fn place(&mut self, id: NodeId, node: &Node<'_>, parent: NodeId) -> Result<(), WriteError> {
        if node.attributes.mtime_nsec >= 1_000_000_000 {
            return Err(WriteError::InvalidTime { node: id });
        }
        let xattrs_len =
            xattr::encoded_len(node.xattrs).ok_or(WriteError::XattrsTooLarge { node: id })?;
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
        match node.kind {
            NodeKind::Directory => {
                let mut packing = Packing::default();
                for (name, _) in entries(self.tree, id, parent) {
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
                spot.size = size;
                if size > 0 {
                    let map = self.chunk_map(id, layer, size, segments)?;
                    spot.layout = DataLayout::Chunks;
                    spot.chunk_bits = map.bits;
                    // Bounded by CHUNKS_MAX, so it fits.
                    end = round_up(end, CHUNK_INDEX_LEN) + map.count as usize * CHUNK_INDEX_LEN;
                }
            }
            NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
                if encode_device(major, minor).is_none() {
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
        self.has_xattrs |= xattrs_len > 0;
        self.spots[id as usize] = spot;
        self.order.push(id);
        let ended = self.pieces.last().cloned().unwrap_or_default();
        if self.cursor.saturating_sub(ended.inodes.end) >= PIECE_BYTES
            || self.data_blocks - ended.blocks.end >= PIECE_BYTES / BLOCK
        {
            // On the next inode's border, so that alignment within a piece is that within the image.
            self.end_piece(round_up(self.cursor, INODE_SLOT), self.data_blocks);
        }
        Ok(())
    }

    /// Makes a piece of the nodes behind the last one, whose areas end here.
    fn end_piece(&mut self, inodes_end: usize, blocks_end: usize) {
        let before = self.pieces.last().cloned().unwrap_or_default();
        self.pieces.push(Piece {
            nodes: before.nodes.end..self.order.len(),
            inodes: before.inodes.end..inodes_end,
            blocks: before.blocks.end..blocks_end,
        });
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
            .layer_tar_sizes()
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
pub(super) fn file_type(kind: &NodeKind<'_>) -> FileType {
    match kind {
        NodeKind::Directory => FileType::Directory,
        NodeKind::File { .. } => FileType::Regular,
        NodeKind::Symlink(_) => FileType::Symlink,
        NodeKind::CharDevice { .. } => FileType::CharDevice,
        NodeKind::BlockDevice { .. } => FileType::BlockDevice,
        NodeKind::Fifo => FileType::Fifo,
    }
}
