//! The live mounts: one filesystem for each archive, bound into every pod that uses it.
//!
//! ```text
//!  <kubelet>/plugins/csi.clip.dev/mounts/<hex>/         fuse.clip  clip:sha256:<hex>   served by clip-serve
//!       ├── blobs/
//!       └── tree/ ──bind──► <kubelet>/pods/<uid>/volumes/kubernetes.io~csi/<name>/mount
//!                  └─bind──► … of every other pod
//! ```
//! The state is the mount table itself; what is kept here is lost at a restart and read back by [`crate::recover`].
//! Work on one archive is done in turn (an async mutex each), so making it anew after the server's death can never
//! cross with a publish or an unpublish. Different archives never wait for each other.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use clip_crds::Prefetch;
use clip_registry::{Credentials, Digest};
use tokio::sync::Mutex as AsyncMutex;

use crate::serve_process::{ServeError, ServeProcess};
use crate::syscalls::{self, MountError, within};
use crate::wire::{Command, Login, Reason, Refusal, Secret, Summary};

/// How long one group of mount calls may take. They take microseconds; a bind waits for the server's answer to a
/// lookup, which it gives from memory.
const MOUNT_LIMIT: Duration = Duration::from_secs(10);

/// The live mounts of this node.
#[derive(Debug)]
pub struct Mounts {
    /// Where the archives' own mounts are: `<kubelet>/plugins/csi.clip.dev/mounts`.
    folder: PathBuf,
    serve: ServeProcess,
    archives: Mutex<HashMap<Digest, Arc<AsyncMutex<Base>>>>,
    /// What is bound where, for questions that must not wait.
    bound: Mutex<HashMap<PathBuf, Bound>>,
}

/// The mount of one archive and its users.
#[derive(Debug)]
struct Base {
    archive: LocalArchive,
    point: PathBuf,
    login: Login,
    /// The most that any pod asked for, and what the server was told.
    prefetch: Prefetch,
    /// Which life of the server serves it; `None` while it is not mounted.
    served_by: Option<u64>,
    summary: Summary,
    /// The targets it is bound to, and which folder of the image each of them shows.
    targets: BTreeMap<PathBuf, String>,
    /// Set when it left the table: whoever waited for it starts over.
    retired: bool,
}

/// An archive on this node's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalArchive {
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its file.
    pub file: PathBuf,
}

/// A pod's wish.
#[derive(Clone, Debug)]
pub struct Binding {
    /// What to show.
    pub archive: LocalArchive,
    /// Which folder of it, relative to the root; empty for all.
    pub path: String,
    /// Where.
    pub target: PathBuf,
    /// Docker configuration with credentials for the image's registry.
    pub credentials: Option<Secret>,
    /// What to fetch before it is read.
    pub prefetch: Prefetch,
}

/// What is bound to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The archive.
    pub archive: Digest,
    /// The folder of the image.
    pub path: String,
    /// The image's size.
    pub summary: Summary,
}

