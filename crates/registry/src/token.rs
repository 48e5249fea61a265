//! Tokens from a registry's token service, and the `Authorization` headers made of them.
//!
//! With a user name, or without any credential, a token is got by GET
//! (<https://distribution.github.io/distribution/spec/auth/token/>); with an identity token by POST (OAuth2).

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use crate::answer::{read_limited, status_error};
use crate::credentials::Login;
use crate::error::RequestError;
use crate::http::{Http, authority};
use crate::reference::Repository;
use crate::retry::{Backoff, is_transient, retry_after};

/// No token is larger; Azure's come near 4 KiB.
const TOKEN_RESPONSE_LIMIT: usize = 256 * 1024;

/// What to ask a token service.
#[derive(Debug)]
pub(crate) struct TokenQuery<'a> {
    pub realm: &'a Url,
    pub service: Option<&'a str>,
    pub scope: &'a str,
    pub login: Option<&'a Login>,
}

impl TokenQuery<'_> {
    fn request(&self) -> reqwest::Request {
        match self.login {
            Some(Login::IdentityToken(token)) => self.oauth(token),
            Some(Login::Password { username, password }) => {
                let mut request = self.get();
                let header = basic(username, password);
                request
                    .headers_mut()
                    .extend(header.map(|value| (AUTHORIZATION, value)));
                request
            }
            None => self.get(),
        }
    }

    fn get(&self) -> reqwest::Request {
        let mut url = self.realm.clone();
        let service = self.service.map(|service| ("service", service));
        // A challenge may name several scopes, separated by spaces; each is a parameter of its own.
        let scopes = self.scope.split(' ').filter(|scope| !scope.is_empty());
        let pairs = service
            .into_iter()
            .chain(scopes.map(|scope| ("scope", scope)));
        url.query_pairs_mut().extend_pairs(pairs);
        reqwest::Request::new(Method::GET, url)
    }

    /// <https://distribution.github.io/distribution/spec/auth/oauth/>
    fn oauth(&self, identity_token: &str) -> reqwest::Request {
        let form = form(&[
            ("grant_type", "refresh_token"),
            ("service", self.service.unwrap_or_default()),
            ("client_id", "clip"),
            ("scope", self.scope),
            ("refresh_token", identity_token),
        ]);
        let mut request = reqwest::Request::new(Method::POST, self.realm.clone());
        let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(CONTENT_TYPE, form_type);
        *request.body_mut() = Some(form.into());
        request
    }
}

/// What a token service returns: docker's says `token`, OAuth2's `access_token`, some both.
#[derive(Deserialize)]
pub(crate) struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
    /// Seconds.
    pub expires_in: Option<u64>,
}

impl TokenResponse {
    pub(crate) fn text(&self) -> &str {
        self.token
            .as_deref()
            .or(self.access_token.as_deref())
            .unwrap_or_default()
    }
}

/// `None`: the token service refuses the credentials.
pub(crate) async fn fetch_token(
    http: &Http,
    repository: &Repository,
    query: &TokenQuery<'_>,
) -> Result<Option<TokenResponse>, RequestError> {
    let target = repository.to_string();
    let host = authority(query.realm);
    let mut backoff = Backoff::new();
    loop {
        let (error, pause) = match http.send(query.request()).await {
            Ok(response) if response.status().is_success() => {
                let body = read_limited(http, response, TOKEN_RESPONSE_LIMIT).await;
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
                let error = status_error(http, &target, response).await;
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

pub(crate) fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    secret(&http_auth::basic::encode_credentials(username, password))
}

pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
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

    #[test]
    fn several_scopes_are_several_parameters() {
        let realm = "https://auth.example.com/token?account=x".parse().unwrap();
        let query = TokenQuery {
            realm: &realm,
            service: None,
            scope: "repository:a:pull repository:b:pull",
            login: None,
        };
        let request = query.request();
        assert_eq!(
            request.url().query(),
            Some("account=x&scope=repository%3Aa%3Apull&scope=repository%3Ab%3Apull")
        );
        assert!(!request.headers().contains_key(AUTHORIZATION));
    }

    #[test]
    fn an_identity_token_travels_in_the_body_of_a_post() {
        let realm = "https://auth.example.com/token".parse().unwrap();
        let login = Login::IdentityToken("a b&c".to_owned());
        let query = TokenQuery {
            realm: &realm,
            service: Some("svc"),
            scope: "repository:a:pull",
            login: Some(&login),
        };
        let request = query.request();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.url().query(), None);
        let body = request.body().and_then(|b| b.as_bytes()).unwrap();
        assert_eq!(
            std::str::from_utf8(body).unwrap(),
            "grant_type=refresh_token&service=svc&client_id=clip&scope=repository%3Aa%3Apull&refresh_token=a+b%26c"
        );
    }
}
