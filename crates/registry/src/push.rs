//! Pushing blobs and manifests.

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Method, StatusCode, Url};

use crate::answer::status_error;
use crate::auth::Access;
use crate::client::{Client, Endpoint, Request};
use crate::digest::Digest;
use crate::error::{PushError, RequestError};
use crate::reference::Repository;
use crate::retry::Backoff;

/// What a registry said to a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pushed {
    pub digest: Digest,
    /// Whether the registry keeps the list of referrers itself.
    pub lists_referrers: bool,
}

impl Client {
    /// Pushes a blob, unless the repository has it already.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        bytes: Bytes,
    ) -> Result<Digest, PushError> {
        let digest = Digest::sha256_of(&bytes);
        if self.has_blob(repository, &digest).await? {
            return Ok(digest);
        }
        // An upload that failed halfway is gone, so trying again begins at the beginning.
        let mut backoff = Backoff::new();
        loop {
            match self.upload(repository, &digest, bytes.clone()).await {
                Ok(()) => return Ok(digest),
                Err(error) if error.is_permanent() || !backoff.wait(None).await => {
                    return Err(error);
                }
                Err(error) => tracing::debug!(%repository, %digest, %error, "pushing again"),
            }
        }
    }

    /// Pushes a manifest under a tag or under its digest (`reference`), as it is.
    pub async fn push_manifest(
        &self,
        repository: &Repository,
        reference: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, PushError> {
        Ok(self
            .put_manifest(repository, reference, media_type, bytes)
            .await?
            .digest)
    }

    pub(crate) async fn put_manifest(
        &self,
        repository: &Repository,
        reference: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Pushed, PushError> {
        let digest = Digest::sha256_of(&bytes);
        let mut request = push_request(
            repository,
            Method::PUT,
            Endpoint::Path(format!("manifests/{reference}")),
        );
        let media_type = HeaderValue::from_str(media_type)
            .map_err(|_| protocol(repository, format!("{media_type:?} is not a media type")))?;
        request.headers.insert(CONTENT_TYPE, media_type);
        request.body = Some(bytes);
        let response = self.send(&request).await?.response;
        if !response.status().is_success() {
            return Err(status_error(&self.inner.http, &request.target, response)
                .await
                .into());
        }
        let stored = response
            .headers()
            .get("docker-content-digest")
            .and_then(|value| value.to_str().ok());
        if let Some(stored) = stored.filter(|stored| *stored != digest.as_ref()) {
            return Err(protocol(
                repository,
                format!("the manifest {digest} was stored as {stored}"),
            ));
        }
        Ok(Pushed {
            digest,
            lists_referrers: response.headers().contains_key("oci-subject"),
        })
    }

    async fn has_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, RequestError> {
        let request = push_request(
            repository,
            Method::HEAD,
            Endpoint::Path(format!("blobs/{digest}")),
        );
        Ok(self.send(&request).await?.response.status().is_success())
    }

    /// One POST to open an upload, one PUT with everything.
    async fn upload(
        &self,
        repository: &Repository,
        digest: &Digest,
        bytes: Bytes,
    ) -> Result<(), PushError> {
        let request = push_request(
            repository,
            Method::POST,
            Endpoint::Path("blobs/uploads/".to_owned()),
        );
        let response = self.send(&request).await?.response;
        if response.status() != StatusCode::ACCEPTED {
            return Err(status_error(&self.inner.http, &request.target, response)
                .await
                .into());
        }
        let location = response
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok());
        let url: Option<Url> = location.and_then(|location| response.url().join(location).ok());
        let mut url =
            url.ok_or_else(|| protocol(repository, "no Location to upload to".to_owned()))?;
        url.query_pairs_mut().append_pair("digest", digest.as_ref());

        let mut request = push_request(repository, Method::PUT, Endpoint::Url(url));
        request.headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        request.body = Some(bytes);
        request.repeatable = false;
        let response = self.send(&request).await?.response;
        if !response.status().is_success() {
            return Err(status_error(&self.inner.http, &request.target, response)
                .await
                .into());
        }
        Ok(())
    }
}

fn push_request(repository: &Repository, method: Method, endpoint: Endpoint) -> Request<'_> {
    let mut request = Request::get(repository, String::new());
    request.method = method;
    request.endpoint = endpoint;
    request.access = Access::Push;
    request
}

fn protocol(repository: &Repository, cause: String) -> PushError {
    PushError::Protocol {
        repository: repository.to_string(),
        cause,
    }
}
