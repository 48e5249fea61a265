//! Wraps raw parts into an archive: lengths, digests and zstd frames are right, whatever the parts hold. Without
//! this no fuzzer would ever get past a SHA-256.

use clip_archive::{
    Digest, Head, LayerRef, RuntimeDirs, codec,
    head::{Indexer, Part},
    header::{HEADER_LEN, Header},
};

/// A layer whose parts are encoded already.
#[derive(Debug, Clone, Default)]
pub struct RawLayer {
    /// Claimed size of the blob.
    pub size: u64,
    /// Claimed size of the tar.
    pub tar_size: u64,
    /// Encoded entries.
    pub entries: Vec<u8>,
    /// Encoded spans.
    pub spans: Vec<u8>,
    /// Encoded windows.
    pub windows: Vec<u8>,
}

/// An archive of `layers`; `adjust` may falsify the head before it is encoded.
pub fn archive(
    layers: &[RawLayer],
    runtime_dirs: RuntimeDirs,
    adjust: impl FnOnce(&mut Head),
) -> Vec<u8> {
    archive_with(frame, layers, runtime_dirs, adjust)
}

/// The same with another way to make frames.
pub fn archive_with(
    frame: impl Fn(&[u8]) -> Vec<u8>,
    layers: &[RawLayer],
    runtime_dirs: RuntimeDirs,
    adjust: impl FnOnce(&mut Head),
) -> Vec<u8> {
    let mut sections = Vec::new();
    let mut add_part = |raw: &[u8]| {
        let frame = frame(raw);
        let part = Part {
            offset: sections.len() as u64,
            len: frame.len() as u64,
            raw_len: raw.len() as u64,
            digest: Digest::of(raw),
        };
        sections.extend_from_slice(&frame);
        part
    };
    let layers = layers.iter().map(|layer| LayerRef {
        digest: Digest::of(&layer.spans),
        diff_id: Digest::of(&layer.entries),
        size: layer.size,
        tar_size: layer.tar_size,
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        files: 0,
        entries: add_part(&layer.entries),
        spans: add_part(&layer.spans),
        windows: add_part(&layer.windows),
    });
    let mut head = Head {
        registry: "registry.example".to_owned(),
        repository: "fuzz".to_owned(),
        tag: None,
        manifest_digest: Digest::of(b""),
        platform: "linux/amd64".to_owned(),
        config: b"{}".to_vec(),
        runtime_dirs,
        indexer: Indexer::default(),
        layers: layers.collect(),
    };
    adjust(&mut head);
    with_raw_head(&codec::encode(&head), &sections)
}

/// An archive with this encoded head and these sections.
pub fn with_raw_head(raw_head: &[u8], sections: &[u8]) -> Vec<u8> {
    let frame = frame(raw_head);
    let header = Header {
        head_len: (8 + 32 + frame.len()) as u64,
        sections_len: sections.len() as u64,
    };
    let mut file = Vec::with_capacity(HEADER_LEN + 40 + frame.len() + sections.len());
    file.extend_from_slice(&header.encode());
    file.extend_from_slice(&(raw_head.len() as u64).to_le_bytes());
    file.extend_from_slice(Digest::of(raw_head).as_bytes());
    file.extend_from_slice(&frame);
    file.extend_from_slice(sections);
    file
}

/// A zstd frame (RFC 8878, section 3.1.1) of uncompressed blocks: a hundred times faster to make than a compressed one.
pub fn frame(raw: &[u8]) -> Vec<u8> {
    const BLOCK_MAX: usize = 128 << 10;
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    frame.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    let mut blocks = raw.chunks(BLOCK_MAX).peekable();
    if blocks.peek().is_none() {
        frame.extend_from_slice(&[1, 0, 0]);
    }
    while let Some(block) = blocks.next() {
        let is_last = u32::from(blocks.peek().is_none());
        let header = is_last | (block.len() as u32) << 3;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame
}
