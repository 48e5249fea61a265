//! Sending a finished archive on: to the operator's archive service, and to a registry as an OCI
//! artifact.

use crate::{
    archive_service::ArchiveService,
    common::{RegistryArgs, client},
    failure::Failure,
};
use clap::Args;
use clip_engine::{
    Archive, IndexedImage,
    registry::{ArtifactLayer, Client, Descriptor, Reference, push_artifact},
};
use std::{collections::BTreeMap, path::PathBuf};

/// `artifactType` of a published archive (OCI image-spec, manifest.md).
pub const ARTIFACT_TYPE: &str = "application/vnd.clip.archive.v1";
/// Media type of its only blob, the archive.
pub const ARCHIVE_MEDIA_TYPE: &str = "application/vnd.clip.archive.v1.clip";
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

    /// Take layers from the archive that --upload is going to replace instead of downloading them, if the service has
    /// one, as with --reuse.
    #[arg(long, requires = "upload")]
    reuse_uploaded: bool,

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
        if let Some(service) = self.archive_service() {
            service.upload(&indexed.archive).await?;
        }
        Ok(published)
    }

    /// The archive that [`Self::send`] is going to replace, if it may be reused and can be had. Without it the image is
    /// indexed from its layers, so nothing that goes wrong here is an error.
    pub async fn replaced(&self) -> Option<Archive> {
        let service = self.archive_service().filter(|_| self.reuse_uploaded)?;
        match service.download().await {
            Ok(archive) => archive,
            Err(error) => {
                tracing::warn!(%error, "the earlier archive cannot be reused; all layers are downloaded");
                None
            }
        }
    }

    fn archive_service(&self) -> Option<ArchiveService<'_>> {
        Some(ArchiveService {
            url: self.upload.as_deref()?,
            token_file: self.token_file.as_deref()?,
        })
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
