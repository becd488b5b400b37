//! The TrainingJob controller: attempts are Jobs, a result becomes a ModelVersion.

pub mod build;
mod memo;
mod observe;
mod recovery;
mod report;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use flywheel_api::TrainingJob;
use flywheel_api::conditions::reasons;
use flywheel_api::names::{self, ANNOTATION_ENDED, ANNOTATION_GIVEN_UP};
use flywheel_api::recovery::RecoveryMode;
use flywheel_contract::termination::Trained;
use flywheel_policy::training::{Decision, Intent, Phase, Wishes, decide, version_conflict};
use k8s_openapi::api::batch::v1::Job;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde::Serialize;
use serde_json::json;

pub use memo::ProgressMemo;
pub(crate) use observe::{ended, number, refused_creation};

use crate::context::Context;
use crate::controller::RESYNC;
use crate::error::Error;
use crate::kubeio::{Created, TRAINING_MANAGER, Writes, owner_reference, within};
use build::job::NamedVersions;
use observe::Observation;
use recovery::Incidents;

/// When to look again at a job that only its user can help, where the cause is outside of its spec.
const BLOCKED: Duration = Duration::from_secs(30);
/// Versions in one answer of the API server; a model gathers them for years.
const PAGE: u32 = 500;
/// Age from which a NetworkPolicy that nobody needs is removed; a job that was just applied may not be in the cache yet.
const SWEEP_AGE: Duration = Duration::from_secs(60);

/// One pass over a TrainingJob; when to look again.
///
/// # Errors
/// The API server does not answer, or refuses what is not the user's to mend.
pub async fn reconcile(job: Arc<TrainingJob>, context: Arc<Context>) -> Result<Duration, Error> {
    if job.metadata.deletion_timestamp.is_some() {
        // Jobs and pods follow by their owner references.
        context.progress.forget(&job.uid().unwrap_or_default());
        return Ok(RESYNC);
    }
    let class = &job.spec.trainer.accelerator.class;
    let wishes = Wishes {
        suspend: job.spec.suspend,
        max_restarts: u32::try_from(job.spec.recovery.max_restarts).unwrap_or(0),
        only_observe: job.spec.recovery.mode == RecoveryMode::Observe,
        class,
        fallback: context.settings.fallback(class).map(|(name, _)| name),
    };
    let observation = observe::observe(&job, &context, wishes).await?;
    let mut decision = decide(wishes, &observation.observed, context.now());
    let incidents = Incidents::of(&job, &context, &observation, &decision);
    let mut version = None;
    match apply(&job, &context, &observation, &decision, &incidents).await {
        Ok(made) => version = made,
        Err(error) => {
            let Some((reason, mut message)) = error.problem() else {
                return Err(error);
            };
            // Errors do not know whose children they are about.
            if reason != reasons::NAME_TAKEN {
                message.push_str(
                    ". What is to be changed in the spec takes a new TrainingJob; this one's cannot be changed",
                );
            }
            decision = Decision {
                record: None,
                intent: Intent::Wait,
                counted: decision.counted,
                stop: Vec::new(),
                remove: Vec::new(),
                phase: Phase::Stalled,
                reason: reason.to_owned(),
                message,
                again: BLOCKED,
            };
        }
    }
    let kept = report::report(&job, &context, &observation, &decision, &incidents, version.as_deref()).await?;
    Ok(kept.map_or(decision.again, |kept| kept.min(decision.again)))
}

