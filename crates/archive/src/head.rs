//! The head: which image this is, and where its layers' sections lie.

use crate::Digest;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Raised when [`crate::erofs`] writes other bytes for the same tree: nodes then expand archives anew.
pub const EROFS_WRITER_VERSION: u32 = 1;

/// What an archive says about its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Registry host and port, as Docker normalises it (`docker.io`, `127.0.0.1:5000`), or
    /// `oci-layout` for an image read from a directory.
    pub registry: String,
    /// Repository inside the registry (`library/alpine`), or the directory of the layout.
    pub repository: String,
    /// The tag that was asked for, if one was.
    pub tag: Option<String>,
    /// Digest of the manifest of the chosen platform.
    pub manifest_digest: Digest,
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// The image configuration, verbatim (OCI image-spec, config.md).
    #[serde(with = "crate::codec::bytes")]
    pub config: Vec<u8>,
    /// What became of `/proc`, `/sys` and `/dev`.
    pub runtime_dirs: RuntimeDirs,
    /// How the sections were made.
    pub indexer: Indexer,
    /// The layers, base first.
    pub layers: Vec<LayerRef>,
}

/// What a section depends on beside its layer. Only where this is the same may an archive take over
/// a section of another one. The default is no real one. As text, `VERSION.TAR.BLOB`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Indexer {
    /// Raised when the same layer gives another section.
    pub version: u32,
    /// Limit of a span's decoded bytes.
    pub span_tar_max: u64,
    /// Limit of a span's compressed bytes.
    pub span_blob_max: u64,
}

/// What was given as an [`Indexer`] is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not say how sections were made: expected VERSION.TAR.BLOB, three numbers")]
pub struct InvalidIndexer(pub String);

/// `/proc`, `/sys` and `/dev` belong to the container runtime; what layers hold there is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RuntimeDirs {
    /// The three directories do not exist. A runtime creates them in its writable overlay.
    #[default]
    Omit,
    /// The three directories exist and are empty (mode 0755, owner 0:0): mount points for a
    /// runtime whose root is read-only.
    Empty,
}

/// A layer and its section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRef {
    /// Digest of the blob in the registry.
    pub digest: Digest,
    /// Digest of the uncompressed tar (OCI image-spec, config.md, "Layer DiffID").
    pub diff_id: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Size of the uncompressed tar in bytes.
    pub tar_size: u64,
    /// Media type of the blob.
    pub media_type: String,
    /// Files, directories and everything else in the layer; whiteouts not counted.
    pub files: u64,
    /// The entries.
    pub entries: Part,
    /// The span table.
    pub spans: Part,
    /// The windows.
    pub windows: Part,
}

/// One compressed frame inside the sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Position relative to the start of the sections.
    pub offset: u64,
    /// Compressed length.
    pub len: u64,
    /// Decoded length.
    pub raw_len: u64,
    /// Digest of the decoded bytes.
    pub digest: Digest,
}

impl fmt::Display for Indexer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tar, blob) = (self.span_tar_max, self.span_blob_max);
        write!(f, "{}.{tar}.{blob}", self.version)
    }
}

impl FromStr for Indexer {
    type Err = InvalidIndexer;

    fn from_str(text: &str) -> Result<Self, InvalidIndexer> {
        let parse = || {
            let mut numbers = text.splitn(3, '.');
            Some(Self {
                version: numbers.next()?.parse().ok()?,
                span_tar_max: numbers.next()?.parse().ok()?,
                span_blob_max: numbers.next()?.parse().ok()?,
            })
        };
        parse().ok_or_else(|| InvalidIndexer(text.to_owned()))
    }
}

impl LayerRef {
    /// Identity of the layer's section: covers the blob, the tar, the entries, the spans with
    /// their digests, and the windows. It keys the node's cache, so a section that lies harms
    /// only its own users.
    pub fn section_digest(&self) -> Digest {
        Digest::of(&crate::codec::encode(&(
            self.digest,
            self.diff_id,
            self.size,
            self.tar_size,
            self.entries.digest,
            self.spans.digest,
            self.windows.digest,
        )))
    }
}

impl Head {
    /// Identity of the merged tree: everything that [`crate::merge()`] reads. It keys the node's
    /// EROFS images, together with [`crate::merge::MERGE_VERSION`] and [`EROFS_WRITER_VERSION`].
    pub fn tree_digest(&self) -> Digest {
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|layer| (layer.entries.digest, layer.tar_size))
            .collect();
        Digest::of(&crate::codec::encode(&(
            crate::merge::MERGE_VERSION,
            EROFS_WRITER_VERSION,
            self.runtime_dirs,
            layers,
        )))
    }

    /// `registry/repository[:tag]`, as a person would write it.
    pub fn image_name(&self) -> String {
        let tag = self
            .tag
            .as_ref()
            .map(|tag| format!(":{tag}"))
            .unwrap_or_default();
        match self.registry.as_str() {
            "oci-layout" => format!("oci:{}{tag}", self.repository),
            registry => format!("{registry}/{}{tag}", self.repository),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_indexer_survives_text_and_refuses_anything_else() {
        let indexer = Indexer {
            version: 7,
            span_tar_max: 2 << 20,
            span_blob_max: 512 << 10,
        };
        assert_eq!(indexer.to_string(), "7.2097152.524288");
        assert_eq!(indexer.to_string().parse(), Ok(indexer));
        for wrong in [
            "",
            "7",
            "7.1",
            "7.1.2.3",
            "7..2",
            "-7.1.2",
            "4294967296.1.2",
        ] {
            assert!(wrong.parse::<Indexer>().is_err(), "{wrong}");
        }
    }
}
