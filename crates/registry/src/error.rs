//! What can go wrong, one enum per operation. A message is a plain sentence that names the image and what to do.
//!
//! All of them answer two questions: [`is_permanent`](RequestError::is_permanent), whether trying again is of no use
//! until somebody changes something, and [`reason`](RequestError::reason), the CamelCase word for a condition or event.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use crate::digest::Digest;
use crate::platform::Platform;

/// Why [`Client::new`](crate::Client::new) failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A file of CA certificates cannot be used.
    #[error(
        "the CA certificates in {path} cannot be used: {cause}; the file must hold PEM certificates"
    )]
    CaCertificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The docker configuration cannot be read.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The HTTP client could not be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Http(String),
}

/// Why no credential could be found out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CredentialError {
    /// A docker configuration that was named does not exist, cannot be read, or is not JSON.
    #[error("the docker configuration in {origin} cannot be used: {cause}")]
    Config {
        /// The file or secret.
        origin: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A credential helper failed.
    #[error("the credentials for {registry} in {origin} cannot be had: {cause}")]
    Helper {
        /// The registry asked for.
        registry: String,
        /// The file or secret.
        origin: String,
        /// What the helper said.
        cause: String,
    },
}

/// Where a credential came from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialOrigin {
    /// There is none.
    Anonymous,
    /// A docker configuration file.
    File(PathBuf),
    /// A pull secret's content.
    Secret,
    /// A user name and password given directly.
    Given,
}

impl fmt::Display for CredentialOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CredentialOrigin::Anonymous => f.write_str("no credentials"),
            CredentialOrigin::File(path) => write!(f, "the credentials in {}", path.display()),
            CredentialOrigin::Secret => f.write_str("the credentials in the pull secret"),
            CredentialOrigin::Given => f.write_str("the given user name and password"),
        }
    }
}

/// Why a registry gave no useful answer, whatever it was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    /// Wrong or missing credentials.
    #[error("{}", unauthorized(target, registry, origin))]
    Unauthorized {
        /// The image or repository asked for.
        target: String,
        /// The registry that refused.
        registry: String,
        /// The credentials it refused.
        origin: CredentialOrigin,
        /// Whether the registry gave out an anonymous token first. Many answer so for repositories that do not exist.
        anonymous_token: bool,
    },
    /// The credentials are good, but not for this.
    #[error(
        "{registry} does not allow {origin} to use {target}{}: ask its owner for access",
        detail(detail_text)
    )]
    Forbidden {
        /// The image or repository asked for.
        target: String,
        /// The registry that refused.
        registry: String,
        /// The credentials it refused.
        origin: CredentialOrigin,
        /// The registry's own words.
        detail_text: String,
    },
    /// No answer: name resolution, connection, TLS or a time-out.
    #[error("{target}: the registry at {host} cannot be reached: {cause}{}", hint(*speaks_plain_http))]
    Unreachable {
        /// The image or repository asked for.
        target: String,
        /// The host that was tried.
        host: String,
        /// The innermost cause.
        cause: String,
        /// The host answered TLS with something that is not TLS.
        speaks_plain_http: bool,
    },
    /// The registry asks for patience.
    #[error(
        "{target}: {host} limits the rate of requests{}; credentials often raise the limit",
        after(retry_after)
    )]
    RateLimited {
        /// The image or repository asked for.
        target: String,
        /// The host that answered 429.
        host: String,
        /// When it says to come back.
        retry_after: Option<Duration>,
    },
    /// An answer that is neither success nor any of the above.
    #[error("{target}: {host} answered {status}{}", detail(detail_text))]
    Status {
        /// The image or repository asked for.
        target: String,
        /// The host that answered.
        host: String,
        /// The HTTP status code.
        status: u16,
        /// The registry's own words.
        detail_text: String,
    },
    /// No credential could be found out.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
}

fn unauthorized(target: &str, registry: &str, origin: &CredentialOrigin) -> String {
    match origin {
        CredentialOrigin::Anonymous => format!(
            "{target} needs a login at {registry}, or does not exist there: \
             add credentials for {registry} to the docker config (docker login) or the pull secret"
        ),
        origin => format!(
            "{registry} refused {origin} for {target}: correct the docker config (docker login) or the pull secret"
        ),
    }
}

fn hint(speaks_plain_http: bool) -> &'static str {
    if speaks_plain_http {
        "; it speaks plain HTTP: allow that with --plain-http if you trust the network"
    } else {
        ""
    }
}

fn after(retry_after: &Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |d| {
        format!("; try again in {} s", d.as_secs().max(1))
    })
}

fn detail(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(" ({text})")
    }
}

impl RequestError {
    /// Whether trying again is of no use until somebody changes something.
    pub fn is_permanent(&self) -> bool {
        match self {
            RequestError::Unauthorized { .. } | RequestError::Forbidden { .. } => true,
            RequestError::Unreachable {
                speaks_plain_http, ..
            } => *speaks_plain_http,
            RequestError::RateLimited { .. } => false,
            RequestError::Status { status, .. } => *status < 500 && *status != 408,
            RequestError::Credentials(CredentialError::Config { .. }) => true,
            RequestError::Credentials(CredentialError::Helper { .. }) => false,
        }
    }

