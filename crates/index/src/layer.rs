//! [`LayerIndexer`]: one layer in one pass.
//!
//! Most layers are tars. An artifact's layer may be one file instead: its blob is the file, byte for byte, and takes the
//! place of the tar, with the content at position 0.

use crate::hash::Sha256;
use crate::tar::{TarError, TarWalker, Walked};
use clip_archive::{Digest, Entry, EntryKind, LayerSection, Segment, merge::is_runtime_path};
use clip_seek::{Compression, DecodeError, SpanIndexer, SpanLimits};

/// What manifest and configuration promise about a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Digest of the blob.
    pub digest: Digest,
    /// Digest of the uncompressed tar, where the image says it.
    pub diff_id: Option<Digest>,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Media type of the blob.
    pub media_type: String,
    /// What the blob is.
    pub content: LayerContent,
}

/// What a layer's blob is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LayerContent {
    /// A tar, compressed or not.
    Tar {
        /// If given, the directory in which all of its entries must lie.
        top: Option<Vec<u8>>,
    },
    /// One file.
    File(FileLayer),
}

/// A file that is a layer of its own, owner 0:0.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileLayer {
    /// Path from the root, normalised like [`Entry::path`], not empty.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u16,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds within the second.
    pub mtime_nsec: u32,
}

/// Why a layer cannot be indexed.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The compressed stream is broken.
    #[error("layer {layer}: {source}")]
    Decode {
        /// The layer's digest.
        layer: Digest,
        /// What the decoder says.
        source: DecodeError,
    },
    /// The tar stream is broken or holds something that cannot be mounted.
    #[error("layer {layer}: {source}")]
    Tar {
        /// The layer's digest.
        layer: Digest,
        /// What the tar walk says.
        source: TarError,
    },
    /// The registry sent other bytes than the manifest names.
    #[error(
        "layer {layer}: the blob's digest is {found}, {bytes} bytes long; the registry or something on the way changed it: try again, or push the image again"
    )]
    BlobDigest {
        /// The promised digest.
        layer: Digest,
        /// What was received.
        found: Digest,
        /// How much was received.
        bytes: u64,
    },
    /// An artifact's directory holds something outside of itself.
    #[error(
        "layer {layer}: the entry {path:?} lies outside of the directory {top:?} that the layer is said to be: pack it again"
    )]
    Outside {
        /// The layer's digest.
        layer: Digest,
        /// The entry, for people.
        path: String,
        /// The directory, for people.
        top: String,
    },
    /// The blob decodes to another tar than the image configuration names.
    #[error(
        "layer {layer}: its content has diffID {found}, the image configuration says {expected}: build and push the image again"
    )]
    DiffId {
        /// The layer's digest.
        layer: Digest,
        /// What the configuration says.
        expected: Digest,
        /// What the content is.
        found: Digest,
    },
}

/// A finished layer.
#[derive(Debug)]
pub struct IndexedLayer {
    /// The section for the archive.
    pub section: LayerSection,
    /// Entries below `/proc`, `/sys` and `/dev` that were left out.
    pub runtime_paths: Vec<Vec<u8>>,
}

/// Indexes one layer while it streams by.
#[derive(Debug)]
pub struct LayerIndexer {
    info: LayerInfo,
    limits: SpanLimits,
    stage: Stage,
    blob_hash: Sha256,
    blob_len: u64,
    content: Content,
}

/// The compression is told from the first four bytes; until they are here, they wait.
#[derive(Debug)]
enum Stage {
    Sniffing(Vec<u8>),
    Decoding(SpanIndexer),
}

/// Everything that is done with decoded bytes.
#[derive(Debug)]
enum Content {
    Tar(Box<TarContent>),
    File(FileLayer),
}

#[derive(Debug)]
struct TarContent {
    hash: Sha256,
    walker: TarWalker,
    error: Option<TarError>,
    top: Option<Vec<u8>>,
}

/// Bytes that [`Compression::sniff`] looks at.
const SNIFF_LEN: usize = 4;

impl LayerIndexer {
    /// An indexer at the start of the layer described by `info`.
    pub fn new(info: LayerInfo, limits: SpanLimits) -> Self {
        let stage = match &info.content {
            LayerContent::Tar { .. } => Stage::Sniffing(Vec::with_capacity(SNIFF_LEN)),
            // A file is kept as it is, even one that is compressed itself.
            LayerContent::File(_) => Stage::Decoding(SpanIndexer::new(Compression::Plain, limits)),
        };
        Self {
            content: Content::new(info.content.clone()),
            info,
            limits,
            stage,
            blob_hash: Sha256::new(),
            blob_len: 0,
        }
    }

    /// Takes the next bytes of the blob.
    pub fn push(&mut self, blob: &[u8]) -> Result<(), LayerError> {
        self.blob_hash.update(blob);
        self.blob_len += blob.len() as u64;
        let Stage::Sniffing(first_bytes) = &mut self.stage else {
            return self.decode(blob);
        };
        first_bytes.extend_from_slice(blob);
        match first_bytes.len() {
            0..SNIFF_LEN => Ok(()),
            _ => self.begin_decoding(),
        }
    }

