//! Status and events of a TrainingJob, from what was decided and applied.

use std::time::Duration;

use flywheel_api::TrainingJob;
use flywheel_api::conditions::{Desired, Status, find, reasons, types};
use flywheel_api::training_job::{ProgressStatus, ResultStatus, SinkStatus, TrainingJobStatus};
use flywheel_contract::progress::Progress;
use flywheel_contract::termination::{Outcome, Position};
use flywheel_policy::recovery::incident::News;
use flywheel_policy::training::attempt::{AttemptState, End};
use flywheel_policy::training::{AttemptView, Decision, Intent, Phase};
use jiff::Timestamp;
use kube::{Resource as _, ResourceExt as _};

use super::observe::Observation;
use super::recovery::Incidents;
use super::{build, version_name};
use crate::context::Context;
use crate::error::Error;
use crate::kubeio::{Note, TRAINING_MANAGER};
use crate::report::{self, Standing, conditions, summary};

/// Reasons that nobody needs to look at.
const GOOD_NEWS: [&str; 5] = [
    reasons::STARTING,
    reasons::RUNNING,
    reasons::SUSPENDED,
    reasons::TRAINED,
    reasons::RESULT_REUSED,
];

/// How long after it was told that an attempt waits for its pods' nodes it is told that they are being started: most run sooner,
/// and each step is a write and an event for each of thousands of jobs.
const STARTING_TOLD_AFTER: Duration = Duration::from_secs(5);

/// Writes the status where it changed, and an event where the job stands otherwise than before. Gives the time after which
/// there is something to tell, where that is kept for now. `version`: the ModelVersion that was just found to hold the result.
pub async fn report(
    job: &TrainingJob,
    context: &Context,
    observation: &Observation,
    decision: &Decision,
    incidents: &Incidents,
    version: Option<&str>,
) -> Result<Option<Duration>, Error> {
    let present = job.status.clone().unwrap_or_default();
    if let Some(later) = kept_for_now(&present, decision, context.now()) {
        return Ok(Some(later));
    }
    let uid = job.uid().unwrap_or_default();
    let told = |figures| {
        let mut status = status(job, context, observation, decision, incidents, &present, figures);
        if let (Some(version), Some(result)) = (version, &mut status.result) {
            version.clone_into(&mut result.model_version);
        }
        status
    };
    let (mut status, fresh) = (told(Figures::Kept), told(Figures::Fresh));
    let phase = |s: &TrainingJobStatus| s.progress.as_ref().and_then(|p| p.phase.clone());
    if fresh != status {
        let moved = status != present || phase(&fresh) != phase(&status);
        if context.progress.due(&uid, moved, context.now()) {
            status = fresh;
        }
    }
    if matches!(decision.phase, Phase::Complete | Phase::Failed) {
        context.progress.forget(&uid);
    }
    let writes = context.writes(TRAINING_MANAGER);
    if !writes.status(job, &status).await? {
        return Ok(None);
    }
    for news in &incidents.news {
        context.metrics.recovery(&TrainingJob::kind(&()), news);
        // That it began is told with the restart.
        if matches!(news, News::Over(_)) {
            writes.event(job, &report::incident_note(news)).await;
        }
    }
    for note in notes(&present, &status, decision) {
        tracing::info!(
            state = status.state,
            reason = note.reason,
            message = note.text,
            "the job moved on"
        );
        writes.event(job, &note).await;
    }
    Ok(None)
}

/// How long it is kept that a job which waited for its pods' nodes is starting now.
fn kept_for_now(present: &TrainingJobStatus, decision: &Decision, now: Timestamp) -> Option<Duration> {
    let waits = present.state.as_deref() == Some(state_word(Phase::Pending));
    if !waits || decision.phase != Phase::Starting || decision.reason != reasons::STARTING {
        return None;
    }
    let since = find(&present.conditions, types::READY)?.last_transition_time.0;
    // A clock that went back keeps nothing.
    let waited = Duration::try_from(now.duration_since(since)).ok()?;
    STARTING_TOLD_AFTER.checked_sub(waited).filter(|left| !left.is_zero())
}