    /// The word for a condition or event.
    pub fn reason(&self) -> &'static str {
        match self {
            RequestError::Unauthorized { .. } | RequestError::Credentials(_) => "Unauthorized",
            RequestError::Forbidden { .. } => "Forbidden",
            RequestError::Unreachable { .. } => "RegistryUnreachable",
            RequestError::RateLimited { .. } => "RateLimited",
            RequestError::Status { status, .. } if *status >= 500 => "RegistryUnreachable",
            RequestError::Status { .. } => "RegistryRefused",
        }
    }
}

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
        "{reference}: the manifest lists {layers} layers, but its configuration {diff_ids} diff_ids; this is not a runnable image"
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
        ": Clip reads OCI and Docker (schema 2) container images"
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

/// Why a blob, or a range of one, could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The registry gave no useful answer.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The blob is gone.
    #[error("{repository} has no blob {digest}: the image was deleted or its registry cleaned up")]
    NotFound {
        /// Where it was looked for.
        repository: String,
        /// The blob.
        digest: Digest,
    },
    /// The range reaches beyond the blob's end.
    #[error("{repository}: the blob {digest} ends before byte {}: it is not the blob that was indexed", range.end)]
    OutOfRange {
        /// Where the blob is.
        repository: String,
        /// The blob.
        digest: Digest,
        /// The bytes asked for.
        range: Range<u64>,
    },
    /// The registry answered with other bytes than those asked for.
    #[error("{repository}: asked for bytes {}-{} of {digest}, the registry answered {answer:?}", range.start, range.end)]
    WrongRange {
        /// Where the blob is.
        repository: String,
        /// The blob.
        digest: Digest,
        /// The bytes asked for.
        range: Range<u64>,
        /// The answer's Content-Range.
        answer: String,
    },
    /// The transfer broke off again and again.
    #[error(
        "{repository}: the transfer of {digest} broke off at byte {at} and could not be resumed: {cause}"
    )]
    Interrupted {
        /// Where the blob is.
        repository: String,
        /// The blob.
        digest: Digest,
        /// How far it got.
        at: u64,
        /// The last cause.
        cause: String,
    },
    /// The content is not what its digest says.
    #[error(
        "{repository}: the blob {digest} arrived with the digest {actual}: the registry or a proxy before it returns wrong content"
    )]
    DigestMismatch {
        /// Where the blob is.
        repository: String,
        /// The digest asked for.
        digest: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The blob is larger than the caller accepts.
    #[error("{repository}: the blob {digest} is larger than the {limit} bytes that are accepted")]
    TooLarge {
        /// Where the blob is.
        repository: String,
        /// The blob.
        digest: Digest,
        /// The limit in bytes.
        limit: usize,
    },
    /// A layout's file cannot be read.
    #[error("{path} cannot be read: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        cause: std::io::Error,
    },
}

impl FetchError {
    /// Whether trying again is of no use until somebody changes something.
    pub fn is_permanent(&self) -> bool {
        match self {
            FetchError::Request(error) => error.is_permanent(),
            FetchError::Interrupted { .. } | FetchError::WrongRange { .. } => false,
            FetchError::File { cause, .. } => cause.kind() == std::io::ErrorKind::PermissionDenied,
            _ => true,
        }
    }

    /// The word for a condition or event.
    pub fn reason(&self) -> &'static str {
        match self {
            FetchError::Request(error) => error.reason(),
            FetchError::NotFound { .. } => "BlobNotFound",
            FetchError::DigestMismatch { .. } | FetchError::OutOfRange { .. } => "DigestMismatch",
            FetchError::Interrupted { .. } | FetchError::WrongRange { .. } => "RegistryUnreachable",
            FetchError::TooLarge { .. } => "InvalidImage",
            FetchError::File { .. } => "InvalidLayout",
        }
    }
}

/// Why something could not be pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The registry gave no useful answer, or refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The registry's answer breaks the protocol.
    #[error("{repository}: the push failed: {cause}")]
    Protocol {
        /// Where it was pushed to.
        repository: String,
        /// What is wrong with the answer.
        cause: String,
    },
    /// The list of referrers could not be read before it is extended.
    #[error(transparent)]
    Referrers(#[from] ResolveError),
}

impl PushError {
    /// Whether trying again is of no use until somebody changes something.
    pub fn is_permanent(&self) -> bool {
        match self {
            PushError::Request(error) => error.is_permanent(),
            PushError::Protocol { .. } => false,
            PushError::Referrers(error) => error.is_permanent(),
        }
    }

    /// The word for a condition or event.
    pub fn reason(&self) -> &'static str {
        match self {
            PushError::Request(error) => error.reason(),
            PushError::Protocol { .. } => "RegistryRefused",
            PushError::Referrers(error) => error.reason(),
        }
    }
}
