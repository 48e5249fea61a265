//! Sending a finished archive on: to the operator's archive service, and to a registry as an OCI
//! artifact.

use crate::{
    common::{RegistryArgs, client},
    failure::Failure,
    units,
};
use clap::Args;
use clip_engine::{
    IndexedImage,
    registry::{ArtifactLayer, Client, Descriptor, Reference, push_artifact},
};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// `artifactType` of a published archive (OCI image-spec, manifest.md).
pub const ARTIFACT_TYPE: &str = "application/vnd.clip.archive.v1";
/// Media type of its only blob, the archive.
pub const ARCHIVE_MEDIA_TYPE: &str = "application/vnd.clip.archive.v1.clip";
/// An upload is tried so often: the operator may be just restarting.
const UPLOAD_TRIES: u32 = 6;

/// A connection inside the cluster comes about in milliseconds, or after one lost SYN in a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer that takes longer never comes: checking an archive of 100 MB takes the service a second.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the archive is sent.
#[derive(Debug, Args)]
#[command(next_help_heading = "Publishing")]
pub struct PublishArgs {
    /// Send the archive to the Clip operator's archive service at this URL.
    #[arg(long, value_name = "URL", requires = "token_file")]
    upload: Option<String>,

    /// The bearer token for --upload.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Push the archive as an OCI artifact to this repository (`registry/repository[:tag]`). In the
    /// image's own repository it is linked to the image.
    #[arg(long, value_name = "REPOSITORY")]
    publish: Option<String>,

    /// Credentials for --publish [default: those for the image].
    #[arg(long, value_name = "FILE")]
    push_docker_config: Vec<PathBuf>,
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Published {
    /// `repository@digest` of the pushed artifact.
    pub reference: Option<String>,
}

impl PublishArgs {
    /// Sends the archive wherever the flags say.
    pub async fn send(
        &self,
        registry: &RegistryArgs,
        image_client: &Client,
        indexed: &IndexedImage,
    ) -> Result<Published, Failure> {
        let mut published = Published::default();
        if let Some(repository) = &self.publish {
            let client = match self.push_docker_config.as_slice() {
                [] => image_client.clone(),
                files => client(registry.options_with(files)?)?,
            };
            published.reference = Some(push(&client, repository, indexed).await?);
        }
        if let (Some(url), Some(token_file)) = (&self.upload, &self.token_file) {
            upload(url, token_file, indexed).await?;
        }
        Ok(published)
    }
}

async fn push(client: &Client, target: &str, indexed: &IndexedImage) -> Result<String, Failure> {
    let target: Reference = target
        .parse()
        .map_err(|error| Failure::permanent("InvalidReference", format!("--publish: {error}")))?;
    let repository = target.in_repository();
    let image = &indexed.image;
    // A subject must lie in the same repository (OCI distribution-spec, "Listing Referrers").
    let same_repository =
        image.registry == repository.registry() && image.repository == repository.name();
    let subject = same_repository.then(|| {
        Descriptor::new(
            &image.manifest_media_type,
            image.manifest_digest.clone(),
            image.manifest.len() as u64,
        )
    });
    let layer = ArtifactLayer {
        media_type: ARCHIVE_MEDIA_TYPE.to_owned(),
        content: indexed.archive.clone().into(),
        annotations: BTreeMap::new(),
    };
    // Without a tag of its own the artifact is named after the image's manifest, so that pushing
    // again replaces it and a registry's garbage collection leaves it alone.
    let tag = format!("clip-{}", &image.manifest_digest.hex()[..32]);
    let digest = push_artifact(
        client,
        repository,
        ARTIFACT_TYPE,
        subject,
        Some(&tag),
        vec![layer],
    )
    .await
    .map_err(|error| Failure {
        reason: error.reason(),
        permanent: error.is_permanent(),
        message: format!("the archive was made but not published: {error}"),
    })?;
    let reference = Reference::with_digest(repository.clone(), digest).to_string();
    eprintln!("Published as {reference}");
    Ok(reference)
}

async fn upload(url: &str, token_file: &PathBuf, indexed: &IndexedImage) -> Result<(), Failure> {
    let http = http_client().map_err(|error| Failure::new("InternalError", error))?;
    let body = bytes::Bytes::from(indexed.archive.clone());
    let mut pause = Duration::from_secs(1);
    for attempt in 1.. {
        let token = std::fs::read_to_string(token_file).map_err(|error| {
            Failure::new(
                "UploadRefused",
                format!("cannot read the token {}: {error}", token_file.display()),
            )
        })?;
        let answer = http
            .put(url)
            .bearer_auth(token.trim())
            .body(body.clone())
            .send()
            .await;
        let failure = match answer {
            Ok(answer) if answer.status().is_success() => {
                eprintln!(
                    "Sent the archive ({}) to the archive service",
                    units::bytes(indexed.archive.len() as u64)
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
