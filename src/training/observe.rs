//! What there is: attempts from their Jobs and pods, the ModelVersion, what the scheduler and the pods say, and whether the
//! running attempt still works, of which the pod with index 0 tells.

use std::sync::Arc;

use flywheel_api::conditions::{find, reasons, types};
use flywheel_api::names::{
    LABEL_ACCELERATOR_CLASS, LABEL_ATTEMPT, LABEL_COUNTED_RESTARTS, LABEL_TRAINING_JOB, TRAINER, controller_uid,
    is_controlled_by, training_attempt,
};
use flywheel_api::training_job::{DatasetStatus, EvaluationStatus, ProgressStatus, Reuse, TrackingStatus};
use flywheel_api::{ModelVersion, TrainingJob};
use flywheel_contract::names::{INSIDE_PORT, PROGRESS_PATH};
use flywheel_contract::progress::{EpochEvaluation, Progress, TrackingProgress};
use flywheel_contract::termination::Position;
use flywheel_contract::trainer::ArtifactRef;
use flywheel_policy::placement::{PodSchedulingView, Problem, refused_since};
use flywheel_policy::training::attempt::{
    AttemptState, Remains, index, is_out_of_contact, last_words, lives, nodes, running_since, runs, state, unrecorded,
    without_image_since,
};
use flywheel_policy::training::hang::{Look, Surroundings, Verdict};
use flywheel_policy::training::{AttemptView, Ended, Observed, Phase, TakenVersion, Wishes, fallback, image};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};

use super::build::job::gpus;
use super::report::state_word;
use super::version_name;
use crate::cluster::nodes::{address, node_of};
use crate::cluster::placement_problem;
use crate::context::Context;
use crate::error::Error;
use crate::kubeio::within;
use crate::scrape::ScrapeError;

/// Age of a Job from which a missing pod is asked about; the Job controller needs a moment.
const POD_DUE_SECONDS: i64 = 3;

/// All that is seen of a TrainingJob.
pub struct Observation {
    /// For the decision.
    pub observed: Observed,
    /// Jobs by attempt.
    jobs: Vec<(u32, Arc<Job>)>,
    /// Their pods, by attempt.
    pods: Vec<(u32, Arc<Pod>)>,
    /// What the running pod with index 0 tells.
    pub progress: Option<Progress>,
    /// The ModelVersion of the job's version name, whosever it is.
    pub version: Option<Arc<ModelVersion>>,
}

impl Observation {
    /// The Job of an attempt.
    pub fn job_of(&self, attempt: u32) -> Option<&Job> {
        self.jobs
            .iter()
            .find(|(n, _)| *n == attempt)
            .map(|(_, job)| job.as_ref())
    }

    /// The only artifact that the job may come to, for its first attempt: that of a ModelVersion with the name of its own.
    pub fn expected(&self, attempt: u32) -> Option<&ArtifactRef> {
        let taken = attempt == 1 && self.observed.version_taken.is_some();
        self.version.as_deref().filter(|_| taken).map(|v| &v.spec.artifact)
    }

    /// The node of the pod of an attempt with this completion index, as far as it is known.
    pub fn node_of(&self, attempt: u32, of: u32) -> Option<String> {
        let mut pods = self.pods.iter().filter(|(n, pod)| *n == attempt && index(pod) == of);
        pods.find_map(|(_, pod)| node_of(pod)).map(str::to_owned)
    }

    /// What the running pod, or the last words of one that ran, tell of the data checks.
    pub fn dataset(&self) -> Option<DatasetStatus> {
        let live = self.progress.as_ref().and_then(|p| p.dataset.as_ref());
        live.map(DatasetStatus::from).or_else(|| {
            let mut ended = self.pods.iter().rev();
            let last = ended.find_map(|(_, pod)| last_words(pod, TRAINER)?.dataset)?;
            Some(DatasetStatus::from(&last))
        })
    }

    /// The last evaluations, and where figures are to be seen, as the newest pod tells while it runs or with its last words.
    /// What older pods said is not asked for: the status had it.
    pub fn figures(&self) -> (Vec<EvaluationStatus>, Option<TrackingStatus>) {
        let status = |evaluations: &[EpochEvaluation], tracking: &TrackingProgress| {
            (EvaluationStatus::list(evaluations), TrackingStatus::told(tracking))
        };
        if let Some(live) = &self.progress {
            return status(&live.evaluations, &live.tracking);
        }
        let last = self.pods.last().and_then(|(_, pod)| last_words(pod, TRAINER));
        last.map(|words| status(&words.evaluations, &words.tracking))
            .unwrap_or_default()
    }

