//! Status and events of a TrainingJob, from what was decided and applied.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flywheel_api::TrainingJob;
use flywheel_api::conditions::{Desired, Status, find, reasons, types};
use flywheel_api::training_job::{ProgressStatus, ResultStatus, TrainingJobStatus};
use flywheel_contract::progress::Progress;
use flywheel_policy::training::{Decision, Intent, Phase};
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::observe::Observation;
use super::version_name;
use crate::context::Context;
use crate::error::Error;
use crate::kubeio::{Note, TRAINING_MANAGER};
use crate::report::{Standing, conditions, summary};

/// Time between two writes that only tell of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(60);

/// Reasons that nobody needs to look at.
const GOOD_NEWS: [&str; 4] = [
    reasons::STARTING,
    reasons::RUNNING,
    reasons::SUSPENDED,
    reasons::TRAINED,
];

/// When progress was last written, per job. Losing it costs one write per job.
#[derive(Debug, Default)]
pub struct ProgressMemo {
    written: Mutex<HashMap<String, Timestamp>>,
}

impl ProgressMemo {
    /// Whether progress may be written now; if so, it counts as written.
    fn due(&self, uid: &str, now: Timestamp) -> bool {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let due = written
            .get(uid)
            .is_none_or(|at| now.duration_since(*at).unsigned_abs() >= PROGRESS_INTERVAL);
        if due {
            written.insert(uid.to_owned(), now);
        }
        due
    }

    /// Forgets a job.
    pub fn forget(&self, uid: &str) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// Writes the status where it changed, and an event where the job stands otherwise than before.
pub async fn report(
    job: &TrainingJob,
    context: &Context,
    observation: &Observation,
    decision: &Decision,
) -> Result<(), Error> {
    let present = job.status.clone().unwrap_or_default();
    let uid = job.uid().unwrap_or_default();
    let mut status = status(job, context, observation, decision, &present);
    let progress = observation.progress.as_ref().map(progress_status);
    if progress != status.progress && progress.is_some() {
        let same_phase = progress.as_ref().map(|p| &p.phase) == status.progress.as_ref().map(|p| &p.phase);
        let changed_otherwise = status != present;
        if !same_phase || changed_otherwise || context.progress.due(&uid, context.now()) {
            status.progress = progress;
        }
    }
    if matches!(decision.phase, Phase::Complete | Phase::Failed) {
        context.progress.forget(&uid);
    }
    let writes = context.writes(TRAINING_MANAGER);
    let written = writes.status(job, &status).await?;
    if written {
        let ready =
            |s: &TrainingJobStatus| find(&s.conditions, types::READY).map(|c| (c.status.clone(), c.reason.clone()));
        if ready(&present) != ready(&status) {
            tracing::info!(
                state = status.state,
                reason = decision.reason,
                message = decision.message,
                "the job moved on"
            );
            if decision.reason == reasons::PENDING {
                // Every job begins so; an event of it would be one write more per job.
                return Ok(());
            }
            let note = Note {
                warning: !GOOD_NEWS.contains(&decision.reason.as_str()),
                reason: decision.reason.clone(),
                action: action(decision.phase),
                text: decision.message.clone(),
            };
            writes.event(job, &note).await;
        }
    }
    Ok(())
}

fn action(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending | Phase::Starting => "Start",
        Phase::Blocked => "Wait",
        Phase::Running => "Train",
        Phase::Restarting => "Restart",
        Phase::Suspended => "Suspend",
        Phase::Complete => "Complete",
        Phase::Failed => "Fail",
    }
}

fn state_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "Pending",
        Phase::Blocked => "Blocked",
        Phase::Starting => "Starting",
        Phase::Running => "Running",
        Phase::Restarting => "Restarting",
        Phase::Suspended => "Suspended",
        Phase::Complete => "Complete",
        Phase::Failed => "Failed",
    }
}

