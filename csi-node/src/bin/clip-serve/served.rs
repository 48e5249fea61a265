//! One image: opened, served, awaited.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use clip_csi_node::wire::{Reason, Refusal, Secret, Summary};
use clip_engine::{Layout, Node, OpenImageError, OpenedImage, Session};
use clip_registry::{ClientError, Credentials, Digest};

/// An image that is being served over one FUSE connection.
#[derive(Debug)]
pub struct Served {
    digest: Digest,
    image: OpenedImage,
    session: Session,
}

impl Served {
    /// Opens the archive and begins to serve it. When this returns, the tree can be read.
    pub fn start(
        node: &Node,
        archive: &Path,
        digest: Digest,
        docker_config: Option<Secret>,
        connection: Option<OwnedFd>,
    ) -> Result<Served, Refusal> {
        let internal = |message: String| Refusal {
            reason: Reason::Internal,
            message,
        };
        let connection =
            connection.ok_or_else(|| internal("control sent no FUSE descriptor".to_owned()))?;
        let credentials =
            docker_config.map(|Secret(config)| Credentials::DockerConfigJson(vec![config]));
        let image = node.open_image(archive, credentials).map_err(refusal)?;
        let session = node
            .serve(image.fs.clone(), connection, Layout::TreeAndBlobs)
            .map_err(|error| {
                internal(format!(
                    "the kernel does not accept the FUSE connection: {error}"
                ))
            })?;
        tracing::info!(archive = %digest, image = image.fs.info().name, "serving");
        Ok(Served {
            digest,
            image,
            session,
        })
    }

    /// The image's size.
    pub fn summary(&self) -> Summary {
        Summary {
            files: self.image.fs.tree().inode_count(),
            bytes: self.image.fs.info().unpacked_bytes,
        }
    }

    /// Waits until the image is unmounted everywhere.
    pub fn wait(self) {
        let Served {
            digest: archive,
            image,
            session,
        } = self;
        let outcome = session.join();
        let fetched = image.fetched();
        match outcome {
            Ok(()) => tracing::info!(%archive, fetched.bytes, fetched.requests, "unmounted"),
            Err(error) => tracing::warn!(%archive, %error, "the connection ended with an error"),
        }
    }
}

fn refusal(error: OpenImageError) -> Refusal {
    let reason = match &error {
        OpenImageError::Archive { .. }
        | OpenImageError::Tree { .. }
        | OpenImageError::Expanded { .. }
        | OpenImageError::Location(_) => Reason::ArchiveInvalid,
        OpenImageError::Client(ClientError::Credentials(_)) => Reason::CredentialsInvalid,
        OpenImageError::State { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            Reason::NoSpace
        }
        OpenImageError::Read { .. } | OpenImageError::State { .. } | OpenImageError::Client(_) => {
            Reason::Internal
        }
    };
    Refusal {
        reason,
        message: error.to_string(),
    }
}
