//! How many pods a service has: a look each second or two at what its pods are asked and do, and what is decided from it. Also
//! where nothing is to be decided pods are looked at: those that do not answer make their nodes suspects.
//!
//! It goes on beside the reconciles, which follow what was decided last, so that a burst is answered within two seconds
//! however many objects wait. What is remembered lives in this process alone: a new leader begins with the size that the
//! Deployment has and lets nothing shrink before it has seen enough.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flywheel_api::InferenceService;
use flywheel_api::scaling::{ScaleDecision, ScalingMode};
use flywheel_contract::names::{INSIDE_PORT, STATS_PATH};
use flywheel_contract::serving::{Load, Stats};
use flywheel_policy::serving::Stage;
use flywheel_policy::serving::scale::{Decision, Goal, Look, ReadyPod, Said, Scaler, Shown, StartingPod};
use flywheel_policy::training::attempt::is_out_of_contact;
use futures::future::join_all;
use futures::{FutureExt as _, StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use tokio::sync::{Semaphore, watch};

use super::follow::Rounds;
use super::observe::Pods;
use crate::admin::Beats;
use crate::cluster::nodes::{address, node_of};
use crate::context::Context;
use crate::telemetry::{Metrics, ServiceFigures, ServiceLabels};

/// Time between two looks at a service whose load or size changes.
const IN_CHANGE: Duration = Duration::from_secs(1);
/// Time between two looks at any other.
const STEADY: Duration = Duration::from_secs(2);
/// Pods of one service that are asked in one look. Of more, others are asked each time.
const ASKED: usize = 64;
/// So many pods at once bound the operator's connections.
const ROUNDS: Rounds = Rounds {
    name: "scale",
    // Often enough to be in time for `IN_CHANGE`.
    tick: Duration::from_millis(250),
    services_at_once: 64,
    asked_at_once: 256,
};
/// Decisions that are kept for the status.
const DECISIONS: usize = 10;

/// What is kept of each service between two looks. Losing it costs a stable window, in which nothing shrinks.
#[derive(Debug, Default)]
pub struct ScaleMemo {
    services: Mutex<HashMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    labels: ServiceLabels,
    scaler: Scaler,
    /// What its pods compute with, as far as what one carries depends on it.
    computes: String,
    /// When the last look began.
    begun: Option<Timestamp>,
    /// How long after that the next is due.
    wait: Duration,
    /// The pod whose turn it is first, where not all are asked.
    turn: usize,
    decision: Option<Decision>,
    decisions: VecDeque<ScaleDecision>,
    shown: Option<Shown>,
}

impl ScaleMemo {
    fn services(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pods that the load wants, as decided last.
    pub(crate) fn wanted(&self, uid: &str) -> Option<u32> {
        Some(self.services().get(uid)?.decision.as_ref()?.replicas)
    }

    /// What the status is to say.
    pub(crate) fn shown(&self, uid: &str) -> Option<Shown> {
        self.services().get(uid)?.shown.clone()
    }

    /// Whether a look is due; if so, it counts as begun, and tells which pod is asked first.
    pub(crate) fn due(&self, service: &InferenceService, now: Timestamp) -> Option<usize> {
        let mut services = self.services();
        let told = service.status.iter().filter_map(|status| status.scaling.as_ref());
        let known = services.entry(service.uid()?).or_insert_with(|| Known {
            labels: ServiceLabels {
                namespace: service.namespace().unwrap_or_default(),
                name: service.name_any(),
            },
            scaler: Scaler::new(now),
            computes: computes(service),
            begun: None,
            wait: STEADY,
            turn: 0,
            decision: None,
            // What a leader before decided, as far as the status tells.
            decisions: told.flat_map(|scaling| scaling.decisions.clone()).collect(),
            shown: None,
        });
        let due = known
            .begun
            .is_none_or(|begun| now.duration_since(begun).unsigned_abs() >= known.wait);
        due.then(|| {
            known.begun = Some(now);
            let turn = known.turn;
            known.turn = turn.wrapping_add(ASKED);
            turn
        })
    }

    /// Adds a look; true where what was decided or is to be shown is not what it was.
    fn add(&self, service: &InferenceService, goal: &Goal, present: u32, look: Look, metrics: &Metrics) -> bool {
        let mut services = self.services();
        let Some(known) = service.metadata.uid.as_ref().and_then(|uid| services.get_mut(uid)) else {
            return false;
        };
        let now = look.at;
        let computes = computes(service);
        if known.computes != computes {
            known.computes = computes;
            known.scaler.doubt();
        }
        known.scaler.look(look);
        let present = known.decision.as_ref().map_or(present, |before| before.replicas);
        let decision = known.scaler.decide(goal, present, now);
        let figures = &decision.figures;
        metrics.service(
            &known.labels,
            &ServiceFigures {
                wanted: decision.replicas,
                qps: figures.qps,
                concurrency: figures.concurrency,
                p99: figures.p99.map(|p99| p99.as_secs_f64()),
                capacity: figures.capacity.filter(|_| figures.capacity_is_sure),
                busy: figures.busy,
                refused: figures.refused,
            },
        );
        let resized = service.spec.scaling.is_some() && decision.replicas != present;
        if resized {
            metrics.resized(&known.labels, decision.reason);
            tracing::info!(
                service = %format!("{}/{}", known.labels.namespace, known.labels.name),
                from = present,
                to = decision.replicas,
                reason = decision.reason.as_str(),
                why = decision.why,
                "another number of pods is wanted"
            );
            known.decisions.push_front(ScaleDecision {
                time: Time(now),
                from: i32::try_from(present).unwrap_or(i32::MAX),
                to: i32::try_from(decision.replicas).unwrap_or(i32::MAX),
                reason: decision.reason.as_str().to_owned(),
                message: decision.why.clone(),
            });
            known.decisions.truncate(DECISIONS);
        }
        known.wait = if decision.in_change { IN_CHANGE } else { STEADY };
        let shown = Shown::next(
            known.shown.as_ref(),
            &service.spec,
            goal,
            &decision,
            &known.decisions,
            now,
        );
        known.decision = Some(decision);
        let changed = shown.is_some();
        known.shown = shown.or(known.shown.take());
        resized || changed
    }

    /// Forgets what is known of the load of a service that nothing is decided for.
    pub(crate) fn unfollow(&self, uid: &str, metrics: &Metrics) {
        let mut services = self.services();
        let Some(known) = services.get_mut(uid).filter(|known| known.decision.is_some()) else {
            return;
        };
        metrics.forget(&known.labels);
        let begun = known.begun.unwrap_or_default();
        known.scaler = Scaler::new(begun);
        (known.decision, known.shown, known.wait) = (None, None, STEADY);
        known.decisions.clear();
    }

    /// Forgets all other services.
    pub fn retain(&self, alive: &HashSet<String>, metrics: &Metrics) {
        self.services().retain(|uid, known| {
            let alive = alive.contains(uid);
            if !alive {
                metrics.forget(&known.labels);
            }
            alive
        });
    }

    /// Forgets a service.
    pub fn forget(&self, uid: &str, metrics: &Metrics) {
        if let Some(known) = self.services().remove(uid) {
            metrics.forget(&known.labels);
        }
    }
}

/// The version that answers, and what its pods have for it.
fn computes(service: &InferenceService) -> String {
    let answers = service
        .status
        .as_ref()
        .and_then(|status| status.model_version.as_deref());
    let server = &service.spec.server;
    let class = &service.spec.accelerator.class;
    format!("{answers:?} {:?} {:?} {class}", server.precision, server.resources)
}

/// Looks at the pods of all services until `stop` is told. `changed` is told the namespace and name of a service whose size
/// or status is to change.
pub async fn follow_load(
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
            |service| service.spec.replicas > 0,
            |service, asked, context| look(service, asked, context).boxed(),
            changed,
        )
        .await;
}

/// Looks at a service if it is time; the service, where something about it is to change.
pub(super) async fn look<'a>(
    service: &'a InferenceService,
    asked: &Semaphore,
    context: &Context,
) -> Option<&'a InferenceService> {
    let turn = context.scales.due(service, context.clock.even())?;
    let pods = Pods::of(service, context);
    let (ready, others): (Vec<_>, Vec<_>) = pods.pods.iter().partition(|(view, _)| view.stage == Stage::Ready);
    let count = ready.len();
    // In a list first, as services are.
    let mut answers = Vec::with_capacity(count);
    for (index, (_, pod)) in ready.iter().enumerate() {
        answers.push(ready_pod(pod, in_turn(index, turn, count), asked, context));
    }
    let ready: Vec<ReadyPod> = stream::iter(answers).buffered(ASKED).collect().await;
    // The control plane takes the readiness of pods whose node it has lost; whether that is lost they still tell.
    let out_of_contact = others.iter().filter(|(_, pod)| is_out_of_contact(pod)).take(ASKED);
    join_all(out_of_contact.map(|(_, pod)| load(pod, asked, context).boxed())).await;
    let goal = Goal::of(&service.spec)?;
    let look = Look {
        at: context.clock.even(),
        ready,
        starting: others
            .into_iter()
            .filter(|(view, _)| view.stage < Stage::Unready)
            .map(|(_, pod)| StartingPod {
                uid: pod.uid().unwrap_or_default(),
                created: created(pod, context),
            })
            .collect(),
    };
    let present = size(
        service,
        pods.deployment.as_deref().and_then(|d| d.spec.as_ref()?.replicas),
        context,
    );
    let present = u32::try_from(present).unwrap_or(0);
    context
        .scales
        .add(service, &goal, present, look, &context.metrics)
        .then_some(service)
}

