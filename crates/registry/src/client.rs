//! The client: one way to send a request to a registry, used by everything else in this crate.
//!
//! A request is authenticated as the registry asks, repeated after a pause when that may help, and redirected without
//! taking `Authorization` to another host:
//!
//! ```text
//!  send ──► send_once ──► registry ──► 2xx, 404, …  ──► the caller
//!    ▲         │ redirect     ├──► 401, 403         ──► renew the authorization, once
//!    │         └─► other host └──► 429, 5xx, no answer ─► wait
//!    └───────────────────────────────────────────────────────┘
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderMap, LOCATION};
use reqwest::{Method, Response, StatusCode, Url};

use crate::answer::{read_limited, refusal, status_error};
use crate::auth::{Access, Auth, Grant};
use crate::blob::RedirectCache;
use crate::credentials::{CredentialStore, Credentials};
use crate::error::{ClientError, RequestError};
use crate::http::{Http, TransportError, authority, is_loopback};
use crate::mirrors::{Host, Mirrors};
use crate::options::{ClientOptions, PlainHttp};
use crate::reference::{DEFAULT_REGISTRY, Repository};
use crate::retry::{Backoff, is_transient, retry_after};

/// Speaks to registries. Cheap to clone; clones share connections, tokens and redirects.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub http: Http,
    pub redirects: RedirectCache,
    pub mirrors: Arc<Mirrors>,
    plain_http: PlainHttp,
    auth: Auth,
    /// What was found out about loopback registries.
    schemes: Mutex<HashMap<String, Scheme>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

/// One request to a registry's API.
#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    pub method: Method,
    pub repository: &'a Repository,
    pub endpoint: Endpoint,
    pub access: Access,
    pub headers: HeaderMap,
    pub body: Option<Bytes>,
    /// What the request is about, for messages: a reference or a repository.
    pub target: String,
    /// Whether it may be sent again when it is unknown what became of it.
    pub repeatable: bool,
    /// The registry in whose place another host is asked.
    pub mirrored: Option<&'a str>,
    /// Only the registry itself shall say it.
    pub past_mirrors: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Endpoint {
    /// Below `/v2/REPOSITORY/`.
    Path(String),
    /// An address that the registry gave us.
    Url(Url),
}

impl<'a> Request<'a> {
    pub(crate) fn get(repository: &'a Repository, path: String) -> Request<'a> {
        Request {
            method: Method::GET,
            repository,
            endpoint: Endpoint::Path(path),
            access: Access::Pull,
            headers: HeaderMap::new(),
            body: None,
            target: repository.to_string(),
            repeatable: true,
            mirrored: None,
            past_mirrors: false,
        }
    }

    /// Whether it may be sent to this mirror.
    fn may_ask(&self, mirror: &Host) -> bool {
        let Endpoint::Path(path) = &self.endpoint else {
            return false;
        };
        let has_it = match path.split_once('/') {
            // The list of an image's artifacts, kept under a tag: it is written back, and no digest checks it.
            Some(("manifests", tag)) if tag.starts_with("sha256-") => false,
            Some(("manifests", name)) if !name.contains(':') => mirror.resolve,
            Some(("manifests" | "blobs", _)) => mirror.pull,
            _ => false,
        };
        let is_read = self.method == Method::GET && self.access == Access::Pull;
        is_read && has_it && !self.past_mirrors
    }
}

/// A response, and where it came from if that was not the registry itself.
#[derive(Debug)]
pub(crate) struct Answer {
    pub response: Response,
    pub redirected_to: Option<Url>,
    /// The mirror that gave it.
    pub mirror: Option<Arc<Host>>,
}

impl Answer {
    /// From the place that was asked.
    pub(crate) fn directly(response: Response) -> Answer {
        Answer {
            response,
            redirected_to: None,
            mirror: None,
        }
    }
}

impl Client {
    /// A client that behaves as `options` say. Reads credentials and certificates; opens no connection.
    pub fn new(options: ClientOptions) -> Result<Client, ClientError> {
        let inner = Inner {
            http: Http::new(&options)?,
            redirects: RedirectCache::default(),
            mirrors: Arc::new(Mirrors::new(&options)),
            auth: Auth::new(
                CredentialStore::new(&options.credentials)?,
                options.plain_http.clone(),
            ),
            plain_http: options.plain_http,
            schemes: Mutex::default(),
        };
        Ok(Client {
            inner: Arc::new(inner),
        })
    }

    /// A client that shares this one's connections, but looks for credentials elsewhere. Nothing that one of them was
    /// allowed is used by the other: tokens and redirects are its own.
    pub fn with_credentials(&self, credentials: &Credentials) -> Result<Client, ClientError> {
        let plain_http = self.inner.plain_http.clone();
        let inner = Inner {
            http: self.inner.http.clone(),
            redirects: RedirectCache::default(),
            mirrors: self.inner.mirrors.clone(),
            auth: Auth::new(CredentialStore::new(credentials)?, plain_http.clone()),
            plain_http,
            schemes: Mutex::new(self.schemes().clone()),
        };
        Ok(Client {
            inner: Arc::new(inner),
        })
    }

