//! The head against the manifest and the configuration that it names.

use super::Finding;
use crate::digest_of;
use clip_archive::{Digest, Head};
use clip_registry::{
    BlobSource, Client, ImageSource, LAYOUT_REGISTRY, Manifest, Platform, Reference, Repository,
    ResolveError,
};
use serde::Deserialize;

/// Registries accept no larger manifests (OCI distribution-spec, "Pushing Manifests").
const MANIFEST_LIMIT: usize = 4 << 20;
/// The largest configurations seen (thousands of history entries) stay below 1 MiB.
const CONFIG_LIMIT: usize = 8 << 20;

/// Fetches both by digest; what does not fit the head.
pub async fn verify_manifest(client: &Client, blobs: &BlobSource, head: &Head) -> Vec<Finding> {
    let bytes = match fetch(client, blobs, head).await {
        Ok(bytes) => bytes,
        Err(finding) => return vec![finding],
    };
    let manifest: Manifest = match serde_json::from_slice(&bytes) {
        Ok(manifest) => manifest,
        Err(error) => {
            return vec![Finding::Archive(format!(
                "{} is not the manifest of an image: {error}",
                head.manifest_digest
            ))];
        }
    };
    let mut findings: Vec<_> = compare_layers(&manifest, head).into_iter().collect();
    findings.extend(verify_config(blobs, &manifest, head).await);
    findings
}

/// What the archive's tag means by now, if that is known and another image. The archive stays right
/// for the image that it names; this is for people.
pub async fn where_the_tag_points(client: &Client, head: &Head) -> Option<Digest> {
    let tag = head.tag.as_deref()?;
    let source = match head.registry.as_str() {
        LAYOUT_REGISTRY => ImageSource::Layout {
            dir: head.repository.clone().into(),
            tag: Some(tag.to_owned()),
        },
        registry => {
            let repository = Repository::new(registry, &head.repository).ok()?;
            ImageSource::Registry(Reference::with_tag(repository, tag).ok()?)
        }
    };
    let platform: Platform = head.platform.parse().ok()?;
    let now = client.resolve(&source, &platform).await.ok()?;
    let now = digest_of(&now.manifest_digest);
    (now != head.manifest_digest).then_some(now)
}

/// The manifest's bytes, checked against its digest.
async fn fetch(client: &Client, blobs: &BlobSource, head: &Head) -> Result<bytes::Bytes, Finding> {
    let digest = registry_digest(&head.manifest_digest);
    if head.registry == LAYOUT_REGISTRY {
        return Ok(blobs.read_all(&digest, MANIFEST_LIMIT).await?);
    }
    let repository = Repository::new(&head.registry, &head.repository)
        .map_err(|error| Finding::impossible_place(&error))?;
    let reference = Reference::with_digest(repository, digest);
    let raw = client.fetch_manifest(&reference).await;
    // A manifest that was deleted: nothing says that the archive is wrong, but nobody can pull the image.
    Ok(raw
        .map_err(|error: ResolveError| Finding::from(error))?
        .bytes)
}

fn compare_layers(manifest: &Manifest, head: &Head) -> Option<Finding> {
    if manifest.layers.len() != head.layers.len() {
        return Some(Finding::Archive(format!(
            "the manifest lists {} layers, the archive {}",
            manifest.layers.len(),
            head.layers.len()
        )));
    }
    let mut layers = manifest.layers.iter().zip(&head.layers).enumerate();
    layers.find_map(|(index, (theirs, ours))| {
        let same = digest_of(&theirs.digest) == ours.digest && theirs.size == ours.size;
        (!same).then(|| {
            Finding::Archive(format!(
                "layer {index} is {} with {} bytes in the manifest, {} with {} bytes in the archive",
                theirs.digest, theirs.size, ours.digest, ours.size
            ))
        })
    })
}

async fn verify_config(blobs: &BlobSource, manifest: &Manifest, head: &Head) -> Option<Finding> {
    let config = match blobs.read_all(&manifest.config.digest, CONFIG_LIMIT).await {
        Ok(config) => config,
        Err(error) => return Some(error.into()),
    };
    if config != head.config {
        return Some(Finding::Archive(format!(
            "the archive holds another configuration than {}",
            manifest.config.digest
        )));
    }
    let expected = diff_ids(&config)?;
    let ours: Vec<_> = head.layers.iter().map(|layer| layer.diff_id).collect();
    (expected != ours).then(|| {
        Finding::Archive(String::from(
            "the layers' diffIDs are not those that the configuration lists",
        ))
    })
}

/// The diffIDs that a configuration lists; none if it is of another kind.
fn diff_ids(config: &[u8]) -> Option<Vec<Digest>> {
    #[derive(Deserialize)]
    struct Config {
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        diff_ids: Vec<clip_registry::Digest>,
    }
    let config: Config = serde_json::from_slice(config).ok()?;
    Some(config.rootfs.diff_ids.iter().map(digest_of).collect())
}

fn registry_digest(digest: &Digest) -> clip_registry::Digest {
    clip_registry::Digest::from_sha256(*digest.as_bytes())
}
