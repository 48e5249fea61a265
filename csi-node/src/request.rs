//! From a CSI request, which may hold anything, to a [`PublishRequest`], which cannot be wrong.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use clip_crds::{VolumeAttributes, VolumeAttributesError};

use crate::csi::v1::volume_capability::AccessType;
use crate::csi::v1::{NodePublishVolumeRequest, VolumeCapability};
use crate::syscalls::canonical;
use crate::wire::Secret;

/// The key under which a `kubernetes.io/dockerconfigjson` secret keeps its content.
const DOCKER_CONFIG_KEY: &str = ".dockerconfigjson";
/// A docker configuration has a few hundred bytes a registry. The way to the data process has room for this much even
/// when every second character needs an escape.
const MAX_DOCKER_CONFIG: usize = 96 * 1024;

/// A checked NodePublishVolume request.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    /// Where to mount, with its parents' symbolic links resolved.
    pub target: PathBuf,
    /// Which image, for which pod.
    pub attributes: VolumeAttributes,
    /// The namespace of the pod.
    pub namespace: String,
    /// Credentials of `nodePublishSecretRef`.
    pub credentials: Option<Secret>,
    /// What must be equal in a repetition.
    pub identity: Identity,
}

/// Everything of a request that may not change while the volume is published. Credentials and tokens may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The volume.
    pub volume_id: String,
    /// The image and the pod.
    pub attributes: VolumeAttributes,
    /// `readOnly` of the pod. (The mount is read-only in either case.)
    pub read_only: bool,
}

/// What is wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A required field is empty.
    #[error("{0} is missing in the request")]
    Missing(&'static str),
    /// A raw block device was asked for.
    #[error("an image cannot be a block device: use volumeMode Filesystem")]
    Block,
    /// A mount option we do not have.
    #[error("mount option {0:?} is not supported: volumes are always mounted ro,nosuid,nodev")]
    MountOption(String),
    /// The volume's attributes.
    #[error(transparent)]
    Attributes(#[from] VolumeAttributesError),
    /// The kubelet did not vouch for the pod, so a user may have written the pod's namespace himself.
    #[error(
        "the kubelet sent no pod information: the CSIDriver object {} with podInfoOnMount: true is missing; reinstall the chart",
        clip_crds::DRIVER
    )]
    NoPodInfo,
    /// The secret is of another type.
    #[error(
        "the secret of nodePublishSecretRef must be of type kubernetes.io/dockerconfigjson; it has no key {DOCKER_CONFIG_KEY}"
    )]
    SecretType,
    /// The secret is too large.
    #[error("the secret of nodePublishSecretRef is larger than {} KiB; leave out registries that the image does not need", MAX_DOCKER_CONFIG / 1024)]
    SecretSize,
    /// The folder in which the volume is to be mounted is not there.
    #[error("target path {} cannot be used: {source}; its parent folder must exist and be absolute", .path.display())]
    Target {
        /// The path in the request.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
}

impl TryFrom<NodePublishVolumeRequest> for PublishRequest {
    type Error = RequestError;

    fn try_from(request: NodePublishVolumeRequest) -> Result<PublishRequest, RequestError> {
        let volume_id = required("volume_id", request.volume_id)?;
        let target_path = required("target_path", request.target_path)?;
        check_capability(request.volume_capability)?;
        let attributes = VolumeAttributes::parse(&request.volume_context)?;
        // An inline volume says `true`, a PersistentVolume `false`; only a kubelet that was not asked says nothing.
        if attributes.pod.ephemeral.is_none() {
            return Err(RequestError::NoPodInfo);
        }
        let namespace = attributes.pod.require_namespace()?.to_owned();
        let credentials = docker_config(request.secrets)?;
        let target = target(&target_path)?;
        let identity = Identity {
            volume_id,
            attributes: attributes.clone(),
            read_only: request.readonly,
        };
        Ok(PublishRequest {
            target,
            attributes,
            namespace,
            credentials,
            identity,
        })
    }
}

/// The field, unless it is empty.
pub fn required(field: &'static str, value: String) -> Result<String, RequestError> {
    if value.is_empty() {
        Err(RequestError::Missing(field))
    } else {
        Ok(value)
    }
}

fn check_capability(capability: Option<VolumeCapability>) -> Result<(), RequestError> {
    let capability = capability.ok_or(RequestError::Missing("volume_capability"))?;
    // Any access mode will do: nobody writes, so everybody may read. A file system type means nothing here.
    match capability.access_type {
        Some(AccessType::Block(_)) => Err(RequestError::Block),
        Some(AccessType::Mount(mount)) => {
            match mount.mount_flags.into_iter().find(|flag| flag != "ro") {
                Some(flag) => Err(RequestError::MountOption(flag)),
                None => Ok(()),
            }
        }
        None => Err(RequestError::Missing("volume_capability.access_type")),
    }
}

