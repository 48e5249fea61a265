//! The FUSE adapter: a request comes in, [`ImageFs`] is asked, a reply goes out.
//!
//! The tree never changes, so the kernel may keep everything it was told (`reference`: libfuse's
//! fuse_common.h for the flags). After one cold pass a walk, a stat or an open sends no message.
//! Only READ may wait for a network; it then does so on the runtime, while the session's threads go
//! on answering.

use crate::{
    failed_reads::FailedRead,
    image_fs::{ImageFs, ImageFsError},
    nodes::{Layout, Node, Numbering},
};
use clip_archive::erofs::{FileType, Inode};
use clip_archive::limits::NAME_BYTES_MAX;
use fuser::{
    Errno, FileAttr, FileHandle, Filesystem, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use std::{
    cell::RefCell,
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::runtime::Handle;

/// How long the kernel may believe what it was told: for ever, but a year is the longest that all
/// kernels convert to jiffies without overflow.
const TTL: Duration = Duration::from_secs(365 * 86400);
/// Largest READ. Larger ones are possible and slower (measured).
const READ_LEN_MAX: u32 = 1 << 20;
/// With 64, readers of a registry that hangs made a file that was at hand wait for 7 s (measured).
const MAX_BACKGROUND: u16 = 4096;
const BLOCK_SIZE: u32 = 4096;

/// See the module.
pub struct FuseAdapter {
    image: Arc<ImageFs>,
    numbering: Numbering,
    runtime: Handle,
    /// The kernel skips OPEN and OPENDIR once they were answered with ENOSYS.
    no_open: AtomicBool,
    idmapped: bool,
}

thread_local! {
    /// Replies to cached reads are assembled here: no allocation per read.
    static REPLY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl FuseAdapter {
    /// An adapter for `image`; reads that wait do so on `runtime`. `idmapped` allows idmapped mounts
    /// (user namespaces of pods); the kernel then tells no longer who asks, so it must be off where
    /// only the owner is let in.
    pub fn new(image: Arc<ImageFs>, layout: Layout, runtime: Handle, idmapped: bool) -> Self {
        let numbering = Numbering {
            layout,
            tree_root: image.tree().root(),
        };
        Self {
            image,
            numbering,
            runtime,
            no_open: AtomicBool::new(false),
            idmapped,
        }
    }

    /// Permissions of the connection's root.
    pub fn root_mode(&self) -> Result<u16, Errno> {
        let root = self.numbering.node(INodeNo::ROOT.0);
        self.attr(root).map(|attr| attr.perm)
    }

    fn attr(&self, node: Node) -> Result<FileAttr, Errno> {
        let ino = INodeNo(self.numbering.ino(node));
        match node {
            Node::Top | Node::Blobs => {
                let mode = Layout::DIRECTORY_MODE;
                Ok(synthetic(ino, fuser::FileType::Directory, mode, 0))
            }
            Node::Blob(index) => {
                let layer = self
                    .image
                    .layers()
                    .get(usize::from(index))
                    .ok_or(Errno::ENOENT)?;
                Ok(synthetic(
                    ino,
                    fuser::FileType::RegularFile,
                    0o400,
                    layer.size(),
                ))
            }
            Node::Tree(nid) => self
                .image
                .tree()
                .inode(nid)
                .map(|inode| attr_of(ino, &inode))
                .map_err(|error| self.damaged(&error)),
        }
    }

    fn child(&self, parent: Node, name: &[u8]) -> Result<Option<Node>, Errno> {
        match parent {
            Node::Top => Ok(match name {
                b"tree" => Some(Node::Tree(self.numbering.tree_root)),
                b"blobs" => Some(Node::Blobs),
                _ => None,
            }),
            Node::Blobs => {
                let index = std::str::from_utf8(name)
                    .ok()
                    .and_then(|name| name.parse::<u16>().ok());
                Ok(index
                    .filter(|&index| usize::from(index) < self.image.layers().len())
                    .map(Node::Blob))
            }
            Node::Blob(_) => Err(Errno::ENOTDIR),
            Node::Tree(nid) => self
                .image
                .tree()
                .lookup(nid, name)
                .map(|found| found.map(Node::Tree))
                .map_err(|error| self.damaged(&error)),
        }
    }

    /// Calls `add(next_cookie, name, node, type)` for each entry from `cookie` on, until it returns true (full).
    fn list(
        &self,
        dir: Node,
        cookie: u64,
        mut add: impl FnMut(u64, &[u8], Node, fuser::FileType) -> bool,
    ) -> Result<(), Errno> {
        use fuser::FileType::{Directory, RegularFile};
        match dir {
            Node::Top => {
                let tree = Node::Tree(self.numbering.tree_root);
                let entries: [(&[u8], Node); 4] = [
                    (b".", Node::Top),
                    (b"..", Node::Top),
                    (b"blobs", Node::Blobs),
                    (b"tree", tree),
                ];
                for (at, (name, node)) in entries.into_iter().enumerate().skip(cookie as usize) {
                    if add(at as u64 + 1, name, node, Directory) {
                        break;
                    }
                }
                Ok(())
            }
            Node::Blobs => {
                let layers = self.image.layers().len() as u16;
                let dots = [
                    (".".to_owned(), Node::Blobs, Directory),
                    ("..".to_owned(), Node::Top, Directory),
                ];
                let blobs =
                    (0..layers).map(|index| (index.to_string(), Node::Blob(index), RegularFile));
                for (at, (name, node, kind)) in dots
                    .into_iter()
                    .chain(blobs)
                    .enumerate()
                    .skip(cookie as usize)
                {
                    if add(at as u64 + 1, name.as_bytes(), node, kind) {
                        break;
                    }
                }
                Ok(())
            }
            Node::Blob(_) => Err(Errno::ENOTDIR),
            Node::Tree(nid) => {
                let entries = self
                    .image
                    .tree()
                    .read_dir(nid, cookie)
                    .map_err(|error| self.damaged(&error))?;
                for entry in entries {
                    let entry = entry.map_err(|error| self.damaged(&error))?;
                    if add(
                        entry.next_cookie,
                        entry.name,
                        Node::Tree(entry.nid),
                        fuse_type(entry.kind),
                    ) {
                        break;
                    }
                }
                Ok(())
            }
        }
    }

    fn read_now(
        &self,
        node: Node,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, ImageFsError> {
        match node {
            Node::Tree(nid) => self.image.read_cached(nid, offset, len, out),
            Node::Blob(index) => self.image.read_layer_cached(index, offset, len, out),
            Node::Top | Node::Blobs => Ok(true),
        }
    }

    fn read_later(&self, node: Node, offset: u64, len: usize, reply: ReplyData) {
        let image = self.image.clone();
        self.runtime.spawn(async move {
            let result = match node {
                Node::Blob(index) => image.read_layer(index, offset, len).await,
                Node::Tree(nid) => image.read(nid, offset, len).await,
                Node::Top | Node::Blobs => Ok(Vec::new()),
            };
            match result {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(read_failed(&image, node, offset, len, &error)),
            }
        });
    }

    fn damaged(&self, error: &dyn std::error::Error) -> Errno {
        tracing::error!(image = self.image.info().name, %error, "the expanded tree is damaged");
        Errno::EIO
    }

    fn xattr_value(&self, node: Node, name: &[u8]) -> Result<Vec<u8>, Errno> {
        check_xattr_name(name)?;
        let Node::Tree(nid) = node else {
            return Err(Errno::NO_XATTR);
        };
        match self.image.tree().xattr(nid, name) {
            Ok(Some(value)) => Ok(value.to_vec()),
            Ok(None) => Err(Errno::NO_XATTR),
            Err(error) => Err(self.damaged(&error)),
        }
    }

    fn xattr_names(&self, node: Node) -> Result<Vec<u8>, Errno> {
        let Node::Tree(nid) = node else {
            return Ok(Vec::new());
        };
        let mut names = Vec::new();
        for entry in self
            .image
            .tree()
            .xattrs(nid)
            .map_err(|error| self.damaged(&error))?
        {
            names.extend_from_slice(&entry.map_err(|error| self.damaged(&error))?.name());
            names.push(0);
        }
        Ok(names)
    }
}

impl Filesystem for FuseAdapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_HAS_RESEND,
        ];
        let idmap = self.idmapped.then_some(InitFlags::FUSE_ALLOW_IDMAP);
        // The kernel then asks for access lists and enforces them. A tree without attributes has none, and
        // is spared the questions.
        let has_lists = self.image.tree().has_xattrs_anywhere();
        let lists = has_lists.then_some(InitFlags::FUSE_POSIX_ACL);
        for flag in wanted.into_iter().chain(idmap).chain(lists) {
            // What an older kernel lacks costs speed, not correctness.
            let _ = config.add_capabilities(flag);
        }
        let no_open = InitFlags::FUSE_NO_OPEN_SUPPORT | InitFlags::FUSE_NO_OPENDIR_SUPPORT;
        self.no_open
            .store(config.add_capabilities(no_open).is_ok(), Ordering::Relaxed);
        let _ = config.set_max_write(READ_LEN_MAX);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name.len() > NAME_BYTES_MAX {
            return reply.error(Errno::ENAMETOOLONG);
        }
        let found = self.child(self.numbering.node(parent.0), name.as_bytes());
        match found.and_then(|child| child.map(|node| self.attr(node)).transpose()) {
            Ok(Some(attr)) => reply.entry(&TTL, &attr, Generation(0)),
            // Node 0 with a lifetime: the kernel remembers that the name does not exist.
            Ok(None) => reply.entry(
                &TTL,
                &synthetic(INodeNo(0), fuser::FileType::RegularFile, 0, 0),
                Generation(0),
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(self.numbering.node(ino.0)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        let Node::Tree(nid) = self.numbering.node(ino.0) else {
            return reply.error(Errno::EINVAL);
        };
        match self.image.tree().read_link(nid) {
            Ok(target) => reply.data(target),
            Err(error) => reply.error(self.damaged(&error)),
        }
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.no_open.load(Ordering::Relaxed) {
            true => reply.error(Errno::ENOSYS),
            false => reply.opened(FileHandle(0), fuser::FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let cached = fuser::FopenFlags::FOPEN_KEEP_CACHE | fuser::FopenFlags::FOPEN_CACHE_DIR;
        match self.no_open.load(Ordering::Relaxed) {
            true => reply.error(Errno::ENOSYS),
            false => reply.opened(FileHandle(0), cached),
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (node, len) = (self.numbering.node(ino.0), size as usize);
        REPLY.with_borrow_mut(|out| {
            out.clear();
            match self.read_now(node, offset, len, out) {
                Ok(true) => reply.data(out),
                Ok(false) => self.read_later(node, offset, len, reply),
                Err(error) => reply.error(read_failed(&self.image, node, offset, len, &error)),
            }
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.list(
            self.numbering.node(ino.0),
            offset,
            |cookie, name, node, kind| {
                reply.add(
                    INodeNo(self.numbering.ino(node)),
                    cookie,
                    kind,
                    OsStr::from_bytes(name),
                )
            },
        );
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let mut failed = None;
        let listed = self.list(
            self.numbering.node(ino.0),
            offset,
            |cookie, name, node, _| match self.attr(node) {
                Ok(attr) => reply.add(
                    attr.ino,
                    cookie,
                    OsStr::from_bytes(name),
                    &TTL,
                    &attr,
                    Generation(0),
                ),
                Err(errno) => {
                    failed = Some(errno);
                    true
                }
            },
        );
        match listed.and(failed.map_or(Ok(()), Err)) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let blocks = self
            .image
            .info()
            .unpacked_bytes
            .div_ceil(u64::from(BLOCK_SIZE));
        reply.statfs(
            blocks,
            0,
            0,
            self.image.tree().inode_count(),
            0,
            BLOCK_SIZE,
            255,
            BLOCK_SIZE,
        );
    }

    fn getxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        if !self.image.tree().has_xattrs_anywhere() {
            // The kernel asks no more on this connection.
            return reply.error(Errno::ENOSYS);
        }
        answer_xattr(
            self.xattr_value(self.numbering.node(ino.0), name.as_bytes()),
            size,
            reply,
        );
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.image.tree().has_xattrs_anywhere() {
            return reply.error(Errno::ENOSYS);
        }
        answer_xattr(self.xattr_names(self.numbering.node(ino.0)), size, reply);
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }
}

/// The kernel asks FUSE about any name. Other file systems are asked for those in a namespace of xattr(7) only, and for
/// none that ends there.
fn check_xattr_name(name: &[u8]) -> Result<(), Errno> {
    const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
    if NAMESPACES.contains(&name) {
        return Err(Errno::EINVAL);
    }
    let known = NAMESPACES.iter().any(|space| name.starts_with(space)) || ACLS.contains(&name);
    known.then_some(()).ok_or(Errno::EOPNOTSUPP)
}

/// xattr(7): size 0 asks for the length; a buffer that is too small is ERANGE.
fn answer_xattr(value: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}

fn read_failed(
    image: &ImageFs,
    node: Node,
    offset: u64,
    len: usize,
    error: &ImageFsError,
) -> Errno {
    let layer = match node {
        Node::Tree(nid) => image.layer_of(nid, offset),
        Node::Blob(index) => Some(index),
        Node::Top | Node::Blobs => None,
    };
    let failed = image.failed_reads();
    if let Some(left_out) = failed.count(layer, Instant::now()) {
        let path = match node {
            Node::Tree(nid) => image
                .path_of(nid)
                .unwrap_or_else(|| format!("node {}", nid.0)),
            Node::Blob(index) => image
                .path_at(index, offset..offset + len as u64)
                .unwrap_or_else(|| format!("layer {index}")),
            node => format!("{node:?}"),
        };
        tracing::error!(image = image.info().name, path, offset, %error, left_out, "read failed");
        let cause = error.to_string();
        failed.keep(FailedRead { path, cause });
    }
    Errno::EIO
}

fn attr_of(ino: INodeNo, inode: &Inode) -> FileAttr {
    let mtime = time(inode.mtime, inode.mtime_nsec);
    FileAttr {
        ino,
        size: inode.size,
        blocks: inode.size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: fuse_type(inode.kind),
        perm: inode.mode & 0o7777,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

fn synthetic(ino: INodeNo, kind: fuser::FileType, perm: u16, size: u64) -> FileAttr {
    let inode_times = UNIX_EPOCH;
    FileAttr {
        ino,
        size,
        blocks: size.div_ceil(512),
        atime: inode_times,
        mtime: inode_times,
        ctime: inode_times,
        crtime: inode_times,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

fn time(seconds: i64, nanos: u32) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(nanos));
    match u64::try_from(seconds) {
        Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds) + nanos,
        Err(_) => UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + nanos,
    }
}

fn fuse_type(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::Regular => fuser::FileType::RegularFile,
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::CharDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::Fifo => fuser::FileType::NamedPipe,
    }
}
