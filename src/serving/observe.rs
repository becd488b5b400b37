//! What is there for an InferenceService: its version, its children and their pods, from the caches.

use std::sync::Arc;

use flywheel_api::conditions::{find, reasons, types};
use flywheel_api::names::{SERVER, is_controlled_by};
use flywheel_api::{InferenceService, ModelVersion};
use flywheel_contract::names::{INSIDE_PORT, STATS_PATH};
use flywheel_contract::serving::Assignment;
use flywheel_contract::trainer::ArtifactRef;
use flywheel_policy::placement::Problem;
use flywheel_policy::serving::{
    DeploymentView, Exchange, ExchangeView, PodSays, PodView, Progress, Stage, Update, VersionView,
};
use futures::{FutureExt as _, StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt as _;

use super::build::{GPUS, assignment, deployment};
use super::rejection;
use super::scale::size;
use crate::cluster::nodes::address;
use crate::cluster::placement_problem;
use crate::context::Context;
use crate::scrape::ScrapeError;

/// Pods that are asked at once.
const ASKED_AT_ONCE: usize = 32;

/// A version beside that of `modelVersion`.
#[derive(Debug)]
pub struct Other {
    /// Its name.
    pub name: String,
    /// What there is of it.
    pub version: VersionView,
    /// Its artifact, where it is there.
    pub artifact: Option<ArtifactRef>,
}

/// What is there.
#[derive(Debug)]
pub struct Observed {
    /// The version that the spec names.
    pub version: VersionView,
    /// Its artifact, where it is there.
    pub artifact: Option<ArtifactRef>,
    /// Its object.
    pub model_version: Option<Arc<ModelVersion>>,
    /// Why it was rejected, where it was.
    pub rejected: Option<String>,
    /// The others that the spec names.
    pub others: Vec<Other>,
    /// The Service of the name is ours.
    pub has_service: bool,
    /// Our Deployment.
    pub deployment: Option<Arc<Deployment>>,
    /// The newest assignment.
    pub assignment: Option<Assignment>,
    /// The Deployment's pods that count.
    pub pods: Vec<PodView>,
    /// Their objects, in the same order.
    pub pod_objects: Vec<Arc<Pod>>,
    /// Those that were told to end, or have ended for good.
    pub leaving: Vec<Arc<Pod>>,
    /// What those that answer say of themselves, once they were asked.
    pub says: Vec<PodSays>,
    /// Why pods have no node.
    pub placement: Option<Problem>,
    /// Pods that there are to be.
    pub size: i32,
    /// Stored templates.
    pub revisions: Vec<ControllerRevision>,
    /// Configurations of pods, and the assignment.
    pub config_maps: Vec<Arc<ConfigMap>>,
    /// ReplicaSets of the Deployment.
    pub replica_sets: Vec<Arc<ReplicaSet>>,
}

/// The Deployment of a service and what belongs to it.
#[derive(Debug)]
pub struct Pods {
    /// Our Deployment.
    pub deployment: Option<Arc<Deployment>>,
    /// Its ReplicaSets.
    pub replica_sets: Vec<Arc<ReplicaSet>>,
    /// Its pods that count, with their objects.
    pub pods: Vec<(PodView, Arc<Pod>)>,
    /// Those that were told to end, or have ended for good.
    pub leaving: Vec<Arc<Pod>>,
}

impl Pods {
    /// From the caches; by owner, from the service down to its pods: anybody's objects may carry our labels.
    #[must_use]
    pub fn of(service: &InferenceService, context: &Context) -> Self {
        let caches = &context.caches;
        let namespace = service.namespace().unwrap_or_default();
        let uid = service.uid().unwrap_or_default();
        let deployment = caches
            .deployments
            .get(&namespace, &service.name_any())
            .filter(|d| is_controlled_by(&d.metadata, &uid));
        let deployment_uid = deployment.as_ref().and_then(|d| d.uid());
        let replica_sets = deployment_uid.map_or_else(Vec::new, |uid| caches.replica_sets.owned(&namespace, &uid));
        let mut all: Vec<Arc<Pod>> = replica_sets
            .iter()
            .filter_map(|set| set.uid())
            .flat_map(|uid| caches.pods.owned(&namespace, &uid))
            .collect();
        all.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let (leaving, pods): (Vec<Arc<Pod>>, Vec<Arc<Pod>>) = all
            .into_iter()
            .partition(|pod| PodView::of(pod, SERVER, context.now()).is_none());
        Self {
            deployment,
            replica_sets,
            leaving,
            pods: pods
                .into_iter()
                .filter_map(|pod| Some((PodView::of(&pod, SERVER, context.now())?, pod)))
                .collect(),
        }
    }
}

/// Reads the caches.
#[must_use]
pub fn observe(service: &InferenceService, context: &Context) -> Observed {
    let caches = &context.caches;
    let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
    let uid = service.uid().unwrap_or_default();
    let version = caches.model_versions.get(&namespace, &service.spec.model_version);
    let names = service.spec.versions().into_iter().skip(1);
    let others: Vec<_> = names
        .map(|name| (name, caches.model_versions.get(&namespace, name)))
        .collect();
    let Pods {
        deployment,
        replica_sets,
        pods,
        leaving,
    } = Pods::of(service, context);
    let (pods, pod_objects): (Vec<PodView>, Vec<Arc<Pod>>) = pods.into_iter().unzip();
    let replicas = deployment.as_ref().and_then(|d| d.spec.as_ref()?.replicas);
    let size = size(service, replicas, context);
    let config_maps = caches.config_maps.owned(&namespace, &uid);
    let scheduling: Vec<_> = pods.iter().map(|p| p.scheduling.clone()).collect();
    let class = &service.spec.accelerator.class;
    // An unknown class is found by build.
    let placement = context
        .settings
        .view_of_both(class)
        .and_then(|class| placement_problem(caches, &class, GPUS, &scheduling));
    Observed {
        version: version_view(version.as_deref()),
        artifact: version.as_ref().map(|v| v.spec.artifact.clone()),
        rejected: version.as_ref().and_then(|v| rejected(v, context)),
        model_version: version,
        others: others
            .iter()
            .map(|(name, version)| Other {
                name: (*name).to_owned(),
                version: version_view(version.as_deref()),
                artifact: version.as_ref().map(|v| v.spec.artifact.clone()),
            })
            .collect(),
        has_service: caches
            .services
            .get(&namespace, &name)
            .is_some_and(|s| is_controlled_by(&s.metadata, &uid)),
        deployment,
        assignment: newest_assignment(service, context),
        pods,
        pod_objects,
        leaving,
        says: Vec::new(),
        placement,
        size,
        revisions: caches
            .controller_revisions
            .owned(&namespace, &uid)
            .iter()
            .map(|r| r.as_ref().clone())
            .collect(),
        config_maps,
        replica_sets,
    }
}

/// What pods are told to hold and answer with: as the cache has it, or as it was written since.
pub(crate) fn newest_assignment(service: &InferenceService, context: &Context) -> Option<Assignment> {
    let (namespace, uid) = (
        service.namespace().unwrap_or_default(),
        service.uid().unwrap_or_default(),
    );
    let map = context
        .caches
        .config_maps
        .get(&namespace, &assignment::name(&service.name_any()));
    let cached = map
        .filter(|map| is_controlled_by(&map.metadata, &uid))
        .and_then(|map| assignment::read(&map));
    context.assignments.newest(&uid, cached)
}

/// Why a version was rejected, where it was.
pub(super) fn rejected(version: &ModelVersion, context: &Context) -> Option<String> {
    let uid = version.uid().unwrap_or_default();
    context.assignments.rejected(&uid, rejection::read(version))
}

fn version_view(version: Option<&ModelVersion>) -> VersionView {
    let Some(version) = version else {
        return VersionView::Missing;
    };
    let verified = version
        .status
        .as_ref()
        .and_then(|s| find(&s.conditions, types::VERIFIED))
        // One about another object of this name, or an older spec, says nothing.
        .filter(|c| {
            c.observed_generation
                .is_none_or(|g| Some(g) == version.metadata.generation)
        });
    VersionView::Found {
        model: version.spec.model.clone(),
        verified: verified.is_some_and(|c| c.status == "True"),
        failed_verification: verified
            // It is Unknown as long as it goes on.
            .filter(|c| c.status == "False")
            .map(|c| format!("{}: {}", c.reason, c.message)),
    }
}

/// What the pods that answer say of themselves.
pub async fn ask(observed: &Observed, context: &Context) -> Vec<PodSays> {
    // In a list first: a lazy iterator of futures ties lifetimes so that no caller can be sent between threads.
    let mut asked = Vec::new();
    for (view, pod) in observed.pods.iter().zip(&observed.pod_objects) {
        if view.stage == Stage::Ready {
            asked.push(ask_one(view, pod, context).boxed());
        }
    }
    stream::iter(asked).buffered(ASKED_AT_ONCE).collect().await
}

/// What a pod says of itself.
pub(super) async fn ask_one(view: &PodView, pod: &Pod, context: &Context) -> PodSays {
    let stats = match address(pod) {
        Some(ip) => context.scraper.get_json(ip, INSIDE_PORT, STATS_PATH).await,
        None => Err(ScrapeError::Unreachable("the pod has no address".to_owned())),
    };
    if let Err(error) = &stats {
        tracing::debug!(pod = view.name, %error, "a pod does not say what it serves");
    }
    PodSays {
        name: view.name.clone(),
        stats: stats.ok(),
        ended: view.ended,
    }
}

/// What the Deployment says, for policy.
#[must_use]
pub fn deployment_view(deployment: &Deployment) -> DeploymentView {
    let status = deployment.status.as_ref();
    let count = |n: Option<i32>| n.unwrap_or(0);
    DeploymentView {
        observed: status.and_then(|s| s.observed_generation) >= deployment.metadata.generation,
        replicas: count(status.and_then(|s| s.replicas)),
        updated: count(status.and_then(|s| s.updated_replicas)),
        available: count(status.and_then(|s| s.available_replicas)),
        creation_failed: status
            .and_then(|s| s.conditions.as_ref())
            .and_then(|list| list.iter().find(|c| c.type_ == "ReplicaFailure" && c.status == "True"))
            .map(|c| c.message.clone().unwrap_or_default()),
    }
}

impl Observed {
    /// Pods that may not have heard of this assignment: those that say so, with a new one those that say nothing, and until all
    /// follow it those that do not answer yet.
    #[must_use]
    pub fn behind(&self, update: &Update, assignment: &Assignment) -> Vec<&Pod> {
        let new = self.assignment.as_ref() != Some(assignment);
        let passing = new || update.progress != Progress::Settled;
        let pods = self.pods.iter().zip(&self.pod_objects);
        pods.filter(|(view, _)| {
            let says = self.says.iter().find(|says| says.name == view.name);
            match says.map(|says| &says.stats) {
                Some(Some(stats)) => stats.generation < assignment.generation,
                Some(None) => new,
                None => passing,
            }
        })
        .map(|(_, pod)| pod.as_ref())
        .collect()
    }

    /// What the choice how to exchange pods depends on.
    #[must_use]
    pub fn exchange_view(&self) -> ExchangeView {
        let Some(present) = self.deployment.as_deref() else {
            return ExchangeView {
                now: Exchange::Surge,
                old_pods: false,
                waiting_since: None,
            };
        };
        let view = deployment_view(present);
        ExchangeView {
            now: deployment::exchange_of(present),
            old_pods: view.observed && view.replicas > view.updated,
            waiting_since: self.no_room_since(),
        }
    }

    /// Since when a pod waits for which the scheduler finds no node, for whatever reason.
    #[must_use]
    pub fn unscheduled_since(&self) -> Option<Timestamp> {
        self.pods.iter().filter_map(|p| p.waiting_since).min()
    }

    /// Since when a pod waits for a free GPU of the class, where none is free.
    #[must_use]
    pub fn no_room_since(&self) -> Option<Timestamp> {
        let placement = self.placement.as_ref()?;
        let none_free = placement.reason == reasons::INSUFFICIENT_GPU;
        self.pods
            .iter()
            .filter(|_| none_free)
            .filter_map(|p| p.waiting_since)
            .min()
    }
}
