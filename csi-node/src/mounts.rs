//! The live mounts: one connection for each archive, bound into every pod that uses it.
//!
//! ```text
//!  <kubelet>/plugins/csi.clip.dev/mounts/<hex>/         fuse.clip  clip:sha256:<hex>   served by clip-serve
//!       ├── blobs/0 … n ◄─ devices ─┐
//!       └── tree/  ◄─ covered by ─ erofs  clip:sha256:<hex>      served by the kernel (engine erofs)
//!             ├─bind──► <kubelet>/pods/<uid>/volumes/kubernetes.io~csi/<name>/mount
//!             └─bind──► … of every other pod
//! ```
//! The death of the server ends nothing: control keeps a copy of each connection's descriptor, and the keeper another
//! ([`crate::custody`]); readers wait until the next server goes on with it. Only a connection that was aborted, or that
//! nobody kept, is dead, and made anew.
//!
//! The state is the mount table and the connections; what is kept here is lost at a restart and read back by
//! [`crate::recover`].
//! Work on one archive is done in turn (an async mutex each), so handing it to the next server can never
//! cross with a publish or an unpublish. Different archives never wait for each other.

mod served;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use clip_crds::Prefetch;
use clip_registry::Digest;
use futures::StreamExt;
use tokio::sync::Mutex as AsyncMutex;

use crate::custody::{Connection, Custody, Kept};
use crate::engines::Engines;
use crate::serve_process::{ServeError, ServeProcess};
use crate::syscalls::{self, MountError, within};
use crate::troubles::{Trouble, Troubles};
use crate::wire::{FailedRead, Login, Secret, Summary};

/// How long one group of mount calls may take. They take microseconds; a bind waits for the server's answer to a
/// lookup, which it gives from memory.
const MOUNT_LIMIT: Duration = Duration::from_secs(10);
/// How many archives are handed to the next server at a time.
const AT_A_TIME: usize = 16;

/// The live mounts of this node.
#[derive(Debug)]
pub struct Mounts {
    /// Where the archives' own mounts are: `<kubelet>/plugins/csi.clip.dev/mounts`.
    folder: PathBuf,
    serve: ServeProcess,
    custody: Custody,
    engines: Engines,
    archives: Mutex<HashMap<Digest, Arc<AsyncMutex<Base>>>>,
    /// What is bound where, for questions that must not wait.
    bound: Mutex<HashMap<PathBuf, Bound>>,
    /// What their pods are to be told.
    pub troubles: Troubles,
}

/// The mount of one archive and its users.
#[derive(Debug)]
struct Base {
    archive: LocalArchive,
    point: PathBuf,
    login: Login,
    /// The most that any pod asked for, and what the server was told.
    prefetch: Prefetch,
    /// Its connection, unless that is dead or not there yet.
    connection: Option<Connection>,
    /// Which life of the server serves it; `None` while none does.
    served_by: Option<u64>,
    summary: Summary,
    /// Whether the kernel serves its tree.
    by_kernel: bool,
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
    /// Whether the kernel serves its tree (engine erofs).
    pub by_kernel: bool,
}

/// How much is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Archives.
    pub archives: usize,
    /// Volumes of pods whose tree clip-serve serves.
    pub by_fuse: usize,
    /// Volumes of pods whose tree the kernel serves.
    pub by_kernel: usize,
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
    pub fn new(folder: PathBuf, serve: ServeProcess, custody: Custody, engines: Engines) -> Mounts {
        Mounts {
            folder,
            serve,
            custody,
            engines,
            archives: Mutex::default(),
            bound: Mutex::default(),
            troubles: Troubles::default(),
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

    /// Takes over the targets of an earlier life, without touching them, and its connection if that was kept:
    /// [`Mounts::heal`] has them served.
    pub async fn adopt(
        &self,
        archive: LocalArchive,
        targets: BTreeMap<PathBuf, String>,
        kept: Option<Kept>,
    ) {
        let mut base = self.lock_base(&archive).await;
        match kept {
            Some(kept) => {
                self.custody
                    .hold(&archive.digest, &kept.connection, &kept.login);
                base.login = kept.login;
                base.connection = Some(kept.connection);
            }
            // They were in the memory of that life only.
            None => base.login = Login::ToCome,
        }
        for (target, path) in &targets {
            let bound = Bound {
                archive: archive.digest.clone(),
                path: path.clone(),
                summary: base.summary,
                by_kernel: base.by_kernel,
            };
            self.bound().insert(target.clone(), bound);
        }
        base.targets.extend(targets);
    }

    /// Takes the target away, whatever its state, with its folder, and the archive's mount with its last user.
    pub async fn detach(&self, target: &Path) -> Result<(), MountError> {
        self.troubles.take(target);
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

    /// Has everything served by the running server: goes on with connections, and makes anew those that are dead, so that
    /// containers which start from now on find them alive. Returns when all were tried; what fails is logged, and tried
    /// again when kubelet publishes one of its volumes the next time.
    pub async fn heal(&self) {
        let archives: Vec<Digest> = self.archives().keys().cloned().collect();
        futures::stream::iter(&archives)
            .for_each_concurrent(AT_A_TIME, |archive| self.heal_archive(archive))
            .await;
    }

    /// The same for one archive; does nothing when it is served.
    pub async fn heal_archive(&self, archive: &Digest) {
        let Some(base) = self.archives().get(archive).cloned() else {
            return;
        };
        let mut base = base.lock().await;
        if base.retired {
            return;
        }
        if let Err(error) = self.ensure_served(&mut base).await {
            tracing::error!(%archive, %error, "the archive is not served");
        }
    }

    /// What is bound to `target`, as far as this process knows.
    pub fn at(&self, target: &Path) -> Option<Bound> {
        self.bound().get(target).cloned()
    }

    /// Has the pods of an image told of a read that failed.
    pub fn read_failed(&self, failed: &FailedRead) {
        for (target, bound) in &*self.bound() {
            if bound.archive == failed.archive_digest {
                self.troubles
                    .add(target, Trouble::ReadFailed(failed.clone()));
            }
        }
    }

    /// What is mounted now.
    pub fn count(&self) -> Counted {
        let archives = self.archives().len();
        let bound = self.bound();
        let by_kernel = bound.values().filter(|bound| bound.by_kernel).count();
        Counted {
            archives,
            by_fuse: bound.len() - by_kernel,
            by_kernel,
        }
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
            base.connection = None;
            self.custody.release(&base.archive.digest);
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
            connection: None,
            served_by: None,
            summary: Summary::default(),
            by_kernel: false,
            targets: BTreeMap::new(),
            retired: false,
        }
    }
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