/// What is worth an event between two statuses.
fn notes(present: &TrainingJobStatus, status: &TrainingJobStatus, decision: &Decision) -> Vec<Note> {
    let mut notes = Vec::new();
    let of = |s: &TrainingJobStatus, kind| find(&s.conditions, kind).map(|c| (c.status.clone(), c.reason.clone()));
    // Every job begins with `Pending`; an event of it would be one write more per job.
    if of(present, types::READY) != of(status, types::READY) && decision.reason != reasons::PENDING {
        notes.push(Note {
            warning: !GOOD_NEWS.contains(&decision.reason.as_str()),
            reason: decision.reason.clone(),
            action: action(decision.phase),
            text: decision.message.clone(),
        });
    }
    let resumed = |s: &TrainingJobStatus| s.progress.as_ref().and_then(|p| p.resumed_from_step);
    if let Some(step) = resumed(status).filter(|step| *step > 0 && resumed(present) != Some(*step)) {
        notes.push(Note {
            warning: false,
            reason: reasons::RESUMED.to_owned(),
            action: "Train",
            text: format!(
                "attempt {} goes on from the checkpoint of step {step}",
                status.attempt.unwrap_or(1)
            ),
        });
    }
    if of(present, types::CHECKPOINT_HEALTHY) != of(status, types::CHECKPOINT_HEALTHY)
        && let Some(health) = find(&status.conditions, types::CHECKPOINT_HEALTHY).filter(|c| c.status == "False")
    {
        notes.push(Note {
            warning: true,
            reason: health.reason.clone(),
            action: "Checkpoint",
            text: health.message.clone(),
        });
    }
    let problem = |sink: Option<&SinkStatus>| sink.and_then(|s| s.problem.clone());
    let tracking = |s: &TrainingJobStatus| {
        let told = s.tracking.as_ref();
        [
            problem(told.and_then(|t| t.tensor_board.as_ref())),
            problem(told.and_then(|t| t.mlflow.as_ref())),
        ]
    };
    for (before, now) in tracking(present).into_iter().zip(tracking(status)) {
        // Other words for the same trouble are no news.
        if let (None, Some(text)) = (before, now) {
            notes.push(Note {
                warning: true,
                reason: reasons::TRACKING_FAILED.to_owned(),
                action: "Track",
                text,
            });
        }
    }
    notes
}

fn action(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending | Phase::Starting => "Start",
        Phase::Blocked | Phase::Stalled => "Wait",
        Phase::Running => "Train",
        Phase::Restarting => "Restart",
        Phase::Suspended => "Suspend",
        Phase::Complete => "Complete",
        Phase::Failed => "Fail",
    }
}

/// A phase as `status.state` tells it.
pub(super) fn state_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "Pending",
        Phase::Blocked => "Blocked",
        Phase::Stalled => "Stalled",
        Phase::Starting => "Starting",
        Phase::Running => "Running",
        Phase::Restarting => "Restarting",
        Phase::Suspended => "Suspended",
        Phase::Complete => "Complete",
        Phase::Failed => "Failed",
    }
}

/// Which figures a status tells: they change all the time, and a write of each would be many.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Figures {
    /// Those that were written last.
    Kept,
    /// Those that were just read.
    Fresh,
}

