//! [`LayerIndexer`]: one layer in one pass.
//!
//! Most layers are tars. An artifact's layer may be one file instead: its blob is the file, byte for byte, and takes the
//! place of the tar, with the content at position 0.

use crate::{
    content::Content,
    hash::Sha256,
    stage::{Stage, Work},
    tar::TarError,
};
use bytes::Bytes;
use clip_archive::{Digest, LayerSection};
use clip_seek::{Compression, DecodeError, SpanIndexer, SpanLimits};
use std::{convert::Infallible, thread::available_parallelism};

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
///
/// Where there are several processors, both hashes and the tar walk of a large layer have threads
/// beside the decoder's, which is the one that pushes. Nothing is copied for them.
#[derive(Debug)]
pub struct LayerIndexer {
    info: LayerInfo,
    limits: SpanLimits,
    decoder: Decoder,
    blob: Stage<BlobHash>,
    content: Stage<Content>,
}

/// The compression is told from the first four bytes; until they are here, they wait.
#[derive(Debug)]
enum Decoder {
    Sniffing(Vec<u8>),
    Decoding(SpanIndexer),
}

/// What has a thread beside the decoder's.
#[derive(Debug, Clone, Copy)]
struct Threads {
    blob: bool,
    content: bool,
}

#[derive(Debug)]
struct BlobHash {
    hash: Sha256,
    bytes: u64,
}

/// Bytes that [`Compression::sniff`] looks at.
const SNIFF_LEN: usize = 4;
/// Smaller layers take about as long as starting threads for them would.
const THREADS_FROM: u64 = 256 << 10;
/// The blob is smaller than its content and is hashed sooner: waking another thread for it takes as much of a processor's
/// time as it saves of the clock's, 2 ms of 36 at half this size.
const BLOB_THREAD_FROM: u64 = 8 << 20;

impl LayerIndexer {
    /// An indexer at the start of the layer described by `info`.
    pub fn new(info: LayerInfo, limits: SpanLimits) -> Self {
        let parallel = available_parallelism().is_ok_and(|processors| processors.get() > 1);
        let threads = Threads {
            blob: parallel && info.size >= BLOB_THREAD_FROM,
            content: parallel && info.size >= THREADS_FROM,
        };
        Self::with_threads(info, limits, threads)
    }

    fn with_threads(info: LayerInfo, limits: SpanLimits, threads: Threads) -> Self {
        let decoder = match &info.content {
            LayerContent::Tar { .. } => Decoder::Sniffing(Vec::with_capacity(SNIFF_LEN)),
            // A file is kept as it is, even one that is compressed itself.
            LayerContent::File(_) => {
                Decoder::Decoding(SpanIndexer::new(Compression::Plain, limits))
            }
        };
        let has_tar = matches!(info.content, LayerContent::Tar { .. });
        let blob = BlobHash {
            hash: Sha256::new(),
            bytes: 0,
        };
        Self {
            decoder,
            blob: Stage::new(blob, threads.blob),
            content: Stage::new(
                Content::new(info.content.clone()),
                threads.content && has_tar,
            ),
            info,
            limits,
        }
    }

    /// Takes the next bytes of the blob. After an error the layer is done with.
    pub fn push(&mut self, blob: Bytes) -> Result<(), LayerError> {
        let Ok(()) = self.blob.push(blob.clone());
        let Decoder::Sniffing(first_bytes) = &mut self.decoder else {
            return self.decode(&blob);
        };
        first_bytes.extend_from_slice(&blob);
        match first_bytes.len() {
            0..SNIFF_LEN => Ok(()),
            _ => self.begin_decoding(),
        }
    }

    /// The blob is complete: checks both digests and hands out the section.
    pub fn finish(mut self) -> Result<IndexedLayer, LayerError> {
        self.begin_decoding()?;
        let Decoder::Decoding(indexer) = self.decoder else {
            unreachable!("decoding has begun")
        };
        let (info, mut content) = (self.info, self.content);
        let layer = info.digest;
        let mut walked = Ok(());
        let seek = indexer.finish(&mut |decoded| walked = content.push(decoded));
        let content = walked.and_then(|()| content.finish());
        let content = content.map_err(|source| LayerError::Tar { layer, source })?;
        check_blob(&info, self.blob)?;
        let seek = seek.map_err(|source| LayerError::Decode { layer, source })?;
        let (diff_id, walked) = content.finish(&info)?;
        let section = LayerSection {
            digest: layer,
            diff_id,
            size: info.size,
            media_type: info.media_type,
            entries: walked.entries,
            seek,
        };
        Ok(IndexedLayer {
            section,
            runtime_paths: walked.runtime_paths,
        })
    }

    fn begin_decoding(&mut self) -> Result<(), LayerError> {
        let Decoder::Sniffing(first_bytes) = &mut self.decoder else {
            return Ok(());
        };
        let first_bytes = Bytes::from(std::mem::take(first_bytes));
        let compression = Compression::sniff(&first_bytes);
        self.decoder = Decoder::Decoding(SpanIndexer::new(compression, self.limits));
        self.decode(&first_bytes)
    }

    /// Of two errors the one is told that comes first in the stream: what the decoder gave before
    /// its error may be no tar already.
    fn decode(&mut self, blob: &Bytes) -> Result<(), LayerError> {
        let Decoder::Decoding(indexer) = &mut self.decoder else {
            unreachable!("decoding has begun")
        };
        let layer = self.info.digest;
        let tar_error = |source| LayerError::Tar { layer, source };
        let mut walked = Ok(());
        let decoded = indexer.push(blob, &mut |decoded| {
            if walked.is_ok() {
                walked = self.content.push(decoded);
            }
        });
        walked.map_err(tar_error)?;
        let Err(source) = decoded else {
            return Ok(());
        };
        self.content.finish().map_err(tar_error)?;
        Err(LayerError::Decode { layer, source })
    }
}

fn check_blob(info: &LayerInfo, mut blob: Stage<BlobHash>) -> Result<(), LayerError> {
    let Ok(blob) = blob.finish();
    let found = blob.hash.digest();
    match found == info.digest && blob.bytes == info.size {
        true => Ok(()),
        false => Err(LayerError::BlobDigest {
            layer: info.digest,
            found,
            bytes: blob.bytes,
        }),
    }
}

impl Work for BlobHash {
    type Error = Infallible;

    fn take(&mut self, blob: &[u8]) -> Result<(), Infallible> {
        self.hash.update(blob);
        self.bytes += blob.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
