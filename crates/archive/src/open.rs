//! Opening an archive: untrusted bytes in, checked values out.

use crate::{
    Digest, Entry, Head, SeekTable, Window,
    codec::{self, DecodeError},
    columns,
    entry::{EntryKind, Segment},
    head::{LayerRef, Part},
    header::{HEADER_LEN, Header, HeaderError},
    limits::{self, EntryBudget},
    merge::{MergeError, merge},
    section::SeekTableError,
    tree::Tree,
    write::HEAD_PREFIX_LEN,
};

/// Why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A part does not decode.
    #[error("archive damaged: {0}; fetch it or index again")]
    Decode(#[from] DecodeError),
    /// A part lies outside the file.
    #[error("archive damaged: layer {layer} points outside the file; fetch it or index again")]
    PartOutside {
        /// Which layer.
        layer: usize,
    },
    /// More layers than allowed.
    #[error("archive claims {0} layers, more than the limit of {max}", max = limits::LAYERS_MAX)]
    TooManyLayers(usize),
    /// More than allowed, of something that every layer adds to.
    #[error("archive claims {claimed} bytes of {what}, more than the limit of {limit}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How much it claims.
        claimed: u128,
        /// How much is allowed.
        limit: u64,
    },
    /// The spans of a layer make no sense.
    #[error("archive damaged: layer {layer}: {source}; index again")]
    SeekTable {
        /// Which layer.
        layer: usize,
        /// What is wrong.
        source: SeekTableError,
    },
    /// An entry of a layer makes no sense.
    #[error("archive damaged: layer {layer}, entry {path:?}: {problem}; index again")]
    Entry {
        /// Which layer.
        layer: usize,
        /// The entry's path, for people.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The layers cannot be laid over each other.
    #[error(transparent)]
    Merge(#[from] MergeError),
}

/// An opened archive. The head is decoded; sections are decoded when asked for.
#[derive(Debug, Clone)]
pub struct Archive<B = Vec<u8>> {
    bytes: B,
    sections_at: usize,
    head: Head,
}

/// Numbers for people, from a full check of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Names in the merged tree, the root not counted.
    pub files: u64,
    /// Layers.
    pub layers: u64,
    /// Sum of the blobs' sizes in bytes.
    pub image_bytes: u64,
    /// Sum of the uncompressed tars' sizes in bytes.
    pub unpacked_bytes: u64,
    /// Size of the archive in bytes.
    pub archive_bytes: u64,
    /// Places from which decoding can start.
    pub seek_points: u64,
}

impl<B: AsRef<[u8]>> Archive<B> {
    /// Checks header and head. `bytes` is the whole file, as a vector or a memory map.
    pub fn open(bytes: B) -> Result<Self, OpenError> {
        let file = bytes.as_ref();
        let header = Header::decode(file)?;
        let sections_at = HEADER_LEN + header.head_len as usize;
        let head = decode_head(&file[HEADER_LEN..sections_at])?;
        check_sizes(&head)?;
        for (index, layer) in head.layers.iter().enumerate() {
            for part in [&layer.entries, &layer.spans, &layer.windows] {
                let end = part.offset.checked_add(part.len);
                if end.is_none_or(|end| end > header.sections_len) {
                    return Err(OpenError::PartOutside { layer: index });
                }
            }
        }
        Ok(Self {
            bytes,
            sections_at,
            head,
        })
    }

    /// What the archive says about its image.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// Decodes and checks the entries of layer `index`.
    pub fn entries(&self, index: usize) -> Result<Vec<Entry>, OpenError> {
        self.entries_within(index, &mut EntryBudget::default())
    }

    fn entries_within(
        &self,
        index: usize,
        budget: &mut EntryBudget,
    ) -> Result<Vec<Entry>, OpenError> {
        let layer = &self.head.layers[index];
        let raw = self.part("list of entries", &layer.entries, limits::TREE_BYTES_MAX)?;
        let entries = columns::decode_entries(&raw, |entry| {
            budget.admit(entry).map_err(|problem| problem.to_string())
        })?;
        for entry in &entries {
            check_entry(layer, entry).map_err(|problem| OpenError::Entry {
                layer: index,
                path: String::from_utf8_lossy(&entry.path).into_owned(),
                problem,
            })?;
        }
        Ok(entries)
    }