    /// The pods of an attempt that were not told to end and may run.
    pub fn living_pods(&self, attempt: u32) -> impl Iterator<Item = &Pod> {
        self.pods
            .iter()
            .filter(move |(n, pod)| *n == attempt && lives(pod, TRAINER))
            .map(|(_, pod)| pod.as_ref())
    }
}

/// Looks at everything that the decision needs.
pub async fn observe(job: &TrainingJob, context: &Context, wishes: Wishes<'_>) -> Result<Observation, Error> {
    let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
    let uid = job.uid().unwrap_or_default();
    let is_ours = |labels: &std::collections::BTreeMap<String, String>| labels.get(LABEL_TRAINING_JOB) == Some(&name);

    let mut jobs: Vec<(u32, Arc<Job>)> = context
        .caches
        .jobs
        .owned(&namespace, &uid)
        .into_iter()
        .filter(|j| is_ours(j.labels()))
        .filter_map(|j| Some((number(&j, LABEL_ATTEMPT)?, j)))
        .collect();
    jobs.sort_by_key(|(attempt, _)| *attempt);

    let status = job.status.as_ref();
    let told = status
        .and_then(|s| s.attempt)
        .and_then(|a| u32::try_from(a).ok())
        .unwrap_or(0);
    let ended = status.and_then(|s| ended(&s.conditions));
    let cached = jobs.last().map_or(0, |(attempt, _)| *attempt);
    let mut deleted = None;
    // The status names an attempt that the cache does not show: it lags, or the Job was deleted. A finished job needs none.
    if told > cached && ended.is_none() {
        let api: Api<Job> = Api::namespaced(context.client.clone(), &namespace);
        let child = training_attempt(&name, told);
        match within("get Job", api.get_opt(&child)).await? {
            Some(live) if is_controlled_by(&live.metadata, &uid) => jobs.push((told, Arc::new(live))),
            // Pods of a stranger's Job of that name are its own.
            Some(_) => {}
            None => deleted = Some(child),
        }
    }

    let mut pods: Vec<(u32, Arc<Pod>)> = Vec::new();
    let mut attempts = Vec::new();
    for (attempt, child) in &jobs {
        let child_uid = child.uid().unwrap_or_default();
        let of_job = context.caches.pods.owned(&namespace, &child_uid);
        let views: Vec<&Pod> = of_job.iter().map(|p| p.as_ref()).collect();
        // The status is written as soon as all pods run.
        let all_ran = told == *attempt && status.and_then(|s| s.state.as_deref()) == Some(state_word(Phase::Running));
        let mut seen = state(child, &views, all_ran, TRAINER, context.now());
        if let AttemptState::Ended(end) | AttemptState::Ending(end) = &mut seen {
            // Where index 0 could not tell, another pod may have, which knows less of checkpoints.
            let heard = context.progress.position(&uid, *attempt).filter(|heard| {
                end.position.is_none_or(|told| {
                    told.checkpoint_step < heard.checkpoint_step && told.head_attempt <= heard.head_attempt
                })
            });
            end.position = heard.or(end.position);
        }
        attempts.push(AttemptView {
            number: *attempt,
            counted: number(child, LABEL_COUNTED_RESTARTS).unwrap_or(0),
            class: child
                .labels()
                .get(LABEL_ACCELERATOR_CLASS)
                .cloned()
                .unwrap_or_else(|| wishes.class.to_owned()),
            created: child
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or_else(|| context.now(), |t| t.0),
            suspended: child.spec.as_ref().and_then(|s| s.suspend) == Some(true),
            nodes: nodes(child),
            running: count(views.iter().filter(|p| lives(p, TRAINER) && runs(p, TRAINER))),
            pod_lives: views.iter().any(|p| lives(p, TRAINER)),
            unrecorded: unrecorded(child, &seen),
            state: seen,
        });
        pods.extend(of_job.into_iter().map(|pod| (*attempt, pod)));
    }

    let mut remains = Remains::default();
    if let Some(deleted) = deleted {
        // Its uid is not known any more.
        let left = context
            .caches
            .pods
            .list(&namespace, |p| is_ours(p.labels()) && is_left_of(p, &deleted, job));
        let views: Vec<&Pod> = left.iter().map(|p| p.as_ref()).collect();
        remains = Remains::of(&views, TRAINER, context.now());
        pods.extend(left.into_iter().map(|pod| (told, pod)));
    }

    let mut placement = None;
    let mut progress = None;
    let mut verdict = None;
    if let (Some(view), Some((_, child))) = (attempts.last_mut(), jobs.last()) {
        let settings = context.settings.class(&view.class).ok();
        let child_uid = child.uid().unwrap_or_default();
        let of_job = || pods.iter().filter(|(n, _)| *n == view.number).map(|(_, pod)| pod);
        match &mut view.state {
            AttemptState::NoPod { refused }
                if !view.suspended && context.now().duration_since(view.created).as_secs() >= POD_DUE_SECONDS =>
            {
                *refused = refused_creation(context, &namespace, &child_uid).await?;
            }
            AttemptState::Unscheduled => {
                if let Some(settings) = settings {
                    let class = settings.view(&view.class);
                    let views: Vec<_> = of_job()
                        .filter(|p| lives(p, TRAINER))
                        .map(|p| PodSchedulingView::of(p, context.now()))
                        .collect();
                    placement = placement_problem(&context.caches, &class, gpus(job), &views);
                } else {
                    // Nobody could tell what it waits for.
                    verdict = fallback::without_class(wishes, view, context.now());
                }
            }
            AttemptState::Running => {
                let newest = of_job()
                    .filter(|p| index(p) == 0 && lives(p, TRAINER))
                    .max_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
                let resource = settings.map(|class| class.resource.as_str());
                let recovery = status.and_then(|s| s.recovery.as_ref());
                let fault = |pod: &Pod| context.nodes.gpu_fault(pod, (TRAINER, resource), recovery, context);
                if let Some(pod) = newest {
                    let answered_before = told == view.number
                        && status
                            .and_then(|s| s.progress.as_ref())
                            .is_some_and(|p| p.phase.is_some());
                    let look = scrape(context, view.number, pod).await;
                    if let Look::Answered(answer) = &look {
                        progress = Some(answer.as_ref().clone());
                    }
                    let peers = || of_job().filter(|p| lives(p, TRAINER));
                    let several = view.nodes > 1;
                    let seems_lost = |pod: &Pod| is_out_of_contact(pod) || context.nodes.lost(pod, context).is_some();
                    let held = peers().any(|p| seems_lost(p)) && context.nodes.is_held(context);
                    let is_lost = |pod: &Pod| !held && seems_lost(pod);
                    let around = Surroundings {
                        out_of_contact: is_lost(pod),
                        answered_before,
                        all_run_since: peers()
                            .filter(|_| several)
                            .filter_map(|p| running_since(p, TRAINER))
                            .max(),
                        lost_peer: peers()
                            .filter(|p| is_lost(p))
                            .map(|p| index(p))
                            .find(|index| *index > 0),
                        held,
                    };
                    let watch =
                        context
                            .progress
                            .add(&uid, view.number, &pod.uid().unwrap_or_default(), look, context.now());
                    let faulty = peers().find_map(|p| Some((p, fault(p)?)));
                    verdict = if let Some((of, words)) = faulty {
                        let place = several.then(|| index(of));
                        let suspected = Verdict {
                            node: node_of(of).map(str::to_owned),
                            ..Verdict::gpu_fault(place, &words, watch.position(), context.now())
                        };
                        confirmed(context, of, Some(suspected), |live| {
                            runs(live, TRAINER) && fault(live).is_some()
                        })
                        .await?
                    } else {
                        confirmed(context, pod, watch.verdict(around, context.now()), |live| {
                            runs(live, TRAINER)
                        })
                        .await?
                    };
                }
            }
            _ => {}
        }
    }

    verdict = verdict.or(without_image(context, wishes, &attempts, &pods).await?);
    if placement.as_ref().is_some_and(Problem::is_want_of_gpus) {
        verdict = without_room(context, &namespace, &name, wishes, &attempts, &pods).await?;
    }

    let version = context.caches.model_versions.get(&namespace, &version_name(job));
    let made_by = |v: &ModelVersion| v.spec.source.as_ref().and_then(|s| s.training_job.clone());
    let version_made = version
        .as_deref()
        .and_then(made_by)
        .is_some_and(|source| source.uid == uid);
    // Artifacts lie in folders that are named by the uids of the jobs that made them.
    let own = job.spec.output.uri.join(&uid);
    let of_another = |v: &ModelVersion| !v.spec.artifact.uri.as_str().starts_with(own.as_str());
    let reused = match status.and_then(|s| find(&s.conditions, types::COMPLETE)) {
        Some(complete) if complete.status == "True" => complete.reason == reasons::RESULT_REUSED,
        _ => version_made && version.as_deref().is_some_and(of_another),
    };
    Ok(Observation {
        observed: Observed {
            attempts,
            told_attempt: told,
            told_counted: status
                .and_then(|s| s.counted_restarts)
                .and_then(|n| u32::try_from(n).ok()),
            told_position: context
                .progress
                .position(&uid, told)
                .or_else(|| status.and_then(|s| s.progress.as_ref()).and_then(written_position)),
            remains,
            ended,
            version_made,
            reused,
            version_taken: version.as_ref().filter(|_| !version_made).map(|v| TakenVersion {
                name: v.name_any(),
                uri: v.spec.artifact.uri.to_string(),
                may_be_ours: job.spec.output.reuse == Reuse::Always
                    && made_by(v).is_some_and(|source| source.name == name),
            }),
            placement,
            verdict,
        },
        jobs,
        pods,
        progress,
        version,
    })
}

