//! OCI artifacts: some blobs under a manifest that may refer to an image (`subject`).
//!
//! Registries with the referrers API list artifacts by subject; for the others the list is kept under a tag, as the
//! distribution specification says ("Referrers Tag Schema").

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use reqwest::StatusCode;

use crate::answer::{read_limited, status_error};
use crate::blob::BlobSource;
use crate::client::{Client, Request};
use crate::digest::Digest;
use crate::error::{FetchError, PushError, ResolveError};
use crate::manifest::{Descriptor, EMPTY_JSON, Index, Manifest, OCI_INDEX, OCI_MANIFEST};
use crate::reference::{Reference, Repository};

/// One blob of an artifact that is pushed.
#[derive(Clone, Debug, Default)]
pub struct ArtifactLayer {
    /// What the blob is.
    pub media_type: String,
    /// Its content.
    pub content: Bytes,
    /// Free-form notes in its descriptor.
    pub annotations: BTreeMap<String, String>,
}

/// An artifact that was pushed.
#[derive(Clone, Debug)]
pub struct PushedArtifact {
    /// The digest of its manifest.
    pub digest: Digest,
    /// Its manifest: pushed again under another tag, it is the same artifact.
    pub manifest: Bytes,
}

/// An artifact that was fetched; every blob is checked against its digest.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The digest of its manifest.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: Manifest,
    /// The blobs, in the manifest's order.
    pub layers: Vec<(Descriptor, Bytes)>,
}

/// Why an artifact could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Its manifest could not be fetched.
    #[error(transparent)]
    Manifest(#[from] ResolveError),
    /// One of its blobs could not be fetched.
    #[error(transparent)]
    Blob(#[from] FetchError),
    /// It is an artifact, but of another type.
    #[error("{reference} is not of type {wanted}, but {found}")]
    Type {
        /// The artifact asked for.
        reference: String,
        /// The type asked for.
        wanted: String,
        /// The type it has.
        found: String,
    },
    /// It is larger than the caller accepts.
    #[error("{reference} has {size} bytes, more than the {limit} that are accepted")]
    TooLarge {
        /// The artifact asked for.
        reference: String,
        /// The sum of its blobs' sizes.
        size: u64,
        /// The limit in bytes.
        limit: usize,
    },
}

impl ArtifactError {
    /// Whether trying again is of no use until somebody changes something.
    pub fn is_permanent(&self) -> bool {
        match self {
            ArtifactError::Manifest(error) => error.is_permanent(),
            ArtifactError::Blob(error) => error.is_permanent(),
            ArtifactError::Type { .. } | ArtifactError::TooLarge { .. } => true,
        }
    }

    /// The word for a condition or event.
    pub fn reason(&self) -> &'static str {
        match self {
            ArtifactError::Manifest(error) => error.reason(),
            ArtifactError::Blob(error) => error.reason(),
            ArtifactError::Type { .. } => "UnsupportedMediaType",
            ArtifactError::TooLarge { .. } => "InvalidImage",
        }
    }
}

/// Blobs of an artifact in flight at once, either way.
const PARALLEL: usize = 4;

/// What a list of referrers may have at most; as for any manifest.
const REFERRERS_LIMIT: usize = 4 << 20;

/// Pushes an artifact, and lists it as a referrer of `subject`. Pushing the same again changes nothing and gives the
/// same manifest.
pub async fn push_artifact(
    client: &Client,
    repository: &Repository,
    artifact_type: &str,
    subject: Option<Descriptor>,
    tag: Option<&str>,
    layers: Vec<ArtifactLayer>,
) -> Result<PushedArtifact, PushError> {
    let empty = Bytes::from_static(b"{}");
    let descriptors: Vec<_> = layers
        .iter()
        .map(|layer| Descriptor {
            annotations: layer.annotations.clone(),
            ..Descriptor::of(&layer.media_type, &layer.content)
        })
        .collect();
    let contents = layers
        .into_iter()
        .map(|layer| layer.content)
        .chain([empty.clone()]);
    let pushes = stream::iter(contents.map(|content| client.push_blob(repository, content)));
    pushes
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<_>>()
        .await?;

    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        artifact_type: Some(artifact_type.to_owned()),
        config: Descriptor::of(EMPTY_JSON, &empty),
        layers: descriptors,
        subject: subject.clone(),
        annotations: BTreeMap::new(),
    };
    let bytes = Bytes::from(to_json(&manifest, repository)?);
    let mut descriptor = Descriptor::of(OCI_MANIFEST, &bytes);
    let name = tag.unwrap_or(descriptor.digest.as_ref()).to_owned();
    let pushed = client
        .put_manifest(repository, &name, OCI_MANIFEST, bytes.clone())
        .await?;
    if let Some(subject) = subject.filter(|_| !pushed.lists_referrers) {
        descriptor.artifact_type = Some(artifact_type.to_owned());
        add_referrer(client, repository, &subject.digest, descriptor).await?;
    }
    Ok(PushedArtifact {
        digest: pushed.digest,
        manifest: bytes,
    })
}

