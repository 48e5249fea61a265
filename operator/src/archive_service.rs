//! The archive service: Jobs put archives, nodes get them.
//!
//! ```text
//! PUT /v1/namespaces/{namespace}/clipimages/{name}/archive?uid=UID   the archive  →  201 {"digest", "size"}
//! GET the same                                                       →  200, the one that is there; 204 before the first
//! GET /v1/namespaces/{namespace}/clipimages/{name}/layers/{layer}/archive?uid=UID&indexer=VERSION.TAR.BLOB
//!                                                                    →  200, one of the namespace with this layer; or 204
//! GET /v1/archives/{digest}                                          →  200, the archive
//! GET /v1/archives/{digest}/profile                                  →  200, its start profile
//! PUT /v1/archives/{digest}/profile                                  →  204, merged with what is there
//! ```
//!
//! Whoever may upload is not thereby believed: the digest is computed here, from the bytes that arrived, and
//! an archive that does not decode to the last section is refused. Failures are `{"reason", "message"}`.

mod profiles;
mod sections;

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use clip_archive::{
    Archive, Digest, Head, OpenError, head::InvalidIndexer, header::FORMAT_VERSION,
    profile::ProfileError,
};
use futures::StreamExt;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use tokio::sync::Semaphore;
use tokio_util::io::ReaderStream;

use self::sections::Sections;
use crate::{
    access::{Access, AccessError, Ticket},
    controller::Waker,
    identity::{content_key, requested_at},
    mapped::Mapped,
    measure::Measures,
    store::{Record, Store},
};

/// A client that sends nothing for so long is gone.
const IDLE: Duration = Duration::from_secs(60);
/// Uploads at the same time; more wait.
const UPLOADS: usize = 16;
/// Archives verified at the same time: the parts of each are decoded into memory.
const VERIFICATIONS: usize = 1;

/// What the service works with.
#[derive(Debug)]
pub struct ArchiveService {
    access: Access,
    store: Store,
    waker: Waker,
    measures: Measures,
    limits: Limits,
    default_platform: String,
    uploads: Semaphore,
    verifications: Semaphore,
    /// Held while a profile is read, merged and written.
    profiles: tokio::sync::Mutex<()>,
    /// Held while an archive with a layer is looked for.
    sections: Arc<tokio::sync::Mutex<Sections>>,
}

/// What is the most that an upload may claim.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of the disk, in bytes.
    pub archive_bytes: u64,
    /// Of memory while it is verified, in decoded bytes.
    pub decoded_bytes: u64,
}

impl ArchiveService {
    /// A service over `store`, which wakes the controller through `waker`.
    pub fn new(
        access: Access,
        store: Store,
        waker: Waker,
        measures: Measures,
        limits: Limits,
        default_platform: String,
    ) -> Self {
        let (uploads, verifications) = (Semaphore::new(UPLOADS), Semaphore::new(VERIFICATIONS));
        Self {
            access,
            store,
            waker,
            measures,
            limits,
            default_platform,
            uploads,
            verifications,
            profiles: tokio::sync::Mutex::default(),
            sections: Arc::default(),
        }
    }

