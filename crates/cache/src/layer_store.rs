//! [`LayerStore`]: one layer on the disk, as this process shares it, and how bytes are read from there.

use crate::{
    flights::Flights,
    housekeeper::{Housekeeper, OncePerMinute},
    landing,
    layer::{LayerSpec, Windows},
    layer_files::LayerFiles,
    memory_spans::MemorySpans,
    states,
    stats::Counters,
    whole::WholeBlobs,
    word::{self, SpanState, Word},
};
use clip_archive::{Digest, SeekTable, Window};
use std::{
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

/// How often a layer that could not be opened on its disk is tried again.
const OPEN_AGAIN: Duration = Duration::from_secs(10);
/// Spans that are looked at, read and looked at again in one go. A read is 1 MiB at most, and spans are seldom smaller
/// than 128 KiB.
const SPANS_AT_ONCE: usize = 8;

/// A layer's files, shared by all its readers in this process.
pub struct LayerStore {
    pub section_digest: Digest,
    pub blob_digest: Digest,
    pub table: SeekTable,
    /// Position of each span in the tar.
    pub starts: Vec<u64>,
    pub dir: PathBuf,
    files: OnceLock<LayerFiles>,
    /// When the files were last tried to be opened, if they could not be.
    tried: Mutex<Instant>,
    pub load_windows: Windows,
    pub windows: OnceLock<Vec<Window>>,
    pub flights: Flights,
    pub whole: WholeBlobs,
    pub counters: Arc<Counters>,
    pub memory: Arc<MemorySpans>,
    pub housekeeper: Arc<Housekeeper>,
    pub disk_complaints: OncePerMinute,
    pub damage_complaints: OncePerMinute,
}

impl LayerStore {
    /// A layer whose files are in `dir`; what is there of them is used, and what is not is made.
    pub fn open(
        spec: LayerSpec,
        dir: PathBuf,
        counters: Arc<Counters>,
        memory: Arc<MemorySpans>,
        housekeeper: Arc<Housekeeper>,
    ) -> io::Result<Self> {
        let next_start = |at: &mut u64, len: u64| Some(std::mem::replace(at, *at + len));
        let lengths = spec.table.spans.iter().map(|span| span.tar_len);
        let store = Self {
            section_digest: spec.section_digest,
            blob_digest: spec.blob_digest,
            starts: lengths.scan(0, next_start).collect(),
            table: spec.table,
            dir,
            files: OnceLock::new(),
            tried: Mutex::new(Instant::now()),
            load_windows: spec.windows,
            windows: OnceLock::new(),
            flights: Flights::default(),
            whole: WholeBlobs::default(),
            counters,
            memory,
            housekeeper,
            disk_complaints: OncePerMinute::default(),
            damage_complaints: OncePerMinute::default(),
        };
        store.open_files()?;
        Ok(store)
    }

    /// The files, unless the disk refuses them.
    pub fn files(&self) -> Option<&LayerFiles> {
        self.files.get()
    }

    /// The files; tries again to open them if it was some time ago that the disk refused.
    pub fn files_now(&self) -> Option<&LayerFiles> {
        if self.files.get().is_none() {
            let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
            if tried.elapsed() > OPEN_AGAIN {
                *tried = Instant::now();
                // Whoever stores a span then says why it cannot.
                let _ = self.open_files();
            }
        }
        self.files.get()
    }

    /// A disk that is full or read-only is no error: the layer is served from memory.
    fn open_files(&self) -> io::Result<()> {
        let ends: Vec<u64> = self
            .starts
            .iter()
            .zip(&self.table.spans)
            .map(|(start, span)| start + span.tar_len)
            .collect();
        let opened = LayerFiles::open(&self.dir, &ends).or_else(|error| match error.kind() {
            io::ErrorKind::StorageFull => {
                self.housekeeper.make_room();
                LayerFiles::open(&self.dir, &ends)
            }
            _ => Err(error),
        });
        match opened {
            Ok(files) => {
                // Set already: another thread was quicker, and these are closed again.
                let _ = self.files.set(files);
                Ok(())
            }
            Err(error) if landing::refuses_writes(&error) => {
                tracing::warn!(%error, dir = %self.dir.display(), "cannot open the cache of a layer: serving it from memory");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// What the disk has of a span.
    pub fn state(&self, span: usize) -> SpanState {
        self.files()
            .map_or(SpanState::Absent, |files| files.states.look(span).state())
    }

    /// Whether a span cannot be read from the disk at once.
    pub fn is_missing(&self, span: usize) -> bool {
        self.state(span) != SpanState::Present
    }

    /// Reads from `spans`, which hold the bytes, if every byte is on the disk.
    pub fn read_present(&self, spans: &Range<usize>, offset: u64, buf: &mut [u8]) -> bool {
        let Some(files) = self.files() else {
            return buf.is_empty();
        };
        let len = buf.len();
        let now = states::now();
        for first in spans.clone().step_by(SPANS_AT_ONCE) {
            let group = first..spans.end.min(first + SPANS_AT_ONCE);
            let start = self.part_of(first, offset, len).1.start;
            let end = self.part_of(group.end - 1, offset, len).1.end;
            let part = &mut buf[start..end];
            if !self.read_group(files, group, offset + start as u64, part, now) {
                return false;
            }
        }
        true
    }

    /// See `word`: the bytes were there if all words are the same before and after.
    fn read_group(
        &self,
        files: &LayerFiles,
        spans: Range<usize>,
        offset: u64,
        part: &mut [u8],
        now: u32,
    ) -> bool {
        let states = &files.states;
        let mut seen = [Word::from_bits(0); SPANS_AT_ONCE];
        for (seen, span) in seen.iter_mut().zip(spans.clone()) {
            *seen = states.look(span);
            if !seen.is_present() {
                return false;
            }
        }
        if let Err(error) = files.data.read_exact_at(part, offset) {
            // What the file held can be had again. If somebody cut it, everything behind the cut is gone, also once a
            // write has made it long again.
            let lost = match error.kind() {
                io::ErrorKind::UnexpectedEof => 0..self.starts.len(),
                _ => spans,
            };
            lost.for_each(|span| landing::forget(self, files, span));
            return false;
        }
        seen.iter().zip(spans).all(|(&seen, span)| {
            states.touch(span, now);
            word::is_unchanged(states.cell(span), seen)
        })
    }

    /// Of a read of `len` bytes at `offset`: where in `span` its part of that begins, and which part it is.
    pub fn part_of(&self, span: usize, offset: u64, len: usize) -> (u64, Range<usize>) {
        let (start, end) = (self.starts[span], offset + len as u64);
        let from = start.max(offset);
        let to = (start + self.table.spans[span].tar_len).min(end);
        (
            from - start,
            (from - offset) as usize..(to - offset) as usize,
        )
    }

    /// Lets other processes know which spans this one uses.
    pub fn share_used(&self) {
        if let Some(files) = self.files()
            && let Err(error) = files.states.share_used()
        {
            tracing::debug!(%error, dir = %self.dir.display(), "cannot say what was used last");
        }
    }

    /// The spans that hold `len` bytes at `offset`.
    pub fn spans_of(&self, offset: u64, len: usize) -> Range<usize> {
        if len == 0 {
            return 0..0;
        }
        let first = self.starts.partition_point(|&start| start <= offset) - 1;
        let last = self
            .starts
            .partition_point(|&start| start < offset + len as u64);
        first..last
    }
}

impl Drop for LayerStore {
    fn drop(&mut self) {
        self.share_used();
    }
}

impl std::fmt::Debug for LayerStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerStore")
            .field("blob_digest", &self.blob_digest)
            .finish_non_exhaustive()
    }
}
