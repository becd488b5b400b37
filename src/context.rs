//! What every reconcile gets: one value, shared.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};

use crate::backoff::Backoff;
use crate::cache::Caches;
use crate::kubeio::{AppliedMemo, StatusMemo, Writes};
use crate::lease::LeaseHandle;
use crate::scrape::Scraper;
use crate::settings::Settings;
use crate::telemetry::Metrics;

/// Name under which events and metrics are reported.
pub const CONTROLLER_NAME: &str = "flywheel-operator";

/// Where "now" comes from; tests have their own.
#[derive(Clone)]
pub struct Clock {
    wall: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    even: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        let (begun, since) = (Timestamp::now(), Instant::now());
        Self {
            wall: Arc::new(Timestamp::now),
            even: Arc::new(move || begun.checked_add(since.elapsed()).unwrap_or_else(|_| Timestamp::now())),
        }
    }

    /// A clock that a test turns.
    #[must_use]
    pub fn scripted(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let wall: Arc<dyn Fn() -> Timestamp + Send + Sync> = Arc::new(now);
        Self {
            even: Arc::clone(&wall),
            wall,
        }
    }

    /// The time, in whole seconds as Kubernetes keeps it.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let now = (self.wall)();
        Timestamp::from_second(now.as_second()).unwrap_or(now)
    }

    /// A time that grows evenly, whatever is done to the machine's clock, for rates.
    #[must_use]
    pub fn even(&self) -> Timestamp {
        (self.even)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// All that a reconcile may use.
pub struct Context {
    /// Live reads; writes go through [`Context::writes`].
    pub client: Client,
    /// Namespace that the operator runs in; its pods may reach the inside ports of trainers and servers.
    pub operator_namespace: String,
    /// What the administrator says.
    pub settings: Settings,
    /// What is known of the cluster without asking.
    pub caches: Caches,
    /// Whether this replica leads.
    pub lease: LeaseHandle,
    /// Counters.
    pub metrics: Metrics,
    /// Events.
    pub recorder: Recorder,
    /// Reads pods over HTTP.
    pub scraper: Scraper,
    /// Reads the load of serving pods, again and again.
    pub load_scraper: Scraper,
    /// The time.
    pub clock: Clock,
    /// Failures in a row per object.
    pub backoff: Backoff,
    /// What was last applied.
    pub applied: AppliedMemo,
    /// What statuses were last written.
    pub statuses: StatusMemo,
    /// When progress was last written, per TrainingJob.
    pub progress: crate::training::ProgressMemo,
    /// What was last assigned, per InferenceService.
    pub assignments: crate::serving::AssignmentMemo,
    /// What is known of the load, per InferenceService.
    pub scales: crate::serving::ScaleMemo,
    /// What is known of live texts, per InferenceService.
    pub drifts: crate::serving::DriftMemo,
    /// What is known of experiments, per InferenceService.
    pub experiments: crate::serving::ExperimentMemo,
    /// What failed, per InferenceService.
    pub recoveries: crate::serving::RecoveryMemo,
    /// What is seen of nodes whose pods do not answer.
    pub nodes: crate::cluster::nodes::NodeWatch,
    /// Held while a ModelVersion gets its number.
    pub version_numbers: tokio::sync::Mutex<()>,
}

impl Context {
    /// A context on this client.
    #[must_use]
    pub fn new(
        client: Client,
        operator_namespace: String,
        settings: Settings,
        caches: Caches,
        lease: LeaseHandle,
        metrics: Metrics,
    ) -> Self {
        let reporter = Reporter {
            controller: CONTROLLER_NAME.to_owned(),
            instance: None,
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            operator_namespace,
            settings,
            caches,
            lease,
            metrics,
            scraper: Scraper::new(),
            load_scraper: Scraper::repeated(),
            clock: Clock::system(),
            backoff: Backoff::default(),
            applied: AppliedMemo::default(),
            statuses: StatusMemo::default(),
            progress: crate::training::ProgressMemo::default(),
            assignments: crate::serving::AssignmentMemo::default(),
            scales: crate::serving::ScaleMemo::default(),
            drifts: crate::serving::DriftMemo::default(),
            experiments: crate::serving::ExperimentMemo::default(),
            recoveries: crate::serving::RecoveryMemo::default(),
            nodes: crate::cluster::nodes::NodeWatch::default(),
            version_numbers: tokio::sync::Mutex::new(()),
        }
    }

    /// The time, in whole seconds.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Forgets what was kept of objects that are gone. Everything that is kept per object is kept by its uid and named
    /// here, so that it cannot grow with what comes and goes. What the caches do not show yet is forgotten, too: that
    /// costs a write at most.
    pub fn forget_gone(&self) {
        let alive = self.caches.uids();
        self.backoff.retain(&alive);
        self.applied.retain(&alive);
        self.statuses.retain(&alive);
        self.progress.retain(&alive);
        self.assignments.retain(&alive);
        self.scales.retain(&alive, &self.metrics);
        self.drifts.retain(&alive, &self.metrics);
        self.experiments.retain(&alive);
        self.recoveries.retain(&alive);
    }

    /// The writer with this field manager.
    #[must_use]
    pub fn writes(&self, manager: &'static str) -> Writes<'_> {
        Writes::new(self, manager)
    }

    /// A context for tests: this client, example settings, empty caches to fill, always leading, and a clock that stands.
    #[cfg(test)]
    #[must_use]
    pub fn test(client: Client, now: Timestamp) -> Self {
        let mut context = Self::new(
            client,
            "flywheel-system".to_owned(),
            Settings::example(),
            Caches::none(),
            LeaseHandle::always(),
            Metrics::default(),
        );
        context.clock = Clock::scripted(move || now);
        context
    }
}
