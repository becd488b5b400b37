//! What a serving pod is doing, read from its status.

use flywheel_api::conditions::{cut_words, reasons};
use flywheel_contract::termination::{Outcome, TerminationMessage};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};

use super::blame::Ended;
use crate::placement::{PodSchedulingView, Problem, condition, refused_since};
use crate::preparation::unprepared;
use crate::remedy::{PodsOf, of_image};

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It has no node.
    Pending,
    /// It has a node; image and volumes are on their way.
    Starting,
    /// Its program runs and loads the version.
    Loading,
    /// Its program has loaded and does not answer now.
    Unready,
    /// It answers.
    Ready,
}

/// What keeps a pod from answering and does not pass by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// One of [`reasons`].
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// A pod that counts: neither being deleted nor at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Its name.
    pub name: String,
    /// The ModelVersion that it answers with, where that is known: no pod's object says it.
    pub version: Option<String>,
    /// How far it is.
    pub stage: Stage,
    /// What the scheduler says.
    pub scheduling: PodSchedulingView,
    /// Since when the scheduler finds no node for it.
    pub waiting_since: Option<Timestamp>,
    /// What keeps it from answering.
    pub trouble: Option<Trouble>,
    /// How often its server was started again.
    pub restarts: i32,
    /// How its server ended last.
    pub ended: Option<Ended>,
    /// Its node waits, longer with each time, before it starts the server again.
    pub backs_off: bool,
    /// When it last began, or ceased, to be ready.
    pub changed: Option<Timestamp>,
    /// When it was made.
    pub created: Option<Timestamp>,
}

/// Most bytes of the kubelet's or a program's own words in a message.
const WORDS_MAX: usize = 600;

/// Reasons of a waiting container whose settings cannot be used.
const CONFIG_REASONS: [&str; 4] = [
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "PreStartHookError",
];

impl PodView {
    /// The pod whose server is in the container `container`; `None` for one that is being deleted or at its end.
    #[must_use]
    pub fn of(pod: &Pod, container: &str, now: Timestamp) -> Option<Self> {
        let status = pod.status.as_ref();
        let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
        if pod.metadata.deletion_timestamp.is_some() || matches!(phase, "Failed" | "Succeeded") {
            return None;
        }
        let name = pod.metadata.name.clone().unwrap_or_default();
        let scheduling = PodSchedulingView::of(pod, now);
        let container = status
            .and_then(|s| s.container_statuses.as_ref())
            .and_then(|list| list.iter().find(|c| c.name == container));
        let stage = if !scheduling.scheduled {
            Stage::Pending
        } else if condition(pod, "Ready").is_some_and(|c| c.status == "True") {
            Stage::Ready
        } else {
            match container {
                Some(c) if c.state.as_ref().is_some_and(|s| s.running.is_some()) => match c.started {
                    Some(true) => Stage::Unready,
                    _ => Stage::Loading,
                },
                _ => Stage::Starting,
            }
        };
        Some(Self {
            version: None,
            stage,
            scheduling,
            waiting_since: refused_since(pod),
            trouble: match stage {
                Stage::Ready => None,
                Stage::Starting => unprepared(pod, now).map(Trouble::from),
                Stage::Pending | Stage::Loading | Stage::Unready => None,
            }
            .or_else(|| {
                let container = container.filter(|_| stage != Stage::Ready)?;
                trouble(&name, container)
            }),
            restarts: container.map_or(0, |c| c.restart_count),
            ended: container
                .and_then(|c| {
                    let now = c.state.as_ref().and_then(|s| s.terminated.as_ref());
                    now.or(c.last_state.as_ref()?.terminated.as_ref())
                })
                .and_then(Ended::of),
            backs_off: container.and_then(|c| c.state.as_ref()?.waiting.as_ref()?.reason.as_deref())
                == Some("CrashLoopBackOff"),
            changed: condition(pod, "Ready")
                .and_then(|c| c.last_transition_time.as_ref())
                .map(|t| t.0),
            created: pod.metadata.creation_timestamp.as_ref().map(|t| t.0),
            name,
        })
    }
}

impl From<Problem> for Trouble {
    fn from(Problem { reason, message }: Problem) -> Self {
        Self { reason, message }
    }
}

