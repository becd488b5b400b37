//! Figures of the inside port. No label takes a value from a request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flywheel_contract::serving::LATENCY_BOUNDS;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::demand::Demand;

/// Bounds in rows.
const ROWS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    version: String,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MirrorLabels {
    version: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    version: String,
}

/// The figures.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Histogram, fn() -> Histogram>,
    /// Rows of each batch.
    pub batch_size: Histogram,
    queue_depth: Gauge,
    in_flight: Gauge,
    concurrency_limit: Gauge,
    load_seconds: Gauge<f64, AtomicU64>,
    mirrored: Family<MirrorLabels, Counter>,
    mirror_seconds: Family<VersionLabels, Histogram, fn() -> Histogram>,
    feedback: Family<OutcomeLabels, Counter>,
    captured: Family<OutcomeLabels, Counter>,
    retention: Family<OutcomeLabels, Counter>,
    answered: [AtomicU64; 3],
    pub demand: Demand,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::<RequestLabels, Histogram, fn() -> Histogram>::new_with_constructor(|| {
            Histogram::new(LATENCY_BOUNDS)
        });
        let batch_size = Histogram::new(ROWS);
        let [queue_depth, in_flight, concurrency_limit] = [(); 3].map(|()| Gauge::default());
        let load_seconds = Gauge::<f64, AtomicU64>::default();
        registry.register(
            "flywheel_request_duration_seconds",
            "Time from a request's head to its answer, by version and class of status",
            requests.clone(),
        );
        registry.register("flywheel_batch_size", "Texts computed together", batch_size.clone());
        registry.register(
            "flywheel_queue_depth",
            "Texts that wait for a worker",
            queue_depth.clone(),
        );
        registry.register(
            "flywheel_in_flight_texts",
            "Texts that wait or are computed",
            in_flight.clone(),
        );
        registry.register(
            "flywheel_concurrency_limit_texts",
            "Texts that are taken at once, by maxConcurrency and by how fast they are computed",
            concurrency_limit.clone(),
        );
        registry.register(
            "flywheel_model_load_seconds",
            "Time to fetch, verify, load and warm up the newest version",
            load_seconds.clone(),
        );
        let mirrored = Family::<MirrorLabels, Counter>::default();
        registry.register(
            "flywheel_mirror_texts",
            "Texts copied to the version of spec.mirror, by what came of it: the same label as was answered, a different one, \
             shed since the pod was busy, failed",
            mirrored.clone(),
        );
        let mirror_seconds = Family::<VersionLabels, Histogram, fn() -> Histogram>::new_with_constructor(|| {
            Histogram::new(LATENCY_BOUNDS)
        });
        registry.register(
            "flywheel_mirror_duration_seconds",
            "Time from the copy of a request to its answer",
            mirror_seconds.clone(),
        );
        let [feedback, captured, retention] = [(); 3].map(|()| Family::<OutcomeLabels, Counter>::default());
        registry.register(
            "flywheel_feedback",
            "What clients said of predictions, by what became of it: counted, duplicate, expired, invalid",
            feedback.clone(),
        );
        registry.register(
            "flywheel_captured_records",
            "Texts and judgements for training, by what became of them: written, dropped since there was no room; failed counts \
             files that the storage did not take",
            captured.clone(),
        );
        registry.register(
            "flywheel_retention_files",
            "Files of kept texts older than retentionDays: removed; failed counts looks that the storage did not let finish",
            retention.clone(),
        );
        Self {
            registry,
            feedback,
            captured,
            retention,
            mirrored,
            mirror_seconds,
            requests,
            batch_size,
            queue_depth,
            in_flight,
            concurrency_limit,
            load_seconds,
            answered: Default::default(),
            demand: Demand::default(),
        }
    }

    /// Counts an answer to a question to the model, of any protocol.
    pub fn answered(&self, version: &str, status: u16, duration: Duration) {
        let (class, name) = match status {
            0..400 => (0, "2xx"),
            400..500 => (1, "4xx"),
            _ => (2, "5xx"),
        };
        if let Some(count) = self.answered.get(class) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let labels = RequestLabels {
            version: version.to_owned(),
            status: name,
        };
        self.requests.get_or_create(&labels).observe(duration.as_secs_f64());
    }

    /// Answers by class of status: 2xx, 4xx, 5xx.
    pub fn answers(&self) -> [u64; 3] {
        self.answered.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// Counts texts that were copied to a version.
    pub fn mirrored(&self, version: &str, outcome: &'static str, texts: usize) {
        let labels = MirrorLabels {
            version: version.to_owned(),
            outcome,
        };
        self.mirrored.get_or_create(&labels).inc_by(texts as u64);
    }

    /// Notes how long a copy took.
    pub fn mirror_seconds(&self, version: &str, duration: Duration) {
        let labels = VersionLabels {
            version: version.to_owned(),
        };
        self.mirror_seconds
            .get_or_create(&labels)
            .observe(duration.as_secs_f64());
    }

    /// Counts what a client said of a prediction.
    pub fn feedback(&self, outcome: &'static str) {
        self.feedback.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Counts records for training.
    pub fn captured(&self, outcome: &'static str, records: u64) {
        self.captured.get_or_create(&OutcomeLabels { outcome }).inc_by(records);
    }

    /// Counts files of days that are over.
    pub fn retention(&self, outcome: &'static str, files: u64) {
        self.retention.get_or_create(&OutcomeLabels { outcome }).inc_by(files);
    }

    pub fn loaded(&self, duration: Duration) {
        self.load_seconds.set(duration.as_secs_f64());
    }

    /// The text that Prometheus reads.
    pub fn text(&self, queue_depth: usize, in_flight: usize, concurrency_limit: usize) -> String {
        let gauges = [
            (&self.queue_depth, queue_depth),
            (&self.in_flight, in_flight),
            (&self.concurrency_limit, concurrency_limit),
        ];
        for (gauge, value) in gauges {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
