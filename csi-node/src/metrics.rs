//! What the node plugin counts. Names and help texts are in the table of `clip_telemetry`.

use std::time::Duration;

use clip_telemetry::metrics::{
    CACHE_EVICTED, CACHE_READS, CACHE_READS_FAILED, CACHE_SIZE, CACHE_SPANS_DAMAGED,
    CACHE_SPANS_EVICTED, CACHE_SPANS_NOT_KEPT, CSI_ARCHIVES_MOUNTED, CSI_REQUEST_DURATION,
    CSI_REQUESTS, CSI_VOLUMES, Metrics, SERVE_RESTARTS, WARM_UP_FETCHED, WARM_UP_IMAGES,
};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tonic::Code;

use crate::mounts::Counted;
use crate::warm_up::queue::State;
use crate::wire::CacheCounts;

/// Upper bounds in seconds: a mount from disk takes 10 ms, one that waits for the index up to 100 s.
const BUCKETS: [f64; 10] = [0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0, 30.0, 60.0, 120.0];

/// The metrics of control.
#[derive(Clone, Debug)]
pub struct NodeMetrics {
    requests: Family<RequestLabels, Counter>,
    duration: Histogram,
    archives: Gauge,
    volumes: Family<EngineLabels, Gauge>,
    /// Times that clip-serve ended and was started again.
    pub serve_restarts: Counter,
    /// Compressed bytes that were fetched to warm up images.
    pub warm_up_fetched: Counter,
    warm_up_images: Family<StateLabels, Gauge>,
    cache: CacheMetrics,
}

/// What clip-serve's cache does. It has no endpoint of its own.
#[derive(Clone, Debug)]
struct CacheMetrics {
    size: Gauge,
    reads: Family<ReadLabels, Counter>,
    reads_failed: Counter,
    spans_evicted: Counter,
    bytes_evicted: Counter,
    spans_not_kept: Counter,
    spans_damaged: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReadLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EngineLabels {
    engine: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    code: String,
}

impl NodeMetrics {
    /// Adds them to `metrics`.
    pub fn new(metrics: &mut Metrics) -> NodeMetrics {
        NodeMetrics {
            requests: metrics.counters(&CSI_REQUESTS),
            duration: metrics.histogram(&CSI_REQUEST_DURATION, &BUCKETS),
            archives: metrics.gauge(&CSI_ARCHIVES_MOUNTED),
            volumes: metrics.gauges(&CSI_VOLUMES),
            serve_restarts: metrics.counter(&SERVE_RESTARTS),
            warm_up_fetched: metrics.counter(&WARM_UP_FETCHED),
            warm_up_images: metrics.gauges(&WARM_UP_IMAGES),
            cache: CacheMetrics {
                size: metrics.gauge(&CACHE_SIZE),
                reads: metrics.counters(&CACHE_READS),
                reads_failed: metrics.counter(&CACHE_READS_FAILED),
                spans_evicted: metrics.counter(&CACHE_SPANS_EVICTED),
                bytes_evicted: metrics.counter(&CACHE_EVICTED),
                spans_not_kept: metrics.counter(&CACHE_SPANS_NOT_KEPT),
                spans_damaged: metrics.counter(&CACHE_SPANS_DAMAGED),
            },
        }
    }

    /// Takes what the server counted in a life of it, now and then; the metrics grow by what came since the last time.
    pub fn cache_counter(&self) -> impl FnMut(CacheCounts, u64) + use<> {
        let cache = self.cache.clone();
        let mut before = (0, CacheCounts::default());
        move |now, generation| {
            // A new life counts from zero.
            let last = match generation == before.0 {
                true => before.1,
                false => CacheCounts::default(),
            };
            cache.add(&last, &now);
            before = (generation, now);
        }
    }

    /// How many images of those to be warmed up are how far.
    pub fn warm_ups(&self, count: impl Fn(State) -> usize) {
        for (name, state) in [
            ("waiting", State::Waiting),
            ("warm", State::Warm),
            ("failed", State::Failed),
        ] {
            let gauge = self
                .warm_up_images
                .get_or_create(&StateLabels { state: name });
            gauge.set(count(state) as i64);
        }
    }

    /// One finished request, and what is mounted after it.
    pub fn record(&self, method: &'static str, code: Code, took: Duration, mounted: Counted) {
        self.requests
            .get_or_create(&RequestLabels {
                method,
                code: format!("{code:?}"),
            })
            .inc();
        self.duration.observe(took.as_secs_f64());
        self.archives.set(mounted.archives as i64);
        for (engine, volumes) in [("fuse", mounted.by_fuse), ("erofs", mounted.by_kernel)] {
            let gauge = self.volumes.get_or_create(&EngineLabels { engine });
            gauge.set(volumes as i64);
        }
    }
}

impl CacheMetrics {
    fn add(&self, before: &CacheCounts, now: &CacheCounts) {
        self.size.set(now.bytes_on_disk as i64);
        let add = |counter: &Counter, of: fn(&CacheCounts) -> u64| {
            counter.inc_by(of(now).saturating_sub(of(before)));
        };
        for (result, of) in [
            ("hit", (|counts| counts.hits) as fn(&CacheCounts) -> u64),
            ("miss", |counts| counts.misses),
        ] {
            add(&self.reads.get_or_create(&ReadLabels { result }), of);
        }
        add(&self.reads_failed, |counts| counts.reads_failed);
        add(&self.spans_evicted, |counts| counts.spans_evicted);
        add(&self.bytes_evicted, |counts| counts.bytes_evicted);
        add(&self.spans_not_kept, |counts| counts.spans_not_kept);
        add(&self.spans_damaged, |counts| counts.spans_damaged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_to_be_warmed_up_are_counted_by_how_far_they_are() {
        let mut metrics = Metrics::new("test", "1");
        let node = NodeMetrics::new(&mut metrics);
        node.warm_ups(|state| match state {
            State::Waiting => 0,
            State::Warm => 2,
            State::Failed => 1,
        });
        node.warm_up_fetched.inc_by(70);
        let text = metrics.encode();
        for line in [
            "clip_warm_up_images{state=\"waiting\"} 0",
            "clip_warm_up_images{state=\"warm\"} 2",
            "clip_warm_up_images{state=\"failed\"} 1",
            "clip_warm_up_fetched_bytes_total 70",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_the_cache_did_is_counted_once() {
        let mut metrics = Metrics::new("test", "1");
        let node = NodeMetrics::new(&mut metrics);
        let first = CacheCounts {
            hits: 5,
            bytes_evicted: 100,
            bytes_on_disk: 70,
            ..CacheCounts::default()
        };
        let second = CacheCounts {
            hits: 8,
            misses: 1,
            reads_failed: 1,
            bytes_on_disk: 60,
            ..first
        };
        node.cache.add(&CacheCounts::default(), &first);
        node.cache.add(&first, &second);
        let text = metrics.encode();
        for line in [
            "clip_cache_reads_total{result=\"hit\"} 8",
            "clip_cache_reads_total{result=\"miss\"} 1",
            "clip_cache_failed_reads_total 1",
            "clip_cache_evicted_bytes_total 100",
            "clip_cache_size_bytes 60",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
