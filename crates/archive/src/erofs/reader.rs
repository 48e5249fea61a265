//! Reading an image without copying or allocating.
//!
//! An image may be damaged or hostile: every position is checked before use, work is bounded by the
//! image's length, and a wrong byte gives a [`ReadError`], never a panic.

use super::chunk::Extents;
use super::dir::{DirData, ReadDir};
use super::format::{
    BLOCK, BLOCK_BITS, CHUNK_INDEX_LEN, DEVICE_SLOT_LEN, DataLayout, INODE_LEN, INODE_SLOT,
    NO_XATTRS, RawInode, SUPERBLOCK_AT, Superblock, SuperblockError, chunk_bits, content_uuid,
    decode_device, round_up, u32_at,
};
use super::xattr::{XattrEntry, Xattrs, len_of_units};
use super::{FileType, Nid};
use std::fmt;
use std::ops::Range;

/// Why an image, or a node of it, cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The bytes are not an EROFS image.
    #[error("not an EROFS image")]
    NotErofs,
    /// The superblock, the device table, or the content as a whole was altered.
    #[error("the EROFS image is damaged ({0}): delete it, it will be written anew")]
    Damaged(&'static str),
    /// The image is sound EROFS, but not of the form that [`write()`](super::write()) makes.
    #[error("the EROFS image is not in tar-index form with 512-byte blocks ({0})")]
    Unsupported(&'static str),
    /// A node contradicts the format.
    #[error("node {} of the EROFS image is damaged: {what}", nid.0)]
    Corrupt {
        /// The node.
        nid: Nid,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The node is not a directory (`ENOTDIR`).
    #[error("node {} is not a directory", .0.0)]
    NotADirectory(Nid),
    /// The node is not a symbolic link (`EINVAL`).
    #[error("node {} is not a symbolic link", .0.0)]
    NotASymlink(Nid),
    /// The node is not a regular file (`EISDIR` for a directory, otherwise `EINVAL`).
    #[error("node {} is not a regular file", .0.0)]
    NotAFile(Nid),
}

impl ReadError {
    pub(super) fn corrupt(nid: Nid, what: &'static str) -> Self {
        Self::Corrupt { nid, what }
    }
}

/// An EROFS image over `B`, for example a memory map.
pub struct Image<B> {
    bytes: B,
    root: Nid,
    inodes: u64,
    /// Where nids count from.
    meta_at: usize,
    device_table: Range<usize>,
    may_have_xattrs: bool,
    uuid: [u8; 16],
}

/// What `stat` tells, and where the rest of the node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// The node's identity.
    pub nid: Nid,
    /// Its type.
    pub kind: FileType,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes; of a symbolic link, its target's; of a directory, its entries'.
    pub size: u64,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds within the second.
    pub mtime_nsec: u32,
    /// Number of names; of a directory, 2 and its subdirectories.
    pub nlink: u32,
    /// Number of a device in Linux' `new_encode_dev` form, which FUSE wants, too; otherwise 0.
    pub rdev: u32,
    layout: DataLayout,
    /// `i_u`: first block or chunk format.
    detail: u32,
    xattrs_len: usize,
    /// Where the inode starts in the image.
    at: usize,
}

impl Inode {
    /// Major and minor number of a device.
    pub fn device(&self) -> (u32, u32) {
        decode_device(self.rdev)
    }

    /// Whether the node has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.xattrs_len > 0
    }

    /// Where the extended attributes end.
    fn data_at(&self) -> usize {
        self.at + INODE_LEN + self.xattrs_len
    }

    fn corrupt(&self, what: &'static str) -> ReadError {
        ReadError::corrupt(self.nid, what)
    }
}

impl<B: AsRef<[u8]>> Image<B> {
    /// Opens an image: checks the superblock and its checksum, the device table and the root.
    /// The rest is checked where it is read; see [`Self::verify`].
    pub fn open(bytes: B) -> Result<Self, ReadError> {
        let image = bytes.as_ref();
        let block = image
            .get(SUPERBLOCK_AT..)
            .and_then(|rest| rest.first_chunk::<BLOCK>());
        let sb = Superblock::decode(block.ok_or(ReadError::NotErofs)?).map_err(|e| match e {
            SuperblockError::Magic => ReadError::NotErofs,
            SuperblockError::Checksum => ReadError::Damaged("wrong checksum"),
            SuperblockError::BlockSize => ReadError::Unsupported("another block size"),
            SuperblockError::Features(_) => ReadError::Unsupported("other features"),
        })?;
        if (image.len() as u64) < u64::from(sb.blocks) * BLOCK as u64 {
            return Err(ReadError::Damaged("it was cut short"));
        }
        let table_at = usize::from(sb.device_table_slot) * DEVICE_SLOT_LEN;
        let device_table = table_at..table_at + usize::from(sb.devices) * DEVICE_SLOT_LEN;
        if device_table.end > image.len() {
            return Err(ReadError::Damaged("the device table lies outside"));
        }
        let image = Self {
            root: Nid(sb.root_nid.into()),
            inodes: sb.inodes,
            meta_at: sb.meta_block as usize * BLOCK,
            device_table,
            may_have_xattrs: sb.volume_name != NO_XATTRS,
            uuid: sb.uuid,
            bytes,
        };
        match image.inode(image.root)?.kind {
            FileType::Directory => Ok(image),
            _ => Err(ReadError::NotADirectory(image.root)),
        }
    }