    /// Whether an address that a document names may be asked: whoever wrote it does not decide what goes unencrypted,
    /// and has no business on this machine.
    pub(crate) fn may_ask(&self, url: &Url) -> bool {
        match url.scheme() {
            "https" => true,
            "http" => self.inner.plain_http.demands(&authority(url)),
            _ => false,
        }
    }

    /// Sends `request` to the registry's mirrors, and if none has what is asked for to the registry itself, until there is
    /// an answer that the caller has to judge: not 401, 403, 429 or 5xx.
    pub(crate) async fn send(&self, request: &Request<'_>) -> Result<Answer, RequestError> {
        let Some(hosts) = self.inner.mirrors.of(request.repository.registry()) else {
            return self.send_to(request, None).await;
        };
        for mirror in hosts.mirrors.iter().filter(|host| request.may_ask(host)) {
            if let Some(answer) = self.ask_mirror(request, mirror).await {
                return Ok(answer);
            }
        }
        match &hosts.server {
            Some(server) => self.ask_server(request, server).await,
            None => self.send_to(request, None).await,
        }
    }

    /// The answer of the host that stands for the registry.
    async fn ask_server(
        &self,
        request: &Request<'_>,
        server: &Host,
    ) -> Result<Answer, RequestError> {
        let there = server.repository(request.repository);
        let registry = request.repository.registry();
        let request = Request {
            repository: &there,
            mirrored: (there != *request.repository).then_some(registry),
            ..request.clone()
        };
        self.send_to(&request, Some(server)).await
    }

    /// A mirror's answer, if it has what is asked for. It is asked once, and rests if it gives none.
    async fn ask_mirror(&self, request: &Request<'_>, mirror: &Arc<Host>) -> Option<Answer> {
        if mirror.rests_for(request.repository) {
            return None;
        }
        let there = Request {
            repository: &mirror.repository(request.repository),
            mirrored: Some(request.repository.registry()),
            repeatable: false,
            ..request.clone()
        };
        match self.send_to(&there, Some(mirror)).await {
            Ok(answer) if answer.response.status().is_success() => Some(Answer {
                // Signed addresses of a mirror's store are not kept: it is asked again, and may rest by then.
                redirected_to: None,
                mirror: Some(mirror.clone()),
                ..answer
            }),
            Ok(answer) => {
                tracing::debug!(url = %answer.response.url(), status = %answer.response.status(), "not there");
                None
            }
            Err(error) => {
                mirror.failed(request.repository, &error);
                None
            }
        }
    }

    /// Sends `request` to one host, with the credentials that are kept for its repository's registry; none is that registry
    /// itself.
    async fn send_to(
        &self,
        request: &Request<'_>,
        host: Option<&Host>,
    ) -> Result<Answer, RequestError> {
        let auth = &self.inner.auth;
        let http = host.map_or(&self.inner.http, |host| &host.http);
        let (repository, access) = (request.repository, request.access);
        let mut backoff = if request.repeatable {
            Backoff::new()
        } else {
            Backoff::once()
        };
        let mut grant = auth.current(http, repository, access).await?;
        let mut renewed = false;
        loop {
            let (error, pause) = match self.send_once(request, host, grant.as_ref()).await {
                Ok(answer) => {
                    let status = answer.response.status();
                    let refused =
                        matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
                    if refused && answer.redirected_to.is_none() {
                        if !renewed {
                            renewed = true;
                            let headers = answer.response.headers();
                            let new = auth
                                .renew(http, repository, access, grant.as_ref(), headers)
                                .await?;
                            if new.is_some() {
                                grant = new;
                                continue;
                            }
                        }
                        return Err(refusal(http, request, grant.as_ref(), answer.response).await);
                    }
                    if refused || is_transient(status) {
                        let pause = retry_after(answer.response.headers());
                        (
                            status_error(http, &request.target, answer.response).await,
                            pause,
                        )
                    } else {
                        return Ok(answer);
                    }
                }
                Err(error) => (error, None),
            };
            if !backoff.wait(pause).await {
                return Err(error);
            }
            tracing::debug!(target = %request.target, %error, "trying again");
        }
    }