/// The status.
fn status(
    job: &TrainingJob,
    context: &Context,
    observation: &Observation,
    decision: &Decision,
    incidents: &Incidents,
    present: &TrainingJobStatus,
    figures: Figures,
) -> TrainingJobStatus {
    let attempt = match decision.intent {
        Intent::StartAttempt { attempt, .. } => attempt,
        _ => observation.observed.highest_attempt(),
    };
    // Also where the version is made already: whoever made it may have been killed before this was written.
    let trained = observation.observed.result().map(|(_, trained)| trained);
    let result = match (trained, decision.phase) {
        (Some(trained), Phase::Complete) => Some(ResultStatus {
            // A version with the same artifact may have been there, under another name.
            model_version: present
                .result
                .as_ref()
                .map_or_else(|| version_name(job), |told| told.model_version.clone()),
            metrics: trained.metrics.clone(),
        }),
        (_, Phase::Complete) => present.result.clone().or_else(|| {
            observation.version.as_ref().map(|v| ResultStatus {
                model_version: v.name_any(),
                metrics: v.spec.metrics.clone().unwrap_or_default(),
            })
        }),
        _ => None,
    };
    let device = context
        .settings
        .class(&job.spec.trainer.accelerator.class)
        .map(|class| class.device)
        .ok();
    let interval = job.spec.checkpoint.interval_seconds;
    let known = known_health(present);
    let health = match decision.phase {
        // It was told when the job ended; pods that tell of it go later.
        Phase::Complete | Phase::Failed if present.state.as_deref() != Some(state_word(decision.phase)) => {
            let newest = last_position(observation).map(|p| p.checkpoint_step);
            let told = present.progress.as_ref().and_then(|p| p.checkpoint_step);
            health_at_end(interval, newest, told.and_then(|step| u64::try_from(step).ok()), known)
        }
        _ => checkpoint_health(interval, observation.progress.as_ref(), known, figures),
    };
    let (evaluations, tracking) = match figures {
        Figures::Kept => (Vec::new(), None),
        Figures::Fresh => observation.figures(),
    };
    let mut desired = desired(decision, attempt > 0, health);
    desired.push(incidents.condition.clone());
    TrainingJobStatus {
        observed_generation: job.metadata.generation,
        state: Some(state_word(decision.phase).to_owned()),
        conditions: conditions(&present.conditions, &desired, job.metadata.generation, context.now()),
        nodes: Some(nodes(job, observation, decision, present, figures)),
        attempt: (attempt > 0).then_some(i64::from(attempt)),
        restarts: (attempt > 0).then(|| i64::from(attempt.saturating_sub(1))),
        counted_restarts: decision
            .counted
            .filter(|_| attempt > 0)
            .map(i64::from)
            .or(present.counted_restarts),
        progress: match (trained, decision.phase, &observation.progress) {
            // The last that was read may be a minute old. Its checkpoints went when the result was committed.
            (Some(trained), Phase::Complete, _) => Some(ProgressStatus {
                step: Some(format!("{0}/{0}", trained.steps)),
                phase: Some(format!("{:?}", flywheel_contract::progress::Phase::Done)),
                eta_seconds: None,
                checkpoint_step: None,
                ..present.progress.clone().unwrap_or_default()
            }),
            // Of an attempt that is over stays what the next one begins with.
            (_, Phase::Pending | Phase::Restarting, _) => {
                checkpoint_step(observation, present).map(|step| ProgressStatus {
                    checkpoint_step: Some(step),
                    ..ProgressStatus::default()
                })
            }
            // No pod does anything. Before the first step nothing else was told, and what has no fields must not be written:
            // server-side apply makes it null, which the schema refuses.
            (_, Phase::Suspended, _) => present
                .progress
                .clone()
                .map(|progress| ProgressStatus {
                    phase: None,
                    eta_seconds: None,
                    ..progress
                })
                .filter(|progress| *progress != ProgressStatus::default()),
            (_, _, Some(progress)) if figures == Figures::Fresh => Some(progress_status(progress)),
            _ => present.progress.clone(),
        },
        // A new attempt knows the evaluations of those before it once it has read its checkpoint.
        evaluations: if evaluations.is_empty() {
            present.evaluations.clone()
        } else {
            evaluations
        },
        tracking: tracking.or_else(|| present.tracking.clone()),
        dataset: observation.dataset().or_else(|| present.dataset.clone()),
        result,
        device,
        precision: observation
            .progress
            .as_ref()
            .and_then(|p| p.precision)
            .or(present.precision),
        recovery: report::recovery(&incidents.all),
    }
}

