//! Versions that go by `spec.retention`: a short Job removes the artifact, with the user's credentials, and then the object goes.

use std::sync::Arc;

use flywheel_api::conditions::{find, reasons, types};
use flywheel_api::names::{PRUNER, prune_job};
use flywheel_api::{InferenceService, ModelVersion, TrainingJob};
use flywheel_contract::termination::Outcome;
use flywheel_policy::models::latest::{Candidate, target};
use flywheel_policy::models::retain::{VersionView, due};
use flywheel_policy::training::attempt::{AttemptState, End, state};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::build;
use super::observe::Observation;
use crate::context::Context;
use crate::error::Error;
use crate::kubeio::{Created, MODELS_MANAGER, Note};
use crate::serving::{newest_assignment, rejection};
use crate::training::ended;

/// What is known of a version that is verified: whether it goes.
pub struct Leaving {
    /// Why.
    why: String,
    /// Another version, here or in another namespace, has the same artifact, or it cannot be removed from where it lies.
    artifact_stays: bool,
    /// What the Job that removes its artifact does.
    job: Option<AttemptState>,
}

fn promotable(version: &ModelVersion) -> bool {
    let status = version.status.as_ref();
    status
        .and_then(|s| find(&s.conditions, types::PROMOTABLE))
        .is_some_and(|c| c.status == "True")
}

/// Looks whether the version goes; none where it stays.
pub fn observe(version: &ModelVersion, context: &Context, observation: &Observation) -> Option<Leaving> {
    version.spec.retention.as_ref()?;
    let namespace = version.namespace().unwrap_or_default();
    let all = context
        .caches
        .model_versions
        .list(&namespace, |other| other.spec.model == version.spec.model);
    let candidates: Vec<Candidate> = all
        .iter()
        .map(|version| Candidate {
            name: version.name_any(),
            number: version.spec.version,
            promotable: promotable(version),
            rejected: rejection::read(version).is_some(),
        })
        .collect();
    let name = version.name_any();
    let takes = |service: &InferenceService| {
        let spec = &service.spec;
        let assigned = || {
            // What pods say may be missing for a moment; what they are told is not.
            let told = newest_assignment(service, context)?;
            let comes = told.canary.as_ref().map(|canary| canary.version.name.clone());
            Some(told.versions.iter().any(|held| held.name == name) || comes.as_ref() == Some(&name))
        };
        spec.model == version.spec.model
            && (target(&spec.model_version, spec.auto_update.as_ref(), &candidates) == name || assigned() == Some(true))
    };
    let reads = |job: &TrainingJob| {
        let (base, incumbent) = (&job.spec.model.from_version, &job.spec.output.incumbent);
        let conditions = job.status.as_ref().map_or(&[][..], |status| &status.conditions);
        (base.as_ref() == Some(&name) || incumbent.as_ref() == Some(&name)) && ended(conditions).is_none()
    };
    let needed = !observation.answering.is_empty()
        || !observation.services.is_empty()
        || !context.caches.inference_services.list(&namespace, takes).is_empty()
        || !context.caches.training_jobs.list(&namespace, reads).is_empty();
    let view = |version: &'_ ModelVersion, needed| VersionView {
        number: version.spec.version,
        created: version
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or_else(|| context.now(), |t| t.0),
        promotable: promotable(version),
        rejected: rejection::read(version).is_some(),
        needed,
        retention: None,
    };
    let others: Vec<VersionView<'_>> = all
        .iter()
        .filter(|other| other.name_any() != name)
        .map(|other| view(other, false))
        .collect();
    let this = VersionView {
        retention: version.spec.retention.as_ref(),
        ..view(version, needed)
    };
    let why = due(&this, &others, context.now())?;
    let uid = version.uid().unwrap_or_default();
    let shared = context
        .caches
        .model_versions
        .all(|other| other.uid().as_ref() != Some(&uid) && other.spec.artifact.uri == version.spec.artifact.uri);
    let jobs = context.caches.jobs.owned(&namespace, &uid);
    let job = jobs.iter().find(|job| job.name_any() == prune_job(&name));
    Some(Leaving {
        why,
        // In some namespaces only, nobody knows of the others'.
        artifact_stays: !shared.is_empty()
            || !context.settings.namespaces.is_empty()
            || !version.spec.artifact.uri.as_str().starts_with("s3://"),
        job: job.map(|job| {
            let pods = context.caches.pods.owned(&namespace, &job.uid().unwrap_or_default());
            let pods: Vec<&Pod> = pods.iter().map(Arc::as_ref).collect();
            state(job, &pods, true, PRUNER, context.now())
        }),
    })
}

/// The next step of the way out.
pub async fn apply(version: &ModelVersion, context: &Context, leaving: &Leaving) -> Result<(), Error> {
    let writes = context.writes(MODELS_MANAGER);
    let note = |warning, reason: &str, text: String| Note {
        warning,
        reason: reason.to_owned(),
        action: "Prune",
        text,
    };
    let gone = match &leaving.job {
        _ if leaving.artifact_stays => true,
        None => {
            let built = build::prune(version, &context.settings)?;
            if let Created::New(_) = writes.create_owned(&built, &version.uid().unwrap_or_default()).await? {
                tracing::info!(why = leaving.why, "the artifact of a version is removed");
            }
            false
        }
        Some(AttemptState::Ended(ended)) => match &ended.end {
            End::Told(Outcome::Pruned(_)) => true,
            end => {
                let why = match end {
                    End::Told(Outcome::Failed(failure)) => failure.to_string(),
                    End::Unclear { message } => message.clone(),
                    end => format!("{end:?}"),
                };
                let text = format!(
                    "{}, but its artifact could not be removed: {why}. It is tried again by itself; without the right to delete in the \
                     bucket, delete the ModelVersion by hand",
                    leaving.why
                );
                writes.event(version, &note(true, reasons::PRUNE_FAILED, text)).await;
                false
            }
        },
        Some(_) => false,
    };
    if gone {
        writes.delete(version).await?;
        let artifact = if leaving.artifact_stays {
            " (its artifact stays)"
        } else {
            " with its artifact"
        };
        let text = format!("version {} is gone{artifact}: {}", version.spec.version, leaving.why);
        tracing::info!(why = leaving.why, "a version is removed");
        writes.event(version, &note(false, reasons::PRUNED, text)).await;
    }
    Ok(())
}
