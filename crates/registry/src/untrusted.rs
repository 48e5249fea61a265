//! For the fuzzers (`fuzz/`): what registries and users' files say, parsed and nothing else. Not an interface.

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};

use crate::auth;
use crate::docker_config::DockerConfig;
use crate::documents::{self, RawManifest};
use crate::error::{CredentialOrigin, ResolveError};
use crate::manifest::ConfigView;
use crate::reference::Repository;
use crate::token::{TokenResponse, bearer};

/// A manifest or index as a registry would send it.
pub fn document(body: &[u8], content_type: Option<&str>) -> Result<RawManifest, ResolveError> {
    let content_type = content_type.map(documents::essence);
    documents::raw_manifest("fuzz", Bytes::copy_from_slice(body), content_type, None)
}

/// Whether `body` is an image's configuration.
pub fn is_configuration(body: &[u8]) -> bool {
    serde_json::from_slice::<ConfigView>(body).is_ok()
}

/// Whether one of these `WWW-Authenticate` headers can be answered.
pub fn is_challenge(values: &[&[u8]]) -> bool {
    let mut headers = HeaderMap::new();
    for value in values
        .iter()
        .filter_map(|v| HeaderValue::from_bytes(v).ok())
    {
        headers.append(WWW_AUTHENTICATE, value);
    }
    auth::parse_challenge(&headers).is_some()
}

/// Whether a token service's answer becomes an `Authorization` header.
pub fn is_token(body: &[u8]) -> bool {
    let token = serde_json::from_slice::<TokenResponse>(body);
    token.is_ok_and(|token| bearer(token.text()).is_some())
}

/// Whether a docker configuration has something for `repository`. No helper is run.
pub fn has_login(config: &[u8], repository: &Repository) -> bool {
    let config = DockerConfig::parse(CredentialOrigin::Secret, config);
    config.is_ok_and(|config| {
        let entry = config.best_key(repository);
        let entry = entry.map(|key| config.only(&key));
        entry.is_some() || config.helper_key(repository).is_some() || config.has_store()
    })
}
