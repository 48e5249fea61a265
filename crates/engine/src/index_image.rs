//! [`index_image`]: a reference goes in, an archive comes out.

use crate::{
    digest_of,
    layer_content::layer_content,
    reuse::{ArchivePlace, Layer, find_archives, find_section},
};
use clip_archive::{
    Archive, ArchiveWriter, Digest, LayerSection, RuntimeDirs, Summary, erofs::ImageWriter,
    head::Indexer, write::ImageInfo,
};
use clip_index::{INDEXER_VERSION, IndexedLayer, LayerError, LayerIndexer, LayerInfo};
use clip_registry::{
    BlobSource, BlobStream, Client, FetchError, ImageSource, Platform, ResolveError, ResolvedImage,
};
use clip_seek::SpanLimits;
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// Chunks that a download may be ahead of the decoder: keeps both busy, holds little. Those of a layout on disk are the
/// largest, 128 KiB.
const CHUNKS_AHEAD: usize = 4;
/// Layers that are indexed at once: more than that keep no processor busier, as each uses three, and only take memory.
const LAYERS_AT_ONCE: usize = 4;
/// Connections over which layers come, all together. Twice as many as what one connection to a large registry lacks
/// to keep two processors busy (50 MB/s against 150); each costs 2 MiB.
const CONNECTIONS: usize = 8;

/// How to index.
#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// Which platform of a multi-platform image.
    pub platform: Platform,
    /// What becomes of `/proc`, `/sys` and `/dev`.
    pub runtime_dirs: RuntimeDirs,
    /// How large spans may be.
    pub span_limits: SpanLimits,
    /// Earlier archives, which are believed: layers that they describe are not downloaded.
    pub reuse: Vec<Archive>,
    /// Where more of them may be found.
    pub reuse_from: Vec<Arc<dyn ArchivePlace>>,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            runtime_dirs: RuntimeDirs::default(),
            span_limits: SpanLimits::default(),
            reuse: Vec::new(),
            reuse_from: Vec::new(),
        }
    }
}

impl IndexOptions {
    fn indexer(&self) -> Indexer {
        Indexer {
            version: INDEXER_VERSION,
            span_tar_max: self.span_limits.tar,
            span_blob_max: self.span_limits.blob,
        }
    }
}

/// A finished archive and what it took.
#[derive(Debug)]
pub struct IndexedImage {
    /// The archive's bytes.
    pub archive: Vec<u8>,
    /// What it holds.
    pub summary: Summary,
    /// What was indexed.
    pub image: ResolvedImage,
    /// How it was indexed.
    pub indexer: Indexer,
    /// From the first request to the last byte.
    pub duration: Duration,
}

/// Is told how far indexing is.
pub trait Progress: Send + Sync {
    /// The image was found; its layers follow.
    fn resolved(&self, image: &ResolvedImage);
    /// So many more bytes of layer `index` were taken in.
    fn advanced(&self, index: usize, bytes: u64);
    /// Layer `index` is done.
    fn layer_done(&self, index: usize);
    /// Layer `index` was taken from an earlier archive.
    fn reused(&self, index: usize);
    /// An entry at or below `/proc`, `/sys` or `/dev` was left out.
    fn left_out(&self, path: &[u8]);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn resolved(&self, _image: &ResolvedImage) {}
    fn advanced(&self, _index: usize, _bytes: u64) {}
    fn layer_done(&self, _index: usize) {}
    fn reused(&self, _index: usize) {}
    fn left_out(&self, _path: &[u8]) {}
}

/// Why an image cannot be indexed.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The image was not found, or its manifest or configuration is not usable.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A layer is in a format that nobody here knows.
    #[error(
        "layer {layer} has the media type {media_type}, which is not supported: push the image with layers that are tar, gzip or zstd, or an artifact whose files have names (annotation org.opencontainers.image.title)"
    )]
    MediaType {
        /// The layer's digest.
        layer: Digest,
        /// Its media type.
        media_type: String,
    },
    /// An artifact's file has a name that cannot be shown.
    #[error("layer {layer} names its file {name:?}: {problem}; push it with another name")]
    FileName {
        /// The layer's digest.
        layer: Digest,
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A layer could not be downloaded.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A layer is not what it should be.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The layers cannot be laid over each other or written as a tree.
    #[error("{0}")]
    Tree(String),
    /// The indexing thread died.
    #[error("indexing was cut short: {0}; this is a defect in clip")]
    Panicked(#[from] tokio::task::JoinError),
}

impl IndexError {
    /// CamelCase name of the cause, as Kubernetes conditions show it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Resolve(error) => error.reason(),
            Self::Fetch(error) => error.reason(),
            Self::Layer(LayerError::BlobDigest { .. } | LayerError::DiffId { .. }) => {
                "DigestMismatch"
            }
            Self::MediaType { .. } => "UnsupportedMediaType",
            Self::FileName { .. } | Self::Layer(_) | Self::Tree(_) => "UnsupportedLayer",
            Self::Panicked(_) => "InternalError",
        }
    }

    /// Whether trying again cannot help.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Resolve(error) => error.is_permanent(),
            Self::Fetch(error) => error.is_permanent(),
            // A blob that was damaged on its way may arrive intact next time.
            Self::Layer(LayerError::BlobDigest { .. }) | Self::Panicked(_) => false,
            Self::MediaType { .. } | Self::FileName { .. } => true,
            Self::Layer(_) | Self::Tree(_) => true,
        }
    }
}