/// Whether a pod is left of our Job of this name, which was deleted. One of an earlier TrainingJob of the same name is older
/// than ours; one that lost its owner was meant to run on.
fn is_left_of(pod: &Pod, deleted: &str, owner: &TrainingJob) -> bool {
    let made = |metadata: &ObjectMeta| metadata.creation_timestamp.as_ref().map(|t| t.0);
    let mut owners = pod.metadata.owner_references.iter().flatten();
    owners.any(|r| r.controller == Some(true) && r.kind == "Job" && r.name == deleted)
        && made(&pod.metadata) >= made(&owner.metadata)
}

/// How far the attempt was that the status tells of; `None` where it tells only of the checkpoint that the next one begins
/// with.
fn written_position(progress: &ProgressStatus) -> Option<Position> {
    let number = |step: Option<i64>| step.and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
    let (step, _) = progress.step.as_deref()?.split_once('/')?;
    Some(Position {
        step: step.parse().ok()?,
        resumed_from_step: number(progress.resumed_from_step),
        checkpoint_step: number(progress.checkpoint_step),
        ..Position::default()
    })
}

/// A label's number.
pub(crate) fn number(job: &Job, label: &str) -> Option<u32> {
    job.labels().get(label)?.parse().ok()
}

/// How the job ended, as its status tells.
pub(crate) fn ended(conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition]) -> Option<Ended> {
    let is_true = |kind| find(conditions, kind).filter(|c| c.status == "True");
    if is_true(types::COMPLETE).is_some() {
        return Some(Ended::Complete);
    }
    is_true(types::FAILED).map(|c| Ended::Failed {
        reason: c.reason.clone(),
        message: c.message.clone(),
    })
}