    /// Checks every byte against the sum that the writer left: finds what a power cut or a bad disk
    /// did, but no intent. Reads the whole image, a few GB a second.
    pub fn verify(&self) -> Result<(), ReadError> {
        match content_uuid(self.bytes()) == self.uuid {
            true => Ok(()),
            false => Err(ReadError::Damaged("wrong content checksum")),
        }
    }

    /// The image's UUID, which follows from all of its bytes: images with the same have the same node numbers.
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// The root directory.
    pub fn root(&self) -> Nid {
        self.root
    }

    /// Number of layers, which are the devices that files point into.
    pub fn layers(&self) -> usize {
        self.device_table.len() / DEVICE_SLOT_LEN
    }

    /// Size of a layer's uncompressed tar, rounded up to 512 bytes; `None` behind the last layer.
    pub fn layer_size(&self, index: u16) -> Option<u64> {
        self.devices().size(index)
    }

    /// Number of nodes, as the superblock states it.
    pub fn inode_count(&self) -> u64 {
        self.inodes
    }

    /// False only if the writer found no extended attribute in the whole tree.
    pub fn has_xattrs_anywhere(&self) -> bool {
        self.may_have_xattrs
    }

    /// What `stat` tells of a node.
    pub fn inode(&self, nid: Nid) -> Result<Inode, ReadError> {
        let corrupt = |what| ReadError::corrupt(nid, what);
        let at = usize::try_from(nid.0)
            .ok()
            .and_then(|nid| nid.checked_mul(INODE_SLOT)?.checked_add(self.meta_at))
            .ok_or(corrupt("it lies outside the image"))?;
        let raw = self
            .bytes()
            .get(at..)
            .and_then(|rest| rest.first_chunk::<INODE_LEN>());
        let raw = RawInode::decode(raw.ok_or(corrupt("it lies outside the image"))?)
            .ok_or(corrupt("its inode is of an unknown form"))?;
        let kind = FileType::from_mode(raw.mode).ok_or(corrupt("it is of an unknown type"))?;
        let is_device = matches!(kind, FileType::CharDevice | FileType::BlockDevice);
        if raw.size > i64::MAX as u64 || raw.mtime_nsec >= 1_000_000_000 {
            return Err(corrupt("its size or time is out of range"));
        }
        Ok(Inode {
            nid,
            kind,
            mode: raw.mode,
            uid: raw.uid,
            gid: raw.gid,
            size: raw.size,
            mtime: raw.mtime,
            mtime_nsec: raw.mtime_nsec,
            nlink: raw.nlink,
            rdev: if is_device { raw.detail } else { 0 },
            layout: raw.layout,
            detail: raw.detail,
            xattrs_len: len_of_units(raw.xattr_units),
            at,
        })
    }

    /// The node that directory `dir` calls `name`; "." and ".." work, too.
    pub fn lookup(&self, dir: Nid, name: &[u8]) -> Result<Option<Nid>, ReadError> {
        self.directory(dir)?.lookup(name)
    }

