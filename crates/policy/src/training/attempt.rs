//! What one indexed Job does, whose pods are each tried once: read from the Job and its pods alone, without waiting for the
//! Job's own verdict, which never comes from a dead node. Training attempts and verifications are both such Jobs.
//!
//! Several pods train one model together, so they are one attempt: what keeps one of them from running keeps all of them
//! waiting, and when one ends otherwise than by having done its part, all of it is over. Its end is then that of the pod
//! that tells most of the cause ([`Telling`]); the others end because of it, within seconds.

use std::time::Duration;

use flywheel_api::conditions::{cut, cut_words, reasons};
use flywheel_api::names::{ANNOTATION_ENDED, ANNOTATION_GIVEN_UP, LABEL_COMPLETION_INDEX};
use flywheel_contract::failure::{FailureClass, FailureReason};
use flywheel_contract::names::EXIT_USAGE;
use flywheel_contract::termination::{Outcome, Position, TerminationMessage};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use serde::{Deserialize, Serialize};

use super::hang::{Cause, Verdict};
use crate::placement::{Problem, condition};
use crate::preparation::unprepared;
use crate::remedy::{PodsOf, of_image};

/// What an attempt does.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptState {
    /// A pod is not there yet.
    NoPod {
        /// Why the API server refuses the pod, where an event tells.
        refused: Option<String>,
    },
    /// A pod has no node yet.
    Unscheduled,
    /// All pods have a node; images and volumes are on their way to some.
    Starting,
    /// A pod cannot start until somebody acts.
    Blocked {
        /// A condition's reason.
        reason: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
    /// All pods run, but for those that have done their part.
    Running,
    /// It is over, and a pod may still save its state or tell more of the cause; how the attempt will have ended if nothing
    /// more is said.
    Ending(EndedAttempt),
    /// It is over.
    Ended(EndedAttempt),
}

impl AttemptState {
    /// Whether a pod of it may run now or later.
    #[must_use]
    pub fn may_run(&self) -> bool {
        match self {
            Self::NoPod { .. }
            | Self::Unscheduled
            | Self::Starting
            | Self::Blocked { .. }
            | Self::Running
            | Self::Ending(_) => true,
            // A lost pod may well run on, on a node that nobody reaches. One that hung or whose GPU broke is deleted, and its
            // Job stays: it says that the attempt is over.
            Self::Ended(ended) => matches!(ended.end, End::Lost { .. }),
        }
    }
}

/// The end of an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndedAttempt {
    /// How.
    pub end: End,
    /// When, where it is known.
    pub at: Option<Timestamp>,
    /// How far it was, where it is known.
    pub position: Option<Position>,
    /// Which of several pods tells of it; none where there is only one.
    pub told_by: Option<ToldBy>,
}

/// One of several pods that tells of an attempt's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToldBy {
    /// Its completion index.
    pub index: u32,
    /// How much of the cause it tells.
    pub telling: Telling,
}

/// How much the end of one of several pods tells of why the attempt is over, from least to most. Among equals the earliest
/// counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Telling {
    /// It was deleted after another pod had ended: the Job controller and the operator do that.
    Stopped,
    /// It missed another pod.
    PeerLost,
    /// It missed another pod before all of them ran.
    NeverMet,
    /// It was told to end, nobody knows by whom.
    Interrupted,
    /// It was deleted, and another pod ended by itself not before that.
    Deleted,
    /// It failed by itself.
    Failed,
    /// It was evicted or preempted, its node is lost, or it was deleted while all others were well.
    Taken,
    /// A later attempt has the checkpoints.
    Fenced,
    /// It failed in a way that trying again does not mend.
    Final,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum End {
    /// Its termination message tells.
    Told(Outcome),
    /// The kernel killed the container for memory.
    OutOfMemory,
    /// It ended by itself without saying why.
    Unclear {
        /// Exit code and the end of its log.
        message: String,
    },
    /// Its pod was taken away: deleted, evicted, preempted, or its node is gone.
    Lost {
        /// By what.
        how: String,
    },
    /// Its pod ran and did no work, so it was given up.
    Hung {
        /// What was seen.
        how: String,
    },
    /// Its pod ran on a GPU that is unhealthy, so it was given up.
    GpuFault {
        /// What was seen.
        how: String,
    },
    /// Its pods had no room in its accelerator class, so it was given up for one of another class.
    NoRoom {
        /// Where, for how long, and what is next.
        how: String,
        /// Turns in a row that ended for want of room or of an image, with this one.
        turn: u32,
    },
    /// A pod of it could not have its image, so it was given up for one with new pods.
    NoImage {
        /// Which pod, and for how long.
        how: String,
        /// The pod's node.
        node: Option<String>,
        /// Since when.
        since: Timestamp,
        /// Turns in a row that ended for want of an image or of room, with this one.
        turn: u32,
    },
}

impl Verdict {
    /// The end that this verdict makes.
    #[must_use]
    pub fn ended(&self) -> EndedAttempt {
        let how = self.how.clone();
        EndedAttempt {
            end: match self.cause {
                Cause::Hung => End::Hung { how },
                Cause::NodeLost => End::Lost { how },
                Cause::GpuFault => End::GpuFault { how },
                Cause::NoRoom { turn } => End::NoRoom { how, turn },
                Cause::NoImage { since, turn } => End::NoImage {
                    how,
                    node: self.node.clone(),
                    since,
                    turn,
                },
            },
            at: Some(self.at),
            position: self.position,
            told_by: None,
        }
    }
}

/// Most bytes of a log's end that go into a message.
const LOG_TAIL_MAX: usize = 400;
/// Most bytes of the kubelet's words that go into a message.
const KUBELET_WORDS_MAX: usize = 300;
/// Longest wait for a pod that was told to end: a trainer has its last checkpoint committed within 25 s, and the kubelet
/// kills it after 30 s. Waiting that long loses less than a checkpoint interval's work.
const ENDING_MAX: Duration = Duration::from_secs(30);
/// How long after the end of its grace a pod may still seem to run before its node counts as lost: the kubelet kills it and
/// says so within a second or two.
const OVERDUE: Duration = Duration::from_secs(10);

/// What is said of a pod whose node is lost.
pub(crate) const NO_ANSWER: &str = "its node does not answer";

/// How many pods a Job has at a time.
#[must_use]
pub fn nodes(job: &Job) -> u32 {
    let completions = job.spec.as_ref().and_then(|s| s.completions);
    completions.and_then(|n| u32::try_from(n).ok()).unwrap_or(1).max(1)
}

/// A pod's place among those of its Job, from 0.
#[must_use]
pub fn index(pod: &Pod) -> u32 {
    let label = pod.metadata.labels.as_ref().and_then(|l| l.get(LABEL_COMPLETION_INDEX));
    label.and_then(|index| index.parse().ok()).unwrap_or(0)
}

/// A pod that ended.
struct PodEnd<'a> {
    pod: &'a Pod,
    index: u32,
    ended: EndedAttempt,
}

