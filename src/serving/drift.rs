//! What live texts look like: the counts of all pods, window by window, and what is decided from them.
//!
//! It goes on beside the reconciles, which report what was decided last. Pods keep their last windows, and what was read of them
//! stands in a ConfigMap, so an operator that restarts misses nothing and counts nothing twice.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flywheel_api::InferenceService;
use flywheel_api::drift::Drift;
use flywheel_api::names::{self, is_controlled_by};
use flywheel_contract::names::{INSIDE_PORT, PROFILE_PATH};
use flywheel_contract::profile::{LiveProfiles, PROFILE_BODY_MAX};
use flywheel_contract::scalar::Digest;
use flywheel_contract::serving::ServedVersion;
use flywheel_policy::drift::{History, Verdict, judge, settle, unix};
use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{Api, ResourceExt as _};
use tokio::sync::{Semaphore, watch};

use super::build::history;
use super::follow::Rounds;
use super::observe::{Pods, newest_assignment};
use crate::admin::Beats;
use crate::cluster::nodes::address;
use crate::context::Context;
use crate::error::Error;
use crate::kubeio::{SERVING_MANAGER, within};
use crate::telemetry::{Metrics, ServiceLabels};

/// Shortest and longest time between two looks at a service. Pods keep three windows, so half of one is often enough.
const SOONEST: Duration = Duration::from_secs(2);
const LATEST: Duration = Duration::from_secs(60);
/// So many pods at once bound connections, and the memory for answers.
const ROUNDS: Rounds = Rounds {
    name: "drift",
    tick: Duration::from_secs(1),
    services_at_once: 16,
    asked_at_once: 32,
};

/// What is kept of each service.
#[derive(Debug, Default)]
pub struct DriftMemo {
    services: Mutex<HashMap<String, Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// When the last look began.
    begun: Option<Timestamp>,
    /// None before the ConfigMap was read, and as long as no pod said anything.
    history: Option<History>,
    loaded: bool,
    /// The ConfigMap does not say what the history does.
    unwritten: bool,
    /// What was decided last of the version with this digest.
    verdict: Option<(Digest, Verdict)>,
    /// Under which its metrics are shown, once they are.
    labels: Option<ServiceLabels>,
}

impl Known {
    fn hide(&self, metrics: &Metrics) {
        if let Some(labels) = &self.labels {
            metrics.live(labels, None);
        }
    }
}

impl DriftMemo {
    fn services(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was decided last, if it was of the version with this digest.
    pub(crate) fn verdict(&self, uid: &str, of: &Digest) -> Option<Verdict> {
        let services = self.services();
        let (digest, verdict) = services.get(uid)?.verdict.as_ref()?;
        (digest == of).then(|| verdict.clone())
    }

    /// Whether a look is due; if so, it counts as begun.
    pub(crate) fn due(&self, uid: &str, every: Duration, now: Timestamp) -> bool {
        let mut services = self.services();
        let known = services.entry(uid.to_owned()).or_default();
        let due = known
            .begun
            .is_none_or(|begun| now.duration_since(begun).unsigned_abs() >= every);
        if due {
            known.begun = Some(now);
        }
        due
    }

    /// Forgets all other services.
    pub fn retain(&self, alive: &HashSet<String>, metrics: &Metrics) {
        self.services().retain(|uid, known| {
            let alive = alive.contains(uid);
            if !alive {
                known.hide(metrics);
            }
            alive
        });
    }

    /// Forgets a service.
    pub fn forget(&self, uid: &str, metrics: &Metrics) {
        if let Some(known) = self.services().remove(uid) {
            known.hide(metrics);
        }
    }
}

/// Time between two looks at a service.
fn interval(spec: &Drift) -> Duration {
    (Duration::from_secs(spec.counted_seconds().into()) / 2).clamp(SOONEST, LATEST)
}

/// Seconds after the end of a window until all pods were read that counted in it: two looks, and what clocks may differ by.
fn settle_seconds(spec: &Drift) -> u64 {
    2 * interval(spec).as_secs() + 2
}

/// Looks at the pods of all services with `drift` until `stop` is told. `changed` is told the namespace and name of a service of
/// which there is something new to say.
pub async fn follow_texts(
    context: Arc<Context>,
    beats: Beats,
    stop: watch::Receiver<bool>,
    changed: impl Fn(&str, &str),
) {
    ROUNDS
        .follow(
            context,
            beats,
            stop,
            |service| service.spec.drift.is_some(),
            |service, asked, context| look(service, asked, context).boxed(),
            changed,
        )
        .await;
}

/// Looks at a service if it is time; the service, where there is something new to say of it.
pub(super) async fn look<'a>(
    service: &'a InferenceService,
    asked: &Semaphore,
    context: &Context,
) -> Option<&'a InferenceService> {
    let (spec, uid) = (service.spec.drift.as_ref()?, service.uid()?);
    let now = context.clock.even();
    if !context.drifts.due(&uid, interval(spec), now) {
        return None;
    }
    let version = answers(service, context)?;
    let pods = Pods::of(service, context);
    let told = ROUNDS
        .ask(&pods, asked, context, |_, pod, context| profiles(pod, context).boxed())
        .await;
    match follow(service, spec, &version, &told, context).await {
        Ok(news) => news.then_some(service),
        Err(error) => {
            tracing::warn!(service = service.name_any(), %error, "the windows of live texts are not known yet; tried again");
            None
        }
    }
}

