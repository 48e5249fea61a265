//! Where a span's bytes are when a fetch ends: on the disk, or, if the disk does not take them, in memory.
//!
//! A full or read-only disk fails no read. The bytes were decoded and checked anyway; who waits for them takes them from
//! there, and the latest few are kept ([`crate::memory_spans`]) until the disk takes spans again.

use crate::{
    layer_files::LayerFiles,
    layer_store::LayerStore,
    memory_spans::SpanBytes,
    staged::Staged,
    stats::Counters,
    word::{self, SpanState},
};
use clip_archive::SpanHasher;
use nix::errno::Errno;
use std::{io, os::unix::fs::FileExt};

/// How often a span is written when an evictor takes it away in between. It then stays in memory.
const ATTEMPTS: usize = 3;

/// A span that is here.
#[derive(Debug, Clone)]
pub enum Landed {
    /// In the data file, at least a moment ago.
    OnDisk,
    /// In memory, and perhaps on the disk, too.
    InMemory(SpanBytes),
}

impl Landed {
    /// For who may be told long before anybody listens: bytes must not wait for that in memory.
    pub fn without_bytes(self) -> Self {
        Self::OnDisk
    }
}

/// Whether the span is here already. What is from before the machine's restart is compared with its digest.
pub fn find(store: &LayerStore, index: usize) -> Option<Landed> {
    if let Some(bytes) = store.memory.get(&store.section_digest, index) {
        return Some(Landed::InMemory(bytes));
    }
    let files = store.files()?;
    let seen = files.states.look(index);
    match seen.state() {
        SpanState::Present => Some(Landed::OnDisk),
        SpanState::Unverified if is_intact(store, files, index) => {
            // Otherwise an evictor was quicker.
            word::publish(files.states.cell(index), seen).then_some(Landed::OnDisk)
        }
        SpanState::Unverified => {
            forget(store, files, index);
            None
        }
        SpanState::Absent | SpanState::Evicting => None,
    }
}

/// Keeps a span that was compared with its digest.
pub fn land(store: &LayerStore, index: usize, staged: Staged) -> io::Result<Landed> {
    let kept = match store.files_now() {
        Some(files) => keep(store, files, index, &staged),
        None => Err(Errno::EROFS.into()),
    };
    match (kept, staged) {
        (Ok(true), Staged::Memory(bytes)) => {
            store.memory.remove(&store.section_digest, index);
            Ok(Landed::InMemory(bytes.into()))
        }
        (Ok(true), Staged::File(_)) => Ok(Landed::OnDisk),
        (kept, Staged::Memory(bytes)) => {
            Counters::add(&store.counters.spans_not_kept, 1);
            if let Err(error) = kept {
                refused(store, &error);
            }
            let bytes = SpanBytes::from(bytes);
            store.memory.put(store.section_digest, index, bytes.clone());
            Ok(Landed::InMemory(bytes))
        }
        // Too large for memory; the evictor is done in a moment.
        (Ok(false), Staged::File(_)) => Err(Errno::EBUSY.into()),
        (Err(error), Staged::File(_)) => {
            refused(store, &error);
            Err(error)
        }
    }
}

/// Says that a span's bytes cannot be read or are wrong: it is fetched again.
pub fn forget(store: &LayerStore, files: &LayerFiles, index: usize) {
    if word::forget(files.states.cell(index), files.states.look(index)) {
        Counters::add(&store.counters.spans_damaged, 1);
        if store.damage_complaints.is_due() {
            tracing::warn!(layer = %store.blob_digest, span = index, "cached bytes are damaged: fetching them again");
        }
    }
}

/// Whether a failure means that this disk takes nothing, for now.
pub fn refuses_writes(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem
    )
}

/// Writes and publishes a span. False if evictors will not let it.
fn keep(store: &LayerStore, files: &LayerFiles, index: usize, staged: &Staged) -> io::Result<bool> {
    let cell = files.states.cell(index);
    for _ in 0..ATTEMPTS {
        let seen = files.states.look(index);
        match seen.state() {
            // Another process was quicker.
            SpanState::Present => return Ok(true),
            SpanState::Evicting => {
                store.housekeeper.found_condemned();
                return Ok(false);
            }
            SpanState::Absent | SpanState::Unverified => {}
        }
        staged.write_to(&files.data, store.starts[index])?;
        // Before others see the span, lest it looks like the oldest of all.
        files.states.touch_now(index)?;
        if word::publish(cell, seen) {
            store.housekeeper.wrote(store.table.spans[index].tar_len);
            return Ok(true);
        }
    }
    Ok(false)
}

/// The disk did not take something: makes room if that can help, and says so once a minute.
pub fn refused(store: &LayerStore, error: &io::Error) {
    if matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    ) {
        store.housekeeper.disk_is_full();
    }
    if store.disk_complaints.is_due() {
        tracing::warn!(%error, dir = %store.dir.display(), "the cache's disk takes nothing: serving from memory, which means fetching again and again");
    }
}

fn is_intact(store: &LayerStore, files: &LayerFiles, index: usize) -> bool {
    let span = &store.table.spans[index];
    let (mut at, mut left) = (store.starts[index], span.tar_len);
    let mut hasher = SpanHasher::default();
    let mut buf = vec![0; 256 << 10];
    while left > 0 {
        let len = left.min(buf.len() as u64) as usize;
        // What cannot be read is not intact.
        if files.data.read_exact_at(&mut buf[..len], at).is_err() {
            return false;
        }
        hasher.update(&buf[..len]);
        at += len as u64;
        left -= len as u64;
    }
    hasher.take() == span.digest
}
