//! Opening an archive: untrusted bytes in, checked values out.

use crate::{
    Digest, Entry, Head, SeekTable, Window,
    codec::{self, DecodeError},
    columns,
    entry::{EntryKind, Segment},
    head::{LayerRef, Part},
    header::{HEADER_LEN, Header, HeaderError},
    limits::{self, EntryBudget},
    merge::{MergeError, Merger},
    section::SeekTableError,
    tree::Tree,
};
use std::{
    panic::resume_unwind,
    sync::{Arc, mpsc},
    thread,
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
        let head = Head::decode(&file[HEADER_LEN..sections_at])?;
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
        let raw = self.raw_entries(index)?;
        let digest = &self.head.layers[index].entries.digest;
        let check_digest = || codec::check_digest(ENTRIES, &raw, digest);
        let (checked, entries) =
            beside(raw.len(), check_digest, || self.decode_entries(index, &raw));
        checked?;
        entries
    }

    fn raw_entries(&self, index: usize) -> Result<Vec<u8>, DecodeError> {
        let part = &self.head.layers[index].entries;
        let limit = limits::TREE_BYTES_MAX;
        codec::decompress_unchecked(ENTRIES, self.frame(part), part.raw_len, limit)
    }

    /// The decoder trusts no byte, checked by its digest or not: whoever writes an archive writes the digests, too.
    fn decode_entries(&self, index: usize, raw: &[u8]) -> Result<Vec<Entry>, OpenError> {
        let mut budget = EntryBudget::default();
        let mut checks = EntryChecks::new(index, &self.head.layers[index]);
        let mut decoder = columns::Entries::new(raw)?;
        let mut entries = Vec::new();
        while let Some(entry) = decoder.next_entry()? {
            checks.check(entry, &mut budget)?;
            entries.push(entry.clone());
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

    /// Lays the layers over each other. What is decoded is merged while a second thread computes its digest: a list of
    /// 125,000 entries takes longer to hash than to decode and merge.
    pub fn merge(&self) -> Result<Tree, OpenError> {
        let lens = self.head.layers.iter().map(|layer| layer.entries.raw_len);
        if lens.sum::<u64>() < WORTH_A_THREAD as u64 {
            return self.merge_checking(|raw, digest| codec::check_digest(ENTRIES, raw, digest));
        }
        let (to_check, lists) = mpsc::channel::<(Arc<Vec<u8>>, Digest)>();
        thread::scope(|scope| {
            let checks = scope.spawn(move || {
                lists
                    .iter()
                    .try_for_each(|(raw, digest)| codec::check_digest(ENTRIES, &raw, &digest))
            });
            let merged = self.merge_checking(|raw, digest| {
                // Nobody listens any more when a digest was wrong, which is told below.
                let _ = to_check.send((raw.clone(), *digest));
                Ok(())
            });
            drop(to_check);
            checks.join().unwrap_or_else(|panic| resume_unwind(panic))?;
            merged
        })
    }

    /// Lays the layers over each other, and hands each one's list of entries to `check` before it is decoded.
    fn merge_checking(
        &self,
        check: impl Fn(&Arc<Vec<u8>>, &Digest) -> Result<(), DecodeError>,
    ) -> Result<Tree, OpenError> {
        let mut budget = EntryBudget::default();
        let mut merger = Merger::new();
        for (index, layer) in self.head.layers.iter().enumerate() {
            let raw = Arc::new(self.raw_entries(index)?);
            check(&raw, &layer.entries.digest)?;
            let mut checks = EntryChecks::new(index, layer);
            let mut entries = columns::Entries::new(&raw)?;
            merger.begin_layer(entries.left());
            while let Some(entry) = entries.next_entry()? {
                checks.check(entry, &mut budget)?;
                merger.apply(entry)?;
            }
            merger.end_layer()?;
        }
        let layers = self.head.layers.iter();
        let tar_sizes = layers.map(|layer| layer.tar_size).collect();
        Ok(merger.finish(tar_sizes, self.head.runtime_dirs))
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

const ENTRIES: &str = "list of entries";

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
    thread::scope(|scope| {
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

/// Checks the entries of a layer, one after the other.
struct EntryChecks<'a> {
    index: usize,
    layer: &'a LayerRef,
    /// What leads to the entry before. Entries of one directory stand together: it is checked with the first of them.
    checked: Vec<u8>,
}

impl<'a> EntryChecks<'a> {
    fn new(index: usize, layer: &'a LayerRef) -> Self {
        Self {
            index,
            layer,
            checked: Vec::new(),
        }
    }

    /// Refuses an entry that makes no sense, or for which `budget` has no memory left.
    fn check(&mut self, entry: &Entry, budget: &mut EntryBudget) -> Result<(), OpenError> {
        let admitted = budget.admit(entry);
        admitted.map_err(|problem| DecodeError::TooMany {
            what: ENTRIES,
            problem: problem.to_string(),
        })?;
        let checked = self
            .check_path(&entry.path)
            .and_then(|()| check_entry(self.layer, entry));
        checked.map_err(|problem| OpenError::Entry {
            layer: self.index,
            path: String::from_utf8_lossy(&entry.path).into_owned(),
            problem,
        })
    }

    fn check_path(&mut self, path: &[u8]) -> Result<(), &'static str> {
        let (leading, name) = split_behind_slash(path);
        if leading == self.checked && !name.is_empty() {
            return check_name(name);
        }
        check_path(path)?;
        self.checked.clear();
        self.checked.extend_from_slice(leading);
        Ok(())
    }
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
