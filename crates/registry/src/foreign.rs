//! Foreign layers: blobs that their registry must not store. The manifest says where else they are (`urls`).
//!
//! The registry is always asked first: many keep such layers all the same, and mirrors do. Only when it has no such blob,
//! the addresses are tried in order. They come from whoever made the image, so they get no credentials, and must be
//! HTTPS, as must all places they redirect to; plain HTTP needs that host in [`PlainHttp::Hosts`]. What they send is
//! checked like any other blob.
//!
//! [`PlainHttp::Hosts`]: crate::PlainHttp::Hosts

use reqwest::header::{HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, Url};

use crate::client::Client;
use crate::digest::Digest;
use crate::http::authority;
use crate::manifest::Manifest;
use crate::reference::{Reference, Repository};
use crate::retry::{Backoff, is_transient};

/// A redirect to a store, that to a mirror of it; more hops are a loop.
const MOST_REDIRECTS: usize = 5;
/// Real layers name one address.
const MOST_ADDRESSES: usize = 8;

/// Why no address of a foreign layer was of use.
#[derive(Debug)]
pub(crate) struct Unusable {
    pub address: String,
    pub cause: String,
    pub is_permanent: bool,
}

impl Client {
    /// Where the manifest says that its layer `blob` may also be had.
    pub(crate) async fn foreign_addresses(
        &self,
        repository: &Repository,
        manifest: &Digest,
        blob: &Digest,
    ) -> Vec<String> {
        let reference = Reference::with_digest(repository.clone(), manifest.clone());
        let Ok(raw) = self.fetch_manifest(&reference).await else {
            return Vec::new();
        };
        let manifest: Option<Manifest> = serde_json::from_slice(&raw.bytes).ok();
        let layers = manifest.into_iter().flat_map(|manifest| manifest.layers);
        layers
            .filter(|layer| layer.digest == *blob)
            .flat_map(|layer| layer.urls)
            .take(MOST_ADDRESSES)
            .collect()
    }

    /// The answer of the first of `addresses` that has the blob, and where it came from in the end.
    pub(crate) async fn fetch_foreign(
        &self,
        addresses: &[String],
        range: Option<&HeaderValue>,
    ) -> Result<(Response, Url), Unusable> {
        let mut backoff = Backoff::new();
        loop {
            let mut last = None;
            for address in addresses {
                match self.fetch_address(address, range).await {
                    Ok(found) => return Ok(found),
                    Err(error) => {
                        last = last.filter(|l: &Unusable| !l.is_permanent).or(Some(error))
                    }
                }
            }
            match last {
                Some(error) if error.is_permanent || !backoff.wait(None).await => {
                    return Err(error);
                }
                _ => {}
            }
        }
    }

    async fn fetch_address(
        &self,
        address: &str,
        range: Option<&HeaderValue>,
    ) -> Result<(Response, Url), Unusable> {
        let unusable = |cause: String, is_permanent| Unusable {
            address: address.to_owned(),
            cause,
            is_permanent,
        };
        let mut url = Url::parse(address).map_err(|e| unusable(e.to_string(), true))?;
        for _ in 0..=MOST_REDIRECTS {
            if !self.may_ask(&url) {
                let cause = format!(
                    "{} is not HTTPS (allow it with --plain-http=HOST)",
                    authority(&url)
                );
                return Err(unusable(cause, true));
            }
            let mut request = reqwest::Request::new(Method::GET, url.clone());
            request
                .headers_mut()
                .extend(range.map(|range| (RANGE, range.clone())));
            let response = match self.inner.http.send(request).await {
                Ok(response) => response,
                Err(error) => return Err(unusable(error.cause, false)),
            };
            let status = response.status();
            if status.is_success() {
                return Ok((response, url));
            }
            let location = response.headers().get(LOCATION);
            let location = location.and_then(|text| url.join(text.to_str().ok()?).ok());
            url = match location {
                Some(location) if status.is_redirection() => location,
                _ => {
                    return Err(unusable(
                        format!("it answered {status}"),
                        !is_transient(status),
                    ));
                }
            };
        }
        Err(unusable("it redirects too often".to_owned(), true))
    }
}
