//! Logs and metrics. Neither ever holds a text of a request or a data set.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use flywheel_policy::drift::{FEATURES, Verdict};
use flywheel_policy::recovery::incident::News;
use flywheel_policy::serving::scale::Reason;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// Starts logging to standard output; `RUST_LOG` filters, `info` without it.
///
/// # Errors
/// Logging was started already, or the filter cannot be read.
pub fn start_logging(format: LogFormat) -> Result<(), String> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|e| format!("RUST_LOG={text}: {e}"))?,
        _ => EnvFilter::new("info,kube=warn,hyper=warn,tower=warn"),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    match format {
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init(),
        LogFormat::Text => builder.try_init(),
    }
    .map_err(|e| e.to_string())
}

/// Labels of a reconcile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReconcileLabels {
    kind: String,
    result: String,
}

/// Labels of what counts per kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: String,
}

/// Labels of a write.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    verb: String,
    kind: String,
    result: String,
}

/// Labels of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServiceLabels {
    /// Namespace of the InferenceService.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What is known of a service's load and size. What is not known keeps its last value.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServiceFigures {
    /// Pods that the load wants.
    pub wanted: u32,
    /// Requests a second.
    pub qps: Option<f64>,
    /// Requests under way at once.
    pub concurrency: Option<f64>,
    /// Seconds within which 99 of 100 requests are answered.
    pub p99: Option<f64>,
    /// Requests a second that one pod carries within the latency objective.
    pub capacity: Option<f64>,
    /// Part of their time for which workers compute.
    pub busy: Option<f64>,
    /// Part of the requests that is refused.
    pub refused: Option<f64>,
}

/// Labels of decisions about a service's size.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResizeLabels {
    namespace: String,
    name: String,
    reason: String,
}

impl ResizeLabels {
    fn of(service: &ServiceLabels, reason: Reason) -> Self {
        Self {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            reason: reason.as_str().to_owned(),
        }
    }
}

/// Labels of what is compared of a service's live texts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FeatureLabels {
    namespace: String,
    name: String,
    feature: String,
}

impl FeatureLabels {
    fn of(service: &ServiceLabels, feature: &str) -> Self {
        Self {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            feature: feature.to_owned(),
        }
    }
}

/// Gauges of services.
type OfServices = Family<ServiceLabels, Gauge<f64, AtomicU64>>;

/// Upper bounds of the reconcile histogram, in seconds: from a look at the caches to the time limit.
const SECONDS: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 5.0, 20.0];

fn histogram() -> Histogram {
    Histogram::new(SECONDS)
}

/// Labels of a stage of a recovery.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RecoveryLabels {
    kind: String,
    cause: String,
    stage: String,
}

/// Upper bounds of the recovery histogram, in seconds, up to twice the promise.
const RECOVERY_SECONDS: [f64; 12] = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0];

fn recovery_histogram() -> Histogram {
    Histogram::new(RECOVERY_SECONDS)
}

/// The operator's counters.
#[derive(Clone, Debug)]
pub struct Metrics {
    reconciles: Family<ReconcileLabels, Counter<u64, AtomicU64>>,
    seconds: Family<KindLabels, Histogram, fn() -> Histogram>,
    writes: Family<WriteLabels, Counter<u64, AtomicU64>>,
    watch_errors: Family<KindLabels, Counter<u64, AtomicU64>>,
    scrapes: Family<ReconcileLabels, Counter<u64, AtomicU64>>,
    objects: Family<KindLabels, Gauge<i64, AtomicI64>>,
    leads: Gauge<i64, AtomicI64>,
    services: [OfServices; 7],
    resized: Family<ResizeLabels, Counter<u64, AtomicU64>>,
    /// Shares of right answers, now and before, and whether texts have drifted.
    live: [OfServices; 3],
    psi: Family<FeatureLabels, Gauge<f64, AtomicU64>>,
    recoveries: Family<RecoveryLabels, Histogram, fn() -> Histogram>,
    waiting: Family<KindLabels, Gauge<i64, AtomicI64>>,
    api_limit: Gauge<i64, AtomicI64>,
    api_refusals: Counter<u64, AtomicU64>,
    registry: Arc<Registry>,
}

