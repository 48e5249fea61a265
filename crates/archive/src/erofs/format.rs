//! The on-disk structures of EROFS, as far as the tar-index form uses them.

use std::ops::Range;

/// Bytes of a block: a tar member's alignment.
pub(super) const BLOCK: usize = 512;
/// [`BLOCK`] as a power of two.
pub(super) const BLOCK_BITS: u8 = 9;
/// Where the superblock lies.
pub(super) const SUPERBLOCK_AT: usize = 1024;
/// Bytes of a superblock without extension slots.
pub(super) const SUPERBLOCK_LEN: usize = 128;
/// Where the device table lies in the images we write: behind the superblock.
pub(super) const DEVICE_TABLE_AT: usize = SUPERBLOCK_AT + SUPERBLOCK_LEN;
/// Bytes of one slot of the device table.
pub(super) const DEVICE_SLOT_LEN: usize = 128;
/// Unit of [`Nid`](super::Nid)s and alignment of inodes.
pub(super) const INODE_SLOT: usize = 32;
/// Bytes of an extended inode.
pub(super) const INODE_LEN: usize = 64;
/// Bytes of a chunk index.
pub(super) const CHUNK_INDEX_LEN: usize = 8;
/// Largest chunk: 2^31 blocks, 1 TiB.
pub(super) const CHUNK_BITS_MAX: u8 = 31;
/// `EROFS_NULL_ADDR` in 32 bits: the chunk is a hole.
pub(super) const HOLE: u32 = u32::MAX;
/// Bytes of a directory entry, without its name.
pub(super) const DIRENT_LEN: usize = 12;
/// Longest name of a directory entry.
pub(super) const NAME_MAX: usize = 255;
/// Volume name of an image in which no file has an extended attribute. It spares readers the scan
/// that would tell; any other name means "maybe".
pub(super) const NO_XATTRS: [u8; 16] = *b"clip-no-xattrs\0\0";
/// Volume name of our other images.
pub(super) const SOME_XATTRS: [u8; 16] = *b"clip\0\0\0\0\0\0\0\0\0\0\0\0";

const MAGIC: u32 = 0xE0F5_E1E2;
const COMPAT_MTIME: u32 = 0x2;
const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
const INCOMPAT_DEVICE_TABLE: u32 = 0x8;
/// Chunk indexes of 8 bytes with a device each, not a plain array of block numbers.
const CHUNK_FORMAT_INDEXES: u32 = 0x20;
const EXTENDED: u16 = 1;

/// The superblock's fields that vary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    pub root_nid: u16,
    pub inodes: u64,
    pub blocks: u32,
    pub meta_block: u32,
    pub uuid: [u8; 16],
    pub volume_name: [u8; 16],
    pub devices: u16,
    /// Position of the device table in slots.
    pub device_table_slot: u16,
}

/// Why bytes are not a superblock that we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SuperblockError {
    Magic,
    Checksum,
    BlockSize,
    Features(u32),
}

impl Superblock {
    /// Writes the superblock and its checksum into its 512-byte block, in which everything else must be final.
    pub fn encode(&self, sb: &mut [u8; BLOCK]) {
        put(sb, 0, &MAGIC.to_le_bytes());
        put(sb, 4, &[0; 4]);
        put(sb, 8, &COMPAT_MTIME.to_le_bytes()); // not SB_CHKSUM: see `checksum`
        put(sb, 12, &[BLOCK_BITS, 0]);
        put(sb, 14, &self.root_nid.to_le_bytes());
        put(sb, 16, &self.inodes.to_le_bytes());
        put(sb, 36, &self.blocks.to_le_bytes());
        put(sb, 40, &self.meta_block.to_le_bytes());
        put(sb, 48, &self.uuid);
        put(sb, 64, &self.volume_name);
        put(
            sb,
            80,
            &(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE).to_le_bytes(),
        );
        put(sb, 86, &self.devices.to_le_bytes());
        put(sb, 88, &self.device_table_slot.to_le_bytes());
        let checksum = checksum(sb);
        put(sb, 4, &checksum.to_le_bytes());
    }

