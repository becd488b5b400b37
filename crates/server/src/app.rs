//! What both ports share: how far the pod is, its version, its figures.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::names::READYZ_PATH;
use flywheel_contract::serving::{LoadState, ServingConfig, ServingLimits, Stats, VersionStats};
use flywheel_contract::{SCHEMA_VERSION, serving};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::engine::Engine;
use crate::metrics::Metrics;
use crate::model::LoadedVersion;

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
/// Bytes of request bodies that may be in memory beside the small first part of each.
const BODY_BUDGET_BYTES: usize = 32 * 1024 * 1024;
/// Unit of the budget, and what each body may have without asking.
pub(crate) const BODY_UNIT_BYTES: usize = 16 * 1024;

/// State of a serving pod.
pub struct App {
    service: serving::ServiceIdentity,
    version: String,
    limits: ServingLimits,
    started: Instant,
    phase: watch::Sender<Phase>,
    load: Mutex<(LoadState, Option<Failure>)>,
    engine: OnceLock<Engine>,
    broken: mpsc::Sender<Failure>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) bodies: Arc<Semaphore>,
    pub(crate) openapi: Bytes,
    /// Requests to `/predict` that have begun and are not answered.
    pub(crate) requests: watch::Sender<usize>,
    ids: AtomicU64,
    id_prefix: u64,
}

impl App {
    /// A pod that has loaded nothing yet. The receiver gets the failure of a device that works no more: the process must
    /// end then.
    #[must_use]
    pub fn new(config: &ServingConfig) -> (Arc<Self>, mpsc::Receiver<Failure>) {
        let (broken, receiver) = mpsc::channel(1);
        let document = flywheel_wire::openapi::document(&config.service.name, READYZ_PATH, env!("CARGO_PKG_VERSION"));
        let app = Self {
            service: config.service.clone(),
            version: config.version.name.clone(),
            limits: config.limits.clone(),
            started: Instant::now(),
            phase: watch::Sender::new(Phase::Loading),
            load: Mutex::new((LoadState::Downloading, None)),
            engine: OnceLock::new(),
            broken,
            metrics: Arc::new(Metrics::new()),
            bodies: Arc::new(Semaphore::new(BODY_BUDGET_BYTES / BODY_UNIT_BYTES)),
            openapi: Bytes::from(document.to_string()),
            requests: watch::Sender::new(0),
            ids: AtomicU64::new(0),
            // The standard library's only source of randomness; ids must differ between pods, not be secret.
            id_prefix: RandomState::new().hash_one(std::process::id()),
        };
        (Arc::new(app), receiver)
    }

    /// Starts a version's workers, warms them up and becomes ready.
    ///
    /// # Errors
    /// Why the version cannot compute, or that there is one already.
    pub async fn install(&self, version: LoadedVersion) -> Result<(), Failure> {
        self.set_load(LoadState::Loading, None);
        let engine = Engine::start(version, &self.limits, &self.metrics, &self.broken).await?;
        self.engine.set(engine).map_err(|_| {
            Failure::new(
                FailureReason::InternalError,
                "a version is loaded already; a pod loads one",
            )
        })?;
        self.metrics.loaded(self.started.elapsed());
        self.set_load(LoadState::Ready, None);
        self.advance(Phase::Ready);
        tracing::info!(
            service = %format!("{}/{}", self.service.namespace, self.service.name),
            version = self.version,
            seconds = self.started.elapsed().as_secs_f64(),
            "ready"
        );
        Ok(())
    }

    pub(crate) fn set_load(&self, state: LoadState, failure: Option<Failure>) {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner) = (state, failure);
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

    pub(crate) fn engine(&self) -> Option<&Engine> {
        self.engine.get()
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// A new request id: differs between pods, and between requests of a pod.
    pub(crate) fn next_id(&self) -> String {
        format!("{:016x}-{:x}", self.id_prefix, self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether the workers get on.
    pub(crate) fn alive(&self) -> bool {
        self.engine().is_none_or(|engine| engine.longest_batch() < STUCK)
    }

    pub(crate) fn stats(&self) -> Stats {
        let (state, failure) = self.load.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Stats {
            schema_version: SCHEMA_VERSION,
            ready: self.phase() == Phase::Ready,
            version: VersionStats {
                name: self.version.clone(),
                state,
                failure,
                precision: self.engine().map(Engine::precision),
                agreement: self.engine().and_then(Engine::agreement),
            },
            answered: self.metrics.answers(),
            in_flight: self
                .engine()
                .map_or(0, |e| u32::try_from(e.in_flight()).unwrap_or(u32::MAX)),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
        }
    }

    pub(crate) fn metrics_text(&self) -> String {
        let engine = self.engine();
        self.metrics.text(
            engine.map_or(0, Engine::queue_depth),
            engine.map_or(0, Engine::in_flight),
            engine.map_or(0, Engine::limit),
        )
    }
}
