//! Which archive a pod's volume means, and whether it is there yet.
//!
//! Kubernetes is known only to this file: what leaves it is plain data. [`judge`] decides about one `ClipImage` and can
//! be tested without a cluster; [`Resolver`] finds the `ClipImage` and waits for it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clip_crds::clip_image::Artifact;
use clip_crds::condition::{READY, STALLED};
use clip_crds::{ClipImage, Prefetch, VolumeSource};
use clip_registry::{Digest, Reference};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::folder::Folder;

/// The pauses between two looks at a `ClipImage` that is not ready: short at first, for small images are indexed in a
/// second; 500 pods that wait on one node then ask the apiserver 160 times a second less than at the first pace.
const FIRST_PAUSE: Duration = Duration::from_millis(300);
const LAST_PAUSE: Duration = Duration::from_secs(3);

/// An archive, and where to get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveRef {
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its size in bytes, when known.
    pub size: Option<u64>,
    /// Where it can be had, besides the archive service.
    pub places: Vec<Place>,
    /// What to fetch of its image before it is read, unless the volume says otherwise.
    pub prefetch: Prefetch,
}

/// A place that has an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An OCI artifact.
    Registry(Reference),
    /// A file on this node.
    File(PathBuf),
}

/// What is to be said about an image now.
#[derive(Debug)]
pub enum Verdict {
    /// It can be mounted.
    Ready(ArchiveRef),
    /// It will be, and this is how far it is.
    Pending(String),
}

