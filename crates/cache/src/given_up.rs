//! Reads that waited in vain are not waited for again when the kernel repeats them.
//!
//! A program reads once, but the kernel asks for what it reads ahead first, then for the page itself, and its EROFS asks the
//! layer's file twice for each: four requests one after the other, more with a larger read-ahead. Each would wait the whole
//! read timeout. So a read that begins right after one at the same place failed because its time was up gets a moment only,
//! and then the same error.

use crate::patience::ReadError;
use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Repeated reads follow each other within milliseconds.
const RIGHT_AFTER: Duration = Duration::from_millis(500);
/// Who repeats for so long is no kernel, and may wait again.
const REPEATING: Duration = Duration::from_secs(10);
/// What a repeated read may wait: a registry that is back has answered by then.
const MOMENT: Duration = Duration::from_millis(200);
/// How far from the read that failed its repetitions may lie: the kernel reads ahead 1 MiB at most.
const AROUND: u64 = 1 << 20;

/// Where reads of a layer failed lately because their time was up.
#[derive(Debug, Default)]
pub struct GivenUp(Mutex<Vec<Failure>>);

#[derive(Debug)]
struct Failure {
    first: Instant,
    last: Instant,
    around: Range<u64>,
    error: ReadError,
}

/// How a read that repeats another is treated.
#[derive(Debug)]
pub struct Repeated {
    /// What the other failed with.
    pub error: ReadError,
    /// When it fails, too.
    pub deadline: Instant,
}

impl GivenUp {
    /// Whether a read at `offset` that begins now repeats one.
    pub fn repeated(&self, offset: u64) -> Option<Repeated> {
        let failures = self.recent();
        let mut failures = failures.iter();
        let other = failures.find(|failure| failure.around.contains(&offset))?;
        Some(Repeated {
            error: other.error.clone(),
            deadline: Instant::now() + MOMENT,
        })
    }

    /// A read of `len` bytes at `offset` failed with `error` because its time was up.
    pub fn note(&self, offset: u64, len: usize, error: &ReadError) {
        let now = Instant::now();
        let end = offset.saturating_add(len as u64);
        self.recent().push(Failure {
            first: now,
            last: now,
            around: offset.saturating_sub(AROUND)..end.saturating_add(AROUND),
            error: error.clone(),
        });
    }

    /// A read at `offset` that repeated one failed, too.
    pub fn note_again(&self, offset: u64) {
        let mut failures = self.all();
        let here = |failure: &&mut Failure| failure.around.contains(&offset);
        for failure in failures.iter_mut().filter(here) {
            failure.last = Instant::now();
        }
    }

    /// A read succeeded: who failed may have better luck now.
    pub fn forget(&self) {
        self.all().clear();
    }

    fn recent(&self) -> MutexGuard<'_, Vec<Failure>> {
        let mut failures = self.all();
        failures.retain(|failure| {
            failure.last.elapsed() < RIGHT_AFTER && failure.first.elapsed() < REPEATING
        });
        failures
    }

    fn all(&self) -> MutexGuard<'_, Vec<Failure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