    /// Reads the superblock from its block.
    pub fn decode(block: &[u8; BLOCK]) -> Result<Self, SuperblockError> {
        if u32_at(block, 0) != MAGIC {
            return Err(SuperblockError::Magic);
        }
        let mut unsummed = *block;
        put(&mut unsummed, 4, &[0; 4]);
        if u32_at(block, 4) != checksum(&unsummed) {
            return Err(SuperblockError::Checksum);
        }
        if block[12] != BLOCK_BITS {
            return Err(SuperblockError::BlockSize);
        }
        let incompat = u32_at(block, 80);
        if incompat != INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE {
            return Err(SuperblockError::Features(incompat));
        }
        Ok(Self {
            root_nid: u16_at(block, 14),
            inodes: u64_at(block, 16),
            blocks: u32_at(block, 36),
            meta_block: u32_at(block, 40),
            uuid: array_at(block, 48),
            volume_name: array_at(block, 64),
            devices: u16_at(block, 86),
            device_table_slot: u16_at(block, 88),
        })
    }
}

/// EROFS' checksum: CRC-32C, without the final inversion, over the superblock's block with a zero
/// checksum field.
///
/// The feature flag that announces it stays unset: with 512-byte blocks it sends `fsck.erofs` 1.8
/// beyond its buffer (it sums "block size - 1024" bytes). Our reader checks the sum all the same.
fn checksum(block: &[u8]) -> u32 {
    !crc32c::crc32c(block)
}

/// The volume's UUID: CRC-32Cs of the four quarters of everything behind the superblock's block.
/// It tells images apart (overlayfs, `statfs`) and bit rot from an intact file.
pub(super) fn content_uuid(image: &[u8]) -> [u8; 16] {
    summed_uuid(image.len(), sums(image.len(), 0, image).collect())
}

/// The CRC-32C of a part of an image that lies in one quarter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sum {
    at: usize,
    len: usize,
    crc: u32,
}

/// The sums of `part`, which lies at `at` in an image of `len` bytes.
pub(super) fn sums(len: usize, at: usize, part: &[u8]) -> impl Iterator<Item = Sum> {
    quarters(len).into_iter().filter_map(move |quarter| {
        let start = quarter.start.max(at);
        let end = quarter.end.min(at + part.len());
        (start < end).then(|| Sum {
            at: start,
            len: end - start,
            crc: crc32c::crc32c(&part[start - at..end - at]),
        })
    })
}

/// [`content_uuid`] of an image of `len` bytes from the sums of all its parts.
pub(super) fn summed_uuid(len: usize, mut sums: Vec<Sum>) -> [u8; 16] {
    sums.sort_unstable_by_key(|sum| sum.at);
    let mut uuid = [0; 16];
    for (quarter, out) in quarters(len).into_iter().zip(uuid.chunks_exact_mut(4)) {
        let parts = sums.iter().filter(|sum| quarter.contains(&sum.at));
        let crc = parts
            .copied()
            .reduce(|before, sum| Sum {
                crc: crc32c::crc32c_combine(before.crc, sum.crc, sum.len),
                ..before
            })
            .map_or(0, |sum| sum.crc);
        out.copy_from_slice(&crc.to_le_bytes());
    }
    uuid
}

fn quarters(len: usize) -> [Range<usize>; 4] {
    let first = (SUPERBLOCK_AT + BLOCK).min(len);
    let quarter = (len - first).div_ceil(4);
    std::array::from_fn(|i| {
        let border = |i: usize| (first + i * quarter).min(len);
        border(i)..border(i + 1)
    })
}

/// How an inode's data is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataLayout {
    /// In blocks of the image, from block `i_u` on. Also: no data.
    Plain,
    /// Like `Plain`, but what the last block would hold lies behind the inode.
    Inline,
    /// In chunks, whose indexes lie behind the inode. For regular files.
    Chunks,
}

/// The 64-byte form of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawInode {
    pub layout: DataLayout,
    /// 0 without attributes, else 1 + the attributes' size in units of 4 bytes.
    pub xattr_units: u16,
    pub mode: u16,
    pub size: u64,
    /// First block, device number, or chunk format: `i_u`.
    pub detail: u32,
    pub number: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_nsec: u32,
    pub nlink: u32,
}