    /// The blob is complete: checks both digests and hands out the section.
    pub fn finish(mut self) -> Result<IndexedLayer, LayerError> {
        let layer = self.info.digest;
        let found = self.blob_hash.digest();
        if found != layer || self.blob_len != self.info.size {
            return Err(LayerError::BlobDigest {
                layer,
                found,
                bytes: self.blob_len,
            });
        }
        if matches!(self.stage, Stage::Sniffing(_)) {
            self.begin_decoding()?;
        }
        let Stage::Decoding(indexer) = self.stage else {
            unreachable!("decoding has begun")
        };
        let seek = indexer
            .finish()
            .map_err(|source| LayerError::Decode { layer, source })?;
        let (diff_id, walked) = self.content.finish(&self.info)?;
        let section = LayerSection {
            digest: layer,
            diff_id,
            size: self.info.size,
            media_type: self.info.media_type,
            entries: walked.entries,
            seek,
        };
        Ok(IndexedLayer {
            section,
            runtime_paths: walked.runtime_paths,
        })
    }

    fn begin_decoding(&mut self) -> Result<(), LayerError> {
        let Stage::Sniffing(first_bytes) = &mut self.stage else {
            return Ok(());
        };
        let first_bytes = std::mem::take(first_bytes);
        self.stage = Stage::Decoding(SpanIndexer::new(
            Compression::sniff(&first_bytes),
            self.limits,
        ));
        self.decode(&first_bytes)
    }

    fn decode(&mut self, blob: &[u8]) -> Result<(), LayerError> {
        let Stage::Decoding(indexer) = &mut self.stage else {
            unreachable!("decoding has begun")
        };
        let layer = self.info.digest;
        let content = &mut self.content;
        indexer
            .push(blob, &mut |decoded| content.take(decoded))
            .map_err(|source| LayerError::Decode { layer, source })?;
        match &mut self.content {
            Content::Tar(tar) => match tar.error.take() {
                Some(source) => Err(LayerError::Tar { layer, source }),
                None => Ok(()),
            },
            Content::File(_) => Ok(()),
        }
    }
}

impl Content {
    fn new(content: LayerContent) -> Self {
        match content {
            LayerContent::Tar { top } => Self::Tar(Box::new(TarContent {
                hash: Sha256::new(),
                walker: TarWalker::new(),
                error: None,
                top,
            })),
            LayerContent::File(file) => Self::File(file),
        }
    }

    fn take(&mut self, decoded: &[u8]) {
        if let Self::Tar(tar) = self {
            tar.hash.update(decoded);
            if tar.error.is_none() {
                tar.error = tar.walker.push(decoded).err();
            }
        }
    }

    /// The diffID, checked, and the entries.
    fn finish(self, info: &LayerInfo) -> Result<(Digest, Walked), LayerError> {
        let layer = info.digest;
        match self {
            Self::Tar(tar) => {
                let diff_id = as_promised(info, tar.hash.digest())?;
                let walked = tar.walker.finish();
                let walked = walked.map_err(|source| LayerError::Tar { layer, source })?;
                match tar.top.and_then(|top| outside(&walked, top)) {
                    Some((path, top)) => Err(LayerError::Outside { layer, path, top }),
                    None => Ok((diff_id, walked)),
                }
            }
            // The blob's digest has been checked, and it is the content's.
            Self::File(file) => Ok((as_promised(info, layer)?, file.walked(info.size))),
        }
    }
}

fn as_promised(info: &LayerInfo, found: Digest) -> Result<Digest, LayerError> {
    match info.diff_id {
        Some(expected) if expected != found => Err(LayerError::DiffId {
            layer: info.digest,
            expected,
            found,
        }),
        _ => Ok(found),
    }
}

/// The first entry that does not lie at or below `top`.
fn outside(walked: &Walked, top: Vec<u8>) -> Option<(String, String)> {
    let is_inside = |path: &[u8]| {
        let rest = path.strip_prefix(top.as_slice());
        top.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    };
    let paths = walked.entries.iter().map(|entry| &entry.path);
    let stray = paths
        .chain(&walked.runtime_paths)
        .find(|path| !is_inside(path))?;
    let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    Some((text(stray), text(&top)))
}

impl FileLayer {
    fn walked(self, size: u64) -> Walked {
        if is_runtime_path(&self.path) {
            return Walked {
                entries: vec![],
                runtime_paths: vec![self.path],
            };
        }
        let whole = Segment {
            logical: 0,
            length: size,
            tar_offset: 0,
        };
        let segments = if size == 0 { vec![] } else { vec![whole] };
        Walked {
            entries: vec![Entry {
                path: self.path,
                kind: EntryKind::File { size, segments },
                mode: self.mode,
                uid: 0,
                gid: 0,
                mtime: self.mtime,
                mtime_nsec: self.mtime_nsec,
                xattrs: vec![],
            }],
            runtime_paths: vec![],
        }
    }
}
