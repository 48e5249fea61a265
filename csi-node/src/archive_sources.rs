//! Where archives come from: the operator's archive service first, then the registries that the `ClipImage` names.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clip_engine::{ARCHIVE_MEDIA_TYPE, ARTIFACT_TYPE};
use clip_registry::{BlobSource, Client, ClientOptions, Credentials, Digest, Manifest, Reference};
use futures::TryStreamExt;
use reqwest::StatusCode;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::archives::Unfinished;
use crate::resolve::{ArchiveRef, Place};
use crate::wire::Secret;

/// A connection inside the cluster comes about in milliseconds, or after one lost SYN in a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A transfer on which nothing arrives for so long is given up; the next try may meet a better replica.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// Pauses before asking the archive service again; together well below a pod's patience.
const RETRY_PAUSES: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// How archives are fetched.
#[derive(Debug)]
pub struct Sources {
    service: Option<Service>,
    registries: ClientOptions,
}

/// The operator's archive service.
#[derive(Debug)]
struct Service {
    /// Without a slash at the end.
    url: String,
    /// A service-account token for the service's audience; kubelet renews the file, so it is read for each request.
    token_file: Option<PathBuf>,
    http: reqwest::Client,
}

/// Why an archive could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Neither the service nor a registry is known to have it.
    #[error(
        "archive {0} is nowhere to be had: no archive service is set (--archive-service), and its ClipImage names no registry"
    )]
    NoPlace(Digest),
    /// The token for the archive service.
    #[error("cannot read the token {} for the archive service: {source}; the pod needs a projected service-account token there", .path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The archive service gave no answer, or broke off.
    #[error(
        "the archive service {url} does not answer: {cause}; is clip-operator running? (kubectl -n clip-system get pods)"
    )]
    Unreachable {
        /// Its address.
        url: String,
        /// What went wrong, at the lowest level that knows.
        cause: String,
    },
    /// The archive service refused.
    #[error("the archive service {url} answered {status} for archive {digest}{}", advice(*.status))]
    Refused {
        /// Its address.
        url: String,
        /// What was asked for.
        digest: Digest,
        /// The HTTP status.
        status: StatusCode,
    },
    /// A registry did not give it.
    #[error("cannot fetch the archive from {reference}: {message}")]
    Registry {
        /// The artifact.
        reference: String,
        /// The registry client's word for the cause, such as `Unauthorized`.
        reason: &'static str,
        /// The cause, with what to do.
        message: String,
    },
    /// It is no archive that we know.
    #[error("{reference} is not a Clip archive: {problem}; publish the ClipImage again")]
    NotAnArchive {
        /// The artifact.
        reference: String,
        /// What is wrong.
        problem: String,
    },
    /// Other bytes than promised.
    #[error(
        "the archive that arrived has the digest {found} ({size} bytes) instead of {expected}: it was cut off or changed on the way"
    )]
    Digest {
        /// As the ClipImage says.
        expected: Digest,
        /// As computed.
        found: Digest,
        /// How many bytes there were.
        size: u64,
    },
    /// More bytes than any archive has.
    #[error("the archive is larger than {} MiB, which none should be", crate::archives::MAX_ARCHIVE >> 20)]
    TooLarge,
    /// The disk of this node.
    #[error("cannot write the archive: {0}")]
    Disk(#[source] io::Error),
}

fn advice(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => {
            ": it was lost and is being made again; the volume will be tried again"
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            ": it does not accept this node's service-account token; reinstall the chart"
        }
        _ => "",
    }
}

/// A certificate file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the CA certificates: {0}")]
pub struct CertificateError(String);

