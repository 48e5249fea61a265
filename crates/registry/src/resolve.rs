//! From a source and a platform to one image: manifest, configuration and layers, each checked against its digest.
//!
//! An index may list other indexes, attestations and images for other platforms; what is wanted is searched depth
//! first, the best-matching platform first. Documents are kept verbatim, because their digests are over the bytes.
//!
//! An artifact (a model, a file that `oras` pushed) is a manifest like an image's with another configuration: its layers
//! have no diffIDs, and it suits every platform unless an index says otherwise.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use serde::Deserialize;

use crate::blob::BlobSource;
use crate::client::Client;
use crate::digest::Digest;
use crate::documents::{MANIFEST_LIMIT, RawManifest, essence, malformed, raw_manifest};
use crate::error::{FetchError, ResolveError};
use crate::manifest::{self, ConfigView, Descriptor, Index, Manifest};
use crate::platform::Platform;
use crate::reference::{Reference, Repository};
use crate::source::{ImageSource, LAYOUT_REGISTRY, ambiguous, blob_path, layout_entries};

/// The largest configurations seen (thousands of history entries) stay below 1 MiB.
const CONFIG_LIMIT: usize = 8 << 20;
/// Bounds the search through an index that somebody made to be searched for ever.
const MOST_DOCUMENTS: usize = 64;
/// Real indexes list manifests; some that tools put together list one index per image.
const DEEPEST_INDEX: usize = 8;
/// The digest of `{}`, which needs no fetching.
const EMPTY_JSON_DIGEST: &str =
    "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

/// One image for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The registry's host name, or [`LAYOUT_REGISTRY`].
    pub registry: String,
    /// The repository's name, or the layout's canonical directory.
    pub repository: String,
    /// The tag asked for, if it was a tag.
    pub tag: Option<String>,
    /// What the reference itself points to: an index's digest, or the same as `manifest_digest`. A moved tag shows here.
    pub reference_digest: Digest,
    /// The digest of `manifest`.
    pub manifest_digest: Digest,
    /// OCI's or Docker's.
    pub manifest_media_type: String,
    /// The image's manifest, byte for byte.
    pub manifest: Vec<u8>,
    /// The image's or artifact's configuration, byte for byte.
    pub config: Vec<u8>,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
    /// What the image runs on.
    pub platform: Platform,
    /// The layers, the lowest first.
    pub layers: Vec<LayerDescriptor>,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDescriptor {
    /// Digest of the blob as it is in the registry.
    pub digest: Digest,
    /// Length of that blob in bytes.
    pub size: u64,
    /// How it is compressed.
    pub media_type: String,
    /// Digest of the uncompressed tar, if there is an image configuration to say so.
    pub diff_id: Option<Digest>,
    /// Notes on the layer: artifacts name their files here.
    pub annotations: BTreeMap<String, String>,
}

impl Client {
    /// Finds the image that `source` means on `platform`.
    pub async fn resolve(
        &self,
        source: &ImageSource,
        platform: &Platform,
    ) -> Result<ResolvedImage, ResolveError> {
        let resolver = Resolver::new(self, source, platform).await?;
        let (reference_digest, found) = match source {
            ImageSource::Registry(reference) => {
                let top = self.fetch_manifest(reference).await?;
                (
                    Some(top.digest.clone()),
                    resolver.search(vec![Step::Document(top, None, 0)]).await?,
                )
            }
            ImageSource::Layout { dir, tag } => {
                let entries = layout_entries(dir, tag.as_deref()).await?;
                match &entries[..] {
                    [only] => {
                        let top = resolver.fetch(only).await?;
                        (
                            Some(only.digest.clone()),
                            resolver.search(vec![Step::Document(top, None, 0)]).await?,
                        )
                    }
                    several if several.iter().all(|entry| entry.platform.is_some()) => (
                        None,
                        resolver
                            .search(choose(several.to_vec(), platform, 0))
                            .await?,
                    ),
                    several => return Err(ambiguous(dir, several)),
                }
            }
        };
        resolver.describe(reference_digest, found)
    }
}

/// One search.
struct Resolver<'a> {
    source: &'a ImageSource,
    platform: &'a Platform,
    name: String,
    place: Place<'a>,
    blobs: BlobSource,
}

enum Place<'a> {
    Registry(&'a Client, &'a Repository),
    Layout(&'a Path),
}

/// What is still to be looked at, and how many indexes stand above it.
enum Step {
    Document(RawManifest, Option<Platform>, usize),
    Entry(Descriptor, usize),
}

/// The image that was looked for.
struct Found {
    raw: RawManifest,
    manifest: Manifest,
    config: Bytes,
    diff_ids: Option<Vec<Digest>>,
    platform: Platform,
}

