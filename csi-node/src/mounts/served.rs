//! Having an archive served: by the running server, with a connection that was kept or a new one, and bound where its
//! pods look for it.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clip_crds::Prefetch;
use clip_engine::read_ahead;
use clip_registry::Credentials;

use super::{AttachError, Base, Bound, MOUNT_LIMIT, Mounts};
use crate::custody::Connection;
use crate::serve_process::ServeError;
use crate::syscalls::{self, MountError, within};
use crate::troubles::Trouble;
use crate::wire::{Command, Login, Reason, Refusal, Secret, Serving};

impl Mounts {
    /// Sees to it that the archive is mounted and served by the running server, and bound to all its targets.
    ///
    /// The dead mount of a target stays until the new one takes its place: should this process end in between, the mount
    /// table still says what belongs there.
    pub(super) async fn ensure_served(&self, base: &mut Base) -> Result<(), AttachError> {
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
            let device = syscalls::device_of(&point)?;
            read_ahead::raise(&device);
            Ok((descriptor, device, before))
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
        for target in base.targets.keys() {
            self.troubles.add(target, Trouble::Lost);
        }
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

    pub(super) async fn bind(
        &self,
        base: &mut Base,
        target: &Path,
        path: &str,
    ) -> Result<(), AttachError> {
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

    /// Gives newer credentials to the server, if it serves the archive already; else it gets them when it begins to.
    pub(super) async fn hand_over(
        &self,
        base: &mut Base,
        credentials: &Secret,
    ) -> Result<(), ServeError> {
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

    /// Tells the server to fetch as much before it is read, if that is more than what it was told. Nothing depends on it.
    pub(super) async fn fetch_ahead(&self, base: &mut Base, prefetch: Prefetch) {
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
}

fn check_docker_config(Secret(config): &Secret) -> Result<(), Refusal> {
    let credentials = Credentials::DockerConfigJson(vec![config.clone()]);
    credentials.check().map_err(|error| Refusal {
        reason: Reason::CredentialsInvalid,
        message: error.to_string(),
    })
}
