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

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use clip_crds::Prefetch;
use clip_engine::read_ahead;
use clip_registry::{Credentials, Digest};
use futures::StreamExt;
use tokio::sync::Mutex as AsyncMutex;

use crate::custody::{Connection, Custody, Kept};
use crate::engines::Engines;
use crate::serve_process::{ServeError, ServeProcess};
use crate::syscalls::{self, MountError, within};
use crate::wire::{Command, Login, Reason, Refusal, Secret, Serving, Summary};

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
        if let Err(error) = self.serve.ask(command).await {
            tracing::warn!(archive = %base.archive.digest, %error, "nothing is fetched ahead");
        }
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
            self.serve.ask(command).await?;
            tracing::info!(archive = %base.archive.digest, "credentials renewed");
        }
        base.login = login;
        self.keep(base);
        Ok(())
    }

    /// Has the connection kept, with what the next life of this process has to know of it.
    fn keep(&self, base: &Base) {
        if let Some(connection) = &base.connection {
            self.custody
                .hold(&base.archive.digest, connection, &base.login);
        }
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
        let goes_on = self.go_on(base).await?;
        let dead = match goes_on {
            true => HashSet::new(),
            false => self.begin(base).await?,
        };
        base.served_by = Some(generation);
        let prefetch = std::mem::replace(&mut base.prefetch, Prefetch::None);
        self.fetch_ahead(base, prefetch).await;
        self.bind_anew(base, dead).await?;
        tracing::info!(
            archive = %base.archive.digest, generation, goes_on, volumes = base.targets.len(), "archive served"
        );
        Ok(())
    }

    /// Hands a connection that was kept to the server. False when there is none, or it cannot be gone on with; it is
    /// aborted then.
    async fn go_on(&self, base: &mut Base) -> Result<bool, ServeError> {
        let Some(connection) = &base.connection else {
            return Ok(false);
        };
        match self
            .ask_to_serve(base, &connection.descriptor, Some(&connection.tree_id))
            .await
        {
            Ok(serving) => {
                base.summary = serving.summary;
                Ok(true)
            }
            // Readers wait for the next life of the server.
            Err(error @ (ServeError::Down | ServeError::Silent | ServeError::Send(_))) => {
                Err(error)
            }
            Err(error) => {
                tracing::error!(archive = %base.archive.digest, %error, "the connection cannot be gone on with");
                self.give_up(base).await;
                Ok(false)
            }
        }
    }

    /// Mounts the archive anew and has it served. Returns the devices of what was mounted of it before, which is dead.
    async fn begin(&self, base: &mut Base) -> Result<HashSet<String>, AttachError> {
        let (archive, point) = (base.archive.digest.clone(), base.point.clone());
        let targets: Vec<PathBuf> = base.targets.keys().cloned().collect();
        let (descriptor, device, before) = within(MOUNT_LIMIT, "mounting the archive", move || {
            let before = syscalls::standing(&archive, &point, targets)?;
            syscalls::detach_all(&point)?;
            let descriptor = syscalls::mount_archive(&archive, &point)?;
            let (major, minor) = syscalls::device_of(&point)?;
            read_ahead::raise(major, minor);
            Ok((descriptor, format!("{major}:{minor}"), before))
        })
        .await?;
        // Should the server end before it answers, the descriptor ends here, and with it the connection.
        let serving = self.ask_to_serve(base, &descriptor, None).await?;
        base.summary = serving.summary;
        base.connection = Some(Connection {
            descriptor: Arc::new(descriptor),
            device,
            tree_id: serving.tree_id.clone(),
        });
        self.keep(base);
        self.cover(base, serving).await?;
        Ok(before.living.into_iter().chain(before.dead).collect())
    }

    async fn ask_to_serve(
        &self,
        base: &Base,
        descriptor: &OwnedFd,
        resume: Option<&str>,
    ) -> Result<Serving, ServeError> {
        let command = Command::Serve {
            archive: base.archive.file.clone(),
            archive_digest: base.archive.digest.clone(),
            login: base.login.clone(),
            resume: resume.map(str::to_owned),
        };
        let descriptor = descriptor.try_clone().map_err(ServeError::Send)?;
        self.serve.serve(command, descriptor).await
    }

    /// Lets the kernel serve the tree where the node's engine is EROFS.
    async fn cover(&self, base: &mut Base, serving: Serving) -> Result<(), MountError> {
        base.by_kernel = false;
        if !self.engines.wants_kernel() {
            return Ok(());
        }
        let (archive, point) = (base.archive.digest.clone(), base.point.clone());
        let covered = within(MOUNT_LIMIT, "mounting the kernel's EROFS", move || {
            syscalls::cover_tree(&archive, &serving, &point)
        })
        .await;
        base.by_kernel = covered.is_ok();
        let judged = match covered {
            // The server hangs: that says nothing of the kernel.
            Err(MountError::TooSlow { .. }) => covered,
            covered => self.engines.judge(covered),
        };
        if judged.is_err() {
            self.give_up(base).await;
        }
        judged
    }

    /// Binds the targets that show something dead, and detaches what is left of it.
    async fn bind_anew(
        &self,
        base: &mut Base,
        mut dead: HashSet<String>,
    ) -> Result<(), MountError> {
        if base.targets.is_empty() && dead.is_empty() {
            return Ok(());
        }
        let (archive, point) = (base.archive.digest.clone(), base.point.clone());
        let targets: Vec<PathBuf> = base.targets.keys().cloned().collect();
        let standing = within(MOUNT_LIMIT, "looking at the mount table", move || {
            syscalls::standing(&archive, &point, targets)
        })
        .await?;
        base.by_kernel = standing.living.len() > 1;
        for target in base.targets.keys() {
            // Of an earlier life only the target and the folder were known.
            if let Some(bound) = self.bound().get_mut(target) {
                bound.summary = base.summary;
                bound.by_kernel = base.by_kernel;
            }
        }
        for target in standing.unbound {
            let path = base.targets[&target].clone();
            if let Err(error) = self.bind(base, &target, &path).await {
                tracing::error!(volume = %target.display(), %error, "cannot bind the pod's volume again");
            }
        }
        dead.extend(standing.dead);
        // The kernel gives a device number again when nothing of its filesystem is left.
        dead.retain(|device| !standing.living.contains(device));
        if dead.is_empty() {
            return Ok(());
        }
        let archive = base.archive.digest.clone();
        within(MOUNT_LIMIT, "tidying up", move || {
            syscalls::detach_remains(&archive, &dead)
        })
        .await
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
            by_kernel: base.by_kernel,
        };
        self.bound().insert(target.to_owned(), bound);
        Ok(())
    }

    async fn give_up(&self, base: &mut Base) {
        tracing::error!(archive = %base.archive.digest, "its connection is aborted; whoever reads gets an error");
        base.served_by = None;
        base.connection = None;
        self.custody.release(&base.archive.digest);
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
