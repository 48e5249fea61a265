//! Why an image could not be resolved.

use std::fmt;
use std::path::PathBuf;

use super::{FetchError, RequestError};
use crate::digest::Digest;
use crate::platform::Platform;

/// Why an image could not be resolved, or a manifest not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The registry gave no useful answer.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// No such image.
    #[error(
        "{reference} does not exist in {registry}, or needs a login: check the name and tag, or add credentials to the docker config or pull secret"
    )]
    ImageNotFound {
        /// The image asked for.
        reference: String,
        /// The registry that does not know it.
        registry: String,
    },
    /// The directory is no OCI layout, or a file of it cannot be read.
    #[error(
        "{dir} cannot be read as an OCI image layout: {cause}; make one with: skopeo copy docker://IMAGE oci:DIR:TAG"
    )]
    Layout {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The layout has no such tag, or no tag was given and there are several images.
    #[error(
        "the OCI layout {dir} has {}: write oci:DIR:TAG with one of these tags: {}",
        missing_tag(tag),
        list(tags)
    )]
    NoSuchTag {
        /// The directory.
        dir: PathBuf,
        /// The tag asked for.
        tag: Option<String>,
        /// The tags there are.
        tags: Vec<String>,
    },
    /// Not an image that Clip understands.
    #[error(
        "{reference} has the media type {media_type}, which is not supported{}",
        media_type_hint(media_type)
    )]
    UnsupportedMediaType {
        /// The image asked for.
        reference: String,
        /// What it is instead.
        media_type: String,
    },
    /// The image exists for other platforms only.
    #[error(
        "{reference} does not exist for {wanted}, but for: {}",
        list(available)
    )]
    PlatformNotFound {
        /// The image asked for.
        reference: String,
        /// The platform asked for.
        wanted: Platform,
        /// The platforms there are.
        available: Vec<Platform>,
    },
    /// A manifest or configuration is not what its digest says.
    #[error(
        "{reference}: the {what} has the digest {actual} instead of {expected}: the registry or a proxy before it returns wrong content"
    )]
    DigestMismatch {
        /// The image asked for.
        reference: String,
        /// "manifest" or "configuration".
        what: &'static str,
        /// The digest it was asked for by.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// A manifest or configuration is larger than any real one.
    #[error("{reference}: the {what} is larger than the {limit} bytes that are accepted")]
    TooLarge {
        /// The image asked for.
        reference: String,
        /// "manifest" or "configuration".
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// A manifest or configuration that does not parse or contradicts itself.
    #[error("{reference}: the {what} is malformed: {cause}")]
    Malformed {
        /// The image asked for.
        reference: String,
        /// "manifest", "index" or "configuration".
        what: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// The configuration does not describe the manifest's layers.
    #[error(
        "{reference}: the manifest lists {layers} layers, but its configuration {diff_ids} diff_ids: build and push the image again"
    )]
    LayerCount {
        /// The image asked for.
        reference: String,
        /// Number of layers in the manifest.
        layers: usize,
        /// Number of diff_ids in the configuration.
        diff_ids: usize,
    },
    /// The configuration could not be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    match items {
        [] => "(none)".to_owned(),
        items => items
            .iter()
            .map(T::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn missing_tag(tag: &Option<String>) -> String {
    match tag {
        Some(tag) => format!("no image tagged {tag:?}"),
        None => "several images".to_owned(),
    }
}

fn media_type_hint(media_type: &str) -> &'static str {
    if media_type.contains("manifest.v1+") {
        ": this is Docker's schema 1; push the image again with a current docker, buildah or skopeo"
    } else {
        ": Clip reads OCI and Docker (schema 2) container images and OCI artifacts"
    }
}

impl ResolveError {
    /// Whether trying again is of no use until somebody changes something.
    pub fn is_permanent(&self) -> bool {
        match self {
            ResolveError::Request(error) => error.is_permanent(),
            ResolveError::Fetch(error) => error.is_permanent(),
            _ => true,
        }
    }

    /// The word for a condition or event.
    pub fn reason(&self) -> &'static str {
        match self {
            ResolveError::Request(error) => error.reason(),
            ResolveError::Fetch(error) => error.reason(),
            ResolveError::ImageNotFound { .. } | ResolveError::NoSuchTag { .. } => "ImageNotFound",
            ResolveError::Layout { .. } => "InvalidLayout",
            ResolveError::UnsupportedMediaType { .. } => "UnsupportedMediaType",
            ResolveError::PlatformNotFound { .. } => "PlatformNotFound",
            ResolveError::DigestMismatch { .. } => "DigestMismatch",
            ResolveError::TooLarge { .. }
            | ResolveError::Malformed { .. }
            | ResolveError::LayerCount { .. } => "InvalidImage",
        }
    }
}
