//! The incidents of a TrainingJob, from what was observed and decided.

use flywheel_api::TrainingJob;
use flywheel_api::conditions::{Desired, Status, reasons};
use flywheel_api::names::training_attempt;
use flywheel_api::recovery::{Incident, IncidentCause, RecoveryStatus};
use flywheel_policy::recovery::incident::{Failure, News, judge};
use flywheel_policy::recovery::quarantine::avoided;
use flywheel_policy::recovery::training::{Look, failure, next};
use flywheel_policy::training::attempt::{AttemptState, EndedAttempt};
use flywheel_policy::training::image::nodes_without;
use flywheel_policy::training::{AttemptView, Decision, Intent, Phase};
use kube::ResourceExt as _;

use super::observe::Observation;
use crate::context::Context;

/// What is said of a failure that was to be recovered from when the job failed for good.
const NOT_RECOVERED: &str = "the job failed for good before it was recovered from; Failed says why";

/// What failed, and what became of it.
pub struct Incidents {
    /// For the status.
    pub all: Vec<Incident>,
    /// What is new of them.
    pub news: Vec<News>,
    /// What the condition says.
    pub condition: Desired,
}

impl Incidents {
    /// After this decision.
    pub fn of(job: &TrainingJob, context: &Context, observation: &Observation, decision: &Decision) -> Self {
        let (name, now) = (job.name_any(), context.now());
        let told = job.status.as_ref().and_then(|status| status.recovery.as_ref());
        let told = told.map(|told| told.incidents.as_slice()).unwrap_or_default();
        let observed = &observation.observed;
        let no_room = observed
            .placement
            .as_ref()
            .is_some_and(|problem| problem.reason != reasons::PENDING);
        let goes_on = told.iter().any(|incident| !incident.is_over());
        let uid = job.uid().unwrap_or_default();
        let latest = observed.attempts.last();
        let look = Look {
            object: training_attempt(&name, observed.highest_attempt()),
            failure: failed(job, context, observation, decision),
            starts: matches!(decision.intent, Intent::StartAttempt { .. }),
            running: latest.is_some_and(|attempt| attempt.state == AttemptState::Running),
            trains: decision.phase == Phase::Complete
                || observation
                    .progress
                    .as_ref()
                    .is_some_and(|progress| progress.step > progress.resumed_from_step.unwrap_or(0)),
            wanted: decision.phase != Phase::Suspended,
            no_room_seconds: context.progress.without_room(&uid, goes_on, no_room, now),
        };
        let (all, news) = next(told, &look, now);
        let wishes = &job.spec.recovery;
        let mut condition = judge(&all, wishes.deadline_seconds, wishes.mode, now);
        if decision.phase == Phase::Failed && condition.status == Status::Unknown && !all.is_empty() {
            condition.status = Status::False;
            NOT_RECOVERED.clone_into(&mut condition.message);
        }
        Self { condition, all, news }
    }

    /// Nodes that a new attempt is to keep away from.
    pub fn avoided(&self, job: &TrainingJob, attempts: &[AttemptView], context: &Context) -> Vec<String> {
        fn failed(told: Option<&RecoveryStatus>) -> bool {
            told.is_some_and(|told| !told.incidents.is_empty())
        }
        let mine = job.uid();
        // Of thousands of objects few have failed.
        let jobs = context
            .caches
            .training_jobs
            .all(|other| failed(other.status.as_ref().and_then(|s| s.recovery.as_ref())) && other.uid() != mine);
        let services = context
            .caches
            .inference_services
            .all(|service| failed(service.status.as_ref().and_then(|s| s.recovery.as_ref())));
        let told = jobs.iter().filter_map(|other| other.status.as_ref()?.recovery.as_ref());
        let told = told.chain(
            services
                .iter()
                .filter_map(|service| service.status.as_ref()?.recovery.as_ref()),
        );
        avoided(
            nodes_without(attempts),
            &self.all,
            told.flat_map(|told| &told.incidents),
            context.now(),
        )
    }
}

/// What failed, where another attempt is to follow the latest one, or would if the operator were to end it.
fn failed(job: &TrainingJob, context: &Context, observation: &Observation, decision: &Decision) -> Option<Failure> {
    let (name, now) = (job.name_any(), context.now());
    let observed = &observation.observed;
    let of = |number: u32, ended: &EndedAttempt| {
        let index = ended.told_by.map_or(0, |told| told.index);
        failure(
            &training_attempt(&name, number),
            observation.node_of(number, index).as_deref(),
            ended,
            context.progress.silent_since(&job.uid().unwrap_or_default(), number),
            now,
        )
    };
    if let Some(latest) = observed.attempts.last().filter(|a| a.number >= observed.told_attempt) {
        if let Some(verdict) = &observed.verdict {
            let failure = of(latest.number, &verdict.ended());
            return failure.map(|failure| Failure {
                node: verdict.node.clone().or(failure.node),
                ..failure
            });
        }
        return match &latest.state {
            AttemptState::Ended(ended) | AttemptState::Ending(ended) if decision.phase == Phase::Restarting => {
                of(latest.number, ended)
            }
            _ => None,
        };
    }
    let gone = observed.told_attempt > 0 && decision.phase == Phase::Restarting;
    gone.then(|| Failure {
        cause: IncidentCause::PodLost,
        object: training_attempt(&name, observed.told_attempt),
        node: None,
        how: "its Job was deleted".to_owned(),
        began: now,
    })
}