/// Makes the cluster follow the decision. Gives the name of the ModelVersion that holds the result, where there is one.
async fn apply(
    job: &TrainingJob,
    context: &Context,
    observation: &Observation,
    decision: &Decision,
    incidents: &Incidents,
) -> Result<Option<String>, Error> {
    let mut version = None;
    let writes = context.writes(TRAINING_MANAGER);
    let uid = job.uid().unwrap_or_default();
    if let Some(ended) = &decision.record
        && let Some(present) = observation
            .observed
            .attempts
            .last()
            .and_then(|a| observation.job_of(a.number))
    {
        annotate(&writes, present, ANNOTATION_ENDED, ended).await?;
    }
    match &decision.intent {
        Intent::StartAttempt {
            attempt,
            counted,
            class,
        } => {
            let built = build::job::job(
                job,
                *attempt,
                *counted,
                class,
                &incidents.avoided(job, &observation.observed.attempts, context),
                NamedVersions {
                    expected: observation.expected(*attempt).cloned(),
                    ..named_versions(job, context).await?
                },
                &context.settings,
            )?;
            let namespace = job.namespace().unwrap_or_default();
            // First, since it is the name that a stranger has most likely taken; pods look for each other by it.
            if let Some(service) = build::service::service(job)? {
                let cached = context.caches.services.get(&namespace, &service.name_any());
                writes.apply_owned(&service, cached.as_deref(), &uid).await?;
            }
            apply_network_policy(context, &namespace, TRAINING_MANAGER).await?;
            let created = writes.create_owned(&built, &uid).await?;
            if let Created::New(_) = created {
                tracing::info!(attempt, counted, class, why = decision.message, "an attempt is started");
            }
        }
        Intent::SetSuspend { attempt, suspend } => {
            if let Some(present) = observation.job_of(*attempt) {
                writes
                    .merge_fields(present, json!({"spec": {"suspend": suspend}}))
                    .await?;
                tracing::info!(attempt, suspend, "the attempt is suspended or resumed");
            }
        }
        Intent::GiveUp { attempt, verdict } => {
            if let Some(present) = observation.job_of(*attempt) {
                annotate(&writes, present, ANNOTATION_GIVEN_UP, verdict).await?;
                tracing::warn!(attempt, cause = ?verdict.cause, how = verdict.how, "the attempt is given up");
            }
        }
        Intent::Complete(trained) => version = Some(ensure_version(job, context, trained).await?),
        Intent::Wait => {}
    }
    for number in &decision.stop {
        for pod in observation.living_pods(*number) {
            writes.delete(pod).await?;
            tracing::info!(
                attempt = number,
                pod = pod.name_any(),
                "a pod of an attempt that is over is deleted"
            );
        }
    }
    for number in &decision.remove {
        if let Some(present) = observation.job_of(*number) {
            writes.delete(present).await?;
            tracing::info!(attempt = number, "the Job of an attempt is removed");
        }
    }
    Ok(version)
}

/// The artifacts of the versions that the spec names, as the API server has them: the cache may not show yet what was applied just
/// before the job.
///
/// # Errors
/// There is none of that name, or as the incumbent none of this model.
async fn named_versions(job: &TrainingJob, context: &Context) -> Result<NamedVersions, Error> {
    let api: Api<flywheel_api::ModelVersion> =
        Api::namespaced(context.client.clone(), &job.namespace().unwrap_or_default());
    let (model, output) = (&job.spec.model, &job.spec.output);
    let mut versions = NamedVersions::default();
    if let Some(name) = &model.from_version {
        let found = within("get ModelVersion", api.get_opt(name)).await?;
        let version = found.ok_or_else(|| Error::InvalidSpec {
            reason: reasons::BASE_VERSION_NOT_FOUND,
            message: format!(
                "model.fromVersion: ModelVersion {name} does not exist. Apply it, or name one that is there"
            ),
        })?;
        versions.base = Some(version.spec.artifact);
    }
    if let Some(name) = &output.incumbent {
        let problem = match within("get ModelVersion", api.get_opt(name)).await? {
            Some(version) if version.spec.model == output.model => {
                versions.incumbent = Some(version.spec.artifact);
                return Ok(versions);
            }
            Some(version) => format!("is a version of model {}, not of {}", version.spec.model, output.model),
            None => "does not exist".to_owned(),
        };
        return Err(Error::InvalidSpec {
            reason: reasons::INCUMBENT_NOT_FOUND,
            message: format!(
                "output.incumbent: ModelVersion {name} {problem}. Apply it, or name a version of {} that is there, or none",
                output.model
            ),
        });
    }
    Ok(versions)
}

/// Writes what is to be known for good of an attempt at its Job.
async fn annotate<T: Serialize>(writes: &Writes<'_>, job: &Job, key: &str, value: &T) -> Result<(), Error> {
    let text = serde_json::to_string(value).map_err(|e| Error::Bug(format!("{key} cannot be written as JSON: {e}")))?;
    writes
        .merge_fields(job, json!({"metadata": {"annotations": {key: text}}}))
        .await?;
    Ok(())
}

