//! What the node plugin counts. Names and help texts are in the table of `clip_telemetry`.

use std::time::Duration;

use clip_telemetry::metrics::{
    CSI_ARCHIVES_MOUNTED, CSI_REQUEST_DURATION, CSI_REQUESTS, CSI_VOLUMES, Metrics, SERVE_RESTARTS,
};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tonic::Code;

/// Upper bounds in seconds: a mount from disk takes 10 ms, one that waits for the index up to 100 s.
const BUCKETS: [f64; 10] = [0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0, 30.0, 60.0, 120.0];

/// The metrics of control.
#[derive(Clone, Debug)]
pub struct NodeMetrics {
    requests: Family<RequestLabels, Counter>,
    duration: Histogram,
    archives: Gauge,
    volumes: Gauge,
    /// Times that clip-serve ended and was started again.
    pub serve_restarts: Counter,
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
            volumes: metrics.gauge(&CSI_VOLUMES),
            serve_restarts: metrics.counter(&SERVE_RESTARTS),
        }
    }

    /// One finished request, and what is mounted after it.
    pub fn record(
        &self,
        method: &'static str,
        code: Code,
        took: Duration,
        archives: usize,
        volumes: usize,
    ) {
        self.requests
            .get_or_create(&RequestLabels {
                method,
                code: format!("{code:?}"),
            })
            .inc();
        self.duration.observe(took.as_secs_f64());
        self.archives.set(archives as i64);
        self.volumes.set(volumes as i64);
    }
}
