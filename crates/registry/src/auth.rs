//! The one authentication flow: anonymous first; when a registry says 401, do as its `WWW-Authenticate` says.
//!
//! A [`Session`] per repository and kind of access keeps what was learned: the challenge and the `Authorization` that
//! answered it. Tokens are renewed shortly before they expire, and whenever the registry refuses one. Many readers that
//! find a token expired renew it once: the session is locked meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_auth::ChallengeParser;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use crate::credentials::{CredentialStore, Login};
use crate::error::{CredentialOrigin, RequestError};
use crate::http::{Http, authority};
use crate::reference::Repository;
use crate::retry::{Backoff, is_transient, retry_after};

/// What shall be done with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    Pull,
    Push,
}

/// An answer to a challenge.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub header: HeaderValue,
    pub origin: CredentialOrigin,
    expires: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Auth {
    store: CredentialStore,
    sessions: Mutex<HashMap<(Repository, Access), Arc<tokio::sync::Mutex<Session>>>>,
}

#[derive(Debug, Default)]
struct Session {
    challenge: Option<Challenge>,
    grant: Option<Grant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: Url,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// A token that expires within this time is renewed before it is used, so that it does not expire on its way.
const EXPIRY_MARGIN: Duration = Duration::from_secs(10);

/// How long a token is good for that does not say so: <https://distribution.github.io/distribution/spec/auth/token/>.
const DEFAULT_LIFETIME: u64 = 60;

/// No token is larger; Azure's come near 4 KiB.
const TOKEN_RESPONSE_LIMIT: usize = 256 * 1024;

impl Auth {
    pub(crate) fn new(store: CredentialStore) -> Auth {
        Auth {
            store,
            sessions: Mutex::default(),
        }
    }

    /// The `Authorization` to begin with, if this repository is known to want one.
    pub(crate) async fn current(
        &self,
        http: &Http,
        repository: &Repository,
        access: Access,
    ) -> Result<Option<Grant>, RequestError> {
        let session = self.session(repository, access);
        let mut session = session.lock().await;
        let expired = |grant: &Grant| {
            grant
                .expires
                .is_some_and(|at| at < Instant::now() + EXPIRY_MARGIN)
        };
        match (&session.grant, &session.challenge) {
            (Some(grant), Some(challenge)) if expired(grant) => {
                let grant = self
                    .answer(http, repository, access, &challenge.clone())
                    .await?;
                session.grant = Some(grant.clone());
                Ok(Some(grant))
            }
            (grant, _) => Ok(grant.clone()),
        }
    }

    /// A new `Authorization` after `refused` was answered by 401 or 403. `None`: there is no way to get another one.
    pub(crate) async fn renew(
        &self,
        http: &Http,
        repository: &Repository,
        access: Access,
        refused: Option<&Grant>,
        headers: &HeaderMap,
    ) -> Result<Option<Grant>, RequestError> {
        let session = self.session(repository, access);
        let mut session = session.lock().await;
        let renewed_meanwhile = match (&session.grant, refused) {
            (Some(now), Some(refused)) => now.header != refused.header,
            (now, None) => now.is_some(),
            (None, Some(_)) => false,
        };
        if renewed_meanwhile {
            return Ok(session.grant.clone());
        }
        let Some(challenge) = parse_challenge(headers).or_else(|| session.challenge.clone()) else {
            return Ok(None);
        };
        session.challenge = Some(challenge.clone());
        session.grant = None;
        let grant = self.answer(http, repository, access, &challenge).await?;
        session.grant = Some(grant.clone());
        Ok(Some(grant).filter(|new| refused.is_none_or(|old| old.header != new.header)))
    }

    fn session(&self, repository: &Repository, access: Access) -> Arc<tokio::sync::Mutex<Session>> {
        let mut sessions = self
            .sessions
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        sessions
            .entry((repository.clone(), access))
            .or_default()
            .clone()
    }

    async fn answer(
        &self,
        http: &Http,
        repository: &Repository,
        access: Access,
        challenge: &Challenge,
    ) -> Result<Grant, RequestError> {
        let (login, origin) = match self.store.find(repository).await? {
            Some((login, origin)) => (Some(login), origin),
            None => (None, CredentialOrigin::Anonymous),
        };
        let unauthorized = || RequestError::Unauthorized {
            target: repository.to_string(),
            registry: repository.registry().to_owned(),
            origin: origin.clone(),
            anonymous_token: false,
        };
        match (challenge, login) {
            (Challenge::Basic, Some(Login::Password { username, password })) => {
                let header = basic(&username, &password).ok_or_else(unauthorized)?;
                Ok(Grant {
                    header,
                    origin,
                    expires: None,
                })
            }
            (Challenge::Basic, _) => Err(unauthorized()),
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                login,
            ) => {
                let default_scope = || match access {
                    Access::Pull => format!("repository:{}:pull", repository.name()),
                    Access::Push => format!("repository:{}:pull,push", repository.name()),
                };
                let scope = scope.clone().unwrap_or_else(default_scope);
                let request = token_request(realm, service.as_deref(), &scope, login.as_ref());
                let token = fetch_token(http, repository, request)
                    .await?
                    .ok_or_else(unauthorized)?;
                let header = bearer(token.text()).ok_or_else(unauthorized)?;
                let lifetime = Duration::from_secs(token.expires_in.unwrap_or(DEFAULT_LIFETIME));
                Ok(Grant {
                    header,
                    origin,
                    expires: Some(Instant::now() + lifetime),
                })
            }
        }
    }
}