/// Fetches the artifact that `reference` points to with all its blobs, together at most `limit` bytes.
pub async fn fetch_artifact(
    client: &Client,
    reference: &Reference,
    artifact_type: &str,
    limit: usize,
) -> Result<Artifact, ArtifactError> {
    let raw = client.fetch_manifest(reference).await?;
    let manifest: Manifest =
        serde_json::from_slice(&raw.bytes).map_err(|e| ResolveError::Malformed {
            reference: reference.to_string(),
            what: "manifest",
            cause: e.to_string(),
        })?;
    let found = manifest
        .artifact_type
        .as_deref()
        .unwrap_or(&manifest.config.media_type);
    if found != artifact_type {
        let (reference, wanted, found) = (
            reference.to_string(),
            artifact_type.to_owned(),
            found.to_owned(),
        );
        return Err(ArtifactError::Type {
            reference,
            wanted,
            found,
        });
    }
    let size = manifest
        .layers
        .iter()
        .fold(0u64, |sum, layer| sum.saturating_add(layer.size));
    if size > limit as u64 {
        return Err(ArtifactError::TooLarge {
            reference: reference.to_string(),
            size,
            limit,
        });
    }
    let blobs = BlobSource::registry(client, reference.in_repository().clone());
    let fetches = manifest.layers.iter().cloned().map(|layer| {
        let blobs = blobs.clone();
        async move {
            let content = blobs.read_all(&layer.digest, layer.size as usize).await?;
            Ok::<_, FetchError>((layer, content))
        }
    });
    let layers = stream::iter(fetches)
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    Ok(Artifact {
        digest: raw.digest,
        manifest,
        layers,
    })
}

/// The artifacts of one type that refer to a manifest. None is not an error.
pub async fn referrers(
    client: &Client,
    repository: &Repository,
    subject: &Digest,
    artifact_type: &str,
) -> Result<Vec<Descriptor>, ResolveError> {
    let request = Request::get(repository, format!("referrers/{subject}"));
    let response = client.send(&request).await?.response;
    let index = match response.status() {
        StatusCode::OK => {
            let body = read_limited(&client.inner.http, response, REFERRERS_LIMIT).await;
            let body =
                body.map_err(|e| ResolveError::Request(e.into_request_error(&request.target)))?;
            serde_json::from_slice::<Index>(&body).map_err(|e| malformed(&request.target, e))?
        }
        StatusCode::NOT_FOUND => tagged_referrers(client, repository, subject).await?,
        _ => {
            return Err(status_error(&client.inner.http, &request.target, response)
                .await
                .into());
        }
    };
    let of_type =
        |descriptor: &Descriptor| descriptor.artifact_type.as_deref() == Some(artifact_type);
    Ok(index.manifests.into_iter().filter(of_type).collect())
}

/// Adds to the list under the tag. Two pushers at once may lose one entry, which the specification accepts; pushing
/// again mends it.
async fn add_referrer(
    client: &Client,
    repository: &Repository,
    subject: &Digest,
    descriptor: Descriptor,
) -> Result<(), PushError> {
    let mut index = tagged_referrers(client, repository, subject).await?;
    if index
        .manifests
        .iter()
        .any(|entry| entry.digest == descriptor.digest)
    {
        return Ok(());
    }
    index.manifests.push(descriptor);
    let bytes = to_json(&index, repository)?.into();
    client
        .push_manifest(repository, &referrers_tag(subject), OCI_INDEX, bytes)
        .await?;
    Ok(())
}

async fn tagged_referrers(
    client: &Client,
    repository: &Repository,
    subject: &Digest,
) -> Result<Index, ResolveError> {
    let empty = Index {
        schema_version: 2,
        media_type: Some(OCI_INDEX.to_owned()),
        manifests: Vec::new(),
    };
    let reference = Reference::with_tag(repository.clone(), &referrers_tag(subject));
    let reference = reference.expect("sha256-HEX is a tag");
    match client.fetch_manifest(&reference).await {
        Ok(raw) => {
            serde_json::from_slice(&raw.bytes).map_err(|e| malformed(&reference.to_string(), e))
        }
        Err(ResolveError::ImageNotFound { .. }) => Ok(empty),
        Err(error) => Err(error),
    }
}

fn referrers_tag(subject: &Digest) -> String {
    format!("sha256-{}", subject.hex())
}

fn malformed(name: &str, cause: serde_json::Error) -> ResolveError {
    ResolveError::Malformed {
        reference: name.to_owned(),
        what: "index",
        cause: cause.to_string(),
    }
}

fn to_json(
    document: &impl serde::Serialize,
    repository: &Repository,
) -> Result<Vec<u8>, PushError> {
    serde_json::to_vec(document).map_err(|e| PushError::Protocol {
        repository: repository.to_string(),
        cause: e.to_string(),
    })
}
