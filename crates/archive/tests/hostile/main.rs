//! Hostile archives: what they claim costs neither time nor memory, and the error says what is wrong.
//!
//! An archive is untrusted input to a privileged process. `fuzz/` looks for what nobody thought of; here stands what
//! somebody did.

#[path = "../../../../fuzz/src/framing.rs"]
mod framing;
mod lists;
mod peak;
mod seek_table;
mod trees;

use clip_archive::{Archive, Entry, EntryKind, Head, OpenError, RuntimeDirs};
use framing::RawLayer;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// An archive with these layers, opened.
fn open(layers: &[RawLayer]) -> Result<Archive, OpenError> {
    open_with(layers, |_| {})
}

/// The same, its head falsified.
fn open_with(layers: &[RawLayer], falsify: impl FnOnce(&mut Head)) -> Result<Archive, OpenError> {
    Archive::open(framing::archive(layers, RuntimeDirs::Omit, falsify))
}

fn entry(path: impl Into<Vec<u8>>, kind: EntryKind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: 0,
        mtime_nsec: 0,
        xattrs: vec![],
    }
}

fn symlink(path: impl Into<Vec<u8>>, target: impl Into<Vec<u8>>) -> Entry {
    let target = target.into();
    entry(path, EntryKind::Symlink { target })
}

fn hardlink(path: impl Into<Vec<u8>>, target: impl Into<Vec<u8>>) -> Entry {
    let target = target.into();
    entry(path, EntryKind::Hardlink { target })
}

fn empty_file(path: impl Into<Vec<u8>>) -> Entry {
    let segments = vec![];
    entry(path, EntryKind::File { size: 0, segments })
}

/// Runs `work`; it must not take longer than `limit`, which is generous: a busy machine is no finding.
fn within<T>(limit: Duration, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    let took = started.elapsed();
    assert!(took < limit, "took {took:?}");
    result
}

/// The message of the error.
fn refusal<T>(result: Result<T, impl std::fmt::Display>) -> String {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}
