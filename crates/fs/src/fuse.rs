//! An image as a [`Filesystem`] of FUSE: a node's number comes in, [`ImageFs`] is asked.
//!
//! Only READ may wait for a network; it then does so on the runtime, while the threads that took the request go on
//! answering.

use crate::{
    failed_reads::FailedRead,
    image_fs::{ImageFs, ImageFsError},
    nodes::{Layout, Node, Numbering},
};
use clip_archive::erofs::{FileType, Inode};
use clip_archive::limits::NAME_BYTES_MAX;
use clip_fuse::{Attributes, DirList, Filesystem, Reply, Statistics, Traits};
use rustix::io::Errno;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

/// Types as in `st_mode`.
const DIRECTORY: u32 = 0o040_000;
const REGULAR_FILE: u32 = 0o100_000;

/// So long a read past the page cache goes on after a signal to who asked. If it killed him, he cannot end before; if
/// not, the read fails with EINTR although he could have waited.
const AFTER_A_SIGNAL: Duration = Duration::from_secs(5);

/// See the module.
pub struct FuseAdapter {
    image: Arc<ImageFs>,
    numbering: Numbering,
    runtime: Handle,
    idmapped: bool,
}

impl FuseAdapter {
    /// An adapter for `image`; reads that wait do so on `runtime`. `idmapped`: see [`Traits::idmapped`].
    pub fn new(image: Arc<ImageFs>, layout: Layout, runtime: Handle, idmapped: bool) -> Self {
        let numbering = Numbering {
            layout,
            tree_root: image.tree().root(),
        };
        Self {
            image,
            numbering,
            runtime,
            idmapped,
        }
    }

    fn node(&self, number: u64) -> Node {
        self.numbering.node(number)
    }

    fn attributes_of(&self, node: Node) -> Result<Attributes, Errno> {
        let number = self.numbering.ino(node);
        match node {
            Node::Top | Node::Blobs => {
                let mode = DIRECTORY | u32::from(Layout::DIRECTORY_MODE);
                Ok(synthetic(number, mode, 0))
            }
            Node::Blob(index) => {
                let layer = self.image.layers().get(usize::from(index));
                let layer = layer.ok_or(Errno::NOENT)?;
                Ok(synthetic(number, REGULAR_FILE | 0o400, layer.size()))
            }
            Node::Tree(nid) => {
                let inode = self.image.tree().inode(nid);
                let inode = inode.map_err(|error| self.damaged(&error))?;
                Ok(attributes_of_inode(number, &inode))
            }
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
            Node::Blob(_) => Err(Errno::NOTDIR),
            Node::Tree(nid) => self
                .image
                .tree()
                .lookup(nid, name)
                .map(|found| found.map(Node::Tree))
                .map_err(|error| self.damaged(&error)),
        }
    }

    fn list(&self, dir: Node, cookie: u64, list: &mut DirList<'_>) -> Result<(), Errno> {
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
                    if !self.add(list, at as u64 + 1, name, node, DIRECTORY)? {
                        break;
                    }
                }
                Ok(())
            }
            Node::Blobs => {
                let layers = self.image.layers().len() as u16;
                let dots = [
                    (".".to_owned(), Node::Blobs, DIRECTORY),
                    ("..".to_owned(), Node::Top, DIRECTORY),
                ];
                let blobs =
                    (0..layers).map(|index| (index.to_string(), Node::Blob(index), REGULAR_FILE));
                let entries = dots.into_iter().chain(blobs).enumerate();
                for (at, (name, node, kind)) in entries.skip(cookie as usize) {
                    if !self.add(list, at as u64 + 1, name.as_bytes(), node, kind)? {
                        break;
                    }
                }
                Ok(())
            }
            Node::Blob(_) => Err(Errno::NOTDIR),
            Node::Tree(nid) => {
                let entries = self.image.tree().read_dir(nid, cookie);
                for entry in entries.map_err(|error| self.damaged(&error))? {
                    let entry = entry.map_err(|error| self.damaged(&error))?;
                    let (node, kind) = (Node::Tree(entry.nid), type_bits(entry.kind));
                    if !self.add(list, entry.next_cookie, entry.name, node, kind)? {
                        break;
                    }
                }
                Ok(())
            }
        }
    }

    fn add(
        &self,
        list: &mut DirList<'_>,
        next_cookie: u64,
        name: &[u8],
        node: Node,
        kind: u32,
    ) -> Result<bool, Errno> {
        let number = self.numbering.ino(node);
        list.add(next_cookie, name, number, kind, || self.attributes_of(node))
    }

    fn damaged(&self, error: &dyn std::error::Error) -> Errno {
        tracing::error!(image = self.image.info().name, %error, "the expanded tree is damaged");
        Errno::IO
    }
}