    /// Decodes and checks the spans of layer `index`; the windows stay packed, see [`Self::windows`].
    pub fn seek_table(&self, index: usize) -> Result<SeekTable, OpenError> {
        let layer = &self.head.layers[index];
        let raw = self.part("span table", &layer.spans, limits::SPAN_BYTES_MAX)?;
        let spans = columns::decode_spans(&raw)?;
        let table = SeekTable {
            tar_size: layer.tar_size,
            spans,
            windows: Vec::new(),
        };
        table
            .check_spans(layer.size, None)
            .map_err(|source| OpenError::SeekTable {
                layer: index,
                source,
            })?;
        Ok(table)
    }

    /// Decodes and checks the windows of layer `index`: needed only when a span is decoded.
    pub fn windows(&self, index: usize) -> Result<Vec<Window>, OpenError> {
        let layer = &self.head.layers[index];
        let raw = self.part("seek windows", &layer.windows, limits::WINDOW_BYTES_MAX)?;
        // Two bytes make an empty window of 48 in memory; but there are no more windows than spans.
        let spans_at_most = layer.spans.raw_len / SPAN_BYTES_MIN;
        let windows = columns::decode_windows(&raw, spans_at_most)?;
        match windows.iter().position(|window| !window.is_well_formed()) {
            None => Ok(windows),
            Some(bad) => Err(OpenError::SeekTable {
                layer: index,
                source: SeekTableError::Window(bad),
            }),
        }
    }

    /// Lays the layers over each other.
    pub fn merge(&self) -> Result<Tree, OpenError> {
        let mut budget = EntryBudget::default();
        let layers = (0..self.head.layers.len())
            .map(|index| self.entries_within(index, &mut budget))
            .collect::<Result<Vec<_>, _>>()?;
        let tar_sizes = self
            .head
            .layers
            .iter()
            .map(|layer| layer.tar_size)
            .collect();
        Ok(merge(layers, tar_sizes, self.head.runtime_dirs)?)
    }

    /// Decodes and checks everything.
    pub fn verify(&self) -> Result<Summary, OpenError> {
        Ok(self.verify_and_merge()?.0)
    }

    /// The same, for those who want the merged tree, too.
    pub fn verify_and_merge(&self) -> Result<(Summary, Tree), OpenError> {
        let mut seek_points = 0;
        for index in 0..self.head.layers.len() {
            let table = self.seek_table(index)?;
            let windows = self.windows(index)?.len();
            table
                .check_spans(self.head.layers[index].size, Some(windows))
                .map_err(|source| OpenError::SeekTable {
                    layer: index,
                    source,
                })?;
            seek_points += table.spans.len() as u64;
        }
        let tree = self.merge()?;
        let summary = Summary {
            files: tree.name_count(),
            layers: self.head.layers.len() as u64,
            image_bytes: self.head.layers.iter().map(|layer| layer.size).sum(),
            unpacked_bytes: self.head.layers.iter().map(|layer| layer.tar_size).sum(),
            archive_bytes: self.bytes().len() as u64,
            seek_points,
        };
        Ok((summary, tree))
    }

    fn part(&self, what: &'static str, part: &Part, limit: usize) -> Result<Vec<u8>, DecodeError> {
        let frame = &self.bytes()[self.sections_at + part.offset as usize..][..part.len as usize];
        codec::decompress(what, frame, part.raw_len, limit, &part.digest)
    }
}

/// A span's digest, and a byte for each of its four other fields.
const SPAN_BYTES_MIN: u64 = 32 + 4;