/// What is seen of one completion index.
enum Sight<'a> {
    /// Its pod was not told to end and may run.
    Live(&'a Pod),
    /// Its pod ended, and the attempt with it.
    Over(PodEnd<'a>),
    /// Its pod has done its part; that with index 0 tells the rest.
    Assisted,
    /// It has no pod.
    Missing,
}

/// What the Job's pods do. `all_ran` says whether all of them were seen running together; `container` names the container
/// that counts, as a mesh may have added others.
#[must_use]
pub fn state(job: &Job, pods: &[&Pod], all_ran: bool, container: &str, now: Timestamp) -> AttemptState {
    let ends: Vec<(&Pod, EndedAttempt)> = pods
        .iter()
        .filter_map(|pod| Some((*pod, pod_end(pod, container)?)))
        .collect();
    if let Some((_, result)) = ends.iter().find(|(pod, e)| {
        index(pod) == 0
            && matches!(
                e.end,
                End::Told(Outcome::Trained(_) | Outcome::Verified(_) | Outcome::Pruned(_))
            )
    }) {
        return AttemptState::Ended(result.clone());
    }
    if let Some(verdict) = given_up(job) {
        let mut ended = verdict.ended();
        // The pod itself knows best how far it came; it may have saved its state after all.
        let told = ends
            .iter()
            .filter_map(|(_, e)| e.position)
            .max_by_key(|p| p.checkpoint_step);
        ended.position = told.or(ended.position);
        return AttemptState::Ended(ended);
    }
    if let Some(deleted) = &job.metadata.deletion_timestamp {
        let ended = lost("its Job was deleted", Some(deleted.0));
        return if Remains::of(pods, container, now).save {
            AttemptState::Ending(ended)
        } else {
            AttemptState::Ended(ended)
        };
    }
    let suspended = job.spec.as_ref().and_then(|s| s.suspend) == Some(true);
    // Pods from before a suspension say nothing about the time after it: it takes the Job's start time away, and the Job
    // controller sets a new one when it sees the resumption. While there is none, all pods are such.
    let begun = job.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
    let made = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let is_of_this_run = |pod: &Pod| begun.is_some_and(|begun| made(pod).is_none_or(|made| made >= begun));
    let sight = |of: u32| {
        let live = pods
            .iter()
            .filter(|pod| index(pod) == of && pod.metadata.deletion_timestamp.is_none())
            .filter(|pod| !ends.iter().any(|(p, _)| std::ptr::eq(*p, **pod)))
            .max_by_key(|pod| made(pod));
        if let Some(pod) = live {
            return Sight::Live(pod);
        }
        let last = ends
            .iter()
            .filter(|(pod, _)| index(pod) == of && !suspended)
            // The Job controller makes none in the place of one that has not ended, and on a lost node it never does.
            .filter(|(pod, _)| is_of_this_run(pod) || is_out_of_contact(pod))
            .max_by_key(|(pod, end)| (end.at, made(pod)));
        match last {
            Some((_, end)) if of > 0 && end.end == End::Told(Outcome::Assisted) => Sight::Assisted,
            Some((pod, ended)) => Sight::Over(PodEnd {
                pod,
                index: of,
                ended: if is_cut_off(pod, container, now) {
                    EndedAttempt {
                        end: End::Lost {
                            how: NO_ANSWER.to_owned(),
                        },
                        ..ended.clone()
                    }
                } else {
                    ended.clone()
                },
            }),
            None => Sight::Missing,
        }
    };
    let sights: Vec<Sight<'_>> = (0..nodes(job)).map(sight).collect();
    if let Some(over) = over(job, &sights, all_ran, container, now) {
        return over;
    }
    if !suspended && sights.iter().any(|s| matches!(s, Sight::Missing)) {
        match job_finish(job) {
            Some((true, at)) => return AttemptState::Ended(lost("its pod is gone before its message was read", at)),
            Some((false, at)) => return AttemptState::Ended(lost("its pod is gone", at)),
            None => {}
        }
    }
    let states: Vec<AttemptState> = (0_u32..)
        .zip(&sights)
        .filter_map(|(index, sight)| match sight {
            Sight::Live(pod) => Some((index, live_state(pod, container, now))),
            Sight::Missing if !suspended => Some((index, AttemptState::NoPod { refused: None })),
            Sight::Missing | Sight::Assisted | Sight::Over(_) => None,
        })
        .map(|(index, state)| match state {
            AttemptState::Blocked { reason, message } if sights.len() > 1 => AttemptState::Blocked {
                reason,
                message: format!("pod {index}: {message}"),
            },
            state => state,
        })
        .collect();
    // The first of those that are worst, so that the message stays the same.
    let worst = states.into_iter().rev().max_by_key(holds_up);
    worst.unwrap_or(AttemptState::NoPod { refused: None })
}

/// How much a pod in this state holds the others up.
fn holds_up(state: &AttemptState) -> u8 {
    match state {
        AttemptState::Blocked { .. } => 4,
        AttemptState::NoPod { .. } => 3,
        AttemptState::Unscheduled => 2,
        AttemptState::Starting => 1,
        AttemptState::Running | AttemptState::Ending(_) | AttemptState::Ended(_) => 0,
    }
}

/// The end of the attempt, where one of its pods has ended, or had when it was last seen.
fn over(job: &Job, sights: &[Sight<'_>], all_ran: bool, container: &str, now: Timestamp) -> Option<AttemptState> {
    let ends: Vec<&PodEnd<'_>> = sights
        .iter()
        .filter_map(|s| match s {
            Sight::Over(end) => Some(end),
            _ => None,
        })
        .collect();
    // Pods that were deleted are soon gone, and what they told with them.
    let before = recorded(job);
    // Whether all ran is known when the first end is seen, and told by what was written then.
    let met = all_ran || before.is_some() || sights.len() <= 1;
    // When the first of them ended without having been deleted.
    let by_itself = ends.iter().filter(|e| !is_deletion(e)).filter_map(|e| e.ended.at).min();
    let seen = ends
        .iter()
        .map(|end| {
            let told_by = ToldBy {
                index: end.index,
                telling: telling(end, by_itself, before.is_some(), container, now),
            };
            let end = EndedAttempt {
                told_by: Some(told_by),
                ..end.ended.clone()
            };
            explained(end, sights, met)
        })
        .max_by_key(|end| {
            (
                end.told_by.map(|t| t.telling),
                std::cmp::Reverse((end.at.is_none(), end.at, end.told_by.map(|t| t.index))),
            )
        });
    let furthest = position(&ends, before.as_ref());
    let mut ended = match (seen, before) {
        (Some(seen), Some(before)) if telling_of(&seen) > telling_of(&before) => seen,
        (_, Some(before)) => before,
        (Some(seen), None) => seen,
        (None, None) => return None,
    };
    ended.position = furthest;
    // That of a pod that still saves its state would be its last moment.
    ended.at = ends.iter().filter_map(|e| e.ended.at).chain(ended.at).min();
    let told = telling_of(&ended);
    // Only index 0 writes checkpoints. What is not tried again needs none.
    let saves = match sights.first() {
        Some(Sight::Live(pod)) => runs(pod, container) && !is_out_of_contact(pod),
        Some(Sight::Over(end)) => is_ending(end.pod, container, now),
        _ => false,
    };
    let may_explain = told <= Some(Telling::PeerLost)
        && sights.iter().any(|sight| match sight {
            Sight::Live(_) => true,
            Sight::Over(end) => may_yet_end(end.pod, container, now),
            Sight::Assisted | Sight::Missing => false,
        });
    if sights.len() <= 1 {
        ended.told_by = None;
    }
    Some(if told < Some(Telling::Final) && (saves || may_explain) {
        AttemptState::Ending(ended)
    } else {
        AttemptState::Ended(ended)
    })
}

fn telling_of(ended: &EndedAttempt) -> Option<Telling> {
    ended.told_by.map(|t| t.telling)
}

/// What the operator wrote at the Job of the end of several pods.
fn recorded(job: &Job) -> Option<EndedAttempt> {
    let text = job.metadata.annotations.as_ref()?.get(ANNOTATION_ENDED)?;
    serde_json::from_str(text).ok()
}

/// What is to be written at the Job so that it is known for good how its pods ended: most of them will be gone soon. The
/// end of a single pod is read from the Job as well.
#[must_use]
pub fn unrecorded(job: &Job, state: &AttemptState) -> Option<EndedAttempt> {
    let (AttemptState::Ended(ended) | AttemptState::Ending(ended)) = state else {
        return None;
    };
    let new = ended.told_by.is_some() && recorded(job).as_ref() != Some(ended);
    new.then(|| ended.clone())
}

/// Whether a pod is over only because it was deleted, and not by what evicts or preempts.
fn is_deletion(end: &PodEnd<'_>) -> bool {
    matches!(end.ended.end, End::Lost { .. }) && disruption(end.pod).is_none()
}

fn telling(end: &PodEnd<'_>, by_itself: Option<Timestamp>, is_over: bool, container: &str, now: Timestamp) -> Telling {
    match &end.ended.end {
        End::OutOfMemory => Telling::Final,
        End::Told(Outcome::Failed(failure)) => match (failure.reason.class(), failure.reason) {
            (FailureClass::User | FailureClass::OutOfMemory, _) => Telling::Final,
            (FailureClass::Infrastructure, FailureReason::Fenced) => Telling::Fenced,
            (FailureClass::Infrastructure, FailureReason::Interrupted) => Telling::Interrupted,
            (FailureClass::Infrastructure, FailureReason::PeerLost) => Telling::PeerLost,
            (FailureClass::Infrastructure, _) => Telling::Failed,
        },
        End::Told(
            Outcome::Trained(_) | Outcome::Verified(_) | Outcome::Assisted | Outcome::Imported(_) | Outcome::Pruned(_),
        )
        | End::Unclear { .. }
        | End::Hung { .. } => Telling::Failed,
        End::GpuFault { .. } | End::NoRoom { .. } | End::NoImage { .. } => Telling::Taken,
        End::Lost { .. } if !is_deletion(end) || is_cut_off(end.pod, container, now) => Telling::Taken,
        // Its deletion was not yet seen when the first end was.
        End::Lost { .. } if is_over => Telling::Stopped,
        End::Lost { .. } => {
            let (Some(asked), Some(by_itself)) = (deletion_asked(end.pod), by_itself) else {
                return Telling::Taken;
            };
            let finished = terminated(end.pod, container).and_then(|t| t.finished_at.as_ref());
            // Times are whole seconds, of several clocks: where both are of one second, the container's own end decides.
            let followed = asked > by_itself || (asked == by_itself && finished.is_none_or(|at| at.0 > by_itself));
            if followed { Telling::Stopped } else { Telling::Deleted }
        }
    }
}

/// The end of a pod that only missed another one, where it is known why: the node of that one is lost, or not all of them
/// ever ran, since they wait for GPUs or images. Neither is a failure.
fn explained(ended: EndedAttempt, sights: &[Sight<'_>], met: bool) -> EndedAttempt {
    let Some(ToldBy {
        index,
        telling: Telling::PeerLost,
    }) = ended.told_by
    else {
        return ended;
    };
    let lost = (0_u32..).zip(sights).find_map(|(index, sight)| match sight {
        Sight::Live(pod) if is_out_of_contact(pod) => Some(index),
        _ => None,
    });
    let (index, telling, how) = match lost {
        Some(index) => (index, Telling::Taken, NO_ANSWER),
        None if !met => (
            index,
            Telling::NeverMet,
            "it gave up waiting for pods that had not begun to run",
        ),
        None => return ended,
    };
    EndedAttempt {
        end: End::Lost { how: how.to_owned() },
        told_by: Some(ToldBy { index, telling }),
        ..ended
    }
}

/// How far the attempt was: as index 0 says, which knows best; else the furthest that is known.
fn position(ends: &[&PodEnd<'_>], before: Option<&EndedAttempt>) -> Option<Position> {
    let first = ends.iter().find(|e| e.index == 0).and_then(|e| e.ended.position);
    let others = ends.iter().map(|e| &e.ended).chain(before).filter_map(|e| e.position);
    first.or_else(|| others.max_by_key(|p| p.checkpoint_step))
}

fn lost(how: &str, at: Option<Timestamp>) -> EndedAttempt {
    EndedAttempt {
        end: End::Lost { how: how.to_owned() },
        at,
        position: None,
        told_by: None,
    }
}

/// What the pods of an attempt still do whose Job is deleted. The Job is gone at once; its pods are told to end a moment
/// later, and save their state then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// A pod was not told to end and may run.
    pub live: bool,
    /// A pod may still save its state: it runs, its grace is not over, and its node is not lost.
    pub save: bool,
}

impl Remains {
    /// Of these pods, in which the container `container` counts.
    #[must_use]
    pub fn of(pods: &[&Pod], container: &str, now: Timestamp) -> Self {
        let may_save = |pod: &Pod| {
            let untold = lives(pod, container) && runs(pod, container) && !is_out_of_contact(pod);
            untold || is_ending(pod, container, now)
        };
        Self {
            live: pods.iter().any(|pod| lives(pod, container)),
            save: pods.iter().any(|pod| may_save(pod)),
        }
    }
}

/// The verdict by which the operator ended the attempt itself.
fn given_up(job: &Job) -> Option<Verdict> {
    let text = job.metadata.annotations.as_ref()?.get(ANNOTATION_GIVEN_UP)?;
    serde_json::from_str(text).ok()
}

/// Whether the Job says that it is over: successfully or not, and since when.
fn job_finish(job: &Job) -> Option<(bool, Option<Timestamp>)> {
    job.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .filter(|c| c.status == "True")
        .find_map(|c| {
            let at = c.last_transition_time.as_ref().map(|t| t.0);
            match c.type_.as_str() {
                "Complete" | "SuccessCriteriaMet" => Some((true, at)),
                "Failed" | "FailureTarget" => Some((false, at)),
                _ => None,
            }
        })
}

/// Whether this pod was not told to end and may run. The phase alone does not tell: it says `Running` for a while after the
/// container that counts has ended, and for as long as a mesh's own container runs. Such a pod keeps the log and the message
/// of the attempt.
#[must_use]
pub fn lives(pod: &Pod, container: &str) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !is_over(pod) && terminated(pod, container).is_none()
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

/// Whether the control plane has lost the pod's node: its node controller then marks the pod as not ready, while the
/// kubelet's last word still is that the containers are. No right to read nodes is needed to see it.
#[must_use]
pub fn is_out_of_contact(pod: &Pod) -> bool {
    let is = |kind: &str, status: &str| condition(pod, kind).is_some_and(|c| c.status == status);
    is("Ready", "False") && is("ContainersReady", "True")
}

/// Whether the container that counts runs, as far as the API server knows.
#[must_use]
pub fn runs(pod: &Pod, container: &str) -> bool {
    let state = status_of(pod, container).and_then(|s| s.state.as_ref());
    !is_over(pod) && state.is_some_and(|s| s.running.is_some())
}

/// When the container that counts began to run.
#[must_use]
pub fn running_since(pod: &Pod, container: &str) -> Option<Timestamp> {
    let running = status_of(pod, container)?.state.as_ref()?.running.as_ref()?;
    running.started_at.as_ref().map(|t| t.0)
}

/// Since when the container that counts has waited for its image, where it cannot be had: when the pod's sandbox stood, or its
/// node took it, as nothing tells when the first try failed. It may be long ago, where it failed after a long download.
#[must_use]
pub fn without_image_since(pod: &Pod, container: &str) -> Option<Timestamp> {
    let status = status_of(pod, container)?;
    let waiting = status.state.as_ref()?.waiting.as_ref()?.reason.as_deref()?;
    let problem = of_image(PodsOf::container(container), "", waiting, &status.image);
    let lacks = problem.is_some_and(|problem| problem.reason == reasons::IMAGE_PULL_FAILED);
    let since = |kind: &str| {
        let is = condition(pod, kind).filter(|c| c.status == "True")?;
        is.last_transition_time.as_ref().map(|t| t.0)
    };
    let began = since("PodReadyToStartContainers").or_else(|| since("PodScheduled"));
    let made = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    began.or(made).filter(|_| lacks && lives(pod, container))
}

/// What the kubelet says of the first device of this extended resource that the container holds and that is unhealthy. Only Kubernetes
/// with the feature `ResourceHealthStatus` reports it; a health that is not known says nothing, as a device plugin that is
/// being replaced gives that, too.
#[must_use]
pub fn unhealthy_device(pod: &Pod, container: &str, resource: &str) -> Option<String> {
    let held = status_of(pod, container)?.allocated_resources_status.as_ref()?;
    let device = held
        .iter()
        .filter(|status| status.name == resource)
        .flat_map(|status| status.resources.iter().flatten())
        .find(|device| device.health.as_deref() == Some("Unhealthy"))?;
    let id = cut(&device.resource_id, KUBELET_WORDS_MAX);
    Some(format!("its kubelet reports the GPU {id} as unhealthy"))
}

fn grace(pod: &Pod) -> Duration {
    let seconds = pod.metadata.deletion_grace_period_seconds;
    Duration::from_secs(seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0))
}

/// When the pod was told to end: the deletion timestamp is the end of its grace.
#[must_use]
pub fn deletion_asked(pod: &Pod) -> Option<Timestamp> {
    let deadline = pod.metadata.deletion_timestamp.as_ref()?.0;
    deadline.checked_sub(grace(pod)).ok()
}

/// Whether this pod was told to end, still runs, and is to be waited for.
fn is_ending(pod: &Pod, container: &str, now: Timestamp) -> bool {
    let Some(deadline) = pod.metadata.deletion_timestamp.as_ref().map(|t| t.0) else {
        return false;
    };
    let left = deadline.duration_since(now);
    let waited_for = grace(pod).saturating_sub(ENDING_MAX);
    runs(pod, container) && !is_out_of_contact(pod) && left.is_positive() && left.unsigned_abs() > waited_for
}

/// Whether the pod's node carries nothing out any more: the control plane has lost it, or it has not ended the pod in time.
fn is_cut_off(pod: &Pod, container: &str, now: Timestamp) -> bool {
    let overdue = |deadline: Timestamp| Duration::try_from(now.duration_since(deadline)).is_ok_and(|by| by >= OVERDUE);
    let deadline = pod.metadata.deletion_timestamp.as_ref().map(|t| t.0);
    runs(pod, container) && (is_out_of_contact(pod) || deadline.is_some_and(overdue))
}

/// Whether a pod that was told to end still runs and will say soon how it ended, or that its node is lost.
fn may_yet_end(pod: &Pod, container: &str, now: Timestamp) -> bool {
    let asked = deletion_asked(pod).and_then(|asked| Duration::try_from(now.duration_since(asked)).ok());
    let in_time = asked.is_some_and(|since| since < ENDING_MAX + OVERDUE);
    runs(pod, container) && !is_cut_off(pod, container, now) && in_time
}

fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses
        .iter()
        .find(|s| s.name == container)
        .or_else(|| statuses.first())
}

fn live_state(pod: &Pod, container: &str, now: Timestamp) -> AttemptState {
    if pod.spec.as_ref().is_none_or(|s| s.node_name.is_none()) {
        return AttemptState::Unscheduled;
    }
    let state = status_of(pod, container).and_then(|s| s.state.as_ref());
    if state.is_some_and(|s| s.running.is_some()) {
        return AttemptState::Running;
    }
    if let Some(Problem { reason, message }) = unprepared(pod, now) {
        return AttemptState::Blocked { reason, message };
    }
    let Some(waiting) = state.and_then(|s| s.waiting.as_ref()) else {
        return AttemptState::Starting;
    };
    let reason = waiting.reason.as_deref().unwrap_or_default();
    let image = status_of(pod, container).map_or("", |s| s.image.as_str());
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if let Some(Problem { reason, message }) = of_image(PodsOf::container(container), name, reason, image) {
        return AttemptState::Blocked { reason, message };
    }
    let words = cut_words(waiting.message.as_deref().unwrap_or_default(), KUBELET_WORDS_MAX);
    match reason {
        reason @ ("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError") => {
            AttemptState::Blocked {
                reason: reasons::POD_CONFIG_INVALID,
                message: format!(
                    "the container cannot be started ({reason}: {words}). Make the Secret or ConfigMap that the spec names, or \
                 correct the name; it is tried again by itself"
                ),
            }
        }
        _ => AttemptState::Starting,
    }
}

fn terminated<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStateTerminated> {
    status_of(pod, container)?.state.as_ref()?.terminated.as_ref()
}

/// What a container that ended left behind.
#[must_use]
pub fn last_words(pod: &Pod, container: &str) -> Option<TerminationMessage> {
    TerminationMessage::parse(terminated(pod, container)?.message.as_deref()?)
}

/// How this pod ended; `None` while it goes on. A pod that is being deleted has ended, whatever it still does: a dead node
/// would never say so.
fn pod_end(pod: &Pod, container: &str) -> Option<EndedAttempt> {
    let terminated = terminated(pod, container);
    let deleted = pod.metadata.deletion_timestamp.as_ref().map(|t| t.0);
    if terminated.is_none() && !is_over(pod) && deleted.is_none() {
        return None;
    }
    let at = terminated.and_then(|t| t.finished_at.as_ref()).map(|t| t.0).or(deleted);
    let told = last_words(pod, container);
    let position = match &told {
        Some(message) => message.position,
        None => Position::in_log(terminated.and_then(|t| t.message.as_deref()).unwrap_or_default()),
    };
    let end = match told.map(|m| m.outcome) {
        // A pod that was told to stop says so; what told it counts.
        Some(Outcome::Failed(failure)) if failure.reason == FailureReason::Interrupted => match taken_away(pod) {
            Some(how) => End::Lost { how },
            None => End::Told(Outcome::Failed(failure)),
        },
        Some(outcome) => End::Told(outcome),
        None => without_message(pod, terminated),
    };
    Some(EndedAttempt {
        end,
        at,
        position,
        told_by: None,
    })
}

fn without_message(pod: &Pod, terminated: Option<&ContainerStateTerminated>) -> End {
    if terminated.is_some_and(|t| t.reason.as_deref() == Some("OOMKilled")) {
        return End::OutOfMemory;
    }
    if let Some(how) = taken_away(pod) {
        return End::Lost { how };
    }
    let Some(terminated) = terminated else {
        let status = pod.status.as_ref();
        return End::Unclear {
            message: format!(
                "the pod failed before its container ran ({}: {})",
                status.and_then(|s| s.reason.as_deref()).unwrap_or("no reason"),
                cut_words(
                    status.and_then(|s| s.message.as_deref()).unwrap_or("no message"),
                    KUBELET_WORDS_MAX
                )
            ),
        };
    };
    let tail = terminated.message.as_deref().unwrap_or_default().trim();
    let code = terminated.exit_code;
    End::Unclear {
        message: match (code, tail) {
            (0, _) => "the container ended without a result".to_owned(),
            (EXIT_USAGE, _) => {
                format!("exit code {code}: the image does not know its arguments; see that it is the right one")
            }
            (_, "") => format!("exit code {code}, and no log"),
            _ => format!("exit code {code}; the end of its log: {}", last(tail, LOG_TAIL_MAX)),
        },
    }
}

/// What took the pod away, where something did that its program is not to blame for.
fn taken_away(pod: &Pod) -> Option<String> {
    let deleted = pod.metadata.deletion_timestamp.is_some() && !is_over_its_limit(pod);
    disruption(pod).or_else(|| deleted.then(|| "its pod was deleted".to_owned()))
}

/// Whether the pod went beyond its own limit of scratch space; it would do so again.
fn is_over_its_limit(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|s| {
        s.reason.as_deref() == Some("Evicted") && s.message.as_deref().unwrap_or_default().contains("exceeds")
    })
}

