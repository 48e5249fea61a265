//! Decoded spans that the disk does not take, in memory: few, the latest.
//!
//! A program reads a span in pieces (128 KiB for each FUSE request); without this each piece would be a fetch.

use clip_archive::Digest;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Half a node plugin's smallest memory limit would be too much; 16 readers of the largest spans fit.
const BYTES_MAX: usize = 32 << 20;

/// Long enough for a program to read a span in pieces. Then it is fetched again, and the disk is asked again, too.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// A decoded span that was compared with its digest.
pub type SpanBytes = Arc<Vec<u8>>;
/// The layer's section and the span's number.
type Key = (Digest, usize);

/// The spans, the latest last.
#[derive(Debug, Default)]
pub struct MemorySpans {
    spans: Mutex<VecDeque<(Key, SpanBytes, Instant)>>,
    /// How many there are: almost always none, which is seen without the lock.
    count: AtomicUsize,
}

impl MemorySpans {
    /// A span, if it is here.
    pub fn get(&self, layer: &Digest, span: usize) -> Option<SpanBytes> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let at = spans.iter().position(|(key, ..)| *key == (*layer, span))?;
        let found = spans.remove(at)?;
        if found.2.elapsed() >= KEPT_FOR {
            self.count.store(spans.len(), Ordering::Relaxed);
            return None;
        }
        let bytes = found.1.clone();
        spans.push_back(found);
        Some(bytes)
    }

    /// Keeps a span instead of the oldest ones.
    pub fn put(&self, layer: Digest, span: usize, bytes: SpanBytes) {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.retain(|(key, _, since)| *key != (layer, span) && since.elapsed() < KEPT_FOR);
        spans.push_back(((layer, span), bytes, Instant::now()));
        let mut total: usize = spans.iter().map(|(_, bytes, _)| bytes.len()).sum();
        while total > BYTES_MAX
            && let Some((_, oldest, _)) = spans.pop_front()
        {
            total -= oldest.len();
        }
        self.count.store(spans.len(), Ordering::Relaxed);
    }

    /// Lets go of a span that the disk has taken.
    pub fn remove(&self, layer: &Digest, span: usize) {
        if self.count.load(Ordering::Relaxed) > 0 {
            let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
            spans.retain(|(key, ..)| *key != (*layer, span));
            self.count.store(spans.len(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_spans_are_kept_and_the_memory_is_bounded() {
        let (spans, layer) = (MemorySpans::default(), Digest::of(b"layer"));
        let span = || Arc::new(vec![0; BYTES_MAX / 4]);
        (0..4).for_each(|index| spans.put(layer, index, span()));
        assert!(spans.get(&layer, 0).is_some(), "used again");
        spans.put(layer, 4, span());
        let kept: Vec<usize> = (0..5)
            .filter(|&index| spans.get(&layer, index).is_some())
            .collect();
        assert_eq!(kept, [0, 2, 3, 4]);
        assert!(spans.get(&Digest::of(b"another"), 0).is_none());
        spans.put(layer, 9, Arc::new(vec![0; BYTES_MAX + 1]));
        assert!((0..10).all(|index| spans.get(&layer, index).is_none()));
        spans.put(layer, 1, span());
        spans.remove(&layer, 1);
        assert!(spans.get(&layer, 1).is_none());
    }
}
