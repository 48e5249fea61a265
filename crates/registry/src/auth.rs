//! The one authentication flow: anonymous first; when a registry says 401, do as its `WWW-Authenticate` says.
//!
//! A [`Session`] per repository and kind of access keeps what was learned: the challenge and the `Authorization` that
//! answered it. Tokens are renewed shortly before they expire, and whenever the registry refuses one. Many readers that
//! find a token expired renew it once: the session is locked meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_auth::ChallengeParser;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};

use crate::credentials::{CredentialStore, Login};
use crate::error::{CredentialError, CredentialOrigin, RequestError};
use crate::http::{Http, authority};
use crate::options::PlainHttp;
use crate::reference::Repository;
use crate::token::{TokenQuery, basic, bearer, fetch_token};

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

/// All that is known about who may do what, and the credentials to find out more.
#[derive(Debug)]
pub(crate) struct Auth {
    store: CredentialStore,
    plain_http: PlainHttp,
    sessions: Mutex<HashMap<(Repository, Access), SharedSession>>,
}

/// Locked while a grant is being got, so that one is got for all who wait.
type SharedSession = Arc<tokio::sync::Mutex<Session>>;

#[derive(Debug, Default)]
struct Session {
    challenge: Option<Challenge>,
    grant: Option<Grant>,
    /// The last attempt to get a grant, if it failed: those who waited for it meanwhile get the same answer, instead
    /// of each waiting in turn for a token service that is down.
    failure: Option<(Instant, RequestError)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
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

impl Auth {
    pub(crate) fn new(store: CredentialStore, plain_http: PlainHttp) -> Auth {
        Auth {
            store,
            plain_http,
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
        let since = Instant::now();
        let session = self.session(repository, access);
        let mut session = session.lock().await;
        match (&session.grant, session.challenge.clone()) {
            (Some(grant), Some(challenge)) if grant.is_expired() => {
                let new = self.grant(http, repository, access, &challenge);
                session.settle(since, new).await.map(Some)
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
        let since = Instant::now();
        let session = self.session(repository, access);
        let mut session = session.lock().await;
        let is_another =
            |grant: &Grant| refused.is_none_or(|refused| refused.header != grant.header);
        if let Some(grant) = session.grant.as_ref().filter(|grant| is_another(grant)) {
            return Ok(Some(grant.clone()));
        }
        let Some(challenge) = parse_challenge(headers).or_else(|| session.challenge.clone()) else {
            return Ok(None);
        };
        session.challenge = Some(challenge.clone());
        let new = self.grant(http, repository, access, &challenge);
        Ok(Some(session.settle(since, new).await?).filter(is_another))
    }

    fn session(&self, repository: &Repository, access: Access) -> SharedSession {
        let mut sessions = self
            .sessions
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        sessions
            .entry((repository.clone(), access))
            .or_default()
            .clone()
    }

    /// Answers a challenge.
    async fn grant(
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
        let refused = || RequestError::Unauthorized {
            target: repository.to_string(),
            registry: repository.registry().to_owned(),
            origin: origin.clone(),
            anonymous_token: false,
        };
        let (header, expires) = match (challenge, &login) {
            (Challenge::Basic, Some(Login::Password { username, password })) => {
                (basic(username, password), None)
            }
            (Challenge::Basic, _) => (None, None),
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                _,
            ) => {
                self.check_realm(repository, realm, login.as_ref())?;
                let query = TokenQuery {
                    realm,
                    service: service.as_deref(),
                    scope: &scope_for(repository, access, scope.as_deref()),
                    login: login.as_ref(),
                };
                let token = fetch_token(http, repository, &query)
                    .await?
                    .ok_or_else(refused)?;
                let lifetime = Duration::from_secs(token.expires_in.unwrap_or(DEFAULT_LIFETIME));
                (bearer(token.text()), Some(Instant::now() + lifetime))
            }
        };
        Ok(Grant {
            header: header.ok_or_else(refused)?,
            expires,
            origin: origin.clone(),
        })
    }

    /// A registry could name any address; a password is only sent to one that TLS protects, or that was allowed.
    fn check_realm(
        &self,
        repository: &Repository,
        realm: &Url,
        login: Option<&Login>,
    ) -> Result<(), CredentialError> {
        let is_safe = realm.scheme() == "https" || self.plain_http.allows(&authority(realm));
        if login.is_none() || is_safe {
            return Ok(());
        }
        Err(CredentialError::PlainHttpRealm {
            registry: repository.registry().to_owned(),
            realm: realm.to_string(),
        })
    }
}

impl Grant {
    fn is_expired(&self) -> bool {
        self.expires
            .is_some_and(|at| at < Instant::now() + EXPIRY_MARGIN)
    }
}

impl Session {
    /// Carries out an attempt to get a grant for somebody who waits since `since`, and keeps what comes of it.
    async fn settle(
        &mut self,
        since: Instant,
        attempt: impl Future<Output = Result<Grant, RequestError>>,
    ) -> Result<Grant, RequestError> {
        if let Some((_, error)) = self.failure.as_ref().filter(|(at, _)| *at >= since) {
            return Err(error.clone());
        }
        let result = attempt.await;
        self.grant = result.as_ref().ok().cloned();
        self.failure = result
            .as_ref()
            .err()
            .map(|error| (Instant::now(), error.clone()));
        result
    }
}

/// What to ask a token for: what the challenge says. But a challenge to the first request of a push, which only looks
/// whether a blob is there, names the right to pull alone.
fn scope_for(repository: &Repository, access: Access, challenged: Option<&str>) -> String {
    let name = repository.name();
    match (access, challenged) {
        (Access::Pull, Some(scope)) => scope.to_owned(),
        (Access::Pull, None) => format!("repository:{name}:pull"),
        (Access::Push, Some(scope)) if scope.contains("push") => scope.to_owned(),
        (Access::Push, _) => format!("repository:{name}:pull,push"),
    }
}

/// The challenge to answer: Bearer where it is offered, else Basic.
pub(crate) fn parse_challenge(headers: &HeaderMap) -> Option<Challenge> {
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
}