/// Whether the pod of this index is asked, of so many, where it is this pod's turn first.
fn in_turn(index: usize, turn: usize, count: usize) -> bool {
    (index + count - turn % count) % count < ASKED
}

async fn ready_pod(pod: &Pod, in_turn: bool, asked: &Semaphore, context: &Context) -> ReadyPod {
    let said = if in_turn {
        match load(pod, asked, context).await {
            Some(load) => Said::Load(load),
            None => Said::Silent,
        }
    } else {
        Said::NotAsked
    };
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut ready = conditions.filter(|c| c.type_ == "Ready");
    let created = created(pod, context);
    ReadyPod {
        uid: pod.uid().unwrap_or_default(),
        created,
        ready_since: ready
            .next()
            .and_then(|c| c.last_transition_time.as_ref())
            .map_or(created, |t| t.0),
        said,
    }
}

fn created(pod: &Pod, context: &Context) -> Timestamp {
    pod.metadata
        .creation_timestamp
        .as_ref()
        .map_or_else(|| context.now(), |t| t.0)
}

/// What a pod was asked and did; `None` where it does not say.
async fn load(pod: &Pod, asked: &Semaphore, context: &Context) -> Option<Load> {
    let ip = address(pod)?;
    // It is never closed.
    let _permit = asked.acquire().await.ok()?;
    let stats = context
        .load_scraper
        .get_json::<Stats>(ip, INSIDE_PORT, STATS_PATH)
        .await;
    context.metrics.scrape("load", stats.is_ok());
    if let Some(node) = node_of(pod) {
        context.nodes.read(node, &stats, context.clock.even());
    }
    match stats {
        Ok(stats) => stats.load,
        Err(error) => {
            tracing::debug!(pod = pod.name_any(), %error, "a pod does not say what it is asked");
            None
        }
    }
}