/// Why there is no archive to be mounted.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// No such `ClipImage`.
    #[error("{what} does not exist{hint}")]
    NotFound {
        /// What was looked for.
        what: String,
        /// What to do.
        hint: String,
    },
    /// Waiting will not help: somebody has to change something.
    #[error("{what} cannot be indexed: {message} ({reason})")]
    Stalled {
        /// The `ClipImage`.
        what: String,
        /// The condition's reason.
        reason: String,
        /// The condition's message, which says what to change.
        message: String,
    },
    /// There are archives, but none for this node.
    #[error(
        "{what} is indexed for {available}, this node needs {wanted}: set spec.platforms to [{wanted}]"
    )]
    Platform {
        /// The `ClipImage`.
        what: String,
        /// The node's platform.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// The status holds something that cannot be.
    #[error(
        "{what} has a broken status: {problem}; delete the status's artifacts, or the ClipImage, to have it made again"
    )]
    Broken {
        /// The `ClipImage`.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// The reference of the attribute `image`.
    #[error(transparent)]
    Reference(#[from] clip_registry::ReferenceError),
    /// The Kubernetes API gave no answer.
    #[error("cannot ask the Kubernetes API for {what}: {source}")]
    Kubernetes {
        /// What was looked for.
        what: String,
        /// What the client says.
        source: kube::Error,
    },
    /// It was waited for in vain; the work goes on.
    #[error("{0}")]
    NotReady(String),
}

/// Finds archives: by `ClipImage`, or in a folder without Kubernetes.
#[derive(Debug)]
pub enum Resolver {
    /// In the cluster.
    Cluster(Cluster),
    /// In a folder (`--clipimages-from`).
    Folder(Folder),
}

/// The `ClipImage`s of a cluster.
pub struct Cluster {
    client: Client,
    platform: String,
}

impl Resolver {
    /// The archive for a volume of a pod in `namespace`, waiting up to `patience` for one that is being made.
    pub async fn wait(
        &self,
        namespace: &str,
        source: &VolumeSource,
        patience: Duration,
    ) -> Result<ArchiveRef, ResolveError> {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let verdict = match self {
                Resolver::Cluster(cluster) => cluster.look(namespace, source).await,
                Resolver::Folder(folder) => folder.look(source).await,
            };
            match verdict? {
                Verdict::Ready(archive) => return Ok(archive),
                Verdict::Pending(message) if begun.elapsed() + pause > patience => {
                    let message = format!(
                        "{message}; waited {} s, and will try again",
                        begun.elapsed().as_secs()
                    );
                    return Err(ResolveError::NotReady(message));
                }
                Verdict::Pending(message) => tracing::debug!(%source, message, "not ready yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LAST_PAUSE);
        }
    }
}

impl Cluster {
    /// Asks through `client`; `platform` is this node's, such as `linux/amd64`.
    pub fn new(client: Client, platform: String) -> Cluster {
        Cluster { client, platform }
    }

    async fn look(&self, namespace: &str, source: &VolumeSource) -> Result<Verdict, ResolveError> {
        let images: Api<ClipImage> = Api::namespaced(self.client.clone(), namespace);
        let image = match source {
            VolumeSource::ClipImage(name) => by_name(&images, namespace, name).await?,
            VolumeSource::Image(reference) => {
                let wanted: Reference = reference.parse()?;
                by_reference(&images, namespace, &wanted, &self.platform).await?
            }
        };
        judge(&image, &self.platform)
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("platform", &self.platform)
            .finish_non_exhaustive()
    }
}

async fn by_name(
    images: &Api<ClipImage>,
    namespace: &str,
    name: &str,
) -> Result<ClipImage, ResolveError> {
    let what = || format!("ClipImage {namespace}/{name}");
    match images.get_opt(name).await {
        Ok(Some(image)) => Ok(image),
        Ok(None) => Err(ResolveError::NotFound {
            what: what(),
            hint: ": create it, or correct the volume attribute clipImage (kubectl get clipimages lists those there are)"
                .into(),
        }),
        Err(source) => Err(ResolveError::Kubernetes { what: what(), source }),
    }
}

/// The `ClipImage` of the namespace for this image; of several, one that can be mounted.
async fn by_reference(
    images: &Api<ClipImage>,
    namespace: &str,
    wanted: &Reference,
    platform: &str,
) -> Result<ClipImage, ResolveError> {
    let what = || format!("a ClipImage with spec.image {wanted} in namespace {namespace}");
    let list = images.list(&ListParams::default()).await;
    let list = list.map_err(|source| ResolveError::Kubernetes {
        what: what(),
        source,
    })?;
    let mut matching: Vec<ClipImage> = list
        .into_iter()
        .filter(|image| is_of(image, wanted))
        .collect();
    matching.sort_by_key(|image| !matches!(judge(image, platform), Ok(Verdict::Ready(_))));
    matching.into_iter().next().ok_or_else(|| ResolveError::NotFound {
        what: what(),
        hint: format!(": create one (apiVersion: clip.dev/v1alpha1, kind: ClipImage, spec: {{image: {wanted}}})"),
    })
}

fn is_of(image: &ClipImage, wanted: &Reference) -> bool {
    image
        .spec
        .image
        .parse::<Reference>()
        .is_ok_and(|reference| reference == *wanted)
}

/// What a `ClipImage` says about its archive for `platform`.
///
/// An archive of the present image counts even while the image is indexed again or published elsewhere: `status.artifacts`
/// holds only what may be mounted.
pub fn judge(image: &ClipImage, platform: &str) -> Result<Verdict, ResolveError> {
    let what = format!(
        "ClipImage {}/{}",
        image.namespace().unwrap_or_default(),
        image.name_any()
    );
    let Some(status) = &image.status else {
        let hint = "is clip-operator running? (kubectl -n clip-system get pods)";
        return Ok(Verdict::Pending(format!(
            "{what} is new and was not looked at yet; {hint}"
        )));
    };
    if !speaks_of_present_image(image) {
        return Ok(Verdict::Pending(format!(
            "{what} was changed and its new image is not resolved yet"
        )));
    }
    // The archive of the digest that the tag means now comes first; older ones stay listed while it is being made.
    let newest = status.source.as_ref().map(|source| source.digest.as_str());
    let of = |platform: &str| {
        let mut all: Vec<&Artifact> = status
            .artifacts
            .iter()
            .filter(|a| a.platform == platform)
            .collect();
        all.sort_by_key(|artifact| newest != Some(artifact.manifest_digest.as_str()));
        all.first().copied()
    };
    // A platform that the spec names is meant, even if this node could not run it: the pod wants the files.
    let named = image.spec.platforms.first().map(String::as_str);
    if let Some(artifact) = of(platform).or_else(|| of(named?)) {
        return archive_of(&what, artifact, image.spec.prefetch).map(Verdict::Ready);
    }
    let condition = |kind: &str| {
        status
            .conditions
            .iter()
            .find(|condition| condition.type_ == kind)
    };
    if let Some(stalled) = condition(STALLED).filter(|condition| condition.status == "True") {
        let (reason, message) = (stalled.reason.clone(), stalled.message.clone());
        return Err(ResolveError::Stalled {
            what,
            reason,
            message,
        });
    }
    if image.spec.suspend == Some(true) {
        let (reason, message) = (
            "Suspended".into(),
            "it is suspended; set spec.suspend to false".into(),
        );
        return Err(ResolveError::Stalled {
            what,
            reason,
            message,
        });
    }
    if !status.artifacts.is_empty() {
        let available: Vec<&str> = status
            .artifacts
            .iter()
            .map(|artifact| artifact.platform.as_str())
            .collect();
        return Err(ResolveError::Platform {
            what,
            wanted: platform.into(),
            available: available.join(", "),
        });
    }
    let progress = match condition(READY) {
        Some(ready) => format!("{what} is not ready: {} ({})", ready.message, ready.reason),
        None => format!("{what} is not ready: the operator has not begun with it"),
    };
    Ok(Verdict::Pending(progress))
}

/// Whether the status was written for the image that the spec names now.
fn speaks_of_present_image(image: &ClipImage) -> bool {
    let Some(status) = &image.status else {
        return false;
    };
    let resolved = status
        .source
        .as_ref()
        .and_then(|source| source.reference.as_ref());
    match (
        resolved.and_then(|text| text.parse::<Reference>().ok()),
        image.spec.image.parse::<Reference>(),
    ) {
        (Some(resolved), Ok(wanted)) if resolved == wanted => true,
        _ => status.observed_generation == image.metadata.generation,
    }
}

fn archive_of(
    what: &str,
    artifact: &Artifact,
    prefetch: Prefetch,
) -> Result<ArchiveRef, ResolveError> {
    let digest = artifact
        .digest
        .parse()
        .map_err(|error: clip_registry::DigestError| ResolveError::Broken {
            what: what.into(),
            problem: error.to_string(),
        })?;
    // Locations of other kinds (URLs of the archive service) are left out: the service is asked first in any case.
    let places = artifact
        .locations
        .iter()
        .filter(|place| !place.contains("://"));
    let places = places
        .filter_map(|place| place.parse().ok())
        .map(Place::Registry)
        .collect();
    Ok(ArchiveRef {
        digest,
        size: u64::try_from(artifact.size).ok(),
        places,
        prefetch,
    })
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