impl<'a> Resolver<'a> {
    async fn new(
        client: &'a Client,
        source: &'a ImageSource,
        platform: &'a Platform,
    ) -> Result<Resolver<'a>, ResolveError> {
        let (place, blobs) = match source {
            ImageSource::Registry(reference) => {
                let repository = reference.in_repository();
                (
                    Place::Registry(client, repository),
                    BlobSource::registry(client, repository.clone()),
                )
            }
            ImageSource::Layout { dir, .. } => {
                let error = |e: std::io::Error| ResolveError::Layout {
                    dir: dir.clone(),
                    cause: e.to_string(),
                };
                let canonical = tokio::fs::canonicalize(dir).await.map_err(error)?;
                (Place::Layout(dir), BlobSource::layout(canonical))
            }
        };
        Ok(Resolver {
            source,
            platform,
            name: source.to_string(),
            place,
            blobs,
        })
    }

    /// Goes through `steps`, the last pushed first, until an image for the platform is found.
    async fn search(&self, mut steps: Vec<Step>) -> Result<Found, ResolveError> {
        let mut available = Vec::new();
        for _ in 0..MOST_DOCUMENTS {
            let (raw, platform, depth) = match steps.pop() {
                Some(Step::Document(raw, platform, depth)) => (raw, platform, depth),
                Some(Step::Entry(entry, depth)) => match &entry.platform {
                    Some(platform) if self.platform.distance_to(platform).is_none() => {
                        available.push(Platform::normalised(
                            &platform.os,
                            &platform.architecture,
                            platform.variant.as_deref(),
                        ));
                        continue;
                    }
                    _ => (self.fetch(&entry).await?, entry.platform, depth),
                },
                None => return Err(self.not_found_among(available)),
            };
            match raw.media_type.as_str() {
                manifest::OCI_INDEX | manifest::DOCKER_INDEX if depth == DEEPEST_INDEX => {
                    let cause = format!("it nests indexes more than {DEEPEST_INDEX} deep");
                    return Err(malformed(&self.name, "index", cause));
                }
                manifest::OCI_INDEX | manifest::DOCKER_INDEX => {
                    let index: Index = self.parse("index", &raw.bytes)?;
                    steps.extend(choose(index.manifests, self.platform, depth + 1));
                }
                _ => match self.image(raw, platform).await? {
                    Ok(found) => return Ok(found),
                    Err(other_platform) => available.push(other_platform),
                },
            }
        }
        let cause = format!("no image was found in the first {MOST_DOCUMENTS} entries");
        Err(malformed(&self.name, "index", cause))
    }

    fn not_found_among(&self, mut available: Vec<Platform>) -> ResolveError {
        available.sort_by_key(Platform::to_string);
        available.dedup();
        ResolveError::PlatformNotFound {
            reference: self.name.clone(),
            wanted: self.platform.clone(),
            available,
        }
    }

    /// The image of a manifest, or the platform that it is for instead. An index's word on the platform outranks the
    /// configuration's, which often lacks the variant.
    async fn image(
        &self,
        raw: RawManifest,
        platform: Option<Platform>,
    ) -> Result<Result<Found, Platform>, ResolveError> {
        let manifest: Manifest = self.parse("manifest", &raw.bytes)?;
        let config = self.config(&manifest.config.digest).await?;
        let view: ConfigView = match is_image_config(&manifest.config.media_type) {
            true => self.parse("configuration", &config)?,
            false => ConfigView::default(),
        };
        let platform = match platform {
            Some(platform) => platform,
            None if view.os.is_empty() && view.architecture.is_empty() => self.platform.clone(),
            None => {
                let own =
                    Platform::normalised(&view.os, &view.architecture, view.variant.as_deref());
                if self.platform.distance_to(&own).is_none() {
                    return Ok(Err(own));
                }
                own
            }
        };
        let platform = Platform::normalised(
            &platform.os,
            &platform.architecture,
            platform.variant.as_deref(),
        );
        Ok(Ok(Found {
            raw,
            manifest,
            config,
            diff_ids: view.rootfs.map(|rootfs| rootfs.diff_ids),
            platform,
        }))
    }

    async fn fetch(&self, entry: &Descriptor) -> Result<RawManifest, ResolveError> {
        match &self.place {
            Place::Registry(client, repository) => {
                let reference = Reference::with_digest((*repository).clone(), entry.digest.clone());
                client.fetch_manifest(&reference).await
            }
            Place::Layout(dir) => {
                let path = blob_path(dir, &entry.digest);
                let error = |cause: String| ResolveError::Layout {
                    dir: dir.to_path_buf(),
                    cause,
                };
                let length = tokio::fs::metadata(&path)
                    .await
                    .map_err(|e| error(format!("{}: {e}", entry.digest)))?;
                if length.len() > MANIFEST_LIMIT as u64 {
                    let (reference, what, limit) = (self.name.clone(), "manifest", MANIFEST_LIMIT);
                    return Err(ResolveError::TooLarge {
                        reference,
                        what,
                        limit,
                    });
                }
                let bytes = tokio::fs::read(&path)
                    .await
                    .map_err(|e| error(format!("{}: {e}", entry.digest)))?;
                raw_manifest(
                    &self.name,
                    bytes.into(),
                    Some(essence(&entry.media_type)),
                    Some(&entry.digest),
                )
            }
        }
    }

    async fn config(&self, digest: &Digest) -> Result<Bytes, ResolveError> {
        if digest.to_string() == EMPTY_JSON_DIGEST {
            return Ok(Bytes::from_static(b"{}"));
        }
        let reference = || self.name.clone();
        self.blobs
            .read_all(digest, CONFIG_LIMIT)
            .await
            .map_err(|error| match error {
                FetchError::DigestMismatch { digest, actual, .. } => ResolveError::DigestMismatch {
                    reference: reference(),
                    what: "configuration",
                    expected: digest,
                    actual,
                },
                FetchError::TooLarge { limit, .. } => ResolveError::TooLarge {
                    reference: reference(),
                    what: "configuration",
                    limit,
                },
                error => error.into(),
            })
    }

    fn parse<T: for<'de> Deserialize<'de>>(
        &self,
        what: &'static str,
        bytes: &[u8],
    ) -> Result<T, ResolveError> {
        serde_json::from_slice(bytes).map_err(|e| malformed(&self.name, what, e.to_string()))
    }

    fn describe(
        &self,
        reference_digest: Option<Digest>,
        found: Found,
    ) -> Result<ResolvedImage, ResolveError> {
        let Found {
            raw,
            manifest,
            config,
            diff_ids,
            platform,
        } = found;
        let diff_ids: Vec<_> = match diff_ids {
            Some(promised) => promised.into_iter().map(Some).collect(),
            None => vec![None; manifest.layers.len()],
        };
        if manifest.layers.len() != diff_ids.len() {
            return Err(ResolveError::LayerCount {
                reference: self.name.clone(),
                layers: manifest.layers.len(),
                diff_ids: diff_ids.len(),
            });
        }
        let layers = manifest.layers.into_iter().zip(diff_ids);
        let layers = layers
            .map(|(layer, diff_id)| LayerDescriptor {
                digest: layer.digest,
                size: layer.size,
                media_type: layer.media_type,
                diff_id,
                annotations: layer.annotations,
            })
            .collect();
        let (registry, repository) = self.blobs.location();
        let tag = match self.source {
            ImageSource::Registry(reference) => reference.tag().map(str::to_owned),
            ImageSource::Layout { tag, .. } => tag.clone(),
        };
        Ok(ResolvedImage {
            registry,
            repository,
            tag,
            reference_digest: reference_digest.unwrap_or_else(|| raw.digest.clone()),
            manifest_digest: raw.digest,
            manifest_media_type: raw.media_type,
            manifest: raw.bytes.into(),
            config: config.into(),
            annotations: manifest.annotations,
            platform,
            layers,
        })
    }
}

