//! What a layer holds, from its media type and annotations: a tar, or one file of an artifact.
//!
//! | layer | of an image | of an artifact (no diffIDs) |
//! |---|---|---|
//! | ModelPack: media type `…vnd.cncf.model…` or annotation `org.cncf.model.filepath` | | `….tar…`: tar; else file |
//! | ORAS: annotation `org.opencontainers.image.title` | | file, or with `io.deis.oras.content.unpack` a tar below it |
//! | media type `….tar`, `….tar+gzip`, `….tar.gzip`, `….tar+zstd` | tar | tar |
//! | any other, with one of the annotations | file | |
//! | any other | refused | refused |
//!
//! The compression of a tar is told from its first bytes; a file is never decompressed. Sources:
//! <https://github.com/modelpack/model-spec> (`specs-go/v1`) and <https://github.com/oras-project/oras-go> (`content/file`).

use crate::{IndexError, digest_of};
use clip_archive::limits;
use clip_index::{FileLayer, LayerContent};
use clip_registry::{LayerDescriptor, ResolvedImage};
use jiff::Timestamp;
use serde::Deserialize;

const TITLE: &str = "org.opencontainers.image.title";
const CREATED: &str = "org.opencontainers.image.created";
const UNPACK: &str = "io.deis.oras.content.unpack";
const MODEL_PATH: &str = "org.cncf.model.filepath";
const MODEL_METADATA: &str = "org.cncf.model.file.metadata+json";
const MODEL_TYPE: &str = "application/vnd.cncf.model.";

/// Of what ModelPack says about a file, what its own tool restores.
#[derive(Debug, Default, Deserialize)]
struct ModelFile {
    #[serde(default)]
    mode: u32,
    #[serde(default)]
    mtime: Option<String>,
}

/// What `layer`, one of `image`'s, holds.
pub fn layer_content(
    image: &ResolvedImage,
    layer: &LayerDescriptor,
) -> Result<LayerContent, IndexError> {
    let annotation = |key: &str| layer.annotations.get(key).filter(|text| !text.is_empty());
    let is_artifact = layer.diff_id.is_none();
    let is_tar = is_tar(&layer.media_type);
    let is_model = layer.media_type.starts_with(MODEL_TYPE) || annotation(MODEL_PATH).is_some();
    let tar = || LayerContent::Tar { top: None };
    match (annotation(MODEL_PATH), annotation(TITLE)) {
        _ if is_tar && (is_model || !is_artifact) => Ok(tar()),
        (None, Some(title)) if is_artifact && annotation(UNPACK).is_some_and(|it| it == "true") => {
            let top = Some(confined(layer, title)?);
            Ok(LayerContent::Tar { top })
        }
        (Some(name), _) | (None, Some(name)) => file(image, layer, name),
        (None, None) if is_tar => Ok(tar()),
        (None, None) => Err(IndexError::MediaType {
            layer: digest_of(&layer.digest),
            media_type: layer.media_type.clone(),
        }),
    }
}

/// OCI writes `…layer.v1.tar+gzip`, Docker `…rootfs.diff.tar.gzip`.
fn is_tar(media_type: &str) -> bool {
    ["+gzip", "+zstd", ".gzip", ".zstd"]
        .iter()
        .find_map(|suffix| media_type.strip_suffix(suffix))
        .unwrap_or(media_type)
        .ends_with(".tar")
}

fn file(
    image: &ResolvedImage,
    layer: &LayerDescriptor,
    name: &str,
) -> Result<LayerContent, IndexError> {
    let path = confined(layer, name)?;
    if path.is_empty() {
        return Err(bad_name(layer, name, "it names no file"));
    }
    let model: ModelFile = layer
        .annotations
        .get(MODEL_METADATA)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let created = || {
        let own = layer.annotations.get(CREATED);
        own.or_else(|| image.annotations.get(CREATED)).cloned()
    };
    let mtime = model
        .mtime
        .or_else(created)
        .and_then(|text| text.parse().ok());
    let mtime = mtime.unwrap_or(Timestamp::UNIX_EPOCH);
    let nanoseconds = mtime.as_nanosecond();
    Ok(LayerContent::File(FileLayer {
        path,
        mode: match model.mode & 0o777 {
            0 => 0o644,
            mode => mode as u16,
        },
        mtime: nanoseconds.div_euclid(1_000_000_000) as i64,
        mtime_nsec: nanoseconds.rem_euclid(1_000_000_000) as u32,
    }))
}

/// A name as a path from the root. `..` is refused, as ORAS does; a leading `/` is the image's own root.
fn confined(layer: &LayerDescriptor, name: &str) -> Result<Vec<u8>, IndexError> {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(bad_name(layer, name, "it leads out of its directory")),
            _ if part.contains('\0') => return Err(bad_name(layer, name, "it holds a NUL byte")),
            _ if part.len() > limits::NAME_BYTES_MAX => {
                return Err(bad_name(
                    layer,
                    name,
                    "a component is longer than 255 bytes",
                ));
            }
            _ => parts.push(part.as_bytes()),
        }
    }
    let path = parts.join(&b'/');
    match path.len() > limits::PATH_BYTES_MAX {
        true => Err(bad_name(layer, name, "it is longer than 4,096 bytes")),
        false => Ok(path),
    }
}

fn bad_name(layer: &LayerDescriptor, name: &str, problem: &'static str) -> IndexError {
    IndexError::FileName {
        layer: digest_of(&layer.digest),
        name: name.to_owned(),
        problem,
    }
}
