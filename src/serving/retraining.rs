//! Training anew: which jobs were made for a service, what came of them, and the next one.

use std::sync::Arc;

use flywheel_api::conditions::{Desired, Status, find, is_true, reasons, types};
use flywheel_api::names::{ANNOTATION_CAUSE, ANNOTATION_REQUESTED, ANNOTATION_SCHEDULED, LABEL_RETRAINS};
use flywheel_api::retraining::{RetrainingStatus, ScheduleStatus};
use flywheel_api::{InferenceService, ModelVersion, TrainingJob};
use flywheel_contract::serving::Assignment;
use flywheel_policy::drift::Verdict;
use flywheel_policy::models::latest::{self, Candidate, newer, target};
use flywheel_policy::retrain::{Decision, Drift, Fate, Made, Noted, Outcome, View, decide};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;

use super::build::retraining;
use super::drift::answers;
use super::observe::rejected;
use super::rejection;
use super::report::said_before;
use crate::context::Context;
use crate::error::Error;
use crate::kubeio::{Created, Note, SERVING_MANAGER};

/// Time within which a ModelVersion shows in the cache after its training is complete.
const SHOWN_WITHIN: SignedDuration = SignedDuration::from_secs(60);

/// What came of looking at retraining.
#[derive(Debug, Default)]
pub struct Retraining {
    /// The conditions.
    pub conditions: Vec<Desired>,
    /// The last job.
    pub status: Option<RetrainingStatus>,
    /// How the schedule stands.
    pub schedule: Option<ScheduleStatus>,
    /// When to look again.
    pub again: Option<std::time::Duration>,
}

/// The versions of a service's model, where it is trained anew or takes new ones by itself. The one that answers stays what it is,
/// whatever became of it elsewhere: only what this service saw of it, or the user, takes it back.
#[must_use]
pub fn candidates(service: &InferenceService, context: &Context) -> Vec<Candidate> {
    if service.spec.retrain.is_none() && service.spec.auto_update.is_none() {
        return Vec::new();
    }
    let namespace = service.namespace().unwrap_or_default();
    let answers = answers(service, context);
    let all = context
        .caches
        .model_versions
        .list(&namespace, |version| version.spec.model == service.spec.model);
    all.iter()
        .map(|version| {
            let mine = answers
                .as_ref()
                .is_some_and(|answers| answers.name == version.name_any() && answers.artifact == version.spec.artifact);
            let elsewhere = mine && rejection::is_elsewhere(version, &service.name_any());
            Candidate {
                name: version.name_any(),
                number: version.spec.version,
                promotable: mine || says(version, types::PROMOTABLE) == Some(true),
                rejected: rejected(version, context).is_some() && !elsewhere,
            }
        })
        .collect()
}

