//! Start profiles: nodes put what a container read first, and get what others recorded.

use std::sync::Arc;

use axum::{
    body::{Bytes, to_bytes},
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use clip_archive::{
    StartProfile,
    profile::{PROFILE_BYTES_MAX, ProfileError},
};

use super::{ArchiveService, ServiceError, blocking};

/// Starts that are merged into a profile. More change little, and a profile must not grow for ever.
const STARTS_MAX: u32 = 16;

/// `GET /v1/archives/{digest}/profile`
pub(super) async fn get(
    State(service): State<Arc<ArchiveService>>,
    Path(digest): Path<String>,
    headers: HeaderMap,
) -> Response {
    match service.profile(&digest, &headers).await {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        // Most archives have none when they are asked for it first: not worth a warning.
        Err(ServiceError::NoSuchProfile(_)) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => error.into_response(),
    }
}

/// `PUT /v1/archives/{digest}/profile`
pub(super) async fn put(
    State(service): State<Arc<ArchiveService>>,
    Path(digest): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Response {
    let body = to_bytes(request.into_body(), PROFILE_BYTES_MAX);
    let stored = match body.await {
        Ok(json) => service.add_profile(&digest, &headers, json).await,
        // Who broke off reads no answer.
        Err(_) => Err(ProfileError::TooLong.into()),
    };
    match stored {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => error.into_response(),
    }
}

impl ArchiveService {
    async fn profile(&self, digest: &str, headers: &HeaderMap) -> Result<Vec<u8>, ServiceError> {
        let digest = self.admit_node(digest, headers).await?;
        let store = self.store.clone();
        let profile = blocking(move || Ok(store.profile(digest))).await?;
        let profile = profile.ok_or(ServiceError::NoSuchProfile(digest))?;
        Ok(profile.to_json())
    }

    async fn add_profile(
        &self,
        digest: &str,
        headers: &HeaderMap,
        json: Bytes,
    ) -> Result<(), ServiceError> {
        let digest = self.admit_node(digest, headers).await?;
        // A node reports one start of its own, whatever it says.
        let recorded = StartProfile::parse(&json)?.as_one_start();
        let store = self.store.clone();
        // One after the other, or of two nodes that report at once one would be lost.
        let _turn = self.profiles.lock().await;
        let is_known = blocking(move || {
            if !store.archive_path(digest).exists() {
                return Ok(false);
            }
            let known = store.profile(digest).unwrap_or_default();
            if known.starts() < STARTS_MAX {
                store.write_profile(digest, &StartProfile::merge([&known, &recorded]))?;
                tracing::info!(archive = %digest, spans = recorded.touches().len(), "start profile received");
            }
            Ok(true)
        });
        match is_known.await? {
            true => Ok(()),
            false => Err(ServiceError::NoSuchArchive(digest)),
        }
    }
}