/// The challenge to answer: Bearer where it is offered, else Basic.
fn parse_challenge(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut basic = None;
    for challenge in values.flat_map(|value| ChallengeParser::new(value).flatten()) {
        let param = |name: &str| {
            let found = challenge
                .params
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name));
            found
                .map(|(_, value)| value.to_unescaped())
                .filter(|value| !value.is_empty())
        };
        if challenge.scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = param("realm").and_then(|realm| Url::parse(&realm).ok()) {
                return Some(Challenge::Bearer {
                    realm,
                    service: param("service"),
                    scope: param("scope"),
                });
            }
        } else if challenge.scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        }
    }
    basic
}

fn token_request(
    realm: &Url,
    service: Option<&str>,
    scope: &str,
    login: Option<&Login>,
) -> reqwest::Request {
    let mut url = realm.clone();
    if let Some(Login::IdentityToken(token)) = login {
        // OAuth2: <https://distribution.github.io/distribution/spec/auth/oauth/>
        let form = form(&[
            ("grant_type", "refresh_token"),
            ("service", service.unwrap_or_default()),
            ("client_id", "clip"),
            ("scope", scope),
            ("refresh_token", token),
        ]);
        let mut request = reqwest::Request::new(Method::POST, url);
        request.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        *request.body_mut() = Some(form.into());
        return request;
    }
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        // A challenge may name several scopes, separated by spaces; each is a parameter of its own.
        for scope in scope.split(' ').filter(|s| !s.is_empty()) {
            query.append_pair("scope", scope);
        }
    }
    let mut request = reqwest::Request::new(Method::GET, url);
    if let Some(Login::Password { username, password }) = login {
        request
            .headers_mut()
            .extend(basic(username, password).map(|value| (AUTHORIZATION, value)));
    }
    request
}

/// What a token service returns: docker's says `token`, OAuth2's `access_token`, some both.
#[derive(Deserialize)]
struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl TokenResponse {
    fn text(&self) -> &str {
        self.token
            .as_deref()
            .or(self.access_token.as_deref())
            .unwrap_or_default()
    }
}

/// `None`: the token service refuses the credentials.
async fn fetch_token(
    http: &Http,
    repository: &Repository,
    request: reqwest::Request,
) -> Result<Option<TokenResponse>, RequestError> {
    let target = repository.to_string();
    let host = authority(request.url());
    let mut backoff = Backoff::new();
    loop {
        let attempt = request
            .try_clone()
            .expect("its body is bytes, not a stream");
        let (error, pause) = match http.send(attempt).await {
            Ok(response) if response.status().is_success() => {
                let body = crate::client::read_limited(http, response, TOKEN_RESPONSE_LIMIT).await;
                match body.map(|body| serde_json::from_slice::<TokenResponse>(&body)) {
                    Ok(Ok(token)) if !token.text().is_empty() => return Ok(Some(token)),
                    Ok(_) => {
                        let detail_text = "its answer holds no token".to_owned();
                        return Err(RequestError::Status {
                            target,
                            host,
                            status: 200,
                            detail_text,
                        });
                    }
                    Err(error) => (error.into_request_error(&target), None),
                }
            }
            Ok(response) => {
                let status = response.status();
                if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                    return Ok(None);
                }
                let pause = retry_after(response.headers());
                let error = crate::client::status_error(http, &target, response).await;
                if !is_transient(status) {
                    return Err(error);
                }
                (error, pause)
            }
            Err(error) => (error.into_request_error(&target), None),
        };
        if !backoff.wait(pause).await {
            return Err(error);
        }
    }
}

fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    secret(&http_auth::basic::encode_credentials(username, password))
}

fn bearer(token: &str) -> Option<HeaderValue> {
    secret(&format!("Bearer {token}"))
}

/// A header value that debug output hides. `None` if it holds characters that no header may.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn form(fields: &[(&str, &str)]) -> String {
    let url = Url::parse_with_params("form:", fields).expect("a constant URL");
    url.query().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(values: &[&'static str]) -> Option<Challenge> {
        let headers = values
            .iter()
            .map(|v| (WWW_AUTHENTICATE, HeaderValue::from_static(v)))
            .collect();
        parse_challenge(&headers)
    }

    #[test]
    fn bearer_is_preferred_to_basic() {
        let bearer = Challenge::Bearer {
            realm: "https://auth.example.com/token".parse().unwrap(),
            service: Some("registry.example.com".to_owned()),
            scope: Some("repository:a/b:pull".to_owned()),
        };
        let text = r#"Bearer realm="https://auth.example.com/token",service="registry.example.com",scope="repository:a/b:pull""#;
        assert_eq!(
            challenge(&["Basic realm=\"x\"", text]),
            Some(bearer.clone())
        );
        assert_eq!(challenge(&[text]), Some(bearer));
        assert_eq!(challenge(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(challenge(&["Negotiate"]), None);
    }

    #[test]
    fn an_identity_token_travels_in_the_body_of_a_post() {
        let realm = "https://auth.example.com/token".parse().unwrap();
        let login = Login::IdentityToken("a b&c".to_owned());
        let request = token_request(&realm, Some("svc"), "repository:a:pull", Some(&login));
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.url().query(), None);
        let body = request.body().and_then(|b| b.as_bytes()).unwrap();
        assert_eq!(
            std::str::from_utf8(body).unwrap(),
            "grant_type=refresh_token&service=svc&client_id=clip&scope=repository%3Aa%3Apull&refresh_token=a+b%26c"
        );
    }
}
