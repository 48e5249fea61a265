//! What a pod writes under `volumes[].csi.volumeAttributes`, parsed into a type that cannot be wrong.
//!
//! ```yaml
//! volumes:
//! - name: data
//!   csi:
//!     driver: csi.clip.dev
//!     readOnly: true
//!     volumeAttributes:
//!       clipImage: python          # a ClipImage of the pod's namespace; or  image: python:3.12
//!       path: usr/lib/python3      # optional: mount this directory of the image as the volume's root
//!       prefetch: All              # optional: None, Profile or All, in place of the ClipImage's spec.prefetch
//! ```
//!
//! The kubelet adds keys of its own below `csi.storage.k8s.io/` (kubernetes/pkg/volume/csi/csi_mounter.go);
//! they say for which pod the volume is and are kept apart, because only the kubelet may be believed on that.

use std::fmt;

use crate::Prefetch;

/// The keys that a user may write, in the order in which they are documented.
pub const VALID_KEYS: [&str; 4] = ["clipImage", "image", "path", "prefetch"];

/// Everything below this prefix is written by the kubelet.
const KUBELET_PREFIX: &str = "csi.storage.k8s.io/";

/// The attributes of one volume, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeAttributes {
    /// Which image.
    pub source: VolumeSource,
    /// Directory of the image that becomes the volume's root, without leading or trailing `/`;
    /// `None` is the image's own root.
    pub path: Option<String>,
    /// What to fetch before it is read; `None` is as the image's `ClipImage` says.
    pub prefetch: Option<Prefetch>,
    /// For whom, as the kubelet says.
    pub pod: PodInfo,
}

/// How the image is named: exactly one of the two keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// `clipImage`: the name of a `ClipImage` in the pod's namespace.
    ClipImage(String),
    /// `image`: a reference as Docker users write it.
    Image(String),
}

impl fmt::Display for VolumeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClipImage(name) => write!(f, "clipImage {name}"),
            Self::Image(reference) => write!(f, "image {reference}"),
        }
    }
}

/// The pod that asked, from the kubelet's `csi.storage.k8s.io/*` keys. All are present when the
/// CSIDriver object has `podInfoOnMount: true`; without it none is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodInfo {
    /// `pod.name`
    pub name: Option<String>,
    /// `pod.namespace`
    pub namespace: Option<String>,
    /// `pod.uid`
    pub uid: Option<String>,
    /// `serviceAccount.name`
    pub service_account: Option<String>,
    /// `ephemeral`: true for an inline volume, false for a PersistentVolume.
    pub ephemeral: Option<bool>,
}

impl PodInfo {
    /// The pod's namespace, without which no `ClipImage` can be looked up.
    ///
    /// # Errors
    /// [`VolumeAttributesError::NoPodInfo`] when the kubelet did not send it.
    pub fn require_namespace(&self) -> Result<&str, VolumeAttributesError> {
        self.namespace
            .as_deref()
            .ok_or(VolumeAttributesError::NoPodInfo)
    }
}

/// What is wrong with the attributes. Every message names the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeAttributesError {
    /// A key that nobody reads: most often a misspelt one.
    #[error("unknown volume attribute {key:?}{}; valid attributes are {}", hint(.nearest), VALID_KEYS.join(", "))]
    Unknown {
        /// The key as written.
        key: String,
        /// The valid key that looks most like it, if one does.
        nearest: Option<&'static str>,
    },
    /// Neither `image` nor `clipImage`.
    #[error(
        "the volume names no image: set the volume attribute clipImage (a ClipImage of the pod's namespace) or image"
    )]
    NoSource,
    /// Both `image` and `clipImage`.
    #[error(
        "the volume names two images: set only one of the volume attributes clipImage and image"
    )]
    TwoSources,
    /// A key with an empty value, or one that cannot be what the key wants.
    #[error("volume attribute {key} is {value:?}: {expected}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// Its value as written.
        value: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// The kubelet did not say for which pod the volume is.
    #[error(
        "the kubelet did not say for which pod this volume is: install the CSIDriver object csi.clip.dev with podInfoOnMount: true"
    )]
    NoPodInfo,
}