    /// Sends `request` once, and follows where it is sent on to.
    async fn send_once(
        &self,
        request: &Request<'_>,
        host: Option<&Host>,
        grant: Option<&Grant>,
    ) -> Result<Answer, RequestError> {
        /// Registries redirect to a mirror, that to a store of blobs; more hops are a loop.
        const MOST_REDIRECTS: usize = 5;

        let (http, api) = match host {
            Some(host) => (&host.http, host.api.clone()),
            None => {
                let registry = request.repository.registry();
                (
                    &self.inner.http,
                    self.api_url(registry, &request.target).await?,
                )
            }
        };
        let mut url = match &request.endpoint {
            Endpoint::Path(path) => {
                let path = format!("{}/{path}", request.repository.name());
                let mut url = api
                    .join(&path)
                    .map_err(|e| not_an_address(request, &path, e.to_string()))?;
                // Mirrors of several registries go by it: containerd's `ns`.
                if let Some(registry) = request.mirrored {
                    url.query_pairs_mut().append_pair("ns", registry);
                }
                url
            }
            Endpoint::Url(url) => url.clone(),
        };
        let mut redirected_to = None;
        for _ in 0..=MOST_REDIRECTS {
            let mut attempt = reqwest::Request::new(request.method.clone(), url.clone());
            *attempt.headers_mut() = request.headers.clone();
            if let Some(host) = host.filter(|_| same_server(&url, &api)) {
                attempt.headers_mut().extend(host.headers.clone());
            }
            if let Some(grant) = grant.filter(|_| same_server(&url, &api)) {
                attempt
                    .headers_mut()
                    .insert(AUTHORIZATION, grant.header.clone());
            }
            if let Some(body) = &request.body {
                *attempt.body_mut() = Some(body.clone().into());
            }
            let sent = http.send(attempt).await;
            let response = sent.map_err(|e| e.into_request_error(&request.target))?;
            self.remember_scheme(response.url());
            let repeats = matches!(request.method, Method::GET | Method::HEAD);
            if !(repeats && response.status().is_redirection()) {
                return Ok(Answer {
                    response,
                    redirected_to,
                    mirror: None,
                });
            }
            url = location(&response, request)?;
            redirected_to = (!same_server(&url, &api)).then(|| url.clone());
        }
        Err(not_an_address(
            request,
            url.as_str(),
            "too many redirects".to_owned(),
        ))
    }

    /// The root of a registry's API, with `/` at the end.
    async fn api_url(&self, registry: &str, target: &str) -> Result<Url, RequestError> {
        let host = if registry == DEFAULT_REGISTRY {
            "registry-1.docker.io"
        } else {
            registry
        };
        let scheme = match self.scheme(host).await {
            Ok(Scheme::Http) => "http",
            Ok(Scheme::Https) => "https",
            Err(error) => return Err(error.into_request_error(target)),
        };
        Url::parse(&format!("{scheme}://{host}/v2/")).map_err(|e| RequestError::Unreachable {
            target: target.to_owned(),
            host: host.to_owned(),
            cause: e.to_string(),
            speaks_plain_http: false,
        })
    }

    async fn scheme(&self, host: &str) -> Result<Scheme, TransportError> {
        if self.inner.plain_http.demands(host) {
            return Ok(Scheme::Http);
        }
        if !is_loopback(host) {
            return Ok(Scheme::Https);
        }
        let known = self.schemes().get(host).copied();
        match known {
            Some(scheme) => Ok(scheme),
            None => self.probe(host).await,
        }
    }

    /// Asks a loopback registry in plain HTTP. A TLS server answers that with a complaint, or with bytes that are not
    /// HTTP, or hangs up; but so does a plain one that is just being restarted. What is found out is therefore
    /// remembered only once the registry has answered in it.
    async fn probe(&self, host: &str) -> Result<Scheme, TransportError> {
        let Ok(url) = Url::parse(&format!("http://{host}/v2/")) else {
            return Ok(Scheme::Http);
        };
        match self
            .inner
            .http
            .send(reqwest::Request::new(Method::GET, url))
            .await
        {
            Ok(response) if response.status() == StatusCode::BAD_REQUEST => {
                let body = read_limited(&self.inner.http, response, 4096)
                    .await
                    .unwrap_or_default();
                let complains = String::from_utf8_lossy(&body).contains("HTTPS");
                Ok(if complains {
                    Scheme::Https
                } else {
                    Scheme::Http
                })
            }
            Ok(_) => Ok(Scheme::Http),
            Err(error) if error.connected => Ok(Scheme::Https),
            Err(error) => Err(error),
        }
    }

    fn remember_scheme(&self, answered: &Url) {
        let host = authority(answered);
        if is_loopback(&host) {
            let scheme = match answered.scheme() {
                "https" => Scheme::Https,
                _ => Scheme::Http,
            };
            self.schemes().insert(host, scheme);
        }
    }

    fn schemes(&self) -> std::sync::MutexGuard<'_, HashMap<String, Scheme>> {
        self.inner
            .schemes
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn location(response: &Response, request: &Request<'_>) -> Result<Url, RequestError> {
    let text = response
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    response
        .url()
        .join(text)
        .map_err(|e| not_an_address(request, text, e.to_string()))
}

fn not_an_address(request: &Request<'_>, address: &str, cause: String) -> RequestError {
    RequestError::Unreachable {
        target: request.target.clone(),
        host: request.repository.registry().to_owned(),
        cause: format!("it sent us to {address:?}: {cause}"),
        speaks_plain_http: false,
    }
}

/// Scheme, host and port: only the server that asked for a credential gets to see it.
fn same_server(a: &Url, b: &Url) -> bool {
    (a.scheme(), a.host_str(), a.port_or_known_default())
        == (b.scheme(), b.host_str(), b.port_or_known_default())
}
