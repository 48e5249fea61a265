//! Failed reads in the log: one line for each layer and second, which says how many there were beside it. The latest one
//! is kept for who asks.
//!
//! A line names the file, and to find that takes a walk over the whole tree: some milliseconds for 100,000 files. A registry
//! that refuses fails reads as fast as programs repeat them, thousands a second from many readers, and that work would
//! slow the reads that could be answered. Reads of one layer come from one blob and so mostly fail for one reason: a line
//! in a second says what there is to know. Whatever happens, an image then costs at most one walk per layer and second,
//! and a failure that concerns one layer does not hide behind those of another.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines about a layer.
const PAUSE: Duration = Duration::from_secs(1);

/// A read that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedRead {
    /// The file, from the image's root on.
    pub path: String,
    /// Why.
    pub cause: String,
}

/// The failed reads of an image.
#[derive(Debug)]
pub struct FailedReads {
    /// One for each layer, and the last for reads that fail before it is known which layer they need.
    slots: Box<[Mutex<Slot>]>,
    latest: Mutex<Option<FailedRead>>,
}

#[derive(Debug, Default)]
struct Slot {
    last: Option<Instant>,
    left_out: u64,
}

impl FailedReads {
    /// Of an image with so many layers.
    pub fn new(layers: usize) -> FailedReads {
        let slots = std::iter::repeat_with(Mutex::default);
        FailedReads {
            slots: slots.take(layers + 1).collect(),
            latest: Mutex::default(),
        }
    }

    /// Counts a read of `layer` that failed at `now`. If it is to have a line: how many had none since the last one.
    pub fn count(&self, layer: Option<u16>, now: Instant) -> Option<u64> {
        let unknown = self.slots.len() - 1;
        let slot = layer.map_or(unknown, |layer| usize::from(layer).min(unknown));
        let mut slot = lock(&self.slots[slot]);
        let is_due = |last| now.saturating_duration_since(last) >= PAUSE;
        if !slot.last.is_none_or(is_due) {
            slot.left_out += 1;
            return None;
        }
        slot.last = Some(now);
        Some(std::mem::take(&mut slot.left_out))
    }

    /// Keeps one that has a line, in place of an earlier one.
    pub fn keep(&self, failed: FailedRead) {
        *lock(&self.latest) = Some(failed);
    }

    /// The latest that had a line since this was asked the last time.
    pub fn take(&self) -> Option<FailedRead> {
        lock(&self.latest).take()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_a_line_in_a_second_and_says_how_many_had_none() {
        let (failed, start) = (FailedReads::new(2), Instant::now());
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(failed.count(Some(0), at(0)), Some(0));
        for read in 0..999 {
            assert_eq!(failed.count(Some(0), at(read)), None);
        }
        assert_eq!(failed.count(Some(0), at(1000)), Some(999));
        assert_eq!(failed.count(Some(0), at(1001)), None);
        assert_eq!(failed.count(Some(0), at(60_000)), Some(1));
    }

    #[test]
    fn layers_do_not_hide_each_other() {
        let (failed, now) = (FailedReads::new(2), Instant::now());
        for layer in [Some(0), Some(1), None] {
            assert_eq!(failed.count(layer, now), Some(0), "{layer:?}");
            assert_eq!(failed.count(layer, now), None, "{layer:?}");
        }
        // A damaged tree may name layers that do not exist.
        assert_eq!(failed.count(Some(u16::MAX), now), None);
    }
}