impl Default for Metrics {
    fn default() -> Self {
        let reconciles = Family::default();
        let seconds = Family::new_with_constructor(histogram as fn() -> Histogram);
        let writes = Family::default();
        let watch_errors = Family::default();
        let scrapes = Family::default();
        let objects = Family::default();
        let leads = Gauge::default();
        let mut registry = Registry::with_prefix("flywheel_operator");
        registry.register(
            "reconciles",
            "Reconciles by kind and how they ended",
            reconciles.clone(),
        );
        registry.register("reconcile_seconds", "How long a reconcile takes", seconds.clone());
        registry.register("api_writes", "Writes to the API server", writes.clone());
        registry.register("watch_errors", "Errors of watches, by kind", watch_errors.clone());
        registry.register("scrapes", "Reads of pods over HTTP", scrapes.clone());
        registry.register("cached_objects", "Objects in the caches", objects.clone());
        registry.register("leads", "1 while this replica leads", leads.clone());
        let services = [
            ("service_wanted_replicas", "Pods that a service's load wants"),
            ("service_requests_per_second", "Requests a second to a service"),
            (
                "service_concurrent_requests",
                "Requests to a service that are under way at once",
            ),
            (
                "service_latency_p99_seconds",
                "Time within which 99 of 100 requests to a service are answered",
            ),
            (
                "service_capacity_requests_per_second",
                "Requests a second that one pod of a service carries within its latency objective",
            ),
            (
                "service_busy_ratio",
                "Part of their time for which the workers of a service's pods compute",
            ),
            (
                "service_refused_ratio",
                "Part of the requests to a service that its pods refuse",
            ),
        ]
        .map(|(name, help)| {
            let family = OfServices::default();
            registry.register(name, help, family.clone());
            family
        });
        let resized = Family::default();
        registry.register(
            "service_resizes",
            "Decisions that changed the number of pods that a service's load wants",
            resized.clone(),
        );
        let live = [
            (
                "service_accuracy",
                "Share of a service's answers that clients say were right, in the hours that were compared last",
            ),
            (
                "service_accuracy_before",
                "The same in what they were compared with: the hours a week before, or the version's first ones",
            ),
            (
                "service_drifted",
                "1 while a service's live texts have drifted, 0 while they have not",
            ),
        ]
        .map(|(name, help)| {
            let family = OfServices::default();
            registry.register(name, help, family.clone());
            family
        });
        let psi = Family::default();
        registry.register(
            "service_drift_psi",
            "Population stability index of each feature of a service's live texts in the last window that was judged",
            psi.clone(),
        );
        let recoveries = Family::new_with_constructor(recovery_histogram as fn() -> Histogram);
        registry.register(
            "recovery_seconds",
            "How long a recovery took, by what failed and by stage; the stage total leaves out time without room",
            recoveries.clone(),
        );
        let waiting = Family::default();
        registry.register("waiting_objects", "Objects that wait to be looked at", waiting.clone());
        let api_limit = Gauge::default();
        registry.register(
            "api_calls_limit",
            "Calls of the API server that may be under way at once; it falls where the server refuses or is slow",
            api_limit.clone(),
        );
        let api_refusals = Counter::default();
        registry.register(
            "api_refusals",
            "Answers of the API server that it has too much to do (429, 503, 504)",
            api_refusals.clone(),
        );
        Self {
            reconciles,
            seconds,
            writes,
            watch_errors,
            scrapes,
            objects,
            leads,
            services,
            resized,
            live,
            psi,
            recoveries,
            waiting,
            api_limit,
            api_refusals,
            registry: Arc::new(registry),
        }
    }
}

