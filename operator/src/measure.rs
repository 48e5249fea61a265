//! What the operator counts. Names and meanings are in `clip_telemetry::metrics`.

use std::time::Duration;

use clip_telemetry::metrics::{self as names, Metrics};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};

use crate::events::Notice;

/// From a look that changes nothing (1 ms) to an apiserver that is drowning.
const RECONCILE_BUCKETS: [f64; 7] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReady {
    ready: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCode {
    code: u16,
}

/// The operator's counters and gauges; cheap to clone.
#[derive(Debug, Clone)]
pub struct Measures {
    reconciles: Family<ByResult, Counter>,
    reconcile_duration: Histogram,
    jobs_started: Counter,
    jobs_finished: Family<ByResult, Counter>,
    images: Family<ByReady, Gauge>,
    uploads: Family<ByCode, Counter>,
    downloads: Family<ByCode, Counter>,
    archives: Gauge,
    archives_size: Gauge,
}

impl Measures {
    /// Registers everything.
    pub fn new(metrics: &mut Metrics) -> Self {
        Self {
            reconciles: metrics.counters(&names::OPERATOR_RECONCILES),
            reconcile_duration: metrics
                .histogram(&names::OPERATOR_RECONCILE_DURATION, &RECONCILE_BUCKETS),
            jobs_started: metrics.counter(&names::OPERATOR_JOBS_STARTED),
            jobs_finished: metrics.counters(&names::OPERATOR_JOBS_FINISHED),
            images: metrics.gauges(&names::OPERATOR_IMAGES),
            uploads: metrics.counters(&names::ARCHIVE_UPLOADS),
            downloads: metrics.counters(&names::ARCHIVE_DOWNLOADS),
            archives: metrics.gauge(&names::ARCHIVES),
            archives_size: metrics.gauge(&names::ARCHIVES_SIZE),
        }
    }

    /// A ClipImage was looked at.
    pub fn reconciled(&self, took: Duration, ok: bool) {
        let result = if ok { "ok" } else { "error" };
        self.reconciles
            .get_or_create(&ByResult {
                result: result.into(),
            })
            .inc();
        self.reconcile_duration.observe(took.as_secs_f64());
    }

    /// Something worth an event happened.
    pub fn noticed(&self, notice: &Notice) {
        let finished = match notice.reason {
            "IndexStarted" => {
                self.jobs_started.inc();
                return;
            }
            "IndexSucceeded" => "Indexed".to_owned(),
            "IndexFailed" => notice
                .message
                .split(':')
                .next()
                .unwrap_or_default()
                .to_owned(),
            _ => return,
        };
        self.jobs_finished
            .get_or_create(&ByResult { result: finished })
            .inc();
    }

    /// How many ClipImages there are.
    pub fn images(&self, ready: usize, not_ready: usize) {
        let set = |ready, number: usize| {
            self.images
                .get_or_create(&ByReady { ready })
                .set(i64::try_from(number).unwrap_or(i64::MAX));
        };
        set("True", ready);
        set("False", not_ready);
    }

    /// How many archives there are, and their bytes.
    pub fn archives(&self, number: usize, bytes: u64) {
        self.archives.set(i64::try_from(number).unwrap_or(i64::MAX));
        self.archives_size
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// An upload was answered.
    pub fn upload(&self, code: u16) {
        self.uploads.get_or_create(&ByCode { code }).inc();
    }

    /// A download was answered.
    pub fn download(&self, code: u16) {
        self.downloads.get_or_create(&ByCode { code }).inc();
    }
}
