//! Manifests and indexes as a registry gives them out: what they are, and that they are what their digest says.

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;

use crate::answer::{read_limited, status_error};
use crate::client::{Client, Request};
use crate::digest::Digest;
use crate::error::{RequestError, ResolveError};
use crate::manifest::{self, Descriptor};
use crate::reference::Reference;

/// Registries accept no larger manifests: <https://github.com/opencontainers/distribution-spec> "Pushing Manifests".
pub(crate) const MANIFEST_LIMIT: usize = 4 << 20;

/// A manifest or index as it came, checked against its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawManifest {
    /// The digest of `bytes`.
    pub digest: Digest,
    /// What it is.
    pub media_type: String,
    /// The document, byte for byte.
    pub bytes: Bytes,
}

impl Client {
    /// Asks what a reference points to now, without fetching it. What polling a tag costs: one HEAD.
    pub async fn head_manifest(&self, reference: &Reference) -> Result<Descriptor, ResolveError> {
        let response = self.manifest_request(reference, Method::HEAD).await?;
        let header = |name: &str| response.headers().get(name)?.to_str().ok();
        let digest = header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        let media_type = header(CONTENT_TYPE.as_str()).map(essence);
        let size = header(CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
        match (digest, media_type, size) {
            (Some(digest), Some(media_type), Some(size)) => {
                Ok(Descriptor::new(&media_type, digest, size))
            }
            // Both headers are optional in the specification.
            _ => {
                let raw = self.fetch_manifest(reference).await?;
                Ok(Descriptor::new(
                    &raw.media_type,
                    raw.digest,
                    raw.bytes.len() as u64,
                ))
            }
        }
    }

    /// Fetches the manifest or index that a reference points to, and checks it if the reference has a digest.
    pub async fn fetch_manifest(&self, reference: &Reference) -> Result<RawManifest, ResolveError> {
        let response = self.manifest_request(reference, Method::GET).await?;
        let content_type = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .map(essence);
        let announced = response.headers().get("docker-content-digest");
        let announced = announced.and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
        let body = read_limited(&self.inner.http, response, MANIFEST_LIMIT + 1).await;
        let bytes = body.map_err(|error| error.into_request_error(&reference.to_string()))?;
        let expected = reference.digest().or(announced.as_ref());
        raw_manifest(&reference.to_string(), bytes, content_type, expected)
    }

    async fn manifest_request(
        &self,
        reference: &Reference,
        method: Method,
    ) -> Result<Response, ResolveError> {
        let mut request = Request::get(
            reference.in_repository(),
            format!("manifests/{}", reference.selector()),
        );
        request.method = method;
        request.target = reference.to_string();
        request
            .headers
            .insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        let not_found = || ResolveError::ImageNotFound {
            reference: reference.to_string(),
            registry: reference.registry().to_owned(),
        };
        match self.send(&request).await {
            Ok(answer) if answer.response.status().is_success() => Ok(answer.response),
            Ok(answer) if answer.response.status() == StatusCode::NOT_FOUND => Err(not_found()),
            Ok(answer) => Err(
                status_error(&self.inner.http, &request.target, answer.response)
                    .await
                    .into(),
            ),
            // So Docker Hub answers for a repository that does not exist.
            Err(RequestError::Unauthorized {
                anonymous_token: true,
                ..
            }) => Err(not_found()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Checks a document and finds out what it is: its `Content-Type`, else what it says of itself, else its looks.
pub(crate) fn raw_manifest(
    name: &str,
    bytes: Bytes,
    content_type: Option<String>,
    expected: Option<&Digest>,
) -> Result<RawManifest, ResolveError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Looks {
        #[serde(default)]
        schema_version: u32,
        media_type: Option<String>,
        config: Option<serde::de::IgnoredAny>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    if bytes.len() > MANIFEST_LIMIT {
        let (reference, what, limit) = (name.to_owned(), "manifest", MANIFEST_LIMIT);
        return Err(ResolveError::TooLarge {
            reference,
            what,
            limit,
        });
    }
    let digest = Digest::sha256_of(&bytes);
    if let Some(expected) = expected.filter(|expected| **expected != digest) {
        let (reference, what, expected) = (name.to_owned(), "manifest", expected.clone());
        return Err(ResolveError::DigestMismatch {
            reference,
            what,
            expected,
            actual: digest,
        });
    }
    let looks: Looks =
        serde_json::from_slice(&bytes).map_err(|e| malformed(name, "manifest", e.to_string()))?;
    let vague = |media_type: &String| {
        matches!(
            media_type.as_str(),
            "" | "application/json" | "text/plain" | "application/octet-stream"
        )
    };
    let media_type = content_type
        .filter(|t| !vague(t))
        .or(looks.media_type)
        .unwrap_or_else(|| {
            let guess = match (looks.schema_version, looks.manifests, looks.config) {
                (1, ..) => "application/vnd.docker.distribution.manifest.v1+json",
                (_, Some(_), None) => manifest::OCI_INDEX,
                (_, None, Some(_)) => manifest::OCI_MANIFEST,
                _ => "unknown",
            };
            guess.to_owned()
        });
    match media_type.as_str() {
        manifest::OCI_MANIFEST
        | manifest::OCI_INDEX
        | manifest::DOCKER_MANIFEST
        | manifest::DOCKER_INDEX => Ok(RawManifest {
            digest,
            media_type,
            bytes,
        }),
        _ => Err(ResolveError::UnsupportedMediaType {
            reference: name.to_owned(),
            media_type,
        }),
    }
}

/// A media type without its parameters.
pub(crate) fn essence(media_type: &str) -> String {
    media_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

pub(crate) fn malformed(name: &str, what: &'static str, cause: String) -> ResolveError {
    ResolveError::Malformed {
        reference: name.to_owned(),
        what,
        cause,
    }
}
