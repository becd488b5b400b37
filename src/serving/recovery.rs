//! What is done about pods of a service that are beyond help, and what is remembered of its incidents.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flywheel_api::InferenceService;
use flywheel_api::names::SERVER;
use flywheel_api::recovery::{Incident, IncidentCause};
use flywheel_policy::recovery::incident::News;
use flywheel_policy::recovery::serving::{Leaving, Ledger, Look, Place, Plan, PodSight, View, plan};
use flywheel_policy::training::attempt::{deletion_asked, disruption};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::observe::Observed;
use crate::cluster::nodes::node_of;
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::kubeio::SERVING_MANAGER;

/// News of a service that are kept until the API server takes its status.
const NEWS_KEPT: usize = 64;
/// Replacements of crash-looping pods that are remembered: more than the policy counts.
const REPLACED_KEPT: usize = 16;

/// What is kept of each service. Losing it costs the incidents that begin while nobody leads, and lets a pod that ends again
/// and again be replaced a few times more.
#[derive(Debug, Default)]
pub struct RecoveryMemo {
    services: Mutex<HashMap<String, Known>>,
}

#[derive(Debug, Default)]
struct Known {
    ledger: Ledger,
    /// Uids of pods that end again and again.
    crash_loops: HashSet<String>,
    /// Such pods that were deleted, with the time.
    replaced: Vec<(String, Timestamp)>,
    /// What was not told yet.
    news: Vec<News>,
}

impl RecoveryMemo {
    fn services(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a service; of one that is seen for the first time, what its status tells.
    fn known<'a>(services: &'a mut HashMap<String, Known>, service: &InferenceService) -> &'a mut Known {
        services.entry(service.uid().unwrap_or_default()).or_insert_with(|| {
            let told = service.status.as_ref().and_then(|status| status.recovery.as_ref());
            Known {
                ledger: Ledger::new(told.map(|told| told.incidents.as_slice()).unwrap_or_default()),
                ..Known::default()
            }
        })
    }

    /// What is new of a service's incidents; it counts as told.
    pub(crate) fn news(&self, uid: &str) -> Vec<News> {
        let mut services = self.services();
        services
            .get_mut(uid)
            .map(|known| std::mem::take(&mut known.news))
            .unwrap_or_default()
    }

    /// Notes that a pod that ended again and again is deleted.
    fn note_replaced(&self, service: &str, pod: &str, now: Timestamp) {
        let mut services = self.services();
        if let Some(known) = services.get_mut(service)
            && !known.replaced.iter().any(|(uid, _)| uid == pod)
        {
            known.replaced.push((pod.to_owned(), now));
            let surplus = known.replaced.len().saturating_sub(REPLACED_KEPT);
            known.replaced.drain(..surplus);
        }
    }

    /// Begins to know a service.
    #[cfg(test)]
    pub(crate) fn note(&self, service: &InferenceService) {
        Self::known(&mut self.services(), service);
    }

    /// Forgets all other services.
    pub fn retain(&self, alive: &HashSet<String>) {
        self.services().retain(|uid, _| alive.contains(uid));
    }

    /// Forgets a service.
    pub fn forget(&self, uid: &str) {
        self.services().remove(uid);
    }
}

/// What is decided, and what came of it so far.
#[derive(Debug)]
pub struct Recovery {
    /// What to do.
    pub plan: Plan,
    /// Incidents for the status.
    pub incidents: Vec<Incident>,
    /// All that are followed.
    pub all: Vec<Incident>,
    /// A node is lost, and so many others seem so that no pod is deleted for it.
    pub held: bool,
}

