//! Counters of what the cache did, per process.

use std::sync::atomic::{AtomicU64, Ordering};

/// A snapshot of the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheStats {
    /// Reads answered from spans that were there.
    pub hits: u64,
    /// Reads that had to wait for at least one span.
    pub misses: u64,
    /// Those of them that failed: what was missing could not be had.
    pub reads_failed: u64,
    /// Range requests, not counting repeated and resumed ones.
    pub requests: u64,
    /// Spans fetched from a registry.
    pub spans_fetched: u64,
    /// Compressed bytes of these spans.
    pub bytes_fetched: u64,
    /// Spans whose fetched content had the wrong digest.
    pub digest_mismatches: u64,
    /// Spans that were fetched ahead of a reader.
    pub read_ahead_spans: u64,
    /// Those that a reader then came to. The others were of no use (yet).
    pub read_ahead_used: u64,
    /// Spans that were on the disk and were not what they should be; they were fetched again.
    pub spans_damaged: u64,
    /// Spans that the disk did not take; they were served from memory.
    pub spans_not_kept: u64,
    /// Spans that were taken away to make room.
    pub spans_evicted: u64,
    /// Bytes on the disk that became free thereby.
    pub bytes_evicted: u64,
    /// Bytes that the cache takes on the disk, all processes' together, as this one saw it last (not a counter).
    pub bytes_on_disk: u64,
}

/// The live counters.
#[derive(Debug, Default)]
pub struct Counters {
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    pub reads_failed: AtomicU64,
    pub requests: AtomicU64,
    pub spans_fetched: AtomicU64,
    pub bytes_fetched: AtomicU64,
    pub digest_mismatches: AtomicU64,
    pub read_ahead_spans: AtomicU64,
    pub read_ahead_used: AtomicU64,
    pub spans_damaged: AtomicU64,
    pub spans_not_kept: AtomicU64,
    pub spans_evicted: AtomicU64,
    pub bytes_evicted: AtomicU64,
    pub bytes_on_disk: AtomicU64,
}

impl Counters {
    pub fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    pub fn snapshot(&self) -> CacheStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            hits: get(&self.hits),
            misses: get(&self.misses),
            reads_failed: get(&self.reads_failed),
            requests: get(&self.requests),
            spans_fetched: get(&self.spans_fetched),
            bytes_fetched: get(&self.bytes_fetched),
            digest_mismatches: get(&self.digest_mismatches),
            read_ahead_spans: get(&self.read_ahead_spans),
            read_ahead_used: get(&self.read_ahead_used),
            spans_damaged: get(&self.spans_damaged),
            spans_not_kept: get(&self.spans_not_kept),
            spans_evicted: get(&self.spans_evicted),
            bytes_evicted: get(&self.bytes_evicted),
            bytes_on_disk: get(&self.bytes_on_disk),
        }
    }
}