impl Metrics {
    /// A reconcile of `kind` ended with `result` (`Ok` or an error's kind) after `took`.
    pub fn reconcile(&self, kind: &str, result: &str, took: Duration) {
        self.reconciles
            .get_or_create(&ReconcileLabels {
                kind: kind.to_owned(),
                result: result.to_owned(),
            })
            .inc();
        self.seconds
            .get_or_create(&KindLabels { kind: kind.to_owned() })
            .observe(took.as_secs_f64());
    }

    /// So many objects of `kind` wait to be looked at.
    pub fn waiting(&self, kind: &str, count: usize) {
        self.waiting
            .get_or_create(&KindLabels { kind: kind.to_owned() })
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// So many calls of the API server may be under way at once.
    pub fn api_limit(&self, calls: usize) {
        self.api_limit.set(i64::try_from(calls).unwrap_or(i64::MAX));
    }

    /// The API server said that it has too much to do.
    pub fn api_refusal(&self) {
        self.api_refusals.inc();
    }

    /// A write was answered, or failed.
    pub fn write(&self, verb: &str, kind: &str, ok: bool) {
        self.writes
            .get_or_create(&WriteLabels {
                verb: verb.to_owned(),
                kind: kind.to_owned(),
                result: if ok { "Ok" } else { "Error" }.to_owned(),
            })
            .inc();
    }

    /// A watch failed; it is started again.
    pub fn watch_error(&self, kind: &str) {
        self.watch_errors
            .get_or_create(&KindLabels { kind: kind.to_owned() })
            .inc();
    }

    /// A pod was read, or could not be.
    pub fn scrape(&self, what: &str, ok: bool) {
        self.scrapes
            .get_or_create(&ReconcileLabels {
                kind: what.to_owned(),
                result: if ok { "Ok" } else { "Error" }.to_owned(),
            })
            .inc();
    }

    /// What is known of a service now.
    pub fn service(&self, of: &ServiceLabels, figures: &ServiceFigures) {
        let values = [
            Some(f64::from(figures.wanted)),
            figures.qps,
            figures.concurrency,
            figures.p99,
            figures.capacity,
            figures.busy,
            figures.refused,
        ];
        for (family, value) in self.services.iter().zip(values) {
            if let Some(value) = value {
                family.get_or_create(of).set(value);
            }
        }
    }

    /// What there is to say of a service's live texts and answers; what is not known any more is not shown.
    pub fn live(&self, of: &ServiceLabels, verdict: Option<&Verdict>) {
        fn show<S: Clone + std::hash::Hash + Eq>(
            family: &Family<S, Gauge<f64, AtomicU64>>,
            of: &S,
            value: Option<f64>,
        ) {
            match value {
                Some(value) => _ = family.get_or_create(of).set(value),
                None => _ = family.remove(of),
            }
        }
        let [now, before] = verdict
            .and_then(|verdict| verdict.quality.shares())
            .map_or([None; 2], |shares| shares.map(Some));
        let drifted = verdict
            .and_then(|verdict| verdict.drifted)
            .map(|drifted| f64::from(u8::from(drifted)));
        for (family, value) in self.live.iter().zip([now, before, drifted]) {
            show(family, of, value);
        }
        let last = verdict.and_then(|verdict| verdict.last.as_ref());
        for name in FEATURES {
            let feature = last.and_then(|last| last.features.iter().find(|feature| feature.name == name));
            show(
                &self.psi,
                &FeatureLabels::of(of, name),
                feature.map(|feature| feature.psi),
            );
        }
    }

    /// Another number of pods is wanted, and why.
    pub fn resized(&self, of: &ServiceLabels, reason: Reason) {
        self.resized.get_or_create(&ResizeLabels::of(of, reason)).inc();
    }

    /// An incident of an object of `kind` is over.
    pub fn recovery(&self, kind: &str, news: &News) {
        let News::Over(incident) = news else {
            return;
        };
        let counted = incident
            .seconds()
            .saturating_sub(incident.capacity_seconds.unwrap_or(0));
        let stages = [
            ("detect", Some(incident.detect_seconds)),
            ("decide", incident.decide_seconds),
            ("replace", incident.replace_seconds),
            ("recover", incident.recover_seconds),
            ("total", Some(counted)),
        ];
        for (stage, seconds) in stages {
            let labels = RecoveryLabels {
                kind: kind.to_owned(),
                cause: incident.cause.as_str().to_owned(),
                stage: stage.to_owned(),
            };
            if let Some(seconds) = seconds {
                self.recoveries.get_or_create(&labels).observe(f64::from(seconds));
            }
        }
    }

    /// A service is gone, or is not looked at any more.
    pub fn forget(&self, of: &ServiceLabels) {
        for family in &self.services {
            family.remove(of);
        }
        for reason in Reason::ALL {
            self.resized.remove(&ResizeLabels::of(of, reason));
        }
    }

    /// Whether this replica leads.
    pub fn leads(&self, leads: bool) {
        self.leads.set(i64::from(leads));
    }

    /// The metrics as OpenMetrics text.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn encode(&self, sizes: &[(&'static str, usize)]) -> Result<String, std::fmt::Error> {
        for (kind, size) in sizes {
            self.objects
                .get_or_create(&KindLabels {
                    kind: (*kind).to_owned(),
                })
                .set(i64::try_from(*size).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use flywheel_contract::profile::Judged as FeedbackCounts;
    use flywheel_policy::drift::{Comparison, Feature, Judged, QualityVerdict, Span};
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        metrics.reconcile("TrainingJob", "Ok", Duration::from_millis(3));
        metrics.write("create", "Job", true);
        metrics.leads(true);
        let of = |name: &str| ServiceLabels {
            namespace: "team".to_owned(),
            name: name.to_owned(),
        };
        let figures = ServiceFigures {
            wanted: 3,
            qps: Some(41.5),
            ..ServiceFigures::default()
        };
        metrics.service(&of("intent"), &figures);
        metrics.service(&of("gone"), &figures);
        for name in ["intent", "gone"] {
            metrics.resized(&of(name), Reason::LoadRose);
        }
        metrics.forget(&of("gone"));
        let span = |correct| Span {
            from: 0,
            to: 1,
            judged: FeedbackCounts {
                predictions: 1000,
                correct,
            },
        };
        let verdict = Verdict {
            drifted: Some(true),
            last: Some(Judged {
                id: 1,
                end: Timestamp::UNIX_EPOCH,
                texts: 500,
                reference: 500,
                features: vec![Feature {
                    name: FEATURES[1],
                    psi: 0.25,
                    by_chance: 0.02,
                    ks: None,
                    drifted: true,
                }],
            }),
            quality: QualityVerdict {
                last: Some(Comparison {
                    now: span(875),
                    before: span(900),
                    week_ago: false,
                    dropped: false,
                }),
                ..QualityVerdict::default()
            },
            ..Verdict::default()
        };
        for name in ["intent", "gone"] {
            metrics.live(&of(name), Some(&verdict));
        }
        metrics.live(&of("gone"), None);
        let text = metrics.encode(&[("pods", 7)]).unwrap();
        for line in [
            r#"flywheel_operator_reconciles_total{kind="TrainingJob",result="Ok"} 1"#,
            r#"flywheel_operator_api_writes_total{verb="create",kind="Job",result="Ok"} 1"#,
            r#"flywheel_operator_cached_objects{kind="pods"} 7"#,
            "flywheel_operator_leads 1",
            r#"flywheel_operator_service_wanted_replicas{namespace="team",name="intent"} 3.0"#,
            r#"flywheel_operator_service_requests_per_second{namespace="team",name="intent"} 41.5"#,
            r#"flywheel_operator_service_resizes_total{namespace="team",name="intent",reason="LoadRose"} 1"#,
            r#"flywheel_operator_service_accuracy{namespace="team",name="intent"} 0.875"#,
            r#"flywheel_operator_service_accuracy_before{namespace="team",name="intent"} 0.9"#,
            r#"flywheel_operator_service_drifted{namespace="team",name="intent"} 1.0"#,
            r#"flywheel_operator_service_drift_psi{namespace="team",name="intent",feature="confidence"} 0.25"#,
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("gone"), "{text}");
    }
}