    /// The entries of directory `dir`, "." and ".." included, from `cookie` on: 0 for all, or an
    /// entry's [`next_cookie`](super::DirEntry::next_cookie) to go on behind it.
    pub fn read_dir(&self, dir: Nid, cookie: u64) -> Result<ReadDir<'_>, ReadError> {
        Ok(ReadDir::new(self.directory(dir)?, cookie))
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, nid: Nid) -> Result<&[u8], ReadError> {
        let inode = self.inode(nid)?;
        if inode.kind != FileType::Symlink {
            return Err(ReadError::NotASymlink(nid));
        }
        let at = match inode.layout {
            DataLayout::Plain => self.block_at(&inode),
            DataLayout::Inline => inode.data_at(),
            DataLayout::Chunks => return Err(inode.corrupt("a link's target is in chunks")),
        };
        let target = self
            .slice(at, inode.size)
            .ok_or(inode.corrupt("its target is cut off"))?;
        match target.is_empty() || target.len() > crate::limits::TARGET_BYTES_MAX {
            true => Err(inode.corrupt("its target has no valid length")),
            false => Ok(target),
        }
    }

    /// The extended attributes of a node.
    pub fn xattrs(&self, nid: Nid) -> Result<Xattrs<'_>, ReadError> {
        let inode = self.inode(nid)?;
        let body = self.slice(inode.at + INODE_LEN, inode.xattrs_len as u64);
        Xattrs::new(
            nid,
            body.ok_or(inode.corrupt("its extended attributes are cut off"))?,
        )
    }

    /// The value of the extended attribute called `name`, prefix included.
    pub fn xattr(&self, nid: Nid, name: &[u8]) -> Result<Option<&[u8]>, ReadError> {
        let is_ours = |entry: &Result<XattrEntry<'_>, _>| match entry {
            Ok(entry) => entry.is_called(name),
            Err(_) => true,
        };
        let found = self.xattrs(nid)?.find(is_ours).transpose()?;
        Ok(found.map(|entry| entry.value))
    }

    /// Where the bytes of a regular file within `range` lie; beyond the file's end there are none.
    pub fn extents(&self, nid: Nid, range: Range<u64>) -> Result<Extents<'_>, ReadError> {
        let inode = self.inode(nid)?;
        if inode.kind != FileType::Regular {
            return Err(ReadError::NotAFile(nid));
        }
        let end = range.end.min(inode.size);
        let chunk_shift = match inode.layout {
            DataLayout::Chunks => {
                let bits = chunk_bits(inode.detail);
                bits.ok_or(inode.corrupt("its chunks are of an unknown form"))? + BLOCK_BITS
            }
            _ if inode.size == 0 => BLOCK_BITS,
            _ => return Err(inode.corrupt("its data is not in chunks")),
        };
        let first_chunk = range.start >> chunk_shift;
        let indexes_at = first_chunk
            .checked_mul(CHUNK_INDEX_LEN as u64)
            .and_then(|skip| usize::try_from(skip).ok())
            .and_then(|skip| skip.checked_add(round_up(inode.data_at(), CHUNK_INDEX_LEN)));
        let indexes = indexes_at
            .and_then(|at| self.bytes().get(at..))
            .unwrap_or_default();
        Ok(Extents {
            nid,
            indexes,
            first_chunk,
            chunk_shift,
            position: range.start,
            end,
            devices: self.devices(),
        })
    }

    fn directory(&self, nid: Nid) -> Result<DirData<'_>, ReadError> {
        let inode = self.inode(nid)?;
        if inode.kind != FileType::Directory {
            return Err(ReadError::NotADirectory(nid));
        }
        let in_blocks = match inode.layout {
            DataLayout::Plain => inode.size,
            DataLayout::Inline => inode.size - inode.size % BLOCK as u64,
            DataLayout::Chunks => return Err(inode.corrupt("a directory is in chunks")),
        };
        let cut_off = inode.corrupt("its entries are cut off");
        let blocks = match in_blocks {
            0 => &[],
            _ => self
                .slice(self.block_at(&inode), in_blocks)
                .ok_or(cut_off)?,
        };
        let tail = self
            .slice(inode.data_at(), inode.size - in_blocks)
            .ok_or(cut_off)?;
        Ok(DirData { nid, blocks, tail })
    }

    /// Position of the first data block that the inode points to.
    fn block_at(&self, inode: &Inode) -> usize {
        inode.detail as usize * BLOCK
    }

    fn slice(&self, at: usize, len: u64) -> Option<&[u8]> {
        let end = at.checked_add(usize::try_from(len).ok()?)?;
        self.bytes().get(at..end)
    }

    fn devices(&self) -> Devices<'_> {
        // `open` has checked the range; an `AsRef` that shrinks later gets no devices.
        Devices(
            self.bytes()
                .get(self.device_table.clone())
                .unwrap_or_default(),
        )
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl<B> fmt::Debug for Image<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = self.device_table.len() / DEVICE_SLOT_LEN;
        f.debug_struct("Image")
            .field("root", &self.root)
            .field("inodes", &self.inodes)
            .field("layers", &layers)
            .finish_non_exhaustive()
    }
}

/// The device table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Devices<'a>(&'a [u8]);

impl Devices<'_> {
    /// Size of layer `index` in bytes.
    pub fn size(&self, index: u16) -> Option<u64> {
        let slot = self.0.get(usize::from(index) * DEVICE_SLOT_LEN..)?;
        Some(u64::from(u32_at(slot.get(..DEVICE_SLOT_LEN)?, 64)) * BLOCK as u64)
    }
}