/// What took the pod away beside a deletion: eviction, preemption, its node.
#[must_use]
pub fn disruption(pod: &Pod) -> Option<String> {
    if is_over_its_limit(pod) {
        return None;
    }
    let status = pod.status.as_ref();
    let reason = status.and_then(|s| s.reason.as_deref()).unwrap_or_default();
    let message = status.and_then(|s| s.message.as_deref()).unwrap_or_default();
    let disrupted = condition(pod, "DisruptionTarget").filter(|c| c.status == "True");
    if let Some(condition) = disrupted {
        return Some(format!(
            "{}: {}",
            condition.reason.as_deref().unwrap_or("disrupted"),
            cut_words(condition.message.as_deref().unwrap_or(message), KUBELET_WORDS_MAX)
        ));
    }
    let by_node = matches!(
        reason,
        "Evicted"
            | "Preempting"
            | "Preempted"
            | "NodeShutdown"
            | "NodeLost"
            | "NodeAffinity"
            | "Terminated"
            | "Shutdown"
            | "UnexpectedAdmissionError"
    ) || reason.starts_with("OutOf");
    by_node.then(|| format!("{reason}: {}", cut_words(message, KUBELET_WORDS_MAX)))
}

/// The last `max` bytes of a text, not cutting a character in two.
fn last(text: &str, max: usize) -> &str {
    let from = (text.len().saturating_sub(max)..=text.len())
        .find(|i| text.is_char_boundary(*i))
        .unwrap_or(0);
    text.get(from..).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use flywheel_contract::failure::Failure;
    use flywheel_contract::termination::Verified;
    use serde_json::{Value, json};

    use super::*;

    fn job(status: Value) -> Job {
        serde_json::from_value(json!({
            "metadata": {"name": "j"}, "spec": {"template": {}},
            "status": status
        }))
        .unwrap()
    }

    fn pod(extra: Value, status: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:10Z"},
            "spec": {"nodeName": "n", "containers": []},
            "status": status
        });
        for (key, value) in extra.as_object().unwrap() {
            pod["metadata"][key] = value.clone();
        }
        serde_json::from_value(pod).unwrap()
    }

    fn ended(code: i32, reason: &str, message: &str) -> Value {
        json!({"phase": if code == 0 { "Succeeded" } else { "Failed" }, "containerStatuses": [{
            "name": "trainer", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": "2026-01-01T00:01:00Z"}}
        }]})
    }

    fn waiting(reason: &str) -> Value {
        json!({"phase": "Pending", "containerStatuses": [
            {"name": "mesh", "image": "m", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}},
            {"name": "trainer", "image": "registry/x:1", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"waiting": {"reason": reason, "message": "secret \"s3\" not found"}}}
        ]})
    }

    fn unprepared_since(time: &str) -> Value {
        let mut status = waiting("ContainerCreating");
        status["conditions"] = json!([
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(time).to_string()},
            {"type": "PodReadyToStartContainers", "status": "False", "lastTransitionTime": at(time).to_string()},
        ]);
        status
    }

    fn told(outcome: Outcome) -> String {
        TerminationMessage::new(outcome).to_json()
    }

    fn at(text: &str) -> Timestamp {
        format!("2026-01-01T{text}Z").parse().unwrap()
    }

    fn of(job_status: Value, pods: &[Pod]) -> AttemptState {
        let pods: Vec<&Pod> = pods.iter().collect();
        state(&job(job_status), &pods, true, "trainer", at("00:10:00"))
    }

    fn word(state: &AttemptState) -> &'static str {
        match state {
            AttemptState::NoPod { .. } => "NoPod",
            AttemptState::Unscheduled => "Unscheduled",
            AttemptState::Starting => "Starting",
            AttemptState::Blocked { reason, .. } => reason,
            AttemptState::Running => "Running",
            AttemptState::Ending(_) => "Ending",
            AttemptState::Ended(e) => match &e.end {
                End::Told(Outcome::Failed(f)) => f.reason.as_str(),
                End::Told(_) => "Done",
                End::OutOfMemory => "OutOfMemory",
                End::Unclear { .. } => "Unclear",
                End::Lost { .. } => "Lost",
                End::Hung { .. } => "Hung",
                End::GpuFault { .. } => "GpuFault",
                End::NoRoom { .. } => "NoRoom",
                End::NoImage { .. } => "NoImage",
            },
        }
    }

    #[test]
    fn pods_of_a_deleted_job_save_their_state_until_their_grace_is_over_or_their_node_is_lost() {
        let running = || {
            json!({"phase": "Running", "containerStatuses": [{"name": "trainer", "image": "i", "imageID": "", "ready": true,
                "restartCount": 0, "state": {"running": {}}}]})
        };
        let out_of_contact = || {
            let mut status = running();
            status["conditions"] =
                json!([{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]);
            status
        };
        let told = |seconds: i64, grace: i64| {
            let deadline = at("00:10:00") + jiff::SignedDuration::from_secs(seconds);
            json!({"deletionTimestamp": deadline.to_string(), "deletionGracePeriodSeconds": grace})
        };
        let none = || json!({});
        let table: Vec<(&str, Vec<Pod>, (bool, bool))> = vec![
            ("no pods", vec![], (false, false)),
            ("not told yet", vec![pod(none(), running())], (true, true)),
            ("told", vec![pod(told(12, 30), running())], (false, true)),
            ("told, grace over", vec![pod(told(0, 30), running())], (false, false)),
            (
                "told, with a long grace",
                vec![pod(told(500, 600), running())],
                (false, false),
            ),
            (
                "not told, node lost",
                vec![pod(none(), out_of_contact())],
                (true, false),
            ),
            (
                "told, node lost",
                vec![pod(told(12, 30), out_of_contact())],
                (false, false),
            ),
            (
                "not begun",
                vec![pod(none(), waiting("ContainerCreating"))],
                (true, false),
            ),
            (
                "at its end",
                vec![pod(told(12, 30), ended(1, "Error", ""))],
                (false, false),
            ),
            (
                "one of several",
                vec![pod(none(), ended(1, "Error", "")), pod(told(12, 30), running())],
                (false, true),
            ),
        ];
        let mut deleted = job(json!({"startTime": "2026-01-01T00:00:10Z"}));
        deleted.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:09:00Z")).unwrap();
        for (case, pods, (live, save)) in table {
            let pods: Vec<&Pod> = pods.iter().collect();
            assert_eq!(
                Remains::of(&pods, "trainer", at("00:10:00")),
                Remains { live, save },
                "{case}"
            );
            // The Job that is still there while its pods go (foreground deletion) says the same.
            let seen = state(&deleted, &pods, true, "trainer", at("00:10:00"));
            let expected = if save { "Ending" } else { "Lost" };
            assert_eq!(word(&seen), expected, "{case}");
        }
    }

    #[test]
    fn each_sight_has_its_state() {
        let run = json!({"startTime": "2026-01-01T00:00:10Z"});
        let done = told(Outcome::Verified(Verified {
            files: 1,
            bytes: 2,
            ..Verified::default()
        }));
        let user = told(Outcome::Failed(Failure::new(FailureReason::DatasetEmpty, "no rows")));
        let interrupted = told(Outcome::Failed(Failure::new(FailureReason::Interrupted, "SIGTERM")));
        let deleted = json!({"deletionTimestamp": "2026-01-01T00:00:59Z"});
        let running = json!({"phase": "Running", "containerStatuses": [{"name": "trainer", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}]});
        let disruption = |mut status: Value| {
            status["conditions"] = json!([{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempted"}]);
            status
        };
        let none = json!({});
        let table: Vec<(&str, Value, Vec<Pod>, &str)> = vec![
            ("just made", json!({}), vec![], "NoPod"),
            (
                "no container status",
                run.clone(),
                vec![pod(none.clone(), json!({"phase": "Pending"}))],
                "Starting",
            ),
            (
                "pulling",
                run.clone(),
                vec![pod(none.clone(), waiting("ContainerCreating"))],
                "Starting",
            ),
            (
                "its node cannot mount a volume",
                run.clone(),
                vec![pod(none.clone(), unprepared_since("00:09:00"))],
                "PodNotPrepared",
            ),
            (
                "its node still mounts volumes",
                run.clone(),
                vec![pod(none.clone(), unprepared_since("00:09:01"))],
                "Starting",
            ),
            (
                "no image",
                run.clone(),
                vec![pod(none.clone(), waiting("ImagePullBackOff"))],
                "ImagePullFailed",
            ),
            (
                "no secret",
                run.clone(),
                vec![pod(none.clone(), waiting("CreateContainerConfigError"))],
                "PodConfigInvalid",
            ),
            (
                "running",
                run.clone(),
                vec![pod(none.clone(), running.clone())],
                "Running",
            ),
            (
                "done",
                run.clone(),
                vec![pod(none.clone(), ended(0, "Completed", &done))],
                "Done",
            ),
            (
                "done while being deleted",
                run.clone(),
                vec![pod(deleted.clone(), ended(0, "Completed", &done))],
                "Done",
            ),
            (
                "told",
                run.clone(),
                vec![pod(none.clone(), ended(1, "Error", &user))],
                "DatasetEmpty",
            ),
            (
                "out of memory",
                run.clone(),
                vec![pod(none.clone(), ended(137, "OOMKilled", ""))],
                "OutOfMemory",
            ),
            (
                "crashed",
                run.clone(),
                vec![pod(none.clone(), ended(139, "Error", "panicked"))],
                "Unclear",
            ),
            (
                "ended well without a word",
                run.clone(),
                vec![pod(none.clone(), ended(0, "Completed", ""))],
                "Unclear",
            ),
            (
                "interrupted by nobody",
                run.clone(),
                vec![pod(none.clone(), ended(1, "Error", &interrupted))],
                "Interrupted",
            ),
            (
                "interrupted by deletion",
                run.clone(),
                vec![pod(deleted.clone(), ended(1, "Error", &interrupted))],
                "Lost",
            ),
            (
                "preempted",
                run.clone(),
                vec![pod(none.clone(), disruption(ended(143, "Error", "")))],
                "Lost",
            ),
            (
                "evicted for the node's memory",
                run.clone(),
                vec![pod(
                    none.clone(),
                    json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}),
                )],
                "Lost",
            ),
            (
                "evicted for its own disk",
                run.clone(),
                vec![pod(
                    none.clone(),
                    json!({"phase": "Failed", "reason": "Evicted", "message": "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi."}),
                )],
                "Unclear",
            ),
            (
                "refused by the kubelet",
                run.clone(),
                vec![pod(
                    none.clone(),
                    json!({"phase": "Failed", "reason": "OutOfnvidia.com/gpu", "message": "m"}),
                )],
                "Lost",
            ),
            (
                "being deleted",
                run.clone(),
                vec![pod(deleted.clone(), running.clone())],
                "Lost",
            ),
            (
                "gone",
                json!({"startTime": "2026-01-01T00:00:10Z", "conditions": [{"type": "Failed", "status": "True"}]}),
                vec![],
                "Lost",
            ),
            (
                "gone after success",
                json!({"conditions": [{"type": "Complete", "status": "True"}]}),
                vec![],
                "Lost",
            ),
            (
                "resumed, the old pod still ends",
                json!({"startTime": "2026-01-01T00:05:00Z"}),
                vec![pod(deleted.clone(), running.clone())],
                "NoPod",
            ),
            (
                "resumed, not begun",
                json!({}),
                vec![pod(deleted.clone(), running.clone())],
                "NoPod",
            ),
            (
                "resumed, and the Job controller has not seen it",
                json!({"conditions": [{"type": "Suspended", "status": "True"}]}),
                vec![pod(deleted.clone(), ended(1, "Error", &interrupted))],
                "NoPod",
            ),
            (
                "resumed, and its new pod runs",
                json!({"startTime": "2026-01-01T00:00:10Z", "conditions": [{"type": "Suspended", "status": "False"}]}),
                vec![
                    pod(
                        json!({"creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-01T00:00:05Z"}),
                        ended(1, "Error", &interrupted),
                    ),
                    pod(none.clone(), running.clone()),
                ],
                "Running",
            ),
            (
                "replaced by the Job",
                run.clone(),
                vec![pod(deleted, running.clone()), pod(none, running)],
                "Running",
            ),
        ];
        for (case, job_status, pods, expected) in table {
            assert_eq!(word(&of(job_status, &pods)), expected, "{case}");
        }
        let mut unscheduled = pod(json!({}), json!({"phase": "Pending"}));
        unscheduled.spec.as_mut().unwrap().node_name = None;
        assert_eq!(of(run, &[unscheduled]), AttemptState::Unscheduled);
    }

    #[test]
    fn a_pod_whose_container_ended_lives_no_more_whatever_its_phase() {
        let running = json!({"phase": "Running", "containerStatuses": [{"name": "trainer", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}]});
        let mut late = ended(1, "Error", "");
        late["phase"] = json!("Running");
        for (case, metadata, status, expected) in [
            ("runs", json!({}), running.clone(), true),
            ("has no node yet", json!({}), json!({"phase": "Pending"}), true),
            ("container ended, phase not yet", json!({}), late, false),
            ("ended", json!({}), ended(1, "Error", ""), false),
            (
                "told to end",
                json!({"deletionTimestamp": "2026-01-01T00:00:59Z"}),
                running,
                false,
            ),
        ] {
            assert_eq!(lives(&pod(metadata, status), "trainer"), expected, "{case}");
        }
    }

    #[test]
    fn a_suspended_job_has_no_pod_whatever_its_old_pods_say() {
        let mut job = job(json!({"startTime": "2026-01-01T00:00:10Z"}));
        job.spec.as_mut().unwrap().suspend = Some(true);
        let old = pod(
            json!({"deletionTimestamp": "2026-01-01T00:00:59Z"}),
            ended(143, "Error", ""),
        );
        assert_eq!(
            state(&job, &[&old], true, "trainer", at("00:10:00")),
            AttemptState::NoPod { refused: None }
        );
    }

    fn running(conditions: Value) -> Value {
        json!({"phase": "Running", "conditions": conditions, "containerStatuses": [
            {"name": "trainer", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}
        ]})
    }

    /// The node controller's mark: the kubelet said last that the containers are ready.
    fn lost_node() -> Value {
        json!([{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}])
    }

    #[test]
    fn a_pod_that_was_told_to_end_is_waited_for_while_it_can_save_its_state() {
        // Told at 00:01:00 with this grace; whether it is waited for 29 s and 31 s later.
        let told = |grace: i64| {
            let until = at("00:01:00") + jiff::SignedDuration::from_secs(grace);
            json!({"deletionTimestamp": until.to_string(), "deletionGracePeriodSeconds": grace})
        };
        let table = [
            ("the usual grace", told(30), running(json!([])), ["Ending", "Lost"]),
            ("an hour of grace", told(3600), running(json!([])), ["Ending", "Lost"]),
            ("a second of grace", told(1), running(json!([])), ["Lost", "Lost"]),
            ("none", told(0), running(json!([])), ["Lost", "Lost"]),
            ("its node is lost", told(30), running(lost_node()), ["Lost", "Lost"]),
            ("it never ran", told(30), waiting("ContainerCreating"), ["Lost", "Lost"]),
            ("it has ended", told(30), ended(143, "Error", ""), ["Lost", "Lost"]),
        ];
        let job = job(json!({"startTime": "2026-01-01T00:00:10Z"}));
        for (case, metadata, status, expected) in table {
            let pod = pod(metadata, status);
            let words = ["00:01:29", "00:01:31"].map(|now| word(&state(&job, &[&pod], true, "trainer", at(now))));
            assert_eq!(words, expected, "{case}");
        }
    }

    #[test]
    fn a_node_that_is_lost_is_seen_at_its_pods() {
        let with = |conditions| is_out_of_contact(&pod(json!({}), running(conditions)));
        assert!(with(lost_node()));
        assert!(!with(json!([])));
        assert!(!with(
            json!([{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}])
        ));
        let not_ready = json!([{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "False"}]);
        assert!(!with(not_ready), "the container says so itself");
    }

    #[test]
    fn only_a_gpu_that_is_reported_as_unhealthy_is_one() {
        let gpu = "nvidia.com/gpu";
        let of = |name: &str, health: Value| {
            json!({"name": name, "resources": [
                {"resourceID": "GPU-1", "health": "Healthy"}, {"resourceID": "GPU-2", "health": health}
            ]})
        };
        let table = [
            ("no word", json!(null), None),
            ("well", json!([of(gpu, json!("Healthy"))]), None),
            ("broken", json!([of(gpu, json!("Unhealthy"))]), Some("GPU-2")),
            ("not known", json!([of(gpu, json!("Unknown"))]), None),
            ("no health", json!([of(gpu, json!(null))]), None),
            (
                "another device",
                json!([of("rdma/hca", json!("Unhealthy")), of(gpu, json!("Healthy"))]),
                None,
            ),
            ("nothing held", json!([{"name": gpu}]), None),
        ];
        for (case, held, device) in table {
            let mut status = running(json!([]));
            status["containerStatuses"][0]["allocatedResourcesStatus"] = held;
            assert_eq!(
                unhealthy_device(&pod(json!({}), status), "trainer", gpu),
                device.map(|device| format!("its kubelet reports the GPU {device} as unhealthy")),
                "{case}"
            );
        }
    }

    #[test]
    fn a_verdict_at_the_job_ends_the_attempt_whatever_its_pods_do() {
        let position = |checkpoint_step| Position {
            step: 90,
            resumed_from_step: 40,
            checkpoint_step,
            head_attempt: 1,
        };
        let given_up = |cause| {
            let mut job = job(json!({"startTime": "2026-01-01T00:00:10Z"}));
            let verdict = Verdict {
                cause,
                how: "no sign of work".to_owned(),
                at: at("00:05:00"),
                position: Some(position(40)),
                node: Some("n".to_owned()),
            };
            let text = serde_json::to_string(&verdict).unwrap();
            job.metadata.annotations = Some([(ANNOTATION_GIVEN_UP.to_owned(), text)].into());
            (job, verdict)
        };
        let saved = TerminationMessage {
            position: Some(position(80)),
            ..TerminationMessage::new(Outcome::Failed(Failure::new(FailureReason::Interrupted, "SIGTERM")))
        };
        let deleted = json!({"deletionTimestamp": "2026-01-01T00:05:30Z", "deletionGracePeriodSeconds": 30});
        let no_image = Cause::NoImage {
            since: at("00:03:45"),
            turn: 1,
        };
        for cause in [
            Cause::Hung,
            Cause::NodeLost,
            Cause::GpuFault,
            Cause::NoRoom { turn: 2 },
            no_image,
        ] {
            let (job, verdict) = given_up(cause);
            for pod in [
                pod(json!({}), running(json!([]))),
                pod(deleted.clone(), running(json!([]))),
            ] {
                let seen = state(&job, &[&pod], true, "trainer", at("00:05:01"));
                assert_eq!(seen, AttemptState::Ended(verdict.ended()));
                assert_eq!(seen.may_run(), cause == Cause::NodeLost);
            }
            assert_eq!(
                state(&job, &[], true, "trainer", at("00:05:01")),
                AttemptState::Ended(verdict.ended())
            );
            // What the pod saved when it was told to end counts.
            let last = pod(deleted.clone(), ended(1, "Error", &saved.to_json()));
            let AttemptState::Ended(end) = state(&job, &[&last], true, "trainer", at("00:05:20")) else {
                panic!("ended")
            };
            assert_eq!((end.end, end.position), (verdict.ended().end, Some(position(80))));
            // And so does a result.
            let done = pod(
                deleted.clone(),
                ended(
                    0,
                    "Completed",
                    &told(Outcome::Verified(Verified {
                        files: 1,
                        bytes: 2,
                        ..Verified::default()
                    })),
                ),
            );
            assert_eq!(word(&state(&job, &[&done], true, "trainer", at("00:05:20"))), "Done");
        }
        let (mut job, _) = given_up(Cause::Hung);
        job.metadata.annotations = Some([(ANNOTATION_GIVEN_UP.to_owned(), "yes".to_owned())].into());
        let pod = pod(json!({}), running(json!([])));
        assert_eq!(
            state(&job, &[&pod], true, "trainer", at("00:05:01")),
            AttemptState::Running,
            "somebody else's words"
        );
    }

    #[test]
    fn a_pod_tells_how_far_it_was() {
        let position = Position {
            step: 90,
            resumed_from_step: 40,
            checkpoint_step: 80,
            head_attempt: 3,
        };
        let message = TerminationMessage {
            position: Some(position),
            ..TerminationMessage::new(Outcome::Failed(Failure::new(FailureReason::Fenced, "attempt 3")))
        };
        let run = json!({"startTime": "2026-01-01T00:00:10Z"});
        let AttemptState::Ended(end) = of(run, &[pod(json!({}), ended(1, "Error", &message.to_json()))]) else {
            panic!("ended")
        };
        assert_eq!(end.position, Some(position));

        // A crash leaves no message, but a line in the log.
        let log = format!(
            "terminate called\n{}\n",
            json!({"level": "ERROR", "message": "crashed", "signal": 6, "position": position})
        );
        let run = json!({"startTime": "2026-01-01T00:00:10Z"});
        let AttemptState::Ended(end) = of(run, &[pod(json!({}), ended(134, "Error", &log))]) else {
            panic!("ended")
        };
        assert_eq!(end.position, Some(position));
        assert!(matches!(end.end, End::Unclear { .. }), "{:?}", end.end);
    }

    #[test]
    fn messages_say_what_to_do_and_keep_the_end_of_a_log() {
        let run = json!({"startTime": "2026-01-01T00:00:10Z"});
        let AttemptState::Blocked { message, .. } = of(run.clone(), &[pod(json!({}), waiting("ErrImagePull"))]) else {
            panic!("blocked")
        };
        assert!(
            message.contains("registry/x:1") && message.contains("imagePullSecrets"),
            "{message}"
        );
        let AttemptState::Blocked { message, .. } =
            of(run.clone(), &[pod(json!({}), waiting("CreateContainerConfigError"))])
        else {
            panic!("blocked")
        };
        assert!(message.contains("secret \"s3\" not found"), "{message}");
        let log = format!("{}the end", "é".repeat(3000));
        let AttemptState::Ended(end) = of(run, &[pod(json!({}), ended(134, "Error", &log))]) else {
            panic!("ended")
        };
        let End::Unclear { message } = end.end else {
            panic!("unclear")
        };
        assert!(
            message.contains("134") && message.ends_with("the end") && message.len() < 600,
            "{message}"
        );
    }

    /// A Job of as many pods, begun.
    fn job_of(nodes: i32) -> Job {
        let mut job = job(json!({"startTime": "2026-01-01T00:00:00Z"}));
        job.spec.as_mut().unwrap().completions = Some(nodes);
        job
    }

    /// The pod with this index.
    fn nth(index: u32, metadata: Value, status: Value) -> Pod {
        let mut pod = pod(metadata, status);
        pod.metadata.labels = Some([(LABEL_COMPLETION_INDEX.to_owned(), index.to_string())].into());
        pod
    }

    fn seen(nodes: i32, pods: &[Pod], now: &str) -> AttemptState {
        let views: Vec<&Pod> = pods.iter().collect();
        let state = state(&job_of(nodes), &views, true, "trainer", at(now));
        // In whatever order the cache gives them.
        let turned: Vec<&Pod> = pods.iter().rev().collect();
        assert_eq!(super::state(&job_of(nodes), &turned, true, "trainer", at(now)), state);
        state
    }

    fn runs_well() -> Value {
        running(json!([]))
    }

    /// The status of a pod that ended at this time, failed for this reason.
    fn failed_at(reason: FailureReason, time: &str) -> Value {
        says_at(1, &told(Outcome::Failed(Failure::new(reason, "words"))), time)
    }

    fn says_at(code: i32, message: &str, time: &str) -> Value {
        let mut status = ended(code, "Error", message);
        status["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = json!(at(time).to_string());
        status
    }

    /// Told to end at this time, with the usual grace.
    fn told_at(time: &str) -> Value {
        let until = at(time) + jiff::SignedDuration::from_secs(30);
        json!({"deletionTimestamp": until.to_string(), "deletionGracePeriodSeconds": 30})
    }

    fn evicted(mut status: Value) -> Value {
        status["conditions"] = json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drained"}]);
        status
    }

    #[test]
    fn several_pods_are_where_the_one_is_that_holds_the_others_up() {
        let none = || json!({});
        let unscheduled = |index| {
            let mut pod = nth(index, none(), json!({"phase": "Pending"}));
            pod.spec.as_mut().unwrap().node_name = None;
            pod
        };
        let starts = |index| nth(index, none(), waiting("ContainerCreating"));
        let runs = |index| nth(index, none(), runs_well());
        let assisted = |index| nth(index, none(), says_at(0, &told(Outcome::Assisted), "00:01:00"));
        let table = [
            ("none made yet", vec![], "NoPod"),
            ("one made", vec![runs(0)], "NoPod"),
            ("the first is missing", vec![runs(1)], "NoPod"),
            ("one without a node", vec![runs(0), unscheduled(1)], "Unscheduled"),
            ("none has a node", vec![unscheduled(0), unscheduled(1)], "Unscheduled"),
            ("one starts", vec![starts(0), runs(1)], "Starting"),
            ("one starts, one waits", vec![starts(0), unscheduled(1)], "Unscheduled"),
            (
                "one is blocked",
                vec![unscheduled(0), nth(1, none(), waiting("ErrImagePull"))],
                "ImagePullFailed",
            ),
            ("all run", vec![runs(0), runs(1)], "Running"),
            ("one has done its part", vec![runs(0), assisted(1)], "Running"),
            ("index 0 has none to assist", vec![assisted(0), runs(1)], "Done"),
        ];
        for (case, pods, expected) in table {
            assert_eq!(word(&seen(2, &pods, "00:10:00")), expected, "{case}");
        }
        let blocked = [
            runs(0),
            nth(1, none(), waiting("ErrImagePull")),
            nth(2, none(), waiting("ErrImagePull")),
        ];
        let AttemptState::Blocked { message, .. } = seen(3, &blocked, "00:10:00") else {
            panic!("blocked")
        };
        assert!(message.starts_with("pod 1: the image registry/x:1"), "{message}");
    }

    #[test]
    fn the_result_is_that_of_index_0_whatever_the_others_do() {
        // Any of these outcomes; `Verified` is the shorter one to write.
        let done = told(Outcome::Verified(Verified {
            files: 1,
            bytes: 2,
            ..Verified::default()
        }));
        for other in [
            nth(1, json!({}), runs_well()),
            nth(1, json!({}), says_at(0, &told(Outcome::Assisted), "00:01:00")),
            nth(1, json!({}), failed_at(FailureReason::PeerLost, "00:01:00")),
            nth(1, told_at("00:01:00"), runs_well()),
        ] {
            let pods = [nth(0, json!({}), says_at(0, &done, "00:01:00")), other];
            let AttemptState::Ended(end) = seen(2, &pods, "00:01:10") else {
                panic!("ended")
            };
            assert!(matches!(end.end, End::Told(Outcome::Verified(_))), "{end:?}");
        }
        let claimed = [
            nth(0, json!({}), runs_well()),
            nth(1, json!({}), says_at(0, &done, "00:01:00")),
        ];
        let AttemptState::Ending(end) = seen(2, &claimed, "00:01:10") else {
            panic!("another index has no result")
        };
        assert_eq!(end.told_by.map(|t| t.index), Some(1));
    }

    /// Word, index and whether somebody is waited for, of an attempt of two pods at 00:01:10.
    fn end_of(pods: &[Pod], now: &str) -> (&'static str, Option<u32>, bool) {
        match seen(2, pods, now) {
            AttemptState::Ended(end) => (
                word(&AttemptState::Ended(end.clone())),
                end.told_by.map(|t| t.index),
                false,
            ),
            AttemptState::Ending(end) => (
                word(&AttemptState::Ended(end.clone())),
                end.told_by.map(|t| t.index),
                true,
            ),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_end_of_several_pods_is_that_of_the_one_that_tells_most() {
        use FailureReason::{DatasetEmpty, Fenced, Interrupted, OutOfMemory, PeerLost, StorageUnavailable};
        let none = || json!({});
        let first = |status| nth(0, none(), status);
        let second = |status| nth(1, none(), status);
        let lost_peer = || failed_at(PeerLost, "00:01:05");
        let killed = || ended(137, "OOMKilled", "");
        let crashed = || says_at(139, "", "00:01:00");
        let table = [
            (
                "each misses the other",
                first(lost_peer()),
                second(failed_at(PeerLost, "00:01:04")),
                ("PeerLost", 1),
            ),
            (
                "out of memory, killed",
                first(lost_peer()),
                second(killed()),
                ("OutOfMemory", 1),
            ),
            (
                "out of memory, told",
                first(lost_peer()),
                second(failed_at(OutOfMemory, "00:01:06")),
                ("OutOfMemory", 1),
            ),
            (
                "the user's data",
                first(failed_at(DatasetEmpty, "00:01:06")),
                second(lost_peer()),
                ("DatasetEmpty", 0),
            ),
            (
                "all say the same: the earliest",
                first(failed_at(DatasetEmpty, "00:01:06")),
                second(failed_at(DatasetEmpty, "00:01:05")),
                ("DatasetEmpty", 1),
            ),
            (
                "all say the same at once: the lowest",
                first(failed_at(DatasetEmpty, "00:01:05")),
                second(failed_at(DatasetEmpty, "00:01:05")),
                ("DatasetEmpty", 0),
            ),
            ("a crash", first(lost_peer()), second(crashed()), ("Unclear", 1)),
            (
                "a crash beats what comes of it",
                first(failed_at(Interrupted, "00:00:59")),
                second(crashed()),
                ("Unclear", 1),
            ),
            (
                "the user's data beat a crash",
                first(crashed()),
                second(failed_at(DatasetEmpty, "00:01:09")),
                ("DatasetEmpty", 1),
            ),
            (
                "storage",
                first(failed_at(StorageUnavailable, "00:01:00")),
                second(lost_peer()),
                ("StorageUnavailable", 0),
            ),
            (
                "fenced",
                first(failed_at(Fenced, "00:01:09")),
                second(crashed()),
                ("Fenced", 0),
            ),
            (
                "told to end by somebody",
                first(lost_peer()),
                second(failed_at(Interrupted, "00:01:00")),
                ("Interrupted", 1),
            ),
            // Taken away: free, whatever else comes of it.
            (
                "drained",
                first(lost_peer()),
                nth(1, told_at("00:01:00"), evicted(failed_at(Interrupted, "00:01:02"))),
                ("Lost", 1),
            ),
            (
                "drained, and the other crashed of it",
                first(crashed()),
                second(evicted(ended(143, "Error", ""))),
                ("Lost", 1),
            ),
            (
                "deleted by the user",
                first(lost_peer()),
                nth(1, told_at("00:01:04"), failed_at(Interrupted, "00:01:05")),
                ("Lost", 1),
            ),
            (
                "deleted by the user, in one second",
                first(lost_peer()),
                nth(1, told_at("00:01:05"), failed_at(Interrupted, "00:01:05")),
                ("Lost", 1),
            ),
            // Deleted because of the first end: by the Job controller or the operator.
            (
                "stopped after the other",
                first(lost_peer()),
                nth(1, told_at("00:01:06"), failed_at(Interrupted, "00:01:07")),
                ("PeerLost", 0),
            ),
            (
                "stopped in the same second",
                first(lost_peer()),
                nth(1, told_at("00:01:05"), says_at(137, "", "00:01:09")),
                ("PeerLost", 0),
            ),
            (
                "stopped, and told more",
                first(lost_peer()),
                nth(1, told_at("00:01:06"), failed_at(OutOfMemory, "00:01:07")),
                ("OutOfMemory", 1),
            ),
            (
                "a crash, and the other deleted before",
                first(crashed()),
                nth(1, told_at("00:00:59"), failed_at(Interrupted, "00:01:05")),
                ("Unclear", 0),
            ),
            (
                "both deleted",
                nth(0, told_at("00:01:00"), failed_at(Interrupted, "00:01:05")),
                nth(1, told_at("00:01:00"), failed_at(Interrupted, "00:01:02")),
                ("Lost", 1),
            ),
        ];
        for (case, first, second, (reason, pod)) in table {
            assert_eq!(
                end_of(&[first, second], "00:01:10"),
                (reason, Some(pod), false),
                "{case}"
            );
        }
    }

    #[test]
    fn what_only_missed_another_pod_waits_for_that_pods_word() {
        let none = || json!({});
        let lost_peer = || nth(0, none(), failed_at(FailureReason::PeerLost, "00:01:05"));
        let second = |metadata, status| [lost_peer(), nth(1, metadata, status)];
        // The other still runs: it is stopped, and may say why it was missed.
        assert_eq!(
            end_of(&second(none(), runs_well()), "00:01:06"),
            ("PeerLost", Some(0), true)
        );
        // It was told to end, and its process stands still until it is killed.
        let stopped = |status| second(told_at("00:01:06"), status);
        assert_eq!(end_of(&stopped(runs_well()), "00:01:40"), ("PeerLost", Some(0), true));
        assert_eq!(
            end_of(&stopped(says_at(137, "", "00:01:37")), "00:01:40"),
            ("PeerLost", Some(0), false)
        );
        // Nobody kills it: its node is lost. The control plane may say so before.
        assert_eq!(end_of(&stopped(runs_well()), "00:01:46"), ("Lost", Some(1), false));
        assert_eq!(
            end_of(&stopped(running(lost_node())), "00:01:20"),
            ("Lost", Some(1), false)
        );
        assert_eq!(
            end_of(&second(none(), running(lost_node())), "00:01:20"),
            ("Lost", Some(1), false)
        );
        // An hour of grace is not waited for.
        let long = json!({"deletionTimestamp": "2026-01-01T01:01:06Z", "deletionGracePeriodSeconds": 3600});
        assert_eq!(
            end_of(&second(long.clone(), runs_well()), "00:01:45"),
            ("PeerLost", Some(0), true)
        );
        assert_eq!(
            end_of(&second(long, runs_well()), "00:01:46"),
            ("PeerLost", Some(0), false)
        );
    }

    /// To wait for GPUs is no failure, whether the pods that have none are still there or not.
    #[test]
    fn pods_that_never_all_ran_have_missed_nobody() {
        let none = || json!({});
        let lost_peer = || nth(0, none(), failed_at(FailureReason::PeerLost, "00:01:05"));
        let mut unscheduled = nth(1, none(), json!({"phase": "Pending"}));
        unscheduled.spec.as_mut().unwrap().node_name = None;
        let job = job_of(2);
        for (case, pods) in [
            ("no node", vec![lost_peer(), unscheduled]),
            (
                "starting",
                vec![lost_peer(), nth(1, none(), waiting("ContainerCreating"))],
            ),
            ("gone", vec![lost_peer()]),
        ] {
            let views: Vec<&Pod> = pods.iter().collect();
            let AttemptState::Ended(end) = state(&job, &views, false, "trainer", at("00:01:06")) else {
                panic!("{case}: ended")
            };
            assert!(matches!(end.end, End::Lost { .. }), "{case}: {end:?}");
        }
        assert_eq!(end_of(&[lost_peer()], "00:01:06"), ("PeerLost", Some(0), false));
        // Once it was seen that all ran, the status may say something else.
        let pods = [lost_peer()];
        let views: Vec<&Pod> = pods.iter().collect();
        let first = state(&job, &views, true, "trainer", at("00:01:06"));
        let mut known = job.clone();
        let text = serde_json::to_string(&unrecorded(&job, &first).unwrap()).unwrap();
        known.metadata.annotations = Some([(ANNOTATION_ENDED.to_owned(), text)].into());
        assert_eq!(state(&known, &views, false, "trainer", at("00:01:07")), first);
        // What one tells of itself counts all the same.
        let pods = [
            lost_peer(),
            nth(1, none(), failed_at(FailureReason::DatasetEmpty, "00:01:00")),
        ];
        let views: Vec<&Pod> = pods.iter().collect();
        assert_eq!(
            word(&state(&job, &views, false, "trainer", at("00:01:06"))),
            "DatasetEmpty"
        );
    }

    /// Pods as one look shows them, and how the attempt ended by it.
    type Look = (Vec<Pod>, &'static str);

    /// A pod that was deleted is gone a second after its end; what was seen of it is at the Job.
    #[test]
    fn how_several_pods_ended_stays_known_when_they_are_gone() {
        let none = || json!({});
        let lost_peer = |time| nth(0, none(), failed_at(FailureReason::PeerLost, time));
        let interrupted = || failed_at(FailureReason::Interrupted, "00:01:02");
        let drained = || nth(1, told_at("00:01:00"), evicted(runs_well()));
        let saved = || {
            let message = TerminationMessage {
                position: Some(Position {
                    step: 90,
                    resumed_from_step: 0,
                    checkpoint_step: 90,
                    head_attempt: 1,
                }),
                ..TerminationMessage::new(Outcome::Failed(Failure::new(FailureReason::PeerLost, "words")))
            };
            nth(0, told_at("00:01:05"), says_at(1, &message.to_json(), "00:01:07"))
        };
        let crashed = || nth(1, none(), says_at(139, "", "00:01:04"));
        let well = || nth(0, none(), runs_well());
        let deleted = |status| nth(1, told_at("00:01:00"), status);
        // What is seen in turn, and how the attempt ended after each look.
        let table: Vec<(&str, Vec<Look>)> = vec![
            (
                "drained",
                vec![
                    (vec![well(), drained()], "Lost"),
                    (vec![lost_peer("00:01:03")], "Lost"),
                    (vec![], "Lost"),
                ],
            ),
            (
                "deleted by a user, and the other crashes of it",
                vec![
                    (vec![well(), deleted(runs_well())], "Lost"),
                    (
                        vec![nth(0, none(), says_at(134, "", "00:01:03")), deleted(interrupted())],
                        "Lost",
                    ),
                    (vec![nth(0, none(), says_at(134, "", "00:01:03"))], "Lost"),
                ],
            ),
            (
                "crashed",
                vec![
                    (vec![well(), crashed()], "Unclear"),
                    (vec![saved(), crashed()], "Unclear"),
                    (vec![crashed()], "Unclear"),
                ],
            ),
            (
                "stood still, and was stopped",
                vec![
                    (vec![lost_peer("00:01:05"), nth(1, none(), runs_well())], "PeerLost"),
                    (
                        vec![lost_peer("00:01:05"), nth(1, told_at("00:01:06"), runs_well())],
                        "PeerLost",
                    ),
                    (vec![lost_peer("00:01:05")], "PeerLost"),
                ],
            ),
            (
                "the same, and the clocks differ",
                vec![
                    (vec![lost_peer("00:01:05"), nth(1, none(), runs_well())], "PeerLost"),
                    (vec![lost_peer("00:01:05"), deleted(interrupted())], "PeerLost"),
                ],
            ),
            (
                "the cause comes last",
                vec![
                    (vec![lost_peer("00:01:05"), nth(1, none(), runs_well())], "PeerLost"),
                    (
                        vec![lost_peer("00:01:05"), nth(1, none(), ended(137, "OOMKilled", ""))],
                        "OutOfMemory",
                    ),
                    (vec![lost_peer("00:01:05")], "OutOfMemory"),
                ],
            ),
        ];
        for (case, looks) in table {
            let mut job = job_of(2);
            let mut last: Option<EndedAttempt> = None;
            for (pods, expected) in looks {
                let views: Vec<&Pod> = pods.iter().collect();
                let seen = state(&job, &views, true, "trainer", at("00:01:10"));
                let (AttemptState::Ended(end) | AttemptState::Ending(end)) = &seen else {
                    panic!("{case}: {seen:?}")
                };
                assert_eq!(word(&AttemptState::Ended(end.clone())), expected, "{case}");
                if let Some(new) = unrecorded(&job, &seen) {
                    let text = serde_json::to_string(&new).unwrap();
                    job.metadata.annotations = Some([(ANNOTATION_ENDED.to_owned(), text)].into());
                }
                assert_eq!(unrecorded(&job, &seen), None, "{case}: once");
                assert!(last.is_none_or(|l| end.at <= l.at), "{case}: the wait grows");
                last = Some(end.clone());
            }
            let saved = last.and_then(|end| end.position).map(|p| p.checkpoint_step);
            assert_eq!(saved, (case == "crashed").then_some(90), "{case}");
        }
        // One pod alone is read anew each time.
        let pod = nth(0, none(), says_at(139, "", "00:01:04"));
        let single = state(&job_of(1), &[&pod], true, "trainer", at("00:01:10"));
        assert_eq!(unrecorded(&job_of(1), &single), None);
    }

    #[test]
    fn index_0_may_save_its_state_first_where_the_training_goes_on() {
        let none = || json!({});
        let with = |metadata, status, other: Value| [nth(0, metadata, status), nth(1, none(), other)];
        let crashed = || says_at(139, "", "00:01:00");
        let user = || failed_at(FailureReason::DatasetEmpty, "00:01:00");
        let table = [
            ("it runs", with(none(), runs_well(), crashed()), ("Unclear", 1, true)),
            (
                "it was told to end",
                with(told_at("00:01:00"), runs_well(), crashed()),
                ("Unclear", 1, true),
            ),
            (
                "it has had 30 s",
                with(told_at("00:00:35"), runs_well(), crashed()),
                ("Unclear", 1, false),
            ),
            (
                "its node is lost",
                with(none(), running(lost_node()), crashed()),
                ("Unclear", 1, false),
            ),
            (
                "it never ran",
                with(none(), waiting("ContainerCreating"), crashed()),
                ("Unclear", 1, false),
            ),
            (
                "nothing follows",
                with(none(), runs_well(), user()),
                ("DatasetEmpty", 1, false),
            ),
        ];
        for (case, pods, (reason, pod, waits)) in table {
            assert_eq!(end_of(&pods, "00:01:05"), (reason, Some(pod), waits), "{case}");
        }
        // Another one that runs on saves nothing.
        let pods = [nth(0, none(), crashed()), nth(1, none(), runs_well())];
        assert_eq!(end_of(&pods, "00:01:05"), ("Unclear", Some(0), false));
    }

    #[test]
    fn how_far_several_pods_were_index_0_knows_best() {
        let says = |step, checkpoint_step| {
            let message = TerminationMessage {
                position: Some(Position {
                    step,
                    resumed_from_step: 40,
                    checkpoint_step,
                    head_attempt: 1,
                }),
                ..TerminationMessage::new(Outcome::Failed(Failure::new(FailureReason::PeerLost, "words")))
            };
            says_at(1, &message.to_json(), "00:01:05")
        };
        let at_step = |pods: &[Pod]| match seen(3, pods, "00:01:10") {
            AttemptState::Ended(end) => end.position.map(|p| (p.step, p.checkpoint_step)),
            other => panic!("{other:?}"),
        };
        let of = |index, status| nth(index, json!({}), status);
        assert_eq!(
            at_step(&[of(0, says(90, 80)), of(1, says(91, 85)), of(2, says(90, 0))]),
            Some((90, 80))
        );
        let silent = || says_at(137, "", "00:01:05");
        assert_eq!(
            at_step(&[of(0, silent()), of(1, says(91, 40)), of(2, says(90, 60))]),
            Some((90, 60))
        );
        assert_eq!(at_step(&[of(0, silent()), of(1, silent()), of(2, silent())]), None);
    }

    #[test]
    fn a_suspension_of_several_pods_is_no_end() {
        let interrupted = || failed_at(FailureReason::Interrupted, "00:01:05");
        let pods = [
            nth(0, told_at("00:01:00"), runs_well()),
            nth(1, told_at("00:01:00"), interrupted()),
        ];
        let views: Vec<&Pod> = pods.iter().collect();
        let mut suspended = job_of(2);
        suspended.spec.as_mut().unwrap().suspend = Some(true);
        let none = AttemptState::NoPod { refused: None };
        assert_eq!(state(&suspended, &views, true, "trainer", at("00:01:06")), none);
        // Some have not been told to end yet.
        let both = [
            nth(0, json!({}), runs_well()),
            nth(1, told_at("00:01:00"), interrupted()),
        ];
        let views: Vec<&Pod> = both.iter().collect();
        assert_eq!(
            state(&suspended, &views, true, "trainer", at("00:01:06")),
            AttemptState::Running
        );
        // Resumed: old pods say nothing of the new run, and new ones are waited for.
        let mut resumed = job_of(2);
        resumed.status = serde_json::from_value(json!({"startTime": "2026-01-01T00:02:00Z"})).unwrap();
        let new = nth(1, json!({"creationTimestamp": "2026-01-01T00:02:01Z"}), runs_well());
        let views = [&pods[0], &pods[1], &new];
        assert_eq!(state(&resumed, &views, true, "trainer", at("00:02:02")), none);
        let first = nth(0, json!({"creationTimestamp": "2026-01-01T00:02:01Z"}), runs_well());
        let views = [&pods[0], &pods[1], &new, &first];
        assert_eq!(
            state(&resumed, &views, true, "trainer", at("00:02:02")),
            AttemptState::Running
        );
    }

    #[test]
    fn a_resumed_job_whose_old_pod_never_ends_is_lost() {
        let resumed = |status| {
            let mut resumed = job_of(2);
            resumed.status = serde_json::from_value(status).unwrap();
            resumed
        };
        let out_of_contact =
            json!([{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]);
        // The Job controller waits for its end before it makes another one, and its node cannot say so.
        let old = nth(1, told_at("00:01:00"), running(out_of_contact));
        let ends = nth(1, told_at("00:01:00"), runs_well());
        for begun in [json!({"startTime": "2026-01-01T00:02:00Z"}), json!({})] {
            let job = resumed(begun);
            let of = |pod| word(&state(&job, &[pod], false, "trainer", at("00:02:10")));
            assert_eq!((of(&old), of(&ends)), ("Lost", "NoPod"), "{job:?}");
        }
        let mut suspended = resumed(json!({}));
        suspended.spec.as_mut().unwrap().suspend = Some(true);
        let none = AttemptState::NoPod { refused: None };
        assert_eq!(state(&suspended, &[&old], false, "trainer", at("00:10:00")), none);
    }

    #[test]
    fn a_job_of_several_pods_that_are_gone_is_lost() {
        let mut finished = job_of(2);
        finished.status = serde_json::from_value(
            json!({"startTime": "2026-01-01T00:00:00Z", "conditions": [{"type": "FailureTarget", "status": "True"}]}),
        )
        .unwrap();
        let left = nth(0, json!({}), runs_well());
        assert_eq!(
            word(&state(&finished, &[&left], true, "trainer", at("00:01:00"))),
            "Lost"
        );
        assert_eq!(word(&state(&finished, &[], true, "trainer", at("00:01:00"))), "Lost");
    }
}