/// Decides about the pods as they were observed.
#[must_use]
pub fn recover(service: &InferenceService, observed: &Observed, context: &Context) -> Recovery {
    let now = context.now();
    let class = context.settings.class(&service.spec.accelerator.class).ok();
    let resource = class.map(|class| class.resource.as_str());
    let mut services = context.recoveries.services();
    let known = RecoveryMemo::known(&mut services, service);
    let told = service.status.as_ref().and_then(|status| status.recovery.as_ref());
    let sights: Vec<PodSight> = observed
        .pods
        .iter()
        .zip(&observed.pod_objects)
        .map(|(view, pod)| {
            let uid = pod.uid().unwrap_or_default();
            let place = Place {
                node_lost: context.nodes.lost(pod, context),
                gpu_fault: context.nodes.gpu_fault(pod, (SERVER, resource), told, context),
                crash_loops: known.crash_loops.contains(&uid),
            };
            PodSight::of(view, &uid, node_of(pod), &place, now)
        })
        .collect();
    let faulty = |cause| {
        let of_it = move |pod: &&PodSight| pod.fault.as_ref().is_some_and(|fault| fault.cause == cause);
        sights.iter().filter(of_it).map(|pod| pod.uid.clone())
    };
    known.crash_loops = faulty(IncidentCause::CrashLoop).collect();
    let held = faulty(IncidentCause::NodeLost).next().is_some() && context.nodes.is_held(context);
    let replaced: Vec<Timestamp> = known.replaced.iter().map(|(_, at)| *at).collect();
    let no_room_since = observed.unscheduled_since();
    let leaving: Vec<Leaving> = observed.leaving.iter().filter_map(|pod| leaving(pod, now)).collect();
    let exchange = observed.exchange_view();
    let size = u32::try_from(observed.size).unwrap_or(0);
    let plan = plan(
        &View {
            size,
            pods: &sights,
            mode: service.spec.recovery.mode,
            held,
            exchanging: exchange.old_pods,
            no_room_since,
            proven: known.ledger.proven(&sights),
            replaced: &replaced,
        },
        now,
    );
    let look = Look {
        size,
        pods: &sights,
        leaving: &leaving,
        exchanging: exchange.old_pods,
        no_room: no_room_since.is_some(),
        plan: &plan,
    };
    let news = known.ledger.look(&look, now);
    known.news.extend(news);
    let surplus = known.news.len().saturating_sub(NEWS_KEPT);
    known.news.drain(..surplus);
    Recovery {
        plan,
        incidents: known.ledger.incidents(),
        all: known.ledger.all(),
        held,
    }
}

/// Deletes the pods that are to go.
///
/// # Errors
/// The API server does not answer; it is tried again with the next look. Where the operator may not do it, pods go when
/// Kubernetes takes them.
pub async fn replace(
    service: &InferenceService,
    plan: &Plan,
    observed: &Observed,
    context: &Context,
) -> Result<(), Error> {
    let writes = context.writes(SERVING_MANAGER);
    for replace in &plan.replace {
        let uid = Some(replace.uid.as_str());
        let Some(pod) = observed
            .pod_objects
            .iter()
            .find(|pod| pod.metadata.uid.as_deref() == uid)
        else {
            continue;
        };
        match writes.delete(pod.as_ref()).await {
            Ok(()) if replace.cause == IncidentCause::CrashLoop => {
                let service = service.uid().unwrap_or_default();
                context.recoveries.note_replaced(&service, &replace.uid, context.now());
            }
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Invalid => {
                tracing::warn!(pod = replace.name, %error, "a pod that is beyond help may not be deleted");
                continue;
            }
            Err(error) => return Err(error),
        }
        tracing::warn!(
            pod = replace.name,
            cause = replace.cause.as_str(),
            why = replace.why,
            "a pod is deleted, so that another one takes its place"
        );
    }
    Ok(())
}

/// A pod that was told to end, or that its node has ended.
fn leaving(pod: &Pod, now: Timestamp) -> Option<Leaving> {
    let told = deletion_asked(pod);
    Some(Leaving {
        uid: pod.uid()?,
        asked: told.unwrap_or(now),
        how: disruption(pod).unwrap_or_else(|| {
            let how = if told.is_some() {
                "it was deleted"
            } else {
                "its node ended it"
            };
            how.to_owned()
        }),
    })
}
