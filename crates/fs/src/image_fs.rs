//! [`ImageFs`]: an image as a filesystem, without any protocol.

use crate::{
    contents,
    failed_reads::FailedReads,
    foresight::Foresight,
    mapped::Mapped,
    resolve::{Resolved, resolve},
};
use clip_archive::erofs::{Extent, FileType, Image, Nid, Place, ReadError as TreeError};
use clip_cache::{LayerReader, ReadError};
use std::{
    ops::Range,
    sync::{Arc, Once},
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

/// Facts about the image, for messages and `statfs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// `registry/repository[:tag]`.
    pub name: String,
    /// Sum of the uncompressed layers' sizes in bytes.
    pub unpacked_bytes: u64,
}

/// An opened image.
#[derive(Debug)]
pub struct ImageFs {
    tree: Arc<Image<Mapped>>,
    layers: Vec<LayerReader>,
    info: ImageInfo,
    read_timeout: Duration,
    failed_reads: FailedReads,
    contents_told: Once,
    foresight: Arc<Foresight>,
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageFsError {
    /// The tree's file is damaged.
    #[error("the expanded tree is damaged: {0}")]
    Tree(#[from] TreeError),
    /// Content could not be had.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The tree points to a layer that the image does not have.
    #[error("the expanded tree is damaged: a file lies in layer {0}, which does not exist")]
    NoSuchLayer(u16),
}

/// Longer is for ever, and must still be a point in time.
const READ_TIMEOUT_MAX: Duration = Duration::from_secs(365 * 86400);

impl ImageFs {
    /// Puts a tree and its layers together. `layers[i]` is the tree's device `i`.
    pub fn new(
        tree: Image<Mapped>,
        layers: Vec<LayerReader>,
        info: ImageInfo,
        read_timeout: Duration,
    ) -> Self {
        let tree = Arc::new(tree);
        Self {
            failed_reads: FailedReads::new(layers.len()),
            contents_told: Once::new(),
            foresight: Foresight::watch(tree.clone(), &layers),
            tree,
            layers,
            info,
            read_timeout,
        }
    }

    /// The expanded tree.
    pub fn tree(&self) -> &Image<Mapped> {
        &self.tree
    }

    /// The layers, base first.
    pub fn layers(&self) -> &[LayerReader] {
        &self.layers
    }

    /// Facts about the image.
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// What could not be read.
    pub fn failed_reads(&self) -> &FailedReads {
        &self.failed_reads
    }

    /// Appends up to `len` bytes of file `nid` from `offset` on to `out`, if all of them are on the
    /// node; false (and `out` unchanged) when something must be fetched. Never waits for a network.
    pub fn read_cached(
        &self,
        nid: Nid,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, ImageFsError> {
        let start = out.len();
        for extent in self
            .tree
            .extents(nid, offset..offset.saturating_add(len as u64))?
        {
            let extent = extent?;
            let at = out.len();
            out.resize(at + extent.len as usize, 0);
            if let Place::Layer { index, offset } = extent.place
                && !self.layer(index)?.read_cached(offset, &mut out[at..])
            {
                out.truncate(start);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Up to `len` bytes of file `nid` from `offset` on; fewer at the file's end. Waits at most the
    /// read timeout for what must be fetched.
    pub async fn read(&self, nid: Nid, offset: u64, len: usize) -> Result<Vec<u8>, ImageFsError> {
        self.tell_contents(&Handle::current());
        let deadline = self.deadline();
        let mut out = Vec::with_capacity(len);
        for extent in self
            .tree
            .extents(nid, offset..offset.saturating_add(len as u64))?
        {
            let extent = extent?;
            let at = out.len();
            out.resize(at + extent.len as usize, 0);
            if let Place::Layer { index, offset } = extent.place {
                let layer = self.layer(index)?;
                layer.read(offset, &mut out[at..], deadline).await?;
            }
        }
        Ok(out)
    }

    /// Appends up to `len` bytes of layer `index`'s tar to `out` if they are on the node.
    pub fn read_layer_cached(
        &self,
        index: u16,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, ImageFsError> {
        let layer = self.layer(index)?;
        let at = out.len();
        out.resize(at + clamp(layer.size(), offset, len), 0);
        let found = layer.read_cached(offset, &mut out[at..]);
        if !found {
            out.truncate(at);
        }
        Ok(found)
    }

    /// Up to `len` bytes of layer `index`'s tar.
    pub async fn read_layer(
        &self,
        index: u16,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, ImageFsError> {
        self.tell_contents(&Handle::current());
        let layer = self.layer(index)?;
        let mut out = vec![0; clamp(layer.size(), offset, len)];
        layer.read(offset, &mut out, self.deadline()).await?;
        Ok(out)
    }

    /// Follows `path` from the root, symbolic links included; `follow_last` says whether a link at
    /// the end is followed, too.
    pub fn resolve(&self, path: &[u8], follow_last: bool) -> Result<Resolved, TreeError> {
        resolve(&self.tree, path, follow_last)
    }

    /// Somebody is about to run the command of these `words`, which are looked for in the directories of `path`. Unless they
    /// are here, fetches on `runtime` what that reads before it does anything: programs, the libraries that they are linked
    /// with, scripts and what runs them.
    pub fn expect(&self, words: &[u8], path: Vec<Vec<u8>>, runtime: &Handle) {
        let missing = self.foresight.missing_of(words, path);
        if !missing.is_empty() {
            self.tell_contents(runtime);
            self.foresight.expect(missing, runtime);
        }
    }

    /// The layer that has the byte of file `nid` at `offset`.
    pub fn layer_of(&self, nid: Nid, offset: u64) -> Option<u16> {
        let mut extents = self
            .tree
            .extents(nid, offset..offset.saturating_add(1))
            .ok()?;
        match extents.next()?.ok()?.place {
            Place::Layer { index, .. } => Some(index),
            Place::Hole => None,
        }
    }

    /// A path of `nid`, for messages. Searches the whole tree: for errors only.
    pub fn path_of(&self, nid: Nid) -> Option<String> {
        self.find(|found, _| found == nid)
    }

    /// A path of a file that has bytes within `range` of layer `index`'s tar, for messages. Searches the whole tree, as
    /// above.
    pub fn path_at(&self, index: u16, range: Range<u64>) -> Option<String> {
        let holds = |extent: Extent| match extent.place {
            Place::Layer {
                index: layer,
                offset: start,
            } => layer == index && start < range.end && range.start < start + extent.len,
            _ => false,
        };
        self.find(|nid, kind| {
            let extents = match kind {
                FileType::Regular => self.tree.extents(nid, 0..u64::MAX).ok(),
                _ => None,
            };
            extents.is_some_and(|extents| extents.flatten().any(holds))
        })
    }

    /// The path of the first node that is `wanted`.
    fn find(&self, wanted: impl Fn(Nid, FileType) -> bool) -> Option<String> {
        if wanted(self.tree.root(), FileType::Directory) {
            return Some("/".to_owned());
        }
        let mut to_visit = vec![(self.tree.root(), String::new())];
        while let Some((dir, path)) = to_visit.pop() {
            for entry in self.tree.read_dir(dir, 0).ok()?.flatten() {
                if entry.name == b"." || entry.name == b".." {
                    continue;
                }
                let path = format!("{path}/{}", String::from_utf8_lossy(entry.name));
                if wanted(entry.nid, entry.kind) {
                    return Some(path);
                }
                if entry.kind == FileType::Directory {
                    to_visit.push((entry.nid, path));
                }
            }
        }
        None
    }

    /// Tells the layers where their files lie: once somebody waits for content, so that an image of which everything is
    /// here costs nothing, and beside that reader.
    fn tell_contents(&self, runtime: &Handle) {
        self.contents_told.call_once(|| {
            let (tree, layers) = (self.tree.clone(), self.layers.clone());
            let (foresight, runtime) = (Arc::downgrade(&self.foresight), runtime.clone());
            runtime.clone().spawn_blocking(move || {
                if let Some(foresight) = foresight.upgrade() {
                    contents::tell(&tree, &layers, &foresight, runtime);
                }
            });
        });
    }

    fn layer(&self, index: u16) -> Result<&LayerReader, ImageFsError> {
        self.layers
            .get(usize::from(index))
            .ok_or(ImageFsError::NoSuchLayer(index))
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.read_timeout.min(READ_TIMEOUT_MAX)
    }
}

/// How many of `len` bytes at `offset` lie within `size`.
fn clamp(size: u64, offset: u64, len: usize) -> usize {
    size.saturating_sub(offset).min(len as u64) as usize
}