impl Sources {
    /// Asks the archive service at `url`, and registries as `registries` say.
    ///
    /// The service's certificate, if it speaks TLS, must be signed by one of `registries.ca_certificates`.
    pub fn new(
        url: Option<String>,
        token_file: Option<PathBuf>,
        registries: ClientOptions,
    ) -> Result<Sources, CertificateError> {
        let service = match url {
            Some(url) => {
                let http = http_client(&registries.ca_certificates)?;
                Some(Service {
                    url: url.trim_end_matches('/').to_owned(),
                    token_file,
                    http,
                })
            }
            None => None,
        };
        Ok(Sources {
            service,
            registries,
        })
    }

    /// Writes the archive to `into`, from the first place that has the right bytes.
    pub async fn fetch(
        &self,
        wanted: &ArchiveRef,
        credentials: Option<&Secret>,
        into: &mut Unfinished,
    ) -> Result<(), FetchError> {
        let mut failure = None;
        if let Some(service) = &self.service {
            match service.fetch_patiently(&wanted.digest, into).await {
                Ok(()) => return Ok(()),
                Err(error) => failure = Some(error),
            }
        }
        for place in &wanted.places {
            into.clear()?;
            let outcome = match place {
                Place::File(path) => copy(path, into).await,
                Place::Registry(reference) => {
                    self.fetch_artifact(reference, credentials, into).await
                }
            };
            match outcome.and_then(|()| into.check(&wanted.digest)) {
                Ok(()) => return Ok(()),
                // What the service said comes first: it is the place that ought to have it.
                Err(error) => {
                    tracing::warn!(?place, %error, "place does not have the archive");
                    failure.get_or_insert(error);
                }
            }
        }
        Err(failure.unwrap_or_else(|| FetchError::NoPlace(wanted.digest.clone())))
    }

    /// What other nodes recorded of the archive, if the service has something.
    pub async fn fetch_profile(&self, archive: &Digest) -> Result<Option<Bytes>, FetchError> {
        let Some(service) = &self.service else {
            return Ok(None);
        };
        let request = service.http.get(service.profile_url(archive));
        match service.ask(archive, request, StatusCode::OK).await {
            Ok(answer) => {
                let body = answer.bytes().await;
                Ok(Some(body.map_err(|error| service.unreachable(&error))?))
            }
            Err(FetchError::Refused { status, .. }) if status == StatusCode::NOT_FOUND => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Tells other nodes what was recorded here.
    pub async fn send_profile(&self, archive: &Digest, json: Vec<u8>) -> Result<(), FetchError> {
        let Some(service) = &self.service else {
            return Ok(());
        };
        let request = service.http.put(service.profile_url(archive)).body(json);
        let answer = service.ask(archive, request, StatusCode::NO_CONTENT);
        answer.await.map(drop)
    }

    async fn fetch_artifact(
        &self,
        reference: &Reference,
        credentials: Option<&Secret>,
        into: &mut Unfinished,
    ) -> Result<(), FetchError> {
        let failed = |reason: &'static str, error: &dyn std::error::Error| FetchError::Registry {
            reference: reference.to_string(),
            reason,
            message: error.to_string(),
        };
        let not_an_archive = |problem: String| FetchError::NotAnArchive {
            reference: reference.to_string(),
            problem,
        };
        let credentials = match credentials {
            Some(Secret(config)) => Credentials::DockerConfigJson(vec![config.clone()]),
            None => Credentials::Anonymous,
        };
        let options = ClientOptions {
            credentials,
            ..self.registries.clone()
        };
        let client = Client::new(options).map_err(|error| failed("Client", &error))?;
        let raw = client
            .fetch_manifest(reference)
            .await
            .map_err(|error| failed(error.reason(), &error))?;
        let manifest: Manifest = serde_json::from_slice(&raw.bytes)
            .map_err(|error| not_an_archive(error.to_string()))?;
        let kind = manifest
            .artifact_type
            .as_deref()
            .unwrap_or(&manifest.config.media_type);
        if kind != ARTIFACT_TYPE {
            return Err(not_an_archive(format!("its type is {kind}")));
        }
        let layer = manifest
            .layers
            .iter()
            .find(|layer| layer.media_type == ARCHIVE_MEDIA_TYPE);
        let layer =
            layer.ok_or_else(|| not_an_archive(format!("it has no layer {ARCHIVE_MEDIA_TYPE}")))?;
        let blobs = BlobSource::open(&client, reference.registry(), reference.repository())
            .map_err(|error| not_an_archive(error.to_string()))?;
        let mut stream = blobs
            .stream(&layer.digest)
            .await
            .map_err(|error| failed(error.reason(), &error))?;
        while let Some(chunk) = stream
            .try_next()
            .await
            .map_err(|error| failed(error.reason(), &error))?
        {
            into.write(&chunk)?;
        }
        Ok(())
    }
}

impl Service {
    /// Asks again when no answer came; a clear answer stands.
    async fn fetch_patiently(
        &self,
        digest: &Digest,
        into: &mut Unfinished,
    ) -> Result<(), FetchError> {
        let mut pauses = RETRY_PAUSES.iter();
        loop {
            let error = match self
                .fetch(digest, into)
                .await
                .and_then(|()| into.check(digest))
            {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let may_pass = match &error {
                FetchError::Unreachable { .. } | FetchError::Digest { .. } => true,
                FetchError::Refused { status, .. } => status.is_server_error(),
                _ => false,
            };
            match pauses.next() {
                Some(pause) if may_pass => tokio::time::sleep(*pause).await,
                _ => return Err(error),
            }
            tracing::info!(archive = %digest, %error, "asking the archive service again");
        }
    }

    async fn fetch(&self, digest: &Digest, into: &mut Unfinished) -> Result<(), FetchError> {
        into.clear()?;
        let request = self.http.get(format!("{}/v1/archives/{digest}", self.url));
        let mut response = self.ask(digest, request, StatusCode::OK).await?;
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.unreachable(&error))?
        {
            into.write(&chunk)?;
        }
        Ok(())
    }

