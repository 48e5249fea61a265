//! [`verify_image`]: is this archive the archive of its image, byte for byte?
//!
//! ```text
//! head ── the manifest under its digest: same layers, same configuration     verify/manifest.rs
//! each layer's blob, streamed once:                                          verify/layer.rs
//!   ├─ sha256 ── must be the manifest's digest
//!   ├─ indexed anew ── diffID and entries must be the archive's
//!   └─ every span decoded alone, from its seek point, as a read would ── its digest   verify/spans.rs
//! ```
//!
//! Layers are checked in parallel, nothing touches the disk, and memory is bounded. What a node has
//! cached of the image is checked by [`verify_cache`], which asks no registry.

mod cache;
mod layer;
mod manifest;
mod spans;

pub use cache::{CacheVerified, CacheVerifyError, CachedTree, verify_cache};
pub use layer::LayerVerified;
pub use spans::{BadSpan, SpanProblem};

use crate::Archive;
use clip_archive::Digest;
use clip_registry::{BlobSource, Client, FetchError, ReferenceError, ResolveError};
use futures::{StreamExt, stream};
use std::sync::Arc;

/// What to look at.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    /// The manifest only, no layer.
    pub quick: bool,
    /// These layers only, by position.
    pub layers: Option<Vec<usize>>,
}

/// Is told how far verifying is.
pub trait VerifyProgress: Send + Sync {
    /// So many more compressed bytes of layer `index` were checked.
    fn advanced(&self, index: usize, bytes: u64);
    /// A layer is done.
    fn layer_done(&self, layer: &LayerVerified);
}

/// What was found out about an archive and its image.
#[derive(Debug, Clone)]
pub struct Verified {
    /// What is wrong with manifest and configuration; nothing if they are the archive's.
    pub manifest: Vec<Finding>,
    /// The layers that were looked at, base first. None if there was no manifest to trust.
    pub layers: Vec<LayerVerified>,
    /// What the archive's tag means by now, if that is another image.
    pub tag_moved_to: Option<Digest>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The image is what its digests say, the archive says something else: index again.
    Archive(String),
    /// The registry, or something before it, gives out other bytes than the digest names.
    Image(String),
    /// It could not be looked at.
    Unavailable {
        /// CamelCase name of the cause.
        reason: &'static str,
        /// Whether trying again cannot help.
        permanent: bool,
        /// One plain sentence.
        message: String,
    },
}

/// The outcome in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Everything that was looked at is as it should be.
    Ok,
    /// Something could not be looked at; what could be is as it should be.
    Unavailable,
    /// Archive and image differ.
    Differs,
}

impl Verified {
    /// The worst of all.
    pub fn status(&self) -> Status {
        let layers = self.layers.iter().map(LayerVerified::status);
        layers.fold(Status::of(&self.manifest), Status::max)
    }

    /// Everything that was found, the manifest first.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        let layers = self.layers.iter().flat_map(|layer| &layer.findings);
        self.manifest.iter().chain(layers)
    }
}

impl Status {
    /// The worst of these.
    pub fn of(findings: &[Finding]) -> Self {
        let each = findings.iter().map(|finding| match finding {
            Finding::Unavailable { .. } => Self::Unavailable,
            Finding::Archive(_) | Finding::Image(_) => Self::Differs,
        });
        each.fold(Self::Ok, Self::max)
    }
}

impl Finding {
    /// What was found, in a sentence.
    pub fn message(&self) -> &str {
        match self {
            Self::Archive(message) | Self::Image(message) | Self::Unavailable { message, .. } => {
                message
            }
        }
    }

    /// For a place in the head that cannot be one.
    fn impossible_place(error: &ReferenceError) -> Self {
        Self::Archive(format!(
            "the archive names an impossible place for its image: {error}"
        ))
    }
}

impl From<FetchError> for Finding {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::DigestMismatch { .. } | FetchError::TooLarge { .. } => {
                Self::Image(error.to_string())
            }
            error => Self::Unavailable {
                reason: error.reason(),
                permanent: error.is_permanent(),
                message: error.to_string(),
            },
        }
    }
}

impl From<ResolveError> for Finding {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::DigestMismatch { .. }
            | ResolveError::TooLarge { .. }
            | ResolveError::Malformed { .. } => Self::Image(error.to_string()),
            ResolveError::UnsupportedMediaType { .. } => Self::Archive(error.to_string()),
            error => Self::Unavailable {
                reason: error.reason(),
                permanent: error.is_permanent(),
                message: error.to_string(),
            },
        }
    }
}

/// Compares `archive`, which must have passed [`Archive::verify`], with the image that its head
/// names. Never fails: what stands in the way is a [`Finding`].
pub async fn verify_image(
    client: &Client,
    archive: Arc<Archive>,
    options: &VerifyOptions,
    progress: Arc<dyn VerifyProgress>,
) -> Verified {
    let head = archive.head();
    let mut verified = Verified {
        manifest: Vec::new(),
        layers: Vec::new(),
        tag_moved_to: None,
    };
    let blobs = match BlobSource::open(client, &head.registry, &head.repository) {
        Ok(blobs) => blobs,
        Err(error) => {
            verified.manifest = vec![Finding::impossible_place(&error)];
            return verified;
        }
    };
    verified.manifest = manifest::verify_manifest(client, &blobs, head).await;
    if Status::of(&verified.manifest) == Status::Unavailable {
        return verified;
    }
    verified.tag_moved_to = manifest::where_the_tag_points(client, head).await;
    if !options.quick {
        let count = head.layers.len();
        let wanted = options.layers.clone();
        let wanted = wanted.unwrap_or_else(|| (0..count).collect());
        verified.layers = verify_layers(&archive, &blobs, &wanted, progress).await;
    }
    verified
}

/// As many layers at once as there are processors; one that the image uses twice is fetched once.
async fn verify_layers(
    archive: &Arc<Archive>,
    blobs: &BlobSource,
    wanted: &[usize],
    progress: Arc<dyn VerifyProgress>,
) -> Vec<LayerVerified> {
    let layers = &archive.head().layers;
    let first_use = |index: usize| {
        let same = |&other: &usize| layers[other] == layers[index];
        wanted.iter().copied().find(same).unwrap_or(index)
    };
    let distinct = wanted.iter().filter(|&&index| first_use(index) == index);
    let parallel = std::thread::available_parallelism().map_or(2, usize::from);
    let checked: Vec<LayerVerified> = stream::iter(distinct)
        .map(|&index| {
            let progress = progress.clone();
            async move {
                let layer = layer::verify_layer(archive, index, blobs, progress.clone()).await;
                progress.layer_done(&layer);
                layer
            }
        })
        .buffer_unordered(parallel)
        .collect()
        .await;
    let report_of = |&index: &usize| {
        let first = first_use(index);
        let report = checked.iter().find(|layer| layer.index == first)?;
        Some(report.clone().used_again_as(index))
    };
    wanted.iter().filter_map(report_of).collect()
}
