//! Writing an archive: sections first, then the head that points at them.

use crate::{
    Digest, Head, LayerRef, LayerSection, RuntimeDirs, codec, columns,
    entry::EntryKind,
    head::{Indexer, Part},
    header::{HEADER_LEN, Header},
};
use std::collections::HashMap;

/// What the writer needs to know about the image beside its layers.
#[derive(Debug, Clone)]
pub struct ImageInfo {
    /// See [`Head::registry`].
    pub registry: String,
    /// See [`Head::repository`].
    pub repository: String,
    /// See [`Head::tag`].
    pub tag: Option<String>,
    /// See [`Head::manifest_digest`].
    pub manifest_digest: Digest,
    /// See [`Head::platform`].
    pub platform: String,
    /// See [`Head::config`].
    pub config: Vec<u8>,
    /// See [`Head::runtime_dirs`].
    pub runtime_dirs: RuntimeDirs,
    /// See [`Head::indexer`].
    pub indexer: Indexer,
}

/// Collects layer sections, then yields the file. Equal input gives equal bytes.
#[derive(Debug, Default)]
pub struct ArchiveWriter {
    sections: Vec<u8>,
    layers: Vec<LayerRef>,
    parts: HashMap<Digest, Part>,
}

impl ArchiveWriter {
    /// An archive without layers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the next layer, base first. Layers that have parts in common share their bytes.
    pub fn add_layer(&mut self, section: &LayerSection) {
        let is_file = |kind: &EntryKind| !matches!(kind, EntryKind::Whiteout | EntryKind::Opaque);
        let layer = LayerRef {
            digest: section.digest,
            diff_id: section.diff_id,
            size: section.size,
            tar_size: section.seek.tar_size,
            media_type: section.media_type.clone(),
            files: section
                .entries
                .iter()
                .filter(|entry| is_file(&entry.kind))
                .count() as u64,
            entries: self.add_part(&columns::encode_entries(&section.entries)),
            spans: self.add_part(&columns::encode_spans(&section.seek.spans)),
            windows: self.add_part(&columns::encode_windows(&section.seek.windows)),
        };
        self.layers.push(layer);
    }

    /// The finished file.
    pub fn finish(self, image: ImageInfo) -> Vec<u8> {
        let head = Head {
            registry: image.registry,
            repository: image.repository,
            tag: image.tag,
            manifest_digest: image.manifest_digest,
            platform: image.platform,
            config: image.config,
            runtime_dirs: image.runtime_dirs,
            indexer: image.indexer,
            layers: self.layers,
        };
        let raw_head = codec::encode(&head);
        let mut head_part = Vec::with_capacity(HEAD_PREFIX_LEN + raw_head.len() / 2);
        head_part.extend_from_slice(&(raw_head.len() as u64).to_le_bytes());
        head_part.extend_from_slice(Digest::of(&raw_head).as_bytes());
        head_part.extend_from_slice(&codec::compress(&raw_head));
        let header = Header {
            head_len: head_part.len() as u64,
            sections_len: self.sections.len() as u64,
        };
        let mut file = Vec::with_capacity(HEADER_LEN + head_part.len() + self.sections.len());
        file.extend_from_slice(&header.encode());
        file.extend_from_slice(&head_part);
        file.extend_from_slice(&self.sections);
        file
    }

    fn add_part(&mut self, raw: &[u8]) -> Part {
        let digest = Digest::of(raw);
        if let Some(same) = self.parts.get(&digest) {
            return *same;
        }
        let frame = codec::compress(raw);
        let part = Part {
            offset: self.sections.len() as u64,
            len: frame.len() as u64,
            raw_len: raw.len() as u64,
            digest,
        };
        self.sections.extend_from_slice(&frame);
        self.parts.insert(digest, part);
        part
    }
}

/// The head's frame is preceded by its decoded length (8 bytes, little endian) and digest (32 bytes).
pub(crate) const HEAD_PREFIX_LEN: usize = 8 + 32;
