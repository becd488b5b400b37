//! What both ports share: how far the pod is, its versions, its figures.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flywheel_contract::failure::Failure;
use flywheel_contract::names::READYZ_PATH;
use flywheel_contract::profile::LiveProfiles;
use flywheel_contract::serving::{Assignment, Crash, ServedVersion, ServingConfig, ServingLimits, Stats};
use flywheel_contract::{SCHEMA_VERSION, serving};
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::engine::Engine;
use crate::feedback::{Feedback, Receipts};
use crate::marks::Mark;
use crate::metrics::Metrics;
use crate::mirror::Copies;
use crate::model::LoadedVersion;
use crate::profile::{Profiles, unix_seconds};
use crate::traces::Traces;
use crate::versions::{Version, Versions};

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// No version is loaded yet.
    Loading,
    /// It answers.
    Ready,
    /// It was told to end, is unready and answers what still comes, until every client's endpoints have changed.
    Leaving,
    /// It answers what it has begun and refuses the rest.
    Draining,
    /// Connections are closed.
    Closing,
}

/// How long one batch may take before the pod counts as stuck. The longest that fits the limits takes seconds.
const STUCK: Duration = Duration::from_secs(60);
/// How often counts are read whose worker is held up in the middle of writing them, and the time in between: a second in all.
const READINGS: u32 = 100;
const BETWEEN_READINGS: Duration = Duration::from_millis(10);
/// Bytes of request bodies that may be in memory beside the small first part of each.
const BODY_BUDGET_BYTES: usize = 32 * 1024 * 1024;
/// Unit of the budget, and what each body may have without asking.
pub(crate) const BODY_UNIT_BYTES: usize = 16 * 1024;

/// State of a serving pod.
pub struct App {
    pub(crate) service: serving::ServiceIdentity,
    limits: ServingLimits,
    marks: Option<PathBuf>,
    started: Instant,
    phase: watch::Sender<Phase>,
    pub(crate) versions: Versions,
    pub(crate) profiles: Profiles,
    broken: mpsc::Sender<Failure>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) traces: Option<Traces>,
    pub(crate) feedback: Option<Feedback>,
    pub(crate) bodies: Arc<Semaphore>,
    pub(crate) openapi: Bytes,
    /// Questions to the model, of any protocol, that have begun and are not answered.
    pub(crate) requests: watch::Sender<usize>,
    pub(crate) copies: Copies,
    places: AtomicU64,
    ids: AtomicU64,
    id_prefix: u64,
}

impl App {
    /// A pod that has loaded nothing yet. `marks`: the folder in which its next process looks for what this one computed, where
    /// there is to be one. `traces`: where spans of its requests go. `receipts`: what clients can
    /// say of predictions by; texts are kept from within a runtime only. The receiver gets the failure of a device that works no
    /// more: the process must end then.
    #[must_use]
    pub fn new(
        config: &ServingConfig,
        marks: Option<&Path>,
        traces: Option<Traces>,
        receipts: Option<Receipts>,
    ) -> (Arc<Self>, mpsc::Receiver<Failure>) {
        let (broken, receiver) = mpsc::channel(1);
        let document = flywheel_wire::openapi::document(&config.service.name, READYZ_PATH, env!("CARGO_PKG_VERSION"));
        let metrics = Arc::new(Metrics::new());
        // The standard library's only source of randomness; ids must differ between pods, not be secret.
        let id_prefix = RandomState::new().hash_one(std::process::id());
        let app = Self {
            service: config.service.clone(),
            limits: config.limits.clone(),
            marks: marks.map(Path::to_owned),
            started: Instant::now(),
            phase: watch::Sender::new(Phase::Loading),
            versions: Versions::default(),
            profiles: Profiles::default(),
            broken,
            copies: Copies::new(&metrics),
            feedback: receipts.map(|receipts| Feedback::start(receipts, &config.service.name, &metrics)),
            metrics,
            traces: traces.map(|traces| {
                let paths = document.get("paths").and_then(Value::as_object);
                traces.with_routes(paths.into_iter().flat_map(|paths| paths.keys().cloned()))
            }),
            bodies: Arc::new(Semaphore::new(BODY_BUDGET_BYTES / BODY_UNIT_BYTES)),
            openapi: Bytes::from(document.to_string()),
            requests: watch::Sender::new(0),
            // Pods begin at different places, so that they do not all give their first requests to one version.
            places: AtomicU64::new(id_prefix),
            ids: AtomicU64::new(0),
            id_prefix,
        };
        (Arc::new(app), receiver)
    }