/// Indexes the image at `source`: resolves it, streams its layers once, in parallel, and writes the
/// archive. Nothing touches the disk.
pub async fn index_image(
    client: &Client,
    source: &ImageSource,
    options: &IndexOptions,
    progress: Arc<dyn Progress>,
) -> Result<IndexedImage, IndexError> {
    let started = Instant::now();
    let image = client.resolve(source, &options.platform).await?;
    progress.resolved(&image);
    let content = |layer| Ok((layer, layer_content(&image, layer)?));
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(content)
        .collect::<Result<_, IndexError>>()?;
    let sections = index_layers(&client.blobs(&image), &layers, options, progress).await?;
    let info = image_info(&image, options);
    let writing = tokio::task::spawn_blocking(move || write_archive(sections, info));
    let (archive, summary) = writing.await??;
    Ok(IndexedImage {
        archive,
        summary,
        image,
        indexer: options.indexer(),
        duration: started.elapsed(),
    })
}

/// One section per layer, in order. As many layers at once as there are processors, up to a few; a
/// layer that the image uses twice is indexed once.
async fn index_layers(
    blobs: &BlobSource,
    layers: &[Layer<'_>],
    options: &IndexOptions,
    progress: Arc<dyn Progress>,
) -> Result<Vec<Arc<LayerSection>>, IndexError> {
    let indexer = options.indexer();
    let found = find_archives(&options.reuse_from, &options.reuse, layers, &indexer).await;
    let earlier = || options.reuse.iter().chain(&found);
    let parallel = std::thread::available_parallelism().map_or(2, usize::from);
    let parallel = parallel.min(LAYERS_AT_ONCE);
    let connections = CONNECTIONS / parallel;
    // One blob may be two files of an artifact, with different names.
    let identity = |(layer, content): &Layer<'_>| (layer.digest.clone(), content.clone());
    let mut first_use = HashMap::new();
    for (index, layer) in layers.iter().enumerate() {
        first_use.entry(identity(layer)).or_insert(index);
    }
    let distinct = layers
        .iter()
        .enumerate()
        .filter(|(index, layer)| first_use[&identity(layer)] == *index);
    let indexed: Vec<(usize, Arc<LayerSection>)> = stream::iter(distinct)
        .map(|(index, layer)| {
            let progress = progress.clone();
            async move {
                let (descriptor, _) = layer;
                if let Some(section) = find_section(earlier(), layer, &indexer) {
                    progress.reused(index);
                    return Ok((index, Arc::new(section)));
                }
                let limits = options.span_limits;
                let blob = blobs.stream_in_parts(&descriptor.digest, descriptor.size, connections);
                let done = index_layer(blob.await?, index, layer, limits, progress.clone()).await?;
                done.runtime_paths
                    .iter()
                    .for_each(|path| progress.left_out(path));
                progress.layer_done(index);
                Ok::<_, IndexError>((index, Arc::new(done.section)))
            }
        })
        .buffer_unordered(parallel)
        .try_collect()
        .await?;
    let by_index: HashMap<usize, Arc<LayerSection>> = indexed.into_iter().collect();
    Ok(layers
        .iter()
        .map(|layer| by_index[&first_use[&identity(layer)]].clone())
        .collect())
}

/// Downloads on the runtime and decodes on a thread of its own.
async fn index_layer(
    mut blob: BlobStream,
    index: usize,
    (layer, content): &Layer<'_>,
    limits: SpanLimits,
    progress: Arc<dyn Progress>,
) -> Result<IndexedLayer, IndexError> {
    let info = LayerInfo {
        digest: digest_of(&layer.digest),
        diff_id: layer.diff_id.as_ref().map(digest_of),
        size: layer.size,
        media_type: layer.media_type.clone(),
        content: content.clone(),
    };
    let (chunks, mut received) = mpsc::channel::<bytes::Bytes>(CHUNKS_AHEAD);
    let decoding = tokio::task::spawn_blocking(move || {
        let mut indexer = LayerIndexer::new(info, limits);
        let mut taken = Vec::with_capacity(CHUNKS_AHEAD);
        // All that are there: each time, the other side is woken up.
        while received.blocking_recv_many(&mut taken, CHUNKS_AHEAD) > 0 {
            for chunk in taken.drain(..) {
                let bytes = chunk.len() as u64;
                indexer.push(chunk)?;
                progress.advanced(index, bytes);
            }
        }
        indexer.finish()
    });
    let mut download = Ok(());
    while let Some(chunk) = blob.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                download = Err(error);
                break;
            }
        };
        if chunks.send(chunk).await.is_err() {
            // The decoder has stopped: its error is the one to report.
            break;
        }
    }
    drop(chunks);
    let decoded = decoding.await?;
    download?;
    Ok(decoded?)
}

fn image_info(image: &ResolvedImage, options: &IndexOptions) -> ImageInfo {
    ImageInfo {
        registry: image.registry.clone(),
        repository: image.repository.clone(),
        tag: image.tag.clone(),
        manifest_digest: digest_of(&image.manifest_digest),
        platform: image.platform.to_string(),
        config: image.config.clone(),
        runtime_dirs: options.runtime_dirs,
        indexer: options.indexer(),
    }
}

/// Writes the archive, reads it as a node will, and makes sure that a node will be able to expand it.
fn write_archive(
    sections: Vec<Arc<LayerSection>>,
    info: ImageInfo,
) -> Result<(Vec<u8>, Summary), IndexError> {
    let mut writer = ArchiveWriter::new();
    // Each goes when it is written: trees are large.
    for section in sections {
        writer.add_layer(&section);
    }
    let bytes = writer.finish(info);
    let archive = Archive::open(bytes.as_slice());
    let (summary, tree) = archive
        .and_then(|archive| archive.verify_and_merge())
        .map_err(|error| IndexError::Tree(error.to_string()))?;
    ImageWriter::new(&tree).map_err(|error| IndexError::Tree(error.to_string()))?;
    Ok((bytes, summary))
}
