//! InferenceService: pods that answer with a ModelVersion, behind a Service of the same name.
//!
//! The Service listens on port 80 and leads to the pods' data port. What a service runs with is kept in a
//! ControllerRevision and applied as it is until the user's inputs change ([`build::template`]). A version that cannot be
//! served changes nothing of the pods that answer: they go on, and status says why.

pub mod apply;
pub mod build;
pub mod observe;
pub mod report;

use std::sync::Arc;
use std::time::Duration;

use flywheel_api::InferenceService;
use flywheel_api::conditions::reasons;
use flywheel_contract::serving::ServingConfig;
use flywheel_policy::serving::{Exchange, Hold, Intent, Stage, decide, exchange, held};

use crate::context::Context;
use crate::error::Error;
use crate::run::RESYNC;
use apply::{Objects, Store};
use build::template::{Rendered, inputs_hash, render};
use build::{config_map, deployment, disruption_budget, network_policy, revision, service};
use observe::{Observed, observe};
use report::Outcome;

/// How soon pods that have not started are looked at again: neither new nodes nor passing time trigger anything.
const WAITING_TO_START: Duration = Duration::from_secs(5);

/// What the Deployment's pods are to be.
struct Workload {
    rendered: Rendered,
    hash: String,
    store: Store,
    replicas: i32,
}

/// Brings an InferenceService one step further; the time after which to look again.
///
/// # Errors
/// What only time, or a fix of Flywheel, can mend. What the user can mend is reported as a condition and is no error here.
pub async fn reconcile(service: Arc<InferenceService>, context: Arc<Context>) -> Result<Duration, Error> {
    if service.metadata.deletion_timestamp.is_some() {
        // Children go by their owner references.
        return Ok(RESYNC);
    }
    let observed = observe(&service, &context);
    let intent = decide(&service.spec.model, &service.spec.model_version, &observed.version);
    let (exchange, again) = exchange(observed.exchange_view(), context.now());
    let (workload, mut hold) = workload(&service, &observed, intent, &context)?;

    let device = workload.as_ref().and_then(|w| device(&w.rendered));
    let mut has_service = observed.has_service;
    let mut present = observed.deployment.as_deref().cloned();
    // A Deployment begins its life with one pod, so none is made before somebody asks for pods.
    let wanted = present.is_some() || service.spec.replicas > 0;
    if let Some(workload) = workload.filter(|_| wanted) {
        let objects = objects(&service, workload, exchange, &context);
        // Boxed: it holds every object while it waits.
        match Box::pin(apply::apply(&service, objects, &observed, &context)).await {
            Ok(deployment) => {
                has_service = true;
                present = Some(deployment);
            }
            Err(error) => match error.problem() {
                Some((reason, message)) => {
                    hold = Some(Hold::refused(reason, message));
                }
                None => return Err(error),
            },
        }
    }

    let outcome = Outcome {
        has_service,
        deployment: present.as_ref(),
        hold,
        device,
    };
    let judgement = report::report(&service, &observed, &outcome, &context).await?;
    let mut again = again.unwrap_or(RESYNC);
    let starts = observed.pods.iter().any(|p| p.stage <= Stage::Starting);
    if observed.placement.is_some() || starts || judgement.reason == reasons::PENDING {
        again = again.min(WAITING_TO_START);
    }
    Ok(again)
}

/// The pods' template and how many there are: the stored one while the user's inputs are the same, a new one where they
/// changed. While they cannot be followed, a stored one runs ([`held`]), and the [`Hold`] says why.
fn workload(
    service: &InferenceService,
    observed: &Observed,
    intent: Intent,
    context: &Context,
) -> Result<(Option<Workload>, Option<Hold>), Error> {
    let workload = |rendered, hash, store| Workload {
        rendered,
        hash,
        store,
        replicas: service.spec.replicas,
    };
    let hold = match (intent, &observed.artifact) {
        (Intent::Serve, Some(artifact)) => {
            let hash = inputs_hash(service, artifact)?;
            let newest = revision::newest(&observed.revisions);
            let stored = revision::find(&observed.revisions, &hash).and_then(|r| Some((r, revision::rendered(r)?)));
            if let Some((present, rendered)) = stored {
                let store = if present.revision < newest {
                    Store::Renumber(present.clone(), newest.saturating_add(1))
                } else {
                    Store::Keep
                };
                return Ok((Some(workload(rendered, hash, store)), None));
            }
            let rendered = context
                .settings
                .class(&service.spec.accelerator.class)
                .and_then(|class| render(service, artifact, class, &context.settings));
            match rendered {
                Ok(rendered) => {
                    let stored = revision::build(service, &hash, newest.saturating_add(1), &rendered)?;
                    let store = Store::New(stored);
                    return Ok((Some(workload(rendered, hash, store)), None));
                }
                Err(error) => match error.problem() {
                    Some((reason, message)) => Hold::refused(reason, message),
                    None => return Err(error),
                },
            }
        }
        (Intent::Serve, None) => return Err(Error::Bug("a version without an artifact is to be served".to_owned())),
        (Intent::Hold(hold), _) => hold,
    };
    let mut stored: Vec<Workload> = revision::newest_first(&observed.revisions)
        .into_iter()
        .filter_map(|r| {
            let hash = revision::inputs_of(r)?.to_owned();
            Some(workload(revision::rendered(r)?, hash, Store::Keep))
        })
        .collect();
    let versions: Vec<_> = stored.iter().map(|w| w.rendered.version()).collect();
    let runs = held(&hold, &service.spec.model_version, &versions, &observed.pods);
    // Without one to run the newest stays, without pods.
    let mut workload = (!stored.is_empty()).then(|| stored.swap_remove(runs.unwrap_or(0)));
    if let (Some(workload), None) = (&mut workload, runs) {
        workload.replicas = 0;
    }
    Ok((workload, Some(hold)))
}

fn objects(service: &InferenceService, workload: Workload, exchange: Exchange, context: &Context) -> Objects {
    Objects {
        service: service::build(service),
        config_map: config_map::build(service, &workload.rendered.config),
        revision: workload.store,
        inputs_hash: workload.hash,
        deployment: deployment::build(service, workload.rendered.template, exchange),
        replicas: workload.replicas,
        network_policy: network_policy::build(service, &context.operator_namespace),
        disruption_budget: disruption_budget::build(service),
    }
}

/// What the pods compute on.
fn device(rendered: &Rendered) -> Option<flywheel_contract::scalar::Device> {
    serde_json::from_str::<ServingConfig>(&rendered.config)
        .ok()
        .map(|c| c.device)
}

#[cfg(test)]
mod tests;