impl RawInode {
    pub fn encode(&self) -> [u8; INODE_LEN] {
        let layout = match self.layout {
            DataLayout::Plain => 0,
            DataLayout::Inline => 2,
            DataLayout::Chunks => 4,
        };
        let mut out = [0; INODE_LEN];
        put(&mut out, 0, &(EXTENDED | layout << 1).to_le_bytes());
        put(&mut out, 2, &self.xattr_units.to_le_bytes());
        put(&mut out, 4, &self.mode.to_le_bytes());
        put(&mut out, 8, &self.size.to_le_bytes());
        put(&mut out, 16, &self.detail.to_le_bytes());
        put(&mut out, 20, &self.number.to_le_bytes());
        put(&mut out, 24, &self.uid.to_le_bytes());
        put(&mut out, 28, &self.gid.to_le_bytes());
        put(&mut out, 32, &self.mtime.to_le_bytes());
        put(&mut out, 40, &self.mtime_nsec.to_le_bytes());
        put(&mut out, 44, &self.nlink.to_le_bytes());
        out
    }

    /// `None` if the inode is of a form that we never write.
    pub fn decode(bytes: &[u8; INODE_LEN]) -> Option<Self> {
        let layout = match u16_at(bytes, 0) ^ EXTENDED {
            0 => DataLayout::Plain,
            0b0100 => DataLayout::Inline,
            0b1000 => DataLayout::Chunks,
            _ => return None,
        };
        Some(Self {
            layout,
            xattr_units: u16_at(bytes, 2),
            mode: u16_at(bytes, 4),
            size: u64_at(bytes, 8),
            detail: u32_at(bytes, 16),
            number: u32_at(bytes, 20),
            uid: u32_at(bytes, 24),
            gid: u32_at(bytes, 28),
            mtime: i64::from_le_bytes(array_at(bytes, 32)),
            mtime_nsec: u32_at(bytes, 40),
            nlink: u32_at(bytes, 44),
        })
    }
}

/// `i_u` of a file in chunks of 512 << `bits` bytes.
pub(super) fn chunk_format(bits: u8) -> u32 {
    CHUNK_FORMAT_INDEXES | u32::from(bits)
}

/// The reverse of [`chunk_format`].
pub(super) fn chunk_bits(format: u32) -> Option<u8> {
    let bits = format ^ CHUNK_FORMAT_INDEXES;
    (bits <= u32::from(CHUNK_BITS_MAX)).then_some(bits as u8)
}

/// Linux' `new_encode_dev`: 12 bits of major and 20 bits of minor number.
pub(super) fn encode_device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20)
        .then_some((minor & 0xff) | major << 8 | (minor & !0xff) << 12)
}

/// The reverse of [`encode_device`]: (major, minor).
pub(super) fn decode_device(rdev: u32) -> (u32, u32) {
    (
        (rdev >> 8) & 0xfff,
        (rdev & 0xff) | ((rdev >> 12) & 0xfff00),
    )
}

/// The smallest multiple of `unit` that is not below `value`.
pub(super) fn round_up(value: usize, unit: usize) -> usize {
    value.div_ceil(unit) * unit
}

/// Copies a field into place.
pub(super) fn put(out: &mut [u8], at: usize, field: &[u8]) {
    out[at..at + field.len()].copy_from_slice(field);
}

/// `N` bytes of a structure whose length the caller has checked.
pub(super) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// A 16-bit field of a structure whose length the caller has checked.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

/// A 32-bit field of a structure whose length the caller has checked.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// A 64-bit field of a structure whose length the caller has checked.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_those_of_new_encode_dev() {
        assert_eq!(encode_device(1, 3), Some(0x103));
        assert_eq!(encode_device(0xfff, 0xfffff), Some(u32::MAX));
        assert_eq!(encode_device(0x1000, 0), None);
        assert_eq!(encode_device(0, 0x100000), None);
        for (major, minor) in [(0, 0), (8, 1), (259, 70_000), (0xfff, 0xfffff)] {
            let rdev = encode_device(major, minor).unwrap();
            assert_eq!(decode_device(rdev), (major, minor));
        }
    }

    #[test]
    fn an_inode_survives_its_64_bytes() {
        for layout in [DataLayout::Plain, DataLayout::Inline, DataLayout::Chunks] {
            let inode = RawInode {
                layout,
                xattr_units: 7,
                mode: 0o104755,
                size: u64::MAX / 3,
                detail: 0x1234_5678,
                number: 9,
                uid: 65_536,
                gid: u32::MAX,
                mtime: -1,
                mtime_nsec: 999_999_999,
                nlink: 70_000,
            };
            assert_eq!(RawInode::decode(&inode.encode()), Some(inode));
        }
    }
}
