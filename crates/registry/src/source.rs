//! Where an image comes from: a registry, or a directory in OCI image layout (`oci:DIR[:TAG]`).
//!
//! Layouts follow <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::ResolveError;
use crate::manifest::{Descriptor, Index};
use crate::reference::{Reference, ReferenceError, is_tag};

/// An image, by the place where it is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// In a registry.
    Registry(Reference),
    /// In a directory. Without a tag, the one image there is (or the one for the platform asked for).
    Layout {
        /// The layout's directory.
        dir: PathBuf,
        /// Which of its images.
        tag: Option<String>,
    },
}

/// What stands as the registry of an image that came from a layout.
pub const LAYOUT_REGISTRY: &str = "oci-layout";

const LAYOUT_PREFIX: &str = "oci:";

/// Where a tag is written in a layout's index.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

impl FromStr for ImageSource {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<ImageSource, ReferenceError> {
        match text.strip_prefix(LAYOUT_PREFIX) {
            None => text.parse().map(ImageSource::Registry),
            Some("") => Err(ReferenceError::no_directory(text)),
            Some(rest) => Ok(match rest.rsplit_once(':') {
                Some((dir, tag)) if !dir.is_empty() && is_tag(tag) => ImageSource::Layout {
                    dir: dir.into(),
                    tag: Some(tag.to_owned()),
                },
                _ => ImageSource::Layout {
                    dir: rest.into(),
                    tag: None,
                },
            }),
        }
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageSource::Registry(reference) => reference.fmt(f),
            ImageSource::Layout { dir, tag } => {
                write!(f, "{LAYOUT_PREFIX}{}", dir.display())?;
                tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
            }
        }
    }
}

/// The file of a blob. The digest was checked when it was parsed, so it leads nowhere else.
pub(crate) fn blob_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs/sha256").join(digest.hex())
}

/// The images in a layout that `tag` may mean: one, or all if there is no tag.
pub(crate) async fn layout_entries(
    dir: &Path,
    tag: Option<&str>,
) -> Result<Vec<Descriptor>, ResolveError> {
    let error = |cause: String| ResolveError::Layout {
        dir: dir.to_owned(),
        cause,
    };
    let text = tokio::fs::read(dir.join("index.json"));
    let text = text.await.map_err(|e| error(format!("index.json: {e}")))?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|e| error(format!("index.json: {e}")))?;
    let Some(tag) = tag else {
        return Ok(index.manifests);
    };
    let name = |descriptor: &Descriptor| descriptor.annotations.get(REF_NAME).cloned();
    // Some writers put the whole reference there.
    let is_it =
        |name: &str| name == tag || name.rsplit_once(':').is_some_and(|(_, end)| end == tag);
    let tags = index.manifests.iter().filter_map(name).collect();
    let found = index
        .manifests
        .into_iter()
        .find(|d| name(d).is_some_and(|name| is_it(&name)));
    match found {
        Some(descriptor) => Ok(vec![descriptor]),
        None => Err(ResolveError::NoSuchTag {
            dir: dir.to_owned(),
            tag: Some(tag.to_owned()),
            tags,
        }),
    }
}

/// The error for a layout with several images of which none was chosen.
pub(crate) fn ambiguous(dir: &Path, entries: &[Descriptor]) -> ResolveError {
    let tags = entries
        .iter()
        .filter_map(|d| d.annotations.get(REF_NAME).cloned())
        .collect();
    ResolveError::NoSuchTag {
        dir: dir.to_owned(),
        tag: None,
        tags,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_reference_or_a_layout() {
        let layout = |dir: &str, tag: Option<&str>| ImageSource::Layout {
            dir: dir.into(),
            tag: tag.map(str::to_owned),
        };
        for (text, source) in [
            ("oci:img", layout("img", None)),
            ("oci:/a/b:v1", layout("/a/b", Some("v1"))),
            ("oci:/a:b/c", layout("/a:b/c", None)),
            ("oci:./x:latest", layout("./x", Some("latest"))),
            ("alpine", ImageSource::Registry("alpine".parse().unwrap())),
        ] {
            assert_eq!(text.parse(), Ok(source), "{text}");
        }
        assert!("oci:".parse::<ImageSource>().is_err());
        assert_eq!(
            "oci:/a/b:v1".parse::<ImageSource>().unwrap().to_string(),
            "oci:/a/b:v1"
        );
    }
}
