//! Taking spans away: which, and how.
//!
//! One evictor per cache directory at a time, whatever the process: it holds a flock on `layers/`. Of what it takes, in
//! this order, until enough is free:
//!
//! 1. what is nobody's: directories set aside, bytes of spans that were never published (a fill was killed, or the disk
//!    was full in the middle of it);
//! 2. spans of layers that nobody has open and nobody used for [`IDLE`], the longest unused first;
//! 3. all other spans, the longest unused first.
//!
//! The order comes from a histogram over times of use, so a pass needs memory for one table at a time. A layer that
//! nobody uses and that is empty is removed. No span is pinned while it is read: the reader notices (`word`), and reads
//! again.

use crate::{
    layer_files::{DATA, STATES},
    states::{self, SpanStatesSeen, Words},
    survey::{disk_bytes, file_bytes, is_set_aside, layer_dirs, lock_unused},
    word::{self, SpanState, Word},
};
use nix::fcntl::{FallocateFlags, fallocate};
use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    io,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Seconds without use after which a layer that nobody has open goes before all others. CI and functions start the same
/// image again within minutes.
const IDLE: u32 = 3600;
/// Punched at a time: readers of the file may wait while the filesystem does it.
const PUNCH_MAX: u64 = 16 << 20;
/// Spans begin anywhere, holes at a block: what neighbouring spans that are present may take beyond their own bytes.
const EDGES: u64 = 8 << 10;

/// What was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Freed {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Spans that were there.
    pub spans: u64,
    /// Layers that were removed as a whole.
    pub layers: u64,
}

/// The one that may evict.
#[derive(Debug)]
pub struct Evictor {
    dir: PathBuf,
    _lock: File,
}

/// A span's place in the order in which spans go: first those of idle layers, then by last use.
type Rank = (bool, u32);

/// A layer before something is taken from it.
struct Candidate {
    dir: PathBuf,
    idle: bool,
    /// Whether bytes of spans that are absent take room. A fill that is being written has to be written again.
    leftovers: bool,
    /// Whether an evictor was killed in it.
    abandoned: bool,
}

