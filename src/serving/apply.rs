//! Brings the children of an InferenceService to what was built.

use std::collections::BTreeSet;

use flywheel_api::InferenceService;
use flywheel_api::names::{self, ANNOTATION_ASSIGNMENT, ANNOTATION_CONFIG_DIGEST, is_controlled_by};
use futures::{FutureExt as _, StreamExt as _, stream};
use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt as _;
use serde_json::json;

use super::build::{assignment, config_map, revision};
use super::observe::{Observed, deployment_view};
use super::rejection;
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::kubeio::{SCALE_MANAGER, SERVING_MANAGER};

/// Pods that are nudged at once.
const NUDGED_AT_ONCE: usize = 16;

/// What happens to the stored template.
#[derive(Clone, Debug, PartialEq)]
pub enum Store {
    /// It is stored for the first time.
    New(ControllerRevision),
    /// It was stored before and is the newest again: its number changes, its content never does.
    Renumber(ControllerRevision, i64),
    /// It is there as it should be.
    Keep,
}

/// All that should be there.
#[derive(Clone, Debug, PartialEq)]
pub struct Objects {
    /// The Service.
    pub service: Service,
    /// What the pods read at their start.
    pub config_map: ConfigMap,
    /// Which versions they hold; none where nothing is to be said of that.
    pub assignment: Option<ConfigMap>,
    /// The stored template.
    pub revision: Store,
    /// Hash of the inputs that the template was rendered from.
    pub inputs_hash: String,
    /// The Deployment, without its size.
    pub deployment: Deployment,
    /// Its size.
    pub replicas: i32,
    /// Who may reach the pods.
    pub network_policy: NetworkPolicy,
    /// How many pods may be taken at once; none is wanted where this is none.
    pub disruption_budget: Option<PodDisruptionBudget>,
}

/// Applies all, and takes away what is needed no more. The Deployment as the API server has it.
///
/// The Service comes first, since it is the name that a stranger has most likely taken; what pods read comes before pods.
///
/// # Errors
/// [`Error::NameTaken`], [`Error::ChildRefused`], or the API server does not answer.
pub async fn apply(
    service: &InferenceService,
    objects: Objects,
    observed: &Observed,
    context: &Context,
) -> Result<Deployment, Error> {
    let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
    let uid = service.uid().unwrap_or_default();
    let writes = context.writes(SERVING_MANAGER);
    let caches = &context.caches;
    let Objects {
        service: front,
        config_map,
        assignment,
        revision: store,
        inputs_hash,
        deployment,
        replicas,
        network_policy,
        disruption_budget,
    } = objects;

    let cached = caches.services.get(&namespace, &name);
    writes.apply_owned(&front, cached.as_deref(), &uid).await?;
    for map in assignment.iter().chain([&config_map]) {
        let cached = caches.config_maps.get(&namespace, &map.name_any());
        writes.apply_owned(map, cached.as_deref(), &uid).await?;
    }
    match store {
        Store::New(revision) => {
            writes.create_owned(&revision, &uid).await?;
        }
        Store::Renumber(present, number) => {
            writes.merge_fields(&present, json!({ "revision": number })).await?;
        }
        Store::Keep => {}
    }
    let mut present = writes
        .apply_owned(&deployment, observed.deployment.as_deref(), &uid)
        .await?
        .into_inner();
    if present.spec.as_ref().and_then(|s| s.replicas) != Some(replicas) {
        let fields = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": replicas}});
        present = context.writes(SCALE_MANAGER).apply_fields(&present, fields).await?;
    }
    let cached = caches.network_policies.get(&namespace, &name);
    writes.apply_owned(&network_policy, cached.as_deref(), &uid).await?;
    let cached = caches.disruption_budgets.get(&namespace, &name);
    match (disruption_budget, cached) {
        (Some(budget), cached) => {
            writes.apply_owned(&budget, cached.as_deref(), &uid).await?;
        }
        (None, Some(superfluous)) if is_controlled_by(&superfluous.metadata, &uid) => {
            writes.delete(superfluous.as_ref()).await?;
        }
        (None, _) => {}
    }

    let view = deployment_view(&present);
    if view.observed && view.replicas == view.updated {
        let history = service.spec.drift.as_ref().map(|_| names::history(&name));
        let experiment = service.spec.experiment.as_ref().map(|_| names::experiment(&name));
        let current = [config_map.name_any(), assignment::name(&name)]
            .into_iter()
            .chain(history)
            .chain(experiment);
        let current: Vec<String> = current.collect();
        for map in unused(&observed.config_maps, &current, &name, &observed.replica_sets) {
            writes.delete(map).await?;
        }
    }
    for old in revision::superfluous(&observed.revisions, &inputs_hash) {
        writes.delete(old).await?;
    }
    Ok(present)
}

