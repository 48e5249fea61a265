//! What answers mean that are no success, and bodies that fit into memory.

use bytes::{Bytes, BytesMut};
use reqwest::{Response, StatusCode};
use serde::Deserialize;

use crate::auth::Grant;
use crate::client::Request;
use crate::error::{CredentialOrigin, RequestError};
use crate::http::{Http, TransportError, authority};
use crate::retry::retry_after;

impl TransportError {
    pub(crate) fn into_request_error(self, target: &str) -> RequestError {
        let TransportError {
            host,
            cause,
            speaks_plain_http,
            ..
        } = self;
        RequestError::Unreachable {
            target: target.to_owned(),
            host,
            cause,
            speaks_plain_http,
        }
    }
}

/// Reads a body of at most `limit` bytes; what is beyond is left unread.
pub(crate) async fn read_limited(
    http: &Http,
    mut response: Response,
    limit: usize,
) -> Result<Bytes, TransportError> {
    let host = authority(response.url());
    let mut body = BytesMut::new();
    while body.len() < limit {
        match tokio::time::timeout(http.read_timeout, response.chunk()).await {
            Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
            Ok(Ok(None)) => break,
            Ok(Err(error)) => return Err(TransportError::from_reqwest(host, &error)),
            Err(_) => return Err(TransportError::timed_out(host, http.read_timeout)),
        }
    }
    Ok(body.freeze())
}

/// What an answer that is no success means.
pub(crate) async fn status_error(http: &Http, target: &str, response: Response) -> RequestError {
    let (status, host, target) = (
        response.status(),
        authority(response.url()),
        target.to_owned(),
    );
    if status == StatusCode::TOO_MANY_REQUESTS {
        return RequestError::RateLimited {
            target,
            host,
            retry_after: retry_after(response.headers()),
        };
    }
    let detail_text = registry_words(http, response).await;
    RequestError::Status {
        target,
        host,
        status: status.as_u16(),
        detail_text,
    }
}

/// What a 401 or 403 that could not be helped means.
pub(crate) async fn refusal(
    http: &Http,
    request: &Request<'_>,
    grant: Option<&Grant>,
    response: Response,
) -> RequestError {
    let target = request.target.clone();
    let registry = request.repository.registry().to_owned();
    let origin = grant.map_or(CredentialOrigin::Anonymous, |grant| grant.origin.clone());
    let anonymous_token = grant.is_some() && origin == CredentialOrigin::Anonymous;
    if response.status() == StatusCode::UNAUTHORIZED || anonymous_token {
        return RequestError::Unauthorized {
            target,
            registry,
            origin,
            anonymous_token,
        };
    }
    let detail_text = registry_words(http, response).await;
    RequestError::Forbidden {
        target,
        registry,
        origin,
        detail_text,
    }
}

/// The message in a registry's JSON error, shortened: <https://github.com/opencontainers/distribution-spec> "Error Codes".
async fn registry_words(http: &Http, response: Response) -> String {
    #[derive(Deserialize)]
    struct Body {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let body = read_limited(http, response, 8192).await.unwrap_or_default();
    let parsed: Option<Body> = serde_json::from_slice(&body).ok();
    let entry = parsed.and_then(|body| body.errors.into_iter().next());
    let words = entry.map_or_else(String::new, |e| {
        if e.message.is_empty() {
            e.code
        } else {
            e.message
        }
    });
    words
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect()
}
