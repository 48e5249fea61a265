//! Every metric of Clip in one table, and the registry that exposes them.
//!
//! A metric is made only from its row: [`Metrics::counter`] and its siblings take a [`Def`], so no name,
//! unit or help text is written anywhere else. Names are given without the suffixes that OpenMetrics adds
//! (`_total`, the unit).

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use std::{fmt::Debug, hash::Hash};

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Def {
    /// The name, without unit and `_total`.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// What is counted.
    pub unit: MetricUnit,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// Whether dashboards may rely on it.
    pub stability: Stability,
    /// One sentence for people, without a final full stop.
    pub help: &'static str,
}

/// Counter, gauge or histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// What a metric's number means. The base units of OpenMetrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricUnit {
    /// A plain number of things.
    Count,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
}

/// Whether dashboards may rely on a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stability {
    /// Changes only with a deprecation.
    Stable,
    /// May change in any release.
    Alpha,
}

macro_rules! table {
    ($($(#[$doc:meta])* $id:ident = $name:literal, $kind:ident, $unit:ident, [$($label:literal),*], $stability:ident, $help:literal;)*) => {
        $($(#[$doc])*
        #[doc = $help]
        pub const $id: Def = Def {
            name: $name,
            kind: Kind::$kind,
            unit: MetricUnit::$unit,
            labels: &[$($label),*],
            stability: Stability::$stability,
            help: $help,
        };)*
        /// All rows, in the order of the table.
        pub const TABLE: &[Def] = &[$($id),*];
    };
}

table! {
    BUILD_INFO = "clip_build_info", Gauge, Count, ["component", "version"], Stable,
        "Always 1; the labels say which component of which version this is";

    OPERATOR_RECONCILES = "clip_operator_reconciles", Counter, Count, ["result"], Alpha,
        "Times that a ClipImage was looked at, by result: ok or error";
    OPERATOR_RECONCILE_DURATION = "clip_operator_reconcile_duration", Histogram, Seconds, [], Alpha,
        "Time that looking at one ClipImage took";
    OPERATOR_JOBS_STARTED = "clip_operator_jobs_started", Counter, Count, [], Stable,
        "Indexing Jobs that were created";
    OPERATOR_JOBS_FINISHED = "clip_operator_jobs_finished", Counter, Count, ["result"], Stable,
        "Indexing Jobs that ended, by result: Indexed, or the reason of the failure";
    OPERATOR_IMAGES = "clip_operator_images", Gauge, Count, ["ready"], Stable,
        "ClipImages, by the status of their condition Ready";

    ARCHIVE_UPLOADS = "clip_archive_uploads", Counter, Count, ["code"], Stable,
        "Uploads to the archive service, by HTTP status";
    ARCHIVE_DOWNLOADS = "clip_archive_downloads", Counter, Count, ["code"], Stable,
        "Downloads from the archive service, by HTTP status";
    ARCHIVES = "clip_archives", Gauge, Count, [], Stable,
        "Archives on the disk of the archive service";
    ARCHIVES_SIZE = "clip_archives_size", Gauge, Bytes, [], Stable,
        "Bytes of the archives on the disk of the archive service";

    CSI_REQUESTS = "clip_csi_requests", Counter, Count, ["method", "code"], Stable,
        "Requests of kubelet to the CSI node plugin, by method and gRPC code";
    CSI_REQUEST_DURATION = "clip_csi_request_duration", Histogram, Seconds, [], Stable,
        "Time that requests to publish and unpublish volumes took, waiting for an index included";
    CSI_ARCHIVES_MOUNTED = "clip_csi_archives_mounted", Gauge, Count, [], Stable,
        "Archives that are mounted on this node";
    CSI_VOLUMES = "clip_csi_volumes", Gauge, Count, ["engine"], Stable,
        "Volumes of pods that are published on this node, by who serves their trees: fuse (Clip) or erofs (the kernel)";
    CACHE_SIZE = "clip_cache_size", Gauge, Bytes, [], Stable,
        "Bytes that the cache of image contents takes on this node's disk";
    CACHE_READS = "clip_cache_reads", Counter, Count, ["result"], Alpha,
        "Reads that reached clip-serve, by result: hit (answered from the node's disk) or miss (something was fetched)";
    CACHE_READS_FAILED = "clip_cache_failed_reads", Counter, Count, [], Stable,
        "Reads that failed with an I/O error because image contents could not be had";
    CACHE_SPANS_EVICTED = "clip_cache_evicted_spans", Counter, Count, [], Alpha,
        "Pieces of image contents that were taken from the cache to make room";
    CACHE_EVICTED = "clip_cache_evicted", Counter, Bytes, [], Alpha,
        "Bytes on the disk that became free thereby";
    CACHE_SPANS_NOT_KEPT = "clip_cache_unkept_spans", Counter, Count, [], Stable,
        "Pieces of image contents that were served from memory because the disk did not take them";
    CACHE_SPANS_DAMAGED = "clip_cache_damaged_spans", Counter, Count, [], Stable,
        "Pieces of image contents that were damaged on the disk, and fetched again";
    WARM_UP_IMAGES = "clip_warm_up_images", Gauge, Count, ["state"], Alpha,
        "Images that ClipImages want on this node whole, by state: waiting, warm (all of it is there) or failed (the last try)";
    WARM_UP_FETCHED = "clip_warm_up_fetched", Counter, Bytes, [], Alpha,
        "Compressed bytes that were fetched for them, of tries that succeeded";
    SERVE_RESTARTS = "clip_serve_restarts", Counter, Count, [], Stable,
        "Times that the data process clip-serve ended and was started again";
}

/// The registry of a process.
#[derive(Debug, Default)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// A registry that holds [`BUILD_INFO`] for `component`.
    pub fn new(component: &str, version: &str) -> Self {
        let mut metrics = Self::default();
        let info = metrics.gauges::<Vec<(String, String)>>(&BUILD_INFO);
        info.get_or_create(&vec![
            ("component".to_owned(), component.to_owned()),
            ("version".to_owned(), version.to_owned()),
        ])
        .set(1);
        metrics
    }

    /// A counter without labels.
    pub fn counter(&mut self, def: &Def) -> Counter {
        self.register(def, Kind::Counter, Counter::default())
    }

    /// A counter for each set of labels.
    pub fn counters<L: Labels>(&mut self, def: &Def) -> Family<L, Counter> {
        self.register(def, Kind::Counter, Family::default())
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, def: &Def) -> Gauge {
        self.register(def, Kind::Gauge, Gauge::default())
    }

    /// A gauge for each set of labels.
    pub fn gauges<L: Labels>(&mut self, def: &Def) -> Family<L, Gauge> {
        self.register(def, Kind::Gauge, Family::default())
    }

    /// A histogram without labels; `buckets` are upper bounds in the row's unit.
    pub fn histogram(&mut self, def: &Def, buckets: &[f64]) -> Histogram {
        self.register(
            def,
            Kind::Histogram,
            Histogram::new(buckets.iter().copied()),
        )
    }

    /// The text that `/metrics` answers with (OpenMetrics 1.0).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("writing to a String cannot fail");
        text
    }

    fn register<M>(&mut self, def: &Def, kind: Kind, metric: M) -> M
    where
        M: prometheus_client::registry::Metric + Clone,
    {
        debug_assert_eq!(
            def.kind, kind,
            "{} is not a {kind:?} in the table",
            def.name
        );
        match def.unit {
            MetricUnit::Count => self.registry.register(def.name, def.help, metric.clone()),
            MetricUnit::Seconds => {
                self.registry
                    .register_with_unit(def.name, def.help, Unit::Seconds, metric.clone())
            }
            MetricUnit::Bytes => {
                self.registry
                    .register_with_unit(def.name, def.help, Unit::Bytes, metric.clone())
            }
        }
        metric
    }
}

/// A set of labels: derive `EncodeLabelSet` on a struct whose fields are the row's labels.
pub trait Labels: EncodeLabelSet + Clone + Hash + Eq + Debug + Send + Sync + 'static {}

impl<T: EncodeLabelSet + Clone + Hash + Eq + Debug + Send + Sync + 'static> Labels for T {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_row_has_a_name_of_its_own_and_leaves_the_suffixes_to_openmetrics() {
        let names: HashSet<_> = TABLE.iter().map(|def| def.name).collect();
        assert_eq!(names.len(), TABLE.len());
        for def in TABLE {
            assert!(def.name.starts_with("clip_"), "{}", def.name);
            assert!(
                !def.name.ends_with("_total") && !def.name.ends_with("_seconds"),
                "{}",
                def.name
            );
            assert!(
                !def.name.ends_with("_bytes") && !def.help.ends_with('.'),
                "{}",
                def.name
            );
        }
    }

    #[test]
    fn what_is_counted_is_exposed_under_its_name_and_unit() {
        let mut metrics = Metrics::new("test", "1.2.3");
        metrics.counter(&OPERATOR_JOBS_STARTED).inc();
        metrics
            .histogram(&OPERATOR_RECONCILE_DURATION, &[0.1])
            .observe(0.05);
        let text = metrics.encode();
        for line in [
            "clip_build_info{component=\"test\",version=\"1.2.3\"} 1",
            "clip_operator_jobs_started_total 1",
            "clip_operator_reconcile_duration_seconds_bucket{le=\"0.1\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
