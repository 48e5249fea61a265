//! Why bytes could not be fetched.

use std::ops::Range;
use std::path::PathBuf;

use super::RequestError;
use crate::digest::Digest;

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
    /// A foreign layer that the registry does not store is not to be had where its manifest says it is.
    #[error(
        "{repository} has no blob {digest}, and {address}, where its manifest says it is, cannot be used: {cause}"
    )]
    Foreign {
        /// Where it was looked for first.
        repository: String,
        /// The blob.
        digest: Digest,
        /// The address that was tried last.
        address: String,
        /// What is wrong with it.
        cause: String,
        /// Whether that will be so tomorrow, too.
        is_permanent: bool,
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
            FetchError::Foreign { is_permanent, .. } => *is_permanent,
            FetchError::Interrupted { .. } | FetchError::WrongRange { .. } => false,
            FetchError::File { cause, .. } => cause.kind() == std::io::ErrorKind::PermissionDenied,
            _ => true,
        }
    }

    /// The word for a condition or event.
    pub fn reason(&self) -> &'static str {
        match self {
            FetchError::Request(error) => error.reason(),
            FetchError::NotFound { .. } | FetchError::Foreign { .. } => "BlobNotFound",
            FetchError::DigestMismatch { .. } | FetchError::OutOfRange { .. } => "DigestMismatch",
            FetchError::Interrupted { .. } | FetchError::WrongRange { .. } => "RegistryUnreachable",
            FetchError::TooLarge { .. } => "InvalidImage",
            FetchError::File { .. } => "InvalidLayout",
        }
    }
}