fn trouble(pod: &str, status: &ContainerStatus) -> Option<Trouble> {
    let state = status.state.as_ref();
    let waiting = state.and_then(|s| s.waiting.as_ref());
    if let Some(waiting) = waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        if let Some(problem) = of_image(PodsOf::InferenceService, pod, reason, &status.image) {
            return Some(Trouble::from(problem));
        }
        if CONFIG_REASONS.contains(&reason) {
            let words = cut_words(waiting.message.as_deref().unwrap_or(reason), WORDS_MAX);
            return Some(Trouble {
                reason: reasons::POD_CONFIG_INVALID,
                message: format!(
                    "the container of pod {pod} cannot be made: {words}. Make the Secret or ConfigMap that is missing, or \
                     correct the spec; the node tries again by itself"
                ),
            });
        }
    }
    let ended = state
        .and_then(|s| s.terminated.as_ref())
        .or_else(|| status.last_state.as_ref().and_then(|s| s.terminated.as_ref()))?;
    Some(crash(pod, status.restart_count, ended))
}

fn crash(pod: &str, restarts: i32, ended: &ContainerStateTerminated) -> Trouble {
    let times = format!("the server of pod {pod} ended (restarts: {restarts})");
    if ended.reason.as_deref() == Some("OOMKilled") {
        return Trouble {
            reason: reasons::OUT_OF_MEMORY,
            message: format!("{times}: it used more memory than its limit. Raise server.resources.limits.memory"),
        };
    }
    let words = ended.message.as_deref().unwrap_or_default().trim();
    let why = match TerminationMessage::parse(words).map(|m| m.outcome) {
        Some(Outcome::Failed(failure)) => format!("{}: {}", failure.reason.as_str(), failure.message),
        _ => {
            let how = match ended.signal {
                Some(signal) => format!("signal {signal}"),
                None => format!("exit code {}", ended.exit_code),
            };
            match words {
                "" => format!("{how}. See `kubectl logs --previous {pod}`"),
                // Without a message of its own the kubelet hands over the end of the log.
                words => format!("{how}. Its last words: {}", tail(words, WORDS_MAX)),
            }
        }
    };
    Trouble {
        reason: reasons::CRASH_LOOP,
        message: format!("{times}: {}", cut_words(&why, WORDS_MAX)),
    }
}