    /// Sends a request about `archive` under this node's name; any other answer than `accepted` is an error.
    async fn ask(
        &self,
        archive: &Digest,
        mut request: reqwest::RequestBuilder,
        accepted: StatusCode,
    ) -> Result<reqwest::Response, FetchError> {
        if let Some(path) = &self.token_file {
            let token = tokio::fs::read_to_string(path).await;
            let token = token.map_err(|source| FetchError::Token {
                path: path.clone(),
                source,
            })?;
            request = request.bearer_auth(token.trim());
        }
        let response = request.send().await;
        let response = response.map_err(|error| self.unreachable(&error))?;
        match response.status() {
            status if status == accepted => Ok(response),
            status => Err(FetchError::Refused {
                url: self.url.clone(),
                digest: archive.clone(),
                status,
            }),
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> FetchError {
        FetchError::Unreachable {
            url: self.url.clone(),
            cause: innermost(error),
        }
    }

    fn profile_url(&self, archive: &Digest) -> String {
        format!("{}/v1/archives/{archive}/profile", self.url)
    }
}

async fn copy(path: &Path, into: &mut Unfinished) -> Result<(), FetchError> {
    // Only for debugging without a cluster: reading the archive at once is good enough there.
    into.write(&tokio::fs::read(path).await.map_err(FetchError::Disk)?)
}

fn http_client(certificates: &[PathBuf]) -> Result<reqwest::Client, CertificateError> {
    let mut roots = rustls::RootCertStore::empty();
    for path in certificates {
        let failed = |error: &dyn std::fmt::Display| {
            CertificateError(format!("{}: {error}", path.display()))
        };
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))? {
            roots
                .add(certificate.map_err(|error| failed(&error))?)
                .map_err(|error| failed(&error))?;
        }
    }
    let provider = rustls::crypto::ring::default_provider().into();
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| CertificateError(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        // The service is in the cluster; a proxy on the way out of it is not on the way.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| CertificateError(innermost(&error)))
}

/// The cause at the end of the chain: reqwest's own words say only that a request failed.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