/// Pods ready / wanted. A job that is over or suspended wants none. How many of several run is a figure while they start.
fn nodes(
    job: &TrainingJob,
    observation: &Observation,
    decision: &Decision,
    present: &TrainingJobStatus,
    figures: Figures,
) -> String {
    let wanted = build::job::nodes(job);
    let goes_on = !matches!(decision.intent, Intent::StartAttempt { .. } | Intent::GiveUp { .. });
    let latest = observation.observed.attempts.last().filter(|_| goes_on);
    let started = latest.map_or(0, |attempt| match attempt.state {
        AttemptState::Ended(_) | AttemptState::Ending(_) => 0,
        _ => attempt.running.min(wanted),
    });
    match decision.phase {
        Phase::Running => format!("{wanted}/{wanted}"),
        Phase::Suspended | Phase::Complete | Phase::Failed => "0/0".to_owned(),
        phase @ (Phase::Pending | Phase::Blocked | Phase::Stalled | Phase::Starting | Phase::Restarting) => present
            .nodes
            .clone()
            .filter(|_| figures == Figures::Kept && present.state.as_deref() == Some(state_word(phase)))
            .unwrap_or_else(|| format!("{started}/{wanted}")),
    }
}

/// Step of the newest checkpoint, as the last attempt that ended told it, or as it was written before.
fn checkpoint_step(observation: &Observation, present: &TrainingJobStatus) -> Option<i64> {
    let told = observation.observed.attempts.last().and_then(|a| match &a.state {
        AttemptState::Ended(end) | AttemptState::Ending(end) => end.position,
        _ => None,
    });
    told.and_then(|p| i64::try_from(p.checkpoint_step).ok())
        .filter(|step| *step > 0)
        .or_else(|| present.progress.as_ref().and_then(|p| p.checkpoint_step))
}

/// How far the attempt was that ended the job: the one with the result, or else the last.
fn last_position(observation: &Observation) -> Option<Position> {
    let observed = &observation.observed;
    let ended = |attempt: &AttemptView| match &attempt.state {
        AttemptState::Ended(end) | AttemptState::Ending(end) => Some(end.clone()),
        _ => None,
    };
    let ends = || observed.attempts.iter().rev().filter_map(ended);
    let result = ends().find(|e| matches!(e.end, End::Told(Outcome::Trained(_))));
    let given_up = || observed.verdict.as_ref().and_then(|v| v.position);
    match result {
        Some(result) => result.position,
        None => given_up().or_else(|| observed.attempts.last().and_then(ended)?.position),
    }
}

fn health(status: Status, reason: &str, message: impl Into<String>) -> Desired {
    Desired::new(types::CHECKPOINT_HEALTHY, status, reason, message)
}

/// What the status says of the checkpoints.
fn known_health(present: &TrainingJobStatus) -> Option<Desired> {
    let condition = find(&present.conditions, types::CHECKPOINT_HEALTHY)?;
    let status = [Status::True, Status::False, Status::Unknown]
        .into_iter()
        .find(|s| s.as_str() == condition.status)?;
    Some(health(status, &condition.reason, condition.message.clone()))
}