/// The last `max` bytes of a text, not cutting a character in two.
fn tail(text: &str, max: usize) -> &str {
    let from = text.len().saturating_sub(max);
    (from..=text.len())
        .find(|i| text.is_char_boundary(*i))
        .and_then(|i| text.get(i..))
        .unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::How;
    use flywheel_contract::failure::{Failure, FailureReason};

    fn pod(status: &str) -> Pod {
        let json = format!(r#"{{"metadata": {{"name": "p"}}, "spec": {{"containers": []}}, "status": {status}}}"#);
        read(&json)
    }

    fn read(json: &str) -> Pod {
        use serde::Deserialize as _;
        let mut text = serde_json::Deserializer::from_str(json);
        Pod::deserialize(&mut text).unwrap()
    }

    fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().unwrap()
    }

    fn on_a_node(container: &str) -> PodView {
        let status = format!(
            r#"{{"phase": "Running", "conditions": [{{"type": "PodScheduled", "status": "True"}}, {{"type": "Ready", "status": "False"}}],
                "containerStatuses": [{{"name": "server", "image": "r/i:1", "imageID": "", "ready": false, {container}}}]}}"#
        );
        PodView::of(&pod(&status), "server", now()).unwrap()
    }

    #[test]
    fn stages() {
        let waiting = PodView::of(
            &pod(r#"{"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                    "message": "0/1 nodes", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}"#),
            "server",
            now(),
        )
        .unwrap();
        assert_eq!((waiting.stage, waiting.scheduling.scheduled), (Stage::Pending, false));
        assert_eq!(waiting.scheduling.message.as_deref(), Some("0/1 nodes"));
        assert_eq!(
            waiting.waiting_since.map(|t| t.to_string()).as_deref(),
            Some("2026-01-01T00:00:00Z")
        );
        let table = [
            (
                r#""restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}"#,
                Stage::Starting,
            ),
            (
                r#""restartCount": 0, "started": false, "state": {"running": {}}"#,
                Stage::Loading,
            ),
            (
                r#""restartCount": 0, "started": true, "state": {"running": {}}"#,
                Stage::Unready,
            ),
        ];
        for (container, stage) in table {
            let view = on_a_node(container);
            assert_eq!((view.stage, &view.trouble), (stage, &None), "{container}");
        }
        let ready = PodView::of(
            &pod(r#"{"phase": "Running", "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "server", "image": "", "imageID": "", "ready": true, "started": true, "restartCount": 2,
                    "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 134, "finishedAt": "2026-01-01T00:09:00Z"}}}]}"#),
            "server",
            now(),
        )
        .unwrap();
        let ended = Ended {
            how: How::Signal(6),
            at: "2026-01-01T00:09:00Z".parse().unwrap(),
        };
        assert_eq!((ready.restarts, ready.ended), (2, Some(ended)));
        assert_eq!(
            (ready.stage, ready.trouble),
            (Stage::Ready, None),
            "what is over is no trouble"
        );
    }

    #[test]
    fn pods_that_end_do_not_count() {
        assert_eq!(
            PodView::of(&pod(r#"{"phase": "Failed", "reason": "Evicted"}"#), "server", now()),
            None
        );
        let leaving = read(
            r#"{"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}}"#,
        );
        assert_eq!(PodView::of(&leaving, "server", now()), None);
    }

    #[test]
    fn troubles_say_what_to_do() {
        let told = TerminationMessage::new(Outcome::Failed(Failure::new(
            FailureReason::DigestMismatch,
            "model.safetensors is not what manifest.json says; upload it again",
        )))
        .to_json()
        .replace('"', "\\\"");
        let told = format!(
            r#""restartCount": 3, "state": {{"waiting": {{"reason": "CrashLoopBackOff", "message": "back-off 40s"}}}}, "lastState": {{"terminated": {{"exitCode": 1, "message": "{told}"}}}}"#
        );
        let table = [
            (
                r#""restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}"#,
                "ImagePullFailed",
                "r/i:1 cannot be pulled for pod p. See that it exists",
            ),
            (
                r#""restartCount": 0, "state": {"waiting": {"reason": "CreateContainerConfigError", "message": "secret \"s3\" not found"}}"#,
                "PodConfigInvalid",
                "secret \"s3\" not found. Make the Secret",
            ),
            (
                r#""restartCount": 1, "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}"#,
                "OutOfMemory",
                "Raise server.resources.limits.memory",
            ),
            (
                told.as_str(),
                "CrashLoop",
                "(restarts: 3): DigestMismatch: model.safetensors is not what manifest.json says; upload it again",
            ),
            (
                r#""restartCount": 1, "started": false, "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 101, "message": "panicked at x"}}"#,
                "CrashLoop",
                "exit code 101. Its last words: panicked at x",
            ),
            (
                r#""restartCount": 1, "state": {"terminated": {"exitCode": 139, "signal": 11}}"#,
                "CrashLoop",
                "signal 11. See `kubectl logs --previous p`",
            ),
        ];
        for (container, reason, words) in table {
            let trouble = on_a_node(container).trouble.expect(container);
            assert_eq!(trouble.reason, reason, "{container}");
            assert!(
                trouble.message.contains(words),
                "{words} is not in: {}",
                trouble.message
            );
        }
    }

    #[test]
    fn a_pod_that_its_node_cannot_prepare_is_in_trouble_after_a_minute() {
        let seen = |since: &str| {
            let status = format!(
                r#"{{"phase": "Pending", "conditions": [{{"type": "PodScheduled", "status": "True", "lastTransitionTime": "{since}"}},
                    {{"type": "PodReadyToStartContainers", "status": "False", "lastTransitionTime": "{since}"}}],
                    "containerStatuses": [{{"name": "server", "image": "r/i:1", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {{"waiting": {{"reason": "ContainerCreating"}}}}}}]}}"#
            );
            let view = PodView::of(&pod(&status), "server", now()).unwrap();
            assert_eq!(view.stage, Stage::Starting);
            view.trouble.map(|t| t.reason)
        };
        assert_eq!(seen("2026-01-01T00:09:01Z"), None);
        assert_eq!(seen("2026-01-01T00:09:00Z"), Some("PodNotPrepared"));
    }

    #[test]
    fn a_long_log_keeps_its_end() {
        assert_eq!(tail("aéb", 2), "b");
        assert_eq!(tail("abc", 9), "abc");
    }
}
