//! The operator's archive service, as a Job sees it: it takes the archive of one ClipImage, and gives back the one
//! before, and others of the namespace that have a layer in common with the image.

use crate::{failure::Failure, units};
use anyhow::{Context as _, anyhow, ensure};
use clip_archive::{Digest, head::Indexer};
use clip_engine::{Archive, ArchivePlace, PlaceError, digest_of, registry::LayerDescriptor};
use futures::future::{BoxFuture, FutureExt as _, TryFutureExt as _};
use reqwest::{StatusCode, Url};
use std::{fmt, path::PathBuf, time::Duration};

/// An upload is tried so often: the operator may be just restarting.
const UPLOAD_TRIES: u32 = 6;

/// A connection inside the cluster comes about in milliseconds, or after one lost SYN in a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer that takes longer never comes: checking an archive of 100 MB takes the service a second.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Where it is, and who asks.
#[derive(Debug, Clone)]
pub struct ArchiveService {
    /// Address of the ClipImage's archive.
    pub url: String,
    /// The file with the bearer token.
    pub token_file: PathBuf,
}

impl ArchiveService {
    /// Sends an archive; it becomes the one of the ClipImage that the URL names.
    pub async fn upload(&self, archive: &[u8]) -> Result<(), Failure> {
        let url = &self.url;
        let http = http_client().map_err(|error| Failure::new("InternalError", error))?;
        let body = bytes::Bytes::copy_from_slice(archive);
        let mut pause = Duration::from_secs(1);
        for attempt in 1.. {
            let token = self
                .token()
                .map_err(|error| Failure::new("UploadRefused", error))?;
            let answer = http
                .put(url)
                .bearer_auth(&token)
                .body(body.clone())
                .send()
                .await;
            let failure = match answer {
                Ok(answer) if answer.status().is_success() => {
                    eprintln!(
                        "Sent the archive ({}) to the archive service",
                        units::bytes(archive.len() as u64)
                    );
                    return Ok(());
                }
                Ok(answer) => {
                    let status = answer.status();
                    let text = answer.text().await.unwrap_or_default();
                    let message = format!(
                        "the archive service at {url} refused the archive ({status}): {}",
                        text.trim()
                    );
                    match status.is_client_error() {
                        true => return Err(Failure::permanent("UploadRefused", message)),
                        false => Failure::new("UploadRefused", message),
                    }
                }
                Err(error) => Failure::new(
                    "UploadFailed",
                    format!(
                        "the archive service at {url} does not answer: {}",
                        innermost(&error)
                    ),
                ),
            };
            if attempt == UPLOAD_TRIES {
                return Err(failure);
            }
            tracing::warn!(
                attempt,
                "{}; trying again in {} s",
                failure.message,
                pause.as_secs()
            );
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        unreachable!("the loop ends by returning")
    }

    /// The archive of the ClipImage that the URL names; none if it has none yet.
    pub async fn download(&self) -> anyhow::Result<Option<Archive>> {
        self.get(self.url.parse()?).await
    }

    /// An archive of the namespace with a section of `layer` (the digest of the blob) that was made by `indexer`; none
    /// if there is none.
    async fn with_layer(
        &self,
        layer: &Digest,
        indexer: &Indexer,
    ) -> anyhow::Result<Option<Archive>> {
        self.get(self.layer_url(layer, indexer)?).await
    }

    /// `…/clipimages/NAME/archive?uid=UID` becomes `…/clipimages/NAME/layers/LAYER/archive?uid=UID&indexer=INDEXER`.
    fn layer_url(&self, layer: &Digest, indexer: &Indexer) -> anyhow::Result<Url> {
        let mut url: Url = self.url.parse()?;
        url.path_segments_mut()
            .map_err(|()| anyhow!("{} is not the address of an archive", self.url))?
            .pop_if_empty()
            .pop()
            .extend(["layers", &layer.to_string(), "archive"]);
        url.query_pairs_mut()
            .append_pair("indexer", &indexer.to_string());
        Ok(url)
    }

    async fn get(&self, url: Url) -> anyhow::Result<Option<Archive>> {
        let request = http_client()?.get(url).bearer_auth(self.token()?);
        let answer = request
            .send()
            .await
            .map_err(|error| anyhow!(innermost(&error)))?;
        if answer.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        ensure!(
            answer.status().is_success(),
            "the archive service answers {}",
            answer.status()
        );
        Ok(Some(Archive::open(answer.bytes().await?.to_vec())?))
    }

    /// Read each time: the kubelet renews it.
    fn token(&self) -> anyhow::Result<String> {
        let token = std::fs::read_to_string(&self.token_file)
            .with_context(|| format!("cannot read the token {}", self.token_file.display()))?;
        Ok(token.trim().to_owned())
    }
}

impl fmt::Display for ArchiveService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the archive service at {}", self.url)
    }
}

impl ArchivePlace for ArchiveService {
    fn with_layer<'a>(
        &'a self,
        layer: &'a LayerDescriptor,
        indexer: &'a Indexer,
    ) -> BoxFuture<'a, Result<Option<Archive>, PlaceError>> {
        let digest = digest_of(&layer.digest);
        let answer = async move { self.with_layer(&digest, indexer).await };
        answer.map_err(PlaceError::from).boxed()
    }
}

/// The archive service is in the cluster: no proxy, and plain HTTP unless an ingress with a certificate that
/// the system knows stands before it.
fn http_client() -> anyhow::Result<reqwest::Client> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = rustls::crypto::ring::default_provider().into();
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT);
    Ok(client.build()?)
}

/// The cause at the end of the chain: the HTTP library's own words say only that a request failed.
fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_for_a_layer_is_made_from_that_of_the_archive() {
        let indexer = Indexer {
            version: 7,
            span_tar_max: 2_097_152,
            span_blob_max: 524_288,
        };
        let layer = Digest::of(b"layer");
        let layer_url = |url: &str| {
            let (url, token_file) = (String::from(url), "token".into());
            let made = ArchiveService { url, token_file }.layer_url(&layer, &indexer);
            made.map(String::from)
        };
        let base =
            "http://clip-operator.clip-system.svc:8080/v1/namespaces/archive/clipimages/archive";
        let made = layer_url(&format!("{base}/archive?uid=u%261"));
        let expected = format!("{base}/layers/{layer}/archive?uid=u%261&indexer=7.2097152.524288");
        assert_eq!(made.expect("an address"), expected);

        let made = layer_url("https://example.com/archive/").expect("an address");
        let expected =
            format!("https://example.com/layers/{layer}/archive?indexer=7.2097152.524288");
        assert_eq!(made, expected);
        for wrong in ["", "archive", "mailto:archive"] {
            assert!(layer_url(wrong).is_err(), "{wrong}");
        }
    }
}
