//! The merged tree as an EROFS image in *tar-index form*: all metadata, no file data.
//!
//! [`write()`] turns a [`Tree`](crate::Tree) into the image, [`Image`] reads it without copying.
//! The same bytes are a file system to the Linux kernel (6.12 or newer, with one `device=` per
//! layer) and to `fsck.erofs`. Files point into extra devices: device *i* + 1 is the uncompressed
//! tar of layer *i*, whose members start on 512-byte borders, hence 512-byte blocks.
//!
//! ```text
//! 0       1024         1152             inode area                        data area
//! ┌───────┬────────────┬────────────────┬───────────────────────────────┬─────────────────┬─────┐
//! │ zeros │ superblock │ device table   │ root │ inode │ inode │ ...    │ 512-byte blocks │ 0…0 │
//! │       │ 128 B      │ 128 B a layer  │                               │ of directories  │     │
//! └───────┴────────────┴────────────────┴───────────────────────────────┴─────────────────┴─────┘
//! an inode: 64 bytes │ extended attributes │ chunk indexes, link target, or a directory's tail
//! ```
//!
//! A node's identity ([`Nid`]) is its inode's position divided by 32, so nothing needs a table.
//! Numbers are little-endian. Source of the format: `fs/erofs/erofs_fs.h` and
//! `Documentation/filesystems/erofs.rst` in Linux.

mod chunk;
mod dir;
mod format;
mod plan;
mod reader;
mod writer;
mod xattr;

pub use chunk::{Extent, Extents, Place};
pub use dir::{DirEntry, ReadDir};
pub use reader::{Image, Inode, ReadError};
pub use writer::{ImageWriter, WriteError, write};
pub use xattr::{XattrEntry, Xattrs};

/// Identity of a node within one image: the position of its inode in units of 32 bytes.
/// Never 0 or 1 in an image made by [`write()`], so that FUSE may use it as its node number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nid(pub u64);

/// The kinds of files that a tree can hold. (Sockets do not survive in a tar.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

impl FileType {
    /// The file type bits of `st_mode` (`S_IFREG`, `S_IFDIR`, ...). Shifted right by 12 they are the
    /// type that `readdir` tells (`DT_REG`, `DT_DIR`, ...).
    pub fn mode_bits(self) -> u16 {
        match self {
            Self::Fifo => 0o010000,
            Self::CharDevice => 0o020000,
            Self::Directory => 0o040000,
            Self::BlockDevice => 0o060000,
            Self::Regular => 0o100000,
            Self::Symlink => 0o120000,
        }
    }

    /// The type that `st_mode` states, if a tree can hold it.
    pub fn from_mode(mode: u16) -> Option<Self> {
        Some(match mode & 0o170000 {
            0o010000 => Self::Fifo,
            0o020000 => Self::CharDevice,
            0o040000 => Self::Directory,
            0o060000 => Self::BlockDevice,
            0o100000 => Self::Regular,
            0o120000 => Self::Symlink,
            _ => return None,
        })
    }

    /// The type's number in a directory entry on disk (`FT_REG_FILE`, ... in Linux' `fs_types.h`).
    fn to_dirent(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Directory => 2,
            Self::CharDevice => 3,
            Self::BlockDevice => 4,
            Self::Fifo => 5,
            Self::Symlink => 7,
        }
    }

    /// The reverse of [`Self::to_dirent`].
    fn from_dirent(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::CharDevice,
            4 => Self::BlockDevice,
            5 => Self::Fifo,
            7 => Self::Symlink,
            _ => return None,
        })
    }
}