/// Why the API server refuses a Job's pods: only an event of the Job tells.
pub(crate) async fn refused_creation(
    context: &Context,
    namespace: &str,
    job_uid: &str,
) -> Result<Option<String>, Error> {
    let api: Api<Event> = Api::namespaced(context.client.clone(), namespace);
    let of_job = ListParams::default()
        .fields(&format!("involvedObject.uid={job_uid},reason=FailedCreate"))
        .limit(20);
    let events = within("list Events", api.list(&of_job)).await?;
    let time = |event: &Event| {
        event
            .last_timestamp
            .as_ref()
            .map(|t| t.0)
            .or(event.event_time.as_ref().map(|t| t.0))
    };
    Ok(events
        .into_iter()
        .max_by_key(time)
        .and_then(|event| event.message)
        .map(|message| without_pod_name(&message).to_owned()))
}

/// The message without the pod's name, which is another one with every try.
fn without_pod_name(message: &str) -> &str {
    message
        .split_once("is forbidden: ")
        .map_or(message, |(_, rest)| rest)
        .trim()
}

/// What the running pod tells. That it cannot be read is no error.
async fn scrape(context: &Context, attempt: u32, pod: &Pod) -> Look {
    let Some(ip) = address(pod) else {
        return Look::Unreachable;
    };
    let read = context
        .scraper
        .get_json::<Progress>(ip, INSIDE_PORT, PROGRESS_PATH)
        .await;
    context.metrics.scrape("progress", read.is_ok());
    if let Some(node) = node_of(pod) {
        context.nodes.read(node, &read, context.clock.even());
    }
    if let Err(error) = &read {
        tracing::debug!(%error, "the pod's progress could not be read");
    }
    match read {
        Ok(progress) if progress.attempt == attempt => Look::Answered(Box::new(progress)),
        // Another pod has the address by now.
        Ok(_) | Err(ScrapeError::Status(_) | ScrapeError::Body(_)) => Look::Unreadable,
        Err(ScrapeError::Timeout) => Look::Silent,
        Err(ScrapeError::Refused | ScrapeError::Http(_)) => Look::Refused,
        Err(ScrapeError::Unreachable(_)) => Look::Unreachable,
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

/// The verdict, where the API server still has the pod as the cache has it, by what `is_still_so` says of it: one that has
/// just ended may have left a result.
async fn confirmed(
    context: &Context,
    pod: &Pod,
    suspected: Option<Verdict>,
    is_still_so: impl Fn(&Pod) -> bool,
) -> Result<Option<Verdict>, Error> {
    let Some(verdict) = suspected else {
        return Ok(None);
    };
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
    let live = within("get Pod", api.get_opt(&pod.name_any())).await?;
    let still_so = live
        .filter(|p| p.uid() == pod.uid())
        .is_some_and(|p| lives(&p, TRAINER) && is_still_so(&p));
    Ok(still_so.then_some(verdict))
}

/// That the latest attempt is given up for want of an image, where the API server still has its pod without it.
async fn without_image(
    context: &Context,
    wishes: Wishes<'_>,
    attempts: &[AttemptView],
    pods: &[(u32, Arc<Pod>)],
) -> Result<Option<Verdict>, Error> {
    let number = attempts.last().map_or(0, |latest| latest.number);
    let of_attempt = pods.iter().filter(|(of, _)| *of == number).map(|(_, pod)| pod.as_ref());
    let Some((pod, verdict)) = image::verdict(wishes, attempts, of_attempt, TRAINER, context.now()) else {
        return Ok(None);
    };
    confirmed(context, pod, Some(verdict), |live| {
        without_image_since(live, TRAINER).is_some()
    })
    .await
}

/// That the latest attempt is given up for one of another accelerator class, where the API server still has no pod of it that
/// runs and one without a node: the cache may not show yet that there was room.
async fn without_room(
    context: &Context,
    namespace: &str,
    name: &str,
    wishes: Wishes<'_>,
    attempts: &[AttemptView],
    pods: &[(u32, Arc<Pod>)],
) -> Result<Option<Verdict>, Error> {
    let number = attempts.last().map_or(0, |latest| latest.number);
    let waiting = || pods.iter().filter(|(of, pod)| *of == number && lives(pod, TRAINER));
    let since = waiting().filter_map(|(_, pod)| refused_since(pod)).min();
    let Some(verdict) = since.and_then(|since| fallback::verdict(wishes, attempts, since, context.now())) else {
        return Ok(None);
    };
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let of_attempt = ListParams::default().labels(&format!("{LABEL_TRAINING_JOB}={name},{LABEL_ATTEMPT}={number}"));
    let live = within("list Pods", api.list(&of_attempt)).await?;
    // By owner, as anybody's pods may carry our labels.
    let job = waiting().find_map(|(_, pod)| controller_uid(&pod.metadata));
    let ours = || live.iter().filter(|pod| controller_uid(&pod.metadata) == job);
    let waits = |pod: &Pod| lives(pod, TRAINER) && node_of(pod).is_none();
    let still = ours().any(waits) && !ours().any(|pod| runs(pod, TRAINER));
    Ok(still.then_some(verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_the_same_with_every_try() {
        let quota = r#"Error creating: pods "intent-train-1-0-k7lpw" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1"#;
        assert_eq!(
            without_pod_name(quota),
            "exceeded quota: gpus, requested: requests.nvidia.com/gpu=1"
        );
        assert_eq!(without_pod_name("Error creating: other"), "Error creating: other");
    }
}
