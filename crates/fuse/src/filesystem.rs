//! What a filesystem has to know of itself.

use crate::{dir_list::DirList, reply::Reply};
use rustix::io::Errno;

/// A tree that is read only and never changes. The kernel may keep everything that it was told.
///
/// Nodes are numbers of the filesystem's choice, the root's is [`ROOT`]; a number always means the same node, for the
/// server that takes over a connection, too. Only a read may wait for something; everything else is answered at once.
pub trait Filesystem: Send + Sync + 'static {
    /// What this connection is for.
    fn traits(&self) -> Traits;

    /// Type, size, owner and so on of `node`.
    fn attributes(&self, node: u64) -> Result<Attributes, Errno>;

    /// The node that is called `name` in the directory `parent`, if there is one.
    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Option<Attributes>, Errno>;

    /// Appends the target of the symbolic link `node`.
    fn read_link(&self, node: u64, out: &mut Vec<u8>) -> Result<(), Errno>;

    /// Adds the entries of `dir` to `list` until it is full, from the entry on that `cookie` stands for: 0, or what was
    /// told with the entry before it.
    fn read_dir(&self, dir: u64, cookie: u64, list: &mut DirList<'_>) -> Result<(), Errno>;

    /// Appends up to `len` bytes of the file `node` from `offset` on (fewer only at its end), if they can be had without
    /// waiting; if not, false, and `out` as it was.
    fn read_now(
        &self,
        node: u64,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, Errno>;

    /// The same for bytes that must be waited for. Returns at once; the answer comes when it is there.
    fn read_later(&self, node: u64, offset: u64, len: usize, reply: Reply);

    /// Appends the value of an extended attribute. Asked only with [`Traits::xattrs`].
    ///
    /// # Errors
    /// `NODATA`: it has no such attribute.
    fn xattr(&self, node: u64, name: &[u8], out: &mut Vec<u8>) -> Result<(), Errno>;

    /// Appends the names of its extended attributes, each with a NUL byte at its end. Asked only with [`Traits::xattrs`].
    fn xattr_names(&self, node: u64, out: &mut Vec<u8>) -> Result<(), Errno>;

    /// For statfs(2).
    fn statistics(&self) -> Statistics;
}

/// The number of the root (`FUSE_ROOT_ID`).
pub const ROOT: u64 = 1;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// Some node has extended attributes. If none has, the kernel is told once and asks no more; if some has, it asks for
    /// access lists (acl(5)) and enforces them.
    pub xattrs: bool,
    /// It may be mounted with other owners (user namespaces); only with the mount option `default_permissions`. The kernel
    /// then tells no longer who asks, so it must be off where only the owner is let in.
    pub idmapped: bool,
}

/// inode(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// The node.
    pub node: u64,
    /// In bytes.
    pub size: u64,
    /// Modification time, seconds since 1970; other times are said to be the same.
    pub mtime: i64,
    /// Nanoseconds within the second.
    pub mtime_nsec: u32,
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of a device in Linux' `new_encode_dev` form; otherwise 0.
    pub rdev: u32,
}

/// statfs(2). Such a filesystem is as full as it will ever be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// Of all files.
    pub bytes: u64,
    /// How many nodes there are.
    pub nodes: u64,
}