/// The status, with the progress as it stands.
fn status(
    job: &TrainingJob,
    context: &Context,
    observation: &Observation,
    decision: &Decision,
    present: &TrainingJobStatus,
) -> TrainingJobStatus {
    let attempt = match decision.intent {
        Intent::StartAttempt { attempt, .. } => attempt,
        _ => observation.observed.last_attempt,
    };
    let result = match (&decision.intent, decision.phase) {
        (Intent::Complete(trained), _) => Some(ResultStatus {
            model_version: version_name(job),
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
    TrainingJobStatus {
        observed_generation: job.metadata.generation,
        state: Some(state_word(decision.phase).to_owned()),
        conditions: conditions(
            &present.conditions,
            &desired(decision),
            job.metadata.generation,
            context.now(),
        ),
        nodes: Some(format!("{}/1", u8::from(decision.phase == Phase::Running))),
        attempt: (attempt > 0).then_some(i64::from(attempt)),
        restarts: (attempt > 0).then(|| i64::from(attempt.saturating_sub(1))),
        progress: match (&decision.intent, decision.phase) {
            // The last that was read may be a minute old.
            (Intent::Complete(trained), _) => Some(ProgressStatus {
                step: Some(format!("{0}/{0}", trained.steps)),
                phase: Some(format!("{:?}", flywheel_contract::progress::Phase::Done)),
                eta_seconds: None,
                ..present.progress.clone().unwrap_or_default()
            }),
            // Nothing of an attempt that is over stays: the next one begins anew.
            (_, Phase::Pending | Phase::Restarting) => None,
            _ => present.progress.clone(),
        },
        result,
        device,
    }
}

/// All conditions, as they should be.
fn desired(decision: &Decision) -> Vec<Desired> {
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
        Phase::Starting | Phase::Running | Phase::Complete | Phase::Failed | Phase::Blocked
    ) || reason == reasons::STARTING;
    let admitted = if no_place {
        plain(types::ADMITTED, Status::False, reason, message)
    } else if phase == Phase::Suspended {
        plain(types::ADMITTED, Status::False, reasons::SUSPENDED, message)
    } else if placed {
        plain(
            types::ADMITTED,
            Status::True,
            reasons::AS_EXPECTED,
            "the pod has a place to run",
        )
    } else {
        plain(
            types::ADMITTED,
            Status::Unknown,
            reasons::PENDING,
            "the pod has no node yet",
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
        Phase::Pending | Phase::Starting | Phase::Restarting => Standing::Working,
        Phase::Blocked | Phase::Failed => Standing::Stalled,
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(phase: Phase, reason: &str) -> Decision {
        Decision {
            intent: Intent::Wait,
            remove: vec![],
            phase,
            reason: reason.to_owned(),
            message: "m".to_owned(),
            again: Duration::from_secs(1),
        }
    }

    #[test]
    fn each_phase_has_its_conditions() {
        // Admitted Running Restarting Complete Failed Suspended Ready, and what stands beside Ready.
        let table = [
            (Phase::Pending, "Pending", "UFFFFFF", "Reconciling"),
            (Phase::Pending, "NoMatchingGPU", "FFFFFFF", "Reconciling"),
            (Phase::Blocked, "ImagePullFailed", "TFFFFFF", "Stalled"),
            (Phase::Blocked, "PodCreationFailed", "FFFFFFF", "Stalled"),
            (Phase::Blocked, "NameTaken", "FFFFFFF", "Stalled"),
            (Phase::Starting, "Starting", "TFFFFFF", "Reconciling"),
            (Phase::Running, "Running", "TTFFFFT", ""),
            (Phase::Restarting, "PodLost", "UFTFFFF", "Reconciling"),
            (Phase::Restarting, "Starting", "TFTFFFF", "Reconciling"),
            (Phase::Restarting, "InsufficientGPU", "FFTFFFF", "Reconciling"),
            (Phase::Suspended, "Suspended", "FFFFFTT", ""),
            (Phase::Complete, "Trained", "TFFTFFT", ""),
            (Phase::Failed, "DatasetEmpty", "TFFFTFF", "Stalled"),
        ];
        for (phase, reason, letters, beside) in table {
            let conditions = desired(&decision(phase, reason));
            let text: String = conditions.iter().take(7).map(|c| &c.status.as_str()[..1]).collect();
            assert_eq!(text, letters, "{phase:?} {reason}");
            assert_eq!(conditions.get(7).map_or("", |c| c.kind), beside, "{phase:?} {reason}");
        }
    }

    #[test]
    fn progress_is_written_once_a_minute() {
        let memo = ProgressMemo::default();
        let at = |s| Timestamp::from_second(s).unwrap();
        assert!(memo.due("u", at(0)));
        assert!(!memo.due("u", at(59)));
        assert!(memo.due("u", at(60)));
        assert!(!memo.due("u", at(61)));
        memo.forget("u");
        assert!(memo.due("u", at(62)));
    }
}