/// What is to be said for good of the checkpoints of a job that ended. `newest` is the step of the newest checkpoint by the
/// pod's last words, 0 where there is none; `told` the one that the status tells.
fn health_at_end(interval_seconds: i32, newest: Option<u64>, told: Option<u64>, known: Option<Desired>) -> Desired {
    let of_step = |step: u64| {
        let message = format!("the last checkpoint that was told of is of step {step}");
        health(Status::True, reasons::AS_EXPECTED, message)
    };
    match (newest, known) {
        // Nothing was written since it went wrong.
        (newest, Some(known)) if known.status == Status::False && newest <= Some(told.unwrap_or(0)) => known,
        // It was found broken, or the pod that knew left no words.
        (Some(newest), _) if newest < told.unwrap_or(0) => health(
            Status::Unknown,
            reasons::UNKNOWN,
            "the last words of the job do not tell of the newest checkpoint that was there",
        ),
        (Some(0), _) => health(
            Status::Unknown,
            reasons::NO_CHECKPOINT,
            format!("the job ended before a checkpoint was written; one is due every {interval_seconds} s"),
        ),
        (Some(step), _) => of_step(step),
        (None, Some(known)) if known.status == Status::True => told.map_or(known, of_step),
        (None, _) => health(
            Status::Unknown,
            reasons::UNKNOWN,
            "no checkpoint was told of before the job ended",
        ),
    }
}

/// Whether the state is saved as the spec says: what the pod just said, or what was known before. Messages that change with
/// each look are figures, too.
fn checkpoint_health(
    interval_seconds: i32,
    progress: Option<&Progress>,
    known: Option<Desired>,
    figures: Figures,
) -> Desired {
    let checkpoint = progress.map(|p| &p.checkpoint);
    let problem = || {
        let words = checkpoint.and_then(|c| c.problem.as_deref()).unwrap_or("no details");
        words.trim_end_matches('.')
    };
    let seen = checkpoint.and_then(|c| {
        if c.failures > 0 {
            Some(health(
                Status::False,
                reasons::CHECKPOINT_FAILED,
                format!(
                    "a checkpoint could not be written: {}. The training goes on and tries again; until it succeeds, a \
                     restart loses what was done since the last one. See that the storage of spec.checkpoint.uri (or \
                     spec.output.uri) is there, has space, and takes the credentials of spec.storage",
                    problem()
                ),
            ))
        } else if c.head_damaged && c.age_seconds.is_none() {
            let broken = match c.invalid {
                0 => String::new(),
                n => format!("; {n} of them could not be used"),
            };
            Some(health(
                Status::False,
                reasons::CHECKPOINT_INVALID,
                format!(
                    "HEAD, the list of the checkpoints, was damaged or missing when the attempt began, and it went on from the newest one \
                     that was found whole{broken}: {}. Nothing needs to be done for this job; see what changes or deletes \
                     files under spec.checkpoint.uri (or spec.output.uri)",
                    problem()
                ),
            ))
        } else if c.invalid > 0 && c.age_seconds.is_none() {
            Some(health(
                Status::False,
                reasons::CHECKPOINT_INVALID,
                format!(
                    "{} checkpoint(s) could not be used when the attempt began, and it went on from what was before them: {}. \
                     Nothing needs to be done for this job; see what changes or deletes files under spec.checkpoint.uri (or \
                     spec.output.uri)",
                    c.invalid,
                    problem()
                ),
            ))
        } else {
            c.step.map(|_| {
                health(
                    Status::True,
                    reasons::AS_EXPECTED,
                    format!("the state is saved every {interval_seconds} s"),
                )
            })
        }
    });
    match (seen, known) {
        (Some(seen), Some(known))
            if figures == Figures::Kept && (seen.status, &seen.reason) == (known.status, &known.reason) =>
        {
            known
        }
        (Some(seen), _) => seen,
        (None, Some(known)) => known,
        (None, None) => health(Status::Unknown, reasons::UNKNOWN, "no checkpoint has been seen yet"),
    }
}