fn docker_config(mut secrets: HashMap<String, String>) -> Result<Option<Secret>, RequestError> {
    if secrets.is_empty() {
        return Ok(None);
    }
    let config = secrets
        .remove(DOCKER_CONFIG_KEY)
        .ok_or(RequestError::SecretType)?;
    if config.len() > MAX_DOCKER_CONFIG {
        return Err(RequestError::SecretSize);
    }
    Ok(Some(Secret(config)))
}

fn target(path: &str) -> Result<PathBuf, RequestError> {
    let path = Path::new(path);
    let failed = |source| RequestError::Target {
        path: path.to_owned(),
        source,
    };
    if !path.is_absolute() {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not absolute",
        )));
    }
    canonical(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::v1::volume_capability::{BlockVolume, MountVolume};

    fn good(folder: &Path) -> NodePublishVolumeRequest {
        let context = [
            ("clipImage", "python"),
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.namespace", "team-a"),
        ];
        NodePublishVolumeRequest {
            volume_id: "csi-1".into(),
            target_path: folder.join("mount").to_str().unwrap().into(),
            volume_capability: Some(VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume::default())),
                access_mode: None,
            }),
            readonly: true,
            volume_context: context
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
            ..Default::default()
        }
    }

    fn set(request: &mut NodePublishVolumeRequest, key: &str, value: &str) {
        request.volume_context.insert(key.into(), value.into());
    }

    type Spoil = fn(&mut NodePublishVolumeRequest);

    #[test]
    fn every_mistake_is_answered_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let cases: [(&str, Spoil); 11] = [
            ("volume_id is missing in the request", |r| {
                r.volume_id.clear()
            }),
            ("target_path is missing in the request", |r| {
                r.target_path.clear()
            }),
            ("volume_capability is missing in the request", |r| {
                r.volume_capability = None
            }),
            ("use volumeMode Filesystem", |r| {
                let access_type = Some(AccessType::Block(BlockVolume {}));
                r.volume_capability = Some(VolumeCapability {
                    access_type,
                    access_mode: None,
                });
            }),
            ("mount option \"exec\" is not supported", |r| {
                let flags = MountVolume {
                    mount_flags: vec!["ro".into(), "exec".into()],
                    ..Default::default()
                };
                let access_type = Some(AccessType::Mount(flags));
                r.volume_capability = Some(VolumeCapability {
                    access_type,
                    access_mode: None,
                });
            }),
            ("did you mean clipImage?", |r| set(r, "clipimage", "python")),
            ("names two images", |r| set(r, "image", "alpine")),
            ("podInfoOnMount: true is missing", |r| {
                r.volume_context.remove("csi.storage.k8s.io/ephemeral");
            }),
            ("must be of type kubernetes.io/dockerconfigjson", |r| {
                r.secrets.insert("password".into(), "x".into());
            }),
            ("larger than 96 KiB", |r| {
                r.secrets
                    .insert(".dockerconfigjson".into(), "x".repeat(200_000));
            }),
            ("it is not absolute", |r| r.target_path = "mount".into()),
        ];
        for (message, spoil) in cases {
            let mut request = good(folder.path());
            spoil(&mut request);
            let error = PublishRequest::try_from(request)
                .expect_err(message)
                .to_string();
            assert!(error.contains(message), "{error:?} should say {message:?}");
        }
    }

    #[test]
    fn a_repetition_with_rotated_secrets_and_tokens_is_the_same_request() {
        let folder = tempfile::tempdir().unwrap();
        let first = PublishRequest::try_from(good(folder.path())).unwrap();
        let mut request = good(folder.path());
        request
            .secrets
            .insert(".dockerconfigjson".into(), "{}".into());
        set(
            &mut request,
            "csi.storage.k8s.io/serviceAccount.tokens",
            "rotated",
        );
        let second = PublishRequest::try_from(request).unwrap();
        assert_eq!(first.identity, second.identity);
        let mut request = good(folder.path());
        set(&mut request, "path", "usr");
        assert_ne!(
            first.identity,
            PublishRequest::try_from(request).unwrap().identity
        );
    }

    #[test]
    fn a_target_below_a_symbolic_link_is_named_as_the_mount_table_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, folder.path().join("link")).unwrap();
        let request = PublishRequest::try_from(good(&folder.path().join("link"))).unwrap();
        assert_eq!(request.target, real.join("mount"));
    }

    #[test]
    fn no_secret_shows_in_debug_output() {
        let folder = tempfile::tempdir().unwrap();
        let mut request = good(folder.path());
        request
            .secrets
            .insert(".dockerconfigjson".into(), "hunter2".into());
        assert!(!format!("{:?}", PublishRequest::try_from(request).unwrap()).contains("hunter2"));
    }
}