impl ResolvedImage {
    /// Whether the image came from a directory.
    pub fn is_from_layout(&self) -> bool {
        self.registry == LAYOUT_REGISTRY
    }
}

/// The entries of an index in the order in which to try them, the best last: it is popped first. Images for other
/// platforms come along, to be listed if nothing is found.
fn choose(entries: Vec<Descriptor>, platform: &Platform, depth: usize) -> Vec<Step> {
    let mut entries: Vec<_> = entries
        .into_iter()
        .filter(|entry| !entry.is_attestation())
        .collect();
    // Of equally good ones the first in the index counts, so reverse before the stable sort.
    entries.reverse();
    entries.sort_by_key(|entry| {
        let rank = match &entry.platform {
            Some(offered) => platform
                .distance_to(offered)
                .map_or(u32::MAX, |distance| distance),
            None => u32::MAX - 1,
        };
        // Those that do not match go on top: they are only noted down, which costs nothing.
        if rank == u32::MAX {
            (1, 0)
        } else {
            (0, u32::MAX - rank)
        }
    });
    entries
        .into_iter()
        .map(|entry| Step::Entry(entry, depth))
        .collect()
}

fn is_image_config(media_type: &str) -> bool {
    // Docker's earliest schema 2 images say octet-stream.
    matches!(
        media_type,
        manifest::OCI_CONFIG | manifest::DOCKER_CONFIG | "application/octet-stream" | ""
    )
}
