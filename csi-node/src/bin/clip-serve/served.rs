//! One image: opened, served, awaited.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use clip_crds::{Prefetch, event_note};
use clip_csi_node::wire::{FailedRead, Login, Reason, Refusal, Secret, Serving, Summary};
use clip_engine::{
    Connection, FetchAhead, Layout, Node, OpenImageError, OpenedImage, Pace, StartProfile, StateDir,
};
use clip_registry::{ClientError, Credentials, Digest};
use tokio::runtime::Handle;

/// An image that is being served over one FUSE connection.
#[derive(Debug)]
pub struct Served {
    digest: Digest,
    image: OpenedImage,
    /// What is fetched before it is read.
    ahead: Mutex<Option<FetchAhead>>,
    /// Where the recording of the start goes, while there is one.
    recording: Mutex<Option<PathBuf>>,
}

/// What control wants to be served.
#[derive(Debug)]
pub struct Wanted {
    /// The archive's file.
    pub archive: PathBuf,
    /// Its digest.
    pub digest: Digest,
    /// Credentials for the image's registry.
    pub login: Login,
    /// The tree with which the connection was begun, if this is not its first server.
    pub resume: Option<String>,
}

impl Served {
    /// Opens the archive and answers the kernel's INIT, or takes the place of who did.
    pub fn start(
        node: &Node,
        wanted: Wanted,
        connection: Option<OwnedFd>,
    ) -> Result<(Served, Connection), Refusal> {
        let Wanted {
            archive,
            digest,
            login,
            resume,
        } = wanted;
        let connection = connection.ok_or_else(|| Refusal {
            reason: Reason::Internal,
            message: "control sent no FUSE descriptor".to_owned(),
        })?;
        let image = open(node, &archive, login)?;
        let connected = match resume {
            None => begin(node, &image, connection)?,
            Some(tree) => go_on(node, &image, connection, &tree)?,
        };
        tracing::info!(archive = %digest, image = image.fs.info().name, "serving");
        let served = Served {
            digest,
            image,
            ahead: Mutex::default(),
            recording: Mutex::default(),
        };
        Ok((served, connected))
    }

    /// Fetches with other credentials from now on.
    pub fn renew_credentials(&self, docker_config: Secret) -> Result<(), Refusal> {
        let renewed = self.image.renew_credentials(&credentials(docker_config));
        renewed.map_err(refusal)?;
        tracing::info!(archive = %self.digest, "credentials renewed");
        Ok(())
    }

    /// Fetches ahead, in place of what was fetched ahead until now. `profile` is the file with what other nodes recorded,
    /// where they did.
    pub fn fetch_ahead(
        &self,
        prefetch: Prefetch,
        profile: &Path,
        pace: &Arc<Pace>,
        runtime: &Handle,
    ) {
        let profile = match prefetch {
            Prefetch::None => None,
            Prefetch::Profile | Prefetch::All => read_profile(profile),
        };
        if prefetch != Prefetch::None && profile.is_none() {
            self.image.prepare_first_start(runtime);
        }
        let rest = (prefetch == Prefetch::All).then(|| pace.clone());
        let ahead = (rest.is_some() || profile.is_some()).then(|| {
            self.image
                .fetch_ahead(profile.unwrap_or_default(), rest, runtime)
        });
        *lock(&self.ahead) = ahead;
    }

    /// Records what is read first, to be written to `file` by [`end_recording`](Self::end_recording).
    pub fn record(&self, file: PathBuf) {
        self.image.begin_profile();
        *lock(&self.recording) = Some(file);
    }

    /// Writes down what was read, if it is being recorded and something was.
    pub fn end_recording(&self) {
        let Some(file) = lock(&self.recording).take() else {
            return;
        };
        let profile = self.image.end_profile();
        let (archive, spans) = (&self.digest, profile.touches().len());
        if spans == 0 {
            return;
        }
        match StateDir::write(&file, &profile.to_json()) {
            Ok(()) => tracing::info!(%archive, spans, "start recorded"),
            Err(error) => tracing::warn!(%archive, %error, "cannot write the start profile"),
        }
    }

    /// The latest read that failed since this was asked the last time.
    pub fn failed_read(&self) -> Option<FailedRead> {
        let failed = self.image.fs.failed_reads().take()?;
        Some(FailedRead {
            archive_digest: self.digest.clone(),
            image: self.image.fs.info().name.clone(),
            path: event_note(&failed.path),
            cause: event_note(&failed.cause),
        })
    }

    /// What control has to know of it.
    pub fn serving(&self) -> Serving {
        let fs = &self.image.fs;
        Serving {
            summary: Summary {
                files: fs.tree().inode_count(),
                bytes: fs.info().unpacked_bytes,
            },
            layers: u16::try_from(fs.layers().len()).expect("EROFS has 16 bits for devices"),
            tree: self.image.tree.clone(),
            tree_id: self.image.tree_id(),
        }
    }

    /// Its connection has ended: unmounted everywhere, or aborted.
    pub fn end(&self, outcome: io::Result<()>) {
        let archive = &self.digest;
        self.end_recording();
        let fetched = self.image.fetched();
        match outcome {
            Ok(()) => tracing::info!(%archive, fetched.bytes, fetched.requests, "unmounted"),
            Err(error) => tracing::warn!(%archive, %error, "the connection ended with an error"),
        }
    }
}

/// Opens the archive's image for who may read it with this login.
pub fn open(node: &Node, archive: &Path, login: Login) -> Result<OpenedImage, Refusal> {
    let awaits_credentials = login == Login::ToCome;
    let credentials = match login {
        Login::Anonymous | Login::ToCome => None,
        Login::DockerConfigJson(secret) => Some(credentials(secret)),
    };
    let image = node.open_image(archive, credentials).map_err(refusal)?;
    if awaits_credentials {
        image.expect_credentials();
    }
    Ok(image)
}

/// Answers the kernel's INIT and everything after it.
fn begin(node: &Node, image: &OpenedImage, connection: OwnedFd) -> Result<Connection, Refusal> {
    let connected = node.connect(image.fs.clone(), connection, Layout::TreeAndBlobs);
    connected.map_err(|error| Refusal {
        reason: Reason::Internal,
        message: format!("the kernel does not accept the FUSE connection: {error}"),
    })
}

/// Takes the place of a server that is gone. The kernel knows that one's node numbers, so the tree must be the same; that
/// of another version of Clip may not be.
fn go_on(
    node: &Node,
    image: &OpenedImage,
    connection: OwnedFd,
    tree: &str,
) -> Result<Connection, Refusal> {
    let cannot = |message: String| Refusal {
        reason: Reason::CannotResume,
        message,
    };
    if image.tree_id() != tree {
        return Err(cannot(
            "the connection was begun with another tree".to_owned(),
        ));
    }
    let connected = node.resume(image.fs.clone(), connection, Layout::TreeAndBlobs);
    connected.map_err(|error| {
        cannot(format!(
            "the kernel does not let the connection go on: {error}"
        ))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// None where nobody has recorded a start, or the file is broken: it is a hint.
fn read_profile(path: &Path) -> Option<StartProfile> {
    let json = std::fs::read(path).ok()?;
    let profile = StartProfile::parse(&json);
    profile
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "start profile not used"),
        )
        .ok()
}

fn credentials(Secret(docker_config): Secret) -> Credentials {
    Credentials::DockerConfigJson(vec![docker_config])
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
