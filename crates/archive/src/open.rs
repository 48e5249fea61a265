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
use std::panic::resume_unwind;

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
        const WHAT: &str = "list of entries";
        let part = &self.head.layers[index].entries;
        let frame = self.frame(part);
        let raw = codec::decompress_unchecked(WHAT, frame, part.raw_len, limits::TREE_BYTES_MAX)?;
        let check_digest = || codec::check_digest(WHAT, &raw, &part.digest);
        let (digest, entries) = beside(raw.len(), check_digest, || {
            self.decode_entries(index, &raw, budget)
        });
        digest?;
        entries
    }

    /// The decoder trusts no byte, checked by its digest or not: whoever writes an archive writes the digests, too.
    fn decode_entries(
        &self,
        index: usize,
        raw: &[u8],
        budget: &mut EntryBudget,
    ) -> Result<Vec<Entry>, OpenError> {
        let entries = columns::decode_entries(raw, |entry| {
            budget.admit(entry).map_err(|problem| problem.to_string())
        })?;
        check_entries(&self.head.layers[index], &entries).map_err(|(entry, problem)| {
            OpenError::Entry {
                layer: index,
                path: String::from_utf8_lossy(&entry.path).into_owned(),
                problem,
            }
        })?;
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
        codec::decompress(what, self.frame(part), part.raw_len, limit, &part.digest)
    }

    fn frame(&self, part: &Part) -> &[u8] {
        &self.bytes()[self.sections_at + part.offset as usize..][..part.len as usize]
    }
}

/// Below this a thread takes longer to start than the digest takes to compute.
const WORTH_A_THREAD: usize = 256 << 10;

/// Does both at once if `bytes`, which both go through, are many: a list of 125,000 entries takes as long to hash as to
/// decode.
fn beside<A: Send, B>(
    bytes: usize,
    aside: impl FnOnce() -> A + Send,
    here: impl FnOnce() -> B,
) -> (A, B) {
    if bytes < WORTH_A_THREAD {
        return (aside(), here());
    }
    std::thread::scope(|scope| {
        let aside = scope.spawn(aside);
        let here = here();
        let aside = aside.join();
        (aside.unwrap_or_else(|panic| resume_unwind(panic)), here)
    })
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

/// Checks all entries of a layer, and tells of the first that is wrong.
fn check_entries<'a>(
    layer: &LayerRef,
    entries: &'a [Entry],
) -> Result<(), (&'a Entry, &'static str)> {
    // Entries of one directory stand together: what leads to it is checked with the first of them.
    let mut checked: &[u8] = b"";
    for entry in entries {
        let (leading, name) = split_behind_slash(&entry.path);
        let path = match leading == checked && !name.is_empty() {
            true => check_name(name),
            false => check_path(&entry.path),
        };
        checked = leading;
        path.and_then(|()| check_entry(layer, entry))
            .map_err(|problem| (entry, problem))?;
    }
    Ok(())
}

/// What leads to the last component, its slash included, and the component.
fn split_behind_slash(path: &[u8]) -> (&[u8], &[u8]) {
    let slash = path.iter().rposition(|&byte| byte == b'/');
    path.split_at(slash.map_or(0, |slash| slash + 1))
}

/// Everything but the path.
fn check_entry(layer: &LayerRef, entry: &Entry) -> Result<(), &'static str> {
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
    path.split(|&b| b == b'/').try_for_each(check_name)
}

fn check_name(name: &[u8]) -> Result<(), &'static str> {
    if name.is_empty() || name == b"." || name == b".." {
        return Err("its path is not normalised");
    }
    if name.len() > limits::NAME_BYTES_MAX {
        return Err("a component of its path is longer than 255 bytes");
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
