//! What NodePublishVolume and NodeUnpublishVolume do, as a list of steps.
//!
//! A kubelet may stop waiting at any moment (its limit is 2 min), restart, and ask again. So whatever changes the node
//! (fetching, mounting, unmounting) runs as a task of its own that is never cut off half-way; only waiting for the
//! index ends with the request.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use clip_crds::PodInfo;
use tracing::Instrument;

use crate::archive_sources::FetchError;
use crate::archives::Archives;
use crate::locks::{Busy, Held, TargetLocks};
use crate::mountinfo;
use crate::mounts::{AttachError, Binding, Bound, Mounts};
use crate::request::{Identity, PublishRequest, RequestError};
use crate::resolve::{ArchiveRef, ResolveError, Resolver};
use crate::serve_process::ServeError;
use crate::syscalls::MountError;
use crate::troubles::PodEvents;
use crate::wire::Reason;
use clip_engine::mount_points;

/// Publishes volumes on this node.
#[derive(Debug)]
pub struct Publisher {
    /// Finds the archive of an image.
    pub resolver: Resolver,
    /// Archives on disk.
    pub archives: Archives,
    /// Live mounts.
    pub mounts: Mounts,
    /// How long a publish waits for an image that is being indexed.
    pub patience: Duration,
    /// Tells pods what went wrong with their volumes.
    pub events: PodEvents,
    locks: TargetLocks,
    /// What was asked for, by target: a repetition must be recognised. Not known after a restart.
    published: Mutex<HashMap<PathBuf, Identity>>,
}

/// Why a volume could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The request is wrong.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Another operation on the target is in progress.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The target has another volume, or this one with other attributes.
    #[error("{} already shows another volume (or this one with other attributes); unpublish it first", .0.display())]
    Different(PathBuf),
    /// There is no archive for the image, or not yet.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The archive could not be fetched.
    #[error(transparent)]
    Fetch(Arc<FetchError>),
    /// The archive could not be mounted.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The mount table could not be read, or shows a stranger.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A bug.
    #[error("publishing ended without a result: {0}")]
    Task(#[source] tokio::task::JoinError),
}

/// Why a volume could not be unpublished.
#[derive(Debug, thiserror::Error)]
pub enum UnpublishError {
    /// The request is wrong.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Another operation on the target is in progress.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// It could not be unmounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A bug.
    #[error("unpublishing ended without a result: {0}")]
    Task(#[source] tokio::task::JoinError),
}

impl Publisher {
    /// A publisher that starts with the mounts that `mounts` knows.
    pub fn new(
        resolver: Resolver,
        archives: Archives,
        mounts: Mounts,
        patience: Duration,
        events: PodEvents,
    ) -> Publisher {
        let (locks, published) = (TargetLocks::default(), Mutex::default());
        Publisher {
            resolver,
            archives,
            mounts,
            patience,
            events,
            locks,
            published,
        }
    }

    /// Shows the image in the pod's folder.
    pub async fn publish(self: &Arc<Self>, request: PublishRequest) -> Result<(), PublishError> {
        let held = self.locks.hold(&request.target)?;
        if self.is_published(&request)? {
            self.refresh(&request);
            return Ok(());
        }
        let source = &request.attributes.source;
        let archive = self
            .resolver
            .wait(&request.namespace, source, self.patience)
            .await?;
        let publisher = self.clone();
        let finish = async move { publisher.finish(request, archive, held).await };
        let finish = tokio::spawn(finish.in_current_span());
        finish.await.map_err(PublishError::Task)?
    }

    /// Takes the volume out of the pod's folder and removes the folder. Fine when nothing is there.
    pub async fn unpublish(self: &Arc<Self>, target: PathBuf) -> Result<(), UnpublishError> {
        let held = self.locks.hold(&target)?;
        let publisher = self.clone();
        let finish = async move {
            let _held = held;
            publisher.published().remove(&target);
            publisher.mounts.detach(&target).await
        };
        let finish = tokio::spawn(finish.in_current_span());
        Ok(finish.await.map_err(UnpublishError::Task)??)
    }

