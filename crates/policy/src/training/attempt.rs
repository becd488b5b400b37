//! What one Job with a single pod does: read from the Job and its pods alone, without waiting for the Job's own verdict,
//! which never comes from a dead node. Training attempts and verifications are both such Jobs.

use std::time::Duration;

use flywheel_api::conditions::{cut, reasons};
use flywheel_api::names::ANNOTATION_GIVEN_UP;
use flywheel_contract::failure::FailureReason;
use flywheel_contract::names::EXIT_USAGE;
use flywheel_contract::termination::{Outcome, Position, TerminationMessage};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};

use super::hang::{Cause, Verdict};

/// What an attempt does.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptState {
    /// There is no pod yet.
    NoPod {
        /// Why the API server refuses the pod, where an event tells.
        refused: Option<String>,
    },
    /// The pod has no node yet.
    Unscheduled,
    /// The pod has a node; images and volumes are on their way.
    Starting,
    /// The pod cannot start until somebody acts.
    Blocked {
        /// A condition's reason.
        reason: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
    /// The pod runs.
    Running,
    /// The pod was told to end and may still save its state; how the attempt will have ended if it says nothing more.
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
            // A lost pod may well run on, on a node that nobody reaches. One that hung is deleted, and its Job stays: it
            // says that the attempt is over.
            Self::Ended(ended) => matches!(ended.end, End::Lost { .. }),
        }
    }
}

/// The end of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct EndedAttempt {
    /// How.
    pub end: End,
    /// When, where it is known.
    pub at: Option<Timestamp>,
    /// How far it was, where it is known.
    pub position: Option<Position>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
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
            },
            at: Some(self.at),
            position: self.position,
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

/// What the Job's only pod does. `container` names the container that counts; a mesh may have added others.
#[must_use]
pub fn state(job: &Job, pods: &[&Pod], container: &str, now: Timestamp) -> AttemptState {
    let ends: Vec<(&Pod, EndedAttempt)> = pods
        .iter()
        .filter_map(|pod| Some((*pod, pod_end(pod, container)?)))
        .collect();
    if let Some((_, result)) = ends
        .iter()
        .find(|(_, e)| matches!(e.end, End::Told(Outcome::Trained(_) | Outcome::Verified(_))))
    {
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
    if job.metadata.deletion_timestamp.is_some() {
        return lost(
            "its Job was deleted",
            job.metadata.deletion_timestamp.as_ref().map(|t| t.0),
        );
    }
    let live = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none() && !ends.iter().any(|(p, _)| std::ptr::eq(*p, **pod)))
        .max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0));
    if let Some(pod) = live {
        return live_state(pod, container);
    }
    if job.spec.as_ref().and_then(|s| s.suspend) == Some(true) {
        return AttemptState::NoPod { refused: None };
    }
    // Pods from before a suspension say nothing about the time after it: it takes the Job's start time away, and the Job
    // controller sets a new one when it sees the resumption. While there is none, all pods are such.
    let begun = job.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
    let is_of_this_run = |pod: &Pod| {
        begun.is_some_and(|begun| {
            pod.metadata
                .creation_timestamp
                .as_ref()
                .is_none_or(|made| made.0 >= begun)
        })
    };
    let last = ends
        .into_iter()
        .filter(|(pod, _)| is_of_this_run(pod))
        .max_by_key(|(pod, end)| (end.at, pod.metadata.creation_timestamp.as_ref().map(|t| t.0)));
    if let Some((pod, end)) = last {
        return if is_ending(pod, container, now) {
            AttemptState::Ending(end)
        } else {
            AttemptState::Ended(end)
        };
    }
    match job_finish(job) {
        Some((true, at)) => lost("its pod is gone before its message was read", at),
        Some((false, at)) => lost("its pod is gone", at),
        None => AttemptState::NoPod { refused: None },
    }
}

fn lost(how: &str, at: Option<Timestamp>) -> AttemptState {
    AttemptState::Ended(EndedAttempt {
        end: End::Lost { how: how.to_owned() },
        at,
        position: None,
    })
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
    let is = |kind: &str, status: &str| {
        pod.status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .any(|c| c.type_ == kind && c.status == status)
    };
    is("Ready", "False") && is("ContainersReady", "True")
}

/// Whether this pod was told to end, still runs, and is to be waited for.
fn is_ending(pod: &Pod, container: &str, now: Timestamp) -> bool {
    let Some(deadline) = pod.metadata.deletion_timestamp.as_ref().map(|t| t.0) else {
        return false;
    };
    let runs = status_of(pod, container)
        .and_then(|s| s.state.as_ref())
        .is_some_and(|s| s.running.is_some());
    // The deletion timestamp is the end of the grace period.
    let grace = Duration::from_secs(
        pod.metadata
            .deletion_grace_period_seconds
            .and_then(|s| u64::try_from(s).ok())
            .unwrap_or(0),
    );
    let left = deadline.duration_since(now);
    let waited_for = grace.saturating_sub(ENDING_MAX);
    runs && !is_over(pod) && !is_out_of_contact(pod) && left.is_positive() && left.unsigned_abs() > waited_for
}

fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses
        .iter()
        .find(|s| s.name == container)
        .or_else(|| statuses.first())
}