/// Sizes that a head claims, each and in sum: everything behind this may add them up.
fn check_sizes(head: &Head) -> Result<(), OpenError> {
    let layers = &head.layers;
    if layers.len() > limits::LAYERS_MAX {
        return Err(OpenError::TooManyLayers(layers.len()));
    }
    let largest = |size: fn(&LayerRef) -> u64| layers.iter().map(size).max().unwrap_or(0).into();
    let sum = |size: fn(&LayerRef) -> u64| layers.iter().map(|layer| u128::from(size(layer))).sum();
    let claims: [(_, u128, u64); 5] = [
        (
            "compressed layer",
            largest(|layer| layer.size),
            limits::BLOB_BYTES_MAX,
        ),
        (
            "layer",
            largest(|layer| layer.tar_size),
            limits::TAR_BYTES_MAX,
        ),
        (
            "entries",
            sum(|layer| layer.entries.raw_len),
            limits::TREE_BYTES_MAX as u64,
        ),
        (
            "span tables",
            sum(|layer| layer.spans.raw_len),
            limits::SPAN_BYTES_MAX as u64,
        ),
        (
            "seek windows",
            sum(|layer| layer.windows.raw_len),
            limits::WINDOW_BYTES_MAX as u64,
        ),
    ];
    match claims
        .into_iter()
        .find(|(_, claimed, limit)| *claimed > u128::from(*limit))
    {
        Some((what, claimed, limit)) => Err(OpenError::TooLarge {
            what,
            claimed,
            limit,
        }),
        None => Ok(()),
    }
}

fn decode_head(part: &[u8]) -> Result<Head, DecodeError> {
    let damaged = DecodeError::Frame {
        what: "head",
        expected: HEAD_PREFIX_LEN,
    };
    let (raw_len, rest) = part.split_first_chunk::<8>().ok_or(damaged)?;
    let damaged = DecodeError::Frame {
        what: "head",
        expected: HEAD_PREFIX_LEN,
    };
    let (digest, frame) = rest.split_first_chunk::<32>().ok_or(damaged)?;
    let raw_len = u64::from_le_bytes(*raw_len);
    let raw = codec::decompress(
        "head",
        frame,
        raw_len,
        limits::HEAD_BYTES_MAX,
        &Digest::from_bytes(*digest),
    )?;
    codec::decode("head", &raw)
}

fn check_entry(layer: &LayerRef, entry: &Entry) -> Result<(), &'static str> {
    check_path(&entry.path)?;
    if entry.mode > 0o7777 {
        return Err("its mode has bits beyond the permission bits");
    }
    if entry.mtime_nsec >= 1_000_000_000 {
        return Err("its nanoseconds are a second or more");
    }
    match &entry.kind {
        EntryKind::File { size, segments } => check_segments(layer.tar_size, *size, segments),
        EntryKind::Symlink { target }
            if target.is_empty() || target.len() > limits::TARGET_BYTES_MAX =>
        {
            Err("its link target is empty or longer than 4,095 bytes")
        }
        EntryKind::Hardlink { target } if target.len() > limits::PATH_BYTES_MAX => {
            Err("its link target is longer than 4,096 bytes")
        }
        EntryKind::Hardlink { target } => check_path(target),
        _ => Ok(()),
    }
}

fn check_path(path: &[u8]) -> Result<(), &'static str> {
    if path.is_empty() {
        return Ok(());
    }
    for name in path.split(|&b| b == b'/') {
        if name.is_empty() || name == b"." || name == b".." {
            return Err("its path is not normalised");
        }
        if name.len() > limits::NAME_BYTES_MAX {
            return Err("a component of its path is longer than 255 bytes");
        }
    }
    Ok(())
}

fn check_segments(tar_size: u64, size: u64, segments: &[Segment]) -> Result<(), &'static str> {
    let mut end = 0u64;
    for segment in segments {
        let logical_end = segment.logical.checked_add(segment.length);
        let tar_end = segment.tar_offset.checked_add(segment.length);
        if segment.length == 0 || segment.logical < end {
            return Err("its segments overlap or are empty");
        }
        if logical_end.is_none_or(|end| end > size) || tar_end.is_none_or(|end| end > tar_size) {
            return Err("its content lies outside the layer");
        }
        end = segment.logical + segment.length;
    }
    Ok(())
}