    /// Its routes.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route(
                "/v1/namespaces/{namespace}/clipimages/{name}/archive",
                put(put_archive).get(get_replaced),
            )
            .route(
                "/v1/namespaces/{namespace}/clipimages/{name}/layers/{layer}/archive",
                get(sections::get),
            )
            .route("/v1/archives/{digest}", get(get_archive))
            .route(
                "/v1/archives/{digest}/profile",
                get(profiles::get).put(profiles::put),
            )
            .with_state(self)
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Who asks may not.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Not a digest.
    #[error("{0}")]
    InvalidDigest(String),
    /// Not what sections depend on.
    #[error(transparent)]
    InvalidIndexer(#[from] InvalidIndexer),
    /// Not there.
    #[error("there is no archive {0}: it is being made again, or its ClipImage is gone")]
    NoSuchArchive(Digest),
    /// Nobody has recorded a start yet.
    #[error("there is no start profile of archive {0}")]
    NoSuchProfile(Digest),
    /// Not a start profile.
    #[error("the start profile was refused: {0}")]
    InvalidProfile(#[from] ProfileError),
    /// Larger than allowed.
    #[error("the archive is larger than {0} bytes, the operator's --max-archive-bytes")]
    TooLarge(u64),
    /// Verifying it would take more memory than there is.
    #[error(
        "the archive's lists of files and seek points unpack to {decoded} bytes, more than {limit}: raise the operator's \
         --max-decoded-bytes, and its memory limit by five times as much"
    )]
    TooLargeDecoded {
        /// What has to be in memory at once, in bytes.
        decoded: u64,
        /// The most that is allowed.
        limit: u64,
    },
    /// The upload broke off.
    #[error("the upload broke off: {0}")]
    Interrupted(String),
    /// The bytes are not an archive.
    #[error("the archive was refused: {0}")]
    InvalidArchive(#[from] OpenError),
    /// The disk.
    #[error("the archive cannot be stored: {0}")]
    Disk(#[from] io::Error),
    /// The process is ending.
    #[error("the operator is shutting down")]
    ShuttingDown,
}

impl ServiceError {
    /// HTTP status and reason. What is the client's fault is final for it; what is ours it may repeat.
    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Access(AccessError::NoToken | AccessError::InvalidToken(_)) => {
                (StatusCode::UNAUTHORIZED, "Unauthorized")
            }
            Self::Access(AccessError::Forbidden(_)) => (StatusCode::FORBIDDEN, "Forbidden"),
            Self::Access(AccessError::NoSuchImage(_)) => (StatusCode::NOT_FOUND, "NoSuchImage"),
            Self::Access(AccessError::Superseded(_)) => (StatusCode::CONFLICT, "Superseded"),
            Self::Access(AccessError::Unavailable(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "Unavailable")
            }
            Self::InvalidDigest(_) => (StatusCode::BAD_REQUEST, "InvalidDigest"),
            Self::InvalidIndexer(_) => (StatusCode::BAD_REQUEST, "InvalidIndexer"),
            Self::NoSuchArchive(_) => (StatusCode::NOT_FOUND, "NoSuchArchive"),
            Self::NoSuchProfile(_) => (StatusCode::NOT_FOUND, "NoSuchProfile"),
            Self::InvalidProfile(_) => (StatusCode::UNPROCESSABLE_ENTITY, "InvalidProfile"),
            Self::TooLarge(_) | Self::TooLargeDecoded { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "TooLarge")
            }
            Self::Interrupted(_) => (StatusCode::SERVICE_UNAVAILABLE, "Interrupted"),
            Self::InvalidArchive(_) => (StatusCode::UNPROCESSABLE_ENTITY, "InvalidArchive"),
            Self::Disk(_) => (StatusCode::INSUFFICIENT_STORAGE, "Disk"),
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "ShuttingDown"),
        }
    }
}

impl IntoResponse for ServiceError {
    fn into_response(self) -> Response {
        let (status, reason) = self.status();
        let message = self.to_string();
        tracing::warn!(status = status.as_u16(), reason, "{message}");
        (status, Json(Problem { reason, message })).into_response()
    }
}

#[derive(Debug, Serialize)]
struct Problem {
    reason: &'static str,
    message: String,
}

#[derive(Debug, Deserialize)]
struct UploadQuery {
    uid: Option<String>,
}

#[derive(Debug, Serialize)]
struct Uploaded {
    digest: String,
    size: u64,
}

async fn put_archive(
    State(service): State<Arc<ArchiveService>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<UploadQuery>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let result = service
        .upload(&namespace, &name, query.uid.as_deref(), &headers, body)
        .await;
    let response = match result {
        Ok(uploaded) => (StatusCode::CREATED, Json(uploaded)).into_response(),
        Err(error) => error.into_response(),
    };
    service.measures.upload(response.status().as_u16());
    response
}