impl VolumeAttributes {
    /// Parses the volume context of a NodePublishVolume request (any map of strings).
    ///
    /// # Errors
    /// The first thing that is wrong, keys in alphabetical order, so that the same mistake always gives the
    /// same message.
    pub fn parse<'a, K, V>(
        context: impl IntoIterator<Item = (&'a K, &'a V)>,
    ) -> Result<Self, VolumeAttributesError>
    where
        K: AsRef<str> + 'a + ?Sized,
        V: AsRef<str> + 'a + ?Sized,
    {
        let mut pairs: Vec<(&str, &str)> = context
            .into_iter()
            .map(|(k, v)| (k.as_ref(), v.as_ref()))
            .collect();
        pairs.sort_unstable();

        let mut pod = PodInfo::default();
        let (mut clip_image, mut image, mut path, mut prefetch) = (None, None, None, None);
        for (key, value) in pairs {
            if let Some(key) = key.strip_prefix(KUBELET_PREFIX) {
                pod.set(key, value);
                continue;
            }
            match key {
                "clipImage" => clip_image = Some(parse_name(value)?),
                "image" => image = Some(parse_reference(value)?),
                "path" => path = parse_path(value)?,
                "prefetch" => prefetch = Some(parse_prefetch(value)?),
                _ => {
                    return Err(VolumeAttributesError::Unknown {
                        key: key.to_owned(),
                        nearest: nearest(key),
                    });
                }
            }
        }
        let source = match (clip_image, image) {
            (Some(name), None) => VolumeSource::ClipImage(name),
            (None, Some(reference)) => VolumeSource::Image(reference),
            (None, None) => return Err(VolumeAttributesError::NoSource),
            (Some(_), Some(_)) => return Err(VolumeAttributesError::TwoSources),
        };
        Ok(Self {
            source,
            path,
            prefetch,
            pod,
        })
    }
}

impl PodInfo {
    /// Keys that later kubelets may add (and the tokens, which are secret) are not ours to keep.
    fn set(&mut self, key: &str, value: &str) {
        let text = Some(value.to_owned()).filter(|v| !v.is_empty());
        match key {
            "pod.name" => self.name = text,
            "pod.namespace" => self.namespace = text,
            "pod.uid" => self.uid = text,
            "serviceAccount.name" => self.service_account = text,
            "ephemeral" => self.ephemeral = value.parse().ok(),
            _ => {}
        }
    }
}

/// A Kubernetes object name: lower-case letters, digits, `-` and `.` (RFC 1123 subdomain).
fn parse_name(value: &str) -> Result<String, VolumeAttributesError> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let valid = value.len() <= 253
        && value.chars().all(inner)
        && edge(value.chars().next())
        && edge(value.chars().last());
    if valid {
        return Ok(value.to_owned());
    }
    Err(VolumeAttributesError::Invalid {
        key: "clipImage",
        value: value.to_owned(),
        expected: "write the name of a ClipImage of the pod's namespace",
    })
}

/// Only what cannot be a reference at all; the registry client parses it in full.
fn parse_reference(value: &str) -> Result<String, VolumeAttributesError> {
    if value.is_empty() || value.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(VolumeAttributesError::Invalid {
            key: "image",
            value: value.to_owned(),
            expected: "write an image reference such as python:3.12",
        });
    }
    Ok(value.to_owned())
}

/// A directory below the image's root. `..` is refused rather than resolved: what it would mean depends on
/// symbolic links of the image.
fn parse_path(value: &str) -> Result<Option<String>, VolumeAttributesError> {
    let parts: Vec<&str> = value
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if value.is_empty() || parts.contains(&"..") || value.contains('\0') {
        return Err(VolumeAttributesError::Invalid {
            key: "path",
            value: value.to_owned(),
            expected: "write a directory of the image such as usr/lib, without ..",
        });
    }
    Ok(if parts.is_empty() {
        None
    } else {
        Some(parts.join("/"))
    })
}

fn parse_prefetch(value: &str) -> Result<Prefetch, VolumeAttributesError> {
    value.parse().map_err(|()| VolumeAttributesError::Invalid {
        key: "prefetch",
        value: value.to_owned(),
        expected: "write None, Profile or All",
    })
}

