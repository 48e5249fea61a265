//! A merged tree as an EROFS image.

use super::chunk::ChunkMap;
use super::dir::{Packing, encode_block, entries};
use super::format::{
    BLOCK, CHUNK_INDEX_LEN, DEVICE_SLOT_LEN, DEVICE_TABLE_AT, DataLayout, INODE_LEN, INODE_SLOT,
    NO_XATTRS, RawInode, SOME_XATTRS, SUPERBLOCK_AT, Sum, Superblock, chunk_format, encode_device,
    put, round_up, summed_uuid, sums,
};
use super::plan::{Piece, Plan, Spot, file_type};
use super::xattr;
use crate::tree::{Node, NodeId, NodeKind, Tree};
use std::convert::Infallible;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// A tree that EROFS cannot express. Nodes are named by their numbers, see [`Tree::node`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum WriteError {
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
    let writer = ImageWriter::new(tree)?;
    let image = Mutex::new(vec![0; writer.plan.len]);
    let written = writer.write_at(|at, bytes| {
        let mut image = image.lock().unwrap_or_else(PoisonError::into_inner);
        put(&mut image, at as usize, bytes);
        Ok::<_, Infallible>(())
    });
    match written {
        Ok(()) => Ok(image.into_inner().unwrap_or_else(PoisonError::into_inner)),
        Err(never) => match never {},
    }
}

/// A tree of which is known that it can be written as an EROFS image, and where everything goes.
#[derive(Debug)]
pub struct ImageWriter<'a> {
    tree: &'a Tree,
    plan: Plan,
}

/// What is known of pieces that were written.
#[derive(Debug, Default)]
struct Written {
    sums: Vec<Sum>,
    /// The superblock's block, once the first piece was written; the superblock is still to come.
    first_block: Option<[u8; BLOCK]>,
}

/// Below this many pieces a second thread is not worth its start.
const PIECES_ALONE: usize = 4;

impl<'a> ImageWriter<'a> {
    /// Plans an image of `tree`, or says why there is none.
    pub fn new(tree: &'a Tree) -> Result<Self, WriteError> {
        Ok(Self {
            tree,
            plan: Plan::new(tree)?,
        })
    }

    /// Writes the image piece by piece, with two threads if it is large. `put` gets each byte of it once and its position;
    /// then, again, those of the superblock, which sums up all others.
    pub fn write_at<E: Send>(
        &self,
        put: impl Fn(u64, &[u8]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let next = AtomicUsize::new(0);
        let work = || self.write_pieces(&next, &put);
        let mut written = match self.plan.pieces.len() {
            0..PIECES_ALONE => work()?,
            _ => thread::scope(|scope| {
                let aside = scope.spawn(work);
                let here = work();
                let aside = aside.join().unwrap_or_else(|panic| resume_unwind(panic))?;
                Ok(here?.and(aside))
            })?,
        };
        let mut block = written.first_block.take().unwrap_or([0; BLOCK]);
        self.superblock(written.sums).encode(&mut block);
        put(SUPERBLOCK_AT as u64, &block)
    }

    /// Writes the pieces from `next` on that nobody else takes.
    fn write_pieces<E>(
        &self,
        next: &AtomicUsize,
        put: &impl Fn(u64, &[u8]) -> Result<(), E>,
    ) -> Result<Written, E> {
        let mut written = Written::default();
        let (mut inodes, mut blocks) = (Vec::new(), Vec::new());
        while let Some(piece) = self.plan.pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            self.encode(piece, &mut inodes, &mut blocks);
            if piece.inodes.start == 0 {
                written.first_block = inodes[SUPERBLOCK_AT..].first_chunk().copied();
            }
            let blocks_at = self.plan.data_at + piece.blocks.start * BLOCK;
            for (at, bytes) in [(piece.inodes.start, &inodes), (blocks_at, &blocks)] {
                written.sums.extend(sums(self.plan.len, at, bytes));
                if !bytes.is_empty() {
                    put(at as u64, bytes)?;
                }
            }
        }
        Ok(written)
    }

    fn encode(&self, piece: &Piece, inodes: &mut Vec<u8>, blocks: &mut Vec<u8>) {
        for (area, len) in [
            (&mut *inodes, piece.inodes.len()),
            (&mut *blocks, piece.blocks.len() * BLOCK),
        ] {
            area.clear();
            area.resize(len, 0);
        }
        let mut writer = PieceWriter {
            tree: self.tree,
            plan: &self.plan,
            piece,
            inodes,
            blocks,
        };
        if piece.inodes.start == 0 {
            writer.devices();
        }
        for at in piece.nodes.clone() {
            writer.node(self.plan.order[at], at as u32 + 1);
        }
    }