async fn get_replaced(
    State(service): State<Arc<ArchiveService>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<UploadQuery>,
    headers: HeaderMap,
) -> Response {
    let uid = query.uid.as_deref();
    let result = service.replaced(&namespace, &name, uid, &headers).await;
    service.downloaded(result)
}

async fn get_archive(
    State(service): State<Arc<ArchiveService>>,
    Path(digest): Path<String>,
    headers: HeaderMap,
) -> Response {
    let result = service.download(&digest, &headers).await;
    service.downloaded(result)
}

impl ArchiveService {
    async fn upload(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Uploaded, ServiceError> {
        let ticket = self
            .access
            .upload(bearer(headers)?, namespace, name, uid)
            .await?;
        let _turn = self
            .uploads
            .acquire()
            .await
            .map_err(|_| ServiceError::ShuttingDown)?;
        let received = self.receive(body).await?;
        let (received, verified) = self.verify(received).await?;
        let record = self.record(&ticket, &received, verified);
        let (digest, size) = (received.digest, received.size);
        let store = self.store.clone();
        blocking(move || {
            store.keep(received.file, digest)?;
            store.write_record(&record)
        })
        .await?;
        self.waker.wake(namespace, name);
        tracing::info!(namespace, name, job = ticket.job, %digest, size, "archive received");
        Ok(Uploaded {
            digest: digest.to_string(),
            size,
        })
    }

    /// To a temporary file, hashing; memory does not grow with the archive.
    async fn receive(&self, body: Body) -> Result<Received, ServiceError> {
        let store = self.store.clone();
        let mut file = blocking(move || store.new_upload()).await?;
        let mut hash = Sha256::new();
        let mut size = 0_u64;
        let mut chunks = body.into_data_stream();
        loop {
            let next = tokio::time::timeout(IDLE, chunks.next()).await;
            let chunk = match next
                .map_err(|_| ServiceError::Interrupted("nothing came for a minute".into()))?
            {
                None => break,
                Some(chunk) => {
                    chunk.map_err(|error| ServiceError::Interrupted(error.to_string()))?
                }
            };
            size += chunk.len() as u64;
            if size > self.limits.archive_bytes {
                return Err(ServiceError::TooLarge(self.limits.archive_bytes));
            }
            hash.update(&chunk);
            file = blocking(move || file.write_all(&chunk).map(|()| file)).await?;
        }
        Ok(Received {
            file,
            digest: Digest::from_bytes(hash.finalize().into()),
            size,
        })
    }

    /// Decodes everything, as a node will; of the file itself only the pages that are looked at are in memory.
    async fn verify(&self, received: Received) -> Result<(Received, Verified), ServiceError> {
        let _turn = self
            .verifications
            .acquire()
            .await
            .map_err(|_| ServiceError::ShuttingDown)?;
        let limit = self.limits.decoded_bytes;
        let task = tokio::task::spawn_blocking(move || {
            let archive = Archive::open(Mapped::new(received.file.as_file())?)?;
            check_decoded(archive.head(), limit)?;
            let numbers = archive.verify()?;
            let head = archive.head();
            let verified = Verified {
                platform: head.platform.clone(),
                manifest_digest: head.manifest_digest,
                files: numbers.files,
                layers: numbers.layers,
                image_bytes: numbers.image_bytes,
                unpacked_bytes: numbers.unpacked_bytes,
            };
            Ok((received, verified))
        });
        task.await.map_err(|_| ServiceError::ShuttingDown)?
    }

    fn record(&self, ticket: &Ticket, received: &Received, verified: Verified) -> Record {
        let now = Timestamp::now();
        let image = &ticket.image;
        Record {
            uid: image.uid().unwrap_or_default(),
            image: format!(
                "{}/{}",
                image.namespace().unwrap_or_default(),
                image.name_any()
            ),
            digest: received.digest.to_string(),
            size: received.size,
            content_key: content_key(&image.spec, &self.default_platform),
            requested_at: requested_at(image),
            job: ticket.job.clone(),
            platform: verified.platform,
            manifest_digest: verified.manifest_digest.to_string(),
            format_version: FORMAT_VERSION,
            files: verified.files,
            layers: verified.layers,
            compressed_bytes: verified.image_bytes,
            unpacked_bytes: verified.unpacked_bytes,
            duration_ms: None,
            // As the API will return it: it tells one upload from the next.
            created: Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
            publication: None,
        }
    }

    /// Checks that a node asks, and reads what it asks for.
    async fn admit_node(&self, digest: &str, headers: &HeaderMap) -> Result<Digest, ServiceError> {
        self.access.download(bearer(headers)?).await?;
        parse_digest(digest)
    }

    async fn download(&self, digest: &str, headers: &HeaderMap) -> Result<Response, ServiceError> {
        let digest = self.admit_node(digest, headers).await?;
        self.archive(digest).await
    }

    /// For the Job that may upload.
    async fn replaced(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Response, ServiceError> {
        let token = bearer(headers)?;
        let ticket = self.access.upload(token, namespace, name, uid).await?;
        let (store, uid) = (self.store.clone(), ticket.image.uid().unwrap_or_default());
        let record = blocking(move || Ok(store.record(&uid))).await?;
        match record.and_then(|record| record.digest.parse().ok()) {
            Some(digest) => self.archive(digest).await,
            None => Ok(StatusCode::NO_CONTENT.into_response()),
        }
    }

    async fn archive(&self, digest: Digest) -> Result<Response, ServiceError> {
        let file = match tokio::fs::File::open(self.store.archive_path(digest)).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ServiceError::NoSuchArchive(digest));
            }
            Err(error) => return Err(error.into()),
        };
        let size = file.metadata().await?.len();
        Ok(archive_response(file, digest, size))
    }

    fn downloaded(&self, result: Result<Response, ServiceError>) -> Response {
        let response = result.unwrap_or_else(IntoResponse::into_response);
        self.measures.download(response.status().as_u16());
        response
    }
}