/// All conditions, as they should be. `begun` says whether there is or was an attempt.
fn desired(decision: &Decision, begun: bool, checkpoint_health: Desired) -> Vec<Desired> {
    let (phase, reason, message) = (decision.phase, decision.reason.as_str(), decision.message.as_str());
    let plain = |kind, status, reason: &str, message: &str| Desired::new(kind, status, reason, message);
    let no_place = [
        reasons::NO_MATCHING_GPU,
        reasons::INSUFFICIENT_GPU,
        reasons::UNSCHEDULABLE,
        reasons::POD_CREATION_FAILED,
        reasons::NAME_TAKEN,
        reasons::CHILD_REFUSED,
        reasons::UNKNOWN_ACCELERATOR_CLASS,
        reasons::INVALID_SPEC,
    ]
    .contains(&reason);
    let placed = matches!(
        phase,
        Phase::Starting | Phase::Running | Phase::Complete | Phase::Failed | Phase::Blocked | Phase::Stalled
    ) || reason == reasons::STARTING;
    let admitted = if no_place || (phase == Phase::Stalled && !begun) {
        plain(types::ADMITTED, Status::False, reason, message)
    } else if phase == Phase::Suspended {
        plain(types::ADMITTED, Status::False, reasons::SUSPENDED, message)
    } else if placed {
        plain(
            types::ADMITTED,
            Status::True,
            reasons::AS_EXPECTED,
            "every pod has a place to run",
        )
    } else {
        plain(
            types::ADMITTED,
            Status::Unknown,
            reasons::PENDING,
            "a pod has no node yet",
        )
    };
    let if_phase = |kind, wanted: Phase, otherwise: &str, words: &str| {
        if phase == wanted {
            plain(kind, Status::True, reason, message)
        } else {
            plain(kind, Status::False, otherwise, words)
        }
    };
    let over = match phase {
        Phase::Failed => plain(types::COMPLETE, Status::False, reason, message),
        _ => if_phase(
            types::COMPLETE,
            Phase::Complete,
            reasons::IN_PROGRESS,
            "there is no result yet",
        ),
    };
    let mut all = vec![
        admitted,
        if_phase(types::RUNNING, Phase::Running, reason, message),
        if_phase(
            types::RESTARTING,
            Phase::Restarting,
            reasons::AS_EXPECTED,
            "no restart is going on",
        ),
        checkpoint_health,
        over,
        if_phase(
            types::FAILED,
            Phase::Failed,
            reasons::AS_EXPECTED,
            "nothing has failed for good",
        ),
        if_phase(
            types::SUSPENDED,
            Phase::Suspended,
            reasons::AS_EXPECTED,
            "spec.suspend is false",
        ),
    ];
    let standing = match phase {
        Phase::Running | Phase::Suspended | Phase::Complete => Standing::Ready,
        Phase::Pending | Phase::Blocked | Phase::Starting | Phase::Restarting => Standing::Working,
        Phase::Stalled | Phase::Failed => Standing::Stalled,
    };
    all.extend(summary(standing, reason, message));
    all
}