    fn superblock(&self, sums: Vec<Sum>) -> Superblock {
        let plan = &self.plan;
        Superblock {
            // The root comes first, behind at most 4096 device slots: its number has 16 bits.
            root_nid: plan.spots[0].nid().0 as u16,
            inodes: plan.order.len() as u64,
            blocks: (plan.len / BLOCK) as u32,
            meta_block: 0,
            uuid: summed_uuid(plan.len, sums),
            volume_name: match plan.has_xattrs {
                true => SOME_XATTRS,
                false => NO_XATTRS,
            },
            devices: self.tree.layer_tar_sizes().len() as u16,
            device_table_slot: (DEVICE_TABLE_AT / DEVICE_SLOT_LEN) as u16,
        }
    }
}

impl Written {
    /// What both know.
    fn and(mut self, other: Self) -> Self {
        self.sums.extend(other.sums);
        self.first_block = self.first_block.or(other.first_block);
        self
    }
}

/// Encodes the nodes of a piece. Positions are those in the image.
struct PieceWriter<'a> {
    tree: &'a Tree,
    plan: &'a Plan,
    piece: &'a Piece,
    inodes: &'a mut [u8],
    blocks: &'a mut [u8],
}

impl PieceWriter<'_> {
    fn devices(&mut self) {
        for (slot, &size) in self.tree.layer_tar_sizes().iter().enumerate() {
            let blocks = size.div_ceil(BLOCK as u64) as u32; // the plan has checked it
            let at = DEVICE_TABLE_AT + slot * DEVICE_SLOT_LEN + 64;
            put(self.inodes, at, &blocks.to_le_bytes());
        }
    }

    fn node(&mut self, id: NodeId, number: u32) {
        let node = self.tree.node(id);
        let spot = self.plan.spots[id as usize];
        let attributes = node.attributes;
        let inode = RawInode {
            layout: spot.layout,
            xattr_units: xattr::units(spot.xattrs_len as usize),
            mode: (attributes.mode & 0o7777) | file_type(&node.kind).mode_bits(),
            size: spot.size,
            detail: self.detail(&node, &spot),
            number,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: attributes.mtime,
            mtime_nsec: attributes.mtime_nsec,
            nlink: spot.nlink,
        };
        let at = spot.at - self.piece.inodes.start;
        put(self.inodes, at, &inode.encode());
        let xattrs_at = at + INODE_LEN;
        let data_at = xattrs_at + spot.xattrs_len as usize;
        if spot.xattrs_len > 0 {
            xattr::encode(&mut self.inodes[xattrs_at..data_at], node.xattrs);
        }
        match node.kind {
            NodeKind::Directory => self.directory(id, &spot, data_at),
            NodeKind::Symlink(target) => match spot.layout {
                DataLayout::Inline => put(self.inodes, data_at, target),
                _ => put(self.blocks, self.block_at(&spot), target),
            },
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
                map.encode(&mut self.inodes[at..end], segments, layer + 1);
            }
            NodeKind::CharDevice { .. } | NodeKind::BlockDevice { .. } | NodeKind::Fifo => {}
        }
    }

    /// The inode's `i_u`.
    fn detail(&self, node: &Node<'_>, spot: &Spot) -> u32 {
        match (&node.kind, spot.layout) {
            (NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor }, _) => {
                encode_device(*major, *minor).unwrap_or_default() // the plan has checked it
            }
            (_, DataLayout::Chunks) => chunk_format(spot.chunk_bits),
            (NodeKind::Directory | NodeKind::Symlink(_), _) => {
                (self.plan.data_at / BLOCK) as u32 + spot.first_block
            }
            _ => 0,
        }
    }

    /// Position of the node's first block among those of the piece.
    fn block_at(&self, spot: &Spot) -> usize {
        (spot.first_block as usize - self.piece.blocks.start) * BLOCK
    }

    fn directory(&mut self, id: NodeId, spot: &Spot, inline_at: usize) {
        let mut next_block = self.block_at(spot);
        let mut left = spot.size as usize;
        let mut write_block = |entries: &[_]| {
            match spot.layout {
                DataLayout::Inline if left < BLOCK => {
                    encode_block(&mut self.inodes[inline_at..], entries);
                }
                _ => encode_block(&mut self.blocks[next_block..], entries),
            }
            next_block += BLOCK;
            left = left.saturating_sub(BLOCK);
        };
        let mut packing = Packing::default();
        let mut block = Vec::with_capacity(BLOCK / 13);
        for (name, node) in entries(self.tree, id, spot.parent) {
            if packing.add(name) {
                write_block(&block);
                block.clear();
            }
            let kind = file_type(&self.tree.node(node).kind);
            block.push((name, self.plan.spots[node as usize].nid(), kind));
        }
        write_block(&block);
    }
}

const _: () = assert!(
    (DEVICE_TABLE_AT + crate::limits::LAYERS_MAX * DEVICE_SLOT_LEN) / INODE_SLOT
        < u16::MAX as usize
);