/// Tells the kubelets of these pods that the assignment is another one: an annotation that changes makes them bring a pod's
/// files up to date at once instead of after a minute.
///
/// # Errors
/// The API server does not answer. A pod that is gone is no error; where the operator may not do it, pods follow later.
pub async fn nudge(pods: &[&Pod], generation: u64, context: &Context) -> Result<(), Error> {
    let writes = context.writes(SERVING_MANAGER);
    let value = generation.to_string();
    let mut due = Vec::new();
    for pod in pods {
        if pod.annotations().get(ANNOTATION_ASSIGNMENT) != Some(&value) {
            let fields = json!({"metadata": {"annotations": {ANNOTATION_ASSIGNMENT: value}}});
            due.push(writes.merge_fields(*pod, fields).boxed());
        }
    }
    let written: Vec<Result<Pod, Error>> = stream::iter(due).buffered(NUDGED_AT_ONCE).collect().await;
    for outcome in written {
        match outcome {
            Ok(_) => {}
            Err(error) => match error.kind() {
                ErrorKind::Conflict => {}
                ErrorKind::Invalid => tracing::warn!(%error, "pods follow their new assignment within a minute only"),
                ErrorKind::Transient | ErrorKind::Bug => return Err(error),
            },
        }
    }
    Ok(())
}

/// Notes at the version of `modelVersion` that it is not to be rolled out again.
///
/// # Errors
/// The API server does not take it; then the version stays held back where it ended a process, and it is tried again.
pub async fn reject(
    service: &InferenceService,
    why: &str,
    observed: &Observed,
    context: &Context,
) -> Result<(), Error> {
    let Some(version) = observed.model_version.as_deref() else {
        return Ok(());
    };
    let fields = rejection::fields(version, &service.name_any(), why)?;
    context.writes(SERVING_MANAGER).merge_fields(version, fields).await?;
    context
        .assignments
        .reject(&version.uid().unwrap_or_default(), why.to_owned());
    Ok(())
}

/// ConfigMaps that neither are these nor belong to a ReplicaSet with pods.
fn unused<'a>(
    maps: &'a [std::sync::Arc<ConfigMap>],
    current: &[String],
    service: &str,
    sets: &[std::sync::Arc<ReplicaSet>],
) -> Vec<&'a ConfigMap> {
    let used: BTreeSet<String> = sets
        .iter()
        .filter(|set| {
            set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1) > 0
                || set.status.as_ref().is_some_and(|s| s.replicas > 0)
        })
        .filter_map(|set| {
            let template = set.spec.as_ref()?.template.as_ref()?;
            let digest = template
                .metadata
                .as_ref()?
                .annotations
                .as_ref()?
                .get(ANNOTATION_CONFIG_DIGEST)?;
            Some(config_map::name_of_digest(service, digest))
        })
        .collect();
    maps.iter()
        .map(std::convert::AsRef::as_ref)
        .filter(|map| !current.contains(&map.name_any()) && !used.contains(&map.name_any()))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn configurations_stay_as_long_as_a_replica_set_needs_them() {
        let map = |text: &str| -> Arc<ConfigMap> {
            Arc::new(serde_json::from_value(json!({"metadata": {"name": config_map::name("intent", text)}})).unwrap())
        };
        let set = |text: &str, wanted: i32, there: i32| -> Arc<ReplicaSet> {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": text},
                    "spec": {"replicas": wanted, "selector": {}, "template": {"metadata": {"annotations": {
                        ANNOTATION_CONFIG_DIGEST: config_map::digest(text)}}}},
                    "status": {"replicas": there}
                }))
                .unwrap(),
            )
        };
        let maps = [
            map("current"),
            map("asked for"),
            map("still there"),
            map("scaled down"),
            map("forgotten"),
        ];
        let sets = [
            set("asked for", 1, 0),
            set("still there", 0, 1),
            set("scaled down", 0, 0),
        ];
        let names: Vec<String> = unused(&maps, &[maps[0].name_any()], "intent", &sets)
            .iter()
            .map(|m| m.name_any())
            .collect();
        assert_eq!(names, [maps[3].name_any(), maps[4].name_any()]);
    }
}