fn live_state(pod: &Pod, container: &str) -> AttemptState {
    if pod.spec.as_ref().is_none_or(|s| s.node_name.is_none()) {
        return AttemptState::Unscheduled;
    }
    let state = status_of(pod, container).and_then(|s| s.state.as_ref());
    if state.is_some_and(|s| s.running.is_some()) {
        return AttemptState::Running;
    }
    let Some(waiting) = state.and_then(|s| s.waiting.as_ref()) else {
        return AttemptState::Starting;
    };
    let words = cut(waiting.message.as_deref().unwrap_or_default(), KUBELET_WORDS_MAX);
    match waiting.reason.as_deref().unwrap_or_default() {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "RegistryUnavailable"
        | "ImageInspectError" => AttemptState::Blocked {
            reason: reasons::IMAGE_PULL_FAILED,
            // The kubelet's words change with every try (back-off), and would make a write of each; the image does not.
            message: format!(
                "the image {} cannot be pulled. See that it exists, that the nodes reach its registry, and that \
                 imagePullSecrets names its credentials; it is tried again by itself",
                status_of(pod, container).map_or("", |s| s.image.as_str())
            ),
        },
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
    let position = told.as_ref().and_then(|m| m.position);
    let end = match told.map(|m| m.outcome) {
        // A pod that was told to stop says so; what told it counts.
        Some(Outcome::Failed(failure)) if failure.reason == FailureReason::Interrupted => match taken_away(pod) {
            Some(how) => End::Lost { how },
            None => End::Told(Outcome::Failed(failure)),
        },
        Some(outcome) => End::Told(outcome),
        None => without_message(pod, terminated),
    };
    Some(EndedAttempt { end, at, position })
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
                cut(
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
    let status = pod.status.as_ref();
    let reason = status.and_then(|s| s.reason.as_deref()).unwrap_or_default();
    let message = status.and_then(|s| s.message.as_deref()).unwrap_or_default();
    // A pod that goes beyond its own limit of scratch space would do so again.
    if reason == "Evicted" && message.contains("exceeds") {
        return None;
    }
    let disrupted = status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_ == "DisruptionTarget" && c.status == "True");
    if let Some(condition) = disrupted {
        return Some(format!(
            "{}: {}",
            condition.reason.as_deref().unwrap_or("disrupted"),
            cut(condition.message.as_deref().unwrap_or(message), KUBELET_WORDS_MAX)
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
    if by_node {
        return Some(format!("{reason}: {}", cut(message, KUBELET_WORDS_MAX)));
    }
    pod.metadata
        .deletion_timestamp
        .is_some()
        .then(|| "its pod was deleted".to_owned())
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

    fn told(outcome: Outcome) -> String {
        TerminationMessage::new(outcome).to_json()
    }

    fn at(text: &str) -> Timestamp {
        format!("2026-01-01T{text}Z").parse().unwrap()
    }

    fn of(job_status: Value, pods: &[Pod]) -> AttemptState {
        let pods: Vec<&Pod> = pods.iter().collect();
        state(&job(job_status), &pods, "trainer", at("00:10:00"))
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
            },
        }
    }

    #[test]
    fn each_sight_has_its_state() {
        let run = json!({"startTime": "2026-01-01T00:00:10Z"});
        let done = told(Outcome::Verified(Verified { files: 1, bytes: 2 }));
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
            state(&job, &[&old], "trainer", at("00:10:00")),
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
            let words = ["00:01:29", "00:01:31"].map(|now| word(&state(&job, &[&pod], "trainer", at(now))));
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
        for cause in [Cause::Hung, Cause::NodeLost] {
            let (job, verdict) = given_up(cause);
            for pod in [
                pod(json!({}), running(json!([]))),
                pod(deleted.clone(), running(json!([]))),
            ] {
                let seen = state(&job, &[&pod], "trainer", at("00:05:01"));
                assert_eq!(seen, AttemptState::Ended(verdict.ended()));
                assert_eq!(seen.may_run(), cause == Cause::NodeLost);
            }
            assert_eq!(
                state(&job, &[], "trainer", at("00:05:01")),
                AttemptState::Ended(verdict.ended())
            );
            // What the pod saved when it was told to end counts.
            let last = pod(deleted.clone(), ended(1, "Error", &saved.to_json()));
            let AttemptState::Ended(end) = state(&job, &[&last], "trainer", at("00:05:20")) else {
                panic!("ended")
            };
            assert_eq!((end.end, end.position), (verdict.ended().end, Some(position(80))));
            // And so does a result.
            let done = pod(
                deleted.clone(),
                ended(
                    0,
                    "Completed",
                    &told(Outcome::Verified(Verified { files: 1, bytes: 2 })),
                ),
            );
            assert_eq!(word(&state(&job, &[&done], "trainer", at("00:05:20"))), "Done");
        }
        let (mut job, _) = given_up(Cause::Hung);
        job.metadata.annotations = Some([(ANNOTATION_GIVEN_UP.to_owned(), "yes".to_owned())].into());
        let pod = pod(json!({}), running(json!([])));
        assert_eq!(
            state(&job, &[&pod], "trainer", at("00:05:01")),
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
}