impl Evictor {
    /// Becomes the evictor of the cache directory `dir`; none if another is.
    pub fn try_lock(dir: &Path) -> io::Result<Option<Self>> {
        let lock = File::open(dir.join("layers"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self::with(dir, lock))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Becomes the evictor, after the one that is.
    pub fn lock(dir: &Path) -> io::Result<Self> {
        let lock = File::open(dir.join("layers"))?;
        lock.lock()?;
        Ok(Self::with(dir, lock))
    }

    fn with(dir: &Path, lock: File) -> Self {
        Self {
            dir: dir.to_owned(),
            _lock: lock,
        }
    }

    /// Bytes that the cache takes on its disk.
    pub fn disk_bytes(&self) -> io::Result<u64> {
        let bytes = |dir: &PathBuf| disk_bytes(dir).inspect_err(|error| passed_over(dir, error));
        Ok(layer_dirs(&self.dir)?
            .iter()
            .filter_map(|dir| bytes(dir).ok())
            .sum())
    }

    /// Takes away what is nobody's, and then what was not used for the longest time, until `wanted` bytes are free. A
    /// layer whose files the disk refuses is passed over: the others must not grow because of it.
    ///
    /// # Errors
    /// When nothing at all became free, and there was such a layer.
    pub fn free(&self, wanted: u64) -> io::Result<Freed> {
        let mut refused = BTreeMap::new();
        let mut freed = Freed::default();
        loop {
            let known = refused.len();
            let part = self.pass(wanted.saturating_sub(freed.bytes), &mut refused)?;
            freed.add(part);
            // What the refused ones should have given is now to come from the others.
            if refused.len() == known || freed.bytes >= wanted {
                break;
            }
        }
        match refused.into_values().next() {
            Some(error) if freed.bytes == 0 => Err(error),
            _ => Ok(freed),
        }
    }

    /// The same once, without the layers in `refused`, to which others may come.
    fn pass(&self, wanted: u64, refused: &mut BTreeMap<PathBuf, io::Error>) -> io::Result<Freed> {
        let mut freed = Freed::default();
        let mut candidates = Vec::new();
        let mut by_rank = BTreeMap::<Rank, u64>::new();
        for dir in layer_dirs(&self.dir)? {
            if refused.contains_key(&dir) {
                continue;
            }
            let part = match SpanStatesSeen::open(&dir.join(STATES), false) {
                Ok(Some(states)) if !is_set_aside(&dir) => {
                    let layer = consider(dir.clone(), &states, &mut by_rank);
                    layer.map(|layer| {
                        candidates.push(layer);
                        Freed::default()
                    })
                }
                // Kept for those who still use it, or of another version.
                Ok(_) => remove_unused(&dir),
                Err(error) => Err(error),
            };
            freed.add_or_refuse(part, &dir, refused);
        }
        for layer in &candidates {
            if layer.leftovers || layer.abandoned {
                let is_nobodys = |word: Word, _| match word.state() {
                    SpanState::Absent => layer.leftovers,
                    state => state == SpanState::Evicting,
                };
                let part = evict(&layer.dir, u64::MAX, is_nobodys);
                freed.add_or_refuse(part, &layer.dir, refused);
            }
        }
        let Some(last) = last_rank(&by_rank, wanted.saturating_sub(freed.bytes)) else {
            return Ok(freed);
        };
        // What ranks below the last one goes in any case; of the last rank itself only what is still needed.
        for is_due in
            [|rank, last| rank < last, |rank, last| rank == last] as [fn(Rank, Rank) -> bool; 2]
        {
            for layer in &candidates {
                let left = wanted.saturating_sub(freed.bytes);
                if left == 0 {
                    return Ok(freed);
                }
                let is_due =
                    |word: Word, used| word.has_bytes() && is_due((!layer.idle, used), last);
                freed.add_or_refuse(evict(&layer.dir, left, is_due), &layer.dir, refused);
            }
        }
        Ok(freed)
    }

    /// Removes all layers that nobody has open.
    pub fn remove_unused(&self) -> io::Result<Freed> {
        let mut freed = Freed::default();
        for dir in layer_dirs(&self.dir)? {
            freed.add(remove_unused(&dir)?);
        }
        Ok(freed)
    }
}

impl Freed {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.spans += other.spans;
        self.layers += other.layers;
    }

    /// Adds what a layer gave, or remembers that it gave nothing.
    fn add_or_refuse(
        &mut self,
        part: io::Result<Self>,
        dir: &Path,
        refused: &mut BTreeMap<PathBuf, io::Error>,
    ) {
        match part {
            Ok(part) => self.add(part),
            Err(error) => {
                passed_over(dir, &error);
                refused.insert(dir.to_owned(), error);
            }
        }
    }
}

fn passed_over(dir: &Path, error: &io::Error) {
    tracing::debug!(dir = %dir.display(), %error, "a layer of the cache cannot be made smaller");
}

/// Looks at a layer and adds its spans to the histogram.
fn consider(
    dir: PathBuf,
    states: &SpanStatesSeen,
    by_rank: &mut BTreeMap<Rank, u64>,
) -> io::Result<Candidate> {
    let all: Vec<(Word, u32)> = states.all()?.collect();
    let idle = is_idle(&dir, &all)?;
    let (mut expected, mut in_run) = (0, false);
    for (index, (word, used)) in all.iter().enumerate() {
        if word.has_bytes() {
            let range = states.range(index);
            let edges = if in_run { 0 } else { EDGES };
            expected += range.end - range.start + edges;
            *by_rank.entry((!idle, *used)).or_default() += range.end - range.start;
        }
        in_run = word.has_bytes();
    }
    Ok(Candidate {
        leftovers: file_bytes(&dir.join(DATA))? > expected,
        abandoned: all
            .iter()
            .any(|(word, _)| word.state() == SpanState::Evicting),
        idle,
        dir,
    })
}

/// Whether nobody has the layer open, and nobody used it for [`IDLE`].
fn is_idle(dir: &Path, spans: &[(Word, u32)]) -> io::Result<bool> {
    let last_used = spans.iter().map(|(_, used)| *used).max().unwrap_or(0);
    Ok(last_used.saturating_add(IDLE) < states::now() && lock_unused(dir)?.is_some())
}

/// Bytes on the disk of the layer in `dir` if it would be among the first to go; none otherwise.
pub fn idle_bytes(dir: &Path) -> io::Result<u64> {
    let idle = match SpanStatesSeen::open(&dir.join(STATES), false)? {
        Some(states) => is_idle(dir, &states.all()?.collect::<Vec<_>>())?,
        None => false,
    };
    match idle {
        true => disk_bytes(dir),
        false => Ok(0),
    }
}

/// The rank up to which spans must go for `wanted` bytes.
fn last_rank(by_rank: &BTreeMap<Rank, u64>, wanted: u64) -> Option<Rank> {
    let mut sum = 0;
    for (rank, bytes) in by_rank {
        if sum >= wanted {
            break;
        }
        sum += bytes;
        if sum >= wanted {
            return Some(*rank);
        }
    }
    match wanted {
        0 => None,
        _ => by_rank.last_key_value().map(|(rank, _)| *rank),
    }
}

/// Takes the spans of a layer that `is_due` names by word and last use, until `wanted` bytes are free.
fn evict(dir: &Path, wanted: u64, is_due: impl Fn(Word, u32) -> bool) -> io::Result<Freed> {
    let alone = lock_unused(dir)?;
    // Someone uses it: held until the end, so that it stays prepared. Not waited for: it may be being prepared.
    let _in_use = match &alone {
        Some(_) => None,
        None => match File::open(dir) {
            Ok(lock) if lock.try_lock_shared().is_ok() => Some(lock),
            _ => return Ok(Freed::default()),
        },
    };
    let Some(states) = SpanStatesSeen::open(&dir.join(STATES), true)? else {
        return Ok(Freed::default());
    };
    let data = match File::options().write(true).open(dir.join(DATA)) {
        // Somebody removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Freed::default()),
        opened => opened?,
    };
    if alone.is_none() && !states.is_trusted(data.metadata()?.ino())? {
        // The files were replaced; whoever uses the layer has others.
        return Ok(Freed::default());
    }
    let before = disk_bytes(dir)?;
    let words = states.words()?;
    let mut run = Run::of(&data, &words);
    let (mut spans, mut taken, mut left) = (0, 0, false);
    for (index, (word, used)) in states.all()?.enumerate() {
        if taken >= wanted || !is_due(word, used) {
            left |= word.has_bytes();
            run.end()?;
            continue;
        }
        let abandoned = word.state() == SpanState::Evicting;
        if !abandoned && !word::condemn(words.cell(index), word) {
            // Filled or forgotten this moment.
            left = true;
            run.end()?;
            continue;
        }
        let range = states.range(index);
        if word.has_bytes() {
            spans += 1;
            taken += range.end - range.start;
        }
        run.add(index, range)?;
    }
    run.end()?;
    let layers = match &alone {
        Some(_) if !left => {
            std::fs::remove_dir_all(dir)?;
            return Ok(Freed {
                bytes: before,
                spans,
                layers: 1,
            });
        }
        _ => 0,
    };
    let bytes = before.saturating_sub(disk_bytes(dir)?);
    Ok(Freed {
        bytes,
        spans,
        layers,
    })
}

/// Condemned spans that follow each other: one hole, which leaves no blocks at their borders.
struct Run<'a> {
    data: &'a File,
    words: &'a Words,
    spans: Range<usize>,
    bytes: Range<u64>,
}