/// Makes the one NetworkPolicy of all training and verifying pods of a namespace, unless it is there.
///
/// # Errors
/// [`Error::NameTaken`] where somebody else's has the name.
pub async fn apply_network_policy(context: &Context, namespace: &str, manager: &'static str) -> Result<(), Error> {
    let built = build::network_policy::network_policy(namespace, &context.operator_namespace);
    let cached = context
        .caches
        .network_policies
        .get(namespace, names::TRAINERS_NETWORK_POLICY);
    context
        .writes(manager)
        .apply_if(&built, cached.as_deref(), |present| {
            present.labels().get(names::LABEL_MANAGED_BY).map(String::as_str) == Some(names::FLYWHEEL)
        })
        .await?;
    Ok(())
}

/// Name of the ModelVersion that this job makes.
pub(crate) fn version_name(job: &TrainingJob) -> String {
    job.spec
        .output
        .version_name
        .clone()
        .unwrap_or_else(|| names::default_version(&job.name_any(), &job.uid().unwrap_or_default()))
}

/// Makes the ModelVersion, or finds one of the model with the same artifact, which is as good as ours; its name.
async fn ensure_version(job: &TrainingJob, context: &Context, trained: &Trained) -> Result<String, Error> {
    let namespace = job.namespace().unwrap_or_default();
    let name = version_name(job);
    // Two jobs of one model that end at once must not take the same number.
    let _one_at_a_time = context.version_numbers.lock().await;
    let api: Api<flywheel_api::ModelVersion> = Api::namespaced(context.client.clone(), &namespace);
    let mut of_model = ListParams::default()
        .fields(&format!("spec.model={}", job.spec.output.model))
        .limit(PAGE);
    let same = |v: &flywheel_api::ModelVersion| v.spec.artifact.digest == trained.artifact.digest;
    let (mut last, mut present, mut other) = (0, None, None);
    loop {
        let page = within("list ModelVersions", api.list(&of_model)).await?;
        last = page.iter().map(|v| v.spec.version).fold(last, i64::max);
        let token = page.metadata.continue_.clone().filter(|token| !token.is_empty());
        // A result that was used again may have its version already, under another name. One with other gates was judged by those.
        let ours = |v: &&flywheel_api::ModelVersion| trained.reused && same(v) && v.spec.gates == job.spec.output.gates;
        other = other.or_else(|| page.iter().find(ours).map(|v| v.name_any()));
        present = present.or_else(|| page.into_iter().find(|v| v.name_any() == name));
        match token {
            Some(token) => of_model = of_model.continue_token(&token),
            None => break,
        }
    }
    let present = match (present, other) {
        (Some(present), _) => present,
        (None, Some(other)) => return Ok(other),
        (None, None) => {
            let built = build::model_version::model_version(job, &name, last.saturating_add(1), trained);
            match context.writes(TRAINING_MANAGER).create(&built).await? {
                Created::New(_) => {
                    tracing::info!(
                        model_version = name,
                        number = built.spec.version,
                        "the ModelVersion is made"
                    );
                    return Ok(name);
                }
                Created::Present(present) => present,
            }
        }
    };
    if same(&present) {
        return Ok(name);
    }
    let outcome = format!("the result ({}) got none", trained.artifact.uri);
    Err(Error::InvalidSpec {
        reason: reasons::VERSION_CONFLICT,
        message: version_conflict(&name, present.spec.artifact.uri.as_str(), &outcome),
    })
}

/// Removes the NetworkPolicies of namespaces that have neither TrainingJobs nor Jobs of ours.
///
/// # Errors
/// The API server does not answer.
pub async fn sweep(context: &Context) -> Result<(), Error> {
    let policies = context
        .caches
        .network_policies
        .all(|p| p.metadata.name.as_deref() == Some(names::TRAINERS_NETWORK_POLICY));
    for policy in policies {
        let namespace = policy.namespace().unwrap_or_default();
        let old = policy
            .metadata
            .creation_timestamp
            .as_ref()
            .is_some_and(|made| context.now().duration_since(made.0).unsigned_abs() >= SWEEP_AGE);
        if old
            && context.caches.training_jobs.list(&namespace, |_| true).is_empty()
            && context.caches.jobs.list(&namespace, |_| true).is_empty()
        {
            context.writes(TRAINING_MANAGER).delete(policy.as_ref()).await?;
            tracing::info!(namespace, "the NetworkPolicy of training pods is removed");
        }
    }
    Ok(())
}

/// Owner references of a child.
pub(crate) fn owned_by<K: crate::kubeio::Kind>(
    owner: &K,
) -> Result<Option<Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>>, Error> {
    Ok(Some(vec![owner_reference(owner)?]))
}