fn progress_status(progress: &Progress) -> ProgressStatus {
    ProgressStatus {
        step: (progress.total_steps > 0).then(|| format!("{}/{}", progress.step, progress.total_steps)),
        loss: progress.loss.filter(|l| l.is_finite()).map(|l| format!("{l:.2}")),
        phase: Some(format!("{:?}", progress.phase)),
        eta_seconds: progress.eta_seconds.and_then(|s| i64::try_from(s).ok()),
        checkpoint_step: progress.checkpoint.step.and_then(|s| i64::try_from(s).ok()),
        resumed_from_step: progress.resumed_from_step.and_then(|s| i64::try_from(s).ok()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn decision(phase: Phase, reason: &str) -> Decision {
        Decision {
            record: None,
            intent: Intent::Wait,
            counted: None,
            stop: vec![],
            remove: vec![],
            phase,
            reason: reason.to_owned(),
            message: "m".to_owned(),
            again: Duration::from_secs(1),
        }
    }

    #[test]
    fn each_phase_has_its_conditions() {
        // Admitted Running Restarting CheckpointHealthy Complete Failed Suspended Ready, and what stands beside Ready.
        let table = [
            (Phase::Pending, "Pending", "UFFUFFFF", "Reconciling"),
            (Phase::Pending, "NoMatchingGPU", "FFFUFFFF", "Reconciling"),
            (Phase::Blocked, "ImagePullFailed", "TFFUFFFF", "Reconciling"),
            (Phase::Blocked, "PodConfigInvalid", "TFFUFFFF", "Reconciling"),
            (Phase::Blocked, "PodCreationFailed", "FFFUFFFF", "Reconciling"),
            (Phase::Stalled, "NameTaken", "FFFUFFFF", "Stalled"),
            (Phase::Stalled, "VersionConflict", "TFFUFFFF", "Stalled"),
            (Phase::Starting, "Starting", "TFFUFFFF", "Reconciling"),
            (Phase::Running, "Running", "TTFUFFFT", ""),
            (Phase::Restarting, "PodLost", "UFTUFFFF", "Reconciling"),
            (Phase::Restarting, "Starting", "TFTUFFFF", "Reconciling"),
            (Phase::Restarting, "InsufficientGPU", "FFTUFFFF", "Reconciling"),
            (Phase::Suspended, "Suspended", "FFFUFFTT", ""),
            (Phase::Complete, "Trained", "TFFUTFFT", ""),
            (Phase::Failed, "DatasetEmpty", "TFFUFTFF", "Stalled"),
        ];
        for (phase, reason, letters, beside) in table {
            let health = checkpoint_health(60, None, None, Figures::Fresh);
            let conditions = desired(&decision(phase, reason), true, health);
            let text: String = conditions.iter().take(8).map(|c| &c.status.as_str()[..1]).collect();
            assert_eq!(text, letters, "{phase:?} {reason}");
            assert_eq!(conditions.get(8).map_or("", |c| c.kind), beside, "{phase:?} {reason}");
        }
    }

    fn progress(checkpoint: serde_json::Value) -> Progress {
        serde_json::from_value(json!({
            "schemaVersion": 1, "attempt": 1, "phase": "Training", "phaseSeconds": 9.0, "step": 7, "totalSteps": 100,
            "epoch": 1, "totalEpochs": 2, "checkpoint": checkpoint
        }))
        .unwrap()
    }

    #[test]
    fn checkpoints_are_healthy_once_one_is_seen_and_until_one_fails_or_is_broken() {
        let table = [
            (None, "Unknown", "Unknown", "no checkpoint has been seen"),
            (Some(json!({})), "Unknown", "Unknown", "no checkpoint has been seen"),
            (Some(json!({"step": 5})), "True", "AsExpected", "every 60 s"),
            (
                Some(json!({"step": 5, "ageSeconds": 70.0})),
                "True",
                "AsExpected",
                "every 60 s",
            ),
            (
                Some(json!({"step": 5, "failures": 2, "problem": "no space left."})),
                "False",
                "CheckpointFailed",
                "no space left. The training goes on",
            ),
            (
                Some(json!({"step": 5, "invalid": 1, "problem": "digest of 9"})),
                "False",
                "CheckpointInvalid",
                "digest of 9. Nothing needs to be done",
            ),
            (
                Some(json!({"step": 5, "headDamaged": true, "invalid": 0, "problem": "HEAD: it cannot be read"})),
                "False",
                "CheckpointInvalid",
                "found whole: HEAD: it cannot be read. Nothing needs to be done",
            ),
            (
                Some(json!({"step": 5, "headDamaged": true, "invalid": 1, "problem": "digest of 9"})),
                "False",
                "CheckpointInvalid",
                "1 of them could not be used: digest of 9",
            ),
            (
                Some(json!({"step": 9, "headDamaged": true, "ageSeconds": 1.0})),
                "True",
                "AsExpected",
                "every 60 s",
            ),
            // The attempt has saved its state since.
            (
                Some(json!({"step": 9, "invalid": 1, "ageSeconds": 1.0})),
                "True",
                "AsExpected",
                "every 60 s",
            ),
        ];
        for (checkpoint, status, reason, words) in table {
            let seen = checkpoint.clone().map(progress);
            let health = checkpoint_health(60, seen.as_ref(), None, Figures::Kept);
            assert_eq!(
                (health.status.as_str(), health.reason.as_str()),
                (status, reason),
                "{checkpoint:?}"
            );
            assert!(health.message.contains(words), "{}", health.message);
        }
    }

    #[test]
    fn a_job_that_ended_says_of_its_checkpoints_what_was_told_and_no_more() {
        let well = || {
            Some(health(
                Status::True,
                reasons::AS_EXPECTED,
                "the state is saved every 60 s",
            ))
        };
        let unknown = || Some(health(Status::Unknown, reasons::UNKNOWN, "none yet"));
        let failed = || Some(health(Status::False, reasons::CHECKPOINT_FAILED, "no space"));
        let (last, none, silent) = ("is of step ", "before a checkpoint was written", "was told of before");
        // By the last words, in the status, known before; then status, reason, words.
        let table = [
            (Some(90), Some(80), well(), "True", "AsExpected", format!("{last}90")),
            (Some(90), None, unknown(), "True", "AsExpected", format!("{last}90")),
            (Some(90), None, None, "True", "AsExpected", format!("{last}90")),
            (None, Some(80), well(), "True", "AsExpected", format!("{last}80")),
            (None, None, well(), "True", "AsExpected", "every 60 s".to_owned()),
            (Some(0), None, unknown(), "Unknown", "NoCheckpoint", none.to_owned()),
            (
                Some(0),
                Some(80),
                well(),
                "Unknown",
                "Unknown",
                "do not tell".to_owned(),
            ),
            (None, None, unknown(), "Unknown", "Unknown", silent.to_owned()),
            (None, None, None, "Unknown", "Unknown", silent.to_owned()),
            (
                Some(80),
                Some(80),
                failed(),
                "False",
                "CheckpointFailed",
                "no space".to_owned(),
            ),
            (
                Some(0),
                None,
                failed(),
                "False",
                "CheckpointFailed",
                "no space".to_owned(),
            ),
            (
                None,
                Some(80),
                failed(),
                "False",
                "CheckpointFailed",
                "no space".to_owned(),
            ),
            (Some(90), Some(80), failed(), "True", "AsExpected", format!("{last}90")),
        ];
        for (newest, told, known, status, reason, words) in table {
            let case = format!("{newest:?} {told:?} {known:?}");
            let health = health_at_end(60, newest, told, known);
            assert_eq!(
                (health.status.as_str(), health.reason.as_str()),
                (status, reason),
                "{case}"
            );
            assert!(health.message.contains(&words), "{case}: {}", health.message);
        }
    }

    #[test]
    fn what_was_known_of_checkpoints_stays_and_changing_words_wait_for_the_next_write() {
        let failed = |problem: &str| progress(json!({"failures": 1, "problem": problem}));
        let first = checkpoint_health(60, Some(&failed("a")), None, Figures::Kept);
        let known = known_health(&TrainingJobStatus {
            conditions: conditions(
                &[],
                std::slice::from_ref(&first),
                Some(1),
                "2026-01-01T00:00:00Z".parse().unwrap(),
            ),
            ..TrainingJobStatus::default()
        });
        let health = |progress: Option<&Progress>, figures| checkpoint_health(60, progress, known.clone(), figures);
        assert_eq!(health(None, Figures::Fresh), first, "no look");
        assert_eq!(health(Some(&failed("b")), Figures::Kept), first);
        assert!(
            health(Some(&failed("b")), Figures::Fresh)
                .message
                .contains("written: b")
        );
        let well = progress(json!({"step": 8, "ageSeconds": 1.0}));
        assert_eq!(health(Some(&well), Figures::Kept).status, Status::True, "at once");
    }
}