/// Why an archive could not be shown in a pod.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// A mount call failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The server cannot serve the archive.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl Mounts {
    /// No mounts yet, below `folder`.
    pub fn new(folder: PathBuf, serve: ServeProcess) -> Mounts {
        Mounts {
            folder,
            serve,
            archives: Mutex::default(),
            bound: Mutex::default(),
        }
    }

    /// Shows a folder of an archive at a target. Whatever was mounted there before is detached.
    ///
    /// After an error nothing of it is left.
    pub async fn attach(&self, binding: &Binding) -> Result<(), AttachError> {
        if self
            .at(&binding.target)
            .is_some_and(|bound| bound.archive != binding.archive.digest)
        {
            self.detach(&binding.target).await?;
        }
        let mut base = self.lock_base(&binding.archive).await;
        let mut outcome = self.show(&mut base, binding).await;
        if let Err(AttachError::Serve(ServeError::Down)) = outcome {
            // It ended in the midst of this; the next one is there in moments.
            outcome = self.show(&mut base, binding).await;
        }
        match outcome {
            Ok(()) => {
                base.targets
                    .insert(binding.target.clone(), binding.path.clone());
                Ok(())
            }
            Err(error) => {
                self.release(&mut base, &binding.target).await.unwrap_or_else(
                    |error| tracing::warn!(%error, "cannot clean up after a failed mount; unpublish will try again"),
                );
                Err(error)
            }
        }
    }

    async fn show(&self, base: &mut Base, binding: &Binding) -> Result<(), AttachError> {
        if let Some(credentials) = &binding.credentials {
            self.hand_over(base, credentials).await?;
        }
        self.ensure_served(base).await?;
        self.fetch_ahead(base, binding.prefetch).await;
        self.bind(base, &binding.target, &binding.path).await
    }

    /// Tells the server to fetch as much before it is read, if that is more than what it was told. Nothing depends on it.
    async fn fetch_ahead(&self, base: &mut Base, prefetch: Prefetch) {
        if prefetch <= base.prefetch {
            return;
        }
        base.prefetch = prefetch;
        let archive_digest = base.archive.digest.clone();
        let command = Command::Prefetch {
            archive_digest,
            prefetch,
        };
        if let Err(error) = self.serve.ask(command, None).await {
            tracing::warn!(archive = %base.archive.digest, %error, "nothing is fetched ahead");
        }
    }

    /// Takes over the targets of an earlier life, without touching them: [`Mounts::heal`] mounts them anew.
    pub async fn adopt(&self, archive: LocalArchive, targets: BTreeMap<PathBuf, String>) {
        let mut base = self.lock_base(&archive).await;
        // They were in the memory of that life only.
        base.login = Login::ToCome;
        for (target, path) in &targets {
            let bound = Bound {
                archive: archive.digest.clone(),
                path: path.clone(),
                summary: base.summary,
            };
            self.bound().insert(target.clone(), bound);
        }
        base.targets.extend(targets);
    }

    /// Takes the target away, whatever its state, with its folder, and the archive's mount with its last user.
    pub async fn detach(&self, target: &Path) -> Result<(), MountError> {
        let archive = self.bound().get(target).map(|bound| bound.archive.clone());
        let base = archive.and_then(|archive| self.archives().get(&archive).cloned());
        match base {
            Some(base) => self.release(&mut *base.lock().await, target).await,
            None => clear_target(target).await,
        }
    }

    /// What to fetch of a mounted archive before it is read.
    pub async fn prefetch(&self, archive: &Digest, prefetch: Prefetch) {
        let Some(base) = self.archives().get(archive).cloned() else {
            return;
        };
        let mut base = base.lock().await;
        if !base.retired {
            self.fetch_ahead(&mut base, prefetch).await;
        }
    }

    /// Newer credentials for an archive that is mounted: the server fetches with them from now on. Nothing is done when
    /// they are those it has, for kubelet repeats every publish about once a minute.
    pub async fn renew_credentials(&self, archive: &Digest, credentials: &Secret) {
        let Some(base) = self.archives().get(archive).cloned() else {
            return;
        };
        let mut base = base.lock().await;
        if base.retired {
            return;
        }
        if let Err(error) = self.hand_over(&mut base, credentials).await {
            tracing::error!(%archive, %error, "cannot use the pod's new credentials; its volume goes on with the old ones");
        }
    }

    /// Makes anew every mount whose server is gone, and binds it to its targets again, so that containers which start
    /// from now on find it alive. Returns when all were tried; what fails is logged, and tried again when kubelet
    /// publishes one of its volumes the next time.
    pub async fn heal(&self) {
        let archives: Vec<Digest> = self.archives().keys().cloned().collect();
        for archive in archives {
            self.heal_archive(&archive).await;
        }
    }

    /// The same for one archive; does nothing when its mount is alive.
    pub async fn heal_archive(&self, archive: &Digest) {
        let Some(base) = self.archives().get(archive).cloned() else {
            return;
        };
        let mut base = base.lock().await;
        if base.retired {
            return;
        }
        if let Err(error) = self.ensure_served(&mut base).await {
            tracing::error!(%archive, %error, "cannot mount the archive anew");
        }
    }

    /// What is bound to `target`, as far as this process knows.
    pub fn at(&self, target: &Path) -> Option<Bound> {
        self.bound().get(target).cloned()
    }

    /// How many archives are mounted, and how many targets they are bound to.
    pub fn count(&self) -> (usize, usize) {
        (self.archives().len(), self.bound().len())
    }

    /// The entry of an archive, locked; a new one if there is none.
    async fn lock_base(&self, archive: &LocalArchive) -> tokio::sync::OwnedMutexGuard<Base> {
        loop {
            let entry = self
                .archives()
                .entry(archive.digest.clone())
                .or_insert_with(|| {
                    let point = self.folder.join(archive.digest.hex());
                    Arc::new(AsyncMutex::new(Base::new(archive.clone(), point)))
                })
                .clone();
            let base = entry.lock_owned().await;
            if !base.retired {
                return base;
            }
        }
    }

    /// Gives newer credentials to the server, if it serves the archive already; else it gets them when it begins to.
    async fn hand_over(&self, base: &mut Base, credentials: &Secret) -> Result<(), ServeError> {
        let login = Login::DockerConfigJson(credentials.clone());
        if base.login == login {
            return Ok(());
        }
        // A secret that nobody can read must not take the place of one that was good.
        check_docker_config(credentials)?;
        if base.served_by == Some(self.serve.generation().await?) {
            let command = Command::RenewCredentials {
                archive_digest: base.archive.digest.clone(),
                docker_config_json: credentials.clone(),
            };
            self.serve.ask(command, None).await?;
            tracing::info!(archive = %base.archive.digest, "credentials renewed");
        }
        base.login = login;
        Ok(())
    }

    /// Sees to it that the archive is mounted and served by the running server, and bound to all its targets.
    ///
    /// The dead mount of a target stays until the new one takes its place: should this process end in between, the mount
    /// table still says what belongs there.
    async fn ensure_served(&self, base: &mut Base) -> Result<(), AttachError> {
        let generation = self.serve.generation().await?;
        if base.served_by == Some(generation) {
            return Ok(());
        }
        base.served_by = None;
        let (archive, point) = (base.archive.digest.clone(), base.point.clone());
        let points = base.targets.keys().chain([&point]).cloned().collect();
        let (descriptor, dead) = within(MOUNT_LIMIT, "mounting the archive", move || {
            let dead = syscalls::devices_of(&archive, &points)?;
            syscalls::detach_all(&point)?;
            Ok((syscalls::mount_archive(&archive, &point)?, dead))
        })
        .await?;
        let command = Command::Serve {
            archive: base.archive.file.clone(),
            archive_digest: base.archive.digest.clone(),
            login: base.login.clone(),
        };
        base.summary = self.serve.ask(command, Some(descriptor)).await?;
        base.served_by = Some(generation);
        let prefetch = std::mem::replace(&mut base.prefetch, Prefetch::None);
        self.fetch_ahead(base, prefetch).await;
        for (target, path) in base.targets.clone() {
            if let Err(error) = self.bind(base, &target, &path).await {
                tracing::error!(volume = %target.display(), %error, "cannot bind the pod's volume again");
            }
        }
        let (archive, point) = (base.archive.digest.clone(), base.point.clone());
        within(MOUNT_LIMIT, "tidying up", move || {
            syscalls::set_read_ahead(&point);
            syscalls::detach_remains(&archive, &dead, &point)
        })
        .await?;
        tracing::info!(archive = %base.archive.digest, generation, volumes = base.targets.len(), "archive mounted");
        Ok(())
    }

    async fn bind(&self, base: &mut Base, target: &Path, path: &str) -> Result<(), AttachError> {
        let (point, at, folder) = (base.point.clone(), target.to_owned(), path.to_owned());
        let bound = within(MOUNT_LIMIT, "binding the image", move || {
            syscalls::bind(&point, &folder, &at)
        })
        .await;
        if let Err(MountError::TooSlow { .. }) = bound {
            // The server hangs. Without this the thread that waits for it, and every later reader, would hang too.
            self.give_up(base).await;
        }
        bound?;
        let bound = Bound {
            archive: base.archive.digest.clone(),
            path: path.to_owned(),
            summary: base.summary,
        };
        self.bound().insert(target.to_owned(), bound);
        Ok(())
    }

    async fn give_up(&self, base: &mut Base) {
        tracing::error!(archive = %base.archive.digest, "the server does not answer; its connection is aborted");
        base.served_by = None;
        let point = base.point.clone();
        if let Err(error) = within(MOUNT_LIMIT, "aborting the mount", move || {
            syscalls::abort(&point)
        })
        .await
        {
            tracing::error!(archive = %base.archive.digest, %error, "cannot abort the connection");
        }
    }

    /// Frees the target; the archive's mount goes with its last user.
    async fn release(&self, base: &mut Base, target: &Path) -> Result<(), MountError> {
        // First, so that nobody binds it again.
        base.targets.remove(target);
        self.bound().remove(target);
        let cleared = clear_target(target).await;
        if cleared.is_ok() {
            tracing::info!(archive = %base.archive.digest, "volume taken away");
        }
        if base.targets.is_empty() && !base.retired {
            base.retired = true;
            base.served_by = None;
            self.archives().remove(&base.archive.digest);
            if let Err(error) = clear_target(&base.point).await {
                tracing::warn!(archive = %base.archive.digest, %error, "cannot unmount the unused archive");
            }
        }
        cleared
    }

    fn archives(&self) -> MutexGuard<'_, HashMap<Digest, Arc<AsyncMutex<Base>>>> {
        self.archives
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn bound(&self) -> MutexGuard<'_, HashMap<PathBuf, Bound>> {
        self.bound
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Base {
    fn new(archive: LocalArchive, point: PathBuf) -> Base {
        Base {
            archive,
            point,
            login: Login::default(),
            prefetch: Prefetch::None,
            served_by: None,
            summary: Summary::default(),
            targets: BTreeMap::new(),
            retired: false,
        }
    }
}

fn check_docker_config(Secret(config): &Secret) -> Result<(), Refusal> {
    let credentials = Credentials::DockerConfigJson(vec![config.clone()]);
    credentials.check().map_err(|error| Refusal {
        reason: Reason::CredentialsInvalid,
        message: error.to_string(),
    })
}

/// Detaches everything of ours at `target` and removes the folder.
async fn clear_target(target: &Path) -> Result<(), MountError> {
    let target = target.to_owned();
    within(MOUNT_LIMIT, "unmounting", move || {
        syscalls::detach_all(&target)?;
        syscalls::remove_folder(&target)
    })
    .await
}