/// Pods that there are to be: as the load wants, where the spec lets it, else as the spec says.
///
/// `present`: the Deployment's number, which a new leader goes on from.
#[must_use]
pub fn size(service: &InferenceService, present: Option<i32>, context: &Context) -> i32 {
    let spec = &service.spec;
    let followed = spec
        .scaling
        .as_ref()
        .filter(|scaling| scaling.mode == ScalingMode::Auto && spec.replicas > 0);
    let Some(scaling) = followed else {
        return spec.replicas;
    };
    let wanted = context.scales.wanted(&service.uid().unwrap_or_default());
    let wanted = wanted.and_then(|wanted| i32::try_from(wanted).ok());
    // The Deployment may have pods in the place of others, of which the load knows nothing.
    let status = service.status.as_ref();
    let recovery = status.and_then(|status| status.recovery.as_ref());
    let recovers = recovery.is_some_and(|told| told.incidents.iter().any(|incident| !incident.is_over()));
    let told = status.and_then(|status| status.scaling.as_ref()).filter(|_| recovers);
    let present = present.map(|present| told.map_or(present, |told| present.min(told.desired_replicas)));
    // A Deployment at 0 was put there by a version that cannot be served.
    let present = present.filter(|present| *present > 0).unwrap_or(spec.replicas);
    wanted
        .unwrap_or(present)
        .clamp(scaling.min_replicas, scaling.max_replicas.max(scaling.min_replicas))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_pods_a_part_is_asked_and_all_within_a_few_looks() {
        for (count, looks) in [(1, 1), (64, 1), (65, 2), (100, 2), (1000, 16)] {
            let mut asked = HashSet::new();
            let mut turn = 0_usize;
            for _ in 0..looks {
                let now: Vec<usize> = (0..count).filter(|index| in_turn(*index, turn, count)).collect();
                assert_eq!(now.len(), count.min(ASKED));
                asked.extend(now);
                turn = turn.wrapping_add(ASKED);
            }
            assert_eq!(asked.len(), count, "after {looks} looks");
        }
    }
}
