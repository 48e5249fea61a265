//! Archives in a registry: each is an OCI artifact with one blob, the archive's file.
//!
//! | tag | names the archive |
//! |---|---|
//! | `clip-` and half of the manifest's digest | of this image |
//! | `clip-layer-` and a digest of layer and indexer | that was published last of those that describe this layer |
//!
//! The second kind is for indexing: who meets a layer finds out with one request whether it was indexed before, for
//! whatever image (docs/design/0020-sections-found-by-layer.md).

use crate::{
    IndexedImage,
    layer_content::layer_content,
    reuse::{ArchivePlace, PlaceError, is_image_layer},
};
use bytes::Bytes;
use clip_archive::{Archive, Digest, head::Indexer};
use clip_registry::{
    ArtifactError, ArtifactLayer, Client, Descriptor, LayerDescriptor, OCI_MANIFEST, PushError,
    Reference, Repository, ResolveError, fetch_artifact, push_artifact,
};
use futures::{StreamExt as _, future::BoxFuture, stream};
use std::{collections::BTreeSet, fmt};

/// `artifactType` of a published archive (OCI image-spec, manifest.md).
pub const ARTIFACT_TYPE: &str = "application/vnd.clip.archive.v1";
/// Media type of its only blob, the archive.
pub const ARCHIVE_MEDIA_TYPE: &str = "application/vnd.clip.archive.v1.clip";
/// Layers below this size have no tag: downloading one costs no more than an archive.
const SMALLEST_TAGGED: u64 = 1 << 20;
/// Larger archives are not looked at. That of an image with 125,000 files has 0.7 MB.
const ARCHIVE_MAX: usize = 256 << 20;
/// Tags set at once.
const PARALLEL: usize = 4;

/// Pushes an archive to `repository`, and lists it as a referrer of the image if that lies in the same repository.
///
/// # Errors
/// When the archive cannot be pushed. A tag of a layer that cannot be set is only warned of: all that is lost is that
/// other images reuse it.
pub async fn publish(
    client: &Client,
    repository: &Repository,
    indexed: &IndexedImage,
) -> Result<Reference, PushError> {
    let image = &indexed.image;
    // A subject must lie in the same repository (OCI distribution-spec, "Listing Referrers").
    let same_repository =
        image.registry == repository.registry() && image.repository == repository.name();
    let subject = same_repository.then(|| {
        Descriptor::new(
            &image.manifest_media_type,
            image.manifest_digest.clone(),
            image.manifest.len() as u64,
        )
    });
    let layer = ArtifactLayer {
        media_type: ARCHIVE_MEDIA_TYPE.to_owned(),
        content: indexed.archive.clone().into(),
        ..ArtifactLayer::default()
    };
    // Pushing again replaces it, and a registry's garbage collection leaves what has a tag alone.
    let tag = format!("clip-{}", &image.manifest_digest.hex()[..32]);
    let (tag, layers) = (Some(tag.as_str()), vec![layer]);
    let pushed = push_artifact(client, repository, ARTIFACT_TYPE, subject, tag, layers).await?;
    set_layer_tags(client, repository, indexed, &pushed.manifest).await;
    Ok(Reference::with_digest(repository.clone(), pushed.digest))
}

async fn set_layer_tags(
    client: &Client,
    repository: &Repository,
    indexed: &IndexedImage,
    manifest: &Bytes,
) {
    let image = &indexed.image;
    let is_tagged = |layer: &&LayerDescriptor| {
        let content = layer_content(image, layer);
        layer.size >= SMALLEST_TAGGED && content.is_ok_and(|content| is_image_layer(&content))
    };
    let layers = image.layers.iter().filter(is_tagged);
    let tags: BTreeSet<String> = layers
        .map(|layer| layer_tag(layer, &indexed.indexer))
        .collect();
    let set = async |tag: String| {
        let pushed = client.push_manifest(repository, &tag, OCI_MANIFEST, manifest.clone());
        if let Err(error) = pushed.await {
            tracing::warn!(%repository, tag, %error, "other images cannot reuse this layer's index");
        }
    };
    let sets = stream::iter(tags).map(set);
    sets.buffer_unordered(PARALLEL).collect::<()>().await;
}

/// Another indexer describes the same layer otherwise, and a section says of which media type its layer is.
fn layer_tag(layer: &LayerDescriptor, indexer: &Indexer) -> String {
    let key = format!("{} {} {indexer}", layer.digest, layer.media_type);
    format!("clip-layer-{}", &Digest::of(key.as_bytes()).hex()[..32])
}

/// The archives that were [published](publish) to a repository. Whoever may push there is believed.
#[derive(Debug, Clone)]
pub struct PublishedArchives {
    client: Client,
    repository: Repository,
}

impl PublishedArchives {
    /// Asks no registry yet.
    pub fn new(client: Client, repository: Repository) -> PublishedArchives {
        PublishedArchives { client, repository }
    }

    async fn find(
        &self,
        layer: &LayerDescriptor,
        indexer: &Indexer,
    ) -> Result<Option<Archive>, PlaceError> {
        if layer.size < SMALLEST_TAGGED {
            return Ok(None);
        }
        let tag = layer_tag(layer, indexer);
        let reference = Reference::with_tag(self.repository.clone(), &tag)?;
        let fetched = fetch_artifact(&self.client, &reference, ARTIFACT_TYPE, ARCHIVE_MAX).await;
        let artifact = match fetched {
            Ok(artifact) => artifact,
            Err(ArtifactError::Manifest(ResolveError::ImageNotFound { .. })) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut blobs = artifact.layers.into_iter();
        let archive = blobs.find(|(descriptor, _)| descriptor.media_type == ARCHIVE_MEDIA_TYPE);
        let archive = archive.map(|(_, content)| Archive::open(content.to_vec()));
        Ok(archive.transpose()?)
    }
}

impl fmt::Display for PublishedArchives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(f)
    }
}

impl ArchivePlace for PublishedArchives {
    fn with_layer<'a>(
        &'a self,
        layer: &'a LayerDescriptor,
        indexer: &'a Indexer,
    ) -> BoxFuture<'a, Result<Option<Archive>, PlaceError>> {
        Box::pin(self.find(layer, indexer))
    }
}