/// The valid key that `key` was most likely meant to be: at most a third of it differs, case aside.
fn nearest(key: &str) -> Option<&'static str> {
    // Comparing costs time and memory by the key's length; nothing as long is a slip of the pen.
    if key.len() > 64 {
        return None;
    }
    let distance =
        |valid: &str| strsim::damerau_levenshtein(&key.to_lowercase(), &valid.to_lowercase());
    let best = VALID_KEYS.into_iter().min_by_key(|valid| distance(valid))?;
    (distance(best) * 3 <= key.chars().count().max(best.len())).then_some(best)
}

fn hint(nearest: &Option<&'static str>) -> String {
    nearest
        .map(|key| format!(" (did you mean {key}?)"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, HashMap};

    fn parse(pairs: &[(&str, &str)]) -> Result<VolumeAttributes, VolumeAttributesError> {
        let map: BTreeMap<String, String> = pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        VolumeAttributes::parse(&map)
    }

    #[test]
    fn a_kubelets_request_is_split_into_what_the_user_and_what_the_kubelet_said() {
        let context = HashMap::from([
            ("clipImage".to_owned(), "python".to_owned()),
            ("path".to_owned(), "/usr//lib/./python3/".to_owned()),
            ("csi.storage.k8s.io/pod.name".to_owned(), "web-0".to_owned()),
            (
                "csi.storage.k8s.io/pod.namespace".to_owned(),
                "team-a".to_owned(),
            ),
            ("csi.storage.k8s.io/pod.uid".to_owned(), "0a1b".to_owned()),
            (
                "csi.storage.k8s.io/serviceAccount.name".to_owned(),
                "default".to_owned(),
            ),
            (
                "csi.storage.k8s.io/serviceAccount.tokens".to_owned(),
                "secret".to_owned(),
            ),
            ("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned()),
        ]);
        let attributes = VolumeAttributes::parse(&context).expect("valid");
        assert_eq!(attributes.source, VolumeSource::ClipImage("python".into()));
        assert_eq!(attributes.path.as_deref(), Some("usr/lib/python3"));
        assert_eq!(attributes.pod.require_namespace(), Ok("team-a"));
        assert_eq!(attributes.pod.ephemeral, Some(true));
    }

    #[test]
    fn the_root_of_the_image_is_no_path() {
        for root in ["/", ".", "./"] {
            assert_eq!(
                parse(&[("image", "alpine"), ("path", root)])
                    .expect(root)
                    .path,
                None
            );
        }
    }

    #[test]
    fn every_mistake_is_answered_with_its_remedy() {
        let cases: [(&[(&str, &str)], &str); 10] = [
            (
                &[("image", "a"), ("prefetch", "all")],
                "volume attribute prefetch is \"all\": write None, Profile or All",
            ),
            (
                &[("clipimage", "a")],
                "unknown volume attribute \"clipimage\" (did you mean clipImage?); valid attributes are clipImage, image, path, prefetch",
            ),
            (
                &[("imgae", "a")],
                "unknown volume attribute \"imgae\" (did you mean image?); valid attributes are clipImage, image, path, prefetch",
            ),
            (
                &[("pullPolicy", "Always"), ("image", "a")],
                "unknown volume attribute \"pullPolicy\"; valid attributes are clipImage, image, path, prefetch",
            ),
            (
                &[],
                "the volume names no image: set the volume attribute clipImage (a ClipImage of the pod's namespace) or image",
            ),
            (
                &[("image", "a"), ("clipImage", "b")],
                "the volume names two images: set only one of the volume attributes clipImage and image",
            ),
            (
                &[("clipImage", "Python:3")],
                "volume attribute clipImage is \"Python:3\": write the name of a ClipImage of the pod's namespace",
            ),
            (
                &[("image", "")],
                "volume attribute image is \"\": write an image reference such as python:3.12",
            ),
            (
                &[("image", "a"), ("path", "../etc")],
                "volume attribute path is \"../etc\": write a directory of the image such as usr/lib, without ..",
            ),
            (
                &[("image", "a"), ("path", "")],
                "volume attribute path is \"\": write a directory of the image such as usr/lib, without ..",
            ),
        ];
        for (pairs, message) in cases {
            assert_eq!(parse(pairs).expect_err(message).to_string(), message);
        }
    }

    #[test]
    fn without_the_csidriver_object_no_namespace_is_believed() {
        let attributes = parse(&[("clipImage", "a")]).expect("valid");
        assert_eq!(
            attributes.pod.require_namespace(),
            Err(VolumeAttributesError::NoPodInfo)
        );
    }
}
