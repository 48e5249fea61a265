//! Sending a finished archive on: to the operator's archive service, and to a registry as an OCI
//! artifact.

use crate::{
    archive_service::ArchiveService,
    common::{RegistryArgs, client},
    failure::Failure,
};
use clap::Args;
use clip_engine::{
    IndexOptions, IndexedImage, publish,
    registry::{Client, Reference, Repository},
};
use std::{fmt::Display, path::PathBuf, sync::Arc};

/// Where the archive is sent.
#[derive(Debug, Args)]
#[command(next_help_heading = "Publishing")]
pub struct PublishArgs {
    /// Send the archive to the Clip operator's archive service at this URL.
    #[arg(
        long,
        value_name = "URL",
        requires = "token_file",
        conflicts_with = "dir"
    )]
    upload: Option<String>,

    /// The bearer token for --upload.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Take layers from the archive that --upload is going to replace, or from others of its namespace that the service
    /// has, instead of downloading them, as with --reuse.
    #[arg(long, requires = "upload")]
    reuse_uploaded: bool,

    /// Push the archive as an OCI artifact to this repository (`registry/repository`). In the image's own repository it
    /// is linked to the image. Layers of 1 MiB and more get a tag each, by which --reuse-from finds them.
    #[arg(long, value_name = "REPOSITORY")]
    publish: Option<String>,

    /// Credentials for --publish and --reuse-from [default: those for the image].
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
    /// Whether the archive goes anywhere.
    pub fn anywhere(&self) -> bool {
        self.upload.is_some() || self.publish.is_some()
    }

    /// Whether what the flags say makes sense: before an hour of work, not after.
    pub fn check(&self) -> Result<(), Failure> {
        self.repository().map(drop)
    }

    fn repository(&self) -> Result<Option<Repository>, Failure> {
        let text = self.publish.as_deref();
        text.map(|text| repository("--publish", text)).transpose()
    }

    /// Sends the archive wherever the flags say.
    pub async fn send(
        &self,
        registry: &RegistryArgs,
        image_client: &Client,
        indexed: &IndexedImage,
    ) -> Result<Published, Failure> {
        let mut published = Published::default();
        if let Some(repository) = self.repository()? {
            let client = self.archive_client(registry, image_client)?;
            published.reference = Some(push(&client, &repository, indexed).await?);
        }
        if let Some(service) = self.archive_service() {
            service.upload(&indexed.archive).await?;
        }
        Ok(published)
    }

    /// The client for repositories of archives.
    pub fn archive_client(
        &self,
        registry: &RegistryArgs,
        image_client: &Client,
    ) -> Result<Client, Failure> {
        match self.push_docker_config.as_slice() {
            [] => Ok(image_client.clone()),
            files => client(registry.options_with(files)?),
        }
    }

    /// Adds what the archive service has to what indexing looks at, if that was asked for: the archive that
    /// [`Self::send`] is going to replace, and the others. Without them the image is indexed from its layers, so nothing
    /// that goes wrong here is an error.
    pub async fn add_to(&self, options: &mut IndexOptions) {
        let Some(service) = self.archive_service().filter(|_| self.reuse_uploaded) else {
            return;
        };
        match service.download().await {
            Ok(archive) => {
                options.reuse.extend(archive);
                options.reuse_from.push(Arc::new(service));
            }
            Err(error) => {
                tracing::warn!(%error, "earlier archives cannot be reused; all layers are downloaded");
            }
        }
    }

    fn archive_service(&self) -> Option<ArchiveService> {
        Some(ArchiveService {
            url: self.upload.clone()?,
            token_file: self.token_file.clone()?,
        })
    }
}

/// Reads `registry/repository`, the value of `flag`. A tag or a digest in it is a mistake: archives have tags of their
/// own.
pub fn repository(flag: &str, text: &str) -> Result<Repository, Failure> {
    let wrong = |problem: &dyn Display| {
        Failure::permanent("InvalidReference", format!("{flag}: {problem}"))
    };
    let reference: Reference = text.parse().map_err(|error| wrong(&error))?;
    let repository = reference.in_repository();
    let name = text.rsplit('/').next().unwrap_or(text);
    match name.contains([':', '@']) {
        true => Err(wrong(&format_args!(
            "{text} is more than a repository: say {repository}"
        ))),
        false => Ok(repository.clone()),
    }
}

async fn push(
    client: &Client,
    repository: &Repository,
    indexed: &IndexedImage,
) -> Result<String, Failure> {
    let reference = publish(client, repository, indexed)
        .await
        .map_err(|error| Failure {
            reason: error.reason(),
            permanent: error.is_permanent(),
            message: format!("the archive was made but not published: {error}"),
        })?;
    eprintln!("Published as {reference}");
    Ok(reference.to_string())
}