struct Received {
    file: NamedTempFile,
    digest: Digest,
    size: u64,
}

struct Verified {
    platform: String,
    manifest_digest: Digest,
    files: u64,
    layers: u64,
    image_bytes: u64,
    unpacked_bytes: u64,
}

/// The entries of all layers are in memory at once to be merged; spans and windows of one layer at a time.
fn check_decoded(head: &Head, limit: u64) -> Result<(), ServiceError> {
    let entries = head.layers.iter().map(|layer| layer.entries.raw_len);
    let seek = head
        .layers
        .iter()
        .map(|layer| layer.spans.raw_len.saturating_add(layer.windows.raw_len));
    let decoded = entries.fold(seek.max().unwrap_or(0), u64::saturating_add);
    if decoded > limit {
        return Err(ServiceError::TooLargeDecoded { decoded, limit });
    }
    Ok(())
}

fn archive_response(file: tokio::fs::File, digest: Digest, size: u64) -> Response {
    let headers = [
        (
            header::CONTENT_TYPE,
            "application/vnd.clip.archive".to_owned(),
        ),
        (header::CONTENT_LENGTH, size.to_string()),
        (header::ETAG, format!("\"{digest}\"")),
    ];
    (headers, Body::from_stream(ReaderStream::new(file))).into_response()
}

fn parse_digest(text: &str) -> Result<Digest, ServiceError> {
    text.parse()
        .map_err(|error| ServiceError::InvalidDigest(format!("{error}")))
}

fn bearer(headers: &HeaderMap) -> Result<&str, AccessError> {
    let value = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    value
        .and_then(|value| value.strip_prefix("Bearer "))
        .map(str::trim)
        .ok_or(AccessError::NoToken)
}

/// Files block; the event loop must not.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ServiceError> {
    let done = tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ServiceError::ShuttingDown)?;
    Ok(done?)
}

#[cfg(test)]
mod tests;