    /// Follows an assignment as far as its versions are loaded. False for one that is older than the one followed.
    pub fn follow(&self, assignment: &Assignment) -> bool {
        let followed = self.versions.follow(assignment);
        if followed {
            self.profiles.set_window_seconds(assignment.window_seconds());
        }
        followed
    }

    /// Starts a version's workers and warms them up; it answers from then on if it is to, and the pod is ready with the first
    /// that does. `since`: when its loading began.
    ///
    /// # Errors
    /// Why the version cannot compute.
    pub async fn install(&self, served: ServedVersion, loaded: LoadedVersion, since: Instant) -> Result<(), Failure> {
        let mark = Mark::open(self.marks.as_deref(), &served.artifact.digest, loaded.models.len()).await;
        let counters = self
            .profiles
            .counters(&served, loaded.profile.clone(), loaded.models.len());
        let engine = Engine::start(loaded, mark, counters, &self.limits, &self.metrics, &self.broken).await?;
        self.metrics.loaded(since.elapsed());
        tracing::info!(
            service = %format!("{}/{}", self.service.namespace, self.service.name),
            version = served.name,
            seconds = since.elapsed().as_secs_f64(),
            "loaded"
        );
        self.versions.loaded(Version { served, engine });
        self.ready_if_answering();
        Ok(())
    }

    /// It could not be loaded; the pod may be ready without it.
    pub(crate) fn failed(&self, served: &ServedVersion, failure: Failure) {
        self.versions.failed(served, failure);
        self.ready_if_answering();
    }

    /// It is held back for a crash; the pod may be ready without it.
    pub(crate) fn held_back(&self, served: &ServedVersion, crash: &Crash) {
        self.versions.held_back(served, crash);
        self.ready_if_answering();
    }

    fn ready_if_answering(&self) {
        if self.versions.answering().is_some() {
            self.advance(Phase::Ready);
        }
    }

    /// Goes on to a later phase; never back.
    pub(crate) fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = phase > *now;
            if later {
                *now = phase;
            }
            later
        });
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// The place of a request among all.
    pub(crate) fn next_place(&self) -> u64 {
        self.places.fetch_add(1, Ordering::Relaxed)
    }

    /// A new request id: differs between pods, and between requests of a pod.
    pub(crate) fn next_id(&self) -> String {
        format!("{:016x}-{:x}", self.id_prefix, self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether the workers get on.
    pub(crate) fn alive(&self) -> bool {
        let versions = self.versions.all();
        versions.iter().all(|version| version.engine.longest_batch() < STUCK)
    }

    /// The process ends because it was told to: no version is to blame for that, but one that keeps a worker for ever.
    pub(crate) fn leave(&self) {
        for version in self.versions.all() {
            version.engine.leave(STUCK);
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let (generation, serving, versions) = self.versions.stats();
        Stats {
            schema_version: SCHEMA_VERSION,
            ready: self.phase() == Phase::Ready,
            generation,
            serving,
            versions,
            answered: self.metrics.answers(),
            in_flight: u32::try_from(self.sum(Engine::in_flight)).unwrap_or(u32::MAX),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            load: Some(self.metrics.demand.until_now(self.sum(Engine::workers))),
        }
    }

    /// What it answered lately; `None` where a worker is held up for too long in the middle of writing its counts.
    pub(crate) async fn live_profiles(&self) -> Option<LiveProfiles> {
        for _ in 0..READINGS {
            if let Some((window_seconds, versions)) = self.profiles.told(unix_seconds()) {
                return Some(LiveProfiles {
                    schema_version: SCHEMA_VERSION,
                    window_seconds,
                    versions,
                });
            }
            tokio::time::sleep(BETWEEN_READINGS).await;
        }
        None
    }

    pub(crate) fn metrics_text(&self) -> String {
        // What a version takes at once is for new requests, and those go to the one that answers.
        let limit = self
            .versions
            .answering()
            .map_or(0, |answering| answering.stable.engine.limit());
        self.metrics
            .text(self.sum(Engine::queue_depth), self.sum(Engine::in_flight), limit)
    }

    /// Over all versions that compute.
    fn sum(&self, figure: impl Fn(&Engine) -> usize) -> usize {
        self.versions.all().iter().map(|version| figure(&version.engine)).sum()
    }
}