impl Filesystem for FuseAdapter {
    fn traits(&self) -> Traits {
        Traits {
            xattrs: self.image.tree().has_xattrs_anywhere(),
            idmapped: self.idmapped,
        }
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
        self.attributes_of(self.node(node))
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Option<Attributes>, Errno> {
        if name.len() > NAME_BYTES_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let child = self.child(self.node(parent), name)?;
        child.map(|node| self.attributes_of(node)).transpose()
    }

    fn read_link(&self, node: u64, out: &mut Vec<u8>) -> Result<(), Errno> {
        let Node::Tree(nid) = self.node(node) else {
            return Err(Errno::INVAL);
        };
        let target = self.image.tree().read_link(nid);
        out.extend_from_slice(target.map_err(|error| self.damaged(&error))?);
        Ok(())
    }

    fn read_dir(&self, dir: u64, cookie: u64, list: &mut DirList<'_>) -> Result<(), Errno> {
        self.list(self.node(dir), cookie, list)
    }

    fn read_now(
        &self,
        node: u64,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, Errno> {
        let node = self.node(node);
        let read = match node {
            Node::Tree(nid) => self.image.read_cached(nid, offset, len, out),
            Node::Blob(index) => self.image.read_layer_cached(index, offset, len, out),
            Node::Top | Node::Blobs => Ok(true),
        };
        read.map_err(|error| read_failed(&self.image, node, offset, len, &error))
    }

    fn read_later(&self, node: u64, offset: u64, len: usize, mut reply: Reply) {
        let (image, node) = (self.image.clone(), self.node(node));
        self.runtime.spawn(async move {
            let result = tokio::select! {
                biased;
                result = read(&image, node, offset, len) => result,
                () = too_long_after_a_signal(&mut reply) => return reply.error(Errno::INTR),
            };
            match result {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(read_failed(&image, node, offset, len, &error)),
            }
        });
    }

    fn xattr(&self, node: u64, name: &[u8], out: &mut Vec<u8>) -> Result<(), Errno> {
        check_xattr_name(name)?;
        let Node::Tree(nid) = self.node(node) else {
            return Err(Errno::NODATA);
        };
        let value = self.image.tree().xattr(nid, name);
        let value = value.map_err(|error| self.damaged(&error))?;
        out.extend_from_slice(value.ok_or(Errno::NODATA)?);
        Ok(())
    }

    fn xattr_names(&self, node: u64, out: &mut Vec<u8>) -> Result<(), Errno> {
        let Node::Tree(nid) = self.node(node) else {
            return Ok(());
        };
        let entries = self.image.tree().xattrs(nid);
        for entry in entries.map_err(|error| self.damaged(&error))? {
            out.extend_from_slice(&entry.map_err(|error| self.damaged(&error))?.name());
            out.push(0);
        }
        Ok(())
    }

    fn statistics(&self) -> Statistics {
        Statistics {
            bytes: self.image.info().unpacked_bytes,
            nodes: self.image.tree().inode_count(),
        }
    }
}

async fn read(
    image: &ImageFs,
    node: Node,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, ImageFsError> {
    match node {
        Node::Blob(index) => image.read_layer(index, offset, len).await,
        Node::Tree(nid) => image.read(nid, offset, len).await,
        Node::Top | Node::Blobs => Ok(Vec::new()),
    }
}

/// Returns when who asked may have been killed for so long that he should not be kept.
async fn too_long_after_a_signal(reply: &mut Reply) {
    reply.signalled().await;
    tokio::time::sleep(AFTER_A_SIGNAL).await;
}

/// The kernel asks FUSE about any name. Other file systems are asked for those in a namespace of xattr(7) only, and for
/// none that ends there.
fn check_xattr_name(name: &[u8]) -> Result<(), Errno> {
    const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
    if NAMESPACES.contains(&name) {
        return Err(Errno::INVAL);
    }
    let known = NAMESPACES.iter().any(|space| name.starts_with(space)) || ACLS.contains(&name);
    known.then_some(()).ok_or(Errno::OPNOTSUPP)
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
    Errno::IO
}

fn attributes_of_inode(node: u64, inode: &Inode) -> Attributes {
    Attributes {
        node,
        size: inode.size,
        mtime: inode.mtime,
        mtime_nsec: inode.mtime_nsec,
        mode: u32::from(inode.mode),
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
    }
}

/// Of what no image brings.
fn synthetic(node: u64, mode: u32, size: u64) -> Attributes {
    Attributes {
        node,
        size,
        mtime: 0,
        mtime_nsec: 0,
        mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
    }
}

fn type_bits(kind: FileType) -> u32 {
    match kind {
        FileType::Regular => REGULAR_FILE,
        FileType::Directory => DIRECTORY,
        FileType::Symlink => 0o120_000,
        FileType::CharDevice => 0o020_000,
        FileType::BlockDevice => 0o060_000,
        FileType::Fifo => 0o010_000,
    }
}