    /// What the volume shows, if it is published at `target`.
    pub fn volume_at(&self, volume_id: &str, target: &Path) -> Option<Bound> {
        let bound = self.mounts.at(target)?;
        // After a restart the volume's name is not known until kubelet publishes it again.
        let same = self
            .published()
            .get(target)
            .is_none_or(|identity| identity.volume_id == volume_id);
        same.then_some(bound)
    }

    /// Whether the same volume is there already. One that is there stays as it is, even when its image has moved on.
    fn is_published(&self, request: &PublishRequest) -> Result<bool, PublishError> {
        let target = &request.target;
        let Some(bound) = self.mounts.at(target) else {
            // A mount that we do not know is a dead one of an earlier life, which attaching removes, or a stranger.
            return Ok(false);
        };
        let mut published = self.published();
        let same = match published.get(target) {
            Some(identity) => *identity == request.identity,
            None => bound.path == path_of(request),
        };
        if !same {
            return Err(PublishError::Different(target.clone()));
        }
        // Somebody may have unmounted it behind our back.
        let mounts = mount_points::all().map_err(MountError::Table)?;
        let is_there = mount_points::stacked_at(&mounts, target)
            .next_back()
            .is_some_and(|m| mountinfo::archive_of(m) == Some(bound.archive));
        if is_there {
            published.insert(target.clone(), request.identity.clone());
        }
        Ok(is_there)
    }

    /// What a repeated publish is good for: new credentials, mending a mount that could not be mended before, and telling
    /// the pod what went wrong.
    /// It never fails, because kubelet would take a failure as one of the running pod's volume.
    fn refresh(self: &Arc<Self>, request: &PublishRequest) {
        let Some(bound) = self.mounts.at(&request.target) else {
            return;
        };
        let (publisher, credentials) = (self.clone(), request.credentials.clone());
        let (target, attributes) = (request.target.clone(), request.attributes.clone());
        tokio::spawn(async move {
            if let Some(credentials) = credentials {
                publisher
                    .mounts
                    .renew_credentials(&bound.archive, &credentials)
                    .await;
            }
            publisher.mounts.heal_archive(&bound.archive).await;
            // Forgotten when this process was started again.
            if let Some(prefetch) = attributes.prefetch {
                publisher.mounts.prefetch(&bound.archive, prefetch).await;
            }
            publisher.tell_trouble(&target, &attributes.pod).await;
        });
    }

    async fn finish(
        &self,
        request: PublishRequest,
        archive: ArchiveRef,
        _held: Held,
    ) -> Result<(), PublishError> {
        let prefetch = request.attributes.prefetch.unwrap_or(archive.prefetch);
        let archive = self
            .archives
            .ensure(&archive, request.credentials.as_ref())
            .await;
        let binding = Binding {
            archive: archive.map_err(PublishError::Fetch)?,
            path: path_of(&request).to_owned(),
            target: request.target.clone(),
            credentials: request.credentials,
            prefetch,
        };
        let attached = self.mounts.attach(&binding).await;
        if let Err(AttachError::Serve(ServeError::Refused(refusal))) = &attached
            && refusal.reason == Reason::ArchiveInvalid
        {
            self.archives.remove_if_changed(&binding.archive).await;
        }
        attached?;
        tracing::info!(image = %request.attributes.source, archive = %binding.archive.digest, "volume published");
        self.tell_trouble(&request.target, &request.attributes.pod)
            .await;
        self.published().insert(request.target, request.identity);
        Ok(())
    }

    /// Tells the pod what went wrong with its volume since kubelet asked the last time.
    async fn tell_trouble(&self, target: &Path, pod: &PodInfo) {
        if let Some(trouble) = self.mounts.troubles.take(target) {
            self.events.tell(pod, &trouble).await;
        }
    }

    fn published(&self) -> MutexGuard<'_, HashMap<PathBuf, Identity>> {
        self.published
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn path_of(request: &PublishRequest) -> &str {
    request.attributes.path.as_deref().unwrap_or("")
}
