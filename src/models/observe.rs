//! What there is: what the status says of the artifact, the last verifying Job, and who serves the version.

use std::sync::Arc;

use flywheel_api::conditions::{find, types};
use flywheel_api::names::{LABEL_ATTEMPT, LABEL_COMPONENT, LABEL_MODEL_VERSION, VERIFIER};
use flywheel_api::{InferenceService, ModelVersion};
use flywheel_contract::failure::{FailureClass, FailureReason};
use flywheel_policy::models::{ServiceView, TryView, Verification, keeps};
use flywheel_policy::training::attempt::{AttemptState, state};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;

use crate::context::Context;
use crate::error::Error;
use crate::training::{number, refused_creation};

/// Age of a Job from which a missing pod is asked about; the Job controller needs a moment.
const POD_DUE_SECONDS: i64 = 3;
/// Most services that a status names.
const SERVICES_MAX: usize = 16;

/// All that is seen of a ModelVersion.
pub struct Observation {
    /// What the status says already.
    pub known: Option<Verification>,
    /// The last verifying Job.
    pub latest: Option<TryView>,
    /// Names of InferenceServices whose pods answer with it.
    pub answering: Vec<String>,
    /// And of those that are to: of its model, with this version in their spec, where they [`keeps`] it.
    pub services: Vec<String>,
}

/// Looks at everything that the decision needs.
pub async fn observe(version: &ModelVersion, context: &Context) -> Result<Observation, Error> {
    let (namespace, name) = (version.namespace().unwrap_or_default(), version.name_any());
    let uid = version.uid().unwrap_or_default();
    let known = version.status.as_ref().and_then(|s| known(&s.conditions));
    let answers = |s: &InferenceService| {
        let traffic = s.status.iter().flat_map(|s| &s.traffic);
        traffic.into_iter().any(|traffic| traffic.model_version == name)
    };
    let is_to = |s: &InferenceService| {
        s.spec.versions().contains(&name.as_str()) && s.spec.model == version.spec.model && keeps(&service_view(s))
    };
    let services = context
        .caches
        .inference_services
        .list(&namespace, |s| answers(s) || is_to(s));
    let mut observation = Observation {
        known,
        latest: None,
        answering: services
            .iter()
            .filter(|s| answers(s))
            .take(SERVICES_MAX)
            .map(|s| s.name_any())
            .collect(),
        services: services.iter().take(SERVICES_MAX).map(|s| s.name_any()).collect(),
    };
    if observation.known.is_some() {
        return Ok(observation);
    }
    let jobs = context.caches.jobs.owned(&namespace, &uid);
    let mut jobs: Vec<_> = jobs
        .iter()
        .filter(|j| {
            let labels = j.labels();
            labels.get(LABEL_MODEL_VERSION) == Some(&name)
                && labels.get(LABEL_COMPONENT).map(String::as_str) == Some(VERIFIER)
        })
        .filter_map(|j| Some((number(j, LABEL_ATTEMPT)?, j)))
        .collect();
    jobs.sort_unstable_by_key(|(tried, _)| *tried);
    let look = |job: &Job| {
        let job_uid = job.uid().unwrap_or_default();
        let pods = context.caches.pods.owned(&namespace, &job_uid);
        let pods: Vec<&Pod> = pods.iter().map(Arc::as_ref).collect();
        state(job, &pods, true, VERIFIER, context.now())
    };
    let Some((tried, job)) = jobs.pop() else {
        return Ok(observation);
    };
    let before = jobs.pop().and_then(|(_, job)| match look(job) {
        AttemptState::Ended(ended) => Some(ended),
        _ => None,
    });
    let created = job
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or_else(|| context.now(), |t| t.0);
    let mut seen = look(job);
    if let AttemptState::NoPod { refused } = &mut seen
        && context.now().duration_since(created).as_secs() >= POD_DUE_SECONDS
    {
        *refused = refused_creation(context, &namespace, &job.uid().unwrap_or_default()).await?;
    }
    observation.latest = Some(TryView {
        number: tried,
        created,
        state: seen,
        before,
    });
    Ok(observation)
}

fn service_view(service: &InferenceService) -> ServiceView<'_> {
    let status = service.status.as_ref();
    ServiceView {
        stalled: status
            .and_then(|s| find(&s.conditions, types::STALLED))
            .filter(|c| c.status == "True")
            .map(|c| c.reason.as_str()),
        pods: status.and_then(|s| s.replicas).unwrap_or(0),
    }
}

/// What the conditions say for good: verified, or a failure that trying again does not mend.
fn known(conditions: &[Condition]) -> Option<Verification> {
    let verified = find(conditions, types::VERIFIED)?;
    if verified.status == "True" {
        return Some(Verification::Verified {
            message: verified.message.clone(),
        });
    }
    let of_the_user = FailureReason::ALL
        .iter()
        .any(|r| r.as_str() == verified.reason && r.class() == FailureClass::User);
    (verified.status == "False" && of_the_user).then(|| Verification::Failed {
        reason: verified.reason.clone(),
        message: verified.message.clone(),
    })
}