impl<'a> Run<'a> {
    fn of(data: &'a File, words: &'a Words) -> Self {
        Self {
            data,
            words,
            spans: 0..0,
            bytes: 0..0,
        }
    }

    /// Adds the span behind the last one.
    fn add(&mut self, index: usize, bytes: Range<u64>) -> io::Result<()> {
        if self.bytes.end - self.bytes.start >= PUNCH_MAX {
            self.end()?;
        }
        if self.spans.is_empty() {
            (self.spans, self.bytes) = (index..index, bytes.start..bytes.start);
        }
        self.spans.end = index + 1;
        self.bytes.end = bytes.end;
        Ok(())
    }

    /// Punches the hole and lets fillers in.
    fn end(&mut self) -> io::Result<()> {
        let spans = std::mem::take(&mut self.spans);
        let bytes = std::mem::take(&mut self.bytes);
        if spans.is_empty() {
            return Ok(());
        }
        let punched = punch(self.data, &bytes);
        // Also when the filesystem cannot punch: the bytes stay, and nobody believes them.
        spans.for_each(|index| word::release(self.words.cell(index)));
        punched
    }
}

fn punch(data: &File, range: &Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (start, len) = (range.start as i64, (range.end - range.start) as i64);
    Ok(fallocate(data, flags, start, len)?)
}

/// Removes a layer unless somebody has it open.
fn remove_unused(dir: &Path) -> io::Result<Freed> {
    let Some(_alone) = lock_unused(dir)? else {
        return Ok(Freed::default());
    };
    let spans = match SpanStatesSeen::open(&dir.join(STATES), false)? {
        Some(states) => states.all()?.filter(|(word, _)| word.has_bytes()).count() as u64,
        None => 0,
    };
    let bytes = disk_bytes(dir)?;
    std::fs::remove_dir_all(dir)?;
    Ok(Freed {
        bytes,
        spans,
        layers: 1,
    })
}

#[cfg(test)]
mod tests;