/// The version that answers all that no other one does.
pub(super) fn answers(service: &InferenceService, context: &Context) -> Option<ServedVersion> {
    newest_assignment(service, context)?.serving().cloned()
}

/// What a pod counted; `None` where it does not say.
async fn profiles(pod: &Pod, context: &Context) -> Option<LiveProfiles> {
    let ip = address(pod)?;
    let told = context
        .scraper
        .get_json_up_to(ip, INSIDE_PORT, PROFILE_PATH, PROFILE_BODY_MAX)
        .await;
    context.metrics.scrape("profile", told.is_ok());
    if let Err(error) = &told {
        tracing::debug!(pod = pod.name_any(), %error, "a pod does not say what it counted");
    }
    told.ok()
}

/// Adds what pods said, keeps it, and judges; whether there is something new to say.
async fn follow(
    service: &InferenceService,
    spec: &Drift,
    version: &ServedVersion,
    told: &[(String, LiveProfiles)],
    context: &Context,
) -> Result<bool, Error> {
    let (uid, now) = (service.uid().unwrap_or_default(), context.now());
    let digest = &version.artifact.digest;
    let window = u32::try_from(spec.window_seconds).unwrap_or(1);
    let (loaded, unwritten, known) = {
        let mut services = context.drifts.services();
        let known = services.entry(uid.clone()).or_default();
        (known.loaded, known.unwritten, known.history.take())
    };
    let known = if loaded { known } else { kept(service, context).await? };
    let known = known.filter(|history| history.is_of(digest, window));
    let mut begun = false;
    let history = known.or_else(|| {
        begun = true;
        told.iter()
            .find_map(|(_, told)| History::begin(&version.name, digest, window, told))
    });
    let Some(mut history) = history else {
        let mut services = context.drifts.services();
        let known = services.entry(uid).or_default();
        known.loaded = true;
        // Who answered has counted nothing of the version yet; where nobody did, nothing new is known.
        let verdict = (!told.is_empty()).then(|| (digest.clone(), Verdict::default()));
        let news = verdict.is_some() && known.verdict != verdict;
        known.verdict = verdict.or(known.verdict.take());
        return Ok(news);
    };
    let mut new = begun;
    for (pod, told) in told {
        new |= history.add(pod, told, unix(now));
    }
    new |= settle(&mut history, spec, settle_seconds(spec), now);
    let verdict = judge(&history, spec, settle_seconds(spec), now);
    let written = if new || unwritten {
        keep(service, &history, context).await
    } else {
        Ok(())
    };
    if let Err(error) = &written {
        tracing::warn!(service = service.name_any(), %error, "the windows of live texts are not kept yet; tried again");
    }
    let mut services = context.drifts.services();
    let known = services.entry(uid).or_default();
    known.history = Some(history);
    known.loaded = true;
    known.unwritten = written.is_err();
    let labels = known.labels.get_or_insert_with(|| ServiceLabels {
        namespace: service.namespace().unwrap_or_default(),
        name: service.name_any(),
    });
    context.metrics.live(labels, Some(&verdict));
    let before = known.verdict.replace((digest.clone(), verdict));
    Ok(before != known.verdict)
}

/// The history as the ConfigMap has it. The cache holds none: many services have one, and each is read once.
async fn kept(service: &InferenceService, context: &Context) -> Result<Option<History>, Error> {
    let namespace = service.namespace().unwrap_or_default();
    let name = names::history(&service.name_any());
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    let map = within(&format!("get ConfigMap {name}"), maps.get_opt(&name)).await?;
    let uid = service.uid().unwrap_or_default();
    let mine = map.filter(|map| is_controlled_by(&map.metadata, &uid));
    Ok(mine.and_then(|map| history::read(&map)))
}

async fn keep(service: &InferenceService, history: &History, context: &Context) -> Result<(), Error> {
    let map = self::history::build(service, history)?;
    let namespace = service.namespace().unwrap_or_default();
    let cached = context.caches.config_maps.get(&namespace, &map.name_any());
    let uid = service.uid().unwrap_or_default();
    context
        .writes(SERVING_MANAGER)
        .apply_owned(&map, cached.as_deref(), &uid)
        .await?;
    Ok(())
}