/// What a condition says; none where it is unknown.
fn says(version: &ModelVersion, kind: &str) -> Option<bool> {
    let condition = find(&version.status.as_ref()?.conditions, kind)?;
    match condition.status.as_str() {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

/// The service as if `modelVersion` named the version that it is to answer with: with `autoUpdate` that may be a newer one.
#[must_use]
pub fn with_target(service: Arc<InferenceService>, candidates: &[Candidate]) -> Arc<InferenceService> {
    let spec = &service.spec;
    // New versions wait while variants are compared.
    if spec.auto_update.is_none() || spec.experiment.is_some() {
        return service;
    }
    let target = target(&spec.model_version, spec.auto_update.as_ref(), candidates);
    if target == spec.model_version {
        return service;
    }
    let mut changed = InferenceService::clone(&service);
    changed.spec.model_version = target.to_owned();
    // It answers clients now, so nothing is left to compare it with.
    changed.spec.mirror = changed.spec.mirror.filter(|mirror| mirror.model_version != target);
    Arc::new(changed)
}

/// The newest version that the service would take by itself, were it not rejected, and why it was. `service`: as [`with_target`] gives
/// it.
#[must_use]
pub fn left_out(service: &InferenceService, candidates: &[Candidate], context: &Context) -> Option<(String, String)> {
    let spec = &service.spec;
    let auto = spec.auto_update.as_ref().filter(|_| spec.experiment.is_none());
    let version = latest::left_out(&spec.model_version, auto, candidates)?;
    let namespace = service.namespace().unwrap_or_default();
    let object = context.caches.model_versions.get(&namespace, &version.name)?;
    Some((version.name.clone(), rejected(&object, context)?))
}

/// Whether there is a version that the service does not take by itself. `service`: as [`with_target`] gives it.
fn update_available(service: &InferenceService, candidates: &[Candidate]) -> Desired {
    let target = &service.spec.model_version;
    match newer(target, &[], candidates) {
        Some(newer) if service.spec.experiment.is_some() => Desired::new(
            types::UPDATE_AVAILABLE,
            Status::True,
            reasons::EXPERIMENT_RUNNING,
            format!(
                "ModelVersion {} is promotable and newer than {target}, and new versions wait for the end of the experiment: take \
                 experiment out of the spec, and {}",
                newer.name,
                if service.spec.auto_update.is_some() {
                    "autoUpdate goes on"
                } else {
                    "set modelVersion to it"
                }
            ),
        ),
        Some(newer) => Desired::new(
            types::UPDATE_AVAILABLE,
            Status::True,
            reasons::NEWER_VERSION,
            format!(
                "ModelVersion {} is promotable and newer than {target}; set modelVersion to it",
                newer.name
            ),
        ),
        None => Desired::new(
            types::UPDATE_AVAILABLE,
            Status::False,
            reasons::UP_TO_DATE,
            format!("no promotable version is newer than {target}"),
        ),
    }
}

/// Makes the next TrainingJob where one is due, and says how things stand. `service`: as [`with_target`] gives it.
///
/// # Errors
/// The API server does not answer.
pub async fn retrain(
    service: &InferenceService,
    candidates: &[Candidate],
    assignment: Option<&Assignment>,
    context: &Context,
) -> Result<Retraining, Error> {
    let spec = &service.spec;
    let mut told = Retraining::default();
    if spec.retrain.is_some() || spec.auto_update.is_some() {
        told.conditions.push(update_available(service, candidates));
    }
    let Some(wishes) = &spec.retrain else {
        return Ok(told);
    };
    let (namespace, uid) = (
        service.namespace().unwrap_or_default(),
        service.uid().unwrap_or_default(),
    );
    let jobs = context.caches.training_jobs.owned(&namespace, &uid);
    let mut made: Vec<(Made, Arc<TrainingJob>)> = jobs
        .into_iter()
        .filter(|job| job.labels().get(LABEL_RETRAINS) == Some(&service.name_any()))
        .filter_map(|job| Some((self::made(&job, service, assignment, context)?, job)))
        .collect();
    made.sort_by_key(|(made, _)| made.number);
    let template = context.caches.training_jobs.get(&namespace, &wishes.training_job);
    told.status = made.last().map(|(_, job)| status(job));
    let serving = assignment.and_then(Assignment::serving);
    let verdict = serving.and_then(|serving| context.drifts.verdict(&uid, &serving.artifact.digest));
    let cause = verdict.as_ref().and_then(Verdict::alarm);
    let drift = match (&spec.drift, &verdict, &cause) {
        (None, ..) => Drift::Unwatched,
        (Some(_), None, _) => Drift::Unknown,
        (Some(_), Some(_), Some(cause)) => Drift::Found(cause),
        (Some(_), Some(_), None) => Drift::None,
    };
    let before = service.status.as_ref();
    let noted = before
        .and_then(|status| status.retrain_schedule.as_ref())
        .map(|told| Noted {
            schedule: told.schedule.clone(),
            time_zone: told.time_zone.clone(),
            since: told.since.0,
            next: told.next.0,
        });
    let all: Vec<Made> = made.iter().map(|(made, _)| made.clone()).collect();
    let Decision {
        start,
        mut condition,
        noted,
        again,
    } = decide(&View {
        spec: wishes,
        drift,
        template: template.is_some(),
        judged: verdict.as_ref().map_or(0, |verdict| verdict.called.predictions),
        made: &all,
        noted: noted.as_ref(),
        now: context.now(),
    });
    told.schedule = noted.map(|noted| ScheduleStatus {
        schedule: noted.schedule,
        time_zone: noted.time_zone,
        since: Time(noted.since),
        next: Time(noted.next),
    });
    // Before the first look of this operator nothing new is known.
    if condition.reason == reasons::NO_DATA
        && let Some(said) = before.and_then(|status| find(&status.conditions, types::RETRAINING))
    {
        condition = said_before(types::RETRAINING, said);
    }
    if let (Some(start), Some(template)) = (&start, &template) {
        let incumbent = serving.map(|serving| serving.name.as_str());
        let job = retraining::build(service, template, incumbent, start);
        let writes = context.writes(SERVING_MANAGER);
        match writes.create_owned(&job, &uid).await {
            Ok(created) => {
                if let Created::New(job) = &created {
                    tracing::info!(job = job.name_any(), cause = start.cause, "a retraining begins");
                    let note = Note {
                        warning: false,
                        reason: reasons::RETRAINING_RUNNING.to_owned(),
                        action: "Retrain",
                        text: format!("TrainingJob {} is made: {}", job.name_any(), start.cause),
                    };
                    writes.event(service, &note).await;
                }
                told.status = Some(status(&created.into_inner()));
            }
            Err(error) => match error.problem() {
                Some((reason, message)) => {
                    condition = Desired::new(types::RETRAINING, Status::False, reason, message);
                    // The time of a schedule is not heeded.
                    told.schedule = before.and_then(|status| status.retrain_schedule.clone());
                }
                None => return Err(error),
            },
        }
    }
    told.conditions.push(condition);
    told.again = again;
    Ok(told)
}

/// A job that was made for the service; none where its name has no number.
fn made(
    job: &TrainingJob,
    service: &InferenceService,
    assignment: Option<&Assignment>,
    context: &Context,
) -> Option<Made> {
    let number = job.name_any().rsplit('-').next()?.parse().ok()?;
    let conditions = job
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let outcome = if is_true(conditions, types::FAILED) {
        Outcome::Failed
    } else if is_true(conditions, types::COMPLETE) {
        let result = job.status.as_ref().and_then(|status| status.result.as_ref());
        let name = result.map(|result| result.model_version.clone()).unwrap_or_default();
        let ended = find(conditions, types::COMPLETE).map(|condition| condition.last_transition_time.0);
        let fate = fate(&name, ended, service, assignment, context);
        Outcome::Version { name, fate }
    } else if let Some(stalled) = find(conditions, types::STALLED).filter(|c| c.status == "True") {
        Outcome::Stalled(stalled.message.clone())
    } else {
        Outcome::Running
    };
    let created = job.metadata.creation_timestamp.as_ref();
    Some(Made {
        name: job.name_any(),
        number,
        created: created.map_or_else(|| context.now(), |time| time.0),
        outcome,
        requested: job.annotations().get(ANNOTATION_REQUESTED).cloned(),
        scheduled: job
            .annotations()
            .get(ANNOTATION_SCHEDULED)
            .and_then(|time| time.parse().ok()),
    })
}

/// `ended`: when its training was complete.
fn fate(
    name: &str,
    ended: Option<Timestamp>,
    service: &InferenceService,
    assignment: Option<&Assignment>,
    context: &Context,
) -> Fate {
    let namespace = service.namespace().unwrap_or_default();
    let version = |name: &str| context.caches.model_versions.get(&namespace, name);
    let Some(made) = version(name) else {
        // The caches follow one another: it may not show yet.
        let gone = ended.is_none_or(|ended| context.now().duration_since(ended) > SHOWN_WITHIN);
        return if gone { Fate::Refused } else { Fate::Open };
    };
    let answers = assignment.and_then(|assignment| version(&assignment.serve));
    // One that others came after was served, or passed over for a better one.
    if answers.is_some_and(|answers| answers.spec.version >= made.spec.version) {
        return Fate::Served;
    }
    let excluded = service
        .spec
        .auto_update
        .iter()
        .flat_map(|auto| &auto.exclude)
        .any(|excluded| excluded == name);
    let failed = [types::VERIFIED, types::PROMOTABLE]
        .iter()
        .any(|kind| says(&made, kind) == Some(false));
    if failed || excluded || rejected(&made, context).is_some() {
        Fate::Refused
    } else {
        Fate::Open
    }
}

fn status(job: &TrainingJob) -> RetrainingStatus {
    let result = job.status.as_ref().and_then(|status| status.result.as_ref());
    RetrainingStatus {
        training_job: job.name_any(),
        time: job
            .metadata
            .creation_timestamp
            .clone()
            .unwrap_or(Time(Timestamp::UNIX_EPOCH)),
        cause: job.annotations().get(ANNOTATION_CAUSE).cloned().unwrap_or_default(),
        model_version: result.map(|result| result.model_version.clone()),
    }
}
