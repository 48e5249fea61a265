//! [`LayerIndexer`]: one layer in one pass.

use crate::hash::Sha256;
use crate::tar::{TarError, TarWalker};
use clip_archive::{Digest, LayerSection};
use clip_seek::{Compression, DecodeError, SpanIndexer, SpanLimits};

/// What manifest and configuration promise about a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Digest of the blob.
    pub digest: Digest,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Media type of the blob.
    pub media_type: String,
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
struct Content {
    hash: Sha256,
    tar: TarWalker,
    error: Option<TarError>,
}

/// Bytes that [`Compression::sniff`] looks at.
const SNIFF_LEN: usize = 4;

impl LayerIndexer {
    /// An indexer at the start of the layer described by `info`.
    pub fn new(info: LayerInfo, limits: SpanLimits) -> Self {
        Self {
            info,
            limits,
            stage: Stage::Sniffing(Vec::with_capacity(SNIFF_LEN)),
            blob_hash: Sha256::new(),
            blob_len: 0,
            content: Content {
                hash: Sha256::new(),
                tar: TarWalker::new(),
                error: None,
            },
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
        let found = self.content.hash.digest();
        if found != self.info.diff_id {
            return Err(LayerError::DiffId {
                layer,
                expected: self.info.diff_id,
                found,
            });
        }
        let walked = self
            .content
            .tar
            .finish()
            .map_err(|source| LayerError::Tar { layer, source })?;
        let section = LayerSection {
            digest: layer,
            diff_id: self.info.diff_id,
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
        match self.content.error.take() {
            Some(source) => Err(LayerError::Tar { layer, source }),
            None => Ok(()),
        }
    }
}

impl Content {
    fn take(&mut self, decoded: &[u8]) {
        self.hash.update(decoded);
        if self.error.is_none() {
            self.error = self.tar.push(decoded).err();
        }
    }
}
